"""Reports of units of work: on_unit, and the log."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from joining import WAYS, Way
from servers import OwnServer
from wfe_sql import (
    Claim,
    ClaimLostError,
    EventNotFoundError,
    PostgresPersistenceProvider,
    SqlitePersistenceProvider,
    SubscriptionNotFoundError,
    UnitStats,
    WorkflowConflictError,
    WorkflowInstance,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

NOW = timedelta(0)
"""As `slow_unit`, it makes every unit slow."""

MINUTE = timedelta(minutes=1)
DATA = Path(__file__).parent.parent / "data"

Open = Callable[..., Any]


@pytest.fixture(params=["sqlite", "memory", "postgres"])
async def open_(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens providers of one store."""
    async with AsyncExitStack() as opened:

        async def open_(**options: Any) -> SqlPersistenceProvider:
            provider: SqlPersistenceProvider
            if request.param == "postgres":
                url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema")
                provider = PostgresPersistenceProvider(url, schema=schema, **options)
            else:
                provider = SqlitePersistenceProvider(
                    ":memory:" if request.param == "memory" else tmp_path / "x.db", **options
                )
            return await opened.enter_async_context(provider)

        yield open_


def without_times(unit: UnitStats) -> tuple[Any, ...]:
    assert unit.waited >= 0
    assert unit.worked > 0
    return unit.queries, unit.writes, unit.rows, unit.units_together, unit.outcome


def instance() -> WorkflowInstance:
    return sample_instance(execution_pointers=[full_pointer(id="p1"), full_pointer(id="p2"), full_pointer(id="p3")])


async def test_each_unit_is_told_once(open_: Open) -> None:
    heard: list[UnitStats] = []
    provider = await open_(on_unit=heard.append)
    order = instance()
    await provider.create_new_workflow(order)
    order.execution_pointers[0].retry_count += 1
    await provider.persist_workflow(order)
    await provider.get_workflow_instance(order.id)
    await provider.next_definition_sequence("order")
    await provider.next_definition_sequence("order")
    assert await provider.get_runnable_events(TIME) == []
    with pytest.raises(SubscriptionNotFoundError):
        await provider.terminate_subscription("unknown")
    assert [without_times(unit) for unit in heard] == [
        (("create_new_workflow", "insert_execution_pointers"), True, 4, 1, "ok"),
        (("persist_workflow", "upsert_execution_pointers"), True, 2, 1, "ok"),
        (("get_workflow_instance", "get_execution_pointers"), False, 4, 1, "ok"),
        (("next_definition_sequence",), True, 1, 1, "ok"),
        (("next_definition_sequence",), True, 1, 1, "ok"),
        (("get_runnable_events",), False, 0, 1, "ok"),
        (("terminate_subscription",), True, 0, 1, "SubscriptionNotFoundError"),
    ]
    assert {unit.database for unit in heard} <= {"sqlite", "postgresql"}


async def test_units_that_go_together(open_: Open) -> None:
    heard: list[UnitStats] = []
    provider = await open_(on_unit=heard.append)
    await asyncio.gather(*(provider.create_event(full_event(id=f"e{number}")) for number in range(10)))
    assert [without_times(unit) for unit in heard] == [(("create_event",), True, 1, 10, "ok")] * 10


async def test_a_unit_of_several_operations_is_one(open_: Open) -> None:
    heard: list[UnitStats] = []
    provider = await open_(on_unit=heard.append)
    async with provider.unit() as unit:
        unit.create_new_workflow(instance())
        unit.create_event(full_event(id="e1"))
    assert [without_times(unit) for unit in heard] == [
        (("create_new_workflow", "insert_execution_pointers", "create_event"), True, 5, 1, "ok")
    ]


async def test_it_is_called_in_the_context_of_the_caller(open_: Open) -> None:
    caller: ContextVar[str] = ContextVar("caller")
    heard: list[str] = []
    provider = await open_(on_unit=lambda unit: heard.append(f"{caller.get()} {unit.queries[0]}"))

    async def call(number: int) -> None:
        caller.set(f"caller {number}")
        await provider.create_event(full_event(id=f"e{number}"))
        await provider.get_runnable_events(TIME)

    await asyncio.gather(*(call(number) for number in range(5)))
    assert sorted(heard) == [
        f"caller {number} {query}" for number in range(5) for query in ("create_event", "get_runnable_events")
    ]


async def test_one_whose_caller_is_cancelled_is_told_when_it_has_ended(open_: Open) -> None:
    heard: list[UnitStats] = []
    provider = await open_(on_unit=heard.append)
    creating = [asyncio.create_task(provider.create_event(full_event(id=f"e{number}"))) for number in range(2)]
    await asyncio.sleep(0)
    creating[0].cancel()
    await asyncio.gather(*creating, return_exceptions=True)
    await provider.close()
    assert 1 <= len(heard) <= 2
    assert {unit.outcome for unit in heard} == {"ok"}


