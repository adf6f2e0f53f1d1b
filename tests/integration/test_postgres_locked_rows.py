"""Somebody keeps a row locked, such as psql in an open transaction: only units for that row wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from wfe_sql import (
    PostgresPersistenceProvider,
    ScheduledCommand,
    StoreBusyError,
    StoreUnavailableError,
    SubscriptionTokenError,
)
from wfe_sql.testing import ManualClock, full_event, full_instance, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

COUNT = 24
LEASE = timedelta(minutes=1)

Call = Callable[[int], Awaitable[object]]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(postgres_url: str, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=ManualClock()) as opened:
        yield opened


@pytest.fixture
def somebody(postgres_url: str, schema: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as connection:
        yield connection


async def _calls(provider: PostgresPersistenceProvider) -> dict[str, tuple[str, Call]]:
    """Fill the store, and return calls that each change a row by number, and the statement that locks the 8th."""
    workflows = [
        full_instance(id=f"w{n:02}", name=f"w{n:02}", status="Runnable", next_execution=0) for n in range(COUNT)
    ]
    for n in range(COUNT):
        await provider.create_new_workflow(workflows[n])
        await provider.create_event(full_event(id=f"e{n:02}", is_processed=False))
        await provider.create_event_subscription(full_subscription(id=f"s{n:02}"))
        await provider.next_definition_sequence(f"d{n:02}")
    held = await provider.claim_runnable_instances(TIME, "one", lease=LEASE, limit=COUNT)
    events = await provider.claim_runnable_events(TIME, "one", lease=LEASE, limit=COUNT)
    claims = {claim.id: claim for claim in [*held, *events]}

    def lock(table: str, id_: str, column: str = "id") -> str:
        return f"SELECT 1 FROM {table} WHERE {column} = '{id_}' FOR UPDATE"

    workflow, event = lock("workflows", "w07"), lock("events", "e07")
    return {
        "persist_workflow": (workflow, lambda n: provider.persist_workflow(workflows[n])),
        "renew_claim": (workflow, lambda n: provider.renew_claim(claims[f"w{n:02}"], LEASE)),
        "release_claim": (workflow, lambda n: provider.release_claim(claims[f"w{n:02}"])),
        "renew_claim of an event": (event, lambda n: provider.renew_claim(claims[f"e{n:02}"], LEASE)),
        "mark_event_processed": (event, lambda n: provider.mark_event_processed(f"e{n:02}")),
        "mark_event_unprocessed": (event, lambda n: provider.mark_event_unprocessed(f"e{n:02}")),
        "release_claim of an event": (event, lambda n: provider.release_claim(claims[f"e{n:02}"])),
        "terminate_subscription": (
            lock("event_subscriptions", "s07"),
            lambda n: provider.terminate_subscription(f"s{n:02}"),
        ),
        "next_definition_sequence": (
            lock("definition_sequences", "d07", "definition_id"),
            lambda n: provider.next_definition_sequence(f"d{n:02}"),
        ),
    }


async def test_all_others_are_answered_while_a_row_is_locked(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection
) -> None:
    for name, (lock, call) in (await _calls(provider)).items():
        somebody.execute(lock)
        calls = [asyncio.ensure_future(call(n)) for n in range(COUNT)]
        try:
            async with asyncio.timeout(10):
                await asyncio.gather(*(calls[n] for n in range(COUNT) if n != 7))
            assert not calls[7].done(), name
        finally:
            somebody.rollback()
        await calls[7]


async def test_a_persist_does_not_look_at_every_version_that_an_open_transaction_keeps(
    postgres_url: str, new_schema: Callable[[], str], somebody: psycopg.Connection
) -> None:
    """Each persist changes an indexed column, so each version has an entry in the index."""
    schema = new_schema()  # in a shared one, sessions that end late add what they read to the count
    instance, persists = full_instance(), 100
    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE schemaname = %s AND indexrelname = 'workflows_pkey'"
    host = PostgresPersistenceProvider(postgres_url, schema=schema, application_name="persists")
    with psycopg.connect(postgres_url, autocommit=True) as observer:
        async with host:
            await host.create_new_workflow(instance)
            somebody.execute("SELECT pg_current_xact_id()")
            ((before,),) = observer.execute(read, [schema])
            for number in range(persists):
                instance.next_execution = number
                await host.persist_workflow(instance)
        # A session that ends has counted everything.
        while observer.execute("SELECT FROM pg_stat_activity WHERE application_name = 'persists'").fetchone():
            pass
        ((after,),) = observer.execute(read, [schema])
    assert after - before < 3 * persists


async def test_units_without_the_locked_rows_are_stored_while_they_are_locked(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection
) -> None:
    """Each unit changes a workflow, an event and a subscription; somebody holds one row of three units."""
    await _calls(provider)
    workflows = await provider.get_workflow_instances([f"w{n:02}" for n in range(COUNT)])
    somebody.execute("SELECT 1 FROM workflows WHERE id = 'w03' FOR UPDATE")
    somebody.execute("SELECT 1 FROM events WHERE id = 'e07' FOR UPDATE")
    somebody.execute("SELECT 1 FROM event_subscriptions WHERE id = 's11' FOR UPDATE")

    async def step(n: int) -> None:
        async with provider.unit() as unit:
            unit.persist_workflow(workflows[n])
            unit.mark_event_processed(f"e{n:02}")
            unit.terminate_subscription(f"s{n:02}")
            unit.schedule_command(ScheduledCommand.process_workflow(f"w{COUNT - n:02}", 1))

    steps = [asyncio.ensure_future(step(n)) for n in range(COUNT)]
    async with asyncio.timeout(10):
        await asyncio.gather(*(steps[n] for n in range(COUNT) if n not in (3, 7, 11)))
    assert not any(steps[n].done() for n in (3, 7, 11))
    somebody.rollback()
    await asyncio.gather(*steps)
    assert await provider.get_runnable_events(TIME) == []


@pytest.mark.slow
async def test_units_that_want_each_other_s_rows_do_not_wait_for_ever(
    postgres_url: str, schema: str, provider: PostgresPersistenceProvider
) -> None:
    """Two hosts whose units change the same rows, added in opposite orders, again and again."""
    await _calls(provider)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, on_conflict="overwrite") as other:

        async def change(host: PostgresPersistenceProvider, ids: list[str]) -> None:
            for _ in range(5):
                async with host.unit() as unit:
                    for id_ in ids:
                        unit.mark_event_processed(f"e{id_}")
                        unit.terminate_subscription(f"s{id_}")
                        unit.schedule_command(ScheduledCommand.process_event(f"e{id_}", 1))
                        unit.persist_workflow(full_instance(id=f"w{id_}", name=f"w{id_}"))

        some = [f"{n:02}" for n in range(6)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(change(host, ids) for host in (provider, other) for ids in (some, some[::-1])))


async def test_who_wants_the_locked_row_waits_for_the_statement_timeout(
    postgres_url: str, schema: str, somebody: psycopg.Connection
) -> None:
    timeout = timedelta(milliseconds=200)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, statement_timeout=timeout) as provider:
        instances = [sample_instance(id=f"w{n}") for n in range(4)]
        for instance in instances:
            await provider.create_new_workflow(instance)
        somebody.execute("SELECT 1 FROM workflows WHERE id = 'w2' FOR UPDATE")
        outcomes = await asyncio.gather(*map(provider.persist_workflow, instances), return_exceptions=True)
        assert isinstance(outcomes.pop(2), StoreBusyError)
        assert outcomes == [None] * 3


async def test_numbers_of_a_locked_definition_are_drawn_together_when_it_is_free(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection
) -> None:
    await provider.next_definition_sequence("order")
    somebody.execute("UPDATE definition_sequences SET next_num = 10")
    drawing = [asyncio.ensure_future(provider.next_definition_sequence("order")) for _ in range(100)]
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND cardinality(pg_blocking_pids(pid)) > 0"
    while somebody.execute(waiting).fetchone() == (0,):
        await asyncio.sleep(0)
    assert somebody.execute(waiting).fetchone() == (1,)
    somebody.commit()
    assert sorted(await asyncio.gather(*drawing)) == list(range(11, 111))


async def test_many_locked_rows_leave_connections_to_others(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection
) -> None:
    instances = [sample_instance(id=f"w{n}") for n in range(40)]
    for instance in instances:
        await provider.create_new_workflow(instance)
    somebody.execute("SELECT 1 FROM workflows WHERE id <> 'w0' FOR UPDATE")
    held = [asyncio.ensure_future(provider.persist_workflow(instance)) for instance in instances[1:]]
    async with asyncio.timeout(10):
        for _ in range(3):
            await provider.persist_workflow(instances[0])
            await provider.get_runnable_instances(TIME)
    assert not any(persist.done() for persist in held)
    somebody.rollback()
    await asyncio.gather(*held)


@pytest.mark.parametrize("name", ["set_subscription_token", "clear_subscription_token", "schedule_command"])
async def test_many_who_want_one_locked_row_leave_connections_to_others(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection, name: str
) -> None:
    for id_ in ("s7", "s8"):
        await provider.create_event_subscription(
            full_subscription(id=id_, external_token="t", external_token_expiry=TIME)
        )
        await provider.schedule_command(ScheduledCommand.process_event(id_, 0))
    calls: dict[str, Callable[[str, int], Awaitable[object]]] = {
        "set_subscription_token": lambda id_, n: provider.set_subscription_token(id_, "t", f"worker {n}", TIME + LEASE),
        "clear_subscription_token": lambda id_, n: provider.clear_subscription_token(id_, "t"),
        "schedule_command": lambda id_, n: provider.schedule_command(ScheduledCommand.process_event(id_, -1 - n)),
    }
    somebody.execute("SELECT 1 FROM event_subscriptions WHERE id = 's7' FOR UPDATE")
    somebody.execute("SELECT 1 FROM scheduled_commands WHERE data = 's7' FOR UPDATE")
    waiting = [asyncio.ensure_future(calls[name]("s7", n)) for n in range(COUNT)]
    try:
        async with asyncio.timeout(10):
            await calls[name]("s8", 0)
            await provider.get_runnable_instances(TIME)
        assert not any(call.done() for call in waiting)
    finally:
        somebody.rollback()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    refused = sum(isinstance(outcome, SubscriptionTokenError) for outcome in outcomes)
    assert refused == (COUNT - 1 if name == "clear_subscription_token" else 0)


@pytest.mark.parametrize("name", ["set_subscription_token", "schedule_command", "unit"])
async def test_many_locked_rows_of_calls_that_run_alone_leave_a_connection_to_reads(
    postgres_url: str, schema: str, somebody: psycopg.Connection, tmp_path: Path, name: str
) -> None:
    """Polls, and what `wait_for_work` looks at, run alone too."""
    (tmp_path / "own.sql").write_text(
        "-- name: touch_command(key)!\n-- Changes nothing.\n"
        "UPDATE scheduled_commands SET execute_time = execute_time WHERE data = :key;\n"
    )
    async with PostgresPersistenceProvider(
        postgres_url, schema=schema, clock=ManualClock(), app_sql=tmp_path
    ) as provider:
        keys = [f"k{n}" for n in range(COUNT)]
        for key in keys:
            await provider.create_event_subscription(full_subscription(id=key, external_token=None))
            await provider.schedule_command(ScheduledCommand.process_event(key, 0))
        somebody.execute("SELECT 1 FROM event_subscriptions FOR UPDATE")
        somebody.execute("SELECT 1 FROM scheduled_commands FOR UPDATE")

        async def call(key: str) -> None:
            if name == "set_subscription_token":
                await provider.set_subscription_token(key, "t", "worker", TIME + LEASE)
            elif name == "schedule_command":
                await provider.schedule_command(ScheduledCommand.process_event(key, -1))
            else:
                async with provider.unit() as unit:
                    unit.run("touch_command", key=key)

        waiting = [asyncio.ensure_future(call(key)) for key in keys]
        try:
            async with asyncio.timeout(10):
                for _ in range(3):
                    await provider.get_runnable_instances(TIME)
            assert not any(call.done() for call in waiting)
        finally:
            somebody.rollback()
            await asyncio.gather(*waiting)


async def test_waiting_for_a_locked_row_ends_for_all_who_want_it(
    provider: PostgresPersistenceProvider, somebody: psycopg.Connection, pass_time: Callable[[float], None]
) -> None:
    """One waits at the server, and those behind it no longer than its timeout."""
    await provider.schedule_command(ScheduledCommand.process_event("e7", 0))
    somebody.execute("SELECT 1 FROM scheduled_commands FOR UPDATE")
    waiting = [
        asyncio.ensure_future(provider.schedule_command(ScheduledCommand.process_event("e7", 0))) for _ in range(COUNT)
    ]
    while somebody.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None:
        await asyncio.sleep(0)
    pass_time(60 * 60)
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, StoreUnavailableError)
    assert [type(outcome) for outcome in others] == [StoreBusyError] * (COUNT - 1)
