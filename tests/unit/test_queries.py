"""The rules of `.sql` files, and that every statement is in one."""

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

import wfe_sql
from wfe_sql import QueryFileError
from wfe_sql.backends import BACKENDS, load_sqlite_queries
from wfe_sql.engines.sqlite.driver import InTransactionAdapter
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.queries import Query, QuerySet, find_sql, load

HEADER = "-- Does it.\n-- used by: run\n-- index: none"
FIRST = f"-- name: first(id)^\n{HEADER}\nSELECT :id;\n\n"
SECOND = FIRST.count("\n") + 1
"""The line after `FIRST`."""


def _query(name_line: str, sql: str = "SELECT 2;", *, header: str = HEADER) -> str:
    return f"{name_line}\n{header}\n{sql}\n"


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text, encoding="utf-8")


def _load(sql: Path, *, overlay: Path | None = None) -> QuerySet:
    return load("dialect", InTransactionAdapter, sql=sql, overlay=overlay)


def _refusal(sql: Path, *, overlay: Path | None = None) -> str:
    with pytest.raises(QueryFileError) as caught:
        _load(sql, overlay=overlay)
    return str(caught.value)


def _refusal_below_first(tmp_path: Path, text: str) -> str:
    """Return why a text is refused, after a check that the message begins with its file and line."""
    _write(tmp_path / "dialect", things=FIRST + text)
    message = _refusal(tmp_path)
    place = f"{tmp_path / 'dialect' / 'things.sql'}:{SECOND}: "
    assert message.startswith(place)
    return message.removeprefix(place)


# what loads


def test_a_query_has_what_its_file_says(tmp_path: Path) -> None:
    text = """\
-- One row for each thing. This belongs to the file.

-- name: first(id, now)^
-- Returns it,
-- in two lines.
-- used by: run, run_first
-- index: sqlite_autoindex_things_1, INTEGER PRIMARY KEY
-- keep: ORDER BY id; without it: chaos
-- keep: the token
SELECT id
-- whoever can't read :this reads on
FROM things
WHERE id = :id AND due <= :now;

-- name: second()
-- Returns all.
-- used by: run
-- scan: all are asked for
SELECT id
FROM things
"""
    _write(tmp_path / "dialect", things=text)
    file = str(tmp_path / "dialect" / "things.sql")
    first_sql = "SELECT id\n-- whoever can't read :this reads on\nFROM things\nWHERE id = :id AND due <= :now;"
    assert dict(_load(tmp_path)) == {
        "first": Query(
            name="first",
            params=("id", "now"),
            operation="^",
            summary="Returns it, in two lines.",
            used_by=("run", "run_first"),
            index=("sqlite_autoindex_things_1", "INTEGER PRIMARY KEY"),
            scan=None,
            keep=("ORDER BY id; without it: chaos", "the token"),
            sql=first_sql,
            file=file,
            line=3,
            text=text[text.index("-- name: first") : text.index("\n-- name: second")],
        ),
        "second": Query(
            name="second",
            params=(),
            operation="",
            summary="Returns all.",
            used_by=("run",),
            index=(),
            scan="all are asked for",
            keep=(),
            sql="SELECT id\nFROM things",
            file=file,
            line=15,
            text=text[text.index("-- name: second") :],
        ),
    }


@pytest.mark.parametrize("text", ["", "-- Nothing yet.\n"])
def test_a_file_may_be_without_queries(tmp_path: Path, text: str) -> None:
    _write(tmp_path / "dialect", notes=text, things=FIRST)
    assert list(_load(tmp_path)) == ["first"]


def test_each_operation_runs(tmp_path: Path) -> None:
    row = """SELECT word, '-- :no /* comment */ it''s', "it's -- odd" FROM things WHERE id = :id;"""
    things = (
        _query(
            "-- name: script()#", """CREATE TABLE things (id, word, "it's -- odd");\nCREATE INDEX i ON things (id);"""
        ),
        _query("-- name: many(id, word)*!", "INSERT INTO things VALUES (:id, :word, 7);"),
        _query("-- name: change(word)!", "UPDATE things SET word = word || :word;"),
        _query("-- name: rows()", "SELECT id, word\n  -- isn't :bound\nFROM things ORDER BY id;"),
        _query("-- name: row(id)^", row),
        _query("-- name: value()$", "SELECT count(*) FROM things;"),
    )
    _write(tmp_path / "dialect", things="".join(things))
    queries = _load(tmp_path)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        queries.run(connection, "script", {})
        queries.run(connection, "many", [{"id": 2, "word": "b"}, {"id": 1, "word": "a"}])
        assert queries.run(connection, "change", {"word": "!"}) == 2
        assert queries.run(connection, "rows", {}) == [(1, "a!"), (2, "b!")]
        assert queries.run(connection, "row", {"id": 2}) == ("b!", "-- :no /* comment */ it's", 7)
        assert queries.run(connection, "row", {"id": 3}) is None
        assert queries.run(connection, "value", {}) == 2


