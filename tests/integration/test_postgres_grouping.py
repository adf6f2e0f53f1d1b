"""Units that wait together go to PostgreSQL as one statement; a single unit takes one round trip."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from wfe_sql import (
    Claim,
    ClaimKind,
    EventAlreadyExistsError,
    PostgresPersistenceProvider,
    StoreError,
    WorkflowAlreadyExistsError,
    WorkflowInstance,
)
from wfe_sql.testing import ManualClock, full_event, full_instance, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

LEASE = timedelta(minutes=1)


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(relay: Any, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    async with PostgresPersistenceProvider(
        relay.url, schema=schema, clock=ManualClock(), on_conflict="overwrite"
    ) as opened:
        yield opened


@pytest.fixture
def run_sql(postgres_url: str, schema: str) -> Callable[..., list[Any]]:
    def run(sql: str, *params: Any) -> list[Any]:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"SET search_path TO {schema}")
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    return run


async def _call_each(provider: PostgresPersistenceProvider, *, counted: Callable[[str], None]) -> None:
    """Make every hot call, one after the other, and report each after it was made."""
    instance = full_instance(status="Runnable", next_execution=0)
    event, subscription = full_event(is_processed=False), full_subscription()
    held: dict[ClaimKind, Claim] = {}

    async def claim(kind: ClaimKind) -> None:
        claim = provider.claim_runnable_instances if kind is ClaimKind.Workflow else provider.claim_runnable_events
        (held[kind],) = await claim(TIME, "one", lease=LEASE, limit=1)

    async def change(*subscriptions: Any) -> None:
        instance.execution_pointers[1].retry_count += 1
        del instance.execution_pointers[2]
        instance.execution_pointers.append(full_pointer())
        await provider.persist_workflow_with_subscriptions(instance, subscriptions)

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "next_definition_sequence": lambda: provider.next_definition_sequence("order"),
        "create_new_workflow": lambda: provider.create_new_workflow(instance),
        "get_workflow_instance": lambda: provider.get_workflow_instance(instance.id),
        "get_workflow_instances of one": lambda: provider.get_workflow_instances([instance.id]),
        "get_workflow_instance_by_name": lambda: provider.get_workflow_instance_by_name(instance.name),
        "persist_workflow": lambda: change(),
        "persist_workflow_with_subscriptions": lambda: change(subscription),
        "create_event": lambda: provider.create_event(event),
        "get_event": lambda: provider.get_event(event.id),
        "create_event_subscription": lambda: provider.create_event_subscription(full_subscription()),
        "get_subscriptions": lambda: provider.get_subscriptions("paid", "k1", TIME),
        "terminate_subscription": lambda: provider.terminate_subscription(subscription.id),
        "get_runnable_instances": lambda: provider.get_runnable_instances(TIME),
        "get_runnable_events": lambda: provider.get_runnable_events(TIME),
        "claim_runnable_instances": lambda: claim(ClaimKind.Workflow),
        "claim_runnable_events": lambda: claim(ClaimKind.Event),
        "renew_claim": lambda: provider.renew_claim(held[ClaimKind.Workflow], LEASE),
        "renew_claim of an event": lambda: provider.renew_claim(held[ClaimKind.Event], LEASE),
        "mark_event_processed": lambda: provider.mark_event_processed(event.id, claim=held[ClaimKind.Event]),
        "mark_event_unprocessed": lambda: provider.mark_event_unprocessed(event.id),
        "release_claim": lambda: provider.release_claim(held[ClaimKind.Workflow]),
        "release_claim of an event": lambda: provider.release_claim(held[ClaimKind.Event]),
    }
    for name, call in calls.items():
        await call()
        counted(name)


async def test_a_caller_alone_pays_one_round_trip(
    provider: PostgresPersistenceProvider, relay: Any, run_sql: Callable[..., list[Any]]
) -> None:
    await _call_each(provider, counted=lambda name: None)  # statements are prepared when they first run
    run_sql("UPDATE workflows SET status = 'Complete'")
    run_sql("UPDATE events SET is_processed = TRUE")
    paid: dict[str, int] = {}
    relay.round_trips = 0

    def count(name: str) -> None:
        paid[name] = relay.round_trips
        relay.round_trips = 0

    await _call_each(provider, counted=count)
    assert len(paid) == 22
    assert paid == dict.fromkeys(paid, 1)


@pytest.mark.parametrize("callers", [64, pytest.param(600, marks=pytest.mark.slow)])
async def test_what_waits_together_goes_together(
    provider: PostgresPersistenceProvider, relay: Any, callers: int
) -> None:
    instances = [full_instance(id=f"w{number}") for number in range(callers)]

    async def subscribe(instance: WorkflowInstance) -> None:
        async with provider.unit() as unit:
            unit.subscribe(full_subscription(workflow_id=instance.id))

    calls: list[Callable[[WorkflowInstance], Awaitable[Any]]] = [
        provider.create_new_workflow,
        provider.persist_workflow,
        subscribe,
        lambda instance: provider.get_workflow_instance(instance.id),
        lambda instance: provider.get_workflow_instances([instance.id]),
        lambda instance: provider.next_definition_sequence("order"),
    ]
    for call in calls:
        relay.round_trips = 0
        await asyncio.gather(*(call(instance) for instance in instances))
        assert relay.round_trips <= 12 + callers / 15  # few batches, two for subscribe; new connections need set-up
    assert await provider.get_workflow_instances([f"w{number}" for number in range(callers)]) == instances


async def test_callers_stay_together_from_call_to_call(provider: PostgresPersistenceProvider, relay: Any) -> None:
    """Even if one came first: two halves would need two commits, and cost twice as much."""

    async def draw(number: int) -> None:
        await asyncio.sleep(0.001 * (number % 2))
        for _ in range(50):
            await provider.next_definition_sequence("order")

    await draw(0)
    relay.round_trips = 0
    await asyncio.gather(*(draw(number) for number in range(16)))
    assert relay.round_trips <= 75


async def test_what_comes_while_a_statement_waits_for_a_lock_goes_on_without_it(
    provider: PostgresPersistenceProvider, postgres_url: str, schema: str
) -> None:
    await provider.next_definition_sequence("held")
    with psycopg.connect(postgres_url) as somebody:
        somebody.execute(f"UPDATE {schema}.definition_sequences SET next_num = 10")
        waiting = asyncio.create_task(provider.next_definition_sequence("held"))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            assert await provider.next_definition_sequence("free") == 1
        assert not waiting.done()
        somebody.commit()
    assert await waiting == 11


async def test_two_writes_of_one_workflow_are_both_done(
    provider: PostgresPersistenceProvider, run_sql: Callable[..., list[Any]]
) -> None:
    """They cannot become one statement, which would do only one of them."""
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    copies = [await provider.get_workflow_instance(stored.id) for _ in range(10)]
    for number, copy in enumerate(copies):
        copy.data = number
        copy.execution_pointers = [full_pointer(id=f"p{number}")]
    await asyncio.gather(*(provider.persist_workflow(copy) for copy in copies))
    loaded = await provider.get_workflow_instance(stored.id)
    assert loaded in copies
    assert run_sql("SELECT revision FROM workflows") == [(10,)]
    await provider.create_event(full_event(id="e1"))
    await asyncio.gather(*(provider.mark_event_processed("e1") for _ in range(10)))


async def test_numbers_of_several_definitions_drawn_together(provider: PostgresPersistenceProvider) -> None:
    definitions = ["a", "b", "a", "c", "a", "b"] * 20
    numbers = await asyncio.gather(*(provider.next_definition_sequence(id_) for id_ in definitions))
    for definition in "abc":
        drawn = [number for number, id_ in zip(numbers, definitions, strict=True) if id_ == definition]
        assert sorted(drawn) == list(range(1, len(drawn) + 1))


async def test_claims_taken_together_are_dealt_out_in_the_order_of_the_poll(
    provider: PostgresPersistenceProvider,
) -> None:
    ids = [f"w{number:02}" for number in range(20)]
    await asyncio.gather(
        *(provider.create_new_workflow(sample_instance(id=id_, next_execution=at)) for at, id_ in enumerate(ids))
    )
    claims = await asyncio.gather(
        *(provider.claim_runnable_instances(TIME, f"worker {n}", lease=LEASE, limit=n) for n in range(1, 9))
    )
    assert sorted(claim.id for some in claims for claim in some) == ids
    for number, some in enumerate(claims, start=1):
        assert [claim.id for claim in some] == sorted(claim.id for claim in some)
        assert {claim.worker_id for claim in some} <= {f"worker {number}"}
        assert len(some) <= number


@pytest.mark.parametrize(
    "bad",
    [
        *("name in use", "NUL"),
        *(pytest.param(bad, marks=pytest.mark.slow) for bad in ("pointer of another workflow", "beyond 32 bits")),
    ],
)
async def test_one_bad_unit_of_many_fails_alone(provider: PostgresPersistenceProvider, relay: Any, bad: str) -> None:
    await provider.create_new_workflow(sample_instance(name="taken", execution_pointers=[full_pointer(id="theirs")]))
    instances = [full_instance(id=f"w{number}", name=f"w{number}") for number in range(64)]
    await asyncio.gather(*(provider.create_new_workflow(instance) for instance in instances))
    before = await provider.get_workflow_instance("w31")
    for instance in instances:
        instance.data = "changed"
    guilty = instances[31]
    match bad:
        case "name in use":
            guilty.name = "taken"
        case "pointer of another workflow":
            guilty.execution_pointers.append(full_pointer(id="theirs"))
        case "NUL":
            guilty.execution_pointers[1].outcome = "\0"
        case "beyond 32 bits":
            guilty.version = 2**31
    relay.round_trips = 0
    outcomes = await asyncio.gather(
        *(provider.persist_workflow(instance) for instance in instances), return_exceptions=True
    )
    errors = {
        "name in use": (WorkflowAlreadyExistsError, "name 'taken'"),
        "pointer of another workflow": (StoreError, "'theirs' of workflow 'w31' belongs to"),
        "NUL": (ValueError, "outcome .* NUL"),
        "beyond 32 bits": (ValueError, "version .* 32 bits"),
    }
    kind, message = errors[bad]
    with pytest.raises(kind, match=message) as raised:
        raise outcomes[31] or AssertionError("it was stored")
    fields = {"NUL": "ExecutionPointer.outcome", "beyond 32 bits": "WorkflowInstance.version"}
    assert getattr(raised.value, "field", None) == fields.get(bad)
    assert [outcome for at, outcome in enumerate(outcomes) if at != 31] == [None] * 63
    assert relay.round_trips < 40  # each unit of its batch is tried once
    instances[31] = before
    assert await provider.get_workflow_instances([instance.id for instance in instances]) == instances


async def test_refused_units_are_each_sent_twice_at_most(relay: Any, schema: str) -> None:
    """Once together and once alone: each failed attempt is an entry in the server's log."""
    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=1) as provider:
        await provider.create_event(full_event())
        events = [full_event(id=f"e{number}") for number in range(64)]
        await asyncio.gather(*map(provider.create_event, events))
        relay.round_trips = 0
        outcomes = await asyncio.gather(*map(provider.create_event, events), return_exceptions=True)
    assert all(isinstance(outcome, EventAlreadyExistsError) for outcome in outcomes)
    assert relay.round_trips <= 64 + 64 // 32 + 1  # with the end of the connection


