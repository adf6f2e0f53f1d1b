"""What goes wrong between a provider and a running PostgreSQL server, and what calls do then."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from wfe_sql import (
    EventNotFoundError,
    PostgresPersistenceProvider,
    ScheduledCommand,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from wfe_sql.engines.postgres.pool import ConnectionPool
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.testing import full_event
from wfe_sql.testing.samples import TIME

Open = Callable[..., Coroutine[Any, Any, PostgresPersistenceProvider]]

Admin = Callable[..., Any]
PassTime = Callable[[float], None]

MINUTE = 60.0


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
    """The name of a host's connections on the server."""
    return f"host {uuid4().hex}"


@pytest.fixture
def named_url(postgres_url: str, host_name: str) -> str:
    return make_conninfo(postgres_url, application_name=host_name)


async def _waits(admin: Admin, host: str, *, count: int = 1) -> None:
    """Return once this many statements of a host wait for locks."""
    async with asyncio.timeout(10):
        while admin("count_waiting", application=host) != count:
            await asyncio.sleep(0)


async def hold_event(by_hand: psycopg.AsyncConnection, id_: str) -> None:
    """Lock an event until the person's transaction ends."""
    await by_hand.execute("UPDATE events SET event_data = event_data WHERE id = %s", [id_])


# ended connections


@pytest.mark.slow
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
    """A write may have been stored, so it does not run again, even with `wait_for_server`."""
    host = await open_(named_url, wait_for_server=wait_for_server)
    await by_hand.execute(
        "INSERT INTO events (id, event_name, event_key, event_data, event_time) VALUES ('e1', 'n', 'k', '1', now())"
    )
    creating = asyncio.create_task(host.create_event(full_event(id="e1")))
    await _waits(admin, host_name)
    assert admin("end_connections", application=host_name)
    with pytest.raises(
        StoreUnavailableError, match="it is not known whether the write was committed: terminating connection"
    ):
        await creating
    await by_hand.rollback()
    with pytest.raises(EventNotFoundError):
        await host.get_event("e1")
    await host.create_event(full_event(id="e1"))


async def test_a_connection_that_is_ended_while_it_waits_for_a_row(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection
) -> None:
    """Nothing was written by then, so with `wait_for_server` it runs again."""
    host = await open_(named_url, wait_for_server=timedelta(minutes=1))
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    marking = asyncio.create_task(host.mark_event_processed("e1"))
    await _waits(admin, host_name)
    assert admin("end_connections", application=host_name)
    await _waits(admin, host_name)
    await by_hand.rollback()
    await marking
    assert (await host.get_event("e1")).is_processed


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
        pytest.param("53100", 1, StoreFullError, "has no disk space left", marks=pytest.mark.slow),
        pytest.param("25006", 1, StoreReadOnlyError, "cannot be written", marks=pytest.mark.slow),
        pytest.param("XX001", 1, StoreCorruptError, "is damaged", marks=pytest.mark.slow),
        ("42P01", 1, StoreError, "failed with an unexpected database error"),
    ],
)
async def test_what_the_server_refuses(
    open_: Open, admin: Admin, code: str, tries: int, kind: type[StoreError], message: str
) -> None:
    """A trigger raises the server's errors, and a sequence, which nothing rolls back, counts them."""
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


async def test_a_server_that_never_answers(pass_time: PassTime) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://wfe@127.0.0.1:{silent.getsockname()[1]}/wfe"
        for wait_for_server in (timedelta(0), timedelta(seconds=25)):
            began = loop.time()
            provider = PostgresPersistenceProvider(url, wait_for_server=wait_for_server)
            with pytest.raises(StoreUnavailableError, match="cannot be reached: no connection within 0:00:10"):
                await _ends(provider.open(), pass_time)
            assert loop.time() - began > wait_for_server.total_seconds()


