"""Several hosts on one PostgreSQL schema: nobody waits for ever, and nobody gets another's results."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from stores import tuned
from wfe_sql import ClaimKind, PostgresPersistenceProvider, ScheduledCommand, WorkflowInstance
from wfe_sql.backends import load_postgres_queries
from wfe_sql.testing import full_event, full_instance, full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

Open = Callable[[], Awaitable[PostgresPersistenceProvider]]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def open_host(postgres_url: str, schema: str) -> AsyncIterator[Open]:
    async with AsyncExitStack() as hosts:

        async def open_host() -> PostgresPersistenceProvider:
            return await hosts.enter_async_context(
                PostgresPersistenceProvider(postgres_url, schema=schema, on_conflict="overwrite")
            )

        yield open_host


@pytest.fixture
async def by_hand(postgres_url: str, schema: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A person's open transaction."""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute(f"SET search_path TO {schema}")
        await connection.commit()
        yield connection


async def _somebody_waits(connection: psycopg.AsyncConnection, count: int = 1) -> None:
    """Return once this many statements wait for locks, the first for what the connection's transaction holds."""
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND cardinality(pg_blocking_pids(pid)) > 0"
    while (await (await connection.execute(waiting)).fetchone()) != (count,):
        pass


@pytest.mark.slow
async def test_hosts_that_open_an_empty_database_at_once(postgres_url: str, new_schema: Callable[[], str]) -> None:
    schema = new_schema()
    hosts = [PostgresPersistenceProvider(postgres_url, schema=schema, max_connections=2) for _ in range(12)]
    await asyncio.gather(*(host.open() for host in hosts))
    numbers = await asyncio.gather(*(host.next_definition_sequence("a") for host in hosts))
    assert sorted(numbers) == list(range(1, 13))
    await asyncio.gather(*(host.close() for host in hosts))


@pytest.mark.slow
async def test_workflows_persisted_in_opposite_order(open_host: Open, postgres_url: str) -> None:
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with psycopg.connect(postgres_url, autocommit=True) as watcher:
        before = watcher.execute(deadlocks).fetchone()
    one, other = await open_host(), await open_host()
    instances = [sample_instance(id=f"w{number:03}") for number in range(60)]
    await asyncio.gather(*(one.create_new_workflow(instance) for instance in instances))
    copies = deepcopy(instances)
    for _ in range(4):
        forwards = [one.persist_workflow(instance) for instance in instances]
        backwards = [other.persist_workflow(instance) for instance in reversed(copies)]
        await asyncio.gather(*forwards, *backwards)
    await one.close()
    await other.close()
    with psycopg.connect(postgres_url, autocommit=True) as watcher:
        assert watcher.execute(deadlocks).fetchone() == before


@pytest.mark.parametrize("kind", ClaimKind)
async def test_who_waits_to_release_a_claim_holds_no_other_row(
    open_host: Open, by_hand: psycopg.AsyncConnection, postgres_url: str, schema: str, kind: ClaimKind
) -> None:
    """So two hosts that release the same claims in opposite order cannot wait for each other."""
    host = await open_host()
    for id_ in "abc":
        await host.create_new_workflow(sample_instance(id=id_))
        await host.create_event(full_event(id=id_, is_processed=False))
    claim_some = host.claim_runnable_instances if kind is ClaimKind.Workflow else host.claim_runnable_events
    claims = await claim_some(TIME, "one", lease=timedelta(minutes=1), limit=3)
    table = f"{kind.lower()}s"
    await by_hand.execute(f"UPDATE {table} SET claim_worker_id = 'held' WHERE id = 'b'")
    backwards = sorted(claims, key=lambda claim: claim.id, reverse=True)
    releasing = asyncio.gather(*(host.release_claim(claim) for claim in backwards))
    await _somebody_waits(by_hand)
    with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as other:
        assert other.execute(f"SELECT id FROM {table} FOR UPDATE SKIP LOCKED").fetchall() == [("a",), ("c",)]
    await by_hand.rollback()
    await releasing


async def test_what_was_written_while_a_persist_waited_is_overwritten_whole(
    open_host: Open, by_hand: psycopg.AsyncConnection
) -> None:
    """The statement that waits for the row does not see the pointer, which would stay without a second look."""
    host = await open_host()
    instance = full_instance()
    await host.create_new_workflow(instance)
    built = full_instance(id=instance.id, name=instance.name, create_time=instance.create_time)

    await by_hand.execute("UPDATE workflows SET data = '1'")
    await by_hand.execute(
        "INSERT INTO execution_pointers (id, workflow_id, step_id, status) VALUES ('theirs', %s, 1, 'Pending')",
        [instance.id],
    )
    persisting = asyncio.create_task(host.persist_workflow(built))
    await _somebody_waits(by_hand)
    await by_hand.commit()
    await persisting
    assert await host.get_workflow_instance(instance.id) == built