def test_a_name_without_parentheses_has_the_parameters_of_its_sql(tmp_path: Path) -> None:
    sql = """SELECT :word, ':no', "a:no", :id
-- isn't :no
, :word, '12:30';"""
    _write(tmp_path / "dialect", things=_query("-- name: row^", sql) + "\n" + _query("-- name: value$"))
    queries = _load(tmp_path)
    assert (queries["row"].params, queries["value"].params) == (("word", "id"), ())
    with closing(sqlite3.connect(":memory:")) as connection:
        assert queries.run(connection, "row", {"id": 1, "word": "w"}) == ("w", ":no", "a:no", 1, "w", "12:30")


def test_the_dialect_of_the_library_loads_whole() -> None:
    queries = load_sqlite_queries()
    folder = find_sql() / "sqlite"
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.iterdir()) if file.suffix == ".sql")
    assert sorted(queries) == sorted(re.findall(r"^--\s*name\s*:\s*(\w+)", text, re.MULTILINE))
    assert {Path(query.file).parent for query in queries.values()} == {folder}
    for name in ("get_workflow_instance", "persist_workflow", "claim_commands", "create_events_table", "begin_write"):
        assert name in queries


def test_a_text_can_stand_for_a_parameter(tmp_path: Path) -> None:
    sql = "SELECT :id, :id2, :id, '12:30' AS \"a:id_b\";"
    _write(tmp_path / "dialect", things=_query("-- name: row(id, id2)^", sql))
    assert _load(tmp_path)["row"].filled_in("id", r"\1") == r"""SELECT \1, :id2, \1, '12:30' AS "a:id_b";"""


@pytest.mark.parametrize(
    ("operation", "sql", "has_plan"),
    [
        *(("", "SELECT 1;", True), ("", "WITH one AS (SELECT 1) SELECT 1;", True), ("", "select\n1;", True)),
        *(("!", "UPDATE t SET x = 1;", True), ("*!", "INSERT INTO t VALUES (1);", True), ("!", "DELETE FROM t;", True)),
        *(("#", "DELETE FROM t;", False), ("!", "PRAGMA x;", False), ("!", "BEGIN;", False), ("!", "SELECTED;", False)),
    ],
)
def test_what_has_a_plan(tmp_path: Path, operation: str, sql: str, has_plan: bool) -> None:
    _write(tmp_path / "dialect", things=_query(f"-- name: rows(){operation}", sql))
    assert _load(tmp_path)["rows"].has_plan is has_plan


# what is refused: names


@pytest.mark.parametrize(
    "name_line",
    [
        "--name: second()",
        "--name second()",
        "-- Name: second()",
        "-- NAME : second()",
        "-- name second()",
        "-- name get-second()",
        "  -- name: second()",
        "-- name: second id",
        "-- name: second:",
        "-- name: second)",
        "-- name: second(id",
        "-- name: second(id):",
        "-- name: second()<!",
        "-- name: get-second()",
        "-- name: 2nd()",
        "-- name: _second()",
        "-- name: getSecond()",
        "-- name: sécond()",
        "-- name: things.second()",
        "-- name: ()",
        "-- name:",
    ],
)
def test_a_name_line_that_would_be_lost_or_misread(tmp_path: Path, name_line: str) -> None:
    assert f"'{name_line.strip()}' is not a name" in _refusal_below_first(tmp_path, _query(name_line))


@pytest.mark.parametrize("lost", ["", "-- second()", "-- nmae: second()"])
@pytest.mark.parametrize(
    "above", [FIRST, _query("-- name: script()#", "DELETE FROM things;\n")], ids=["query", "script"]
)
def test_a_query_whose_name_is_lost_does_not_become_part_of_the_one_above(
    tmp_path: Path, above: str, lost: str
) -> None:
    _write(tmp_path / "dialect", things=above + _query(lost))
    assert _refusal(tmp_path).startswith(f"{tmp_path / 'dialect' / 'things.sql'}:1: query ")


