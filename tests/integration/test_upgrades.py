"""Stores of every earlier version, of this library and of the reference, and of a future version."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import wfe_sql.queries
from servers import with_option
from wfe_sql import (
    PostgresPersistenceProvider,
    SqlitePersistenceProvider,
    StoreError,
    StoreUnavailableError,
    connect,
)
from wfe_sql.backends import load_postgres_queries, load_sqlite_queries
from wfe_sql.engines.postgres import store as postgres_store
from wfe_sql.engines.sqlite import store as sqlite_store
from wfe_sql.engines.sqlite.store import SqliteStore
from wfe_sql.engines.stores import parts_made_by, read_parts
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.queries import QuerySet
from wfe_sql.testing import ManualClock, full_pointer, sample_instance
from wfe_sql.testing.samples import TIME
from wfe_sql.urls import SqliteTarget

DATA = Path(__file__).parent.parent / "data"
FILES = sorted(DATA.glob("wfe-*.db"))
DUMPS = sorted(DATA.glob("wfe-*.sql"))
OLD = [*FILES, *DUMPS]
OURS = [DATA / "wfe-sql-0.1.0.db", DATA / "wfe-sql-0.1.0.postgres.sql"]

ByHand = Callable[..., list[Any]]
Provide = Callable[..., SqlPersistenceProvider]


def backend_of(old: Path) -> str:
    return "sqlite" if old.suffix == ".db" else "postgres"


@pytest.fixture
def backend(old: Path) -> str:
    return backend_of(old)


@pytest.fixture
def old_store(old: Path, store: Path | str, by_hand: ByHand) -> Path | str:
    """The store in a file of `tests/data`."""
    if isinstance(store, Path):
        shutil.copy(old, store)
    else:
        by_hand(f"CREATE SCHEMA {store}")
        by_hand(old.read_text(encoding="utf-8"))
    return store


@pytest.fixture
def describe(connect_store: Provide, store: Path | str, request: pytest.FixtureRequest) -> Callable[..., set[Any]]:
    """Return a function that returns everything the database reports about the test's store, or another."""

    def describe(place: Path | str) -> set[Any]:
        if not isinstance(place, Path):
            return set(request.getfixturevalue("catalog")(place))
        with closing(sqlite3.connect(place)) as connection:

            def ask(pragma: str, of: str) -> tuple[Any, ...]:
                return tuple(connection.execute(f"SELECT * FROM pragma_{pragma}('{of}')"))

            found = set()
            for kind, name, sql in connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master"):
                facts = [ask(pragma, name) for pragma in ("table_xinfo", "foreign_key_list", "index_xinfo")]
                text = {"table": "", "index": sql.partition("WHERE")[2]}.get(kind, sql)
                found.add((kind, name, *facts, " ".join(text.split())))
            return found

    return describe


@pytest.fixture
def fresh(store: Path | str, request: pytest.FixtureRequest) -> Path | str:
    """The place of a new store."""
    if isinstance(store, Path):
        return store.with_name("fresh.db")
    name: str = request.getfixturevalue("new_schema")()
    return name


@pytest.fixture
def provide(request: pytest.FixtureRequest) -> Callable[..., SqlPersistenceProvider]:
    """Return a function that returns a provider of a store."""

    def provide(place: Path | str, **options: Any) -> SqlPersistenceProvider:
        if isinstance(place, Path):
            return SqlitePersistenceProvider(place, **options)
        return PostgresPersistenceProvider(request.getfixturevalue("postgres_url"), schema=place, **options)

    return provide


async def open_and_close(provider: SqlPersistenceProvider) -> None:
    async with provider:
        pass


@pytest.mark.parametrize(
    "old",
    [pytest.param(old, id=old.name, marks=pytest.mark.slow if "1.11" in old.name else []) for old in OLD],
)
async def test_an_old_store_becomes_like_a_new_one(
    old_store: Path | str, fresh: Path | str, provide: Provide, describe: Callable[..., set[Any]]
) -> None:
    await open_and_close(provide(fresh))
    assert describe(old_store) != describe(fresh)
    await open_and_close(provide(old_store))
    assert describe(old_store) == describe(fresh)
    await open_and_close(provide(old_store))
    assert describe(old_store) == describe(fresh)


@pytest.mark.parametrize("old", OURS, ids=lambda path: path.name)
async def test_our_first_store_is_read_and_continued(old_store: Path | str, provide: Provide) -> None:
    async with provide(old_store, clock=ManualClock(TIME)) as provider:
        statuses = [workflow.status for workflow in await provider.get_workflow_instances([f"w{n}" for n in range(4)])]
        assert statuses == ["Runnable", "Suspended", "Complete", "Terminated"]
        workflow = await provider.get_workflow_instance("w2")
        assert [pointer.id for pointer in workflow.execution_pointers] == ["w2-p2", "w2-p1", "w2-p3"]
        assert workflow.execution_pointers[2] == full_pointer(id="w2-p3", step_id=5)
        assert (await provider.get_event("e-free")).event_data is None
        assert [found.id for found in await provider.get_subscriptions("paid", "k1", TIME)] == ["s-free", "s-held"]
        assert (await provider.get_subscription("s-ended")).external_token is None
        assert await provider.claim_runnable_events(TIME, "other", lease=timedelta(minutes=1), limit=5) == []
        assert [error.message for error in await provider.get_execution_errors()] == ["boom", "żółć"]
        assert await provider.next_definition_sequence("order") == 5
        workflow.execution_pointers.reverse()
        await provider.persist_workflow(workflow)
        assert await provider.get_workflow_instance("w2") == workflow


