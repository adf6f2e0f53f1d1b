"""Units of work beyond the conformance suite: across event loops, and grouped on PostgreSQL."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    Event,
    EventAlreadyExistsError,
    ExecutionError,
    PostgresPersistenceProvider,
    ProviderClosedError,
    ScheduledCommand,
    SerializationError,
    SqlitePersistenceProvider,
    StoreError,
    UnitOfWork,
    WorkflowConflictError,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, sample_instance

MANY = 30


@pytest.fixture(params=["sqlite", "postgres"])
def make_provider(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., SqlPersistenceProvider]:
    """A function that returns a provider of one store."""
    if request.param == "sqlite":
        return lambda **options: SqlitePersistenceProvider(tmp_path / "store.db", **options)
    url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("empty_schema")
    return lambda **options: PostgresPersistenceProvider(url, schema=schema, **options)


async def _store(unit: UnitOfWork, *adds: Callable[[UnitOfWork], object]) -> None:
    async with unit:
        for add in adds:
            add(unit)


async def test_across_event_loops(make_provider: Callable[..., SqlPersistenceProvider]) -> None:
    instance = sample_instance(id="w")
    async with make_provider() as provider:
        await provider.create_new_workflow(instance)

        def elsewhere() -> None:
            asyncio.run(_store(provider.unit(), lambda unit: unit.persist_workflow(instance)))

        with pytest.raises(StoreError, match="belongs to another event loop"):
            await asyncio.to_thread(elsewhere)
        instance.data = "new"
        await _store(provider.unit(), lambda unit: unit.persist_workflow(instance))
        assert (await provider.get_workflow_instance("w")).data == "new"


async def test_on_a_provider_that_is_not_open(make_provider: Callable[..., SqlPersistenceProvider]) -> None:
    provider = make_provider()
    early, late = provider.unit(), provider.unit()
    with pytest.raises(ProviderClosedError):
        await _store(early, lambda unit: unit.create_event(full_event()))
    async with provider:
        await _store(late, lambda unit: unit.create_event(full_event(id="e")))
        assert await provider.get_event("e")
    with pytest.raises(ProviderClosedError):
        await _store(provider.unit(), lambda unit: unit.create_event(full_event()))


async def test_a_unit_leaves_nothing_to_the_garbage_collector(
    make_provider: Callable[..., SqlPersistenceProvider],
) -> None:
    async with make_provider() as provider:
        gc.disable()
        try:
            instance = sample_instance(id="w")
            unit = provider.unit()
            await _store(unit, lambda unit: unit.create_new_workflow(instance))
            persist = provider.unit()
            await _store(persist, lambda unit: unit.persist_workflow(instance))
            kept = weakref.ref(unit), weakref.ref(persist)
            del unit, persist
            async with asyncio.timeout(20):  # a thread lets go of what it ran a moment later
                while any(ref() is not None for ref in kept):
                    await asyncio.sleep(0)
        finally:
            gc.enable()


async def test_a_provider_that_overwrites(make_provider: Callable[..., SqlPersistenceProvider]) -> None:
    async with make_provider(on_conflict="overwrite") as provider, make_provider() as other:
        await provider.create_new_workflow(sample_instance(id="w"))
        mine, theirs = await provider.get_workflow_instance("w"), await other.get_workflow_instance("w")
        late = await other.get_workflow_instance("w")
        theirs.data = "theirs"
        await other.persist_workflow(theirs)
        for mine.data in ("mine", "mine again"):
            await _store(
                provider.unit(),
                lambda unit: unit.persist_workflow(mine),
                lambda unit: unit.create_event(full_event()),
            )
            assert (await provider.get_workflow_instance("w")).data == mine.data
        with pytest.raises(WorkflowConflictError):
            await _store(other.unit(), lambda unit: unit.persist_workflow(late))


async def test_units_that_wait_together_take_one_round_trip(schema: str, relay: Any) -> None:
    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=1) as provider:
        instances = [sample_instance(id=f"w{number}") for number in range(MANY)]
        taken = full_event()
        await provider.create_event(taken)

        async def step(number: int, operation: str, event: Event) -> None:
            async with provider.unit() as unit:
                getattr(unit, operation)(instances[number])
                unit.schedule_command(ScheduledCommand.process_workflow(f"w{number}", 1))
                unit.create_event(event)

        for operation in ("create_new_workflow", "persist_workflow"):
            before = relay.round_trips
            await asyncio.gather(*(step(number, operation, full_event()) for number in range(MANY)))
            assert relay.round_trips - before <= 3  # a large one is sent in parts
        events = [taken if number == 17 else full_event() for number in range(MANY)]
        ended = await asyncio.gather(
            *(step(number, "persist_workflow", event) for number, event in enumerate(events)), return_exceptions=True
        )
        assert [number for number, error in enumerate(ended) if error is not None] == [17]
        assert isinstance(ended[17], EventAlreadyExistsError)


async def test_errors_that_are_stored_at_once_take_one_round_trip(schema: str, relay: Any) -> None:
    def error(number: int) -> ExecutionError:
        return ExecutionError(workflow_id="w", execution_pointer_id=f"p{number}", message="late" if number else "\0")

    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=1) as provider:
        await provider.persist_errors([error(1)])
        before = relay.round_trips
        await asyncio.gather(*(provider.persist_errors([error(number)] * 2) for number in range(1, MANY)))
        assert relay.round_trips - before <= 2
        ended = await asyncio.gather(
            *(provider.persist_errors([error(number)]) for number in range(3)), return_exceptions=True
        )
        assert [type(outcome) for outcome in ended] == [SerializationError, type(None), type(None)]
        assert len(await provider.get_execution_errors("w")) == 1 + 2 * (MANY - 1) + 2
