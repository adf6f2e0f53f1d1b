"""Parameters by number instead of by name, as aiosql's adapter for asyncpg has them: drivers are quicker with these."""

from aiosql.utils import VAR_REF


def number_parameters(sql: str, sign: str) -> tuple[str, list[str]]:
    """Turn each `:name` into the sign and a number, from 1, and return the names in the order of their numbers too."""
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