async def _ends(call: Coroutine[Any, Any, Any], pass_time: PassTime) -> Any:
    """Pass the time that a call waits for, and return its outcome."""
    task = asyncio.create_task(call)
    for _ in range(20):
        await asyncio.sleep(0)
    while not task.done():
        pass_time(1)
        for _ in range(500):  # a server that answers after a moment must not seem silent for seconds
            await asyncio.sleep(0)
    return task.result()


async def test_connections_that_nobody_uses_are_closed(
    open_: Open, named_url: str, admin: Admin, host_name: str, pass_time: PassTime
) -> None:
    """The one used last is used next, so the others stay unused."""
    host = await open_(named_url)
    await asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(5)))
    pass_time(9 * MINUTE)
    assert await host.next_definition_sequence("order") == 1
    assert admin("count_connections", application=host_name) == 5
    pass_time(2 * MINUTE)
    await _has_connections(admin, host_name, 1)
    pass_time(9 * MINUTE)
    await _has_connections(admin, host_name, 0)
    assert await host.next_definition_sequence("order") == 2


async def _has_connections(admin: Admin, host: str, count: int) -> None:
    """Return once a host has this many connections."""
    async with asyncio.timeout(10):
        while admin("count_connections", application=host) != count:
            await asyncio.sleep(0)


async def test_a_connection_is_replaced_after_an_hour(
    open_: Open, named_url: str, admin: Admin, host_name: str, pass_time: PassTime
) -> None:
    host = await open_(named_url)
    first = admin("list_connections", application=host_name)
    for minutes in range(5, 60, 5):
        pass_time(5 * MINUTE)
        await host.get_runnable_instances(TIME)
        assert admin("list_connections", application=host_name) == first, minutes
    pass_time(5 * MINUTE)
    await host.get_runnable_instances(TIME)
    await _has_connections(admin, host_name, 0)
    await host.get_runnable_instances(TIME)
    assert admin("list_connections", application=host_name) != first


# the pool by itself


@pytest.fixture
async def small_pool(postgres_url: str) -> AsyncIterator[ConnectionPool]:
    """A pool of one connection."""
    target = PostgresTarget(postgres_url, timedelta(seconds=10))
    pool = ConnectionPool(target, target.connect, 1, timedelta(seconds=10))
    yield pool
    pool.close()


async def test_a_connection_that_comes_back_inside_a_transaction_is_not_lent_again(small_pool: ConnectionPool) -> None:
    async with small_pool.connection() as left:
        await left.execute("BEGIN")
    async with small_pool.connection() as other:
        assert left.closed
        assert other is not left
    async with small_pool.connection() as again:
        assert again is other


async def test_callers_are_served_in_the_order_in_which_they_came(small_pool: ConnectionPool) -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        async with small_pool.connection():
            served.append(number)
            if number < 3:
                later.append(asyncio.create_task(use(number + 10)))
            await asyncio.sleep(0)

    later: list[asyncio.Task[None]] = []
    await asyncio.gather(*(use(number) for number in range(5)))
    await asyncio.gather(*later)
    assert served == [0, 1, 2, 3, 4, 10, 11, 12]


