"""Faults on a real PostgreSQL server: acknowledged writes stay, failed calls raise, and the pool recovers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from wfe_sql import (
    PostgresPersistenceProvider,
    ProviderClosedError,
    StoreBusyError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from wfe_sql.testing import sample_instance
from wfe_sql.testing.samples import TIME

SHORT = timedelta(milliseconds=100)
LONG = timedelta(seconds=30)


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(relay: Any, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    async with PostgresPersistenceProvider(relay.url, schema=schema) as opened:
        yield opened


@pytest.fixture
def ask(postgres_url: str, schema: str) -> Iterator[Callable[[str], Any]]:
    """A person's connection, whose transaction stays open until it is rolled back."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"SET search_path TO {schema}")
        connection.commit()

        def ask(sql: str) -> Any:
            if sql == "rollback":
                return connection.rollback()
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else None

        yield ask


WAITING = "SELECT pid FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"


async def waiting_backends(ask: Callable[[str], Any]) -> list[int]:
    """Return the backends that wait for what the person holds, once there are some."""
    while not (rows := ask(WAITING)):
        await asyncio.sleep(0)
    return [pid for (pid,) in rows]


# a connection that is lost


async def test_connections_that_the_server_ended_are_replaced_unnoticed(
    postgres_url: str, schema: str, ask: Callable[[str], Any]
) -> None:
    others = f"FROM pg_stat_activity WHERE application_name = '{schema}'"
    async with PostgresPersistenceProvider(postgres_url, schema=schema, application_name=schema) as provider:
        await asyncio.gather(*(provider.get_events("paid", "k1", TIME) for _ in range(5)))
        ask(f"SELECT pg_terminate_backend(pid, 10000) {others}")  # waits until their processes and sockets are gone
        await asyncio.gather(*(provider.next_definition_sequence("a") for _ in range(50)))
        assert await provider.next_definition_sequence("a") == 51


async def test_a_backend_that_is_terminated_at_work(
    provider: PostgresPersistenceProvider, ask: Callable[[str], Any]
) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    ask("UPDATE workflows SET status = status")
    writing = asyncio.create_task(provider.persist_workflow(stored))
    for pid in await waiting_backends(ask):
        ask(f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(StoreUnavailableError, match="nothing was written: terminating connection"):
        await writing
    ask("rollback")
    await provider.persist_workflow(stored)


async def test_a_write_whose_answer_is_lost_is_not_repeated(relay: Any, schema: str, ask: Callable[[str], Any]) -> None:
    async with PostgresPersistenceProvider(relay.url, schema=schema, wait_for_server=LONG) as provider:
        assert await provider.next_definition_sequence("a") == 1
        relay.swallows_answers = True
        with pytest.raises(StoreUnavailableError, match="it is not known whether the write was committed"):
            await provider.next_definition_sequence("a")
        relay.swallows_answers = False
        assert await provider.next_definition_sequence("a") == 3


async def test_a_read_whose_answer_is_lost_is_repeated_where_it_may_wait(relay: Any, schema: str) -> None:
    async with PostgresPersistenceProvider(relay.url, schema=schema, wait_for_server=LONG) as provider:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        relay.swallows_answers = True
        reading = asyncio.create_task(provider.get_workflow_instance(stored.id))
        asked = relay.round_trips
        while relay.round_trips == asked:
            await asyncio.sleep(0)
        relay.swallows_answers = False
        assert await reading == stored


# a server that does not run


async def test_without_a_server_calls_fail_at_once(provider: PostgresPersistenceProvider, relay: Any) -> None:
    stored = sample_instance()
    await relay.stop()
    for call in (
        provider.create_new_workflow(stored),
        provider.get_workflow_instance(stored.id),
        provider.get_runnable_instances(stored.create_time),
    ):
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await call
    await relay.start()
    await provider.create_new_workflow(stored)
    assert await provider.get_workflow_instance(stored.id) == stored


async def test_calls_that_may_wait_go_on_when_the_server_is_back(relay: Any, schema: str) -> None:
    stored = [sample_instance(id=f"w{number}") for number in range(20)]
    async with PostgresPersistenceProvider(relay.url, schema=schema, wait_for_server=LONG) as provider:
        await relay.stop()
        writing = [asyncio.create_task(provider.create_new_workflow(instance)) for instance in stored]
        polling = asyncio.create_task(provider.get_runnable_events(stored[0].create_time))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.shield(writing[0])
        await relay.start()
        await asyncio.gather(*writing)
        assert await polling == []
        assert await provider.get_workflow_instances([instance.id for instance in stored]) == stored


async def test_opening_may_wait_for_the_server(relay: Any, schema: str) -> None:
    await relay.stop()
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await PostgresPersistenceProvider(relay.url, schema=schema).open()
    provider = PostgresPersistenceProvider(relay.url, schema=schema, wait_for_server=LONG)
    opening = asyncio.create_task(provider.open())
    await asyncio.sleep(0)
    await relay.start()
    await opening
    await provider.close()


async def test_the_waiting_ends(relay: Any, schema: str) -> None:
    async with PostgresPersistenceProvider(relay.url, schema=schema, wait_for_server=SHORT) as provider:
        await relay.stop()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await provider.next_definition_sequence("a")


# a server that is slow, full or read-only


async def test_a_statement_that_takes_too_long(relay: Any, schema: str, ask: Callable[[str], Any]) -> None:
    async with PostgresPersistenceProvider(relay.url, schema=schema, statement_timeout=SHORT) as provider:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        ask("UPDATE workflows SET status = status")
        with pytest.raises(StoreBusyError, match="longer than the statement timeout"):
            await provider.persist_workflow(stored)
        ask("rollback")
        await provider.persist_workflow(stored)


async def test_a_server_that_does_not_answer() -> None:
    lines: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, line: lines.append(line), "127.0.0.1") as listener:
        port = listener.sockets[0].getsockname()[1]
        url = f"postgresql://127.0.0.1:{port}/x?sslmode=disable"
        with pytest.raises(StoreUnavailableError, match="no connection within 0:00:00.1"):
            await PostgresPersistenceProvider(url, connect_timeout=SHORT).open()
        for line in lines:
            line.close()
            await line.wait_closed()


