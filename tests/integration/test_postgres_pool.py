"""What goes wrong between a provider and a PostgreSQL server that both run, and what calls make of it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from wfe_sql import (
    PostgresPersistenceProvider,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from wfe_sql.testing import full_event
from wfe_sql.testing.samples import TIME

Open = Callable[..., Coroutine[Any, Any, PostgresPersistenceProvider]]

Admin = Callable[..., Any]


@pytest.fixture
async def open_(postgres_url: str, schema: str) -> AsyncIterator[Open]:
    async with AsyncExitStack() as opened:

        async def open_(url: str = postgres_url, **options: Any) -> PostgresPersistenceProvider:
            return await opened.enter_async_context(PostgresPersistenceProvider(url, schema=schema, **options))

        yield open_


@pytest.fixture
async def by_hand(postgres_url: str, schema: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A person's open transaction."""
    async with await psycopg.AsyncConnection.connect(postgres_url, options=f"-c search_path={schema}") as connection:
        yield connection


@pytest.fixture
def host_name() -> str:
    """What a host calls itself to the server."""
    return f"host {uuid4().hex}"


@pytest.fixture
def named_url(postgres_url: str, host_name: str) -> str:
    return make_conninfo(postgres_url, application_name=host_name)


async def _waits(admin: Admin, host: str, *, count: int = 1) -> None:
    """Return as soon as so many statements of a host wait for locks."""
    async with asyncio.timeout(10):
        while admin("count_waiting", application=host) != count:
            await asyncio.sleep(0)


async def hold_event(by_hand: psycopg.AsyncConnection, id_: str) -> None:
    """Lock an event until the person's transaction ends."""
    await by_hand.execute("UPDATE events SET event_data = event_data WHERE id = %s", [id_])


# ended connections


async def test_connections_that_are_ended_while_idle(open_: Open, named_url: str, admin: Admin, host_name: str) -> None:
    host = await open_(named_url)
    for round_ in range(3):
        await asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(10)))
        assert admin("end_connections", application=host_name)
        assert await host.next_definition_sequence("order") == round_ + 1


@pytest.mark.parametrize("wait_for_server", [timedelta(0), timedelta(minutes=1)])
async def test_a_connection_that_is_ended_while_its_statement_runs(
    open_: Open,
    named_url: str,
    admin: Admin,
    host_name: str,
    by_hand: psycopg.AsyncConnection,
    wait_for_server: timedelta,
) -> None:
    """A write may have been stored, so it is not run again even by those who wait for the server."""
    host = await open_(named_url, wait_for_server=wait_for_server)
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    marking = asyncio.create_task(host.mark_event_processed("e1"))
    await _waits(admin, host_name)
    assert admin("end_connections", application=host_name)
    with pytest.raises(StoreUnavailableError, match="whether it was stored is not known: terminating connection"):
        await marking
    await by_hand.rollback()
    assert (await host.get_event("e1")).is_processed is False
    await host.mark_event_processed("e1")


# tries


async def test_a_serialization_failure_is_run_again(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection
) -> None:
    isolation = make_conninfo(named_url, options=r"-c default_transaction_isolation=repeatable\ read")
    host = await open_(isolation)
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    marking = asyncio.create_task(host.mark_event_processed("e1"))
    await _waits(admin, host_name)
    await by_hand.commit()
    await marking
    assert (await host.get_event("e1")).is_processed is True


@pytest.mark.parametrize(
    ("code", "tries", "kind", "message"),
    [
        ("40001", 10, StoreBusyError, "others changed the same rows each time"),
        ("40P01", 10, StoreBusyError, "others held the same rows each time"),
        ("55P03", 1, StoreBusyError, "a lock was held for too long"),
        ("53100", 1, StoreFullError, "has no room left"),
        ("25006", 1, StoreReadOnlyError, "may not be written"),
        ("XX001", 1, StoreCorruptError, "is damaged"),
        ("42P01", 1, StoreError, "cannot be worked with"),
    ],
)
async def test_what_the_server_refuses(
    open_: Open, admin: Admin, code: str, tries: int, kind: type[StoreError], message: str
) -> None:
    """The errors are the server's own; a trigger raises them, and a sequence, which nothing rolls back, counts them."""
    host = await open_()
    admin("refuse_events")
    admin("set_refusal", code=code)
    with pytest.raises(StoreError, match=f"{message}: refused by a test") as raised:
        await host.create_event(full_event())
    assert type(raised.value) is kind
    assert admin("count_refused") == tries
    assert await host.next_definition_sequence("order") == 1


# time


async def test_a_statement_that_takes_too_long(
    open_: Open, by_hand: psycopg.AsyncConnection, named_url: str, admin: Admin
) -> None:
    host = await open_(statement_timeout=timedelta(milliseconds=100))
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    with pytest.raises(StoreBusyError, match="took longer than the statement timeout"):
        await host.mark_event_processed("e1")
    await by_hand.rollback()
    assert (await host.get_event("e1")).is_processed is False
    await host.mark_event_processed("e1")


async def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://wfe@127.0.0.1:{silent.getsockname()[1]}/wfe"
        began = time.monotonic()
        for _ in range(10):  # the pool's time may be over before the attempt's, or after it
            provider = PostgresPersistenceProvider(url, connect_timeout=timedelta(milliseconds=20))
            with pytest.raises(StoreUnavailableError, match="no connection within 0:00:00.020000"):
                await provider.open()
        provider = PostgresPersistenceProvider(
            url, connect_timeout=timedelta(milliseconds=100), wait_for_server=timedelta(milliseconds=500)
        )
        with pytest.raises(StoreUnavailableError, match="no connection within"):
            await provider.open()
        assert time.monotonic() - began < 5


# too many


async def test_a_full_pool(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection
) -> None:
    host = await open_(named_url, max_connections=1, connect_timeout=timedelta(milliseconds=200))
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    marking = asyncio.create_task(host.mark_event_processed("e1"))
    await _waits(admin, host_name)
    async with asyncio.timeout(5):
        with pytest.raises(StoreBusyError, match=r"all connections \(at most 1\) were in use for 0:00:00.2"):
            await host.get_event("e1")
    patient = asyncio.create_task(host.get_runnable_instances(TIME))
    await asyncio.sleep(0)
    await by_hand.rollback()
    await marking
    assert await patient == []
    assert (await host.get_event("e1")).is_processed is True
    assert admin("count_connections", application=host_name) == 1


async def test_a_server_that_takes_fewer_connections_than_the_pool_would_like(
    open_: Open, make_role: Callable[..., str], admin: Admin
) -> None:
    await open_()
    limited = make_role(connections=2)
    admin("grant_use", role=conninfo_to_dict(limited)["user"])
    host = await open_(limited)
    async with asyncio.timeout(30):
        drawn, due = await asyncio.gather(
            asyncio.gather(*(host.next_definition_sequence("order") for _ in range(200))),
            asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(200))),
        )
    assert sorted(drawn) == list(range(1, 201))
    assert due == [[]] * 200


async def test_a_server_that_takes_no_more_connections(
    open_: Open, make_role: Callable[..., str], admin: Admin
) -> None:
    await open_()
    limited = make_role(connections=1)
    admin("grant_use", role=conninfo_to_dict(limited)["user"])
    first = await open_(limited)
    with pytest.raises(StoreUnavailableError, match="too many connections"):
        await open_(limited)
    waiting = asyncio.create_task(open_(limited, wait_for_server=timedelta(minutes=1)))
    await asyncio.sleep(0)
    await first.close()
    async with asyncio.timeout(10):
        assert await (await waiting).next_definition_sequence("order") == 1