@pytest.mark.parametrize("name_line", ["-- name: First(id)^", "-- name: FIRST()", "-- name: fir-st()"])
def test_names_that_differ_only_by_case_or_dash(tmp_path: Path, name_line: str) -> None:
    assert name_line in _refusal_below_first(tmp_path, _query(name_line))


def test_a_name_that_is_taken_in_the_same_file(tmp_path: Path) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: first()"))
    assert message == f"query first: the name is already used by {tmp_path / 'dialect' / 'things.sql'}:1: query first"


def test_a_name_that_is_taken_in_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "dialect"
    _write(folder, a=FIRST, b="\n" + FIRST)
    message = _refusal(tmp_path)
    other = f"{folder / 'a.sql'}:1: query first"
    assert message == f"{folder / 'b.sql'}:2: query first: the name is already used by {other}"


@pytest.mark.parametrize(
    "name", ["add_queries", "add_query", "available_queries", "driver_adapter", "is_aio", "load_from_list"]
)
def test_a_name_that_aiosql_has_itself(tmp_path: Path, name: str) -> None:
    message = _refusal_below_first(tmp_path, _query(f"-- name: {name}()"))
    assert message == f"query {name}: cannot override existing attribute with query: {name}"


@pytest.mark.parametrize("names", [("foo", "foo_cursor"), ("foo_cursor", "foo")])
def test_a_name_that_aiosql_gives_to_the_cursor_of_another(tmp_path: Path, names: tuple[str, str]) -> None:
    above, below = (_query(f"-- name: {name}()") for name in names)
    _write(tmp_path / "dialect", things=above + below)
    message = _refusal(tmp_path)
    assert f"things.sql:6: query {names[1]}: " in message
    assert "with query: foo_cursor" in message


def test_a_cursor_is_of_rows_only(tmp_path: Path) -> None:
    _write(tmp_path / "dialect", things=_query("-- name: foo()^") + "\n" + _query("-- name: foo_cursor()"))
    assert list(_load(tmp_path)) == ["foo", "foo_cursor"]


# what is refused: parameters


@pytest.mark.parametrize(
    ("name_line", "sql", "why"),
    [
        ("second()", "SELECT :id;", "undeclared parameter name in query second: id"),
        ("second(id)", "SELECT :id, :now;", "undeclared parameter name in query second: now"),
        ("second(id, now)", "SELECT :id;", "unused declared parameter in query second: ['now']"),
        ("second(id, now)", "SELECT :id, ':now';", "unused declared parameter in query second: ['now']"),
        ("second(id, now)", "SELECT :id\n-- :now\n;", "unused declared parameter in query second: ['now']"),
        ("second(id, id)", "SELECT :id;", "unused declared parameter"),
        ("second(id now)", "SELECT :id, :now;", "invalid query name"),
        ("second(id)#", "DELETE FROM things WHERE id = :id;", "cannot use named parameters in SQL script"),
        ("second()#", "DELETE FROM things WHERE id = :id;", "undeclared parameter name in query second: id"),
        ("second(from)", "SELECT :from;", "from"),
        ("second(self)", "SELECT :self;", "self"),
        ("second(conn)", "SELECT :conn;", "conn"),
        ("second", "SELECT :conn;", "conn"),
        ("second#", "DELETE FROM things WHERE id = :id;", "cannot use named parameters in SQL script"),
    ],
)
def test_parameters_are_those_of_the_name_line(tmp_path: Path, name_line: str, sql: str, why: str) -> None:
    message = _refusal_below_first(tmp_path, _query(f"-- name: {name_line}", sql))
    assert message.startswith("query second: ")
    assert why in message


# what is refused: the text of a query


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 2; -- the end",
        "SELECT 2 -- don't\n;",
        "SELECT 2 -- not :x\n;",
        "SELECT 'it''s', \"it's\" -- the end\n;",
        "SELECT 2 --\n;",
        "SELECT /* two */ 2;",
        "SELECT\n/* two\n */ 2;",
        "/* two */\nSELECT 2;",
        "SELECT '\n' -- don't\n;",
    ],
)
def test_a_comment_that_is_not_a_line_of_its_own(tmp_path: Path, sql: str) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: second()", sql))
    assert message.startswith("query second: a trailing comment in '")


