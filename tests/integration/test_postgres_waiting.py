"""Waiting for work on PostgreSQL: who is notified, at what cost, and what happens without notifications."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from poolers import pooler
from servers import OwnServer
from wfe_sql import Event, PostgresPersistenceProvider, ScheduledCommand, StoreUnavailableError, UnitStats, connect
from wfe_sql.testing import ManualClock, full_event, sample_instance
from wfe_sql.testing.samples import TIME

SOON = 10.0
"""Seconds within which everything awaited happens, even on a slow machine."""
HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=100)
NOW = int(TIME.timestamp() * 1000)

Admin = Callable[..., Any]


def due() -> Event:
    return full_event(is_processed=False, event_time=TIME)


async def begin(provider: PostgresPersistenceProvider, asks: Callable[[], int], *, asked: int = 1) -> Any:
    """Return a waiting task, once the server knows of it."""
    waiting = asyncio.create_task(provider.wait_for_work())
    async with asyncio.timeout(SOON):
        while asks() < asked:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the look after it asked
    assert not waiting.done()
    return waiting


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(TIME)


@pytest.fixture
def asks(postgres_url: str) -> Any:
    """A function that counts the requests to be woken."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def count() -> int:
            sql = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                "AND classid::int8::bit(32)::int = hashtext('wfe_sql waits')"
            )
            ((number,),) = connection.execute(sql).fetchall()
            return int(number)

        yield count


