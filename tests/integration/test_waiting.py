"""What ends a wait for work besides the provider's own calls, and what waiting costs."""

import asyncio
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from wfe_sql import (
    Claim,
    ProviderClosedError,
    SqlitePersistenceProvider,
    StoreError,
    StoreUnavailableError,
    WorkflowInstance,
    poll_for_work,
)
from wfe_sql.engines import alarms
from wfe_sql.operations.waiting import Watch
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, sample_instance
from wfe_sql.testing.samples import TIME

SOON = 10.0
"""Seconds within which everything awaited happens, even on a slow machine."""
LATE: dict[str, Any] = {"poll_interval": timedelta(hours=1), "fallback_interval": timedelta(hours=1)}
EVENT = (
    "INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed) "
    "VALUES ('by hand', 'paid', 'k', '1', '2026-01-01T00:00:00+00:00', {})"
)

Connect = Callable[..., SqlPersistenceProvider]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(TIME)


async def begin(provider: SqlPersistenceProvider) -> "asyncio.Task[None]":
    """Return a waiting task, once the alarm is set and the store was checked again."""
    waiting = asyncio.create_task(provider.wait_for_work())
    for _ in range(20):
        await provider.get_events("nothing", "", TIME)
    await asyncio.sleep(0.05)  # the look after the alarm was set
    assert not waiting.done()
    return waiting


async def test_a_person_at_the_prompt_wakes_it(
    connect_store: Connect, clock: ManualClock, by_hand: Callable[[str], Any], backend: str
) -> None:
    async with connect_store(clock=clock, **LATE) as provider:
        waiting = await begin(provider)
        await asyncio.to_thread(by_hand, EVENT.format("0" if backend == "sqlite" else "false"))
        await asyncio.wait_for(waiting, SOON)


async def test_another_provider_wakes_it(connect_store: Connect, clock: ManualClock) -> None:
    async with connect_store(clock=clock, **LATE) as provider, connect_store(clock=clock) as other:
        for number in range(3):
            waiting = await begin(provider)
            await other.create_event(full_event(id=f"{number}", is_processed=False, event_time=TIME))
            await asyncio.wait_for(waiting, SOON)
            await other.mark_event_processed(f"{number}")


async def test_closing_ends_all_waits(connect_store: Connect, clock: ManualClock) -> None:
    async with connect_store(clock=clock, **LATE) as provider:
        waiting = [await begin(provider), asyncio.create_task(provider.wait_for_work())]
        await asyncio.sleep(0)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, ProviderClosedError)
    with pytest.raises(ProviderClosedError):
        await provider.wait_for_work()


async def test_a_provider_that_is_not_open_does_not_wait(connect_store: Connect) -> None:
    with pytest.raises(ProviderClosedError, match="is not open"):
        await connect_store().wait_for_work()


async def test_a_file_that_is_gone_ends_it(tmp_path: Path, clock: ManualClock) -> None:
    file = tmp_path / "store.db"
    async with SqlitePersistenceProvider(file, clock=clock, **LATE) as provider:
        waiting = await begin(provider)
        file.rename(tmp_path / "elsewhere.db")
        with pytest.raises(StoreUnavailableError, match="was deleted or moved"):
            await asyncio.wait_for(waiting, SOON)
        (tmp_path / "elsewhere.db").rename(file)
        waiting = await begin(provider)
        waiting.cancel()


async def test_waiting_looks_at_the_clock_now_and_then(tmp_path: Path, clock: ManualClock) -> None:
    """Nothing is late if the clock is set, or the machine was suspended."""
    async with SqlitePersistenceProvider(tmp_path / "store.db", clock=clock, **LATE) as provider:
        await provider.create_event(full_event(is_processed=False, event_time=TIME + timedelta(days=1)))
        waiting = await begin(provider)
        clock.advance(days=1)
        await asyncio.wait_for(waiting, SOON)


