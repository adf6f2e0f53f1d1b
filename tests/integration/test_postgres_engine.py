"""What the PostgreSQL engine promises beyond the conformance suite: cancellation, closing, and idling."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from stores import tuned
from wfe_sql import PostgresPersistenceProvider, ProviderClosedError, ScheduledCommand, StoreBusyError, StoreError
from wfe_sql.backends import load_postgres_queries
from wfe_sql.testing import full_event, sample_instance
from wfe_sql.testing.samples import TIME

AssertSound = Callable[[], Awaitable[None]]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(postgres_url: str, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    url = make_conninfo(postgres_url, application_name=schema)
    async with PostgresPersistenceProvider(url, schema=schema, max_connections=3) as opened:
        yield opened


@pytest.fixture
async def by_hand(postgres_url: str, schema: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A person's open transaction."""
    async with await psycopg.AsyncConnection.connect(postgres_url, options=f"-c search_path={schema}") as connection:
        yield connection


async def test_what_came_back_unreadable_may_have_been_written(
    provider: PostgresPersistenceProvider,
    by_hand: psycopg.AsyncConnection,
    postgres_url: str,
    schema: str,
    tmp_path: Path,
) -> None:
    """A claim by a tuned query that does not skip times that Python cannot represent."""
    own = load_postgres_queries()["claim_runnable_events_group"]
    (tmp_path / "events.sql").write_text(own.text.replace(" AND event_time >= '0001-01-01 00:00:00+00'", ""))
    for id_ in ("bad", "good"):
        await provider.create_event(full_event(id=id_, is_processed=False))
    await by_hand.execute("UPDATE events SET event_time = '-infinity' WHERE id = 'bad'")
    await by_hand.commit()
    async with PostgresPersistenceProvider(postgres_url, schema=schema, sql_dir=tmp_path) as tuned:
        calls = [tuned.claim_runnable_events(TIME, f"host-{n}", lease=timedelta(days=1), limit=1) for n in range(2)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreError, StoreError]
    assert all("the write may have been committed" in str(outcome) for outcome in outcomes)
    cursor = await by_hand.execute("SELECT claim_worker_id FROM events ORDER BY id")
    assert await cursor.fetchall() == [("host-0",), ("host-1",)]  # once, and not again in halves


async def test_a_unit_that_waits_alone_is_a_plain_statement(postgres_url: str, schema: str, tmp_path: Path) -> None:
    """Its query is tuned to store capital letters, the group's is not."""
    own = load_postgres_queries()["create_event"]
    (tmp_path / "events.sql").write_text(own.text.replace(" :event_key", " upper(:event_key)"))
    async with PostgresPersistenceProvider(postgres_url, schema=schema, sql_dir=tmp_path) as tuned:
        alone, *together = [full_event(event_key="key") for _ in range(4)]
        await tuned.create_event(alone)
        await asyncio.gather(*map(tuned.create_event, together))
        assert (await tuned.get_event(alone.id)).event_key == "KEY"
        assert [(await tuned.get_event(event.id)).event_key for event in together] == ["key"] * 3


async def _somebody_waits(by_hand: psycopg.AsyncConnection) -> None:
    """Return once a statement waits for what the transaction holds."""
    waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    async with asyncio.timeout(10):
        while (await (await by_hand.execute(waiting)).fetchone()) != (True,):
            pass


@pytest.fixture
def assert_sound(
    provider: PostgresPersistenceProvider, admin: Callable[..., Any], postgres_url: str, schema: str
) -> AssertSound:
    """A function that asserts that all connections are free, work, and are not in a transaction."""

    async def assert_sound() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(provider.get_runnable_instances(TIME) for _ in range(20)))
            await asyncio.gather(*(provider.next_definition_sequence("order") for _ in range(20)))
            while {state for _, state in admin("list_connections", application=schema)} != {"idle"}:
                await asyncio.sleep(0)
            while admin("count_connections", application=schema) > 3:  # the server is still ending some
                await asyncio.sleep(0)
            with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as holding:
                holding.execute("LOCK TABLE wfe_sql_store IN ACCESS EXCLUSIVE MODE")
                users = [asyncio.create_task(provider.ensure_store_exists()) for _ in range(3)]
                while admin("count_waiting", application=schema) != 3:
                    await asyncio.sleep(0)
            await asyncio.gather(*users)

    return assert_sound


