"""Finds the `.sql` files of a dialect, checks them against the rules of `sql/README.md`, and loads them by aiosql.

A file is a list of queries, each of this form:

    -- name: get_event(id)^
    -- What it does.
    -- used by: get_event
    -- index: sqlite_autoindex_events_1
    SELECT ...;

The words after `name:` are aiosql's: the name, its parameters, and the operation (nothing for rows, `^` one row, `$`
one value, `!` the number of rows changed, `*!` the same for many sets of parameters, `#` a script). A name without
parentheses has the parameters that its SQL has. `used by:` names the methods that run the query; those of
`persist_workflow_group`, the form in which an engine runs many `persist_workflow` as one statement, run
`persist_workflow`. `index:` names the indexes that its plan uses, or `none`; `scan:` instead says why it needs none.
The library's own tests check that these are true. Lines `keep:` may follow, each of which says what a tuned copy must
not lose, because no check would notice.

aiosql silently loses a query after some mistakes (https://nackjicholson.github.io/aiosql/defining-sql-queries.html);
the checks here turn each of these cases into a `QueryFileError` that names file, line and query.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

from aiosql.queries import Queries
from aiosql.query_loader import QueryLoader
from aiosql.types import DriverAdapterProtocol
from aiosql.utils import VAR_REF, SQLLoadException, SQLParseException

from wfe_sql.errors import QueryFileError

_NAME_LINE = re.compile(
    r"-- name: (?P<name>[a-z][a-z0-9_]*)(\((?P<params>[a-z0-9_, ]*)\))?(?P<operation>\^|\$|!|\*!|#|)"
)
_LOOKS_LIKE_A_NAME = re.compile(r"--\s*name(\s*:|\s+[\w-]+\s*\()", re.IGNORECASE)
_HEADER_KEY = re.compile(r"-- (?P<key>used by|index|scan|keep): (?P<value>.+)")
_TOKEN = re.compile(r"'(?:''|[^'])*'|\"(?:\"\"|[^\"])*\"|--.*|/\*|;")
_HAS_A_PLAN = {"select", "insert", "replace", "update", "delete", "merge", "with", "values"}
"""How a statement begins that reads or writes tables."""
_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n)*([A-Za-z]+)")
_NOT_IN_A_UNIT = {
    *("abort", "begin", "commit", "end", "prepare", "release", "rollback", "savepoint", "start"),
    *("attach", "detach", "discard", "pragma", "reset", "set", "vacuum"),
}
"""How a statement begins that ends a transaction, or changes its connection for the next user."""
_DOCUMENTS = re.compile(r"\b\w+_documents\b")
"""The names of the views whose documents become objects."""
_RESERVED_BY_AIOSQL = {"self", "conn"}
"""Names of parameters of the functions that aiosql makes."""
_ADAPTER = {
    "": "select",
    "^": "select_one",
    "$": "select_value",
    "!": "insert_update_delete",
    "*!": "insert_update_delete_many",
}
"""The method of aiosql's adapters for each operation."""


@dataclass(frozen=True, slots=True)
class Query:
    """One named query as its file has it."""

    name: str
    params: tuple[str, ...]
    operation: str
    summary: str
    used_by: tuple[str, ...]
    index: tuple[str, ...]
    scan: str | None
    sql: str
    file: str
    line: int
    text: str
    keep: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """File, line and name, as error messages have them."""
        return f"{self.file}:{self.line}: query {self.name}"

    @property
    def has_plan(self) -> bool:
        """Tell whether the database plans it: not scripts, pragmas and transactions."""
        return self.operation != "#" and self.sql.split(maxsplit=1)[0].lower() in _HAS_A_PLAN

    def filled_in(self, param: str, text: str) -> str:
        """Return its SQL with a text in place of a parameter that a database cannot bind.

        For example the query that is explained, or a number in DDL that is piped into another program. The text is
        never a value from outside.
        """
        return re.sub(rf"(?<!:):{param}\b", lambda _: text, self.sql)


