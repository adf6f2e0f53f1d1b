"""Waiting for work."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wfe_sql.arguments import epoch_ms
from wfe_sql.errors import SerializationError
from wfe_sql.models import ClaimKind, ScheduledCommand
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import full_event, sample_instance

HOUR = timedelta(hours=1)
SOON = 10.0
"""Seconds within which everything awaited happens, even on a slow machine."""

Store = Callable[[PersistenceProvider, datetime], Awaitable[Any]]


async def _store_workflow(provider: PersistenceProvider, at: datetime) -> str:
    return await provider.create_new_workflow(sample_instance(next_execution=epoch_ms(at)))


async def _store_event(provider: PersistenceProvider, at: datetime) -> str:
    return await provider.create_event(full_event(event_time=at, is_processed=False))


async def _store_command(provider: PersistenceProvider, at: datetime) -> None:
    await provider.schedule_command(ScheduledCommand.process_workflow(f"{at}", epoch_ms(at)))


every_kind = pytest.mark.parametrize("store", [_store_workflow, _store_event, _store_command])


async def _begin(provider: PersistenceProvider, *, until: datetime | None = None) -> "asyncio.Task[None]":
    """Return a waiting task, which has already looked for work."""
    waiting = asyncio.create_task(provider.wait_for_work(until))
    await _calls(provider)
    return waiting


async def _calls(provider: PersistenceProvider) -> None:
    """Make some calls, which together take longer than a look at the store."""
    for _ in range(10):
        await provider.get_runnable_events(datetime(2000, 1, 1, tzinfo=UTC))


async def _ends(*waiting: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(SOON):
        await asyncio.gather(*waiting)


async def _change_something(provider: PersistenceProvider) -> None:
    """Make the provider look again, now that the clock was advanced."""
    await provider.create_event(full_event(event_time=datetime(9999, 1, 1, tzinfo=UTC), is_processed=False))


@pytest.mark.asyncio
class TestWaiting:
    """`wait_for_work` of every backend."""

    async def test_the_backend_says_what_wakes(self, provider: PersistenceProvider, capabilities: Capabilities) -> None:
        assert capabilities.wakes_on in ("none", "process", "store")
        assert provider.wakes_on == capabilities.wakes_on

    async def test_it_returns_in_time_where_something_is_due(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        await _store_event(provider, clock.now)
        await _ends(asyncio.create_task(provider.wait_for_work()))

    async def test_until_is_the_latest(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await _ends(
            asyncio.create_task(provider.wait_for_work(clock.now)),
            asyncio.create_task(provider.wait_for_work(clock.now - HOUR)),
        )

    async def test_a_naive_time_is_refused(self, provider: PersistenceProvider) -> None:
        with pytest.raises(SerializationError, match="until"):
            await provider.wait_for_work(datetime(2026, 1, 1))

    async def test_it_can_be_cancelled(self, provider: PersistenceProvider) -> None:
        waiting = asyncio.create_task(provider.wait_for_work())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.asyncio
class TestWakingUp:
    """`wait_for_work` of a backend with notifications. Tests let a few calls pass to see that a wait goes on."""

    @pytest.fixture(autouse=True)
    def _wakes(self, capabilities: Capabilities) -> None:
        if capabilities.wakes_on == "none":
            pytest.skip("the backend polls")

    @every_kind
    async def test_it_returns_at_once_where_something_is_due(
        self, provider: PersistenceProvider, clock: ManualClock, store: Store
    ) -> None:
        await store(provider, clock.now)
        await _ends(asyncio.create_task(provider.wait_for_work()))

    @every_kind
    async def test_it_returns_when_something_is_stored_that_is_due(
        self, provider: PersistenceProvider, clock: ManualClock, store: Store
    ) -> None:
        await store(provider, clock.now + HOUR)
        waiting = await _begin(provider)
        assert not waiting.done()
        await store(provider, clock.now)
        await _ends(waiting)

    @every_kind
    async def test_it_returns_when_something_becomes_due(
        self, provider: PersistenceProvider, clock: ManualClock, store: Store
    ) -> None:
        await store(provider, clock.now + timedelta(milliseconds=1))
        waiting = await _begin(provider)
        assert not waiting.done()
        clock.advance(milliseconds=1)
        await _ends(waiting)

    @pytest.mark.parametrize("kind", ClaimKind)
    async def test_what_is_held_is_waited_for(
        self, provider: PersistenceProvider, clock: ManualClock, kind: ClaimKind
    ) -> None:
        if kind is ClaimKind.Workflow:
            await _store_workflow(provider, clock.now)
            (claim,) = await provider.claim_runnable_instances(clock.now, "host", lease=HOUR, limit=1)
        else:
            await _store_event(provider, clock.now)
            (claim,) = await provider.claim_runnable_events(clock.now, "host", lease=HOUR, limit=1)
        waiting = await _begin(provider)
        assert not waiting.done()
        await provider.release_claim(claim)
        await _ends(waiting)

    @every_kind
    async def test_the_end_of_a_lease_ends_it(
        self, provider: PersistenceProvider, clock: ManualClock, store: Store
    ) -> None:
        lease = timedelta(milliseconds=900)
        await store(provider, clock.now)
        held = asyncio.Event()

        async def handler(_: ScheduledCommand) -> None:
            held.set()
            await asyncio.Event().wait()

        await provider.claim_runnable_instances(clock.now, "host", lease=lease, limit=1)
        await provider.claim_runnable_events(clock.now, "host", lease=lease, limit=1)
        handling = asyncio.create_task(provider.process_commands(clock.now, handler, lease=timedelta(days=1)))
        if store is _store_command:
            await held.wait()
        waiting = await _begin(provider)
        assert not waiting.done()
        clock.advance(days=2)
        await _change_something(provider)
        await _ends(waiting)
        handling.cancel()
        await asyncio.wait({handling})

    async def test_what_is_done_or_suspended_is_not_waited_for(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        await provider.create_new_workflow(sample_instance(status="Suspended", next_execution=0))
        await provider.create_new_workflow(sample_instance(status="Complete", next_execution=0))
        await provider.create_event(full_event(event_time=clock.now, is_processed=True))
        waiting = await _begin(provider)
        assert not waiting.done()
        waiting.cancel()

    async def test_until_goes_by_the_clock(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        waiting = await _begin(provider, until=clock.now + HOUR)
        assert not waiting.done()
        clock.advance(hours=1)
        await _change_something(provider)
        await _ends(waiting)

    async def test_any_number_of_tasks_may_wait(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        waiting = [await _begin(provider), *(asyncio.create_task(provider.wait_for_work()) for _ in range(50))]
        late = asyncio.create_task(provider.wait_for_work(clock.now + HOUR))
        await _calls(provider)
        for task in waiting[:10]:
            task.cancel()
        await _calls(provider)
        assert [task.cancelled() for task in waiting] == [True] * 10 + [False] * 41
        assert not any(task.done() for task in waiting[10:])
        await _store_event(provider, clock.now)
        await _ends(*waiting[10:], late)

    async def test_a_host_that_leaves_what_is_due_does_not_turn_in_circles(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        await _store_event(provider, clock.now)
        loop, began, turns = asyncio.get_running_loop(), asyncio.get_running_loop().time(), 0
        while loop.time() < began + 0.3:
            await provider.wait_for_work()
            turns += 1
        assert (
            turns < 30
        )  # after ten, the pauses are longer than that together, unless something has changed once or twice

    async def test_what_changes_beside_what_is_left_is_told_at_once(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        await _store_event(provider, clock.now)
        async with asyncio.timeout(SOON):
            for number in range(20):  # twenty pauses that doubled would be longer by far
                await _store_command(provider, clock.now + timedelta(seconds=number))
                await provider.wait_for_work()

    async def test_what_becomes_due_beside_what_is_left_is_told_at_once(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        await _store_event(provider, clock.now)
        for number in range(1, 21):
            await _store_command(provider, clock.now + timedelta(milliseconds=number))
        async with asyncio.timeout(SOON):
            for _ in range(20):
                await provider.wait_for_work()
                waiting = await _begin(provider)
                clock.advance(milliseconds=1)
                await waiting
