"""Persisting writes only what changed, and is correct whatever changed and whoever wrote in between."""

import asyncio
import pickle
import random
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    ExecutionPointer,
    SqlitePersistenceProvider,
    StoreError,
    WorkflowInstance,
    WorkflowNotFoundError,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_instance, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

KIB = 1024


ByHand = Callable[[str], list[Any]]
ConnectStore = Callable[..., SqlPersistenceProvider]


@pytest.fixture
def schema(empty_schema: str) -> str:
    """The schema of this module's stores, shared because none of its tests changes the tables."""
    return empty_schema


@pytest.fixture
async def provider(connect_store: ConnectStore) -> AsyncIterator[SqlPersistenceProvider]:
    async with connect_store(on_conflict="overwrite") as opened:
        yield opened


@pytest.mark.slow
async def test_one_changed_pointer_of_a_thousand_is_a_small_write(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    instance = full_instance(execution_pointers=[full_pointer(step_id=number) for number in range(1_000)])
    async with SqlitePersistenceProvider(file) as provider:
        await provider.create_new_workflow(instance)
        log = Path(f"{file}-wal")
        for copied in (None, None, deepcopy, lambda loaded: pickle.loads(pickle.dumps(loaded))):
            if copied is not None:
                instance = copied(await provider.get_workflow_instance(instance.id))
            instance.execution_pointers[500].persistence_data["cursor"]["list"][1][1]["deep"].append("changed")
            before = log.stat().st_size
            await provider.persist_workflow(instance)
            assert 0 < log.stat().st_size - before < 32 * KIB
            assert await provider.get_workflow_instance(instance.id) == instance


async def test_fingerprints_are_made_when_an_instance_is_persisted(provider: SqlPersistenceProvider) -> None:
    instance = full_instance()
    await provider.create_new_workflow(instance)
    loaded = await provider.get_workflow_instance(instance.id)
    (read,) = loaded._stored.values()
    assert [type(pointer) for pointer in read.pointers.values()] == [str] * 3
    loaded.execution_pointers[0].retry_count += 1
    await provider.persist_workflow(loaded)
    (written,) = loaded._stored.values()
    assert [type(pointer) for pointer in written.pointers.values()] == [bytes] * 3


async def test_what_did_not_change_is_not_written(
    provider: SqlPersistenceProvider, by_hand: ByHand, backend: str
) -> None:
    place = {"sqlite": "rowid", "postgres": "position"}[backend]
    instance = full_instance()
    await provider.create_new_workflow(instance)
    first, _, third = by_hand(f"SELECT id, {place} FROM execution_pointers ORDER BY {place}")
    instance.execution_pointers[0].outcome = {"changed": True}
    del instance.execution_pointers[1]
    instance.execution_pointers.append(full_pointer(id="new"))
    await provider.persist_workflow(instance)
    assert by_hand(f"SELECT id, {place} FROM execution_pointers ORDER BY {place}")[:2] == [first, third]
    assert await provider.get_workflow_instance(instance.id) == instance


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
async def test_any_change_is_stored(provider: SqlPersistenceProvider, seed: int) -> None:
    """Random changes by two callers with the same workflow, one of which overwrites the other unknowingly."""
    dice = random.Random(seed)
    stored = sample_instance(execution_pointers=[full_pointer(id=f"p{n}") for n in range(dice.randrange(5))])
    await provider.create_new_workflow(stored)
    held = [stored, await provider.get_workflow_instance(stored.id)]
    for step in range(25):
        instance = dice.choice(held)
        change(dice, instance, step)
        if dice.random() < 0.2:
            await provider.persist_workflow_with_subscriptions(instance, [full_subscription()])
        else:
            await provider.persist_workflow(instance)
        loaded = await provider.get_workflow_instance(stored.id)
        assert loaded == instance
        if dice.random() < 0.3:
            held[dice.randrange(2)] = loaded


def change(dice: random.Random, instance: WorkflowInstance, step: int) -> None:
    pointers = instance.execution_pointers
    instance.data = {"step": step}
    for _ in range(dice.randrange(4)):
        match dice.randrange(6):
            case 0:
                pointers.append(full_pointer(id=f"new-{step}-{dice.random()}"))
            case 1:
                pointers.insert(dice.randrange(len(pointers) + 1), ExecutionPointer(step_id=step))
            case 2 if pointers:
                del pointers[dice.randrange(len(pointers))]
            case 3:
                dice.shuffle(pointers)
            case 4 if pointers:
                dice.choice(pointers).extension_attributes[f"at {step}"] = [{"deep": dice.random()}]
            case 5 if pointers:
                pointer = dice.choice(pointers)
                pointer.retry_count += 1
                pointer.sleep_until = pointer.sleep_until and pointer.sleep_until + timedelta(microseconds=1)
            case _:
                pass


async def test_a_write_by_another_program_is_overwritten_whole(
    provider: SqlPersistenceProvider, by_hand: ByHand
) -> None:
    instance = full_instance()
    await provider.create_new_workflow(instance)
    by_hand("UPDATE execution_pointers SET retry_count = 99, step_name = 'theirs'")
    by_hand("UPDATE workflows SET status = 'Runnable'")
    instance.execution_pointers[0].retry_count = 1
    await provider.persist_workflow(instance)
    assert await provider.get_workflow_instance(instance.id) == instance


async def test_a_pointer_that_somebody_removed_is_not_lost(provider: SqlPersistenceProvider, by_hand: ByHand) -> None:
    instance = sample_instance(execution_pointers=[full_pointer(id="p1"), full_pointer(id="p2")])
    await provider.create_new_workflow(instance)
    by_hand("DELETE FROM execution_pointers WHERE id = 'p2'")
    instance.execution_pointers[1].retry_count += 1
    await provider.persist_workflow(instance)
    assert await provider.get_workflow_instance(instance.id) == instance


async def test_a_workflow_deleted_and_made_again(provider: SqlPersistenceProvider, by_hand: ByHand) -> None:
    instance = full_instance()
    await provider.create_new_workflow(instance)
    await provider.persist_workflow(instance)
    by_hand("DELETE FROM execution_pointers")
    by_hand("DELETE FROM workflows")
    await provider.create_new_workflow(
        sample_instance(id=instance.id, name=instance.name, create_time=instance.create_time)
    )
    await provider.persist_workflow(instance)
    assert await provider.get_workflow_instance(instance.id) == instance


async def test_integers_beyond_64_bits_inside_json(provider: SqlPersistenceProvider) -> None:
    instance = sample_instance(execution_pointers=[full_pointer(outcome=2**70)])
    await provider.create_new_workflow(instance)
    for value in (2**70, 2**70 + 1, -(2**90)):
        instance.execution_pointers[0].outcome = value
        await provider.persist_workflow(instance)
        assert await provider.get_workflow_instance(instance.id) == instance


async def test_what_is_stored_over_a_conflict_is_what_was_passed_at_the_call(provider: SqlPersistenceProvider) -> None:
    """Somebody else wrote in between, so a second attempt writes everything."""
    pointers = [full_pointer(id="same"), full_pointer(id="changed"), full_pointer(id="big", outcome=2**70)]
    stored = sample_instance(execution_pointers=pointers)
    await provider.create_new_workflow(stored)
    await provider.persist_workflow(await provider.get_workflow_instance(stored.id))
    stored.data, stored.execution_pointers[1].outcome = ["at the call"], {"at": ["the call"]}
    expected = deepcopy(stored)
    persisting = asyncio.create_task(provider.persist_workflow(stored))
    await asyncio.sleep(0)
    stored.data.append("later")
    stored.name = "later"
    for pointer in stored.execution_pointers:
        pointer.outcome, pointer.extension_attributes["later"] = {"not JSON"}, True
    stored.execution_pointers.pop()
    stored.id = "another"
    await persisting
    assert await provider.get_workflow_instance(expected.id) == expected


async def test_an_instance_whose_id_was_changed_is_written_whole(provider: SqlPersistenceProvider) -> None:
    one, other = sample_instance(execution_pointers=[]), full_instance()
    for stored in (one, other):
        await provider.create_new_workflow(stored)
    one.id, one.name, one.data = other.id, other.name, "of the other"
    await provider.persist_workflow(one)
    assert await provider.get_workflow_instance(other.id) == one
    one.id = "unknown"
    with pytest.raises(WorkflowNotFoundError, match="'unknown'"):
        await provider.persist_workflow(one)


@pytest.mark.parametrize("persists", [0, 3])
async def test_a_late_persist_of_a_first_life_is_written_whole(provider: SqlPersistenceProvider, persists: int) -> None:
    lives = [full_instance(id="nightly", name="nightly", create_time=TIME + timedelta(days=day)) for day in range(2)]
    for life in lives:
        await provider.create_new_workflow(life)
        for _ in range(persists):
            await provider.persist_workflow(life)
        if life is lives[0]:
            await provider.delete_workflow("nightly")
    lives[0].execution_pointers[0].outcome = "late"
    await provider.persist_workflow(lives[0])
    lives[0].create_time = lives[1].create_time
    assert await provider.get_workflow_instance("nightly") == lives[0]


async def test_a_write_that_failed_is_not_remembered(provider: SqlPersistenceProvider) -> None:
    other = sample_instance(name="taken", execution_pointers=[full_pointer(id="theirs")])
    instance = sample_instance(name="mine", execution_pointers=[full_pointer(id="p1")])
    for stored in (other, instance):
        await provider.create_new_workflow(stored)
    instance.execution_pointers[0].retry_count = 5
    instance.execution_pointers.append(full_pointer(id="theirs"))
    with pytest.raises(StoreError, match="'theirs' of workflow .* belongs to"):
        await provider.persist_workflow(instance)
    instance.execution_pointers.pop()
    await provider.persist_workflow(instance)
    assert await provider.get_workflow_instance(instance.id) == instance


async def test_an_instance_of_one_store_is_written_whole_to_another(
    provider: SqlPersistenceProvider, connect_store: ConnectStore
) -> None:
    instance = full_instance(id="w1", name="order-1")
    await provider.create_new_workflow(instance)
    async with connect_store(other=True, on_conflict="overwrite") as other:
        await other.create_new_workflow(full_instance(id="w1", name="order-1"))
        instance.execution_pointers[0].retry_count += 1
        await other.persist_workflow(instance)
        assert await other.get_workflow_instance("w1") == instance