class QuerySet(Mapping[str, Query]):
    """The queries of a dialect, by name, ready to be run through aiosql."""

    def __init__(self, queries: Iterable[Query], adapter: DriverAdapterProtocol) -> None:
        self._queries = {query.name: query for query in queries}
        self.replaced: dict[str, Query] = {}
        """The library's own queries that tuned ones replace."""
        self.tuned: frozenset[str] = frozenset()
        """The names of the tuned queries."""
        runnable = _load_through_aiosql(self._queries.values(), adapter)
        self._run = {
            query.name: _runner(query, getattr(runnable, query.name).sql, adapter) for query in self._queries.values()
        }
        self.application: Mapping[str, Query] = {}
        """The application's queries, by name: they can be run, but are not among the queries of this set."""

    def with_tuned(self, tuned: "QuerySet") -> "QuerySet":
        """Return a set in which tuned queries replace these: only they are loaded, which takes most of the time."""
        both = copy(self)
        both._queries = {**self._queries, **tuned._queries}
        both._run = {**self._run, **tuned._run}
        both.replaced = {name: self[name] for name, query in tuned.items() if query.text != self[name].text}
        both.tuned = frozenset(both.replaced)
        return both

    def with_application(self, application: "QuerySet") -> "QuerySet":
        """Return a set that also runs the application's queries.

        Raises:
            QueryFileError: One of them has the name of one of these.
        """
        for query in application.values():
            if query.name in self._queries:
                raise QueryFileError(f"{query.place}: the name is one of the library's own; choose another")
        both = copy(self)
        both._run = {**self._run, **application._run}
        both.application = application
        return both

    def run(self, connection: Any, name: str, params: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Run a query on a connection of the driver: with one set of parameters, or a list of them for `*!`.

        It calls aiosql's adapter directly, because the functions that aiosql makes cost as much as a short query.
        """
        return self._run[name](connection, params)

    def __getitem__(self, name: str) -> Query:
        return self._queries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queries)

    def __len__(self) -> int:
        return len(self._queries)


def find_sql() -> Path:
    """Return the folder of the `.sql` files: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "sql"
    return installed if installed.is_dir() else package.parents[1] / "sql"


def load(
    dialect: str,
    adapter: Callable[[], DriverAdapterProtocol],
    *,
    check: Callable[[QuerySet, QuerySet], None] | None = None,
    sql: Path | None = None,
    overlay: Path | None = None,
) -> QuerySet:
    """Load all queries of a dialect.

    The library's own are read once per process. Those of an overlay are read each time, and loaded again if a DBA has
    changed them.

    Args:
        dialect: The folder's name, such as "sqlite".
        adapter: Makes aiosql's adapter for the driver.
        check: Compares a set with tuned queries to the library's own, and raises `QueryFileError` if they do not match.
        sql: The parent of the dialects' folders; the library's own if None.
        overlay: A folder with `.sql` files whose queries replace those of the same name.

    Raises:
        QueryFileError: A file breaks a rule; the message names file, line and query.
    """
    folder = (find_sql() if sql is None else sql) / dialect
    tuned = () if overlay is None else tuple(_read_folder(overlay).values())
    return _load(folder, adapter, check, tuned)


def load_application(
    dialect: str, adapter: Callable[[], DriverAdapterProtocol], folder: Path, split: Callable[[str], Iterable[str]]
) -> QuerySet:
    """Load the application's queries: those in its folder, and those in the folder's subfolder for the dialect.

    Their header is a line of text that says what they do; lines such as `used by:` are not required.

    Args:
        dialect: The name of the dialect's folder, such as "sqlite".
        adapter: Makes aiosql's adapter for the driver.
        folder: The folder.
        split: Cuts a script into its statements.

    Raises:
        QueryFileError: A file breaks a rule, or a query would end the transaction that it runs in; the
            message names file, line and query.
    """
    if not folder.is_dir():
        raise QueryFileError(f"{folder} is not a folder; it should hold the application's .sql files")
    queries = _read_files([*folder.glob("*.sql"), *(folder / dialect).glob("*.sql")], is_application=True)
    if not queries:
        raise QueryFileError(f"{folder} holds no queries for {dialect}; they are in .sql files in it, or in {dialect}/")
    for query in queries.values():
        if query.operation == "*!":
            raise QueryFileError(f"{query.place}: an application's query runs once; use ! for one that writes")
        for statement in split(query.sql) if query.operation == "#" else [query.sql]:
            found = _FIRST_WORD.match(statement)
            if found is not None and found[1].lower() in _NOT_IN_A_UNIT:
                raise QueryFileError(
                    f"{query.place}: {found[1].upper()} would end the transaction that the query runs in, or change "
                    "its connection; both belong to the library"
                )
    return QuerySet(queries.values(), adapter())


@lru_cache(maxsize=16)
def _load(
    folder: Path,
    adapter: Callable[[], DriverAdapterProtocol],
    check: Callable[[QuerySet, QuerySet], None] | None,
    tuned: tuple[Query, ...],
) -> QuerySet:
    if not tuned:
        return QuerySet(_read_folder(folder).values(), adapter())
    own = _load(folder, adapter, check, ())
    for query in tuned:
        _check_replacement(query, own)
    queries = own.with_tuned(QuerySet(tuned, adapter()))
    if check is not None:
        check(queries, own)
    return queries


def _read_folder(folder: Path) -> dict[str, Query]:
    if not folder.is_dir():
        raise QueryFileError(f"{folder} is not a folder; name a folder with .sql files")
    queries = _read_files(folder.glob("*.sql"))
    if not queries:
        raise QueryFileError(f"{folder} contains no queries; put them into .sql files directly in this folder")
    return queries


def _read_files(files: Iterable[Path], *, is_application: bool = False) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for file in sorted(files):
        for query in _read_file(file, is_application=is_application):
            if query.name in queries:
                raise QueryFileError(f"{query.place}: the name is already used by {queries[query.name].place}")
            queries[query.name] = query
    return queries


def _read_file(file: Path, *, is_application: bool) -> Iterator[Query]:
    """Cut a file into its queries; comments above the first one are the file's own."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise QueryFileError(f"{file}: is not UTF-8 text") from error
    starts = [number for number, line in enumerate(lines) if _LOOKS_LIKE_A_NAME.match(line.strip())]
    for number, line in enumerate(lines[: starts[0] if starts else None], start=1):
        if line.strip() and not line.startswith("--"):
            raise QueryFileError(f"{file}:{number}: SQL without a '-- name:' line above it would be lost")
    for start, end in pairwise([*starts, len(lines)]):
        of_query = [line.rstrip() for line in lines[start:end]]
        yield _read_query(str(file), start + 1, of_query, is_application=is_application)


def _read_query(file: str, line_number: int, lines: list[str], *, is_application: bool) -> Query:
    name_line = _NAME_LINE.fullmatch(lines[0])
    if name_line is None:
        raise QueryFileError(
            f"{file}:{line_number}: '{lines[0].strip()}' is not a name that aiosql accepts; "
            "write '-- name: verb_object(param, param)', parentheses are optional, and one of ^ $ ! *! # or nothing"
        )
    name = name_line["name"]
    place = f"{file}:{line_number}: query {name}"

    body_start = next((at for at, line in enumerate(lines[1:], 1) if line and not line.startswith("--")), len(lines))
    header, body = lines[1:body_start], lines[body_start:]
    found = [match for line in header if (match := _HEADER_KEY.fullmatch(line))]
    keys = {match["key"]: match["value"] for match in found if match["key"] != "keep"}
    keep = tuple(match["value"] for match in found if match["key"] == "keep")
    summary = " ".join(line[3:] for line in header if line[3:] and not _HEADER_KEY.fullmatch(line))
    if is_application and not summary:
        raise QueryFileError(f"{place}: needs a line below its name that says what it does: '-- Stores an invoice.'")
    if not is_application and (not summary or len(found) - len(keep) != 2 or "used by" not in keys or len(keys) != 2):
        raise QueryFileError(
            f"{place}: needs a header below its name: what it does, 'used by:', and one of 'index:' and 'scan:'"
        )
    if not any(body):
        raise QueryFileError(f"{place}: has no SQL")
    if next(line for line in reversed(body) if line).lstrip().startswith("--"):
        raise QueryFileError(f"{place}: a comment after the query's end; put it below a '-- name:' line")
    sql = "\n".join(body).rstrip()
    _check_sql(place, sql, script=name_line["operation"] == "#")

    return Query(
        name=name,
        params=_params_in(sql) if name_line["params"] is None else _params_listed(name_line["params"]),
        operation=name_line["operation"],
        summary=summary,
        used_by=tuple(user.strip() for user in keys.get("used by", "").split(",")),
        index=tuple(index.strip() for index in keys.get("index", "none").split(",") if index.strip() != "none"),
        scan=keys.get("scan"),
        keep=keep,
        sql=sql,
        file=file,
        line=line_number,
        text="\n".join(lines).rstrip() + "\n",
    )


def _params_listed(names: str) -> tuple[str, ...]:
    return tuple(param.strip() for param in names.split(",") if param.strip())


def _params_in(sql: str) -> tuple[str, ...]:
    """Return the parameters of a query in their order; comments have lines of their own."""
    text = re.sub(r"^\s*--.*", "", sql, flags=re.MULTILINE)
    return tuple(dict.fromkeys(match["var_name"] for match in VAR_REF.finditer(text) if match["var_name"]))


def _check_sql(place: str, sql: str, *, script: bool) -> None:
    """Refuse SQL that aiosql or the driver would read differently from a human reader."""
    end: int | None = None
    for token in _TOKEN.finditer(sql):
        text = token[0]
        line = sql[sql.rfind("\n", 0, token.start()) + 1 :].partition("\n")[0].strip()
        if text == "/*" or (text.startswith("--") and line != text.strip()):
            raise QueryFileError(f"{place}: a trailing comment in '{line}'; put it on its own line")
        if _HEADER_KEY.fullmatch(text):
            raise QueryFileError(f"{place}: '{text}' within its SQL; the '-- name:' line above it is missing")
        if text[0] in "'\"" and re.search(r"^\s*--", text, re.MULTILINE):
            raise QueryFileError(f"{place}: a line of a string begins with --; aiosql would treat it as a comment")
        if text == ";" and end is None:
            end = token.end()
    if not script and end is not None and sql[end:].strip("; \n"):
        raise QueryFileError(f"{place}: two statements; only a script (#) may have more than one")


def _check_replacement(tuned: Query, queries: Mapping[str, Query]) -> None:
    original = queries.get(tuned.name)
    if original is None:
        raise QueryFileError(f"{tuned.place}: the library has no query with this name to replace")
    if set(tuned.params) != set(original.params) or tuned.operation != original.operation:
        raise QueryFileError(
            f"{tuned.place}: must keep the parameters and the operation: "
            f"{original.name}({', '.join(original.params)}){original.operation}"
        )
    for view in set(_DOCUMENTS.findall(original.sql)).difference(_DOCUMENTS.findall(tuned.sql)):
        raise QueryFileError(
            f"{tuned.place}: must read its documents from {view}: "
            "a persist would erase the fields that another document lacks"
        )


def check_columns(tuned: Query, *, expected: Sequence[str], found: Sequence[str]) -> None:
    """Check that a tuned query returns the columns of the library's own, as the database names them.

    Raises:
        QueryFileError: Their names or their order differ.
    """
    if list(found) != list(expected):
        # A column without a name may be called by its whole expression.
        names = ", ".join(shorten(name, 40, placeholder="...") for name in found)
        raise QueryFileError(
            f"{tuned.place}: must return the columns ({', '.join(expected)}), not ({names}); name them with AS"
        )


def _load_through_aiosql(queries: Iterable[Query], adapter: DriverAdapterProtocol) -> Queries:
    loader = QueryLoader(adapter, record_classes=None, attribute=None, mandatory_parameters=True)
    runnable = Queries(adapter)
    for query in queries:
        if taken := _RESERVED_BY_AIOSQL.intersection(query.params):
            raise QueryFileError(f"{query.place}: {taken.pop()} cannot be the name of a parameter")
        name_line = f"-- name: {query.name}({', '.join(query.params)}){query.operation}"
        text = "\n" * (query.line - 1) + f"{name_line}\n{query.sql}"
        try:
            data = loader.load_query_data_from_sql(text, [], query.file)
            runnable.load_from_list(data)
        except (SQLParseException, SQLLoadException, ValueError) as error:  # ValueError: a parameter such as "from"
            raise QueryFileError(f"{query.place}: {error}") from error
        if len(data) != 1:
            raise QueryFileError(f"{query.place}: aiosql would split it at the '-- name:' inside it")
    return runnable


def _runner(query: Query, sql: str, adapter: DriverAdapterProtocol) -> Callable[[Any, Any], Any]:
    if query.operation == "#":
        return lambda connection, params: adapter.execute_script(connection, sql)
    run = getattr(adapter, _ADAPTER[query.operation])
    return lambda connection, params: run(connection, query.name, sql, params)
