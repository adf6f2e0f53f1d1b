"""The `wfe-sql` command on PostgreSQL, where it differs from SQLite."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from commands import Result, run_command

PASSWORD = "s3cr@t/pass word"
ENCODED = "s3cr%40t%2Fpass%20word"


def _run(*arguments: str | Path) -> Result:
    ran = run_command(*arguments)
    for text in (ran.out, ran.err):
        assert not any(secret in text for secret in (PASSWORD, ENCODED, "s3cr"))
    return ran


@pytest.fixture
def urls(postgres_url: str, new_schema: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """URLs with a password, each of a schema that does not exist."""
    role = f"role_{uuid4().hex}"
    found = conninfo_to_dict(postgres_url)
    schemas: list[str] = []

    def url() -> str:
        schemas.append(new_schema())
        place = f"host={found.get('host') or 'localhost'}&port={found.get('port') or 5432}"
        return f"postgresql://{role}:{ENCODED}@/{found.get('dbname') or 'postgres'}?{place}&schema={schemas[-1]}"

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        yield url
        for schema in schemas:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


@pytest.fixture
def url(urls: Callable[[], str]) -> str:
    return urls()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A SQLite store with finished and other workflows."""
    file = tmp_path / "demo.db"
    assert _run("init", file).code == 0
    assert _run("publish", file, "paid", "k1", "--data", '{"amount": 1e16}', "--yes").code == 0
    statement = (
        "INSERT INTO workflows (id, name, definition_id, version, status, data, create_time, complete_time) VALUES "
        "('w1', 'order-1', 'order', 1, 'Runnable', '{}', '2026-05-28T20:26:40.123456789+00:00', NULL), "
        "('w2', 'order-2', 'order', 1, 'Complete', '{}', '2020-05-28T20:26:40+00:00', '2020-05-29T20:26:40+00:00')"
    )
    pointer = (
        "INSERT INTO execution_pointers (id, workflow_id, step_id, active, status) VALUES ('p', 'w2', 0, 1, 'Complete')"
    )
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
        connection.execute(pointer)
    connection.close()
    return file


def test_a_store_is_made_moved_and_worked_on(demo: Path, url: str, urls: Callable[[], str], tmp_path: Path) -> None:
    assert re.fullmatch(r"postgresql://\w+:\*\*\*@/\S+ is ready\n", _run("init", url).out)
    copied = _run("copy", demo, url, "--json").json
    assert copied["digest"] == _run("dump", url, "--digest").out.strip() == _run("dump", demo, "--digest").out.strip()
    assert len(_run("dump", url).out.splitlines()) == 4

    assert [item["name"] for item in _run("workflows", url, "--json").json["items"]] == ["order-1", "order-2"]
    assert "order-2" not in _run("workflows", url, "--status", "Runnable").out
    assert _run("events", url, "--unprocessed", "--json").json["items"][0]["event_data"] == {"amount": 1e16}
    assert _run("commands", url).out.startswith("due")
    assert _run("errors", url).out.startswith("time")
    assert "order version 1" in _run("show", url, "order-2").out
    stats = _run("stats", url, "--json").json
    assert (stats["rows"]["workflows"], stats["free_bytes"]) == (2, None)
    assert re.search(r"^\S+ kB, at ", _run("stats", url).out, re.MULTILINE)
    assert (counted := _run("stats", url, "--queries")).code == 1
    assert "set shared_preload_libraries = 'pg_stat_statements', and run: CREATE EXTENSION" in counted.err
    assert "nothing is wrong with postgresql" in _run("check", url, "--overdue-after", "999w").out

    assert _run("suspend", url, "order-1", "--yes").out == "order-1 is Suspended; it was Runnable\n"
    assert _run("resume", url, "w1", "--yes").code == 0
    assert _run("terminate", url, "w1", "--yes").code == 0
    assert (again := _run("resume", url, "w1", "--yes")).code == 1, again
    assert _run("publish", url, "paid", "k2", "--yes").code == 0
    purge = ("purge", url, "--status", "Complete", "--older-than", "30d", "--json")
    assert _run(*purge, "--dry-run").json == {"workflows": 1, "dry_run": True}
    assert _run(*purge, "--yes").json == {"workflows": 1, "dry_run": False}
    rows = _run("stats", url, "--json").json["rows"]
    assert (rows["workflows"], rows["execution_pointers"], rows["events"]) == (1, 0, 2)

    back = tmp_path / "back.db"
    assert _run("copy", url, back).out.endswith(_run("dump", url, "--digest").out)
    assert _run("copy", url, urls()).code == 0
    refused = _run("copy", demo, url)
    assert (refused.code, refused.out) == (1, "")
    assert "the destination is not empty (1 workflows" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "{}"],
        ["check", "{}"],
        ["dump", "{}"],
        ["show", "{}", "order-1"],
        ["suspend", "{}", "order-1", "--yes"],
        ["publish", "{}", "a", "b", "--yes"],
        ["purge", "{}", "--status", "Complete", "--older-than", "1d", "--yes"],
        ["copy", "{}", "copy.db"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_store_that_is_not_there(
    url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*(argument.format(url) for argument in arguments))
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(
        r"wfe-sql: postgresql://\S+ \(schema \w+\) cannot be opened with mode=r[ow]: it does not exist.*\n", result.err
    )
    schema = url.rpartition("=")[2]
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone() is None


def test_a_backup_is_left_to_pg_dump(url: str, tmp_path: Path) -> None:
    _run("init", url)
    result = _run("backup", url, tmp_path / "a backup")
    assert (result.code, result.out) == (1, "")
    assert f"pg_dump --format=custom --schema={url.rpartition('=')[2]} --file='{tmp_path}/a backup'" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"postgresql://wfe:{ENCODED}@127.0.0.1:1/wfe", "cannot be reached"),
        (f"postgresql://127.0.0.1:1/wfe?user=wfe&password={ENCODED}", "cannot be reached"),
        (f"postgresql://wfe:{PASSWORD}@127.0.0.1:1/wfe", "percent-encode"),
        ("postgresql://wfe:12/s3cr@127.0.0.1:1/wfe", "percent-encode"),
        (f"postgresql://wfe:{ENCODED}@127.0.0.1:1/wfe?mode=fast", "mode=fast is unknown"),
        (f"postgresql://wfe:{ENCODED}@127.0.0.1:1/wfe?schema=a.b", "schema must be a plain name"),
        (f"postgresql://wfe:{ENCODED}@127.0.0.1:1/wfe?colour=red", "not a PostgreSQL URL"),
    ],
)
@pytest.mark.parametrize("command", ["stats", "init"])
def test_one_line_without_the_password(url: str, message: str, command: str) -> None:
    result = _run(command, url)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(f"wfe-sql: .*{message}.*\n", result.err)
