"""`on_conflict="raise"`: whoever persists what was changed meanwhile hears of it, whichever program changed it."""

import copy
import pickle
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from wfe_sql import WorkflowConflictError, WorkflowInstance
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

ByHand = Callable[[str], list[Any]]
ConnectStore = Callable[..., SqlPersistenceProvider]


@pytest.fixture
async def provider(connect_store: ConnectStore) -> AsyncIterator[SqlPersistenceProvider]:
    async with connect_store(on_conflict="raise") as opened:
        yield opened


async def test_the_second_of_two_writers_hears_of_it(provider: SqlPersistenceProvider) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    one, other = [await provider.get_workflow_instance(stored.id) for _ in range(2)]
    one.data, other.data = "one", "other"
    other.execution_pointers.append(full_pointer())
    await provider.persist_workflow(one)
    subscription = full_subscription(workflow_id=stored.id)
    for late in (
        provider.persist_workflow(other),
        provider.persist_workflow_with_subscriptions(other, [subscription]),
        provider.persist_workflow(stored),
    ):
        with pytest.raises(WorkflowConflictError, match=f"{stored.id}.* at revision 0 and is now at 1; load it again"):
            await late
    assert await provider.get_workflow_instance(stored.id) == one
    assert await provider.get_subscriptions("paid", "k1", TIME) == []


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


async def test_by_default_the_last_writer_wins(connect_store: ConnectStore) -> None:
    async with connect_store() as provider:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        one, other = [await provider.get_workflow_instance(stored.id) for _ in range(2)]
        one.data, other.data = "one", "other"
        await provider.persist_workflow(one)
        await provider.persist_workflow(other)
        assert await provider.get_workflow_instance(stored.id) == other


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda instance: pickle.loads(pickle.dumps(instance))],
    ids=["copy", "deepcopy", "pickle"],
)
async def test_a_copy_is_as_old_as_its_original(provider: SqlPersistenceProvider, copied: Any) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    twin: WorkflowInstance = copied(await provider.get_workflow_instance(stored.id))
    assert twin == stored
    await provider.persist_workflow(stored)
    with pytest.raises(WorkflowConflictError):
        await provider.persist_workflow(twin)
