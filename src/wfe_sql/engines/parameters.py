"""Numbers parameters, as aiosql's adapter for asyncpg does, because drivers are faster with numbers than with names."""

from aiosql.utils import VAR_REF


def number_parameters(sql: str, sign: str) -> tuple[str, list[str]]:
    """Replace each `:name` by the sign and a number, from 1; also return the names in the order of their numbers."""
    order: list[str] = []
    parts: list[str] = []
    end = 0
    for match in VAR_REF.finditer(sql):
        name = match["var_name"]
        if name is None:
            continue  # it is within quotes
        if name not in order:
            order.append(name)
        parts += [sql[end : match.start()], match["lead"], f"{sign}{order.index(name) + 1}"]
        end = match.end()
    return "".join([*parts, sql[end:]]), order
