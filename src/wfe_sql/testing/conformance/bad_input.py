"""What every backend refuses, with an error that names the thing, before anything is written."""

import math
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.errors import SerializationError, WorkflowNotFoundError
from wfe_sql.models import (
    Event,
    ExecutionError,
    ExecutionPointer,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_event, full_instance, full_pointer, full_subscription, sample_instance

NAIVE = datetime(2026, 5, 28, 20, 26, 40)


class OwnTime(datetime):
    """A `datetime` of another library, whose arithmetic gives its own class again."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("the arithmetic of the subclass is not asked")

    __sub__: Any = _refuse
    __rsub__: Any = _refuse
    __add__: Any = _refuse
    astimezone: Any = _refuse
    isoformat: Any = _refuse


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


NOT_JSON: dict[str, Any] = {
    "nan": math.nan,
    "infinity": [math.inf],
    "minus infinity": {"deep": [-math.inf]},
    "bytes": b"x",
    "number as key": {"deep": {1: "x"}},
    "None as key": {None: 1},
    "set": {1, 2},
    "object": [object()],
    "datetime": TIME,
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\udfff": 1},
    "cycle": _cycle(),
    "very deep": _deep(100_000),
    "one too deep": _deep(128),
}


@pytest.mark.asyncio
class TestBadInput:
    """Nothing is lost or half written."""

    @pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
    async def test_what_is_not_json(self, provider: PersistenceProvider, value: Any) -> None:
        bad: dict[str, Callable[[], Awaitable[Any]]] = {
            "WorkflowInstance.data": lambda: provider.create_new_workflow(sample_instance(data=value)),
            "ExecutionPointer.persistence_data": lambda: _create(provider, persistence_data=value),
            "ExecutionPointer.event_data": lambda: _create(provider, event_data=value),
            "ExecutionPointer.context_item": lambda: _create(provider, context_item=value),
            "ExecutionPointer.outcome": lambda: _create(provider, outcome=value),
            "ExecutionPointer.extension_attributes": lambda: _create(provider, extension_attributes={"x": value}),
            "Event.event_data": lambda: provider.create_event(full_event(event_data=value)),
            "EventSubscription.subscription_data": lambda: provider.create_event_subscription(
                full_subscription(subscription_data=value)
            ),
        }
        for field, call in bad.items():
            with pytest.raises(SerializationError, match=field):
                await call()
        assert await provider.get_runnable_instances(TIME) == []
        assert await provider.get_events("paid", "k1", TIME) == []
        assert await provider.get_subscriptions("paid", "k1", TIME) == []

    async def test_deep_nesting_that_the_reference_reads(self, provider: PersistenceProvider) -> None:
        stored = sample_instance(data=_deep(127))
        await provider.create_new_workflow(stored)
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_naive_times(self, provider: PersistenceProvider) -> None:
        await provider.create_event_subscription(full_subscription(id="s1"))

        async def handler(command: ScheduledCommand) -> None:
            raise AssertionError(command)

        command = provider.process_commands(NAIVE, handler)
        error = ExecutionError(error_time=NAIVE, workflow_id="w", execution_pointer_id="p", message="m")
        bad = {
            "WorkflowInstance.create_time": provider.create_new_workflow(sample_instance(create_time=NAIVE)),
            "WorkflowInstance.complete_time": provider.create_new_workflow(sample_instance(complete_time=NAIVE)),
            "ExecutionPointer.sleep_until": _create(provider, sleep_until=NAIVE),
            "ExecutionPointer.start_time": _create(provider, start_time=NAIVE),
            "ExecutionPointer.end_time": _create(provider, end_time=NAIVE),
            "Event.event_time": provider.create_event(full_event(event_time=NAIVE)),
            "EventSubscription.subscribe_as_of": provider.create_event_subscription(
                full_subscription(subscribe_as_of=NAIVE)
            ),
            "ExecutionError.error_time": provider.persist_errors([error]),
            "as_at": provider.get_runnable_instances(NAIVE),
            "as_of": provider.get_subscriptions("paid", "k1", NAIVE),
            "expiry": provider.set_subscription_token("s1", "t", "w", NAIVE),
            "as_at ": provider.get_runnable_events(NAIVE),
            "as_of ": provider.get_events("paid", "k1", NAIVE),
            " as_of": provider.get_first_open_subscription("paid", "k1", NAIVE),
            "as_of  ": command,
        }
        for field, call in bad.items():
            with pytest.raises(SerializationError, match=f"{field.strip()} is naive"):
                await call

    async def test_another_zone_is_turned_into_utc(self, provider: PersistenceProvider) -> None:
        there = TIME.astimezone(ZoneInfo("Asia/Kathmandu"))
        await provider.create_event(full_event(id="e1", event_time=there, is_processed=False))
        stored = (await provider.get_event("e1")).event_time
        assert stored == TIME
        assert stored.utcoffset() == timedelta(0)
        assert await provider.get_runnable_events(there) == ["e1"]

    async def test_times_of_a_subclass_are_times(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        time: Any = OwnTime(2026, 5, 28, 22, 26, 40, 123456, tzinfo=ZoneInfo("Europe/Berlin"))
        plain = datetime(2026, 5, 28, 20, 26, 40, 123456, tzinfo=UTC)
        clock.now = time
        pointer = full_pointer(sleep_until=time, start_time=time, end_time=time)
        instance = full_instance(
            id="w1",
            status=WorkflowStatus.Runnable,
            next_execution=0,
            create_time=time,
            complete_time=time,
            execution_pointers=[pointer],
        )
        await provider.create_new_workflow(instance)
        await provider.persist_workflow(instance)
        stored = await provider.get_workflow_instance("w1")
        assert stored == instance
        assert [stored.create_time, stored.execution_pointers[0].end_time] == [plain, plain]
        await provider.create_event(full_event(id="e1", event_time=time, is_processed=False))
        assert (await provider.get_event("e1")).event_time == plain
        subscription = full_subscription(id="s1", subscribe_as_of=time, external_token=None, external_token_expiry=None)
        await provider.create_event_subscription(subscription)
        await provider.persist_errors(
            [ExecutionError(error_time=time, workflow_id="w", execution_pointer_id="p", message="")]
        )
        assert [error.error_time for error in await provider.get_execution_errors()] == [plain]
        assert await provider.get_runnable_instances(time) == ["w1"]
        assert await provider.get_runnable_events(time) == ["e1"]
        assert await provider.get_events("paid", "k1", time) == ["e1"]
        assert await provider.get_subscriptions("paid", "k1", time) == [subscription]
        assert await provider.get_first_open_subscription("paid", "k1", time) == subscription
        assert await provider.set_subscription_token("s1", "t", "w", time)
        (claim,) = await provider.claim_runnable_instances(time, "w", lease=timedelta(minutes=1), limit=1)
        assert claim.expires_at == plain + timedelta(minutes=1)
        assert type(claim.expires_at) is type((await provider.renew_claim(claim, timedelta(1))).expires_at) is datetime
        assert len(await provider.claim_runnable_events(time, "w", lease=timedelta(minutes=1), limit=1)) == 1
        commands: list[ScheduledCommand] = []

        async def handler(command: ScheduledCommand) -> None:
            commands.append(command)

        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        await provider.process_commands(time, handler)
        assert len(commands) == 1
        with pytest.raises(SerializationError, match="WorkflowInstance.data cannot be stored as JSON"):
            await provider.create_new_workflow(sample_instance(data=time))

    async def test_arguments_of_a_wrong_type(self, provider: PersistenceProvider) -> None:
        call: Any = provider
        instance: Any = sample_instance(id="w1")
        await provider.create_new_workflow(instance)

        async def handler(command: ScheduledCommand) -> None:
            raise AssertionError(command)

        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        pointer = full_pointer()
        bad = [
            ("expected WorkflowInstance, not dict", call.create_new_workflow({"id": "w2"})),
            ("expected WorkflowInstance, not dict", call.persist_workflow({"id": "w1"})),
            ("expected WorkflowInstance, not NoneType", call.persist_workflow_with_subscriptions(None, [])),
            ("expected Event, not NoneType", call.create_event(None)),
            ("expected EventSubscription, not str", call.create_event_subscription("s1")),
            ("expected ScheduledCommand, not tuple", call.schedule_command(("ProcessWorkflow", "w1", 0))),
            (
                "subscriptions must be a list of EventSubscription",
                call.persist_workflow_with_subscriptions(instance, None),
            ),
            ("expected EventSubscription, not dict", call.persist_workflow_with_subscriptions(instance, [{}])),
            ("errors must be a list of ExecutionError, not NoneType", call.persist_errors(None)),
            ("errors must be a list of ExecutionError, not str", call.persist_errors("boom")),
            ("expected ExecutionError, not str", call.persist_errors(["boom"])),
            ("ids must be a list of str, not str", call.get_workflow_instances("w1")),
            ("ids must be a list of str, not NoneType", call.get_workflow_instances(None)),
            ("ids must be a str, not int", call.get_workflow_instances([1])),
            ("id must be a str, not int", call.get_workflow_instance(1)),
            ("ExecutionPointer.id must be a str, not list", _create(provider, id=["p1"])),
            ("execution_pointers must be a list of ExecutionPointer, not dict", _with_pointers(call, {"p": pointer})),
            ("execution_pointers must be a list of ExecutionPointer, not NoneType", _with_pointers(call, None)),
            (
                "execution_pointers must be a list of ExecutionPointer, not generator",
                _with_pointers(call, _iter_one(pointer)),
            ),
            ("expected ExecutionPointer, not str", _with_pointers(call, ["p1"])),
            ("expected ExecutionPointer, not WorkflowInstance", _with_pointers(call, [sample_instance()])),
            ("handler must be an async function", call.process_commands(TIME, None)),
            ("as_of must be a datetime, not int", call.process_commands(0, handler)),
            ("as_at must be a datetime, not str", call.get_runnable_instances("2026-05-28")),
            ("expiry must be a datetime, not timedelta", call.set_subscription_token("s", "t", "w", timedelta(1))),
        ]
        for message, attempt in bad:
            with pytest.raises(SerializationError, match=message):
                await attempt
        assert await provider.get_runnable_instances(TIME) == ["w1"]
        assert await provider.get_workflow_instance("w1") == instance
        assert await provider.get_execution_errors() == []

    async def test_ids_may_come_one_by_one(self, provider: PersistenceProvider) -> None:
        instance: Any = sample_instance(id="w1")
        await provider.create_new_workflow(instance)
        ids: Any = _iter_one("w1")
        assert await provider.get_workflow_instances(ids) == [instance]

    async def test_integers_beyond_64_bits(self, provider: PersistenceProvider) -> None:
        for value in (2**63, -(2**63) - 1, 10**100):
            bad = {
                "WorkflowInstance.version": provider.create_new_workflow(sample_instance(version=value)),
                "WorkflowInstance.next_execution": provider.create_new_workflow(sample_instance(next_execution=value)),
                "ExecutionPointer.step_id": _create(provider, step_id=value),
                "ExecutionPointer.retry_count": _create(provider, retry_count=value),
                "ScheduledCommand.execute_time": provider.schedule_command(
                    ScheduledCommand.process_workflow("w1", value)
                ),
            }
            for field, call in bad.items():
                with pytest.raises(SerializationError, match=f"{field} does not fit into 64 bits"):
                    await call

    async def test_the_largest_integers_come_back(self, provider: PersistenceProvider) -> None:
        for value in (2**63 - 1, -(2**63)):
            stored = sample_instance(next_execution=value, data=[10**30, value])
            await provider.create_new_workflow(stored)
            assert await provider.get_workflow_instance(stored.id) == stored

    async def test_wrong_types(self, provider: PersistenceProvider) -> None:
        bad: dict[str, dict[str, Any]] = {
            "WorkflowInstance.name": {"name": None},
            "WorkflowInstance.version": {"version": "1"},
            "WorkflowInstance.description": {"description": 1},
            "WorkflowInstance.next_execution": {"next_execution": TIME},
            "WorkflowInstance.status": {"status": "Finished"},
            "WorkflowInstance.create_time": {"create_time": "2026-05-28T20:26:40+00:00"},
            "ExecutionPointer.active": {"execution_pointers": [full_pointer(active=1)]},
            "ExecutionPointer.status": {"execution_pointers": [full_pointer(status="Done")]},
            "ExecutionPointer.children": {"execution_pointers": [full_pointer(children=[1])]},
            "ExecutionPointer.scope": {"execution_pointers": [full_pointer(scope="outer")]},
            "ExecutionPointer.extension_attributes": {"execution_pointers": [full_pointer(extension_attributes=[])]},
        }
        for field, fields in bad.items():
            with pytest.raises(SerializationError, match=field):
                await provider.create_new_workflow(sample_instance(**fields))

    async def test_empty_ids(self, provider: PersistenceProvider) -> None:
        error = ExecutionError(workflow_id="", execution_pointer_id="p", message="m")
        bad = {
            "WorkflowInstance.id": provider.create_new_workflow(sample_instance(id="")),
            "WorkflowInstance.id ": provider.persist_workflow(sample_instance(id="", name="x")),
            "WorkflowInstance.workflow_definition_id": provider.create_new_workflow(
                sample_instance(workflow_definition_id="")
            ),
            "ExecutionPointer.id": _create(provider, id=""),
            "Event.id": provider.create_event(full_event(id="")),
            "EventSubscription.id": provider.create_event_subscription(full_subscription(id="")),
            "EventSubscription.workflow_id": provider.create_event_subscription(full_subscription(workflow_id="")),
            "ScheduledCommand.data": provider.schedule_command(ScheduledCommand.process_event("", 0)),
            "ExecutionError.workflow_id": provider.persist_errors([error]),
            "definition_id": provider.next_definition_sequence(""),
            "token": provider.set_subscription_token("s1", "", "w", TIME),
            "worker_id": provider.set_subscription_token("s1", "t", "", TIME),
        }
        for field, call in bad.items():
            with pytest.raises(SerializationError, match=f"{field.strip()} must not be empty"):
                await call

    async def test_ids_with_a_nul_character(self, provider: PersistenceProvider) -> None:
        for call in (
            provider.create_new_workflow(sample_instance(id="w\0")),
            _create(provider, id="p\0"),
            provider.create_event(full_event(id="e\0")),
        ):
            with pytest.raises(SerializationError, match="id contains a NUL character"):
                await call

    async def test_two_pointers_with_one_id(self, provider: PersistenceProvider) -> None:
        twins = sample_instance(execution_pointers=[full_pointer(id="p1"), full_pointer(), full_pointer(id="p1")])
        with pytest.raises(SerializationError, match=r"execution_pointers\[2\].id 'p1'"):
            await provider.create_new_workflow(twins)
        with pytest.raises(WorkflowNotFoundError):
            await provider.get_workflow_instance(twins.id)

    async def test_a_bad_second_subscription_stores_nothing(self, provider: PersistenceProvider) -> None:
        instance = sample_instance()
        await provider.create_new_workflow(instance)
        changed = full_instance(id=instance.id)
        good, bad = full_subscription(), full_subscription(subscription_data=math.nan)
        with pytest.raises(SerializationError, match="EventSubscription.subscription_data"):
            await provider.persist_workflow_with_subscriptions(changed, [good, bad])
        assert await provider.get_workflow_instance(instance.id) == instance
        assert await provider.get_subscriptions("paid", "k1", TIME) == []

    async def test_a_bad_second_error_stores_nothing(self, provider: PersistenceProvider) -> None:
        good = ExecutionError(workflow_id="w", execution_pointer_id="p", message="m")
        bad = ExecutionError(workflow_id="w", execution_pointer_id="p", message="\ud800")
        with pytest.raises(SerializationError, match="ExecutionError.message"):
            await provider.persist_errors([good, bad])
        assert await provider.get_execution_errors() == []

    @pytest.mark.parametrize("limit", [0, -1, True, 1.5, "1"])
    async def test_limits(self, provider: PersistenceProvider, limit: Any) -> None:
        async def handler(command: ScheduledCommand) -> None:
            raise AssertionError(command)

        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        for call in (
            provider.get_runnable_instances(TIME, limit=limit),
            provider.get_runnable_events(TIME, limit=limit),
            provider.get_execution_errors(limit=limit),
            provider.process_commands(TIME, handler, limit=limit),
        ):
            with pytest.raises(SerializationError, match="limit must be"):
                await call

    async def test_a_lease_that_is_none(self, provider: PersistenceProvider) -> None:
        async def handler(command: ScheduledCommand) -> None:
            raise AssertionError(command)

        with pytest.raises(SerializationError, match="lease"):
            await provider.process_commands(TIME, handler, lease=timedelta(0))

    @pytest.mark.parametrize(
        "text",
        [
            'it\'s "quoted" -- :x ; DROP',
            r"\u0000 \0 \\u0000",
            "😀 żółć \u202e",
            "x" * 2**20,
            "%s %(x)s {y}",
            "\n\t\r",
            "'",
        ],
        ids=["quotes", "escapes", "emoji", "1 MiB", "formats", "white space", "one quote"],
    )
    async def test_strings_of_all_kinds_come_back(
        self, provider: PersistenceProvider, capabilities: Capabilities, text: str
    ) -> None:
        await _strings_come_back(provider, text, text[: capabilities.longest_key])

    async def test_a_nul_character(self, provider: PersistenceProvider, capabilities: Capabilities) -> None:
        text = "NUL \0 inside"
        if capabilities.stores_nul:
            await _strings_come_back(provider, text, "key")
            return
        refused: dict[str, Awaitable[Any]] = {
            "description": provider.create_new_workflow(sample_instance(description=text)),
            "name": provider.create_new_workflow(sample_instance(name=text)),
            "data": provider.create_new_workflow(sample_instance(data={"deep": [text]})),
            "step_name": _create(provider, step_name=text),
            "persistence_data": _create(provider, persistence_data={text: 1}),
            "children": _create(provider, children=[text]),
            "event_data": provider.create_event(full_event(event_data=text)),
            "event_key": provider.create_event(full_event(event_key=text)),
            "subscription_data": provider.create_event_subscription(full_subscription(subscription_data=text)),
            "message": provider.persist_errors(
                [ExecutionError(workflow_id="w", execution_pointer_id="p", message=text)]
            ),
        }
        for column, call in refused.items():
            with pytest.raises(SerializationError, match=f"{column} .*NUL"):
                await call
        assert await provider.get_runnable_instances(TIME) == []
        assert await provider.get_events("paid", "k1", TIME) == []
        assert await provider.get_execution_errors() == []


async def _strings_come_back(provider: PersistenceProvider, text: str, key: str) -> None:
    """Store a text everywhere, and a part of it as the ids, names and keys."""
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
    event = Event(id=f"e{key}", event_name=key, event_key=key, event_data=text, event_time=TIME)
    await provider.create_event(event)
    assert await provider.get_event(event.id) == event
    assert await provider.get_events(key, key, TIME) == [event.id]
    assert await provider.next_definition_sequence(f"d{key}") == 1


async def _create(provider: PersistenceProvider, **fields: Any) -> str:
    values: dict[str, Any] = {"step_id": 0, **fields}
    instance = WorkflowInstance(
        workflow_definition_id="order", version=1, data=None, execution_pointers=[ExecutionPointer(**values)]
    )
    return await provider.create_new_workflow(instance)


async def _with_pointers(provider: PersistenceProvider, pointers: Any) -> str:
    return await provider.create_new_workflow(sample_instance(id="w2", execution_pointers=pointers))