async def test_large_units_do_not_go_together(provider: PostgresPersistenceProvider, relay: Any) -> None:
    instances = [sample_instance(data="x" * 400_000) for _ in range(8)]
    relay.round_trips = 0
    await asyncio.gather(*map(provider.create_new_workflow, instances))
    assert relay.round_trips >= 4
    assert await provider.get_workflow_instances([instance.id for instance in instances]) == instances


async def test_a_caller_that_is_cancelled_while_it_waits_writes_nothing(
    provider: PostgresPersistenceProvider,
) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    first, second = [await provider.get_workflow_instance(stored.id) for _ in range(2)]
    first.data, second.data = "first", "second"
    going = asyncio.create_task(provider.persist_workflow(first))
    waiting = asyncio.create_task(provider.persist_workflow(second))
    await asyncio.sleep(0)
    waiting.cancel()
    await going
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await provider.get_workflow_instance(stored.id)).data == "first"


async def test_closing_finishes_what_is_pending(relay: Any, schema: str) -> None:
    provider = PostgresPersistenceProvider(relay.url, schema=schema)
    await provider.open()
    drawing = [asyncio.create_task(provider.next_definition_sequence("a")) for _ in range(1_000)]
    scheduling = asyncio.create_task(provider.get_runnable_instances(TIME))
    await asyncio.sleep(0)
    await provider.close()
    assert sorted([await number for number in drawing]) == list(range(1, 1_001))
    assert await scheduling == []


@pytest.mark.parametrize("kind", ClaimKind)
async def test_claims_of_one_statement_go_by_the_earliest_clock(
    postgres_url: str, schema: str, kind: ClaimKind
) -> None:
    """A claim that has expired by the faster clock still holds by the other."""
    now = ContextVar("now", default=TIME)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=now.get) as provider:
        claim_some = provider.claim_runnable_instances
        if kind is ClaimKind.Event:
            claim_some = provider.claim_runnable_events
        await provider.create_new_workflow(sample_instance())
        await provider.create_event(full_event(is_processed=False))
        assert len(await claim_some(TIME, "holder", lease=LEASE, limit=1)) == 1

        async def claim_at(time: datetime) -> list[Claim]:
            now.set(time)
            return await claim_some(TIME, "other", lease=LEASE, limit=1)

        fast, slow = TIME + LEASE, TIME
        assert [*await asyncio.gather(claim_at(fast), claim_at(slow), claim_at(fast))] == [[], [], []]
        assert len(await claim_at(fast)) == 1