async def test_reads_of_a_snapshot_are_told(open_: Open) -> None:
    caller: ContextVar[str] = ContextVar("caller")
    heard: list[tuple[str, Any]] = []
    provider = await open_(on_unit=lambda unit: heard.append((caller.get(), without_times(unit))))
    caller.set("creating")
    await provider.create_event(full_event(id="e1"))
    heard.clear()
    caller.set("dumping")
    assert [row async for row in provider.dump()]
    assert {name for name, _ in heard} == {"dumping"}
    assert ("dumping", (("export_events",), False, 1, 1, "ok")) in heard


@pytest.mark.parametrize("way", [way for way in WAYS if "+" not in way.name], ids=str)
async def test_a_unit_in_the_callers_transaction_is_told_when_it_was_added(
    way: Way, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    caller: ContextVar[str] = ContextVar("caller")
    heard: list[tuple[str, Any]] = []
    provider: SqlPersistenceProvider
    options: dict[str, Any] = {"on_unit": lambda unit: heard.append((caller.get(), without_times(unit)))}
    if way.dialect == "sqlite":
        target = str(tmp_path / "x.db")
        provider = SqlitePersistenceProvider(target, **options)
    else:
        target = request.getfixturevalue("postgres_url")
        provider = PostgresPersistenceProvider(target, schema=request.getfixturevalue("schema"), **options)
    caller.set("the caller")
    async with provider, AsyncExitStack() as closing:
        transaction = await way.connect(target)
        closing.push_async_callback(transaction.close)
        unit = provider.unit()
        unit.create_event(full_event(id="e1"))
        subscribed = unit.subscribe(full_subscription(id="s1", event_name="paid", event_key="k1"))
        assert heard == []
        await transaction.add(unit)
        told = [
            ("the caller", (("create_event_subscription", "create_event"), True, 2, 1, "ok")),
            ("the caller", (("get_events_since",), False, len(subscribed.event_ids), 1, "ok")),
        ]
        assert heard == told
        unit = provider.unit()
        unit.mark_event_processed("unknown")
        with pytest.raises(EventNotFoundError):
            await transaction.add(unit)
        assert heard == [*told, ("the caller", (("mark_event_processed",), True, 0, 1, "EventNotFoundError"))]
        await transaction.rollback()
    assert len(heard) == 3


async def test_an_error_of_the_listener_harms_nobody(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    def complain(unit: UnitStats) -> None:
        raise RuntimeError("the listener is broken")

    provider = await open_(on_unit=complain)
    await provider.create_event(full_event(id="e1"))
    assert (await provider.get_event("e1")).id == "e1"
    said = [(record.name, record.getMessage()) for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        ("wfe_sql", "on_unit failed, for a unit of create_event"),
        ("wfe_sql", "on_unit failed, for a unit of get_event"),
    ]
    assert "the listener is broken" in caplog.text


async def test_slow_units_are_logged_with_their_names_and_times(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    provider = await open_(slow_unit=NOW)
    await asyncio.gather(*(provider.create_event(full_event(id=f"secret {number}")) for number in range(3)))
    slow = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(slow) == 1
    assert slow[0].startswith("slow: 3 x create_event up to 0.")
    assert slow[0].endswith(" s for 3 units together")
    assert "secret" not in caplog.text


async def test_nothing_is_slow_where_there_is_no_threshold(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    provider = await open_(slow_unit=None)
    await provider.create_event(full_event(id="e1"))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_write_under_a_lost_claim_is_logged(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(TIME)
    provider = await open_(clock=clock)
    order = instance()
    await provider.create_new_workflow(order)
    (lost,) = await provider.claim_runnable_instances(clock(), "first", lease=MINUTE, limit=1)
    clock.advance(minutes=2)
    assert await provider.claim_runnable_instances(clock(), "second", lease=MINUTE, limit=1)
    for write in (
        lambda: provider.persist_workflow(order, claim=lost),
        lambda: provider.renew_claim(lost, MINUTE),
        lambda: _persist_in_unit(provider, order, lost),
        lambda: _mark_in_unit(provider, lost),
    ):
        caplog.clear()
        with pytest.raises(ClaimLostError) as refused:
            await write()
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warned == [f"a write was refused: {refused.value}"]


async def _persist_in_unit(provider: SqlPersistenceProvider, order: WorkflowInstance, claim: Claim) -> None:
    async with provider.unit(claim) as unit:
        unit.persist_workflow(order)


async def _mark_in_unit(provider: SqlPersistenceProvider, claim: Claim) -> None:
    async with provider.unit(claim) as unit:
        unit.create_event(full_event(id="e1"))


async def test_a_conflict_is_no_more_than_a_detail(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wfe_sql")
    heard: list[UnitStats] = []
    provider = await open_(on_unit=heard.append)
    order = instance()
    await provider.create_new_workflow(order)
    await provider.persist_workflow(await provider.get_workflow_instance(order.id))
    heard.clear()
    with pytest.raises(WorkflowConflictError) as refused:
        await provider.persist_workflow(order)
    assert [unit.outcome for unit in heard] == ["NothingChangedError", "ok"]
    record = next(record for record in caplog.records if "refused" in record.getMessage())
    assert (record.levelno, record.getMessage()) == (logging.DEBUG, f"a write was refused: {refused.value}")


# opening


async def test_opening_a_store_of_an_earlier_release_tells_what_ran(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wfe_sql")
    file = tmp_path / "old.db"
    shutil.copy(DATA / "wfe-sqlite-1.0.0.db", file)
    for _ in range(2):
        async with SqlitePersistenceProvider(file):
            pass
    upgraded, *opened = [record.getMessage() for record in caplog.records]
    assert upgraded.startswith(f"upgraded {file}: create_wfe_sql_store_table, ")
    assert "name_workflows_without_name" in upgraded
    assert opened == [f"opened {file}"] * 2


async def test_opening_a_new_store_tells_that_it_is_made(open_: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wfe_sql")
    provider = await open_()
    *made, opened = [record.getMessage().split()[0] for record in caplog.records]
    assert opened == "opened"
    assert made == ([] if "memory" in provider._engine.store_id else ["made"])


async def test_opening_a_postgres_store_of_an_earlier_release_tells_what_ran(
    postgres_url: str, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    with psycopg.connect(postgres_url, autocommit=True) as by_hand:
        by_hand.execute(f"DROP TABLE {schema}.execution_errors CASCADE".encode())
    caplog.set_level(logging.INFO, "wfe_sql")
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    upgraded, opened = [record.getMessage() for record in caplog.records]
    assert f"(schema {schema}): create_execution_errors_table" in upgraded
    assert upgraded.startswith("upgraded postgresql://")
    assert opened.startswith("opened postgresql://")


# retries, and waiting for connections


async def test_units_that_run_again_after_one_failed_half_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "wfe_sql")
    async with SqlitePersistenceProvider(tmp_path / "x.db") as provider:
        await provider.create_new_workflow(instance())
        other = sample_instance(id="other", name="other", execution_pointers=[full_pointer(id="p1")])
        created = await asyncio.gather(
            provider.create_event(full_event(id="e1")), provider.create_new_workflow(other), return_exceptions=True
        )
    assert [type(each).__name__ for each in created] == ["str", "StoreError"]
    assert "2 units run again, each in a savepoint: one of them failed half done" in caplog.text


async def test_calls_that_wait_for_a_connection(
    postgres_url: str, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[UnitStats] = []
    async with PostgresPersistenceProvider(
        postgres_url, schema=schema, max_connections=1, slow_unit=NOW, on_unit=heard.append
    ) as provider:
        await asyncio.gather(provider.create_event(full_event(id="e1")), provider.get_execution_errors())
    waits = [record.getMessage() for record in caplog.records if "for one of the" in record.getMessage()]
    assert len(waits) == 1
    assert waits[0].startswith("a call waited 0.")
    assert " s for one of the 1 connections to postgresql://" in waits[0]
    assert len(heard) == 2


async def test_work_that_a_deadlock_undid(
    postgres_url: str, schema: str, admin: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A person locks two events in one order, and our call in the other: the server ends ours, which runs again."""
    caplog.set_level(logging.DEBUG, "wfe_sql")
    async with PostgresPersistenceProvider(postgres_url, schema=schema, application_name=schema) as provider:
        await provider.create_event(full_event(id="e1"))
        await provider.create_event(full_event(id="e2"))
        async with await psycopg.AsyncConnection.connect(
            postgres_url, options=f"-c search_path={schema} -c deadlock_timeout=1h"
        ) as by_hand:
            await by_hand.execute("UPDATE events SET is_processed = true WHERE id = 'e2'")
            marking = asyncio.create_task(_mark_both(provider))
            async with asyncio.timeout(10):
                while not admin("count_waiting", application=schema):
                    await asyncio.sleep(0)
            await by_hand.execute("UPDATE events SET is_processed = true WHERE id = 'e1'")
            await by_hand.commit()
        await marking
    assert "work that others undid runs again: DeadlockDetected" in caplog.text


async def _mark_both(provider: SqlPersistenceProvider) -> None:
    async with provider.unit() as unit:
        unit.mark_event_processed("e1")
        unit.mark_event_processed("e2")


async def test_a_call_that_waits_for_the_server(
    own_server: OwnServer, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "wfe_sql")
    own_server.start()
    async with PostgresPersistenceProvider(own_server.url, schema=schema, wait_for_server=MINUTE) as provider:
        own_server.stop()
        try:
            creating = asyncio.create_task(provider.create_event(full_event(id="e1")))
            async with asyncio.timeout(30):
                while "cannot be reached; a call waits 60 s for it" not in caplog.text:
                    await asyncio.sleep(0)
        finally:
            own_server.start()
        assert await creating == "e1"
    assert caplog.text.count("a call waits 60 s for it") == 1
