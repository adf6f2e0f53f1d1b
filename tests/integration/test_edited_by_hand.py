"""What polls, purges and checks do with rows that other programs and people wrote, on both databases."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from stores import dump, found
from wfe_sql import (
    CorruptRowError,
    ExecutionError,
    FindingKind,
    ScheduledCommand,
    StoreError,
    SubscriptionNotFoundError,
    WorkflowStatus,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, full_instance, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

Connect = Callable[..., SqlPersistenceProvider]
ByHand = Callable[[str], list[Any]]

DAY = timedelta(days=1)
LAST = 2**63 - 1


# numbers of definitions


async def test_a_sequence_that_has_come_to_its_end(connect_store: Connect, by_hand: ByHand) -> None:
    async with connect_store() as provider:
        await provider.next_definition_sequence("order")
        by_hand(f"UPDATE definition_sequences SET next_num = {LAST - 1}")
        assert await provider.next_definition_sequence("order") == LAST
        for _ in range(2):
            with pytest.raises(StoreError, match="the numbers of definition 'order' are used up"):
                await provider.next_definition_sequence("order")
        assert await provider.next_definition_sequence("refund") == 1
    assert (LAST,) in by_hand("SELECT next_num FROM definition_sequences WHERE definition_id = 'order'")


# purges


@pytest.fixture
def keep_rows(backend: str, by_hand: ByHand) -> Callable[[str], None]:
    """Return a trigger that silently keeps every row of a table that is deleted."""

    def keep(table: str) -> None:
        if backend == "sqlite":
            by_hand(f"CREATE TRIGGER keep BEFORE DELETE ON {table} BEGIN SELECT RAISE(IGNORE); END")
        else:
            by_hand("CREATE FUNCTION keep() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
            by_hand(f"CREATE TRIGGER keep BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()")

    return keep


@pytest.mark.parametrize(
    "table", ["workflows", *(pytest.param(table, marks=pytest.mark.slow) for table in ("events", "execution_errors"))]
)
async def test_a_purge_whose_rows_stay_ends(
    connect_store: Connect, keep_rows: Callable[[str], None], table: str
) -> None:
    async with connect_store() as provider:
        for number in range(3):
            time = TIME + timedelta(seconds=number)
            await provider.create_new_workflow(
                full_instance(id=f"w{number}", status=WorkflowStatus.Complete, complete_time=time)
            )
            await provider.create_event(full_event(id=f"e{number}", event_time=time))
            error = ExecutionError(error_time=time, workflow_id="gone", execution_pointer_id="p", message="no")
            await provider.persist_errors([error])
        keep_rows(table)
        before = await dump(provider)
        purges = {
            "workflows": lambda **options: provider.purge_workflows(WorkflowStatus.Complete, TIME + DAY, **options),
            "events": lambda **options: provider.purge_events(TIME + DAY, **options),
            "execution_errors": lambda **options: provider.purge_orphaned_errors(TIME + DAY, **options),
        }
        for batch_size in (1, 2, 500):
            with pytest.raises(StoreError, match=r"the database did not delete \d .*is there a trigger"):
                await asyncio.wait_for(purges[table](batch_size=batch_size), 60)
        assert await dump(provider) == before


async def test_two_purges_at_once_are_no_rows_that_stay(connect_store: Connect) -> None:
    async with connect_store() as one, connect_store() as other:
        for number in range(60):
            await one.create_event(full_event(id=f"e{number}", event_time=TIME))
        counts = await asyncio.gather(*(each.purge_events(TIME + DAY, batch_size=7) for each in (one, other) * 2))
        assert sum(counts) == 60


# tokens


@pytest.mark.slow
async def test_a_token_set_beside_the_making_of_its_subscription(connect_store: Connect) -> None:
    """It is acquired, or does not exist yet; nobody else holds it."""
    async with connect_store() as one, connect_store() as other:
        for number in range(150):
            id_ = f"s{number}"
            free = full_subscription(id=id_, external_token=None, external_worker_id=None, external_token_expiry=None)
            outcomes = await asyncio.gather(
                one.create_event_subscription(free),
                *(other.set_subscription_token(id_, "token", "worker", TIME + DAY) for _ in range(4)),
                return_exceptions=True,
            )
            assert outcomes[0] == id_
            assert all(taken is True or isinstance(taken, SubscriptionNotFoundError) for taken in outcomes[1:])


# ids


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("workflows", "id"),
        pytest.param("events", "id", marks=pytest.mark.slow),
        pytest.param("event_subscriptions", "id", marks=pytest.mark.slow),
        ("definition_sequences", "definition_id"),
    ],
)
async def test_a_row_without_an_id_is_named_and_never_left_out(
    connect_store: Connect, by_hand: ByHand, table: str, column: str
) -> None:
    async with connect_store() as provider, connect_store(other=True) as other:
        await provider.create_new_workflow(sample_instance(execution_pointers=[]))
        await provider.create_event(full_event())
        await provider.create_event_subscription(full_subscription())
        await provider.next_definition_sequence("order")
        by_hand(f"UPDATE {table} SET {column} = ''")
        message = f"a row of {table} cannot be read: its {column} is empty"
        assert await found(provider, FindingKind.Unreadable) == [message]
        assert (await provider.stats()).rows[table] == 1
        with pytest.raises(CorruptRowError, match=message):
            await dump(provider)
        with pytest.raises(StoreError, match=message):
            await provider.copy_to(other)
        assert await dump(other) == []


# times


@pytest.mark.parametrize(
    "column",
    [
        "create_time",
        *(pytest.param(column, marks=pytest.mark.slow) for column in ("complete_time", "claim_expires_at")),
    ],
)
async def test_times_of_workflows_that_nobody_can_read(
    connect_store: Connect, by_hand: ByHand, backend: str, column: str
) -> None:
    async with connect_store(clock=ManualClock()) as provider:
        await provider.create_new_workflow(full_instance(id="w"))
        bad = "-infinity" if backend == "postgres" else "0garbage\x1b[31m"
        by_hand(f"UPDATE workflows SET {column} = '{bad}'")
        (count,) = (await provider.stats()).workflows
        assert (count.oldest is None, count.newest is None) == (column == "create_time",) * 2
        messages = await found(provider, FindingKind.Unreadable)
        assert [message.partition(" cannot")[0] for message in messages] == [f"workflows.{column} of id 'w'"]


async def test_an_event_of_no_time_holds_up_nobody(connect_store: Connect, by_hand: ByHand, backend: str) -> None:
    if backend == "sqlite":
        bad = ["0garbage", "", "0000-01-01T00:00:00+00:00"]
    else:
        bad = ["-infinity", "0044-03-15 BC", "0001-12-31 23:59:59 BC"]
    async with connect_store(clock=ManualClock()) as provider:
        for number, time in enumerate(bad):
            await provider.create_event(full_event(id=f"bad {number}", is_processed=False))
            by_hand(f"UPDATE events SET event_time = '{time}' WHERE id = 'bad {number}'")
        await provider.create_event(full_event(id="good", is_processed=False))
        claims = await provider.claim_runnable_events(TIME, "host", lease=DAY, limit=10)
        assert "good" in [claim.id for claim in claims]
        assert "good" in await provider.get_runnable_events(TIME)
        if backend == "postgres":
            assert [claim.id for claim in claims] == await provider.get_runnable_events(TIME, limit=1) == ["good"]
        unreadable = await found(provider, FindingKind.Unreadable)
        assert [message.partition(" cannot")[0] for message in unreadable] == [
            f"events.event_time of id 'bad {number}'" for number in range(3)
        ]
        (overdue,) = await found(provider, FindingKind.Overdue) if backend == "postgres" else ("'': 3 events",)
        assert "3 events" in overdue
        assert (await provider.stats()).due_events.since is None


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    "time",
    [
        *(
            "2026-05-28T20:26:40Z",
            "2026-05-28 20:26:40+00:00",
            "2026-05-28T22:26:40+02:00",
            "2026-05-28T20:26:40-00:00",
        ),
        *("2026-05-28T20:26:40.5+00:00", "2026-05-28T20:26:40.1234567+00:00", "2026-05-28T20:26:40+0000"),
        *("2026-05-28T20:26:40.000+00:00", "2026-05-28T20:26:40.120000+00:00", "2026-05-28T20:26:40.123456000+00:00"),
    ],
)
async def test_times_that_do_not_sort_as_text(
    connect_store: Connect, by_hand: ByHand, store: Path, backend: str, time: str
) -> None:
    async with connect_store() as provider:
        await provider.create_new_workflow(full_instance(id="w", execution_pointers=[]))
        await provider.create_event(full_event(id="e"))
        await provider.schedule_command(ScheduledCommand.process_workflow("w", LAST))
        assert await provider.check() == []
        by_hand(f"UPDATE events SET event_time = '{time}'")
        by_hand(f"UPDATE workflows SET complete_time = '{time}'")
        by_hand(f"UPDATE scheduled_commands SET claim_expires_at = '{time}'")
        messages = [f.message for f in await provider.check() if f.kind is not FindingKind.ExpiredClaim]
        assert [message.partition(", which")[0] for message in messages] == [
            f"workflows.complete_time of id 'w' is {time!r}",
            f"events.event_time of id 'e' is {time!r}",
            f"scheduled_commands.claim_expires_at of id 1 is {time!r}",
        ]
        for message in messages:
            good = message.rpartition("store ")[2].strip("'")
            by_hand(f"UPDATE events SET event_time = '{good}'")
        by_hand(f"UPDATE workflows SET complete_time = '{good}'")
        by_hand(f"UPDATE scheduled_commands SET claim_expires_at = '{good}'")
        assert await found(provider, FindingKind.Unsorted) == []


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("time", ["2026-05-28T20:26:40", "2026-05-28", 1_780_000_000_000, 2461042.6, "/Date(1)/"])
async def test_times_without_a_zone_and_numbers(
    connect_store: Connect, by_hand: ByHand, backend: str, time: Any
) -> None:
    async with connect_store() as provider:
        await provider.create_event(full_event(id="e"))
        by_hand(f"UPDATE events SET event_time = {time!r}")
        assert [finding.message.partition(" cannot")[0] for finding in await provider.check()] == [
            "events.event_time of id 'e'"
        ]