async def test_what_was_written_since_a_persist_began_is_overwritten_whole(
    postgres_url: str, schema: str, by_hand: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    """The statement waits at a gate when it has begun, then finds the row free, but does not see the pointer."""
    await by_hand.execute("SELECT pg_advisory_xact_lock(16, 1)")
    gate = "CROSS JOIN (SELECT pg_advisory_xact_lock_shared(16, 1)) AS gate"
    lock = "    CROSS JOIN LATERAL (\n        SELECT revision, create_time, claim_token, ctid"
    folder = tuned(load_postgres_queries(), tmp_path, ("persist_workflow_group", lock, f"    {gate}\n{lock}"))
    async with PostgresPersistenceProvider(postgres_url, schema=schema, sql_dir=folder) as host:
        instance = full_instance()
        await host.create_new_workflow(instance)
        built = full_instance(id=instance.id, name=instance.name, create_time=instance.create_time)
        persisting = asyncio.create_task(host.persist_workflow(built))
        await _somebody_waits(by_hand)
        await by_hand.execute("UPDATE workflows SET data = '1'")
        await by_hand.execute(
            "INSERT INTO execution_pointers (id, workflow_id, step_id, status) VALUES ('theirs', %s, 1, 'Pending')",
            [instance.id],
        )
        await by_hand.commit()
        await persisting
        assert await host.get_workflow_instance(instance.id) == built


async def test_hosts_that_replace_one_workflow_do_not_mix_their_pointers(open_host: Open) -> None:
    hosts = [await open_host() for _ in range(3)]
    stored = sample_instance()
    await hosts[0].create_new_workflow(stored)

    async def replace(number: int, host: PostgresPersistenceProvider) -> list[WorkflowInstance]:
        written = []
        for round_ in range(30):
            pointers = [full_pointer(id=f"{number}-{round_}-{place}") for place in range(round_ % 4)]
            written.append(
                sample_instance(id=stored.id, name=stored.name, data=[number, round_], execution_pointers=pointers)
            )
            await host.persist_workflow(written[-1])
        return written

    written = await asyncio.gather(*(replace(number, host) for number, host in enumerate(hosts)))
    assert await hosts[0].get_workflow_instance(stored.id) in [instance for some in written for instance in some]


async def test_statements_that_wait_for_locks_hold_up_nobody_else(
    open_host: Open, by_hand: psycopg.AsyncConnection
) -> None:
    host = await open_host()
    instances = [sample_instance(id=f"w{number}") for number in range(4)]
    for instance in instances:
        await host.create_new_workflow(instance)
    await host.create_event(full_event(id="e0"))
    await by_hand.execute("UPDATE workflows SET data = data WHERE id IN ('w0', 'w1')")
    await by_hand.execute("UPDATE events SET event_data = '1'")
    held: list[asyncio.Task[None]] = []
    for waits in (
        host.persist_workflow(instances[0]),
        host.persist_workflow(instances[1]),
        host.mark_event_processed("e0"),
        host.mark_event_unprocessed("e0"),
    ):
        held.append(asyncio.create_task(waits))
        await _somebody_waits(by_hand, count=len(held))
    async with asyncio.timeout(5):
        for _ in range(20):
            await host.next_definition_sequence("a")
            await host.get_workflow_instance("w0")
            await host.create_new_workflow(sample_instance())
    assert not any(task.done() for task in held)
    await by_hand.rollback()
    await asyncio.gather(*held)


async def test_a_deadlock_is_run_again(open_host: Open, by_hand: psycopg.AsyncConnection) -> None:
    """The server ends the transaction that waited last: here the host's, which holds the row that the person wants."""
    host = await open_host()
    for name in ("a", "b"):
        await host.create_new_workflow(sample_instance(id=name, name=name))
    await by_hand.execute("SET deadlock_timeout = '1h'")  # so that it is the host that finds it
    await by_hand.execute("UPDATE workflows SET name = 'taken' WHERE id = 'b'")
    renamed = await host.get_workflow_instance("a")
    renamed.name = "taken"
    persisting = asyncio.create_task(host.persist_workflow(renamed))
    await _somebody_waits(by_hand)
    await by_hand.execute("UPDATE workflows SET data = '1' WHERE id = 'a'")
    await by_hand.rollback()
    await persisting
    assert (await host.get_workflow_instance_by_name("taken")).id == "a"


async def test_a_claim_takes_no_more_than_its_limit_whatever_the_plan(
    open_host: Open, by_hand: psycopg.AsyncConnection
) -> None:
    """A planner that considers the table empty may run a subquery for each row, and each run claims more."""
    host = await open_host()
    handled: list[str] = []

    async def handle(command: ScheduledCommand) -> None:
        handled.append(command.data)

    await by_hand.execute("ANALYZE scheduled_commands")
    await by_hand.commit()
    await host.process_commands(TIME, handle)
    for number in range(60):
        await host.schedule_command(ScheduledCommand.process_workflow(f"w{number:02}", number))
    await host.process_commands(TIME, handle, limit=5)
    assert handled == [f"w{number:02}" for number in range(5)]
