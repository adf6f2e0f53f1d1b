"""What every backend refuses, with an error that names the field or argument, before anything is written.

There is a class for each Protocol.
"""

import math
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.errors import SerializationError, WorkflowNotFoundError
from wfe_sql.models import (
    CommandName,
    Event,
    ExecutionError,
    ExecutionPointer,
    PointerStatus,
    ScheduledCommand,
    WorkflowInstance,
)
from wfe_sql.repositories import (
    EventRepository,
    ExecutionErrorRepository,
    ScheduledCommandRepository,
    SubscriptionRepository,
    WorkflowRepository,
)
from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.conformance.workflows_with_subscriptions import WorkflowsWithSubscriptions
from wfe_sql.testing.samples import TIME, full_event, full_instance, full_pointer, full_subscription, sample_instance

NAIVE = datetime(2026, 5, 28, 20, 26, 40)
PLAIN = datetime(2026, 5, 28, 20, 26, 40, 123456, tzinfo=UTC)


class OwnTime(datetime):
    """A `datetime` of another library, whose arithmetic returns its own class."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("the subclass's arithmetic must not be used")

    __sub__: Any = _refuse
    __rsub__: Any = _refuse
    __add__: Any = _refuse
    astimezone: Any = _refuse
    isoformat: Any = _refuse


class _Kind(Enum):
    """What an encoder may mistake for its values."""

    A = "a"
    Failed = "Failed"
    One = 1


@dataclass
class _Lookalike:
    """What an encoder may mistake for a dict."""

    step: int


def _own_time() -> Any:
    """Return the time `PLAIN`, in another class and zone."""
    return OwnTime(2026, 5, 28, 22, 26, 40, 123456, tzinfo=ZoneInfo("Europe/Berlin"))


def _iter_one(item: Any) -> Iterator[Any]:
    """Yield one item."""
    yield item


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


NOT_JSON: tuple[Any, ...] = (
    math.nan,
    [math.inf],
    {"deep": [-math.inf]},
    b"x",
    {"deep": {1: "x"}},
    {None: 1},
    {1, 2},
    [object()],
    TIME,
    "\ud800",
    {"\udfff": 1},
    _cycle(),
    _deep(100_000),
    _deep(128),
)
TEXTS = (
    'it\'s "quoted" -- :x ; DROP',
    r"\u0000 \0 \\u0000",
    "😀 żółć \u202e",
    "x" * 2**20,
    "%s %(x)s {y}",
    "\n\t\r",
    "'",
)
NUL = "NUL \0 inside"


async def refused(*calls: tuple[str, Awaitable[Any]]) -> None:
    """Check that each call is rejected, with an error that names its field or argument."""
    for name, call in calls:
        with pytest.raises(SerializationError, match=rf"\b{name}\b"):
            await call


async def refused_types(calls: Iterable[Awaitable[Any]]) -> None:
    """Check that each call is rejected."""
    for call in calls:
        with pytest.raises(SerializationError):
            await call


async def _never(command: ScheduledCommand) -> None:
    raise AssertionError(command)


@pytest.mark.asyncio
class TestBadWorkflows:
    """Bad input never leaves half a workflow."""

    async def test_what_is_not_json(self, provider: WorkflowRepository) -> None:
        for value in NOT_JSON:
            await refused(
                ("data", provider.create_new_workflow(sample_instance(data=value))),
                ("persistence_data", _create(provider, persistence_data=value)),
                ("event_data", _create(provider, event_data=value)),
                ("context_item", _create(provider, context_item=value)),
                ("outcome", _create(provider, outcome=value)),
                ("extension_attributes", _create(provider, extension_attributes={"x": value})),
            )
        assert await provider.get_runnable_instances(TIME) == []

    async def test_deep_nesting_that_the_reference_reads(self, provider: WorkflowRepository) -> None:
        stored = sample_instance(data=_deep(127))
        await provider.create_new_workflow(stored)
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_what_create_refuses_persist_refuses(self, provider: WorkflowRepository) -> None:
        """Each of these is the output of some encoder for a stored value."""
        fields: tuple[tuple[str, Any, Any], ...] = (
            ("outcome", None, float("nan")),
            ("outcome", "eA==", b"x"),
            ("outcome", {"1": 2}, {1: 2}),
            ("outcome", [2], {2}),
            ("outcome", [], frozenset()),
            ("outcome", "text", "\ud800"),
            ("outcome", None, object()),
            ("outcome", "2026-05-28T20:26:40", datetime(2026, 5, 28, 20, 26, 40)),
            ("outcome", "2026-05-28", date(2026, 5, 28)),
            ("outcome", "1.5", Decimal("1.5")),
            ("outcome", str(UUID(int=1)), UUID(int=1)),
            ("outcome", "a", _Kind.A),
            ("outcome", {"step": 1}, _Lookalike(1)),
            ("persistence_data", {"deep": [{"set": [1]}]}, {"deep": [{"set": {1}}]}),
            ("extension_attributes", {"deep": {str(UUID(int=1)): 1}}, {"deep": {UUID(int=1): 1}}),
            ("extension_attributes", {"step": 1}, _Lookalike(1)),
            ("context_item", ["1"], [Decimal(1)]),
            ("event_data", ["1"], (Decimal(1),)),
            ("children", ["a"], {"a"}),
            ("scope", [], set()),
            ("step_name", "1.5", Decimal("1.5")),
            ("event_key", str(UUID(int=1)), UUID(int=1)),
            ("status", PointerStatus.Failed, _Kind.Failed),
            ("step_id", 1, _Kind.One),
            ("retry_count", 1, True),
            ("active", True, 1),
        )
        for field, stored, bad in fields:
            instance = sample_instance(execution_pointers=[full_pointer(**{field: stored}), full_pointer()])
            await provider.create_new_workflow(instance)
            setattr(instance.execution_pointers[0], field, bad)
            other = sample_instance(execution_pointers=instance.execution_pointers)
            await refused((field, provider.persist_workflow(instance)), (field, provider.create_new_workflow(other)))
            setattr(instance.execution_pointers[0], field, stored)
            assert await provider.get_workflow_instance(instance.id) == instance

    async def test_what_create_takes_persist_takes(self, provider: WorkflowRepository) -> None:
        """Values of other types that are still JSON, next to unchanged pointers."""
        instance = sample_instance(execution_pointers=[full_pointer(outcome=[1, ["a"]]), full_pointer()])
        await provider.create_new_workflow(instance)
        instance.execution_pointers[0].outcome = (1, (CommandName.ProcessEvent,))
        instance.execution_pointers[0].children = ("c1", "c2")  # type: ignore[assignment]
        await provider.persist_workflow(instance)
        instance.execution_pointers[0].outcome = [1, ["ProcessEvent"]]
        instance.execution_pointers[0].children = ["c1", "c2"]
        assert await provider.get_workflow_instance(instance.id) == instance

    async def test_naive_times(self, provider: WorkflowRepository) -> None:
        await refused(
            ("create_time", provider.create_new_workflow(sample_instance(create_time=NAIVE))),
            ("complete_time", provider.create_new_workflow(sample_instance(complete_time=NAIVE))),
            ("sleep_until", _create(provider, sleep_until=NAIVE)),
            ("start_time", _create(provider, start_time=NAIVE)),
            ("end_time", _create(provider, end_time=NAIVE)),
            ("as_at", provider.get_runnable_instances(NAIVE)),
        )

    async def test_times_of_a_subclass_are_times(self, provider: WorkflowRepository) -> None:
        time = _own_time()
        pointer = full_pointer(sleep_until=time, start_time=time, end_time=time)
        instance = sample_instance(create_time=time, complete_time=time, execution_pointers=[pointer])
        await provider.create_new_workflow(instance)
        await provider.persist_workflow(instance)
        stored = await provider.get_workflow_instance(instance.id)
        assert stored == instance
        assert [stored.create_time, stored.execution_pointers[0].end_time] == [PLAIN, PLAIN]
        assert await provider.get_runnable_instances(time) == [instance.id]
        await refused(("data", provider.create_new_workflow(sample_instance(data=time))))

    async def test_arguments_of_a_wrong_type(self, provider: WorkflowRepository) -> None:
        call: Any = provider
        instance = sample_instance(id="w1")
        await provider.create_new_workflow(instance)
        pointers = ({"p": full_pointer()}, None, _iter_one(full_pointer()), ["p1"], [sample_instance()])
        await refused_types(
            [
                call.create_new_workflow({"id": "w2"}),
                call.persist_workflow({"id": "w1"}),
                call.get_workflow_instances("w1"),
                call.get_workflow_instances(None),
                call.get_workflow_instances([1]),
                call.get_workflow_instance(1),
                call.get_runnable_instances("2026-05-28"),
                *(provider.create_new_workflow(sample_instance(execution_pointers=some)) for some in pointers),
            ]
        )
        assert await provider.get_runnable_instances(TIME) == ["w1"]
        assert await provider.get_workflow_instance("w1") == instance

    async def test_ids_may_come_one_by_one(self, provider: WorkflowRepository) -> None:
        instance = sample_instance(id="w1")
        await provider.create_new_workflow(instance)
        ids: Any = _iter_one("w1")
        assert await provider.get_workflow_instances(ids) == [instance]

    async def test_integers_beyond_64_bits(self, provider: WorkflowRepository) -> None:
        for value in (2**63, -(2**63) - 1, 10**100):
            await refused(
                ("version", provider.create_new_workflow(sample_instance(version=value))),
                ("next_execution", provider.create_new_workflow(sample_instance(next_execution=value))),
                ("step_id", _create(provider, step_id=value)),
                ("retry_count", _create(provider, retry_count=value)),
            )

    async def test_the_largest_integers_come_back(self, provider: WorkflowRepository) -> None:
        for value in (2**63 - 1, -(2**63)):
            stored = sample_instance(next_execution=value, data=[10**30, value])
            await provider.create_new_workflow(stored)
            assert await provider.get_workflow_instance(stored.id) == stored

    async def test_wrong_types(self, provider: WorkflowRepository) -> None:
        bad: dict[str, dict[str, Any]] = {
            "name": {"name": None},
            "version": {"version": "1"},
            "description": {"description": 1},
            "next_execution": {"next_execution": TIME},
            "status": {"status": "Finished"},
            "create_time": {"create_time": "2026-05-28T20:26:40+00:00"},
            "id": {"execution_pointers": [full_pointer(id=["p1"])]},
            "active": {"execution_pointers": [full_pointer(active=1)]},
            " status": {"execution_pointers": [full_pointer(status="Done")]},
            "children": {"execution_pointers": [full_pointer(children=[1])]},
            "scope": {"execution_pointers": [full_pointer(scope="outer")]},
            "extension_attributes": {"execution_pointers": [full_pointer(extension_attributes=[])]},
        }
        for field, fields in bad.items():
            await refused((field.strip(), provider.create_new_workflow(sample_instance(**fields))))

    async def test_empty_ids(self, provider: WorkflowRepository) -> None:
        await refused(
            ("id", provider.create_new_workflow(sample_instance(id=""))),
            ("id", provider.persist_workflow(sample_instance(id="", name="x"))),
            ("workflow_definition_id", provider.create_new_workflow(sample_instance(workflow_definition_id=""))),
            ("id", _create(provider, id="")),
            ("definition_id", provider.next_definition_sequence("")),
        )

    async def test_ids_with_a_nul_character(self, provider: WorkflowRepository) -> None:
        await refused(
            ("id", provider.create_new_workflow(sample_instance(id="w\0"))),
            ("id", _create(provider, id="p\0")),
            ("id", provider.get_workflow_instance("w\0")),
            ("ids", provider.get_workflow_instances(["w", "w\0"])),
        )

    async def test_two_pointers_with_one_id(self, provider: WorkflowRepository) -> None:
        twins = sample_instance(execution_pointers=[full_pointer(id="p1"), full_pointer(), full_pointer(id="p1")])
        await refused(("p1", provider.create_new_workflow(twins)))
        with pytest.raises(WorkflowNotFoundError):
            await provider.get_workflow_instance(twins.id)

    async def test_limits(self, provider: WorkflowRepository) -> None:
        limits: tuple[Any, ...] = (0, -1, True, 1.5, "1")
        await refused(*(("limit", provider.get_runnable_instances(TIME, limit=limit)) for limit in limits))

    async def test_texts_of_all_kinds_come_back(self, provider: WorkflowRepository, capabilities: Capabilities) -> None:
        for text in TEXTS:
            await _workflow_comes_back(provider, text, text[: capabilities.longest_key])

    async def test_a_nul_character(self, provider: WorkflowRepository, capabilities: Capabilities) -> None:
        if capabilities.stores_nul:
            await _workflow_comes_back(provider, NUL, "key")
            return
        await refused(
            ("description", provider.create_new_workflow(sample_instance(description=NUL))),
            ("name", provider.create_new_workflow(sample_instance(name=NUL))),
            ("data", provider.create_new_workflow(sample_instance(data={"deep": [NUL]}))),
            ("step_name", _create(provider, step_name=NUL)),
            ("persistence_data", _create(provider, persistence_data={NUL: 1})),
            ("children", _create(provider, children=[NUL])),
        )
        assert await provider.get_runnable_instances(TIME) == []


@pytest.mark.asyncio
class TestBadWorkflowsWithSubscriptions:
    """No workflow is stored without its subscriptions."""

    async def test_a_bad_second_subscription_stores_nothing(self, provider: WorkflowsWithSubscriptions) -> None:
        instance = sample_instance()
        await provider.create_new_workflow(instance)
        changed = full_instance(id=instance.id)
        good, bad = full_subscription(), full_subscription(subscription_data=math.nan)
        await refused(("subscription_data", provider.persist_workflow_with_subscriptions(changed, [good, bad])))
        assert await provider.get_workflow_instance(instance.id) == instance
        assert await provider.get_subscriptions("paid", "k1", TIME) == []

    async def test_arguments_of_a_wrong_type(self, provider: WorkflowsWithSubscriptions) -> None:
        call: Any = provider
        instance = sample_instance(id="w1")
        await provider.create_new_workflow(instance)
        await refused_types(
            [
                call.persist_workflow_with_subscriptions(None, []),
                call.persist_workflow_with_subscriptions(instance, None),
                call.persist_workflow_with_subscriptions(instance, [{}]),
            ]
        )
        assert await provider.get_workflow_instance("w1") == instance


@pytest.mark.asyncio
class TestBadSubscriptions:
    """Bad input never leaves half a subscription."""

    async def test_what_is_not_json(self, provider: SubscriptionRepository) -> None:
        for value in NOT_JSON:
            subscription = full_subscription(subscription_data=value)
            await refused(("subscription_data", provider.create_event_subscription(subscription)))
        assert await provider.get_subscriptions("paid", "k1", TIME) == []

    async def test_naive_times(self, provider: SubscriptionRepository) -> None:
        await provider.create_event_subscription(full_subscription(id="s1"))
        subscription = full_subscription(subscribe_as_of=NAIVE)
        await refused(
            ("subscribe_as_of", provider.create_event_subscription(subscription)),
            ("as_of", provider.get_subscriptions("paid", "k1", NAIVE)),
            ("expiry", provider.set_subscription_token("s1", "t", "w", NAIVE)),
            ("as_of", provider.get_first_open_subscription("paid", "k1", NAIVE)),
        )

    async def test_times_of_a_subclass_are_times(self, provider: SubscriptionRepository) -> None:
        time = _own_time()
        subscription = full_subscription(id="s1", subscribe_as_of=time, external_token=None, external_token_expiry=None)
        await provider.create_event_subscription(subscription)
        assert (await provider.get_subscription("s1")).subscribe_as_of == PLAIN
        assert await provider.get_subscriptions("paid", "k1", time) == [subscription]
        assert await provider.get_first_open_subscription("paid", "k1", time) == subscription
        assert await provider.set_subscription_token("s1", "t", "w", time)

    async def test_arguments_of_a_wrong_type(self, provider: SubscriptionRepository) -> None:
        call: Any = provider
        await refused_types(
            [
                call.create_event_subscription("s1"),
                call.get_subscriptions("paid", "k1", 0),
                call.set_subscription_token("s", "t", "w", timedelta(1)),
            ]
        )

    async def test_empty_ids(self, provider: SubscriptionRepository) -> None:
        await refused(
            ("id", provider.create_event_subscription(full_subscription(id=""))),
            ("workflow_id", provider.create_event_subscription(full_subscription(workflow_id=""))),
            ("token", provider.set_subscription_token("s1", "", "w", TIME)),
            ("worker_id", provider.set_subscription_token("s1", "t", "", TIME)),
        )

    async def test_ids_with_a_nul_character(self, provider: SubscriptionRepository) -> None:
        await refused(
            ("id", provider.create_event_subscription(full_subscription(id="s\0"))),
            ("id", provider.get_subscription("s\0")),
            ("id", provider.terminate_subscription("s\0")),
            ("id", provider.set_subscription_token("s\0", "t", "w", TIME)),
            ("id", provider.clear_subscription_token("s\0", "t")),
            ("token", provider.clear_subscription_token("s", "t\0")),
        )

    async def test_a_nul_character(self, provider: SubscriptionRepository, capabilities: Capabilities) -> None:
        subscription = full_subscription(id="s1", subscription_data=NUL)
        if capabilities.stores_nul:
            await provider.create_event_subscription(subscription)
            assert await provider.get_subscription("s1") == subscription
        else:
            await refused(("subscription_data", provider.create_event_subscription(subscription)))


@pytest.mark.asyncio
class TestBadEvents:
    """Bad input never leaves half an event."""

    async def test_what_is_not_json(self, provider: EventRepository) -> None:
        for value in NOT_JSON:
            await refused(("event_data", provider.create_event(full_event(event_data=value))))
        assert await provider.get_events("paid", "k1", TIME) == []

    async def test_naive_times(self, provider: EventRepository) -> None:
        await refused(
            ("event_time", provider.create_event(full_event(event_time=NAIVE))),
            ("as_at", provider.get_runnable_events(NAIVE)),
            ("as_of", provider.get_events("paid", "k1", NAIVE)),
        )

    async def test_another_zone_is_turned_into_utc(self, provider: EventRepository) -> None:
        there = TIME.astimezone(ZoneInfo("Asia/Kathmandu"))
        await provider.create_event(full_event(id="e1", event_time=there, is_processed=False))
        stored = (await provider.get_event("e1")).event_time
        assert stored == TIME
        assert stored.utcoffset() == timedelta(0)
        assert await provider.get_runnable_events(there) == ["e1"]

    async def test_times_of_a_subclass_are_times(self, provider: EventRepository) -> None:
        time = _own_time()
        await provider.create_event(full_event(id="e1", event_time=time, is_processed=False))
        assert (await provider.get_event("e1")).event_time == PLAIN
        assert await provider.get_runnable_events(time) == ["e1"]
        assert await provider.get_events("paid", "k1", time) == ["e1"]

    async def test_arguments_of_a_wrong_type(self, provider: EventRepository) -> None:
        call: Any = provider
        await refused_types([call.create_event(None), call.get_runnable_events("2026-05-28")])

    async def test_bad_ids_and_limits(self, provider: EventRepository) -> None:
        limits: tuple[Any, ...] = (0, -1, True, 1.5, "1")
        await refused(
            ("id", provider.create_event(full_event(id=""))),
            ("id", provider.create_event(full_event(id="e\0"))),
            *(("limit", provider.get_runnable_events(TIME, limit=limit)) for limit in limits),
        )

    async def test_texts_of_all_kinds_come_back(self, provider: EventRepository, capabilities: Capabilities) -> None:
        for text in TEXTS:
            await _event_comes_back(provider, text, text[: capabilities.longest_key])

    async def test_ids_with_a_nul_character(self, provider: EventRepository) -> None:
        await refused(
            ("id", provider.create_event(full_event(id="e\0"))),
            ("id", provider.get_event("e\0")),
            ("id", provider.mark_event_processed("e\0")),
            ("id", provider.mark_event_unprocessed("e\0")),
        )

    async def test_a_nul_character(self, provider: EventRepository, capabilities: Capabilities) -> None:
        if capabilities.stores_nul:
            await _event_comes_back(provider, NUL, "key")
            return
        await refused(
            ("event_data", provider.create_event(full_event(event_data=NUL))),
            ("event_key", provider.create_event(full_event(event_key=NUL))),
        )
        assert await provider.get_events("paid", "k1", TIME) == []


@pytest.mark.asyncio
class TestBadCommands:
    """No handler is called by mistake."""

    async def test_what_cannot_be_scheduled(self, provider: ScheduledCommandRepository) -> None:
        call: Any = provider
        await refused(
            ("data", provider.schedule_command(ScheduledCommand.process_event("", 0))),
            *(
                ("execute_time", provider.schedule_command(ScheduledCommand.process_workflow("w1", value)))
                for value in (2**63, -(2**63) - 1, 10**100)
            ),
        )
        await refused_types([call.schedule_command(("ProcessWorkflow", "w1", 0))])
        await provider.process_commands(TIME, _never)

    async def test_how_they_cannot_be_processed(self, provider: ScheduledCommandRepository) -> None:
        call: Any = provider
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        limits: tuple[Any, ...] = (0, -1, True, 1.5, "1")
        leases: tuple[Any, ...] = (timedelta(0), timedelta.max, timedelta(days=3_650_000), 30, 1.5, None)
        await refused(
            ("as_of", provider.process_commands(NAIVE, _never)),
            ("as_of", call.process_commands(0, _never)),
            ("handler", call.process_commands(TIME, None)),
            *(("limit", provider.process_commands(TIME, _never, limit=limit)) for limit in limits),
            *(("lease", provider.process_commands(TIME, _never, lease=lease)) for lease in leases),
        )

    async def test_times_of_a_subclass_are_times(self, provider: ScheduledCommandRepository) -> None:
        commands: list[ScheduledCommand] = []

        async def handler(command: ScheduledCommand) -> None:
            commands.append(command)

        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        await provider.process_commands(_own_time(), handler)
        assert len(commands) == 1


@pytest.mark.asyncio
class TestBadExecutionErrors:
    """Bad input never leaves half an error."""

    async def test_what_cannot_be_stored(self, provider: ExecutionErrorRepository, capabilities: Capabilities) -> None:
        def error(**fields: Any) -> ExecutionError:
            return ExecutionError(**{"workflow_id": "w", "execution_pointer_id": "p", "message": "m", **fields})

        call: Any = provider
        limits: tuple[Any, ...] = (0, -1, True, 1.5, "1")
        await refused(
            ("error_time", provider.persist_errors([error(error_time=NAIVE)])),
            ("workflow_id", provider.persist_errors([error(workflow_id="")])),
            ("message", provider.persist_errors([error(), error(message="\ud800")])),
            *(("limit", provider.get_execution_errors(limit=limit)) for limit in limits),
            ("workflow_id", provider.get_execution_errors("w\0")),
        )
        if not capabilities.stores_nul:
            await refused(("message", provider.persist_errors([error(message=NUL)])))
        await refused_types([call.persist_errors(None), call.persist_errors("boom"), call.persist_errors(["boom"])])
        assert await provider.get_execution_errors() == []
        await provider.persist_errors([error(error_time=_own_time())])
        assert [stored.error_time for stored in await provider.get_execution_errors()] == [PLAIN]


async def _workflow_comes_back(provider: WorkflowRepository, text: str, key: str) -> None:
    """Store a text everywhere in a workflow, and a part of it as the ids and names."""
    stored = full_instance(
        id=f"w{key}",
        name=f"n{key}",
        description=text,
        reference=text,
        workflow_definition_id=f"d{key}",
        data={text: [text]},
        execution_pointers=[full_pointer(id=f"p{key}", step_name=text, children=[text], event_data=text)],
    )
    await provider.create_new_workflow(stored)
    assert await provider.get_workflow_instance(stored.id) == stored
    assert await provider.get_workflow_instance_by_name(stored.name) == stored
    assert await provider.get_workflow_instances([stored.id]) == [stored]
    await provider.persist_workflow(stored)
    assert await provider.get_workflow_instance(stored.id) == stored
    assert await provider.next_definition_sequence(f"d{key}") == 1


async def _event_comes_back(provider: EventRepository, text: str, key: str) -> None:
    """Store a text as an event's data, and a part of it as the id, name and key."""
    event = Event(id=f"e{key}", event_name=key, event_key=key, event_data=text, event_time=TIME)
    await provider.create_event(event)
    assert await provider.get_event(event.id) == event
    assert await provider.get_events(key, key, TIME) == [event.id]


async def _create(provider: WorkflowRepository, **fields: Any) -> str:
    values: dict[str, Any] = {"step_id": 0, **fields}
    instance = WorkflowInstance(
        workflow_definition_id="order", version=1, data=None, execution_pointers=[ExecutionPointer(**values)]
    )
    return await provider.create_new_workflow(instance)