def test_a_line_of_a_string_that_aiosql_would_take_for_a_comment(tmp_path: Path) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: second()", "SELECT 'a\n-- b\nc';"))
    assert message.startswith("query second: ")


@pytest.mark.parametrize("comment", ["-- the end", "  -- the end", "\n-- of the next query"])
def test_a_comment_after_the_end(tmp_path: Path, comment: str) -> None:
    message = _refusal_below_first(
        tmp_path, _query("-- name: second()", f"SELECT 2;\n{comment}") + "\n" + _query("-- name: foo()")
    )
    assert message.startswith("query second: a comment after the query's end")


@pytest.mark.parametrize("sql", ["", "\n\n", ";", "  ;\n;"])
def test_a_query_without_sql(tmp_path: Path, sql: str) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: second()", sql))
    assert re.match("query second: (has no SQL|empty sql)", message)


@pytest.mark.parametrize("sql", ["SELECT 2; SELECT 3;", "SELECT 2;\n\nSELECT 3", "SELECT ';'; DELETE FROM things"])
def test_two_statements_that_are_not_a_script(tmp_path: Path, sql: str) -> None:
    assert _refusal_below_first(tmp_path, _query("-- name: second()", sql)).startswith("query second: ")


def test_a_string_that_aiosql_would_cut_in_two(tmp_path: Path) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: second()", "SELECT '-- name: third() ';"))
    assert message.startswith("query second: ")


@pytest.mark.parametrize("sql", ["SELECT 0;", "/* Things. */", "-- Things.\n\nSELECT 0;"])
def test_sql_above_the_first_name(tmp_path: Path, sql: str) -> None:
    _write(tmp_path / "dialect", things=f"{sql}\n{FIRST}")
    line = sql.count("\n") + 1
    assert _refusal(tmp_path).startswith(f"{tmp_path / 'dialect' / 'things.sql'}:{line}: SQL without a '-- name:' line")


def test_a_file_without_any_name(tmp_path: Path) -> None:
    _write(tmp_path / "dialect", things="-- Things.\nSELECT 0;")
    assert f"{tmp_path / 'dialect' / 'things.sql'}:2: SQL without" in _refusal(tmp_path)


# what is refused: headers


@pytest.mark.parametrize(
    "header",
    [
        "",
        "-- Does it.",
        "-- Does it.\n-- used by: run",
        "-- Does it.\n-- index: none",
        "-- Does it.\n-- used by: run\n-- index: none\n-- scan: all of it",
        "-- Does it.\n-- index: none\n-- scan: all of it",
        "-- Does it.\n-- used by:\n-- index: none",
        "-- Does it.\n-- used by: run\n-- index:",
        "-- Does it.\n-- Used by: run\n-- index: none",
        "-- used by: run\n-- index: none",
        "--\n--\n-- used by: run\n-- index: none",
        "-- Does it.\n-- used by: run\n-- index: none\n-- index: idx_things",
        "-- Does it.\n-- used by: run\n-- used by: run_first\n-- index: none",
        "-- Does it.\n-- used by: run\n-- used by: run_first",
        "-- Does it.\n-- used by: run\n-- keep: the order",
        "-- used by: run\n-- index: none\n-- keep: the order",
    ],
)
def test_a_header_that_lacks_something_or_has_it_twice(tmp_path: Path, header: str) -> None:
    message = _refusal_below_first(tmp_path, _query("-- name: second()", header=header))
    assert message.startswith("query second: needs a header below its name")


# what is refused: files and folders


@pytest.mark.parametrize("content", [b"-- name: first()\n-- \xe9", FIRST.encode("utf-16")])
def test_a_file_that_is_not_utf_8(tmp_path: Path, content: bytes) -> None:
    _write(tmp_path / "dialect")
    file = tmp_path / "dialect" / "things.sql"
    file.write_bytes(content)
    assert _refusal(tmp_path) == f"{file}: is not UTF-8 text"


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    assert _refusal(tmp_path).startswith(f"{tmp_path / 'dialect'} is not a folder")


def test_a_folder_without_queries(tmp_path: Path) -> None:
    _write(tmp_path / "dialect")
    assert str(tmp_path / "dialect") in _refusal(tmp_path)


# a tuned copy of a library's query


@pytest.fixture
def original(tmp_path: Path) -> Path:
    things = (
        _query("-- name: row(id, now)^", "SELECT 'own', :id, :now;") + "\n" + _query("-- name: value()$", "SELECT 1;")
    )
    _write(tmp_path / "sql" / "dialect", things=things)
    return tmp_path / "sql"