def test_both_of_our_first_stores_are_there() -> None:
    assert {path.name for path in OLD} >= {path.name for path in OURS}


# a future version

GROWTH = {
    "sqlite": """
-- name: add_workflows_priority()#
-- Adds a column.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE workflows ADD COLUMN priority INTEGER NOT NULL DEFAULT 3;

-- name: add_execution_pointers_note()#
-- Adds a column.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE execution_pointers ADD COLUMN note TEXT;

-- name: create_workflows_priority_index()#
-- Adds an index.
-- used by: ensure_store_exists
-- index: none
CREATE INDEX IF NOT EXISTS idx_workflows_priority ON workflows (priority);

-- name: create_labels_table()#
-- Adds a table.
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY,
    label TEXT NOT NULL DEFAULT 'none'
);
CREATE INDEX IF NOT EXISTS idx_labels_label ON labels (label);
""",
    "postgres": """
-- name: add_workflows_priority()#
-- Adds a column.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS priority INT NOT NULL DEFAULT 3;

-- name: add_execution_pointers_note()#
-- Adds a column.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE execution_pointers ADD COLUMN IF NOT EXISTS note TEXT;

-- name: create_workflows_priority_index()#
-- Adds an index.
-- used by: ensure_store_exists
-- index: none
CREATE INDEX IF NOT EXISTS idx_workflows_priority ON workflows (priority);

-- name: create_labels_table()#
-- Adds a table.
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS labels (
    id INT PRIMARY KEY,
    label TEXT NOT NULL DEFAULT 'none'
);
CREATE INDEX IF NOT EXISTS idx_labels_label ON labels (label);
""",
}
"""Additions to `sql/<dialect>/workflows.sql`; its view and its trigger also get the column."""


def _additions() -> list[str]:
    return ["add_execution_pointers_note", "create_workflows_priority_index", "create_labels_table"]


