"""What `MaintenanceRepository` promises."""

import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.errors import EventNotFoundError, SerializationError, WorkflowNotFoundError
from wfe_sql.maintenance.models import Backlog, FindingKind, WorkflowCount
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.models import (
    CommandName,
    ExecutionError,
    ExecutionPointer,
    PointerStatus,
    ScheduledCommand,
    WorkflowStatus,
)
from wfe_sql.repositories import (
    ClaimRepository,
    EventRepository,
    ExecutionErrorRepository,
    ScheduledCommandRepository,
    SubscriptionRepository,
    WorkflowRepository,
)
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.conformance.bad_input import refused, refused_types
from wfe_sql.testing.samples import TIME, full_event, full_instance, full_pointer, full_subscription, sample_instance

DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
Complete, Terminated = WorkflowStatus.Complete, WorkflowStatus.Terminated
NO_PAGE: tuple[Any, ...] = (
    *("", ",", "x", "x,y", "2026-05-28,w", "2026-05-28T20:26:40,w", "infinity,w", "2026-05-28T20:26:40+00:00,"),
    *("2026-05-28T20:26:40+00:00,\0", "2026-05-28T20:26:40+00:00,\ud800", "1,2", 7, b"x", ("x", "y")),
)
"""Values that are not the `after` of any page."""


class MaintainedProvider(
    WorkflowRepository,
    SubscriptionRepository,
    EventRepository,
    ClaimRepository,
    ExecutionErrorRepository,
    MaintenanceRepository,
    Protocol,
):
    """A provider with everything but scheduled commands."""


class MaintainedCommands(MaintainedProvider, ScheduledCommandRepository, Protocol):
    """A provider with everything."""


async def _store(provider: MaintainedProvider, id_: str, **fields: Any) -> None:
    """Store a workflow with a subscription and an error."""
    await provider.create_new_workflow(full_instance(id=id_, name=f"name of {id_}", **fields))
    await provider.create_event_subscription(full_subscription(id=f"s-{id_}", workflow_id=id_))
    await provider.persist_errors([ExecutionError(workflow_id=id_, execution_pointer_id="p", message="boom")])


async def _is_whole(provider: MaintainedProvider, id_: str) -> bool:
    """Tell whether a workflow exists with its subscription and its error; if not, none of these may exist."""
    workflows = await provider.get_workflow_instances([id_])
    errors = await provider.get_execution_errors(id_)
    subscriptions = [s for s in await provider.get_subscriptions("paid", "k1", TIME) if s.workflow_id == id_]
    assert len(workflows) == len(errors) == len(subscriptions)
    assert not workflows or len(workflows[0].execution_pointers) == 3
    return bool(workflows)


async def _commands(provider: MaintainedCommands) -> list[tuple[str, str]]:
    """Handle all commands, and return them in the order of their data."""
    commands: list[tuple[str, str]] = []

    async def handler(command: ScheduledCommand) -> None:
        commands.append((command.data, command.command_name.value))

    await provider.process_commands(TIME, handler)
    return sorted(commands)


async def _dump(provider: MaintainedProvider) -> list[dict[str, Any]]:
    async with aclosing(provider.dump()) as lines:
        return [json.loads(line) async for line in lines]


async def _left(provider: MaintainedProvider, *ids: str) -> list[str]:
    """Return which of these workflows exist."""
    return [workflow.id for workflow in await provider.get_workflow_instances(ids)]


