"""The standard library's sqlite3: one connection, one commit for each unit, no event loop.

Its methods are coroutines, so that the workloads can call them like those of the other sides, but they never wait: the
event loop is not entered between two operations.
"""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiosql

from sides import Side, texts_of
from sides.encoding import (
    decode_subscription,
    decode_workflow,
    encode_event,
    encode_pointers,
    encode_subscription,
    encode_workflow,
)
from wfe_sql import Event, EventSubscription, WorkflowInstance

BASELINE = Path(__file__).parent.parent / "baseline.sql"

_queries = aiosql.from_path(BASELINE, "sqlite3")
SQL = texts_of(_queries)
"""The text of the baseline's queries, by name."""

PRAGMAS = [SQL[name] for name in ("use_wal", "use_full_durability", "enforce_foreign_keys")]


class StdlibStore:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def next_definition_sequence(self, definition_id: str) -> int:
        with self._connection:
            (number,) = self._run("next_definition_sequence", {"definition_id": definition_id}).fetchone()
        return int(number)

    async def create_new_workflow(self, instance: WorkflowInstance) -> None:
        with self._connection:
            self._run("create_new_workflow", encode_workflow(instance))
            self._connection.executemany(SQL["insert_execution_pointers"], encode_pointers(instance))

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        with self._connection:
            self._persist(instance)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        with self._connection:
            self._persist(instance)
            rows = [encode_subscription(subscription) for subscription in subscriptions]
            self._connection.executemany(SQL["create_event_subscriptions"], rows)

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        workflow = self._run("get_workflow_instance", {"id": id}).fetchone()
        return decode_workflow(workflow, self._run("get_execution_pointers", {"workflow_id": id}).fetchall())

    async def create_event(self, event: Event) -> None:
        with self._connection:
            self._run("create_event", encode_event(event))

    async def mark_event_processed(self, id: str) -> None:
        with self._connection:
            self._run("mark_event_processed", {"id": id})

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> list[EventSubscription]:
        params = {"event_name": event_name, "event_key": event_key, "as_of": as_of.isoformat()}
        return [decode_subscription(row) for row in self._run("get_subscriptions", params)]

    async def terminate_subscription(self, id: str) -> None:
        with self._connection:
            self._run("terminate_subscription", {"id": id})

    def _persist(self, instance: WorkflowInstance) -> None:
        self._run("persist_workflow", encode_workflow(instance))
        self._run("delete_execution_pointers", {"workflow_id": instance.id})
        self._connection.executemany(SQL["insert_execution_pointers"], encode_pointers(instance))

    def _run(self, query: str, params: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(SQL[query], params)


@asynccontextmanager
async def open_stdlib(file: Path) -> AsyncIterator[StdlibStore]:
    connection = sqlite3.connect(file)
    try:
        for pragma in PRAGMAS:
            connection.execute(pragma)
        yield StdlibStore(connection)
    finally:
        connection.close()


def create_baseline_tables(file: Path) -> None:
    """Create the file of every side."""
    connection = sqlite3.connect(file)
    try:
        connection.execute(SQL["use_wal"])
        connection.executescript(SQL["create_tables"])
    finally:
        connection.close()


STDLIB = Side(
    "sqlite3",
    "of the standard library, one commit per unit, no event loop; callers take turns, so their number means nothing",
    open_stdlib,
    in_turns=True,
)
