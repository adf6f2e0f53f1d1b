"""aiosql on aiosqlite, as in their documentation: one connection, a transaction per unit.

One connection cannot interleave transactions, so a lock lets one unit at a time use it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import aiosql
import aiosqlite

from sides import Side
from sides.encoding import (
    decode_subscription,
    decode_workflow,
    encode_event,
    encode_pointers,
    encode_subscription,
    encode_workflow,
)
from sides.stdlib import BASELINE
from wfe_sql import Event, EventSubscription, WorkflowInstance

_queries = aiosql.from_path(BASELINE, "aiosqlite")


class AiosqlStore:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def next_definition_sequence(self, definition_id: str) -> int:
        async with self._transaction() as connection:
            return int(await _queries.next_definition_sequence(connection, definition_id=definition_id))

    async def create_new_workflow(self, instance: WorkflowInstance) -> None:
        async with self._transaction() as connection:
            await _queries.create_new_workflow(connection, **encode_workflow(instance))
            await _queries.insert_execution_pointers(connection, encode_pointers(instance))

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        async with self._transaction() as connection:
            await _persist(connection, instance)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        async with self._transaction() as connection:
            await _persist(connection, instance)
            rows = [encode_subscription(subscription) for subscription in subscriptions]
            await _queries.create_event_subscriptions(connection, rows)

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        async with self._lock:
            workflow = await _queries.get_workflow_instance(self._connection, id=id)
            pointers = [row async for row in _queries.get_execution_pointers(self._connection, workflow_id=id)]
        return decode_workflow(workflow, pointers)

    async def create_event(self, event: Event) -> None:
        async with self._transaction() as connection:
            await _queries.create_event(connection, **encode_event(event))

    async def mark_event_processed(self, id: str) -> None:
        async with self._transaction() as connection:
            await _queries.mark_event_processed(connection, id=id)

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> list[EventSubscription]:
        async with self._lock:
            rows = _queries.get_subscriptions(
                self._connection, event_name=event_name, event_key=event_key, as_of=as_of.isoformat()
            )
            return [decode_subscription(row) async for row in rows]

    async def terminate_subscription(self, id: str) -> None:
        async with self._transaction() as connection:
            await _queries.terminate_subscription(connection, id=id)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """Commit the block's changes; sqlite3 begins a transaction by itself with the first one."""
        async with self._lock:
            try:
                yield self._connection
            except BaseException:
                await self._connection.rollback()
                raise
            await self._connection.commit()


async def _persist(connection: aiosqlite.Connection, instance: WorkflowInstance) -> None:
    await _queries.persist_workflow(connection, **encode_workflow(instance))
    await _queries.delete_execution_pointers(connection, workflow_id=instance.id)
    await _queries.insert_execution_pointers(connection, encode_pointers(instance))


@asynccontextmanager
async def open_aiosql(file: Path) -> AsyncIterator[AiosqlStore]:
    async with aiosqlite.connect(file) as connection:
        await _queries.use_wal(connection)
        await _queries.use_full_durability(connection)
        await _queries.enforce_foreign_keys(connection)
        yield AiosqlStore(connection)


AIOSQL = Side("aiosql", "its stock aiosqlite adapter, one connection, a transaction per unit under a lock", open_aiosql)