@pytest.mark.asyncio
class TestDeleting:
    """Delete one workflow, or all that are finished."""

    async def test_everything_that_belongs_to_a_workflow_goes_with_it(self, provider: MaintainedProvider) -> None:
        for id_ in ("stays", "goes"):
            await _store(provider, id_)
        await provider.delete_workflow("goes")
        assert not await _is_whole(provider, "goes")
        assert await _is_whole(provider, "stays")

    async def test_delete_of_what_is_not_there(self, provider: MaintainedProvider) -> None:
        await _store(provider, "stays")
        with pytest.raises(WorkflowNotFoundError, match="nothing"):
            await provider.delete_workflow("nothing")
        await refused(("id", provider.delete_workflow("stays\0")))
        assert await _is_whole(provider, "stays")

    async def test_purge_by_status_and_age(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = TIME
        for id_, age in {"old": 30 * DAY + MICROSECOND, "border": 30 * DAY, "new": DAY}.items():
            await _store(provider, id_, status=Complete, create_time=TIME - 99 * DAY, complete_time=TIME - age)
        for status in (Terminated, WorkflowStatus.Suspended, WorkflowStatus.Runnable):
            await _store(provider, status, status=status, complete_time=TIME - 90 * DAY)
        assert await provider.purge_workflows(Complete, 30 * DAY, dry_run=True) == 1
        ids = ("Runnable", "Suspended", "Terminated", "border", "new", "old")
        assert await _left(provider, *ids) == list(ids)
        assert await provider.purge_workflows(Complete, 30 * DAY) == 1
        assert await _left(provider, *ids) == list(ids[:5])
        assert await provider.purge_workflows(Complete, TIME) == 2
        assert await provider.purge_workflows(Complete, TIME) == 0
        assert await _left(provider, *ids) == list(ids[:3])

    @pytest.mark.parametrize("status", [Complete, Terminated])
    async def test_without_a_complete_time_the_create_time_counts(
        self, provider: MaintainedProvider, status: WorkflowStatus
    ) -> None:
        await _store(provider, "old", status=status, create_time=TIME - DAY, complete_time=None)
        await _store(provider, "new", status=status, create_time=TIME, complete_time=None)
        assert await provider.purge_workflows(status, TIME, dry_run=True) == 1
        assert await provider.purge_workflows(status, TIME) == 1
        assert await _left(provider, "old", "new") == ["new"]

    async def test_purge_in_batches(self, provider: MaintainedProvider) -> None:
        for number in range(7):
            await _store(provider, f"w{number}", status=Complete, complete_time=TIME - timedelta(seconds=number))
        await _store(provider, "stays", status=WorkflowStatus.Suspended)
        deleted: list[int] = []
        assert await provider.purge_workflows(Complete, TIME + DAY, batch_size=3, on_batch=deleted.append) == 7
        assert deleted == [3, 6, 7]
        assert [id_ for id_ in (*(f"w{number}" for number in range(7)), "stays") if await _is_whole(provider, id_)] == [
            "stays"
        ]

    async def test_a_purge_that_is_stopped_keeps_what_it_has_done(self, provider: MaintainedProvider) -> None:
        for number in range(5):
            complete_time = TIME - timedelta(seconds=number)
            await _store(provider, f"w{number}", status=Complete, complete_time=complete_time)

        def stop(deleted: int) -> None:
            raise InterruptedError(deleted)

        with pytest.raises(InterruptedError, match="2"):
            await provider.purge_workflows(Complete, TIME + DAY, batch_size=2, on_batch=stop)
        left = await _left(provider, *(f"w{number}" for number in range(5)))
        assert left == ["w0", "w1", "w2"]  # the oldest went first

    async def test_purge_of_processed_events(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = TIME
        for number in range(7):
            await provider.create_event(full_event(id=f"e{number}", event_time=TIME - 9 * DAY))
        await provider.create_event(full_event(id="border", event_time=TIME - 7 * DAY))
        await provider.create_event(full_event(id="waits", event_time=TIME - 9 * DAY, is_processed=False))
        assert await provider.purge_events(7 * DAY, dry_run=True) == 7
        deleted: list[int] = []
        assert await provider.purge_events(7 * DAY, batch_size=3, on_batch=deleted.append) == 7
        assert deleted == [3, 6, 7]
        assert await provider.get_events("paid", "k1", TIME) == ["waits", "border"]
        with pytest.raises(EventNotFoundError):
            await provider.get_event("e0")

    async def test_purge_of_errors_whose_workflow_is_gone(
        self, provider: MaintainedProvider, clock: ManualClock
    ) -> None:
        clock.now = TIME

        def error(workflow_id: str, age: timedelta) -> ExecutionError:
            return ExecutionError(
                error_time=TIME - age, workflow_id=workflow_id, execution_pointer_id="p", message=workflow_id
            )

        await provider.create_new_workflow(sample_instance(id="stays"))
        await provider.persist_errors([error("stays", 9 * DAY), error("gone", 7 * DAY)])
        await provider.persist_errors([error(f"gone {number}", 9 * DAY) for number in range(7)])
        await provider.persist_errors([error("stays", 8 * DAY)])
        assert await provider.purge_orphaned_errors(7 * DAY, dry_run=True) == 7
        deleted: list[int] = []
        assert await provider.purge_orphaned_errors(7 * DAY, batch_size=3, on_batch=deleted.append) == 7
        assert deleted == [3, 6, 7]
        messages = [error.message for error in await provider.get_execution_errors()]
        assert messages == ["stays", "gone", "stays"]
        assert await provider.purge_orphaned_errors(TIME) == 1
        assert await provider.purge_orphaned_errors(timedelta(0)) == 0
        assert len(await provider.get_execution_errors()) == 2

    async def test_in_the_night_when_clocks_go_forward(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = datetime(2026, 3, 29, 3, 30, tzinfo=ZoneInfo("Europe/Berlin"))
        now, hour = clock.now.astimezone(UTC), timedelta(hours=1)
        await _store(provider, "young", status=Complete, complete_time=now - hour + MICROSECOND)
        await _store(provider, "old", status=Complete, complete_time=now - hour - MICROSECOND)
        await provider.create_event(full_event(id="young", event_time=now - hour + MICROSECOND))
        assert await provider.purge_events(hour) == 0
        assert await provider.purge_workflows(Complete, hour) == 1
        assert await _left(provider, "old", "young") == ["young"]

    async def test_what_cannot_be_purged(self, provider: MaintainedProvider) -> None:
        seven: Any = 7
        await refused(
            ("older_than", provider.purge_workflows(Complete, TIME.replace(tzinfo=None))),
            ("older_than", provider.purge_workflows(Complete, -DAY)),
            ("older_than", provider.purge_workflows(Complete, timedelta(days=999_999))),
            ("older_than", provider.purge_workflows(Complete, seven)),
            ("batch_size", provider.purge_workflows(Complete, DAY, batch_size=0)),
            ("older_than", provider.purge_events(TIME.replace(tzinfo=None))),
            ("older_than", provider.purge_events(seven)),
            ("batch_size", provider.purge_events(DAY, batch_size=0)),
            ("older_than", provider.purge_orphaned_errors(-DAY)),
            ("batch_size", provider.purge_orphaned_errors(DAY, batch_size=0)),
        )
        await refused_types([provider.purge_workflows(WorkflowStatus.Runnable, DAY)])


@pytest.mark.asyncio
class TestListing:
    """Pages for people."""

    async def test_workflows_by_pages(self, provider: MaintainedProvider) -> None:
        for id_, seconds in {"c": 1, "a": 2, "b": 2, "d": 3, "e": 0}.items():
            await provider.create_new_workflow(
                sample_instance(id=id_, create_time=TIME + timedelta(seconds=seconds), execution_pointers=[])
            )
        first = await provider.list_workflows(limit=2)
        assert [workflow.id for workflow in first.items] == ["d", "b"]
        await provider.create_new_workflow(sample_instance(id="later", create_time=TIME + DAY))
        second = await provider.list_workflows(limit=2, after=first.after)
        third = await provider.list_workflows(limit=2, after=second.after)
        assert [workflow.id for workflow in second.items + third.items] == ["a", "c", "e"]
        assert third.after is None

    async def test_workflows_by_filters(self, provider: MaintainedProvider) -> None:
        instance = full_instance(id="w", status=Terminated, workflow_definition_id="refund")
        await provider.create_new_workflow(instance)
        await provider.create_new_workflow(sample_instance(id="other", create_time=TIME + DAY))
        (found,) = (await provider.list_workflows(status=Terminated)).items
        for name in ("id", "name", "version", "status", "next_execution", "create_time", "complete_time"):
            assert getattr(found, name) == getattr(instance, name)
        assert (found.workflow_definition_id, found.claim_worker_id, found.claim_expires_at) == ("refund", None, None)
        assert (await provider.list_workflows(definition_id="refund")).items == [found]
        assert [w.id for w in (await provider.list_workflows(since=TIME + MICROSECOND)).items] == ["other"]
        assert [w.id for w in (await provider.list_workflows(since=TIME)).items] == ["other", "w"]
        assert (await provider.list_workflows(status=Complete)).items == []

    async def test_the_children_of_a_workflow(self, provider: MaintainedProvider) -> None:
        for number, root in enumerate([None, "parent", "other", "parent", "parent"]):
            await provider.create_new_workflow(
                sample_instance(
                    id=f"w{number}",
                    root_workflow_id=root,
                    status=Complete if number == 3 else WorkflowStatus.Runnable,
                    create_time=TIME + timedelta(seconds=number),
                )
            )
        first = await provider.list_workflows(root_workflow_id="parent", limit=2)
        rest = await provider.list_workflows(root_workflow_id="parent", limit=2, after=first.after)
        assert [[workflow.id for workflow in page.items] for page in (first, rest)] == [["w4", "w3"], ["w1"]]
        done = await provider.list_workflows(root_workflow_id="parent", status=Complete)
        later = await provider.list_workflows(root_workflow_id="parent", since=TIME + timedelta(seconds=4))
        assert [[workflow.id for workflow in page.items] for page in (done, later)] == [["w3"], ["w4"]]
        assert (await provider.list_workflows(root_workflow_id="w1")).items == []

    async def test_a_claim_is_shown(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        await provider.create_new_workflow(sample_instance())
        (claim,) = await provider.claim_runnable_instances(TIME, "host-1", lease=DAY, limit=1)
        (found,) = (await provider.list_workflows()).items
        assert (found.claim_worker_id, found.claim_expires_at) == ("host-1", claim.expires_at)

    async def test_events_by_pages(self, provider: MaintainedProvider) -> None:
        stored = [
            full_event(id=id_, event_time=TIME + timedelta(seconds=seconds), is_processed=seconds > 0)
            for id_, seconds in {"b": 1, "c": 1, "a": 1, "d": 0}.items()
        ]
        for event in stored:
            await provider.create_event(event)
        first = await provider.list_events(limit=2)
        rest = await provider.list_events(limit=3, after=first.after)
        assert first.items + rest.items == [stored[1], stored[0], stored[2], stored[3]]
        assert rest.after is None
        assert (await provider.list_events(is_processed=False)).items == [stored[3]]
        assert [event.id for event in (await provider.list_events(is_processed=True)).items] == ["c", "b", "a"]

    async def test_errors_by_pages(self, provider: MaintainedProvider) -> None:
        errors = [
            ExecutionError(error_time=TIME, workflow_id=f"w{number % 2}", execution_pointer_id="p", message=str(number))
            for number in range(5)
        ]
        await provider.persist_errors(errors)
        first = await provider.list_execution_errors(limit=3)
        rest = await provider.list_execution_errors(limit=3, after=first.after)
        assert first.items + rest.items == errors[::-1]
        assert (await provider.list_execution_errors(workflow_id="w1")).items == [errors[3], errors[1]]

    async def test_errors_with_names(self, provider: MaintainedProvider) -> None:
        pointers = [ExecutionPointer(id="p1", step_id=4, step_name="pay"), ExecutionPointer(id="p2", step_id=5)]
        await provider.create_new_workflow(sample_instance(id="w", name="order-1", execution_pointers=pointers))
        errors = [
            ExecutionError(error_time=TIME, workflow_id=workflow, execution_pointer_id=pointer, message=pointer)
            for workflow, pointer in (("w", "p1"), ("w", "p2"), ("w", "gone"), ("gone", "gone"))
        ]
        await provider.persist_errors(errors)
        first = await provider.list_error_summaries(limit=2)
        rest = await provider.list_error_summaries(limit=3, after=first.after)
        found = (first.items + rest.items)[::-1]
        assert [(each.workflow_name, each.step_id, each.step_name) for each in found] == [
            ("order-1", 4, "pay"),
            ("order-1", 5, None),
            ("order-1", None, None),
            (None, None, None),
        ]
        for each, error in zip(found, errors, strict=True):
            for name in ("error_time", "workflow_id", "execution_pointer_id", "message"):
                assert getattr(each, name) == getattr(error, name)
        assert (await provider.list_error_summaries(workflow_id="w")).items == found[2::-1]

    async def test_subscriptions_of_a_workflow(self, provider: MaintainedProvider) -> None:
        ended = full_subscription(workflow_id="w1", subscribe_as_of=TIME)
        live = full_subscription(workflow_id="w1", subscribe_as_of=TIME - DAY)
        for subscription in (ended, live, full_subscription(workflow_id="w2")):
            await provider.create_event_subscription(subscription)
        await provider.terminate_subscription(ended.id)
        found = await provider.list_event_subscriptions("w1")
        assert [(each.subscription, each.terminated) for each in found] == [(live, False), (ended, True)]
        assert len(await provider.list_event_subscriptions("w1", limit=1)) == 1

    async def test_bad_arguments(self, provider: MaintainedProvider) -> None:
        for call in (
            provider.list_workflows(limit=0),
            provider.list_workflows(limit=10_001),
            provider.list_workflows(after="x"),
            provider.list_workflows(since=TIME.replace(tzinfo=None)),
            provider.list_events(after=""),
            provider.list_execution_errors(after="x"),
            provider.list_error_summaries(after="x"),
            provider.list_execution_errors(after=str(2**63)),
            provider.list_event_subscriptions("w", limit=0),
        ):
            with pytest.raises(SerializationError):
                await call

    async def test_what_no_page_gave_to_go_on_after(self, provider: MaintainedProvider) -> None:
        for after in NO_PAGE:
            await refused(
                ("after", provider.list_workflows(after=after)),
                ("after", provider.list_events(after=after)),
                ("after", provider.list_execution_errors(after=after if after != 7 else f"{2**63}")),
            )


@pytest.mark.asyncio
class TestHealth:
    """The contents of a store, and its problems."""

    async def test_an_empty_store(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        stats = await provider.stats()
        assert (stats.taken_at, stats.workflows, set(stats.rows.values())) == (clock(), [], {0})
        assert stats.due_workflows == stats.due_events == Backlog(0, None)
        assert stats.size_bytes >= (stats.free_bytes or 0) >= 0
        assert await provider.check() == []

    async def test_stats(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = TIME
        due = int(TIME.timestamp() * 1000)
        for number in range(3):
            create_time = TIME - number * DAY
            await provider.create_new_workflow(sample_instance(next_execution=due - number, create_time=create_time))
        await provider.create_new_workflow(sample_instance(next_execution=due + 1, workflow_definition_id="later"))
        await _store(provider, "done", status=Complete, create_time=TIME)
        for days in (2, 1, -1):
            await provider.create_event(full_event(event_time=TIME - days * DAY, is_processed=False))
        stats = await provider.stats()
        assert stats.workflows == [
            WorkflowCount(workflow_definition_id=definition, status=status, workflows=count, oldest=oldest, newest=TIME)
            for definition, status, count, oldest in (
                ("later", "Runnable", 1, TIME),
                ("order", "Complete", 1, TIME),
                ("order", "Runnable", 3, TIME - 2 * DAY),
            )
        ]
        rows = {"workflows": 5, "execution_pointers": 7, "events": 3, "event_subscriptions": 1, "execution_errors": 1}
        assert {table: stats.rows[table] for table in rows} == rows
        assert stats.due_workflows == Backlog(3, TIME.replace(microsecond=121_000))
        assert stats.due_events == Backlog(2, TIME - 2 * DAY)

    async def test_overdue_work(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = TIME
        due = int(TIME.timestamp() * 1000)
        await provider.create_new_workflow(sample_instance(id="w", next_execution=due))
        await provider.create_event(full_event(id="e", event_time=TIME, is_processed=False))
        clock.advance(seconds=59)
        assert await provider.check(overdue_after=timedelta(minutes=1)) == []
        clock.advance(seconds=1)
        findings = await provider.check(overdue_after=timedelta(minutes=1))
        assert [finding.kind for finding in findings] == [FindingKind.Overdue] * 2

    async def test_what_was_just_made_or_is_claimed_is_not_overdue(
        self, provider: MaintainedProvider, clock: ManualClock
    ) -> None:
        clock.now = TIME
        lease = timedelta(minutes=10)
        await provider.create_new_workflow(sample_instance(id="w", next_execution=0, create_time=TIME))
        await provider.create_event(full_event(id="e", event_time=TIME, is_processed=False))
        assert await provider.check() == []
        assert (await provider.stats()).due_workflows == Backlog(1, TIME.replace(microsecond=0))
        clock.advance(minutes=5)
        assert len(await provider.check()) == 2
        await provider.claim_runnable_instances(clock(), "host-1", lease=lease, limit=1)
        await provider.claim_runnable_events(clock(), "host-1", lease=lease, limit=1)
        assert await provider.check() == []
        clock.advance(minutes=14, seconds=59)
        assert await provider.check() == []  # the claims ended less than five minutes ago
        clock.advance(seconds=1)
        kinds = [finding.kind for finding in await provider.check()]
        assert kinds == [FindingKind.Overdue] * 2 + [FindingKind.ExpiredClaim] * 2

    @pytest.mark.parametrize("number", [-(2**63), -62_135_596_800_001, 253_402_300_800_000])
    async def test_numbers_that_are_no_time(
        self, provider: MaintainedProvider, clock: ManualClock, number: int
    ) -> None:
        clock.now = TIME
        long_ago = TIME - DAY
        await provider.create_new_workflow(sample_instance(id="w", next_execution=number, create_time=long_ago))
        due = int(number < 0)
        assert (await provider.stats()).due_workflows.due == due
        assert [finding.kind for finding in await provider.check()] == [FindingKind.Overdue] * due

    async def test_how_long_overdue_cannot_be(self, provider: MaintainedProvider) -> None:
        five: Any = 5
        await refused(
            *(("overdue_after", provider.check(overdue_after=length)) for length in (five, -DAY, timedelta.max))
        )

    async def test_expired_claims(self, provider: MaintainedProvider, clock: ManualClock) -> None:
        clock.now = TIME
        await provider.create_new_workflow(sample_instance(id="w", next_execution=0))
        await provider.create_event(full_event(id="e", event_time=TIME, is_processed=False))
        lease = timedelta(minutes=1)
        await provider.claim_runnable_instances(TIME, "host-1", lease=lease, limit=1)
        await provider.claim_runnable_events(TIME, "host-1", lease=lease, limit=1)
        await provider.create_event_subscription(
            full_subscription(id="s", workflow_id="w", external_token_expiry=TIME + lease)
        )
        later = timedelta(minutes=5)

        async def found() -> int:
            findings = await provider.check(overdue_after=later)
            return sum(finding.kind is FindingKind.ExpiredClaim for finding in findings)

        clock.now = TIME + lease + later - MICROSECOND
        assert await found() == 0
        clock.now = TIME + lease + later
        assert await found() == 3

    async def test_orphans(self, provider: MaintainedProvider) -> None:
        await provider.create_event_subscription(full_subscription(id="s", workflow_id="gone", external_token=None))
        await provider.persist_errors([ExecutionError(workflow_id="gone", execution_pointer_id="p", message="boom")])
        orphans = [finding for finding in await provider.check() if finding.kind is FindingKind.Orphan]
        assert len(orphans) == 2

    async def test_what_waits_for_a_missing_pointer(self, provider: MaintainedProvider) -> None:
        """Of finished workflows and terminated subscriptions, nothing waits."""
        for id_, status in (("open", WorkflowStatus.Suspended), ("done", Complete)):
            first, waiting = f"{id_}-1", PointerStatus.PendingPredecessor
            pointers = [
                full_pointer(id=first, children=["gone"], scope=["gone"], predecessor_id="gone"),
                full_pointer(status=waiting, predecessor_id=first),
                full_pointer(status=waiting, predecessor_id=None),
                full_pointer(id=f"{id_}-2", status=waiting, predecessor_id="open-1" if id_ == "done" else "done-1"),
            ]
            await provider.create_new_workflow(full_instance(id=id_, status=status, execution_pointers=pointers))
            for subscription, pointer in (("whole", first), ("astray", "gone"), ("ended", "gone")):
                await provider.create_event_subscription(
                    full_subscription(id=f"{subscription}-{id_}", workflow_id=id_, execution_pointer_id=pointer)
                )
            await provider.terminate_subscription(f"ended-{id_}")
        found = [finding.message for finding in await provider.check() if finding.kind is FindingKind.Orphan]
        subscription, pointer = sorted(found)
        assert "event_subscriptions.execution_pointer_id of id 'astray-open' is 'gone'" in subscription
        assert "execution_pointers.predecessor_id of id 'open-2' is 'done-1'" in pointer

    async def test_statistics_can_be_updated(self, provider: MaintainedProvider) -> None:
        await _store(provider, "w")
        await provider.update_statistics()
        assert (await provider.get_workflow_instance("w")).id == "w"


@pytest.mark.asyncio
class TestDump:
    """Every row as text."""

    async def test_every_column_of_every_table(self, provider: MaintainedProvider) -> None:
        await _store(provider, "w", create_time=TIME)
        event = full_event(id="e")
        await provider.create_event(event)
        await provider.next_definition_sequence("order")
        lines = await _dump(provider)
        tables = [line["table"] for line in lines]
        assert tables == [
            "definition_sequences",
            "workflows",
            *["execution_pointers"] * 3,
            "events",
            "event_subscriptions",
            "execution_errors",
        ]
        row = {table: line["row"] for table, line in zip(tables, lines, strict=True)}
        assert row["definition_sequences"] == {"definition_id": "order", "next_num": 1}
        assert row["events"] == {
            "id": "e",
            "event_name": "paid",
            "event_key": "k1",
            "event_data": event.event_data,
            "event_time": "2026-05-28T20:26:40.123456+00:00",
            "is_processed": True,
            "claim_token": None,
            "claim_worker_id": None,
            "claim_expires_at": None,
        }
        assert (row["workflows"]["revision"], row["workflows"]["status"]) == (0, "Suspended")
        assert row["event_subscriptions"]["terminated"] is False

    async def test_the_order_does_not_depend_on_when_a_row_was_stored(self, provider: MaintainedProvider) -> None:
        for id_ in ("b", "c", "a"):
            await provider.create_new_workflow(full_instance(id=id_))
            await provider.create_event(full_event(id=id_))
        lines = await _dump(provider)
        for table in ("workflows", "events"):
            assert [line["row"]["id"] for line in lines if line["table"] == table] == ["a", "b", "c"]
        for id_ in ("a", "b", "c"):
            pointers = [line["row"]["id"] for line in lines if line["row"].get("workflow_id") == id_]
            instance = await provider.get_workflow_instance(id_)
            assert pointers == [pointer.id for pointer in instance.execution_pointers]

    async def test_all_lines_are_of_one_moment(self, provider: MaintainedProvider) -> None:
        await provider.create_new_workflow(sample_instance(id="w1"))
        await provider.create_event(full_event(id="e1"))
        before = [line async for line in provider.dump()]
        async with aclosing(provider.dump()) as lines:
            during = [await anext(lines)]
            await provider.create_event(full_event(id="e2"))
            during += [line async for line in lines]
        assert during == before
        assert len([line async for line in provider.dump()]) == len(before) + 1

    async def test_keys_are_sorted(self, provider: MaintainedProvider) -> None:
        await provider.create_event(full_event(id="e", event_data={"b": 1, "a": {"d": 1, "c": 2}}))
        async with aclosing(provider.dump()) as lines:
            (line,) = [line async for line in lines]
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    async def test_more_than_a_page(self, provider: MaintainedProvider) -> None:
        count = 1_001
        await provider.persist_errors(
            [ExecutionError(workflow_id="w", execution_pointer_id="p", message=str(n)) for n in range(count)]
        )
        pointers = {id_: [ExecutionPointer(id=f"{id_}{n}", step_id=n) for n in range(count)] for id_ in ("b", "a")}
        for id_ in pointers:
            await provider.create_new_workflow(sample_instance(id=id_, execution_pointers=pointers[id_]))
        rows = [line["row"] for line in await _dump(provider)]
        assert [row["message"] for row in rows if "message" in row] == [str(number) for number in range(count)]
        stored = [pointer.id for id_ in ("a", "b") for pointer in pointers[id_]]
        assert [row["id"] for row in rows if "retry_count" in row] == stored


@pytest.mark.asyncio
class TestMaintenanceOfCommands:
    """What maintenance does with scheduled commands."""

    async def test_a_workflow_s_command_goes_with_it(self, provider: MaintainedCommands) -> None:
        for id_ in ("stays", "goes"):
            await provider.create_new_workflow(sample_instance(id=id_))
            await provider.schedule_command(ScheduledCommand.process_workflow(id_, 1))
            await provider.schedule_command(ScheduledCommand.process_event(id_, 1))
        await provider.delete_workflow("goes")
        assert await _commands(provider) == [
            ("goes", CommandName.ProcessEvent),  # the command of an event belongs to no workflow
            ("stays", CommandName.ProcessEvent),
            ("stays", CommandName.ProcessWorkflow),
        ]

    async def test_the_commands_of_what_is_purged_go_with_it(
        self, provider: MaintainedCommands, clock: ManualClock
    ) -> None:
        clock.now = TIME
        for id_, processed in {"goes": True, "waits": False}.items():
            await provider.create_event(full_event(id=id_, event_time=TIME - 9 * DAY, is_processed=processed))
            status = Complete if processed else WorkflowStatus.Suspended
            await provider.create_new_workflow(sample_instance(id=id_, status=status, create_time=TIME - 9 * DAY))
            await provider.schedule_command(ScheduledCommand.process_event(id_, 1))
            await provider.schedule_command(ScheduledCommand.process_workflow(id_, 1))
        assert await provider.purge_events(7 * DAY) == 1
        assert await provider.purge_workflows(Complete, 7 * DAY) == 1
        assert await _commands(provider) == [
            ("waits", CommandName.ProcessEvent),
            ("waits", CommandName.ProcessWorkflow),
        ]

    async def test_commands_by_pages(self, provider: MaintainedCommands) -> None:
        for data, time in {"c": 5, "a": -2, "b": 5}.items():
            await provider.schedule_command(ScheduledCommand.process_workflow(data, time))
        first = await provider.list_scheduled_commands(limit=2)
        rest = await provider.list_scheduled_commands(limit=2, after=first.after)
        assert [(c.data, c.execute_time, c.claim_worker_id) for c in first.items + rest.items] == [
            ("a", -2, None),
            ("c", 5, None),
            ("b", 5, None),
        ]

    async def test_what_no_page_gave_to_go_on_after(self, provider: MaintainedCommands) -> None:
        await refused(
            *(("after", provider.list_scheduled_commands(after=after)) for after in NO_PAGE if after != "1,2")
        )

    async def test_health(self, provider: MaintainedCommands, clock: ManualClock) -> None:
        clock.now = TIME
        due = int(TIME.timestamp() * 1000)
        await provider.create_new_workflow(sample_instance(id="w", next_execution=None))
        await provider.schedule_command(ScheduledCommand.process_workflow("w", due))
        await provider.schedule_command(ScheduledCommand.process_event("gone", 2**62))
        stats = await provider.stats()
        assert stats.rows["scheduled_commands"] == 2
        assert stats.due_commands == Backlog(1, TIME.replace(microsecond=123_000))
        clock.advance(minutes=5)
        assert sorted(finding.kind for finding in await provider.check()) == [FindingKind.Orphan, FindingKind.Overdue]

    @pytest.mark.parametrize("number", [-(2**63), -62_135_596_800_001, 253_402_300_800_000])
    async def test_numbers_that_are_no_time(
        self, provider: MaintainedCommands, clock: ManualClock, number: int
    ) -> None:
        clock.now = TIME
        await provider.create_new_workflow(sample_instance(id="w", next_execution=None))
        await provider.schedule_command(ScheduledCommand.process_workflow("w", number))
        due = int(number < 0)
        assert (await provider.stats()).due_commands == Backlog(due, None)
        assert [finding.kind for finding in await provider.check()] == [FindingKind.Overdue] * due

    async def test_they_are_in_the_dump(self, provider: MaintainedCommands) -> None:
        await provider.schedule_command(ScheduledCommand.process_workflow("w", 1))
        (line,) = await _dump(provider)
        assert (line["table"], line["row"]["data"], line["row"]["rescheduled_time"]) == (
            "scheduled_commands",
            "w",
            None,
        )