async def test_callers_that_are_cancelled_while_they_connect(small_pool: ConnectionPool) -> None:
    """At every step, the place is free again."""
    for steps in range(30):
        using = small_pool.connection()
        taking = asyncio.create_task(using.__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        if not taking.cancelled():
            await using.__aexit__(None, None, None)
        async with small_pool.connection() as connection:
            await connection.execute("BEGIN")  # the next one connects again


# too many


async def test_a_full_pool(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection, pass_time: PassTime
) -> None:
    host = await open_(named_url, max_connections=1)
    await host.create_event(full_event(id="e1", is_processed=False))
    await hold_event(by_hand, "e1")
    marking = asyncio.create_task(host.mark_event_processed("e1"))
    await _waits(admin, host_name)
    reading = asyncio.create_task(host.get_event("e1"))
    for _ in range(20):
        await asyncio.sleep(0)
    pass_time(11)
    with pytest.raises(StoreBusyError, match=r"all connections \(at most 1\) were in use for 0:00:10"):
        await reading
    patient = asyncio.create_task(host.get_runnable_instances(TIME))
    await asyncio.sleep(0)
    await by_hand.rollback()
    await marking
    assert await patient == []
    assert (await host.get_event("e1")).is_processed is True
    assert admin("count_connections", application=host_name) == 1


async def test_callers_that_give_up_while_the_pool_is_full(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection
) -> None:
    """The server stops statements that have begun, the others never run, and each place is free again."""
    host = await open_(named_url, max_connections=4)
    await by_hand.execute("LOCK TABLE scheduled_commands IN ACCESS EXCLUSIVE MODE")
    commands = [ScheduledCommand.process_workflow(f"w{number}", 0) for number in range(5)]
    calls = [asyncio.create_task(host.schedule_command(command)) for command in commands]
    await _waits(admin, host_name, count=2)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(call.cancelled() for call in calls)
    await _waits(admin, host_name, count=0)
    marks = [asyncio.create_task(host.get_runnable_events(TIME)) for _ in range(4)]
    assert await asyncio.gather(*marks) == [[]] * 4
    await by_hand.rollback()
    done: list[str] = []

    async def note(command: ScheduledCommand) -> None:
        done.append(command.data)

    async with asyncio.timeout(10):
        await host.process_commands(TIME, note)
    assert done == []
    await by_hand.execute("LOCK TABLE workflows IN ACCESS EXCLUSIVE MODE")
    polls = [asyncio.create_task(host.get_runnable_instances(TIME)) for _ in range(2)]
    await _waits(admin, host_name, count=2)
    await by_hand.rollback()
    assert await asyncio.gather(*polls) == [[], []]


async def test_a_statement_whose_callers_have_all_given_up(
    open_: Open, named_url: str, admin: Admin, host_name: str, by_hand: psycopg.AsyncConnection
) -> None:
    """Also one that serves several callers: the server stops it once all of them were cancelled."""
    host = await open_(named_url, max_connections=1)
    assert await host.next_definition_sequence("order") == 1
    await by_hand.execute("UPDATE definition_sequences SET next_num = 10")
    one, other = [asyncio.create_task(host.next_definition_sequence("order")) for _ in range(2)]
    await _waits(admin, host_name)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    await host_does_not_change(admin, host_name)
    other.cancel()
    await _waits(admin, host_name, count=0)
    await by_hand.rollback()
    assert await host.next_definition_sequence("order") == 2


async def host_does_not_change(admin: Admin, host: str) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
        assert admin("count_waiting", application=host) == 1


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


async def test_connections_that_the_server_takes_again(
    open_: Open, make_role: Callable[..., str], admin: Admin, by_hand: psycopg.AsyncConnection, pass_time: PassTime
) -> None:
    """The pool grows to its full size within a second after the server allows it."""
    limited = make_role(connections=2)
    await open_()
    role = str(conninfo_to_dict(limited)["user"])
    admin("grant_use", role=role)
    host = await open_(make_conninfo(limited, application_name=role), max_connections=8)
    for _ in range(2):
        await asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(5)))
    await by_hand.execute("LOCK TABLE workflows IN ACCESS EXCLUSIVE MODE")
    first = [asyncio.create_task(host.get_runnable_instances(TIME)) for _ in range(2)]
    await _waits(admin, role, count=2)
    with pytest.raises(StoreUnavailableError, match="too many connections for role"):
        await _ends(host.get_runnable_instances(TIME), pass_time)
    admin("limit_role", role=role, connections=-1)
    pass_time(1)
    others = [asyncio.create_task(host.get_runnable_instances(TIME)) for _ in range(3)]
    await _waits(admin, role, count=5)
    await by_hand.rollback()
    assert await asyncio.gather(*first, *others) == [[]] * 5


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
