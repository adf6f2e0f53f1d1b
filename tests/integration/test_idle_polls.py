"""A poll that finds nothing takes no lock that others wait for, and commits nothing."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from wfe_sql import PostgresPersistenceProvider, ScheduledCommand, SqlitePersistenceProvider, StoreBusyError
from wfe_sql.backends import load_postgres_queries
from wfe_sql.engines import Statement
from wfe_sql.engines.postgres.grouping import GROUPS, encode_units
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, sample_instance
from wfe_sql.testing.samples import TIME

LEASE = timedelta(minutes=1)
MS = int(TIME.timestamp() * 1000)


async def handle(command: ScheduledCommand) -> None:
    raise AssertionError(command)


async def poll(provider: SqlPersistenceProvider) -> None:
    """Poll as an idle host does."""
    assert await provider.claim_runnable_instances(TIME, "host", lease=LEASE, limit=10) == []
    assert await provider.claim_runnable_events(TIME, "host", lease=LEASE, limit=10) == []
    await provider.process_commands(TIME, handle)


async def fill(provider: SqlPersistenceProvider) -> None:
    """Store work that is not due yet, and work that another host holds."""
    await provider.create_new_workflow(sample_instance(next_execution=MS))
    await provider.create_event(full_event(is_processed=False, event_time=TIME))
    assert len(await provider.claim_runnable_instances(TIME, "other", lease=LEASE, limit=1)) == 1
    assert len(await provider.claim_runnable_events(TIME, "other", lease=LEASE, limit=1)) == 1
    await provider.create_new_workflow(sample_instance(next_execution=MS + 1))
    await provider.create_event(full_event(is_processed=False, event_time=TIME + timedelta(microseconds=1)))
    await provider.schedule_command(ScheduledCommand.process_event("e1", MS + 1))


async def test_on_sqlite_it_neither_waits_for_writers_nor_writes(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with SqlitePersistenceProvider(file, busy_timeout=timedelta(0), clock=lambda: TIME) as provider:
        await fill(provider)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await poll(provider)
            with pytest.raises(StoreBusyError):
                await provider.claim_runnable_instances(TIME + timedelta(seconds=1), "host", lease=LEASE, limit=1)
            other.execute("ROLLBACK")
            (version,) = other.execute("PRAGMA data_version").fetchone()
            logged = Path(f"{file}-wal").read_bytes()
            await poll(provider)
            assert other.execute("PRAGMA data_version").fetchone() == (version,)
            assert Path(f"{file}-wal").read_bytes() == logged


async def test_on_postgres_it_gets_no_transaction_id_and_locks_no_row(postgres_url: str, schema: str) -> None:
    queries = load_postgres_queries()
    claim = {"now": TIME.isoformat(), "token": "t", "worker_id": "host", "expires_at": TIME.isoformat(), "row_limit": 9}
    bounds: dict[str, Any] = {"claim_runnable_instances": MS, "claim_runnable_events": TIME.isoformat()}
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=lambda: TIME) as provider:
        await fill(provider)
        await poll(provider)
        connection = await psycopg.AsyncConnection.connect(
            postgres_url, options=f"-c search_path={schema}", cursor_factory=psycopg.AsyncRawCursor
        )
        async with connection:
            for lead, as_at in bounds.items():
                ((_, units),) = encode_units([[Statement(lead, {**claim, "as_at": as_at})]])
                assert await queries.run(connection, GROUPS[lead].query, {"units": units}) == []
            commands = {**claim, "as_of": MS, "after_time": -1, "after_id": 0}
            assert await queries.run(connection, "claim_commands", commands) == []
            cursor = await connection.execute(
                "SELECT pg_current_xact_id_if_assigned(), count(*) FROM pg_locks "
                "WHERE pid = pg_backend_pid() AND locktype IN ('tuple', 'transactionid')"
            )
            assert await cursor.fetchone() == (None, 0)
