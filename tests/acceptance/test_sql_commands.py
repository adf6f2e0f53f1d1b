"""`wfe-sql queries`, `explain` and `schema` as a DBA runs them."""

import asyncio
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from commands import Result, run_command
from wfe_sql import ExecutionError, SqlitePersistenceProvider
from wfe_sql.backends import load_sqlite_queries
from wfe_sql.queries import find_sql
from wfe_sql.testing.samples import full_event, sample_instance

OWN = load_sqlite_queries()
POLL = "get_runnable_instances"
REFERENCE = Path(__file__).parents[1] / "data" / "wfe-sqlite-1.11.4.db"
COMMAND = [sys.executable, "-m", "wfe_sql.cli"]


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return run_command


def _on_a_terminal(*arguments: str) -> str:
    """Run a command with a terminal for its output, and return what it shows."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([*COMMAND, *arguments], stdout=terminal, env=environment):
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(screen, 65536):
                shown += part
        except OSError:  # how Linux reports that the other end is closed
            pass
    os.close(screen)
    return shown.decode()


@pytest.fixture
def tuned(run: Run, tmp_path: Path) -> Path:
    """Export two queries and change one."""
    folder = tmp_path / "tuned"
    assert run("queries", "export", folder, POLL, "get_event").code == 0
    file = folder / "workflows.sql"
    file.write_text(file.read_text().replace("ORDER BY next_execution, id", "ORDER BY next_execution DESC, id"))
    return folder


COMMANDS = [
    ("queries",),
    *(("queries", command) for command in ("list", "show", "export", "diff")),
    ("explain",),
    ("schema",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert f"Example: wfe-sql {' '.join(command)}" in " ".join(result.out.split())


# queries


def test_list_on_a_pipe_is_a_line_for_each_query(run: Run) -> None:
    lines = [line.split("\t") for line in run("queries", "list").out.splitlines()]
    assert [name for _, name, _, _ in lines] == list(OWN)
    assert ["workflows.sql", POLL, "idx_workflows_runnable", POLL] in lines
    assert "scan: all rows are asked for, in the order of the table" in [index for _, _, index, _ in lines]


def test_list_and_show_as_json(run: Run, tuned: Path) -> None:
    listed = run("queries", "list", "--json", "--sql-dir", tuned).json
    assert [query["name"] for query in listed if query["tuned"]] == [POLL]
    shown = run("queries", "show", POLL, "--json").json
    assert shown == {**next(q for q in run("queries", "list", "--json").json if q["name"] == POLL)}
    assert shown["parameters"] == ["as_at", "row_limit"]
    assert (shown["index"], shown["scan"]) == (["idx_workflows_runnable"], None)
    assert (shown["sql"], shown["tuned"]) == (OWN[POLL].sql, False)


def test_a_tuned_query_is_marked(run: Run, tuned: Path) -> None:
    lines = run("queries", "list", "--sql-dir", tuned).out.splitlines()
    assert [line.split("\t")[1] for line in lines if "tuned" in line] == [f"{POLL} (tuned)"]


def test_show_prints_what_the_file_has(run: Run, tuned: Path) -> None:
    shown = run("queries", "show", POLL).out
    assert shown == OWN[POLL].text
    assert shown in Path(OWN[POLL].file).read_text()
    tuned_text = run("queries", "show", POLL, WFE_SQL_DIR=str(tuned)).out
    assert tuned_text == shown.replace("next_execution, id", "next_execution DESC, id")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("get_runable_instances", "did you mean get_runnable_instances"),
        ("xyz", "see wfe-sql queries list"),
    ],
)
@pytest.mark.parametrize("command", [("queries", "show"), ("explain", ":memory:")])
def test_a_query_that_does_not_exist(run: Run, command: tuple[str, ...], name: str, hint: str) -> None:
    result = run(*command, name)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"wfe-sql: no query has the name {name}; {hint}")
    assert result.err.count("\n") == 1


def test_export_writes_a_copy_that_changes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("queries", "export", tmp_path / "deep" / "copy", "--json")
    own = {file.name: file.read_text() for file in (find_sql() / "sqlite").iterdir()}
    assert result.json == {"folder": str(tmp_path / "deep" / "copy"), "files": sorted(own)}
    assert {file.name: file.read_text() for file in (tmp_path / "deep" / "copy").iterdir()} == own
    assert run("queries", "diff", tmp_path / "deep" / "copy") == Result(0, "", "")


def test_export_refuses_a_folder_that_is_not_empty(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text("-- Mine.\n")
    result = run("queries", "export", tmp_path)
    assert result == Result(2, "", f"wfe-sql: {tmp_path} is not an empty folder; nothing was written\n")
    assert run("queries", "export", tmp_path / "mine.sql").code == 2
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.sql", "-- Mine.\n")]


def test_export_of_what_does_not_exist_writes_nothing(run: Run, tmp_path: Path) -> None:
    assert run("queries", "export", tmp_path / "copy", POLL, "xyz").code == 2
    assert run("queries", "export", "/proc/copy").err.startswith("wfe-sql: /proc/copy cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_diff_shows_what_is_changed(run: Run, tuned: Path) -> None:
    result = run("queries", "diff", tuned)
    assert result.code == 1
    assert result.out.startswith(f"--- {OWN[POLL].file}:{OWN[POLL].line}\n+++ {tuned / 'workflows.sql'}:1\n@@")
    assert "\n-ORDER BY next_execution, id\n+ORDER BY next_execution DESC, id\n" in result.out
    assert [query["name"] for query in run("queries", "diff", tuned, "--json").json] == [POLL]
    assert run("queries", "diff", WFE_SQL_DIR=str(tuned)) == result


def test_diff_of_a_folder_that_cannot_be_used(run: Run, tuned: Path) -> None:
    file = tuned / "workflows.sql"
    file.write_text(file.read_text().replace("FROM workflows", "FORM workflows"))
    result = run("queries", "diff", tuned)
    assert (result.code, result.out) == (2, "")
    assert result.err == f'wfe-sql: {file}:1: query {POLL}: SQLite refuses it: near "workflows": syntax error\n'
    assert run("queries", "diff", tuned / "nothing").code == 2
    assert run("queries", "list", "--sql-dir", tuned) == Result(1, "", result.err)


# explain


def test_every_plan_of_an_empty_store_is_what_its_header_says(run: Run) -> None:
    plans = run("explain", ":memory:", "--json").json
    assert [plan["query"] for plan in plans] == [name for name, query in OWN.items() if query.has_plan]
    assert [plan for plan in plans if plan["wrong"]] == []
    assert next(plan for plan in plans if plan["query"] == POLL)["indexes"] == ["idx_workflows_runnable"]


async def test_explain_opens_a_store_for_reading_only(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqlitePersistenceProvider(path) as provider:
        await provider.create_new_workflow(sample_instance())
    before = path.read_bytes()
    result = run("explain", f"sqlite://{path}")
    assert result.code == 0
    assert f"{POLL}  index: idx_workflows_runnable\n    SEARCH workflows USING COVERING INDEX" in result.out
    assert "get_execution_errors  scan: all rows are asked for, in the order of the table\n  * SCAN" in result.out
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_that_is_not_what_its_header_says(run: Run, tuned: Path) -> None:
    result = run("explain", ":memory:", POLL, "--sql-dir", tuned)
    assert result.code == 1
    assert result.out.splitlines() == [
        f"{POLL}  index: idx_workflows_runnable",
        "    SEARCH workflows USING COVERING INDEX idx_workflows_runnable (status=? AND next_execution<?)",
        "  * USE TEMP B-TREE FOR RIGHT PART OF ORDER BY",
        "  ! USE TEMP B-TREE FOR RIGHT PART OF ORDER BY, without 'scan:' in the header",
    ]


def test_a_store_that_is_not_up_to_date(run: Run, tmp_path: Path) -> None:
    path = shutil.copy(REFERENCE, tmp_path)
    message = f"wfe-sql: {path} is out of date; upgrade it first: wfe-sql init\n"
    assert run("explain", path) == Result(1, "", message)
    assert list(tmp_path.iterdir()) == [Path(path)]
    assert run("init", path).code == 0
    assert run("explain", path).code == 0


async def test_an_index_that_is_missing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqlitePersistenceProvider(path):
        pass
    with closing(sqlite3.connect(path)) as by_hand:
        by_hand.execute("DROP INDEX idx_workflows_runnable")
    result = run("explain", path, POLL)
    assert result.code == 1
    assert result.out.endswith("  ! index idx_workflows_runnable is missing; run wfe-sql init to build it\n")


def test_a_planner_that_knows_what_is_stored_may_scan(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    async def fill(errors: int, workflows: int) -> None:
        async with SqlitePersistenceProvider(path) as provider:
            error = ExecutionError(workflow_id="w", execution_pointer_id="p", message="no")
            await provider.persist_errors([error] * errors)
            for _ in range(workflows):
                await provider.create_new_workflow(sample_instance())
            await provider.create_event(full_event())

    asyncio.run(fill(2, 2))
    assert run("init", path).code == 0
    result = run("explain", path)
    assert result.code == 0
    assert "    the planner's choice: SCAN " in result.out
    assert "  ! " not in result.out
    asyncio.run(fill(1_200, 0))
    result = run("explain", path)
    assert result.code == 1
    problem = "execution_errors has 1,202 rows, but the planner has no or old statistics; run wfe-sql init"
    assert f"  ! {problem}\n" in result.out
    assert run("init", path).code == 0
    assert run("explain", path).code == 0


@pytest.mark.parametrize(
    ("url", "why"), [("none.db", "does not exist"), ("mysql://host/db", "unknown URL scheme 'mysql'")]
)
def test_explain_without_a_store(run: Run, tmp_path: Path, url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("explain", url)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert why in result.err
    assert list(tmp_path.iterdir()) == []


# schema


async def test_a_store_made_from_the_schema_is_one_made_by_the_library(run: Run, tmp_path: Path) -> None:
    script = run("schema").out
    assert run("schema", "--json").json == {"dialect": "sqlite", "sql": script}
    with closing(sqlite3.connect(tmp_path / "piped.db")) as piped:
        piped.executescript(script)
        from_schema = list(piped.iterdump())
    async with SqlitePersistenceProvider(tmp_path / "made.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "made.db")) as made:
        assert sorted(from_schema) == sorted(made.iterdump())
    async with SqlitePersistenceProvider(f"{tmp_path / 'piped.db'}?mode=ro") as provider:
        assert await provider.get_workflow_instances(["x"]) == []
    async with SqlitePersistenceProvider(f"{tmp_path / 'piped.db'}") as provider:
        await provider.create_new_workflow(sample_instance())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3")
def test_the_schema_can_be_piped(tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, "schema"], stdout=subprocess.PIPE) as schema:
        made = subprocess.run(["sqlite3", "-bail", tmp_path / "new.db"], stdin=schema.stdout, check=False)
    assert (made.returncode, schema.returncode) == (0, 0)
    assert subprocess.run([*COMMAND, "explain", tmp_path / "new.db", POLL], check=False).returncode == 0


def test_a_dialect_that_does_not_exist(run: Run) -> None:
    result = run("schema", "--dialect", "oracle")
    assert (result.code, result.out) == (2, "")
    assert "unknown dialect oracle; use sqlite" in result.err


# terminals


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_a_table_that_fits_and_colours(run: Run, columns: int) -> None:
    environment = {"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm-256color"}
    shown = run("queries", "list", **environment).out
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()]
    assert lines != [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines if re.match("  [a-z]", line)] == list(OWN)
    assert "\x1b[33m" in run("explain", ":memory:", "get_execution_errors", **environment).out


@pytest.mark.slow
def test_a_terminal_is_known_as_such() -> None:
    assert "\x1b[" in _on_a_terminal("queries", "show", POLL)
