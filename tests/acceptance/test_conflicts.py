"""Persisting a workflow that was changed meanwhile is a conflict, whichever program changed it."""

import asyncio
import copy
import dataclasses
import pickle
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from wfe_sql import WorkflowConflictError, WorkflowInstance
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_instance, sample_instance
from wfe_sql.testing.samples import TIME

ByHand = Callable[[str], list[Any]]
ConnectStore = Callable[..., SqlPersistenceProvider]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(connect_store: ConnectStore) -> AsyncIterator[SqlPersistenceProvider]:
    async with connect_store() as opened:
        yield opened


async def test_one_writer_goes_on_after_each_write(provider: SqlPersistenceProvider) -> None:
    instance = sample_instance()
    await provider.create_new_workflow(instance)
    for step in range(3):
        instance.data = step
        await provider.persist_workflow(instance)
    assert await provider.get_workflow_instance_by_name(instance.name) == instance


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE workflows SET data = '1'",
        "UPDATE workflows SET status = status",
        "UPDATE workflows SET name = 'x', root_workflow_id = NULL, definition_id = 'd', next_execution = 0",
    ],
)
async def test_a_change_by_another_program(provider: SqlPersistenceProvider, by_hand: ByHand, change: str) -> None:
    instance = sample_instance()
    await provider.create_new_workflow(instance)
    by_hand(change)
    with pytest.raises(WorkflowConflictError):
        await provider.persist_workflow(instance)
    again = await provider.get_workflow_instance(instance.id)
    await provider.persist_workflow(again)
    assert by_hand("SELECT revision FROM workflows") == [(2,)]


async def test_a_claim_is_no_change(provider: SqlPersistenceProvider) -> None:
    instance = sample_instance()
    await provider.create_new_workflow(instance)
    (claim,) = await provider.claim_runnable_instances(TIME, "one", lease=timedelta(minutes=1), limit=1)
    await provider.renew_claim(claim, timedelta(minutes=1))
    await provider.persist_workflow(instance, claim=claim)
    await provider.release_claim(claim)
    await provider.persist_workflow(instance)


async def test_a_conflict_under_a_claim_that_holds(provider: SqlPersistenceProvider, by_hand: ByHand) -> None:
    instance = sample_instance()
    await provider.create_new_workflow(instance)
    (claim,) = await provider.claim_runnable_instances(TIME, "one", lease=timedelta(minutes=1), limit=1)
    by_hand("UPDATE workflows SET data = '1'")
    with pytest.raises(WorkflowConflictError):
        await provider.persist_workflow(instance, claim=claim)


async def test_an_instance_built_by_hand_overwrites(provider: SqlPersistenceProvider) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    await provider.persist_workflow(stored)
    built = sample_instance(id=stored.id, name=stored.name, data="built by hand", create_time=stored.create_time)
    await provider.persist_workflow(built)
    assert await provider.get_workflow_instance(stored.id) == built


async def test_the_last_writer_may_win(connect_store: ConnectStore) -> None:
    async with connect_store(on_conflict="overwrite") as provider:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        one, other = [await provider.get_workflow_instance(stored.id) for _ in range(2)]
        one.data, other.data = "one", "other"
        await provider.persist_workflow(one)
        await provider.persist_workflow(other)
        assert await provider.get_workflow_instance(stored.id) == other


async def test_through_another_provider_of_the_store(
    provider: SqlPersistenceProvider, connect_store: ConnectStore
) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    async with connect_store() as same:
        loaded = await same.get_workflow_instance(stored.id)
        loaded.data = "changed"
        await provider.persist_workflow(loaded)
        for late in (provider, same):
            with pytest.raises(WorkflowConflictError, match="you have revision 0, the store has 1; load it again"):
                await late.persist_workflow(stored)
        await same.persist_workflow(loaded)


async def test_through_two_providers_of_the_store_at_once(
    provider: SqlPersistenceProvider, connect_store: ConnectStore
) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    async with connect_store() as same:
        for round_ in range(5):
            stored.data = round_
            await asyncio.gather(*(store.persist_workflow(stored) for store in (provider, same, provider)))
    assert await provider.get_workflow_instance(stored.id) == stored


async def test_one_instance_in_two_stores(provider: SqlPersistenceProvider, connect_store: ConnectStore) -> None:
    instance = full_instance()
    await provider.create_new_workflow(instance)
    await provider.persist_workflow(instance)
    async with connect_store(other=True) as other:
        await other.create_new_workflow(instance)
        for round_ in range(3):
            instance.data = round_
            instance.execution_pointers[0].retry_count = round_
            for store in (provider, other):
                await store.persist_workflow(instance)
                assert await store.get_workflow_instance(instance.id) == instance
        await other.persist_workflow(await other.get_workflow_instance(instance.id))
        with pytest.raises(WorkflowConflictError):
            await other.persist_workflow(instance)
        await provider.persist_workflow(instance)


async def test_a_store_of_another_writers_times(provider: SqlPersistenceProvider, by_hand: ByHand) -> None:
    """The reference may write nanoseconds, and a person anything."""
    instance = sample_instance()
    await provider.create_new_workflow(instance)
    for time in ("2026-05-28T20:26:40.123456789+00:00", "2026-05-28T20:26:40Z", "2026-05-28T22:26:40.5+02:00"):
        by_hand(f"UPDATE workflows SET create_time = '{time}'")
        loaded = await provider.get_workflow_instance(instance.id)
        for _ in range(2):
            await provider.persist_workflow(loaded)
        late = await provider.get_workflow_instance(instance.id)
        by_hand("UPDATE workflows SET create_time = '2026-05-28T20:26:41+00:00', revision = revision")
        with pytest.raises(WorkflowConflictError):
            await provider.persist_workflow(late)


def test_the_memory_is_no_field() -> None:
    names = [field.name for field in dataclasses.fields(WorkflowInstance)]
    assert names[-1] == "complete_time"
    instance = sample_instance()
    assert list(dataclasses.asdict(instance)) == names
    assert "_stored" not in repr(instance)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda instance: pickle.loads(pickle.dumps(instance)), dataclasses.replace],
    ids=["copy", "deepcopy", "pickle", "replace"],
)
async def test_a_copy_is_as_old_as_its_original(provider: SqlPersistenceProvider, copied: Any) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    twin: WorkflowInstance = copied(await provider.get_workflow_instance(stored.id))
    assert twin == stored
    twin.execution_pointers = [dataclasses.replace(pointer, retry_count=9) for pointer in twin.execution_pointers]
    await provider.persist_workflow(stored)
    with pytest.raises(WorkflowConflictError):
        await provider.persist_workflow(twin)