def test_an_overlay_replaces_one_query(tmp_path: Path, original: Path) -> None:
    _write(tmp_path / "tuned", mine=_query("-- name: row(now, id)^", "SELECT 'tuned', :id, :now;"))
    queries = _load(original, overlay=tmp_path / "tuned")
    assert queries["row"].place == f"{tmp_path / 'tuned' / 'mine.sql'}:1: query row"
    assert queries["value"] == _load(original)["value"]
    with closing(sqlite3.connect(":memory:")) as connection:
        assert queries.run(connection, "row", {"id": 1, "now": 2}) == ("tuned", 1, 2)
        assert queries.run(connection, "value", {}) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_query("-- name: second()^"), "query second: the library has no query with this name to replace"),
        (
            _query("-- name: row(id)^", "SELECT :id;"),
            "query row: must keep the parameters and the operation: row(id, now)^",
        ),
        (_query("-- name: row(id, now, more)^", "SELECT :id, :now, :more;"), "query row: must keep the parameters"),
        (_query("-- name: row(id, now)", "SELECT :id, :now;"), "query row: must keep the parameters and the operation"),
        (_query("-- name: value()^"), "query value: must keep the parameters and the operation: value()$"),
        (_query("-- name: row^", "SELECT :id;"), "query row: must keep the parameters and the operation: row(id"),
        (_query("-- name: value()$", header="-- Does it."), "query value: needs a header"),
        (_query("-- name: value()$", "SELECT :id;"), "query value: undeclared parameter"),
    ],
)
def test_an_overlay_keeps_the_rules(tmp_path: Path, original: Path, text: str, why: str) -> None:
    _write(tmp_path / "tuned", mine=text)
    assert _refusal(original, overlay=tmp_path / "tuned").startswith(f"{tmp_path / 'tuned' / 'mine.sql'}:1: {why}")


def test_an_overlay_of_two_files_cannot_replace_a_query_twice(tmp_path: Path, original: Path) -> None:
    _write(tmp_path / "tuned", a=_query("-- name: value()$"), b=_query("-- name: value()$"))
    assert f"b.sql:1: query value: the name is already used by {tmp_path / 'tuned' / 'a.sql'}" in _refusal(
        original, overlay=tmp_path / "tuned"
    )


def test_an_overlay_that_is_missing(tmp_path: Path, original: Path) -> None:
    assert _refusal(original, overlay=tmp_path / "tuned").startswith(f"{tmp_path / 'tuned'} is not a folder")


def test_an_overlay_that_would_replace_nothing_as_its_files_lie_deeper(tmp_path: Path, original: Path) -> None:
    _write(tmp_path / "tuned" / "dialect", mine=_query("-- name: value()$"))
    assert str(tmp_path / "tuned") in _refusal(original, overlay=tmp_path / "tuned")


# what a tuned copy must keep

_NO_CHECK_SEES = {
    r"\bFOR UPDATE\b": "FOR UPDATE",
    r"\bSKIP LOCKED\b": "SKIP LOCKED",
    r"\bunits?\.unit\b": "unit",
    r"\bORDER BY (\w+\.)?(workflow_id, )?(position|place|rowid)\b": "ORDER BY",
    r"(WHERE|AND) .*\b(claim|external)_token = ": "token",
    r"\bexpected_revision\b": "revision",
    r"\bclaim_token IS NULL OR (\w+\.)?claim_expires_at\b": "due and free",
    r":after_(id|place|definition_id)\b": "after",
    r"\bCREATE INDEX\b": "index",
}
"""Parts of a query that must not be lost, and what its `keep:` lines say about them."""


@pytest.mark.parametrize("part", _NO_CHECK_SEES)
def test_a_header_says_what_no_check_would_see(part: str) -> None:
    queries = [query for dialect in BACKENDS.values() for query in dialect.load(None).values()]
    having = [query for query in queries if re.search(part, query.sql)]
    assert having
    assert [query.place for query in having if _NO_CHECK_SEES[part] not in " ".join(query.keep)] == []


# what is loaded once


def test_the_queries_of_the_library_are_loaded_once() -> None:
    assert load_sqlite_queries() is load_sqlite_queries()


