"""Files of an earlier release of the reference, and files that are not stores."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import SqlitePersistenceProvider, StoreCorruptError, StoreError, StoreVersionError, connect
from wfe_sql.testing import full_instance
from wfe_sql.testing.samples import TIME

DATA = Path(__file__).parent.parent / "data"
OLD = DATA / "wfe-sqlite-1.0.0.db"
PRESENT = DATA / "wfe-sqlite-1.11.4.db"
OPENER = Path(__file__).with_name("opener.py")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def by_hand(file: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(sql).fetchall()


def rows_of(file: Path) -> dict[str, Any]:
    """Every row of every table, by column, in the order of the rowids."""
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY rowid")] for name in names
        }


def schema_of(file: Path) -> dict[str, Any]:
    """Everything that SQLite reports about tables, columns, keys, indexes and triggers."""
    with closing(sqlite3.connect(file)) as connection:

        def ask(pragma: str, of: str) -> list[Any]:
            return connection.execute(f"SELECT * FROM pragma_{pragma}('{of}')").fetchall()

        schema: dict[str, Any] = {}
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            if kind == "table":
                indexes = {row[1:] for row in ask("index_list", name)}
                schema[name] = (ask("table_xinfo", name), ask("foreign_key_list", name), indexes)
            elif kind == "index":
                schema[name] = (ask("index_xinfo", name), " ".join((sql or "").partition("WHERE")[2].split()))
            else:
                schema[name] = (kind, sql)
        return schema


async def open_and_close(file: Path) -> None:
    async with connect(file):
        pass


# old files


@pytest.mark.parametrize("old", [OLD, PRESENT], ids=["1.0.0", "1.11.4"])
async def test_the_upgraded_schema_is_that_of_a_fresh_store(tmp_path: Path, old: Path) -> None:
    fresh, upgraded = tmp_path / "fresh.db", Path(shutil.copy(old, tmp_path / "upgraded.db"))
    await open_and_close(fresh)
    await open_and_close(upgraded)
    assert schema_of(upgraded) == schema_of(fresh)
    await open_and_close(upgraded)
    assert schema_of(upgraded) == schema_of(fresh)


@pytest.mark.parametrize("old", [OLD, PRESENT], ids=["1.0.0", "1.11.4"])
async def test_nothing_else_changes(file: Path, old: Path) -> None:
    shutil.copy(old, file)
    before = rows_of(file)
    await open_and_close(file)
    after = rows_of(file)
    for table, rows in before.items():
        assert [
            {column: row[column] for column in old_row} for old_row, row in zip(rows, after[table], strict=True)
        ] == rows
    assert by_hand(file, "PRAGMA integrity_check") == [("ok",)]
    assert by_hand(file, "PRAGMA foreign_key_check") == []


async def test_an_old_workflow_is_named_by_its_id_and_lives_on(file: Path) -> None:
    shutil.copy(OLD, file)
    ids = [id_ for (id_,) in by_hand(file, "SELECT id FROM workflows")]
    async with connect(file) as provider:
        for id_ in ids:
            instance = await provider.get_workflow_instance_by_name(id_)
            assert (instance.id, instance.root_workflow_id) == (id_, None)
            assert instance.execution_pointers
            instance.name, instance.root_workflow_id = f"named-{id_}", "root"
            await provider.persist_workflow(instance)
            assert await provider.get_workflow_instance(id_) == instance
        await provider.create_new_workflow(full_instance())
        assert await provider.next_definition_sequence("order") == 1
    assert len(ids) > 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE workflows SET name = NULL", "NOT NULL constraint failed: workflows.name"),
        ("UPDATE workflows SET name = 'same'", "UNIQUE constraint failed: workflows.name"),
        ("PRAGMA foreign_keys = ON; UPDATE execution_pointers SET workflow_id = 'x'", "FOREIGN KEY constraint failed"),
    ],
)
async def test_constraints_hold_afterwards(file: Path, sql: str, message: str) -> None:
    shutil.copy(OLD, file)
    await open_and_close(file)
    with closing(sqlite3.connect(file)) as connection, pytest.raises(sqlite3.IntegrityError, match=message):
        connection.executescript(sql)


async def test_pointers_still_go_with_their_workflow(file: Path) -> None:
    shutil.copy(OLD, file)
    await open_and_close(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM workflows")
    assert by_hand(file, "SELECT count(*) FROM execution_pointers") == [(0,)]


STATEMENTS = [
    *(
        pytest.param(statement, marks=pytest.mark.slow)
        for statement in (
            *("name_workflows_without_name", "add_workflows_claim_and_revision", "create_workflow_documents_view"),
            *("create_definition_sequences_table", "record_store_version"),
        )
    ),
    *("add_events_claim", "commit"),
]


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_killed_in_the_middle_the_old_file_is_intact(tmp_path: Path, file: Path, statement: str) -> None:
    shutil.copy(OLD, file)
    before = rows_of(file), schema_of(file)
    died = subprocess.run([sys.executable, OPENER, file, statement], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (rows_of(file), schema_of(file)) == before
    await open_and_close(file)
    fresh = tmp_path / "fresh.db"
    await open_and_close(fresh)
    assert schema_of(file) == schema_of(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("existing", [OLD, PRESENT, None], ids=["1.0.0", "1.11.4", "no file"])
def test_opened_by_several_processes_at_once(file: Path, existing: Path | None) -> None:
    first = 1
    if existing is not None:
        shutil.copy(existing, file)
        first = 5 if existing == PRESENT else 1
    openers = [
        subprocess.Popen([sys.executable, OPENER, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    drawn = sorted(int(opener.communicate()[0]) for opener in openers)
    assert [opener.returncode for opener in openers] == [0, 0, 0, 0]
    assert drawn == list(range(first, first + 4))


# files that are not ours

FOREIGN = {
    "events": "CREATE TABLE events (id INTEGER PRIMARY KEY, title TEXT, starts_at TEXT)",
    "workflows": "CREATE TABLE workflows (id TEXT PRIMARY KEY, name TEXT, yaml TEXT)",
    "a view": "CREATE VIEW execution_errors AS SELECT 1 AS id, 'x' AS message",
}


@pytest.fixture(params=[False, True], ids=["rollback journal", "write-ahead log"])
def wal(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def unchanged(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("sql", FOREIGN.values(), ids=FOREIGN.keys())
async def test_another_application_s_database(file: Path, sql: str, wal: bool) -> None:
    if wal:
        by_hand(file, "PRAGMA journal_mode = WAL")
    by_hand(file, sql)
    before = unchanged(file.parent)
    name = sql.split()[2]
    for url in (file, f"sqlite://{file}?mode=ro"):
        with pytest.raises(StoreVersionError, match=f"has a table {name} that does not belong to a .* store.*lacks"):
            await connect(url).open()
        assert unchanged(file.parent) == before


async def test_another_application_s_database_with_a_log_that_a_crash_left(file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute(FOREIGN["events"])
        other.commit()
        for path in list(file.parent.iterdir()):
            shutil.copy(path, path.with_name(path.name.replace("store", "crashed")))
    crashed = file.with_name("crashed.db")
    before = crashed.read_bytes(), Path(f"{crashed}-wal").read_bytes()
    with pytest.raises(StoreVersionError, match="starts_at"):
        await connect(crashed).open()
    assert (crashed.read_bytes(), Path(f"{crashed}-wal").read_bytes()) == before


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"\xa5" * 8176, b"hello"])
async def test_a_file_that_is_no_database(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for url in (file, f"sqlite://{file}?mode=ro"):
        with pytest.raises(StoreCorruptError, match="is not a SQLite database"):
            await connect(url).open()
        assert unchanged(file.parent) == {"store.db": content}


async def test_an_empty_file_becomes_a_store(file: Path) -> None:
    file.touch()
    async with connect(file) as provider:
        assert await provider.next_definition_sequence("order") == 1


async def test_other_tables_are_left_alone(file: Path) -> None:
    by_hand(file, "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)")
    by_hand(file, "INSERT INTO customers (name) VALUES ('Ada')")
    by_hand(file, "PRAGMA user_version = 42")
    await open_and_close(file)
    assert by_hand(file, "SELECT * FROM customers") == [(1, "Ada")]
    assert by_hand(file, "PRAGMA user_version") == [(42,)]


async def test_a_store_of_a_later_version_is_refused(file: Path, wal: bool) -> None:
    await open_and_close(file)
    by_hand(file, "UPDATE wfe_sql_store SET version = 2")
    if not wal:
        by_hand(file, "PRAGMA journal_mode = DELETE")
    before = unchanged(file.parent)
    message = r"version 2, made by a later wfe-sql; .* version 1: upgrade wfe-sql"
    for url in (file, f"sqlite://{file}?mode=ro"):
        with pytest.raises(StoreVersionError, match=message):
            await connect(url).open()
        assert unchanged(file.parent) == before


async def test_a_store_that_lost_its_version_gets_it_back(file: Path) -> None:
    await open_and_close(file)
    by_hand(file, "DELETE FROM wfe_sql_store")
    async with connect(f"sqlite://{file}?mode=ro"):
        assert by_hand(file, "SELECT version FROM wfe_sql_store") == []
    await open_and_close(file)
    assert by_hand(file, "SELECT version FROM wfe_sql_store") == [(1,)]


# read-only


@pytest.fixture
def present(file: Path) -> Path:
    return Path(shutil.copy(PRESENT, file))


async def test_a_reference_s_file_is_read_without_a_change(present: Path) -> None:
    before = unchanged(present.parent)
    async with connect(f"sqlite://{present}?mode=ro") as provider:
        (id_, _) = await provider.get_runnable_instances(TIME)
        assert (await provider.get_workflow_instance(id_)).name == "order-1"
        assert len(await provider.get_execution_errors()) == 4
    assert unchanged(present.parent) == before


async def test_reading_leaves_no_log_behind(file: Path) -> None:
    await open_and_close(file)
    before = unchanged(file.parent)
    async with connect(f"sqlite://{file}?mode=ro") as provider:
        assert await provider.get_runnable_instances(TIME) == []
    assert unchanged(file.parent) == before


async def test_reading_beside_a_writer_leaves_its_log_alone(file: Path) -> None:
    async with SqlitePersistenceProvider(file) as writer:
        stored = full_instance()
        await writer.create_new_workflow(stored)
        async with connect(f"sqlite://{file}?mode=ro") as reader:
            assert await reader.get_workflow_instance(stored.id) == stored
        assert Path(f"{file}-wal").stat().st_size > 0
        await writer.persist_workflow(stored)


async def test_an_old_file_must_be_opened_for_writing_once(file: Path) -> None:
    shutil.copy(OLD, file)
    before = unchanged(file.parent)
    with pytest.raises(
        StoreVersionError,
        match=r"read-only yet: it lacks workflows.name, workflows.root_workflow_id. Open it once without",
    ):
        await connect(f"sqlite://{file}?mode=ro").open()
    assert unchanged(file.parent) == before


async def test_a_file_without_a_store_cannot_be_only_read(file: Path) -> None:
    by_hand(file, "CREATE TABLE customers (id INTEGER PRIMARY KEY)")
    with pytest.raises(
        StoreError, match="cannot be opened read-only yet: it lacks workflows. Open it once without mode=ro"
    ):
        await connect(f"sqlite://{file}?mode=ro").open()
