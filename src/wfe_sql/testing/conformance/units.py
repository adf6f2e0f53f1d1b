"""What units of work promise: all or nothing, in one commit, with one claim."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from wfe_sql.errors import (
    ClaimLostError,
    EventAlreadyExistsError,
    EventNotFoundError,
    QueryFileError,
    SerializationError,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WfeError,
    WorkflowAlreadyExistsError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from wfe_sql.models import (
    Claim,
    ClaimKind,
    ExecutionError,
    ExecutionPointer,
    ScheduledCommand,
    WorkflowInstance,
    new_id,
)
from wfe_sql.repositories import PersistenceProvider, UnitOfWork
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_event, full_subscription, sample_instance

LEASE = timedelta(seconds=30)


async def _store(unit: UnitOfWork, *adds: "Add") -> None:
    async with unit:
        for add in adds:
            add(unit)


Add = Callable[[UnitOfWork], object]


async def _claimed(provider: PersistenceProvider, kind: ClaimKind = ClaimKind.Workflow) -> Claim:
    """Store a workflow and an event, both of id "claimed", and claim one of them."""
    await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0))
    await provider.create_event(full_event(id="claimed", event_time=TIME, is_processed=False))
    take = provider.claim_runnable_instances if kind is ClaimKind.Workflow else provider.claim_runnable_events
    (claim,) = await take(TIME, "one", lease=LEASE, limit=10)
    return claim


async def _lose(provider: PersistenceProvider, clock: ManualClock, claim: Claim) -> None:
    clock.advance(seconds=60)
    take = provider.claim_runnable_instances if claim.kind == ClaimKind.Workflow else provider.claim_runnable_events
    assert await take(TIME, "two", lease=LEASE, limit=10)


def _error(message: str) -> ExecutionError:
    return ExecutionError(error_time=TIME, workflow_id="claimed", execution_pointer_id="p", message=message)


def _free(**fields: Any) -> Any:
    return full_subscription(external_token=None, external_worker_id=None, external_token_expiry=None, **fields)


@pytest.mark.asyncio
class TestUnits:
    """Store several things at once."""

    async def test_everything_is_stored(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        old, new = sample_instance(id="old"), sample_instance(id="new")
        waiting, ended, held = (_free(id=id_, workflow_id="old") for id_ in ("waiting", "ended", "held"))
        command = ScheduledCommand.process_workflow("new", 5)
        await provider.create_new_workflow(old)
        await provider.create_event_subscription(ended)
        await provider.create_event_subscription(held)
        await provider.create_event(full_event(id="handled", is_processed=False))
        await provider.create_event(full_event(id="again", is_processed=True))
        old.data = {"step": 2}
        old.execution_pointers.append(ExecutionPointer(step_id=1))
        async with provider.unit() as unit:
            unit.schedule_command(command)
            unit.set_subscription_token("held", "token", "worker", clock() + LEASE)
            unit.persist_errors([_error("first"), _error("second")])
            unit.mark_event_processed("handled")
            unit.mark_event_unprocessed("again")
            unit.create_event(full_event(id="made", is_processed=True))
            unit.terminate_subscription("ended")
            unit.create_new_workflow(new)
            unit.persist_workflow_with_subscriptions(old, [waiting])
        assert await provider.get_workflow_instances(["old", "new"]) == [old, new]
        assert [found.id for found in await provider.get_subscriptions("paid", "k1", TIME)] == ["held", "waiting"]
        assert await provider.get_runnable_events(TIME) == ["again"]
        assert (await provider.get_event("made")).is_processed
        assert [error.message for error in await provider.get_execution_errors()] == ["first", "second"]
        assert not await provider.set_subscription_token("held", "another", "worker", clock() + LEASE)
        handled: list[ScheduledCommand] = []

        async def handle(command: ScheduledCommand) -> None:
            handled.append(command)

        await provider.process_commands(TIME, handle)
        assert handled == [command]
        async with provider.unit() as unit:
            unit.clear_subscription_token("held", "token")
            unit.create_event_subscription(_free(id="more", workflow_id="old"))
        assert await provider.set_subscription_token("held", "another", "worker", clock() + LEASE)
        assert (await provider.get_subscription("more")).workflow_id == "old"

    async def test_nothing_is_stored_before_the_block_ends(self, provider: PersistenceProvider) -> None:
        async with provider.unit() as unit:
            unit.create_event(full_event(id="e"))
            with pytest.raises(EventNotFoundError):
                await provider.get_event("e")
        assert await provider.get_event("e")

    async def test_nothing_is_stored_where_the_block_raises(self, provider: PersistenceProvider) -> None:
        instance = sample_instance(id="w")

        def fail(unit: UnitOfWork) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            await _store(provider.unit(), lambda unit: unit.create_new_workflow(instance), fail)
        await provider.create_new_workflow(instance)

    async def test_what_is_stored_is_what_it_was_when_it_was_added(self, provider: PersistenceProvider) -> None:
        instance = sample_instance(id="w", data=1)
        async with provider.unit() as unit:
            unit.create_new_workflow(instance)
            instance.data = 2
        assert (await provider.get_workflow_instance("w")).data == 1
        await provider.persist_workflow(instance)
        async with provider.unit() as unit:
            instance.execution_pointers[0].retry_count = 1
            unit.persist_workflow(instance)
            instance.execution_pointers[0].retry_count = 2
        stored = await provider.get_workflow_instance("w")
        assert (stored.data, stored.execution_pointers[0].retry_count) == (2, 1)

    async def test_instances_remember_that_they_were_stored(self, provider: PersistenceProvider) -> None:
        instance = sample_instance(id="w")
        async with provider.unit() as unit:
            unit.create_new_workflow(instance)
        for number in range(3):
            instance.data = number
            async with provider.unit() as unit:
                unit.persist_workflow(instance)
                unit.create_event(full_event())
            instance.data = -number
            await provider.persist_workflow(instance)
        assert (await provider.get_workflow_instance("w")).data == -2

    async def test_instances_do_not_remember_what_was_not_stored(self, provider: PersistenceProvider) -> None:
        await provider.create_event(full_event(id="taken"))
        instance, new = sample_instance(id="w"), sample_instance(id="new")
        await provider.create_new_workflow(instance)
        instance.execution_pointers.append(ExecutionPointer(step_id=7))
        with pytest.raises(EventAlreadyExistsError):
            await _store(
                provider.unit(),
                lambda unit: unit.persist_workflow(instance),
                lambda unit: unit.create_new_workflow(new),
                lambda unit: unit.create_event(full_event(id="taken")),
            )
        await provider.persist_workflow(instance)
        assert await provider.get_workflow_instance("w") == instance
        with pytest.raises(WorkflowNotFoundError):
            await provider.persist_workflow(new)
        await provider.create_new_workflow(new)

    @pytest.mark.parametrize(
        ("add", "error", "operation"),
        [
            (
                lambda unit: unit.create_new_workflow(sample_instance(id="w")),
                WorkflowAlreadyExistsError,
                "create_new_workflow('w')",
            ),
            (
                lambda unit: unit.create_new_workflow(sample_instance(id="x", name="order-w")),
                WorkflowAlreadyExistsError,
                "create_new_workflow('x')",
            ),
            (
                lambda unit: unit.persist_workflow(sample_instance(id="x")),
                WorkflowNotFoundError,
                "persist_workflow('x')",
            ),
            (
                lambda unit: unit.persist_workflow_with_subscriptions(sample_instance(id="w"), [_free(id="s")]),
                StoreError,
                "persist_workflow_with_subscriptions('w')",
            ),
            (lambda unit: unit.create_event_subscription(_free(id="s")), StoreError, "create_event_subscription('s')"),
            (lambda unit: unit.subscribe(_free(id="s")), StoreError, "create_event_subscription('s')"),
            (lambda unit: unit.terminate_subscription("x"), SubscriptionNotFoundError, "terminate_subscription('x')"),
            (
                lambda unit: unit.set_subscription_token("x", "t", "w", TIME),
                SubscriptionNotFoundError,
                "set_subscription_token('x')",
            ),
            (
                lambda unit: unit.set_subscription_token("s", "t", "w", TIME + timedelta(days=9)),
                SubscriptionTokenError,
                "set_subscription_token('s')",
            ),
            (
                lambda unit: unit.clear_subscription_token("x", "t"),
                SubscriptionNotFoundError,
                "clear_subscription_token('x')",
            ),
            (
                lambda unit: unit.clear_subscription_token("s", "t"),
                SubscriptionTokenError,
                "clear_subscription_token('s')",
            ),
            (lambda unit: unit.create_event(full_event(id="e")), EventAlreadyExistsError, "create_event('e')"),
            (lambda unit: unit.mark_event_processed("x"), EventNotFoundError, "mark_event_processed('x')"),
            (lambda unit: unit.mark_event_unprocessed("x"), EventNotFoundError, "mark_event_unprocessed('x')"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "with others"])
    async def test_what_fails_fails_the_unit_as_the_single_call_and_is_named(
        self,
        provider: PersistenceProvider,
        clock: ManualClock,
        add: Add,
        error: type[WfeError],
        operation: str,
        is_alone: bool,
    ) -> None:
        await provider.create_new_workflow(sample_instance(id="w", name="order-w"))
        await provider.create_event_subscription(_free(id="s"))
        await provider.set_subscription_token("s", "held", "w", clock() + LEASE)
        await provider.create_event(full_event(id="e"))
        others: list[Add] = [
            lambda unit: unit.create_event(full_event(id="before")),
            lambda unit: unit.persist_errors([_error("no")]),
        ]
        with pytest.raises(error) as raised:
            await _store(provider.unit(), *([] if is_alone else others), add)
        assert type(raised.value) is error
        assert operation.partition("(")[0] in raised.value.__notes__[0]
        assert len(raised.value.__notes__) == 1
        assert await provider.get_execution_errors() == []
        with pytest.raises(EventNotFoundError):
            await provider.get_event("before")

    async def test_a_pointer_of_another_workflow(self, provider: PersistenceProvider) -> None:
        one, two = sample_instance(id="one"), sample_instance(id="two")
        await provider.create_new_workflow(one)
        await provider.create_new_workflow(two)
        two.execution_pointers.append(ExecutionPointer(id=one.execution_pointers[0].id, step_id=1))
        one.data = "new"
        with pytest.raises(StoreError, match="two.*one") as raised:
            await _store(
                provider.unit(),
                lambda unit: unit.persist_workflow(one),
                lambda unit: unit.persist_workflow(two),
            )
        assert "two" in raised.value.__notes__[0]
        assert (await provider.get_workflow_instance("one")).data == {"amount": 1}

    async def test_a_conflict(self, provider: PersistenceProvider) -> None:
        await provider.create_new_workflow(sample_instance(id="w"))
        mine, theirs = await provider.get_workflow_instance("w"), await provider.get_workflow_instance("w")
        theirs.data = "theirs"
        await provider.persist_workflow(theirs)
        mine.data = "mine"
        with pytest.raises(WorkflowConflictError, match="w") as raised:
            await _store(
                provider.unit(),
                lambda unit: unit.persist_workflow(mine),
                lambda unit: unit.create_event(full_event(id="e")),
            )
        assert "persist_workflow" in raised.value.__notes__[0]
        assert raised.value.__context__ is None
        assert await provider.get_workflow_instance("w") == theirs
        with pytest.raises(EventNotFoundError):
            await provider.get_event("e")

    async def test_of_units_that_change_one_workflow_one_wins(self, provider: PersistenceProvider) -> None:
        await provider.create_new_workflow(sample_instance(id="w", data=0))
        copies = [await provider.get_workflow_instance("w") for _ in range(8)]

        async def change(number: int, instance: WorkflowInstance) -> None:
            instance.data = number
            async with provider.unit() as unit:
                unit.persist_workflow(instance)
                unit.create_event(full_event(id=f"e{number}", is_processed=False))

        ended = await asyncio.gather(*(change(*one) for one in enumerate(copies)), return_exceptions=True)
        (winner,) = [number for number, error in enumerate(ended) if error is None]
        assert all(isinstance(error, WorkflowConflictError) for error in ended if error is not None)
        assert (await provider.get_workflow_instance("w")).data == winner
        assert await provider.get_runnable_events(TIME) == [f"e{winner}"]

    async def test_units_of_one_instance_follow_each_other(self, provider: PersistenceProvider) -> None:
        instance, other = sample_instance(id="w", data=0), sample_instance(id="x", data=0)
        await provider.create_new_workflow(instance)
        await provider.create_new_workflow(other)

        async def change(number: int) -> None:
            instance.data = other.data = number
            async with provider.unit() as unit:
                for one in (instance, other) if number % 2 else (other, instance):
                    unit.persist_workflow(one)

        await asyncio.gather(*(change(number) for number in range(1, 20)))
        assert (await provider.get_workflow_instance("w")).data == 19
        assert (await provider.get_workflow_instance("x")).data == 19

    async def test_many_at_once(self, provider: PersistenceProvider) -> None:
        instances = [sample_instance(id=f"w{number:02}") for number in range(40)]
        await provider.create_event(full_event(id="taken"))

        async def store(number: int, instance: WorkflowInstance) -> None:
            async with provider.unit() as unit:
                unit.create_new_workflow(instance)
                unit.create_event(full_event(id="taken" if number % 10 == 3 else f"e{number}", is_processed=False))
                unit.schedule_command(ScheduledCommand.process_workflow(f"w{39 - number}", number))

        ended = await asyncio.gather(*(store(*one) for one in enumerate(instances)), return_exceptions=True)
        failed = [number for number, error in enumerate(ended) if error is not None]
        assert failed == [3, 13, 23, 33]
        assert all(isinstance(ended[number], EventAlreadyExistsError) for number in failed)
        stored = await provider.get_workflow_instances([instance.id for instance in instances])
        assert stored == [instance for number, instance in enumerate(instances) if number not in failed]
        assert len(await provider.get_runnable_events(TIME)) == 36

    @pytest.mark.parametrize("kind", ClaimKind)
    @pytest.mark.parametrize("release", [False, True])
    @pytest.mark.parametrize(
        "add",
        [
            lambda unit: None,
            lambda unit: unit.create_event(full_event(id="e")),
            lambda unit: unit.persist_workflow(sample_instance(id="claimed", data="new")),
            lambda unit: unit.mark_event_processed("claimed"),
            lambda unit: unit.create_new_workflow(sample_instance(id="child")),
        ],
        ids=["nothing", "an event", "the workflow", "the claimed event", "a child"],
    )
    async def test_a_lost_claim_stops_whatever_is_in_it(
        self, provider: PersistenceProvider, clock: ManualClock, kind: ClaimKind, release: bool, add: Add
    ) -> None:
        claim = await _claimed(provider, kind)
        await _lose(provider, clock, claim)
        with pytest.raises(ClaimLostError):
            await _store(provider.unit(claim, release=release), add)
        assert (await provider.get_workflow_instance("claimed")).data == {"amount": 1}
        assert await provider.get_runnable_events(TIME) == ["claimed"]
        assert await provider.get_workflow_instances(["child"]) == []
        with pytest.raises(EventNotFoundError):
            await provider.get_event("e")

    @pytest.mark.parametrize("kind", ClaimKind)
    @pytest.mark.parametrize("release", [False, True])
    async def test_under_a_claim_that_holds(
        self, provider: PersistenceProvider, clock: ManualClock, kind: ClaimKind, release: bool
    ) -> None:
        claim = await _claimed(provider, kind)
        if kind is ClaimKind.Event:
            claim = replace(claim, kind="Event")  # type: ignore[arg-type]  # as it comes back from JSON
        async with provider.unit(claim, release=release) as unit:
            unit.create_event(full_event(id="first"))
        assert await provider.get_event("first")
        if release:
            with pytest.raises(ClaimLostError):
                await provider.release_claim(claim)
            return
        instance = await provider.get_workflow_instance("claimed")
        instance.data = "new"
        async with provider.unit(claim, release=True) as unit:
            unit.persist_workflow(instance)
            unit.mark_event_processed("claimed")
        assert (await provider.get_workflow_instance("claimed")).data == "new"
        assert (await provider.get_event("claimed")).is_processed
        with pytest.raises(ClaimLostError):
            await provider.release_claim(claim)
        instance.data = "newer"
        await provider.persist_workflow(instance)

    async def test_an_empty_unit(self, provider: PersistenceProvider) -> None:
        async with provider.unit() as unit:
            unit.persist_errors([])
        claim = await _claimed(provider)
        async with provider.unit(claim):
            pass
        await provider.release_claim(claim)

    async def test_subscribing_tells_the_events_that_were_there(self, provider: PersistenceProvider) -> None:
        for id_, seconds in (("b", 1), ("a", 1), ("early", -1), ("first", 0), ("late", 9)):
            time = TIME + timedelta(seconds=seconds)
            await provider.create_event(full_event(id=id_, event_time=time))
        await provider.create_event(full_event(id="another name", event_name="shipped", event_time=TIME))
        await provider.create_event(full_event(id="another key", event_key="k2", event_time=TIME))
        async with provider.unit() as unit:
            found = unit.subscribe(_free(id="s", subscribe_as_of=TIME))
            other = unit.subscribe(_free(id="t", event_key="k3", subscribe_as_of=TIME))
            assert found.event_ids == []
        assert found.event_ids == ["first", "a", "b", "late"]
        assert other.event_ids == []
        assert (await provider.get_subscription("s")).subscribe_as_of == TIME

    async def test_subscribing_and_publishing_at_once_misses_nothing(self, provider: PersistenceProvider) -> None:
        async def wait(key: str) -> bool:
            async with provider.unit() as unit:
                found = unit.subscribe(_free(event_key=key, subscribe_as_of=TIME))
            return bool(found.event_ids)

        async def publish(key: str) -> bool:
            await provider.create_event(full_event(event_key=key, event_time=TIME))
            return bool(await provider.get_subscriptions("paid", key, TIME))

        keys = [f"key-{number}" for number in range(30)]
        told = await asyncio.gather(*(one for key in keys for one in (wait(key), publish(key))))
        assert all(any(told[at : at + 2]) for at in range(0, len(told), 2))

    async def test_a_cancelled_caller(self, provider: PersistenceProvider) -> None:
        instance = sample_instance(id="w", data=0)
        await provider.create_new_workflow(instance)

        async def change(number: int) -> None:
            instance.data = number
            async with provider.unit() as unit:
                unit.persist_workflow(instance)
                unit.create_event(full_event(id=f"e{number}"))

        for turns in range(12):
            task = asyncio.create_task(change(turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        await change(99)
        assert (await provider.get_workflow_instance("w")).data == 99


@pytest.mark.asyncio
class TestBadUnits:
    """What units reject."""

    async def test_a_unit_is_for_one_block(self, provider: PersistenceProvider) -> None:
        async with provider.unit() as unit:
            unit.create_event(full_event(id="e"))
        with pytest.raises(StoreError):
            unit.create_event(full_event(id="f"))
        with pytest.raises(StoreError):
            await _store(unit)
        failed = provider.unit()
        with pytest.raises(SerializationError):
            await _store(failed, lambda unit: unit.persist_errors("none"))  # type: ignore[arg-type]
        with pytest.raises(StoreError):
            failed.terminate_subscription("s")

    @pytest.mark.parametrize(
        "adds",
        [
            (lambda unit, one: unit.persist_workflow(one), lambda unit, one: unit.persist_workflow(one)),
            (lambda unit, one: unit.create_new_workflow(one), lambda unit, one: unit.persist_workflow(one)),
            (
                lambda unit, one: unit.persist_workflow(one),
                lambda unit, one: unit.persist_workflow_with_subscriptions(sample_instance(id="w"), []),
            ),
            (
                lambda unit, one: unit.mark_event_processed("e"),
                lambda unit, one: unit.mark_event_unprocessed("e"),
            ),
            (lambda unit, one: unit.mark_event_processed("e"), lambda unit, one: unit.create_event(full_event(id="e"))),
            (lambda unit, one: unit.subscribe(_free(id="s")), lambda unit, one: unit.terminate_subscription("s")),
            (
                lambda unit, one: unit.persist_workflow_with_subscriptions(one, [_free(id="s")]),
                lambda unit, one: unit.create_event_subscription(_free(id="s")),
            ),
            (
                lambda unit, one: unit.set_subscription_token("s", "t", "w", TIME),
                lambda unit, one: unit.clear_subscription_token("s", "t"),
            ),
            (
                lambda unit, one: unit.schedule_command(ScheduledCommand.process_workflow("w", 1)),
                lambda unit, one: unit.schedule_command(ScheduledCommand.process_workflow("w", 2)),
            ),
        ],
        ids=range(9),
    )
    async def test_one_row_twice(self, provider: PersistenceProvider, adds: tuple[Any, Any]) -> None:
        instance = sample_instance(id="w")
        first, second = adds
        unit = provider.unit()
        first(unit, instance)
        with pytest.raises(StoreError):
            second(unit, instance)

    async def test_subscriptions_of_one_id(self, provider: PersistenceProvider) -> None:
        with pytest.raises(StoreError, match="s"):
            provider.unit().persist_workflow_with_subscriptions(sample_instance(), [_free(id="s"), _free(id="s")])

    async def test_one_instance_under_two_ids(self, provider: PersistenceProvider) -> None:
        instance = sample_instance(id="w")
        unit = provider.unit()
        unit.persist_workflow(instance)
        instance.id = "x"
        with pytest.raises(StoreError, match="x"):
            unit.persist_workflow(instance)

    async def test_arguments_are_checked_when_they_are_added(self, provider: PersistenceProvider) -> None:
        unit: Any = provider.unit()
        naive = datetime(2026, 5, 28)
        adds: tuple[Callable[[], object], ...] = (
            lambda: unit.persist_workflow("w"),
            lambda: unit.persist_workflow(sample_instance(data=float("nan"))),
            lambda: unit.create_new_workflow(None),
            lambda: unit.create_event(full_event(event_time=naive)),
            lambda: unit.create_event("e"),
            lambda: unit.subscribe("s"),
            lambda: unit.create_event_subscription(_free(subscribe_as_of=naive)),
            lambda: unit.persist_workflow_with_subscriptions(sample_instance(), "s"),
            lambda: unit.terminate_subscription(5),
            lambda: unit.mark_event_processed(None),
            lambda: unit.mark_event_unprocessed(b"e"),
            lambda: unit.set_subscription_token("s", "", "w", TIME),
            lambda: unit.set_subscription_token("s", "t", "w", naive),
            lambda: unit.clear_subscription_token("s", 5),
            lambda: unit.schedule_command("c"),
            lambda: unit.persist_errors(["e"]),
            lambda: unit.persist_errors("e"),
            lambda: unit.run(5),
        )
        for add in adds:
            with pytest.raises(SerializationError):
                add()
        async with unit:
            unit.create_event(full_event(id="e"))
        assert await provider.get_event("e")

    async def test_claims(self, provider: PersistenceProvider) -> None:
        unit: Any = provider.unit
        for wrong in ("claim", 5, sample_instance()):
            with pytest.raises(SerializationError):
                unit(wrong)
        with pytest.raises(SerializationError):
            unit(release=True)
        with pytest.raises(TypeError):
            unit().persist_workflow(sample_instance(), claim=None)

    async def test_a_query_of_the_application_that_is_not_there(self, provider: PersistenceProvider) -> None:
        name = f"query_{new_id()[:8]}"
        with pytest.raises(QueryFileError, match=name):
            provider.unit().run(name)
        with pytest.raises(QueryFileError, match=name):
            await provider.fetch(name)
        with pytest.raises(QueryFileError):
            await provider.fetch("get_event", id="e")