# statements that end before their time


@pytest.mark.parametrize("call", ["of a group", "alone", "of a unit"])
async def test_an_error_of_the_statement_timeout_says_how_long_that_is(
    postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection, call: str
) -> None:
    timeout = timedelta(milliseconds=100)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, statement_timeout=timeout) as provider:
        await provider.create_event(full_event(id="e1"))
        await provider.schedule_command(ScheduledCommand.process_event("e1", 0))
        await by_hand.execute("LOCK TABLE events, scheduled_commands")
        with pytest.raises(StoreBusyError, match="took longer than the statement timeout") as raised:
            if call == "of a group":
                await provider.mark_event_processed("e1")
            elif call == "alone":
                await provider.schedule_command(ScheduledCommand.process_event("e1", 0))
            else:
                async with provider.unit() as unit:
                    unit.mark_event_processed("e1")
                    unit.schedule_command(ScheduledCommand.process_event("e1", 0))
        assert raised.value.timeout == timeout


async def test_opening_a_store_whose_tables_are_locked_says_how_long_it_waited(
    provider: PostgresPersistenceProvider, postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection
) -> None:
    timeout = timedelta(milliseconds=100)
    await by_hand.execute("LOCK TABLE wfe_sql_store")
    with pytest.raises(StoreBusyError, match="took longer than the statement timeout") as raised:
        await PostgresPersistenceProvider(postgres_url, schema=schema, statement_timeout=timeout).open()
    assert raised.value.timeout == timeout


async def test_a_statement_that_an_administrator_cancels(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection, postgres_url: str
) -> None:
    await provider.create_event(full_event(id="e1"))
    await by_hand.execute("LOCK TABLE events")
    marking = asyncio.create_task(provider.mark_event_processed("e1"))
    await _somebody_waits(by_hand)
    await by_hand.execute("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted")
    with pytest.raises(StoreBusyError, match="somebody cancelled a statement") as raised:
        await marking
    assert raised.value.timeout is None


# cancellation


async def test_a_caller_that_is_cancelled_while_its_statement_waits(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection, assert_sound: AssertSound
) -> None:
    """The statement was sent: it continues, and others sent with it get their answers."""
    await asyncio.gather(*(provider.create_event(full_event(id=id_, is_processed=False)) for id_ in ("e1", "e2")))
    await by_hand.execute("UPDATE events SET event_data = event_data WHERE id = 'e1'")
    cancelled, other = [asyncio.create_task(provider.mark_event_processed(id_)) for id_ in ("e1", "e2")]
    await _somebody_waits(by_hand)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await by_hand.rollback()
    await other
    await assert_sound()
    assert (await provider.get_event("e2")).is_processed is True


@pytest.mark.slow
async def test_close_waits_until_requests_to_cancel_are_over(
    postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection
) -> None:
    """The end of the event loop would break them off, and PgBouncer before 1.19.1 ends itself then."""
    for number in range(20):
        async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
            await provider.create_event(full_event(id=f"e{number}", is_processed=False))
            await by_hand.execute("UPDATE events SET event_data = event_data")
            marking = asyncio.create_task(provider.mark_event_processed(f"e{number}"))
            await _somebody_waits(by_hand)
            marking.cancel()
            await asyncio.wait([marking])
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await by_hand.rollback()


