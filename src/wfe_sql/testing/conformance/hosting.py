"""What `HostingRepository` promises: held claims, changes that are not lost, numbers, and claims loaded and handled."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from wfe_sql.errors import (
    ClaimLostError,
    SerializationError,
    WorkflowAlreadyExistsError,
    WorkflowNotFoundError,
)
from wfe_sql.models import Claim, WorkflowInstance, WorkflowStatus
from wfe_sql.repositories import InstanceHandler, PersistenceProvider
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_event, full_instance, full_subscription, sample_instance

LEASE = timedelta(seconds=30)

BRIEF = timedelta(milliseconds=90)
"""A lease that is renewed soon: renewals wait in real time, while leases end by the clock."""


async def _claimed(provider: PersistenceProvider, lease: timedelta = LEASE) -> Claim:
    await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0))
    return await _claim(provider, "one", lease)


async def _claim(provider: PersistenceProvider, worker_id: str, lease: timedelta = LEASE) -> Claim:
    async with asyncio.timeout(10):
        while not (claims := await provider.claim_runnable_instances(TIME, worker_id, lease=lease, limit=1)):
            pass  # a renewal of the last holder may be looking at the row
    (claim,) = claims
    return claim


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nothing signals a renewal
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
class TestHold:
    """`hold` keeps a claim while its block runs."""

    async def test_it_is_renewed_and_given_back(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        claim = await _claimed(provider, BRIEF)
        async with provider.hold(claim, BRIEF) as held:
            assert held.claim == claim
            clock.advance(milliseconds=10)
            await _until(lambda: held.claim == replace(claim, expires_at=clock() + BRIEF))
            clock.advance(milliseconds=85)
            assert not await provider.claim_runnable_instances(TIME, "two", lease=LEASE, limit=1)
        assert (await _claim(provider, "two")).id == claim.id

    async def test_it_holds_events(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await provider.create_event(full_event(event_time=TIME, is_processed=False))
        (claim,) = await provider.claim_runnable_events(TIME, "one", lease=BRIEF, limit=1)
        async with provider.hold(claim, BRIEF) as held:
            clock.advance(milliseconds=10)
            await _until(lambda: held.claim != claim)
        assert await provider.claim_runnable_events(TIME, "two", lease=LEASE, limit=1)

    async def test_a_claim_that_is_nearly_over_is_renewed_first(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        claim = await _claimed(provider)
        clock.advance(seconds=25)
        async with provider.hold(claim, LEASE) as held:
            assert held.claim.expires_at == clock() + LEASE

    async def test_no_block_begins_with_a_claim_that_another_took(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        claim = await _claimed(provider)
        clock.advance(seconds=31)
        theirs = await _claim(provider, "two")
        with pytest.raises(ClaimLostError, match="claimed"):
            async with provider.hold(claim, LEASE):
                pytest.fail("the block began")
        await provider.renew_claim(theirs, LEASE)

    async def test_a_claim_that_is_lost_ends_the_block(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        claim = await _claimed(provider, BRIEF)
        seen: list[Any] = []

        async def work() -> None:
            async with provider.hold(claim, BRIEF):
                clock.advance(seconds=1)
                seen.append(await _claim(provider, "two"))
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError as error:
                    seen.append(error)
                    raise

        with pytest.raises(ClaimLostError, match="claimed"):
            await work()
        theirs, cancelled = seen
        assert isinstance(cancelled, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await provider.renew_claim(theirs, LEASE)  # it was not released

    async def test_a_block_that_goes_on_regardless_hears_of_it_too(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        claim = await _claimed(provider, BRIEF)

        async def work() -> None:
            async with provider.hold(claim, BRIEF):
                clock.advance(seconds=1)
                await _claim(provider, "two")
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(30)

        with pytest.raises(ClaimLostError, match="claimed"):
            await work()

    async def test_whoever_cancels_the_caller_sees_that(self, provider: PersistenceProvider) -> None:
        claim, begun = await _claimed(provider), asyncio.Event()

        async def work() -> None:
            async with provider.hold(claim, LEASE):
                begun.set()
                await asyncio.sleep(30)

        working = asyncio.create_task(work())
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await _claim(provider, "two")

    async def test_a_timeout_around_it_and_in_it(self, provider: PersistenceProvider) -> None:
        claim = await _claimed(provider)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), provider.hold(claim, LEASE):
                await asyncio.sleep(30)
        async with provider.hold(await _claim(provider, "two"), LEASE):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(30)

    async def test_what_the_block_raises(self, provider: PersistenceProvider) -> None:
        claim = await _claimed(provider)
        with pytest.raises(ValueError, match="mine"):
            async with provider.hold(claim, LEASE):
                raise ValueError("mine")
        assert await _claim(provider, "two")

    async def test_what_a_unit_released_is_neither_renewed_nor_given_back(
        self, provider: PersistenceProvider, clock: ManualClock
    ) -> None:
        claim = await _claimed(provider, BRIEF)
        async with provider.hold(claim, BRIEF) as held:
            async with provider.unit(held.claim, release=True) as unit:
                unit.persist_workflow(await provider.get_workflow_instance("claimed"))
            theirs = await _claim(provider, "two")
        await provider.renew_claim(theirs, LEASE)

    async def test_it_is_given_back_where_the_unit_failed(self, provider: PersistenceProvider) -> None:
        claim = await _claimed(provider)
        with pytest.raises(WorkflowNotFoundError):
            async with provider.hold(claim, LEASE), provider.unit(claim, release=True) as unit:
                unit.persist_workflow(sample_instance(id="unknown"))
        assert await _claim(provider, "two")

    @pytest.mark.parametrize("lease", [timedelta(0), timedelta(seconds=-1), timedelta.max, 30])
    async def test_bad_leases(self, provider: PersistenceProvider, lease: Any) -> None:
        claim = await _claimed(provider)
        with pytest.raises(SerializationError, match="lease"):
            async with provider.hold(claim, lease):
                pytest.fail("the block began")
        await provider.renew_claim(claim, LEASE)

    async def test_bad_claims(self, provider: PersistenceProvider) -> None:
        with pytest.raises(SerializationError, match="Claim"):
            async with provider.hold(cast(Claim, "claimed"), LEASE):
                pytest.fail("the block began")


@pytest.mark.asyncio
class TestChange:
    """`change` applies to the stored workflow, and no change is lost."""

    async def test_what_is_stored_is_changed_and_returned(self, provider: PersistenceProvider) -> None:
        stored = full_instance()
        await provider.create_new_workflow(stored)

        def change(instance: WorkflowInstance) -> None:
            instance.data = {"changed": True}
            del instance.execution_pointers[0]

        changed = await provider.change(stored.id, change)
        assert changed.data == {"changed": True}
        assert await provider.get_workflow_instance(stored.id) == changed
        changed.data = "again"
        await provider.persist_workflow(changed)

    async def test_all_of_many_changes_at_once_are_there(self, provider: PersistenceProvider) -> None:
        stored = sample_instance(data=[])
        await provider.create_new_workflow(stored)

        def append(number: int) -> Callable[[WorkflowInstance], None]:
            return lambda instance: instance.data.append(number)

        await asyncio.gather(*(provider.change(stored.id, append(number)) for number in range(8)))
        assert sorted((await provider.get_workflow_instance(stored.id)).data) == list(range(8))

    async def test_subscriptions_are_stored_with_it(self, provider: PersistenceProvider) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        subscription = full_subscription(workflow_id=stored.id)
        await provider.change(stored.id, lambda _: [subscription])
        assert await provider.get_subscription(subscription.id) == subscription

    async def test_under_a_claim(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        claim = await _claimed(provider)

        def change(instance: WorkflowInstance) -> None:
            instance.data = "changed"

        assert (await provider.change("claimed", change, claim)).data == "changed"
        clock.advance(seconds=31)
        await _claim(provider, "two")
        with pytest.raises(ClaimLostError, match="claimed"):
            await provider.change("claimed", lambda instance: instance.execution_pointers.clear(), claim=claim)
        assert (await provider.get_workflow_instance("claimed")).execution_pointers

    async def test_what_the_function_raises(self, provider: PersistenceProvider) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)

        def fail(instance: WorkflowInstance) -> None:
            instance.data = "lost"
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await provider.change(stored.id, fail)
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_unknown_workflows(self, provider: PersistenceProvider) -> None:
        with pytest.raises(WorkflowNotFoundError, match="unknown"):
            await provider.change("unknown", lambda _: None)

    async def test_bad_functions(self, provider: PersistenceProvider) -> None:
        stored, other = sample_instance(), sample_instance(id="other")
        for instance in (stored, other):
            await provider.create_new_workflow(instance)

        async def change_slowly(instance: WorkflowInstance) -> None:
            instance.data = "slow"

        def become_another(instance: WorkflowInstance) -> None:
            instance.id = "other"

        def store_what_cannot_be(instance: WorkflowInstance) -> None:
            instance.data = float("nan")

        bad: list[Any] = [
            *("text", None, change_slowly, become_another, store_what_cannot_be, lambda _: 1, lambda _: "text"),
            lambda _: [1],
        ]
        for function in bad:
            with pytest.raises(SerializationError):
                await provider.change(stored.id, function)
        for instance in (stored, other):
            assert await provider.get_workflow_instance(instance.id) == instance


@pytest.mark.asyncio
class TestNumberedWorkflows:
    """Workflows are named by their definition and a number."""

    async def test_names_and_numbers(self, provider: PersistenceProvider) -> None:
        first, second = (full_instance(workflow_definition_id="order", name="") for _ in range(2))
        assert await provider.create_numbered_workflow(first) == first.name == "order-1"
        assert await provider.next_definition_sequence("order") == 2
        assert await provider.create_numbered_workflow(second) == "order-3"
        assert await provider.get_workflow_instance_by_name("order-3") == second
        second.data = "changed"
        await provider.persist_workflow(second)
        assert await provider.get_workflow_instance(second.id) == second

    async def test_many_at_once(self, provider: PersistenceProvider) -> None:
        instances = [sample_instance(workflow_definition_id="ab"[number % 2]) for number in range(40)]
        names = await asyncio.gather(*map(provider.create_numbered_workflow, instances))
        assert sorted(names) == sorted(f"{definition}-{number}" for definition in "ab" for number in range(1, 21))
        assert await provider.get_workflow_instances([instance.id for instance in instances]) == instances

    async def test_names_that_are_taken_are_passed_over(self, provider: PersistenceProvider) -> None:
        for number in (2, 3, 5):
            await provider.create_new_workflow(sample_instance(name=f"order-{number}"))
        instances = [sample_instance() for _ in range(4)]
        names = await asyncio.gather(*map(provider.create_numbered_workflow, instances))
        assert sorted(names) == ["order-1", "order-4", "order-6", "order-7"]
        assert await provider.next_definition_sequence("order") == 8

    async def test_an_id_in_use(self, provider: PersistenceProvider) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        other = sample_instance(id=stored.id, name="before", data="other")
        with pytest.raises(WorkflowAlreadyExistsError, match=stored.id):
            await provider.create_numbered_workflow(other)
        assert other.name == "before"
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_bad_input(self, provider: PersistenceProvider) -> None:
        for bad in (sample_instance(data=float("nan")), sample_instance(workflow_definition_id=""), "text"):
            with pytest.raises(SerializationError):
                await provider.create_numbered_workflow(cast(WorkflowInstance, bad))


@pytest.mark.asyncio
class TestLoadedClaims:
    """Claims come with their workflows."""

    async def test_what_is_due_comes_with_its_claim(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        due = {"status": WorkflowStatus.Runnable, "name": ""}
        instances = [full_instance(id=f"w{number}", next_execution=9 - number, **due) for number in range(4)]
        for instance in (*instances, sample_instance(id="idle", next_execution=None)):
            await provider.create_new_workflow(instance)
            instance.name = instance.id
        loaded = await provider.claim_and_load_instances(TIME, "one", lease=LEASE, limit=3)
        assert [instance for _, instance in loaded] == [instances[number] for number in (3, 2, 1)]
        for claim, instance in loaded:
            assert (claim.id, claim.worker_id, claim.expires_at) == (instance.id, "one", clock() + LEASE)
            instance.data, instance.next_execution = "changed", None
            await provider.persist_workflow(instance, claim=claim)
            assert await provider.get_workflow_instance(instance.id) == instance
        (rest,) = await provider.claim_and_load_instances(TIME, "two", lease=LEASE, limit=3)
        assert rest[1] == instances[0]
        assert await provider.claim_and_load_instances(TIME, "two", lease=LEASE, limit=3) == []

    async def test_nobody_gets_what_another_has(self, provider: PersistenceProvider) -> None:
        for number in range(20):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=0))
        hosts = [provider.claim_and_load_instances(TIME, f"h{n}", lease=LEASE, limit=3) for n in range(8)]
        ids = [instance.id for loaded in await asyncio.gather(*hosts) for _, instance in loaded]
        assert sorted(ids) == sorted(f"w{number}" for number in range(20))

    async def test_a_workflow_without_pointers(self, provider: PersistenceProvider) -> None:
        stored = sample_instance(execution_pointers=[], next_execution=0)
        await provider.create_new_workflow(stored)
        ((_, loaded),) = await provider.claim_and_load_instances(TIME, "one", lease=LEASE, limit=1)
        assert loaded == stored

    @pytest.mark.parametrize(
        "bad",
        [
            {"as_at": datetime(2026, 1, 1)},
            {"worker_id": ""},
            {"lease": timedelta(0)},
            {"limit": 0},
        ],
    )
    async def test_bad_input(self, provider: PersistenceProvider, bad: dict[str, Any]) -> None:
        good: dict[str, Any] = {"as_at": TIME, "worker_id": "one", "lease": LEASE, "limit": 1}
        with pytest.raises(SerializationError, match=next(iter(bad))):
            await provider.claim_and_load_instances(**good | bad)


@asynccontextmanager
async def _processing(
    provider: PersistenceProvider, handler: InstanceHandler, *, lease: timedelta = LEASE, max_tasks: int = 10
) -> AsyncIterator[None]:
    processing = asyncio.create_task(provider.process_instances("one", handler, lease=lease, max_tasks=max_tasks))
    try:
        yield
    finally:
        processing.cancel()
        with suppress(asyncio.CancelledError):
            await processing


@pytest.mark.asyncio
class TestProcess:
    """A handler is called with what is due."""

    async def test_each_that_is_due_is_handled_under_its_claim(self, provider: PersistenceProvider) -> None:
        done: list[str] = []

        async def finish(claim: Claim, instance: WorkflowInstance) -> None:
            assert (claim.id, claim.worker_id) == (instance.id, "one")
            instance.next_execution = None
            async with provider.unit(claim, release=True) as unit:
                unit.persist_workflow(instance)
            done.append(instance.id)

        for number in range(5):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=0))
        async with _processing(provider, finish):
            await _until(lambda: len(done) == 5)
            await provider.create_new_workflow(sample_instance(id="later", next_execution=0))
            await _until(lambda: len(done) == 6)
        assert sorted(done) == ["later", "w0", "w1", "w2", "w3", "w4"]
        assert await provider.get_runnable_instances(TIME) == []

    async def test_no_more_are_handled_at_a_time_than_may_be(self, provider: PersistenceProvider) -> None:
        at_once, most, done = 0, 0, list[str]()

        async def finish(claim: Claim, instance: WorkflowInstance) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            instance.next_execution = None
            await provider.persist_workflow(instance, claim=claim)
            at_once -= 1
            done.append(instance.id)

        for number in range(7):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=0))
        async with _processing(provider, finish, max_tasks=2):
            await _until(lambda: len(done) == 7)
        assert most == 2
        assert len(set(done)) == 7
        assert await provider.get_runnable_instances(TIME) == []

    async def test_one_that_fails_stays_held_for_a_while_and_stops_no_others(
        self, provider: PersistenceProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        done: list[str] = []

        async def fail_once(claim: Claim, instance: WorkflowInstance) -> None:
            done.append(instance.id)
            if done == ["bad"]:
                raise ValueError("mine")
            instance.next_execution = None
            await provider.persist_workflow(instance, claim=claim)

        await provider.create_new_workflow(sample_instance(id="bad", next_execution=0))
        async with _processing(provider, fail_once):
            await _until(lambda: "the handler of workflow 'bad' failed" in caplog.text)
            await provider.create_new_workflow(sample_instance(id="good", next_execution=0))
            await _until(lambda: len(done) == 3)
        assert done == ["bad", "good", "bad"]

    async def test_when_it_ends_its_handlers_have_ended_and_their_claims_are_given_back(
        self, provider: PersistenceProvider
    ) -> None:
        seen: list[str] = []

        async def hang(claim: Claim, instance: WorkflowInstance) -> None:
            seen.append("begun")
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0)
                seen.append("ended")

        await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0))
        async with _processing(provider, hang):
            await _until(lambda: bool(seen))
        assert seen == ["begun", "ended"]
        assert (await _claim(provider, "two")).id == "claimed"

    async def test_a_lost_claim_cancels_its_handler_alone(
        self, provider: PersistenceProvider, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        theirs: list[Claim] = []
        done: list[str] = []

        async def lose(claim: Claim, instance: WorkflowInstance) -> None:
            if instance.id == "claimed":
                while not theirs:  # a renewal may come between
                    clock.advance(seconds=1)
                    theirs.extend(await provider.claim_runnable_instances(TIME, "two", lease=LEASE, limit=1))
                await asyncio.sleep(30)
            done.append(instance.id)
            instance.next_execution = None
            await provider.persist_workflow(instance, claim=claim)

        await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0))
        async with _processing(provider, lose, lease=BRIEF, max_tasks=1):
            await _until(lambda: "workflow 'claimed' was lost" in caplog.text)
            await provider.create_new_workflow(sample_instance(id="other", next_execution=0))
            await _until(lambda: bool(done))
        assert done == ["other"]
        await provider.renew_claim(theirs[0], LEASE)

    @pytest.mark.parametrize("bad", [{"worker_id": ""}, {"handler": None}, {"lease": timedelta(0)}, {"max_tasks": 0}])
    async def test_bad_input(self, provider: PersistenceProvider, bad: dict[str, Any]) -> None:
        async def handle(claim: Claim, instance: WorkflowInstance) -> None:
            pytest.fail("nothing is due")

        good: dict[str, Any] = {"worker_id": "one", "handler": handle, "lease": LEASE, "max_tasks": 1}
        with pytest.raises(SerializationError, match=next(iter(bad))):
            await provider.process_instances(**good | bad)