@pytest.fixture
def heard(postgres_url: str) -> Any:
    """A function that returns the notifications since its last call."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("LISTEN wfe_sql")
        yield lambda: [notification.payload for notification in connection.notifies(timeout=0.1)]


async def write_much(provider: PostgresPersistenceProvider) -> None:
    for number in range(5):
        await provider.create_new_workflow(sample_instance(next_execution=NOW))
        await provider.create_event(due())
        await provider.schedule_command(ScheduledCommand.process_event(f"{number}", NOW))


async def test_nobody_is_notified_where_nobody_asked(
    postgres_url: str, schema: str, clock: ManualClock, heard: Callable[[], list[str]]
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock) as provider:
        await write_much(provider)
        assert heard() == []


async def test_what_makes_something_due_notifies_and_nothing_else(
    postgres_url: str, schema: str, clock: ManualClock, heard: Callable[[], list[str]], admin: Admin
) -> None:
    instance, event = sample_instance(next_execution=NOW), due()

    async def processed(_: ScheduledCommand) -> None: ...

    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock) as provider:
        with psycopg.connect(postgres_url, autocommit=True) as asking:
            asking.execute("SELECT pg_advisory_lock_shared(hashtext('wfe_sql waits'), hashtext(%s))", [schema])
            await provider.create_new_workflow(instance)
            await provider.create_event(event)
            await provider.schedule_command(ScheduledCommand.process_event(event.id, NOW))
            assert heard() == [schema] * 3
            (workflow_claim,) = await provider.claim_runnable_instances(TIME, "host", lease=HOUR, limit=9)
            (event_claim,) = await provider.claim_runnable_events(TIME, "host", lease=HOUR, limit=9)
            workflow_claim = await provider.renew_claim(workflow_claim, HOUR)
            assert await provider.claim_runnable_events(TIME, "other", lease=HOUR, limit=9) == []
            await provider.process_commands(TIME, processed)
            await provider.persist_workflow(instance, claim=workflow_claim)
            await provider.persist_errors([])
            assert heard() == []
            await provider.release_claim(workflow_claim)
            await provider.release_claim(event_claim)
            assert heard() == [schema] * 2
            instance.next_execution = None
            await provider.persist_workflow(instance)
            await provider.mark_event_processed(event.id)
            assert heard() == []
            await provider.mark_event_unprocessed(event.id)
            assert heard() == [schema]


async def test_other_stores_are_left_alone(
    postgres_url: str, new_schema: Callable[[], str], clock: ManualClock, asks: Callable[[], int]
) -> None:
    async with (
        PostgresPersistenceProvider(postgres_url, schema=new_schema(), clock=clock, poll_interval=HOUR) as one,
        PostgresPersistenceProvider(postgres_url, schema=new_schema(), clock=clock) as other,
    ):
        waiting = await begin(one, asks)
        await write_much(other)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        waiting.cancel()


async def test_a_transaction_that_began_to_write_before_anybody_asked(
    postgres_url: str, schema: str, clock: ManualClock, asks: Callable[[], int], admin: Admin
) -> None:
    """It did not notify, and commits after the look at the store."""
    options: dict[str, Any] = {"clock": clock, "fallback_interval": HOUR, "poll_interval": SHORT}
    async with PostgresPersistenceProvider(postgres_url, schema=schema, **options) as provider:
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as writer:
            writer.execute(
                "INSERT INTO events (id, event_name, event_key, event_time, is_processed) "
                "VALUES ('late', 'paid', 'k', '2026-01-01', false)"
            )
            waiting = await begin(provider, asks)
            writer.commit()
            await asyncio.wait_for(waiting, SOON)


@pytest.mark.slow
async def test_an_idle_wait_commits_nothing(
    postgres_url: str, schema: str, clock: ManualClock, asks: Callable[[], int], own_server: OwnServer
) -> None:
    async with PostgresPersistenceProvider(own_server.url, schema=schema, clock=clock) as provider:
        waiting = asyncio.create_task(provider.wait_for_work())
        await asyncio.sleep(0.5)

        def commits() -> int:
            own_server.run("SELECT pg_stat_force_next_flush()")
            return int(
                own_server.run("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")[0][0]
            )

        first, second = commits(), commits()
        await asyncio.sleep(1.5)
        assert commits() - second == second - first  # the notifications of counting itself
        waiting.cancel()


@pytest.mark.parametrize("is_remote", [False, True])
async def test_a_listener_that_is_cut_off_is_replaced(
    postgres_url: str,
    relay: Any,
    schema: str,
    clock: ManualClock,
    asks: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
    is_remote: bool,
) -> None:
    url = relay.url if is_remote else postgres_url
    options: dict[str, Any] = {"clock": clock, "fallback_interval": HOUR, "poll_interval": SHORT}
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
        "AND classid::int8::bit(32)::int = hashtext('wfe_sql waits') AND objid::int8::bit(32)::int = hashtext(%s)"
    )
    async with PostgresPersistenceProvider(url, schema=schema, **options) as provider:
        waiting = await begin(provider, asks)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            assert other.execute(kill, [schema]).fetchall() == [(True,)]
            other.execute(f"SET search_path TO {schema}")
            other.execute(
                "INSERT INTO events (id, event_name, event_key, event_time, is_processed) "
                "VALUES ('e', 'paid', 'k', '2026-01-01', false)"
            )
            await asyncio.wait_for(waiting, SOON)
            assert "until there is a connection to listen on again" in caplog.text
            await provider.mark_event_processed("e")
            caplog.clear()
            waiting = await begin(provider, asks)
            other.execute("UPDATE events SET is_processed = false")
            await asyncio.wait_for(waiting, SOON)
            assert caplog.text == ""


async def test_a_notification_ends_a_wait_without_another_look(
    postgres_url: str, schema: str, clock: ManualClock, asks: Callable[[], int]
) -> None:
    looks: list[UnitStats] = []
    options: dict[str, Any] = {
        "clock": clock,
        "fallback_interval": HOUR,
        "poll_interval": HOUR,
        "on_unit": looks.append,
    }
    async with (
        PostgresPersistenceProvider(postgres_url, schema=schema, **options) as provider,
        PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock) as other,
    ):
        for number in range(10):  # while other transactions run, it may look in between
            waiting = await begin(provider, asks)
            before = len(looks)
            await other.create_event(full_event(id=f"{number}", is_processed=False, event_time=TIME))
            await asyncio.wait_for(waiting, SOON)
            if len(looks) == before:
                return
            await other.mark_event_processed(f"{number}")
        pytest.fail("each wait ended with another look")


@pytest.mark.slow
async def test_a_notification_that_is_lost_costs_the_fallback_interval(
    postgres_url: str, schema: str, clock: ManualClock, asks: Callable[[], int]
) -> None:
    options: dict[str, Any] = {"clock": clock, "fallback_interval": timedelta(seconds=1), "poll_interval": HOUR}
    async with PostgresPersistenceProvider(postgres_url, schema=schema, **options) as provider:
        waiting = await begin(provider, asks)
        began = time.monotonic()
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as other:
            other.execute("ALTER TABLE events DISABLE TRIGGER wake_for_events")
            other.execute(
                "INSERT INTO events (id, event_name, event_key, event_time, is_processed) "
                "VALUES ('e', 'paid', 'k', '2026-01-01', false)"
            )
        await asyncio.wait_for(waiting, SOON)
        assert time.monotonic() - began < 3


@pytest.mark.slow
async def test_a_server_that_restarts(own_server: OwnServer, schema: str, clock: ManualClock) -> None:
    """A wait raises, as every call does, unless the provider has `wait_for_server`; then it continues."""
    options: dict[str, Any] = {"clock": clock, "fallback_interval": HOUR, "poll_interval": SHORT}
    async with (
        PostgresPersistenceProvider(own_server.url, schema=schema, **options) as hasty,
        PostgresPersistenceProvider(own_server.url, schema=schema, wait_for_server=HOUR, **options) as patient,
    ):
        waiting = [asyncio.create_task(provider.wait_for_work()) for provider in (hasty, patient)]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_server.stop)
        with pytest.raises(StoreUnavailableError):
            await asyncio.wait_for(waiting[0], SOON)
        await asyncio.to_thread(own_server.start)
        async with connect(own_server.url, schema=schema) as other:
            await other.create_event(due())
        await asyncio.wait_for(waiting[1], SOON)
        await asyncio.wait_for(hasty.wait_for_work(), SOON)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("transaction", "a pooler lends its connections for single transactions"),
        pytest.param("session", "", marks=pytest.mark.slow),
    ],
)
async def test_behind_a_pooler(
    postgres_url: str, schema: str, clock: ManualClock, mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pooler(postgres_url, mode) as url:
        interval = SHORT if reason else HOUR
        async with PostgresPersistenceProvider(url, schema=schema, clock=clock, poll_interval=interval) as provider:
            for number in range(2):
                waiting = asyncio.create_task(provider.wait_for_work())
                await asyncio.sleep(0.5)
                assert not waiting.done()
                with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as other:
                    other.execute(
                        "INSERT INTO events (id, event_name, event_key, event_time, is_processed) "
                        "VALUES (%s, 'paid', 'k', '2026-01-01', false)",
                        [f"{number}"],
                    )
                await asyncio.wait_for(waiting, SOON)
                await provider.mark_event_processed(f"{number}")
            warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert len(warnings) == bool(reason)
            assert reason in "".join(warnings)


async def test_a_store_without_the_triggers_is_polled(
    postgres_url: str, schema: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock, poll_interval=SHORT) as provider:
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as other:
            other.execute("DROP TRIGGER wake_for_events ON events")
        waiting = asyncio.create_task(provider.wait_for_work())
        await asyncio.sleep(0.3)
        assert "the store lacks triggers; as its owner, run wfe-sql init" in caplog.text
        async with PostgresPersistenceProvider(postgres_url, schema=schema) as mending:
            await mending.create_event(due())
        await asyncio.wait_for(waiting, SOON)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock, poll_interval=HOUR) as provider:
        caplog.clear()
        await provider.wait_for_work()
        assert caplog.text == ""
