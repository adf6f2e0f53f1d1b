"""What errors and findings say to people, beyond what the Protocols promise for any backend."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from wfe_sql import (
    Claim,
    ClaimLostError,
    ExecutionError,
    FindingKind,
    ScheduledCommand,
    SerializationError,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WorkflowConflictError,
    WorkflowStatus,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

LEASE = timedelta(seconds=30)
NAIVE = TIME.replace(tzinfo=None)


@pytest.fixture
async def provider(
    connect_store: Callable[..., SqlPersistenceProvider], wfe_clock: ManualClock
) -> AsyncIterator[SqlPersistenceProvider]:
    wfe_clock.now = TIME
    async with connect_store(clock=wfe_clock) as opened:
        yield opened


async def _never(command: ScheduledCommand) -> None:
    raise AssertionError(command)


async def _refused(*calls: tuple[str, Awaitable[Any]]) -> None:
    for message, call in calls:
        with pytest.raises(SerializationError, match=message):
            await call


def _with_pointers(provider: SqlPersistenceProvider, pointers: Any) -> Awaitable[str]:
    return provider.create_new_workflow(sample_instance(execution_pointers=pointers))


async def test_arguments(wfe_provider: SqlPersistenceProvider) -> None:
    provider = wfe_provider
    call: Any = provider
    instance: Any = sample_instance(id="w1")
    seven: Any = 7
    pointer = full_pointer()
    twins = [full_pointer(id="p1"), full_pointer(), full_pointer(id="p1")]
    error = ExecutionError(error_time=NAIVE, workflow_id="w", execution_pointer_id="p", message="m")
    many = [("execution_pointers must be a list of ExecutionPointer, not " + kind) for kind in ("dict", "NoneType")]
    await _refused(
        ("expected WorkflowInstance, not dict", call.create_new_workflow({"id": "w2"})),
        ("expected WorkflowInstance, not NoneType", call.persist_workflow_with_subscriptions(None, [])),
        ("expected Event, not NoneType", call.create_event(None)),
        ("expected EventSubscription, not str", call.create_event_subscription("s1")),
        ("expected ScheduledCommand, not tuple", call.schedule_command(("ProcessWorkflow", "w1", 0))),
        ("subscriptions must be a list of Event", call.persist_workflow_with_subscriptions(instance, None)),
        ("expected EventSubscription, not dict", call.persist_workflow_with_subscriptions(instance, [{}])),
        ("errors must be a list of ExecutionError, not NoneType", call.persist_errors(None)),
        ("errors must be a list of ExecutionError, not str", call.persist_errors("boom")),
        ("expected ExecutionError, not str", call.persist_errors(["boom"])),
        ("ids must be a list of str, not str", call.get_workflow_instances("w1")),
        ("ids must be a list of str, not NoneType", call.get_workflow_instances(None)),
        ("ids must be a str, not int", call.get_workflow_instances([1])),
        ("id must be a str, not int", call.get_workflow_instance(1)),
        ("ExecutionPointer.id must be a str, not list", _with_pointers(provider, [full_pointer(id=["p1"])])),
        (many[0], _with_pointers(provider, {"p": pointer})),
        (many[1], _with_pointers(provider, None)),
        ("expected ExecutionPointer, not str", _with_pointers(provider, ["p1"])),
        (r"execution_pointers\[2\].id 'p1'", _with_pointers(provider, twins)),
        ("handler must be an async function", call.process_commands(TIME, None)),
        ("as_of must be a datetime, not int", call.process_commands(0, _never)),
        ("as_at must be a datetime, not str", call.get_runnable_instances("2026-05-28")),
        ("expiry must be a datetime, not timedelta", call.set_subscription_token("s", "t", "w", timedelta(1))),
        ("ExecutionError.error_time is naive", provider.persist_errors([error])),
        ("as_at is naive", provider.get_runnable_instances(NAIVE)),
        ("EventSubscription.id must not be empty", provider.create_event_subscription(full_subscription(id=""))),
        ("token must not be empty", provider.set_subscription_token("s1", "", "w", TIME)),
        ("Event.id contains a NUL character", provider.create_event(full_event(id="e\0"))),
        ("WorkflowInstance.data cannot be stored as JSON", provider.create_new_workflow(sample_instance(data=TIME))),
        (
            "WorkflowInstance.version does not fit into 64 bits",
            provider.create_new_workflow(sample_instance(version=2**63)),
        ),
        ("limit must be at least 1, not 0", provider.get_execution_errors(limit=0)),
        ("lease must be above zero", provider.process_commands(TIME, _never, lease=timedelta(0))),
        ("lease is too long: it would end after the year 9999", _claim(provider, lease=timedelta.max)),
        (r"lease must be a timedelta, not int: write timedelta\(seconds=30\)", _claim(provider, lease=30)),
        (r"lease must be a timedelta, not float: write timedelta\(seconds=1.5\)", _claim(provider, lease=1.5)),
        ("lease must be a timedelta, not NoneType", _claim(provider, lease=None)),
        ("only Complete or Terminated", provider.purge_workflows(WorkflowStatus.Runnable, LEASE)),
        ("older_than is naive", provider.purge_events(NAIVE)),
        ("older_than must not be negative", provider.purge_orphaned_errors(-LEASE)),
        ("older_than is too far in the past", provider.purge_events(timedelta(days=999_999))),
        ("batch_size must be at least 1", provider.purge_events(LEASE, batch_size=0)),
        (r"older_than must be a timedelta, not int: write timedelta\(seconds=7", provider.purge_events(seven)),
        (r"overdue_after must be a timedelta, not int: write timedelta", provider.check(overdue_after=seven)),
        ("overdue_after must not be negative", provider.check(overdue_after=-LEASE)),
        ("overdue_after is too far in the past", provider.check(overdue_after=timedelta.max)),
    )


async def _claim(provider: SqlPersistenceProvider, worker: str = "one", lease: Any = LEASE) -> list[Claim]:
    return await provider.claim_runnable_instances(TIME, worker, lease=lease, limit=10)


async def test_a_clock_that_is_wrong(wfe_provider: SqlPersistenceProvider, wfe_clock: ManualClock) -> None:
    provider, instance = wfe_provider, sample_instance(id="w")
    await provider.create_new_workflow(instance)
    (claim,) = await _claim(provider)
    wrong: dict[str, Any] = {
        "the clock's time is naive": NAIVE,
        "the clock's time must be a datetime, not float": 1.5,
        "the clock's time is out of range in UTC": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    }
    for message, now in wrong.items():
        wfe_clock.now = now
        await _refused(
            (message, _claim(provider)),
            (message, provider.claim_runnable_events(TIME, "one", lease=LEASE, limit=1)),
            (message, provider.renew_claim(claim, LEASE)),
            (message, provider.persist_workflow(instance)),
            (message, provider.get_first_open_subscription("paid", "k1", TIME)),
        )


async def test_claims(provider: SqlPersistenceProvider) -> None:
    for id_ in ("a", "b"):
        await provider.create_new_workflow(sample_instance(id=id_, next_execution=0))
    claim = (await _claim(provider))[0]
    await provider.release_claim(claim)
    for lost in (
        provider.release_claim(claim),
        provider.renew_claim(claim, LEASE),
        provider.persist_workflow(await provider.get_workflow_instance("a"), claim=claim),
    ):
        with pytest.raises(ClaimLostError, match="'one' no longer holds workflow 'a'"):
            await lost
    other = await provider.get_workflow_instance("b")
    wrong: Any = {"id": "a"}
    kinds: tuple[Any, ...] = ("Order", None)
    await _refused(
        ("this claim is for workflow 'a', but the write is to workflow", provider.persist_workflow(other, claim=claim)),
        *(
            (
                f"Claim.kind must be one of Workflow, Event, not {kind!r}",
                provider.release_claim(replace(claim, kind=kind)),
            )
            for kind in kinds
        ),
        ("Claim.token must be a str, not NoneType", provider.release_claim(replace(claim, token=None))),  # type: ignore[arg-type]
        ("expected Claim, not dict", provider.release_claim(wrong)),
    )


async def test_workflows(provider: SqlPersistenceProvider) -> None:
    owner = sample_instance(id="owner", execution_pointers=[full_pointer(id="p1")])
    await provider.create_new_workflow(owner)
    thief = sample_instance(id="thief", execution_pointers=[full_pointer(), full_pointer(id="p1")])
    with pytest.raises(StoreError, match="'p1' of workflow 'thief' belongs to workflow 'owner'"):
        await provider.create_new_workflow(thief)
    await provider.delete_workflow("owner")
    await provider.create_new_workflow(sample_instance(id="owner", create_time=TIME + LEASE))
    with pytest.raises(WorkflowConflictError, match="'owner' was deleted and created again"):
        await provider.persist_workflow(owner)


async def test_subscriptions(provider: SqlPersistenceProvider) -> None:
    """Nobody can use the token with which PostgreSQL marks terminated subscriptions, so that stores can be copied."""
    reserved = "wfe-sql:terminated"
    with pytest.raises(SerializationError, match="external_token must not be"):
        await provider.create_event_subscription(full_subscription(id="s1", external_token=reserved))
    with pytest.raises(SubscriptionNotFoundError):
        await provider.get_subscription("s1")
    free = full_subscription(id="s1", external_token=None, external_worker_id=None, external_token_expiry=None)
    await provider.create_event_subscription(free)
    with pytest.raises(SerializationError, match="token must not be"):
        await provider.set_subscription_token("s1", reserved, "worker", TIME)
    with pytest.raises(SubscriptionTokenError, match="theirs"):
        await provider.clear_subscription_token("s1", "theirs")
    assert await provider.get_subscription("s1") == free


async def test_a_lost_command_is_logged_by_its_number(
    provider: SqlPersistenceProvider, wfe_clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await provider.schedule_command(ScheduledCommand.process_workflow("secret", 0))

    async def take_it_after_a_minute(command: ScheduledCommand) -> None:
        wfe_clock.advance(seconds=61)
        await provider.process_commands(wfe_clock(), handle)

    async def handle(command: ScheduledCommand) -> None:
        pass

    await provider.process_commands(wfe_clock(), take_it_after_a_minute)
    (lost,) = (record.getMessage() for record in caplog.records if record.name == "wfe_sql")
    assert re.fullmatch(r"scheduled command \d+ is no longer held: its lease ended, and another host took it", lost)


async def test_findings(provider: SqlPersistenceProvider, wfe_clock: ManualClock) -> None:
    minutes = timedelta(minutes=1)
    await provider.create_new_workflow(sample_instance(id="w", next_execution=0, create_time=TIME))
    await provider.create_event(full_event(id="e", event_time=TIME, is_processed=False))
    await provider.schedule_command(ScheduledCommand.process_workflow("gone", -(2**63)))
    await provider.claim_runnable_instances(TIME, "host-1", lease=minutes, limit=1)
    await provider.claim_runnable_events(TIME, "host-1", lease=minutes, limit=1)
    await provider.create_event_subscription(
        full_subscription(id="s", workflow_id="w", execution_pointer_id="p1", external_token_expiry=TIME + minutes)
    )
    orphan = full_subscription(id="s2", workflow_id="gone", external_token=None, external_token_expiry=None)
    await provider.create_event_subscription(orphan)
    await provider.persist_errors([ExecutionError(workflow_id="gone", execution_pointer_id="p", message="boom")])
    wfe_clock.advance(minutes=2)
    findings = await provider.check(overdue_after=minutes)

    def said(kind: FindingKind) -> list[str]:
        return [finding.message for finding in findings if finding.kind is kind]

    overdue, expired, orphans = (
        said(kind) for kind in (FindingKind.Overdue, FindingKind.ExpiredClaim, FindingKind.Orphan)
    )
    assert [message.split(" and ")[0] for message in overdue] == [
        "1 workflows are overdue",
        "1 events are overdue",
        "1 scheduled commands are overdue",
    ]
    assert overdue[0].endswith(f"since {TIME.replace(microsecond=0).isoformat()}")
    assert str(-(2**63)) in overdue[2]
    assert [message.partition(":")[0] for message in expired] == [
        "event_subscriptions id 's'",
        "events id 'e'",
        "workflows id 'w'",
    ]
    assert "'host-1'" in expired[1]
    assert [message.split(" of id ")[0] for message in orphans] == [
        "event_subscriptions.workflow_id",
        "execution_errors.workflow_id",
        "scheduled_commands.data",
        "event_subscriptions.execution_pointer_id",
    ]
    assert "'gone', which does not exist" in orphans[2]
    assert "'p1', which is not a pointer of workflow 'w', so it waits forever; add the pointer" in orphans[3]
