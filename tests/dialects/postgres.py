"""PostgreSQL for the tests of `.sql` files."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosql
import psycopg
from psycopg.pq import TransactionStatus

from dialects.case import Params, row_line
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.backends import load_postgres_queries
from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.plans import PostgresPlanner
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.plans import Plan
from wfe_sql.queries import Query, QuerySet
from wfe_sql.testing.clock import ManualClock

HELPERS = aiosql.from_path(str(Path(__file__).with_suffix(".sql")), "psycopg")


def _helper(name: str, **names: str) -> bytes:
    sql: str = getattr(HELPERS, name).sql
    for param, value in names.items():
        sql = sql.replace(f"%({param})s", value)
    return sql.encode()


class PostgresTestStore:
    """A connection like the library's, and its event loop."""

    def __init__(self, url: str, schema: str, queries: QuerySet) -> None:
        self._queries = queries
        self._runner = asyncio.Runner()
        store = PostgresStore(
            PostgresTarget(url, timedelta(seconds=10)), queries, schema=schema, statement_timeout=None
        )
        self._connection: Connection = self._runner.run(store.open_connection())
        self._planner = PostgresPlanner(store, queries, self._connection, self._runner)
        self.help("make_query_statistics")

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()

    @property
    def in_transaction(self) -> bool:
        return self._connection.pgconn.transaction_status == TransactionStatus.INTRANS

    def explain(self, query: Query) -> Plan:
        return self._planner.explain(query)

    def run(self, name: str, params: Params) -> Any:
        async def run() -> Any:
            return await self._queries.run(self._connection, name, params)

        return self._runner.run(run())

    def help(self, name: str, **names: str) -> list[Any]:
        async def run() -> list[Any]:
            cursor = await self._connection.execute(_helper(name, **names), prepare=False)
            return await cursor.fetchall() if cursor.description else []

        return self._runner.run(run())

    def dump(self) -> list[str]:
        lines = [definition for (definition,) in self.help("list_definitions")]
        for (table,) in self.help("list_tables"):
            lines += [row_line(table, row) for (row,) in self.help("list_rows", table_name=table)]
        return lines

    @contextmanager
    def undone(self) -> Iterator[None]:
        self.run("begin_write", {})
        try:
            self.help("restart_sequences")
            yield
        finally:
            self.run("rollback", {})

    def list_indexes(self) -> set[str]:
        return {name for (name,) in self.help("list_indexes")}

    def drop_index(self, name: str) -> None:
        self.help("drop_index", index_name=name)

    def update_statistics(self) -> None:
        self.help("pack_tables")
        self.help("update_statistics")


_TABLES = (
    *("create_workflows_table", "create_execution_pointers_table", "create_definition_sequences_table"),
    *("create_events_table", "create_event_subscriptions_table", "create_scheduled_commands_table"),
    "create_execution_errors_table",
)