async def test_writes_while_nobody_waits_are_not_looked_at(
    connect_store: Connect, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count_looks(monkeypatch)
    async with connect_store(clock=clock, **LATE) as provider:
        waiting = await begin(provider)
        await provider.create_event(full_event(id="e", is_processed=False, event_time=TIME))
        await asyncio.wait_for(waiting, SOON)
        before = len(looks)
        for number in range(100):
            await provider.create_event(full_event(id=f"{number}", is_processed=True))
        assert len(looks) == before


async def test_writes_beside_one_who_waits_are_looked_at_together(
    connect_store: Connect, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count_looks(monkeypatch)
    async with connect_store(clock=clock, **LATE) as provider:
        waiting = await begin(provider)
        looks.clear()
        began = time.monotonic()
        for number in range(300):
            await provider.create_event(full_event(id=f"{number}", is_processed=True))
        took = len(looks) * median(looks)  # some take long because others have the processor
        assert took < (time.monotonic() - began) / 4  # a tenth, and what a busy machine adds to it
        waiting.cancel()


async def test_a_host_that_took_all_that_was_due_waits_at_once(
    connect_store: Connect, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, taken = asyncio.Event(), list[int]()
    claim, wait = SqlPersistenceProvider.claim_and_load_instances, SqlPersistenceProvider.wait_for_work

    async def noted_claim(provider: SqlPersistenceProvider, *args: Any, **options: Any) -> Any:
        claimed = await claim(provider, *args, **options)
        taken.append(len(claimed))
        return claimed

    async def noted_wait(provider: SqlPersistenceProvider, until: datetime | None = None) -> None:
        waits.set()
        await wait(provider, until)

    async def handle(claim: Claim, instance: WorkflowInstance) -> None:
        await asyncio.sleep(SOON)

    monkeypatch.setattr(SqlPersistenceProvider, "claim_and_load_instances", noted_claim)
    monkeypatch.setattr(SqlPersistenceProvider, "wait_for_work", noted_wait)
    async with connect_store(clock=clock, **LATE) as provider:
        for number in range(4):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=0))
        lease = timedelta(minutes=1)
        processing = asyncio.create_task(provider.process_instances("one", handle, lease=lease, max_tasks=10))
        await asyncio.wait_for(waits.wait(), SOON)
        assert taken == [4]
        processing.cancel()
        await asyncio.wait([processing])


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long each look takes."""
    looks: list[float] = []
    look = Watch.look

    async def noted(watch: Watch) -> Any:
        began = time.monotonic()
        try:
            return await look(watch)
        finally:
            looks.append(time.monotonic() - began)

    monkeypatch.setattr(Watch, "look", noted)
    return looks


async def test_a_provider_that_is_dropped_is_forgotten(tmp_path: Path) -> None:
    provider = await SqlitePersistenceProvider(tmp_path / "store.db").open()
    waiting = await begin(provider)
    waiting.cancel()
    await asyncio.wait({waiting})
    await asyncio.sleep(0.1)
    dropped = weakref.ref(provider)
    del waiting
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del provider
    assert dropped() is None
    assert alarms._RINGS == {}


async def test_what_no_reader_can_read_is_left_to_others(
    connect_store: Connect, clock: ManualClock, by_hand: Callable[[str], Any], backend: str
) -> None:
    """An event at a time that Python cannot represent is never due, and waiting continues."""
    async with connect_store(clock=clock, **LATE) as provider:
        never = "'x'" if backend == "sqlite" else "'infinity'"
        flag = "0" if backend == "sqlite" else "false"
        by_hand(EVENT.format(flag).replace("'2026-01-01T00:00:00+00:00'", never))
        waiting = await begin(provider)
        await provider.create_event(full_event(id="e", is_processed=False, event_time=TIME))
        await asyncio.wait_for(waiting, SOON)


@pytest.mark.parametrize("name", ["poll_interval", "fallback_interval"])
def test_intervals_are_above_zero(connect_store: Connect, name: str) -> None:
    options: dict[str, Any] = {name: timedelta(0)}
    with pytest.raises(StoreError, match=f"{name} must be above zero, not 0:00:00"):
        connect_store(**options)


async def test_polling_pauses(clock: ManualClock) -> None:
    async with asyncio.timeout(SOON):
        await poll_for_work(interval=timedelta(milliseconds=1))
        await poll_for_work(clock.now + timedelta(milliseconds=1), interval=timedelta(hours=1), clock=clock)
        await poll_for_work(clock.now - timedelta(hours=1), interval=timedelta(hours=1), clock=clock)


@pytest.mark.slow
async def test_closing_at_any_moment_ends_it(connect_store: Connect, clock: ManualClock) -> None:
    for turns in range(0, 60, 3):
        async with connect_store(clock=clock, **LATE) as provider:
            waiting = [asyncio.create_task(provider.wait_for_work()) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0 if turns < 40 else 0.0005)
            waiting[0].cancel()
            async with asyncio.timeout(SOON):
                await provider.close()
        await asyncio.wait(waiting)
