"""SQLite for the tests of `.sql` files."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosql

from dialects.case import Params, row_line
from wfe_sql import SqlitePersistenceProvider
from wfe_sql.backends import load_sqlite_queries
from wfe_sql.engines.sqlite.plans import SqlitePlanner
from wfe_sql.engines.sqlite.store import SqliteStore
from wfe_sql.plans import Plan
from wfe_sql.queries import Query, QuerySet
from wfe_sql.testing.clock import ManualClock
from wfe_sql.urls import SqliteTarget

DATA = Path(__file__).parents[1] / "data"
HELPERS = aiosql.from_path(str(Path(__file__).with_suffix(".sql")), "sqlite3")
REFERENCE = "wfe-sqlite-1.11.4.db"
FIRST_RELEASE = "wfe-sqlite-1.0.0.db"


def _connect(path: Path) -> sqlite3.Connection:
    # SQLite does not prepare an EXPLAIN again when the schema changed, so none may be cached.
    return sqlite3.connect(path, isolation_level=None, cached_statements=0)


def _dump(connection: sqlite3.Connection) -> list[str]:
    lines = [definition for (definition,) in HELPERS.list_definitions(connection)]
    for (table,) in list(HELPERS.list_tables(connection)):
        cursor = connection.execute(HELPERS.list_rows.sql.replace(":table_name", table))
        names = [column[0] for column in cursor.description]
        rows = [row_line(table, dict(zip(names, row, strict=True))) for row in cursor]
        lines += sorted(rows) if table == "sqlite_stat1" else rows  # its order differs between versions of SQLite
    return lines


class SqliteTestStore:
    def __init__(self, queries: QuerySet, connection: sqlite3.Connection) -> None:
        self._queries = queries
        self._connection = connection
        store = SqliteStore(SqliteTarget(None), queries, "normal", timedelta(0))
        self._planner = SqlitePlanner(store, queries, connection)

    def explain(self, query: Query) -> Plan:
        return self._planner.explain(query)

    def run(self, name: str, params: Params) -> Any:
        return self._queries.run(self._connection, name, params)

    def dump(self) -> list[str]:
        return _dump(self._connection)

    @contextmanager
    def undone(self) -> Iterator[None]:
        self.run("begin_write", {})
        try:
            yield
        finally:
            self.run("rollback", {})

    def list_indexes(self) -> set[str]:
        return {name for (name,) in HELPERS.list_indexes(self._connection)}

    def drop_index(self, name: str) -> None:
        self._connection.execute(HELPERS.drop_index.sql.replace(":index_name", name))

    def update_statistics(self) -> None:
        HELPERS.update_statistics(self._connection)


class SqliteCase:
    name = "sqlite"
    planned_by = "3.40"
    version = sqlite3.sqlite_version.rpartition(".")[0]
    large = 400
    works_without_statistics = True
    indexes_of_keys: frozenset[str] = frozenset()
    own_part: Mapping[str, Params] = {}
    session: Sequence[str] = (
        *("use_wal", "suspend_foreign_keys", "enforce_foreign_keys", "use_normal_durability", "use_full_durability"),
        *("begin_write", "begin_unit", "rollback_unit", "commit_unit", "commit", "begin_read", "rollback"),
        *("refuse_writes", "wait_for_no_lock", "limit_log", "copy_log", "use_rollback_journal", "get_file"),
        "get_data_version",
    )
    scripts: Mapping[str, tuple[str, tuple[str, ...]]] = {
        "create_workflows_indexes": (REFERENCE, ()),
        "create_workflows_root_index": (REFERENCE, ()),
        "create_workflows_revision_trigger": ("", ("create_workflows_table",)),
        "add_workflows_claim_and_revision": (REFERENCE, ()),
        "add_events_claim": (REFERENCE, ()),
        "add_scheduled_commands_claim_and_rescheduled_time": (REFERENCE, ()),
        "update_statistics": (REFERENCE, ()),
        "empty_store": (REFERENCE, ()),
        "name_workflows_without_name": (FIRST_RELEASE, ()),
    }
    probes: Sequence[tuple[str, set[str], int]] = (
        ("SELECT id FROM workflows WHERE id = 'x'", {"sqlite_autoindex_workflows_1"}, 0),
        ("SELECT id FROM scheduled_commands WHERE id = 1", {"INTEGER PRIMARY KEY"}, 0),
        ("SELECT value FROM json_each('[1]')", set(), 0),
        ("WITH one AS MATERIALIZED (SELECT 1 AS id) SELECT id FROM one", set(), 0),
        (
            "SELECT id FROM workflows WHERE id IN (SELECT value FROM json_each('[]'))",
            {"sqlite_autoindex_workflows_1"},
            0,
        ),
        ("INSERT INTO definition_sequences VALUES ('x', 1)", set(), 0),
        ("SELECT count(data) FROM workflows", set(), 1),
        ("SELECT data FROM workflows AS w ORDER BY data", set(), 2),
        ("SELECT id FROM events ORDER BY event_time, event_data", {"idx_events_event_time"}, 2),
        ("DELETE FROM events WHERE event_data = 'x'", set(), 1),
        (
            "SELECT data FROM workflows WHERE id > (SELECT min(event_data) FROM events)",
            {"sqlite_autoindex_workflows_1"},
            1,
        ),
    )

    def __init__(self) -> None:
        self.queries = load_sqlite_queries()
        with closing(sqlite3.connect(f"{(DATA / REFERENCE).as_uri()}?mode=ro&immutable=1", uri=True)) as reference:
            self.reference_indexes = frozenset(name for (name,) in HELPERS.list_indexes(reference))

    def start(self, fixture: Callable[[str], Any]) -> None:
        """Need nothing: there is no server."""

    def stop(self) -> None:
        """Do nothing: everything is in folders."""

    def provider(self, folder: Path, clock: ManualClock) -> SqlitePersistenceProvider:
        return SqlitePersistenceProvider(folder / "store.db", clock=clock)

    @contextmanager
    def open(self, folder: Path) -> Iterator[SqliteTestStore]:
        with closing(_connect(folder / "store.db")) as connection:
            store = SqliteTestStore(self.queries, connection)
            store.run("enforce_foreign_keys", {})  # the plan of a deletion includes cascading ones
            yield store

    def run_script(self, folder: Path, name: str) -> tuple[list[str], list[str]]:
        file, before = ("", ()) if name.startswith("create_") and name not in self.scripts else self.scripts[name]
        path = folder / "store.db"
        if file:
            shutil.copy(DATA / file, path)
        with closing(_connect(path)) as connection:
            for script in before:
                self.queries.run(connection, script, {})
            dump_before = _dump(connection)
            self.queries.run(connection, name, {})
            return dump_before, _dump(connection)

    def run_session(self, folder: Path) -> list[tuple[str, Any, bool]]:
        with closing(_connect(folder / "store.db")) as connection:
            return [(name, self.queries.run(connection, name, {}), connection.in_transaction) for name in self.session]