def test_an_overlay_is_loaded_again_when_it_changed(tmp_path: Path, original: Path) -> None:
    _write(tmp_path / "tuned", mine=_query("-- name: value()$", "SELECT 2;"))
    before = _load(original, overlay=tmp_path / "tuned")
    assert _load(original, overlay=tmp_path / "tuned") is before
    _write(tmp_path / "tuned", mine=_query("-- name: value()$", "SELECT 3;"))
    assert _load(original, overlay=tmp_path / "tuned")["value"].sql == "SELECT 3;"


async def test_a_host_may_patch_a_method() -> None:
    with mock.patch.object(SqlPersistenceProvider, "get_event", autospec=True):
        async with wfe_sql.connect(":memory:"):
            pass


# every statement is in a .sql file

_SQL = re.compile(
    r"""\s*(
        (?i:SELECT\s.*\sFROM\s|SELECT\s+(\*|:|\d|'|\w+\())
        |(?i:WITH\s+(RECURSIVE\s+)?\w+\s*(\([\w\s,]*\)\s*)?AS\s*\()
        |(?i:(INSERT|REPLACE)\s+(OR\s+\w+\s+)?INTO\s|UPDATE\s+(OR\s+\w+\s+)?[\w."]+\s+SET\s|DELETE\s+FROM\s)
        |(?i:(CREATE|ALTER|DROP)\s+(TEMP\w*\s+|UNIQUE\s+|VIRTUAL\s+)*(TABLE|INDEX|VIEW|TRIGGER|SCHEMA|COLUMN)\s)
        |(?i:PRAGMA\s+\w+|(RELEASE\s+)?SAVEPOINT\s+\w+|ROLLBACK\s+TO\s|VACUUM\s+INTO\s|ATTACH\s+DATABASE\s)
        |(?i:EXPLAIN\s+(QUERY\s+PLAN|SELECT|INSERT|UPDATE|DELETE|WITH|ANALYZE)\b)
        |(?i:BEGIN\s+(IMMEDIATE|EXCLUSIVE|DEFERRED|TRANSACTION)\b)
        |(SELECT|INSERT|UPDATE|DELETE|PRAGMA|EXPLAIN|RELEASE)\s
        |(BEGIN|COMMIT|END|ROLLBACK|VACUUM|ANALYZE|REINDEX)\s*;?\s*$
    )""",
    re.VERBOSE | re.DOTALL,
)


def _strings(source: str) -> Iterator[tuple[int, str]]:
    """Every string of a module, except docstrings and other strings that are statements."""
    nodes = list(ast.walk(ast.parse(source)))
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id FROM events",
        "\n  select id\n from events",
        "SELECT ",
        "select 1",
        "WITH due AS (SELECT 1) SELECT * FROM due",
        "INSERT INTO events VALUES (1)",
        "insert or ignore into events values (1)",
        "UPDATE events SET id = 1",
        "DELETE FROM events",
        "CREATE TABLE events (id)",
        "create unique index i on events (id)",
        "ALTER TABLE events ADD COLUMN x",
        "drop table events",
        "PRAGMA user_version",
        "pragma journal_mode = WAL",
        "BEGIN",
        "begin immediate",
        "COMMIT;",
        "ROLLBACK",
        "ROLLBACK TO x",
        "SAVEPOINT x",
        "release savepoint x",
        "VACUUM",
        "vacuum into 'x'",
        "EXPLAIN QUERY PLAN ",
        "explain select 1",
    ],
)
def test_sql_is_known_when_it_is_seen(text: str) -> None:
    assert _SQL.match(text)
    assert [line for line, found in _strings(f'"""{text}"""\nx = f({text!r})\n') if _SQL.match(found)] == [
        2 + text.count("\n")
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("begin_write", "commit", "rollback", "rollback_unit", "create_workflows_table", "vacuum", "analyze"),
        *("Select a workflow", "Update the statistics", "Create a new store", "Delete events", "Explain a query"),
        *("Begin here", "With a store", "insert failed", "end", "release notes"),
    ],
)
def test_words_are_not_sql(text: str) -> None:
    assert not _SQL.match(text)


def test_no_python_file_contains_sql() -> None:
    package = Path(wfe_sql.__file__).parent
    sources = sorted(package.rglob("*.py"))
    assert package / "engines" / "sqlite" / "engine.py" in sources
    assert [
        f"{source.relative_to(package)}:{line}: {text}"
        for source in sources
        for line, text in _strings(source.read_text(encoding="utf-8"))
        if _SQL.match(text)
    ] == []
