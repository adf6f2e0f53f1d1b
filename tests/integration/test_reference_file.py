"""A file that the Rust crate wrote, and what the crate reads from it."""

import json
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PointerStatus,
    ScheduledCommand,
    SqlitePersistenceProvider,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.testing import ManualClock, full_event, full_instance, full_pointer, full_subscription

DATA = Path(__file__).parent.parent / "data"
EXPECTED = json.loads((DATA / "wfe-sqlite-1.11.4.json").read_text())
FAR = datetime.fromisoformat("2100-01-01T00:00:00Z")
IDS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(4)]


def _times(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("time", "until", "expiry", "as_of")
    return {
        key: datetime.fromisoformat(value) if isinstance(value, str) and key.endswith(names) else value
        for key, value in fields.items()
    }


def _pointer(fields: dict[str, Any]) -> ExecutionPointer:
    return ExecutionPointer(**_times(fields) | {"status": PointerStatus(fields["status"])})


def _instance(fields: dict[str, Any]) -> WorkflowInstance:
    pointers = [_pointer(pointer) for pointer in fields["execution_pointers"]]
    status = WorkflowStatus(fields["status"])
    return WorkflowInstance(**_times(fields) | {"status": status, "execution_pointers": pointers})


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    file = shutil.copy(DATA / "wfe-sqlite-1.11.4.db", tmp_path / "store.db")
    clock = ManualClock(datetime.fromisoformat("2026-05-28T20:27:30Z"))
    async with SqlitePersistenceProvider(file, clock=clock) as opened:
        yield opened


async def test_it_returns_what_the_reference_returns(provider: SqlitePersistenceProvider) -> None:
    workflows = [_instance(fields) for fields in EXPECTED["workflows"]]
    assert await provider.get_workflow_instances([workflow.id for workflow in workflows]) == workflows
    for workflow in workflows:
        assert await provider.get_workflow_instance(workflow.id) == workflow
        assert await provider.get_workflow_instance_by_name(workflow.name) == workflow
    assert await provider.get_runnable_instances(FAR) == EXPECTED["runnable"]
    by_time = [event["id"] for event in sorted(EXPECTED["events"], key=lambda event: event["event_time"][:26])]
    assert sorted(await provider.get_runnable_events(FAR)) == sorted(by_time)
    for fields in EXPECTED["events"]:
        assert await provider.get_event(fields["id"]) == Event(**_times(fields))
    subscriptions = [EventSubscription(**_times(fields)) for fields in EXPECTED["subscriptions"]]
    assert await provider.get_subscriptions("paid", "k1", FAR) == subscriptions
    assert await provider.next_definition_sequence("order") == EXPECTED["next"]


async def test_an_event_with_nanoseconds_is_found_by_its_own_time(provider: SqlitePersistenceProvider) -> None:
    event = await provider.get_event("30000000-0000-4000-8000-000000000003")
    assert event.event_time.microsecond == 123456
    assert event.id in await provider.get_runnable_events(event.event_time)
    assert await provider.get_events("paid", "k3", event.event_time) == [event.id]
    before = event.event_time - timedelta(microseconds=1)
    assert event.id not in await provider.get_runnable_events(before)
    subscription = await provider.get_subscription("20000000-0000-4000-8000-000000000003")
    assert await provider.get_subscriptions("paid", "k3", subscription.subscribe_as_of) == [subscription]


async def test_errors_and_commands_of_the_reference(provider: SqlitePersistenceProvider) -> None:
    errors = await provider.get_execution_errors()
    assert [error.message for error in errors] == ["boom 0", "boom 1", "boom 2", "boom 3"]
    handled = []

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command)

    await provider.process_commands(FAR, handler)
    assert handled == [ScheduledCommand.process_workflow(id_, 1_780_000_000_000 + n) for n, id_ in enumerate(IDS)]


async def test_every_write_works_on_it(provider: SqlitePersistenceProvider) -> None:
    new = full_instance()
    await provider.create_new_workflow(new)
    assert await provider.get_workflow_instance(new.id) == new

    loaded = await provider.get_workflow_instance(IDS[3])
    loaded.status, loaded.data = WorkflowStatus.Complete, {"done": True}
    loaded.execution_pointers.insert(1, full_pointer())
    loaded.execution_pointers[0].retry_count += 1
    await provider.persist_workflow(loaded)
    assert await provider.get_workflow_instance(IDS[3]) == loaded

    waiting = await provider.get_workflow_instance(IDS[0])
    waiting.description = "waits"
    subscription = full_subscription(workflow_id=IDS[0], event_key="new")
    await provider.persist_workflow_with_subscriptions(waiting, [subscription])
    assert await provider.get_workflow_instance(IDS[0]) == waiting
    assert await provider.get_subscriptions("paid", "new", FAR) == [subscription]

    other = full_subscription(event_key="new")
    await provider.create_event_subscription(other)
    await provider.terminate_subscription(subscription.id)
    assert await provider.get_subscriptions("paid", "new", FAR) == [other]

    held = "20000000-0000-4000-8000-000000000001"
    assert not await provider.set_subscription_token(held, "mine", "worker-2", FAR)
    await provider.clear_subscription_token(held, "tok")
    assert await provider.set_subscription_token(held, "mine", "worker-2", FAR)
    assert await provider.get_first_open_subscription("paid", "k1", FAR) is None

    event = full_event(event_key="new")
    await provider.create_event(event)
    assert await provider.get_event(event.id) == event
    await provider.mark_event_unprocessed("30000000-0000-4000-8000-000000000000")
    await provider.mark_event_processed("30000000-0000-4000-8000-000000000001")
    runnable = await provider.get_runnable_events(FAR)
    assert "30000000-0000-4000-8000-000000000000" in runnable
    assert "30000000-0000-4000-8000-000000000001" not in runnable

    error = ExecutionError(workflow_id=IDS[0], execution_pointer_id="p", message="boom again")
    await provider.persist_errors([error])
    assert (await provider.get_execution_errors(IDS[0]))[-1] == error

    earlier = ScheduledCommand.process_workflow(IDS[2], 5)
    await provider.schedule_command(earlier)
    handled = []

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command)

    await provider.process_commands(FAR, handler, limit=1)
    assert handled == [earlier]
    assert [await provider.next_definition_sequence("order") for _ in range(2)] == [5, 6]
    assert await provider.next_definition_sequence("new") == 1