async def test_a_server_that_may_only_be_read(postgres_url: str, schema: str) -> None:
    stored = sample_instance()
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        await provider.create_new_workflow(stored)
    url = make_conninfo(postgres_url, options="-c default_transaction_read_only=on")
    async with PostgresPersistenceProvider(url, schema=schema) as provider:
        assert await provider.get_workflow_instance(stored.id) == stored
        with pytest.raises(StoreReadOnlyError, match="cannot be written"):
            await provider.persist_workflow(stored)


async def test_a_server_that_serializes_unless_told_otherwise(postgres_url: str, schema: str) -> None:
    url = make_conninfo(postgres_url, options="-c default_transaction_isolation=serializable")
    hosts = [PostgresPersistenceProvider(url, schema=schema) for _ in range(2)]
    await asyncio.gather(*(host.open() for host in hosts))
    for _ in range(20):
        await asyncio.gather(*(host.next_definition_sequence("a") for host in hosts))
    assert await hosts[0].next_definition_sequence("a") == 41
    await asyncio.gather(*(host.close() for host in hosts))


# a provider that is not open


async def test_a_provider_that_is_not_open_any_more_or_yet(postgres_url: str, schema: str) -> None:
    provider = PostgresPersistenceProvider(postgres_url, schema=schema)
    with pytest.raises(ProviderClosedError, match="is not open"):
        await provider.next_definition_sequence("a")
    async with provider:
        with pytest.raises(ProviderClosedError, match="was already opened"):
            await provider.open()
    for call in (provider.next_definition_sequence("a"), provider.ensure_store_exists(), provider.stats()):
        with pytest.raises(ProviderClosedError, match="is closed"):
            await call
    await provider.close()


async def test_a_provider_belongs_to_one_event_loop(postgres_url: str, schema: str) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:

        def call() -> None:
            asyncio.run(provider.get_event("e"))

        with pytest.raises(StoreError, match="belongs to another event loop"):
            await asyncio.to_thread(call)


async def test_backups_are_left_to_the_tools_of_postgresql(postgres_url: str, schema: str, tmp_path: Path) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        with pytest.raises(StoreError, match="pg_dump"):
            await provider.backup(tmp_path / "copy")