def _grow(scripts: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list of scripts with the new ones: the column before the trigger and the view that use it."""
    at = scripts.index("create_workflows_revision_trigger")
    return (*scripts[:at], "add_workflows_priority", *scripts[at:], *_additions())


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Return a function that turns the library into a later version, whose stores have more."""
    folder = tmp_path / "sql"
    shutil.copytree(Path(str(wfe_sql.queries.find_sql())), folder)
    for dialect, growth in GROWTH.items():
        file = folder / dialect / "workflows.sql"
        text = file.read_text(encoding="utf-8")
        text = text.replace("'reference', reference,", "'reference', reference,\n        'priority', priority,")
        text = text.replace(
            "reference, status, data, next_execution, create_time,\ncomplete_time\nON",
            "reference, status, data, next_execution, create_time,\ncomplete_time, priority\nON",
        )
        file.write_text(text + growth, encoding="utf-8")

    def grow() -> None:
        monkeypatch.setattr(wfe_sql.queries, "find_sql", lambda: folder)
        for store in (sqlite_store, postgres_store):
            monkeypatch.setattr(store, "_SCRIPTS", _grow(store._SCRIPTS))

    return grow


@pytest.mark.parametrize(
    ("old", "opened_before"),
    [
        pytest.param(old, is_opened, id=f"{state}-{old.name}", marks=[] if old in OURS else pytest.mark.slow)
        for state, is_opened in (("as it was", False), ("of this version", True))
        for old in OLD
    ],
)
async def test_a_later_version_brings_what_it_adds(
    old_store: Path | str,
    fresh: Path | str,
    provide: Provide,
    describe: Callable[..., set[Any]],
    by_hand: ByHand,
    grow: Callable[[], None],
    opened_before: bool,
) -> None:
    rows = by_hand("SELECT count(*), min(id) FROM workflows")
    if opened_before:
        await open_and_close(provide(old_store))
    grow()
    await open_and_close(provide(fresh))
    await open_and_close(provide(old_store))
    assert describe(old_store) == describe(fresh)
    assert by_hand("SELECT count(*), min(id) FROM workflows WHERE priority = 3") == rows
    assert by_hand("SELECT count(*) FROM labels") == [(0,)]
    for (document,) in by_hand("SELECT document FROM workflow_documents"):
        assert '"priority"' in document


@pytest.mark.parametrize("old", OURS, ids=lambda path: path.name)
async def test_this_version_leaves_what_a_later_one_added(
    old_store: Path | str,
    provide: Provide,
    describe: Callable[..., set[Any]],
    by_hand: ByHand,
    grow: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grow()
    await open_and_close(provide(old_store))
    later = describe(old_store)
    monkeypatch.undo()
    async with provide(old_store) as provider:
        workflow = await provider.get_workflow_instance("w0")
        await provider.persist_workflow(workflow)
        await provider.create_new_workflow(sample_instance())
    assert describe(old_store) == later
    assert by_hand("SELECT count(*) FROM workflows WHERE priority <> 3") == [(0,)]


@pytest.mark.parametrize("old", FILES, ids=lambda path: path.name)
async def test_a_later_version_reads_an_old_file_as_it_is(old: Path, tmp_path: Path, grow: Callable[[], None]) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    file = Path(shutil.copy(old, folder))
    if "1.0.0" in old.name:
        return  # its workflows have no names
    before = file.read_bytes()
    with closing(sqlite3.connect(file)) as connection:
        (expected,) = connection.execute("SELECT count(*) FROM workflows").fetchone()
        (id_,) = connection.execute("SELECT workflow_id FROM execution_pointers ORDER BY rowid DESC").fetchone()
        pointers = connection.execute("SELECT id FROM execution_pointers WHERE workflow_id = ? ORDER BY rowid", [id_])
        pointer_ids = [pointer for (pointer,) in pointers]
    grow()
    async with connect(f"sqlite://{file}?mode=ro") as provider:
        found = await provider.get_workflow_instance(id_)
        assert [pointer.id for pointer in found.execution_pointers] == pointer_ids
        assert len([line async for line in provider.dump() if '"table":"workflows"' in line]) == expected
    store = SqliteStore(SqliteTarget(file, "ro"), load_sqlite_queries(), "full", timedelta(0))
    with closing(store.open_reader()) as reader:
        assert reader.execute("SELECT priority FROM workflows").fetchall() == [(3,)] * expected
        assert reader.execute("SELECT note FROM execution_pointers").fetchone() == (None,)
        assert reader.execute("SELECT count(*) FROM labels").fetchone() == (0,)
        (document,) = reader.execute("SELECT document FROM workflow_documents").fetchone()
        assert '"priority":3' in document
    store.remove_empty_log()
    assert file.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [file.name]


@pytest.mark.parametrize("old", DUMPS, ids=lambda path: path.name)
async def test_a_schema_that_lacks_something_says_what_when_it_may_not_be_changed(
    old_store: str, postgres_url: str, describe: Callable[..., set[Any]]
) -> None:
    """PostgreSQL cannot create temporary views where nothing may be written, such as on a standby."""
    before = describe(old_store)
    with pytest.raises(
        StoreUnavailableError, match=r"it lacks .*workflow_documents\.id.* Open it once without mode=ro to upgrade it"
    ):
        await connect(with_option(postgres_url, "mode=ro"), schema=old_store).open()
    assert describe(old_store) == before


@pytest.mark.parametrize("old", OURS[1:], ids=lambda path: path.name)
async def test_a_role_with_few_rights_goes_on_when_the_owner_has_upgraded_the_store(
    old_store: str, provide: Provide, make_role: Callable[..., str], admin: Callable[..., Any], by_hand: ByHand
) -> None:
    url = make_role()
    role = conninfo_to_dict(url)["user"]
    admin("grant_use", role=role)
    by_hand(f"REVOKE SELECT ON execution_errors FROM {role}")
    await open_and_close(provide(old_store))
    async with PostgresPersistenceProvider(url, schema=old_store) as provider:
        workflow = await provider.get_workflow_instance("w0")
        await provider.persist_workflow(workflow)
        with pytest.raises(StoreError, match="permission denied for view execution_error_documents"):
            await provider.get_execution_errors()


# what a script makes is read from its text


def test_what_a_script_of_sqlite_makes(tmp_path: Path) -> None:
    queries = load_sqlite_queries()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for name in sqlite_store.new_store_scripts():
            before = read_parts(queries.run(connection, "list_parts", {})).keys()
            queries.run(connection, name, {})
            made = read_parts(queries.run(connection, "list_parts", {})).keys() - before
            made = {part for part in made if not part.startswith("sqlite_")}
            assert made == parts_made_by(queries[name].sql) - before, name
            assert made, name


async def test_what_the_scripts_of_postgresql_make(schema: str, postgres_url: str) -> None:
    queries: QuerySet = load_postgres_queries()
    await open_and_close(PostgresPersistenceProvider(postgres_url, schema=schema))
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"SET search_path TO {schema}")
        found = read_parts(connection.execute(queries["list_parts"].sql.encode()).fetchall()).keys()
    made = set().union(*(parts_made_by(queries[name].sql) for name in postgres_store._SCRIPTS))
    assert made == {part for part in found if not part.endswith(("_pkey", "workflows_name_key", "_data_key"))}