class PostgresCase:
    name = "postgres"
    planned_by = "18"
    works_without_statistics = False
    large = 1500
    reference_indexes = frozenset(
        {
            *("idx_workflows_next_execution", "idx_workflows_status", "idx_events_name_key", "idx_events_is_processed"),
            *("idx_events_event_time", "idx_subscriptions_name_key", "idx_subscriptions_workflow"),
            *("idx_scheduled_commands_execute_time",),
        }
    )
    indexes_of_keys: frozenset[str] = frozenset()
    own_part: Mapping[str, Params] = {
        "hold_rows": {"wanted": '[{"lock": "lock_workflows", "id": "workflow-1"}]'},
        "restore_settings": {"settings": '{"jit": "off"}'},
        "set_up_connection": {"schema": "wfc", "statement_timeout": 1000, "read_only": None, "is_local": "False"},
    }
    session: Sequence[str] = (
        *("set_up_connection", "get_server_process", "get_database", "get_settings", "restore_settings", "begin_write"),
        *("begin_unit", "rollback_unit", "commit_unit", "rollback", "begin_read", "commit"),
        *("list_query_statistics", "listen", "get_reason_not_to_listen", "ask_for_wake", "end_wake"),
    )
    scripts: Mapping[str, tuple[str, tuple[str, ...]]] = {
        "create_schema": ("", ()),
        "create_workflows_root_index": ("", ("create_schema", "create_workflows_table")),
        "create_workflows_revision_trigger": ("", ("create_schema", "create_workflows_table")),
        "create_workflow_documents_view": ("", ("create_schema", "create_workflows_table")),
        "create_execution_pointer_documents_view": (
            "",
            ("create_schema", "create_workflows_table", "create_execution_pointers_table"),
        ),
        "create_event_documents_view": ("", ("create_schema", "create_events_table")),
        "create_event_subscription_documents_view": ("", ("create_schema", "create_event_subscriptions_table")),
        "create_execution_error_documents_view": ("", ("create_schema", "create_execution_errors_table")),
        "create_execution_pointers_table": ("", ("create_schema", "create_workflows_table")),
        "grant_documents": (
            "",
            (
                *("create_schema", "create_workflows_table", "create_workflow_documents_view"),
                *("create_execution_pointers_table", "create_execution_pointer_documents_view"),
                *("create_events_table", "create_event_documents_view"),
                *("create_event_subscriptions_table", "create_event_subscription_documents_view"),
                *("create_execution_errors_table", "create_execution_error_documents_view"),
            ),
        ),
        "create_wake_trigger": (
            "",
            (
                *("create_schema", "create_workflows_table", "create_events_table"),
                "create_scheduled_commands_table",
            ),
        ),
        "name_workflows_without_name": ("create_workflows_without_name", ("create_schema",)),
        "update_statistics": ("", ("create_schema", *_TABLES)),
        "empty_store": ("insert_a_row_of_each", ("create_schema", *_TABLES)),
    }
    probes: Sequence[tuple[str, set[str], int]] = (
        ("SELECT id FROM workflows WHERE id = 'x'", {"workflows_pkey"}, 0),
        ("SELECT id FROM workflows WHERE id = :id", {"workflows_pkey"}, 0),
        ("SELECT value FROM jsonb_array_elements('[1]') AS value ORDER BY value", set(), 0),
        ("WITH one AS MATERIALIZED (SELECT 1 AS id) SELECT id FROM one ORDER BY id", set(), 0),
        ("SELECT id FROM workflows WHERE id = any(array(SELECT 'x')) ORDER BY id", {"workflows_pkey"}, 0),
        (
            "SELECT workflows.data FROM jsonb_array_elements_text('[]') AS wanted (id)"
            " INNER JOIN workflows ON wanted.id = workflows.id ORDER BY workflows.data",
            {"workflows_pkey"},
            0,
        ),
        (
            "SELECT 1 FROM (SELECT id, data FROM workflows WHERE id > 'x' LIMIT 1) AS one ORDER BY data",
            {"workflows_pkey"},
            0,
        ),
        ("INSERT INTO definition_sequences VALUES ('x', 1)", set(), 0),
        ("SELECT count(data) FROM workflows", set(), 1),
        ("SELECT data FROM workflows AS w ORDER BY data", set(), 2),
        ("SELECT name FROM workflows ORDER BY name", {"workflows_name_key"}, 1),
        ("SELECT data FROM workflows WHERE id = 'x' OR id = 'y' ORDER BY data", {"workflows_pkey"}, 1),
        ("SELECT relname FROM pg_class WHERE oid = 1", set(), 1),
        ("DELETE FROM events WHERE event_data = '1'", set(), 1),
        (
            "SELECT data FROM workflows WHERE id = (SELECT min(cast(event_data AS TEXT)) FROM events)",
            {"workflows_pkey"},
            1,
        ),
    )

    def __init__(self) -> None:
        self.queries = load_postgres_queries()
        self._url = ""
        self._schemas: dict[Path, str] = {}

    def start(self, fixture: Callable[[str], Any]) -> None:
        self._url = fixture("postgres_url")

    def stop(self) -> None:
        with psycopg.connect(self._url, autocommit=True, options="-c client_min_messages=warning") as connection:
            for schema in self._schemas.values():
                connection.execute(_helper("drop_schema", schema_name=schema))

    @property
    def version(self) -> str:
        with psycopg.connect(self._url) as connection:
            return str(connection.info.server_version // 10_000)

    def provider(self, folder: Path, clock: ManualClock) -> PostgresPersistenceProvider:
        return PostgresPersistenceProvider(self._url, schema=self._schema(folder), clock=clock)

    @contextmanager
    def open(self, folder: Path) -> Iterator[PostgresTestStore]:
        store = PostgresTestStore(self._url, self._schema(folder), self.queries)
        try:
            yield store
        finally:
            store.close()

    def run_script(self, folder: Path, name: str) -> tuple[list[str], list[str]]:
        made_by, before = self.scripts.get(name, ("", ("create_schema",)))
        with self.open(folder) as store:
            for script in before:
                store.run(script, {})
            if made_by:
                store.help(made_by)
            dump_before = store.dump()
            store.run(name, {})
            return dump_before, store.dump()

    def run_session(self, folder: Path) -> list[tuple[str, Any, bool]]:
        with self.open(folder) as store:
            return [(name, store.run(name, self.own_part.get(name, {})), store.in_transaction) for name in self.session]

    def _schema(self, folder: Path) -> str:
        return self._schemas.setdefault(folder, f"test_{uuid4().hex}")