async def test_close_waits_until_the_listening_connection_is_given_up(
    postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    """That sends a request to cancel, too."""
    change = ("get_reason_not_to_listen", "FROM pg_extension", "FROM wfe_sql_store, pg_extension")
    sql_dir = tuned(load_postgres_queries(), tmp_path / "sql", change)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, sql_dir=sql_dir) as provider:
        await by_hand.execute("LOCK TABLE wfe_sql_store IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(provider.wait_for_work())
        await _somebody_waits(by_hand)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("steps", range(12))
async def test_an_opening_that_is_cancelled(
    postgres_url: str, schema: str, admin: Callable[..., Any], steps: int
) -> None:
    """At every step, it leaves no connection and no state that could disturb a later one."""
    provider = PostgresPersistenceProvider(make_conninfo(postgres_url, application_name=schema), schema=schema)
    opening = asyncio.create_task(provider.open())
    for _ in range(steps * 4):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await provider.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with asyncio.timeout(10), PostgresPersistenceProvider(postgres_url, schema=schema) as later:
        assert await later.next_definition_sequence("order") == 1


async def test_a_check_that_is_cancelled_gives_its_connection_back(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection, assert_sound: AssertSound
) -> None:
    """It runs in the caller's task, on a connection that it holds."""
    await by_hand.execute("LOCK TABLE workflows IN ACCESS EXCLUSIVE MODE")
    for _ in range(4):
        checking = asyncio.create_task(provider.check())
        await _somebody_waits(by_hand)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
    await by_hand.rollback()
    await assert_sound()


async def test_callers_that_are_cancelled_while_the_pool_is_full(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection, assert_sound: AssertSound
) -> None:
    await by_hand.execute("LOCK TABLE workflows IN ACCESS EXCLUSIVE MODE")
    checks = [asyncio.create_task(provider.check()) for _ in range(10)]
    await _somebody_waits(by_hand)
    for check in reversed(checks):
        check.cancel()
    await asyncio.gather(*checks, return_exceptions=True)
    assert all(check.cancelled() for check in checks)
    await by_hand.rollback()
    await assert_sound()


# closing


async def test_close_waits_for_a_statement_that_waits(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection
) -> None:
    await provider.create_event(full_event(id="e1", is_processed=False))
    await by_hand.execute("UPDATE events SET event_data = event_data")
    marking = asyncio.create_task(provider.mark_event_processed("e1"))
    await _somebody_waits(by_hand)
    closing = asyncio.create_task(provider.close())
    for _ in range(50):
        await by_hand.execute("SELECT 1")
    with pytest.raises(ProviderClosedError, match="is closed"):
        await provider.get_event("e1")
    assert not closing.done()
    await by_hand.rollback()
    await closing
    await marking


async def test_an_idle_provider_does_nothing(provider: PostgresPersistenceProvider, assert_sound: AssertSound) -> None:
    """It has no task, and one timer, which closes unused connections."""
    await provider.create_new_workflow(sample_instance(id="w1"))
    await asyncio.gather(
        *(provider.next_definition_sequence("order") for _ in range(10)),
        *(provider.get_workflow_instance("w1") for _ in range(10)),
        *(provider.get_runnable_instances(TIME) for _ in range(10)),
    )
    await assert_sound()
    loop: Any = asyncio.get_running_loop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    [timer] = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert timer.when() - loop.time() > 60


async def test_a_connection_that_is_in_use_at_the_end(
    provider: PostgresPersistenceProvider, by_hand: psycopg.AsyncConnection, admin: Callable[..., Any], schema: str
) -> None:
    """It is closed when it is returned."""
    await by_hand.execute("LOCK TABLE wfe_sql_store IN ACCESS EXCLUSIVE MODE")
    using = asyncio.create_task(provider.ensure_store_exists())
    await _somebody_waits(by_hand)
    await provider.close()
    await by_hand.rollback()
    await using
    async with asyncio.timeout(10):
        while admin("count_connections", application=schema):
            await asyncio.sleep(0)


async def test_a_provider_that_is_dropped_without_close(
    postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection
) -> None:
    url = make_conninfo(postgres_url, application_name=schema)
    dropped = await PostgresPersistenceProvider(url, schema=schema).open()
    await dropped.create_new_workflow(sample_instance())
    with pytest.warns(ResourceWarning, match="PostgresPersistenceProvider .* was dropped without close"):
        del dropped
    await by_hand.set_autocommit(True)
    async with asyncio.timeout(20):
        while True:  # the server needs a moment to see that a connection is gone
            cursor = await by_hand.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (schema,)
            )
            if await cursor.fetchone() == (0,):
                break
