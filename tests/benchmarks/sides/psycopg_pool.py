"""psycopg with its pool, as in its documentation: a transaction per unit, one statement after another.

https://www.psycopg.org/psycopg3/docs/advanced/pool.html
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiosql
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from sides import Side, texts_of
from sides.encoding import encode_event, encode_pointers, encode_subscription, encode_workflow
from sides.stdlib import BASELINE
from wfe_sql import Event, EventSubscription, ExecutionPointer, PointerStatus, WorkflowInstance, WorkflowStatus

if TYPE_CHECKING:
    from places import Schema

CONNECTIONS = 10
"""The default of the library and the reference."""

POOL_TIMEOUT = 600
"""Seconds that a unit may wait for its turn: enough for any disk."""

_queries: Any = aiosql.from_path(BASELINE.with_name("baseline_postgres.sql"), "psycopg")
SQL = texts_of(_queries)

Connection = psycopg.AsyncConnection[DictRow]


class PsycopgStore:
    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    async def next_definition_sequence(self, definition_id: str) -> int:
        async with self._pool.connection() as connection:
            (row,) = await _rows(connection, "next_definition_sequence", {"definition_id": definition_id})
            return int(row["next_num"])

    async def create_new_workflow(self, instance: WorkflowInstance) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(SQL["create_new_workflow"], encode_workflow(instance))
            await connection.cursor().executemany(SQL["insert_execution_pointers"], encode_pointers(instance))

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        async with self._pool.connection() as connection:
            await _persist(connection, instance)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        async with self._pool.connection() as connection:
            await _persist(connection, instance)
            rows = [encode_subscription(subscription) for subscription in subscriptions]
            await connection.cursor().executemany(SQL["create_event_subscriptions"], rows)

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        async with self._pool.connection() as connection:
            (workflow,) = await _rows(connection, "get_workflow_instance", {"id": id})
            pointers = await _rows(connection, "get_execution_pointers", {"workflow_id": id})
        workflow["status"] = WorkflowStatus(workflow["status"])
        for pointer in pointers:
            pointer["status"] = PointerStatus(pointer["status"])
        return WorkflowInstance(**workflow, execution_pointers=[ExecutionPointer(**pointer) for pointer in pointers])

    async def create_event(self, event: Event) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(SQL["create_event"], encode_event(event))

    async def mark_event_processed(self, id: str) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(SQL["mark_event_processed"], {"id": id})

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> list[EventSubscription]:
        params = {"event_name": event_name, "event_key": event_key, "as_of": as_of}
        async with self._pool.connection() as connection:
            return [EventSubscription(**row) for row in await _rows(connection, "get_subscriptions", params)]

    async def terminate_subscription(self, id: str) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(SQL["terminate_subscription"], {"id": id})


async def _rows(connection: Connection, query: str, params: dict[str, Any]) -> list[DictRow]:
    return await (await connection.execute(SQL[query], params)).fetchall()


async def _persist(connection: Connection, instance: WorkflowInstance) -> None:
    await connection.execute(SQL["persist_workflow"], encode_workflow(instance))
    await connection.execute(SQL["delete_execution_pointers"], {"workflow_id": instance.id})
    await connection.cursor().executemany(SQL["insert_execution_pointers"], encode_pointers(instance))


@asynccontextmanager
async def open_psycopg(schema: "Schema") -> AsyncIterator[PsycopgStore]:
    async def configure(connection: Connection) -> None:
        await connection.execute(SQL["choose_schema"], {"schema": schema.name})
        await connection.commit()

    async with AsyncConnectionPool(
        schema.url,
        connection_class=Connection,
        kwargs={"row_factory": dict_row},
        min_size=CONNECTIONS,
        timeout=POOL_TIMEOUT,
        configure=configure,
        open=False,
    ) as pool:
        yield PsycopgStore(pool)


def create_baseline_tables(schema: "Schema") -> None:
    """Create the tables of the Python sides."""
    with psycopg.connect(schema.url) as connection:
        _queries.choose_schema(connection, schema=schema.name)
        _queries.create_schema(connection)
        _queries.create_tables(connection)


PSYCOPG = Side(
    "psycopg",
    f"its pool of {CONNECTIONS} connections, a transaction per unit, pointers by executemany, which is pipelined",
    open_psycopg,
)
