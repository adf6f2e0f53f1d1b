"""A store of one backend becomes a store of another, with everything in it."""

from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest

from wfe_sql import ExecutionError, PostgresPersistenceProvider, ScheduledCommand, SqlitePersistenceProvider, WfeError
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, full_instance, full_subscription
from wfe_sql.testing.samples import TIME


async def _fill(provider: SqlPersistenceProvider) -> None:
    for id_ in ("b", "a", "Z", "ż", "_"):
        instance = full_instance(
            id=id_, status="Runnable", next_execution=0, data=[1e300, 1e16, -0.5, 2**70, {"ż": None}]
        )
        await provider.create_new_workflow(instance)
        instance.execution_pointers.reverse()
        await provider.persist_workflow(instance)
        await provider.create_event(full_event(id=id_, is_processed=False))
        await provider.create_event_subscription(full_subscription(id=id_, external_token=None))
        await provider.schedule_command(ScheduledCommand.process_workflow(id_, 5))
        await provider.next_definition_sequence(id_)
        await provider.persist_errors(
            [ExecutionError(workflow_id=id_, execution_pointer_id="p", message=f"boom {id_}")]
        )
    await provider.terminate_subscription("a")
    await provider.claim_runnable_instances(TIME, "host", lease=timedelta(minutes=1), limit=2)
    await provider.claim_runnable_events(TIME, "host", lease=timedelta(minutes=1), limit=2)


async def _dump(provider: SqlPersistenceProvider) -> list[str]:
    async with aclosing(provider.dump()) as lines:
        return [line async for line in lines]


@pytest.mark.parametrize("way", ["to PostgreSQL", "to SQLite"])
async def test_a_copy_has_everything(postgres_url: str, schema: str, tmp_path: Path, way: str) -> None:
    clock = ManualClock()
    async with (
        PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock) as postgres,
        SqlitePersistenceProvider(tmp_path / "store.db", clock=clock) as sqlite,
    ):
        source, copy = (sqlite, postgres) if way == "to PostgreSQL" else (postgres, sqlite)
        await _fill(source)
        await source.copy_to(copy)
        assert await _dump(copy) == await _dump(source)
        ids = ["b", "a", "Z", "ż", "_"]
        assert await copy.get_workflow_instances(ids) == await source.get_workflow_instances(ids)
        assert await copy.get_subscription("a") == await source.get_subscription("a")
        assert await copy.next_definition_sequence("a") == 2


async def test_a_copy_that_postgresql_cannot_hold_leaves_it_empty(
    postgres_url: str, schema: str, tmp_path: Path
) -> None:
    async with (
        PostgresPersistenceProvider(postgres_url, schema=schema) as postgres,
        SqlitePersistenceProvider(tmp_path / "store.db") as sqlite,
    ):
        await _fill(sqlite)
        await sqlite.create_new_workflow(full_instance(id="nul", data="\0"))
        with pytest.raises(WfeError, match="data .*NUL"):
            await sqlite.copy_to(postgres)
        assert await _dump(postgres) == []
