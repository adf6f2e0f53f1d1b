"""What errors carry, so that nobody has to parse their text."""

import pickle
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import wfe_sql
from wfe_sql import SqlitePersistenceProvider, WfeError
from wfe_sql.testing import full_event, full_instance, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

_LEASE = timedelta(minutes=1)


@pytest.fixture
async def provider() -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(":memory:", on_conflict="raise") as opened:
        yield opened


async def check(call: Awaitable[object], kind: type[WfeError], **attributes: object) -> None:
    """Check what a call raises, and that the error survives pickling, as in a process pool."""
    with pytest.raises(kind) as raised:
        await call
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert {name: getattr(error, name) for name in attributes} == attributes
        assert str(error) == str(raised.value)


async def dumped(provider: SqlitePersistenceProvider) -> list[str]:
    return [line async for line in provider.dump()]


async def test_what_was_not_found(provider: SqlitePersistenceProvider) -> None:
    no_workflow = wfe_sql.WorkflowNotFoundError
    await check(provider.get_workflow_instance("w"), no_workflow, workflow_id="w", name=None)
    await check(provider.get_workflow_instance_by_name("n"), no_workflow, workflow_id=None, name="n")
    await check(provider.persist_workflow(sample_instance(id="w")), no_workflow, workflow_id="w", name=None)
    await check(provider.delete_workflow("w"), no_workflow, workflow_id="w", name=None)
    await check(provider.get_event("e"), wfe_sql.EventNotFoundError, event_id="e")
    await check(provider.get_subscription("s"), wfe_sql.SubscriptionNotFoundError, subscription_id="s")


async def test_what_already_exists(provider: SqlitePersistenceProvider) -> None:
    exists = wfe_sql.WorkflowAlreadyExistsError
    await provider.create_new_workflow(sample_instance(id="w", name="n"))
    await check(provider.create_new_workflow(sample_instance(id="w")), exists, workflow_id="w", name=None)
    await check(provider.create_new_workflow(sample_instance(name="n")), exists, workflow_id=None, name="n")
    await provider.create_event(full_event(id="e"))
    await check(provider.create_event(full_event(id="e")), wfe_sql.EventAlreadyExistsError, event_id="e")


async def test_a_token_of_somebody_else(provider: SqlitePersistenceProvider) -> None:
    wrong = wfe_sql.SubscriptionTokenError
    subscription = full_subscription(id="s", external_token="theirs", external_token_expiry=TIME.replace(year=9000))
    await provider.create_event_subscription(subscription)
    await check(provider.clear_subscription_token("s", "mine"), wrong, subscription_id="s")
    unit = provider.unit()
    unit.set_subscription_token("s", "mine", "worker", TIME)
    await check(unit.__aexit__(None, None, None), wrong, subscription_id="s")


async def test_a_conflict(provider: SqlitePersistenceProvider) -> None:
    instance = sample_instance(id="w")
    await provider.create_new_workflow(instance)
    await provider.persist_workflow(await provider.get_workflow_instance("w"))
    instance.version = 2
    await check(provider.persist_workflow(instance), wfe_sql.WorkflowConflictError, workflow_id="w")


async def test_a_lost_claim(provider: SqlitePersistenceProvider) -> None:
    instance = sample_instance(id="w", next_execution=0)
    await provider.create_new_workflow(instance)
    (claim,) = await provider.claim_runnable_instances(TIME, "worker", lease=_LEASE, limit=1)
    await provider.release_claim(claim)
    await check(provider.release_claim(claim), wfe_sql.ClaimLostError, claim=claim)
    await check(provider.persist_workflow(instance, claim=claim), wfe_sql.ClaimLostError, claim=claim)


async def test_a_value_that_cannot_be_stored(provider: SqlitePersistenceProvider) -> None:
    wrong = wfe_sql.SerializationError
    workflow = sample_instance(data=float("nan"))
    await check(provider.create_new_workflow(workflow), wrong, field="WorkflowInstance.data")
    await check(provider.get_runnable_instances(TIME, limit=0), wrong, field="limit")
    await check(provider.get_runnable_events(TIME.replace(tzinfo=None)), wrong, field="as_at")
    await check(provider.get_event(5), wrong, field="id")  # type: ignore[arg-type]
    await check(provider.get_workflow_instances("w"), wrong, field="ids")
    claiming = provider.claim_runnable_instances(TIME, "worker", lease=-_LEASE, limit=1)
    await check(claiming, wrong, field="lease")
    await check(provider.change("w", "text"), wrong, field="function")  # type: ignore[arg-type]
    await check(provider.create_event(sample_instance()), wrong, field=None)  # type: ignore[arg-type]


async def test_a_busy_store(tmp_path: Path) -> None:
    file, timeout = tmp_path / "store.db", timedelta(milliseconds=1)
    async with SqlitePersistenceProvider(file, busy_timeout=timeout) as provider:
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            await check(provider.create_event(full_event()), wfe_sql.StoreBusyError, timeout=timeout)


async def test_a_damaged_row(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with SqlitePersistenceProvider(file) as provider:
        await provider.create_new_workflow(full_instance(id="w"))
        with closing(sqlite3.connect(file)) as other, other:
            other.execute("UPDATE workflows SET status = 'Sleepy'")
        damaged = {"table": "workflows", "column": "status", "row_id": "w"}
        await check(provider.get_workflow_instance("w"), wfe_sql.CorruptRowError, **damaged)
        await check(dumped(provider), wfe_sql.CorruptRowError, **damaged)


@pytest.mark.parametrize(
    "name", [name for name in wfe_sql.__all__ if name.endswith("Error") and name != "ExecutionError"]
)
def test_every_error_is_made_of_its_message_and_says_what_it_carries(name: str) -> None:
    kind = getattr(wfe_sql, name)
    error = kind("what is wrong")
    assert str(error) == "what is wrong"
    assert set(vars(error).values()) <= {None}
    assert all(f"        {attribute}: " in kind.__doc__ for attribute in vars(error))
