"""Schemas of an early release of the reference, from before workflows had names, and schemas that are not stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionPointer,
    PointerStatus,
    PostgresPersistenceProvider,
    ScheduledCommand,
    StoreError,
    WorkflowAlreadyExistsError,
    WorkflowInstance,
)
from wfe_sql.testing import full_instance, sample_instance
from wfe_sql.testing.samples import TIME

OLD = Path(__file__).parent.parent / "data" / "wfe-postgres-1.0.0.sql"

ByHand = Callable[..., list[Any]]
Catalog = Callable[[str], set[tuple[str, ...]]]


@pytest.fixture
def backend() -> str:
    return "postgres"


@pytest.fixture
def old(schema: str, by_hand: ByHand) -> str:
    """The name of a schema of wfe-postgres 1.0.0."""
    by_hand(f"CREATE SCHEMA {schema}")
    by_hand(OLD.read_text())
    return schema


async def open_and_close(url: str, schema: str) -> None:
    async with PostgresPersistenceProvider(url, schema=schema):
        pass


async def test_the_upgraded_schema_is_that_of_a_fresh_store(
    postgres_url: str, old: str, new_schema: Callable[[], str], catalog: Catalog
) -> None:
    fresh = new_schema()
    await open_and_close(postgres_url, fresh)
    assert catalog(old) != catalog(fresh)
    await open_and_close(postgres_url, old)
    assert catalog(old) == catalog(fresh)
    await open_and_close(postgres_url, old)
    assert catalog(old) == catalog(fresh)


async def test_everything_that_was_there_is_read(postgres_url: str, old: str) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=old) as provider:
        assert await provider.get_workflow_instances(["old-1", "old-2"]) == [
            WorkflowInstance(
                id="old-1",
                name="old-1",
                workflow_definition_id="order",
                version=1,
                data={"amount": 1},
                create_time=TIME,
                execution_pointers=[
                    ExecutionPointer(
                        id="old-1-b", step_id=0, active=False, status=PointerStatus.Complete, children=["old-1-a"]
                    ),
                    ExecutionPointer(
                        id="old-1-a",
                        step_id=1,
                        status=PointerStatus.WaitingForEvent,
                        scope=["old-1-b"],
                        extension_attributes={"owner": "alice"},
                    ),
                ],
            ),
            WorkflowInstance(
                id="old-2",
                name="old-2",
                workflow_definition_id="order",
                version=1,
                data={"amount": 2},
                create_time=TIME,
            ),
        ]
        assert await provider.get_event("old-event") == Event(
            id="old-event", event_name="paid", event_key="old-1", event_data={"amount": 1}, event_time=TIME
        )
        assert await provider.get_subscriptions("paid", "old-1", TIME) == [
            EventSubscription(
                id="old-subscription",
                workflow_id="old-1",
                step_id=1,
                execution_pointer_id="old-1-a",
                event_name="paid",
                event_key="old-1",
                subscribe_as_of=TIME,
            )
        ]
        assert [error.message for error in await provider.get_execution_errors("old-1")] == ["boom"]
        handled: list[ScheduledCommand] = []

        async def handler(command: ScheduledCommand) -> None:
            handled.append(command)

        await provider.process_commands(TIME, handler)
        assert handled == [ScheduledCommand.process_workflow("old-1", 7)]


async def test_it_is_continued(postgres_url: str, old: str) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=old) as provider:
        assert await provider.get_runnable_instances(TIME) == ["old-1", "old-2"]
        assert (await provider.get_workflow_instance_by_name("old-1")).id == "old-1"
        changed = full_instance(id="old-1", create_time=TIME)
        await provider.persist_workflow(changed)
        assert await provider.get_workflow_instance("old-1") == changed
        assert await provider.next_definition_sequence("order") == 1


async def test_names_are_there_and_unique_from_then_on(postgres_url: str, old: str, by_hand: ByHand) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=old) as provider:
        with pytest.raises(WorkflowAlreadyExistsError, match="old-1"):
            await provider.create_new_workflow(sample_instance(name="old-1"))
    with pytest.raises(Exception, match="not-null constraint"):
        by_hand("UPDATE workflows SET name = NULL WHERE id = 'old-1'")
    with pytest.raises(Exception, match="workflows_name_key"):
        by_hand("UPDATE workflows SET name = 'old-1' WHERE id = 'old-2'")
    assert by_hand("SELECT id, name FROM workflows ORDER BY id") == [("old-1", "old-1"), ("old-2", "old-2")]


async def test_names_that_are_there_already_stay(postgres_url: str, old: str, by_hand: ByHand) -> None:
    """Somebody has begun to upgrade it by hand."""
    by_hand("ALTER TABLE workflows ADD COLUMN name TEXT")
    by_hand("UPDATE workflows SET name = 'order-1' WHERE id = 'old-1'")
    await open_and_close(postgres_url, old)
    assert by_hand("SELECT id, name FROM workflows ORDER BY id") == [("old-1", "order-1"), ("old-2", "old-2")]


async def test_it_is_brought_up_to_date_as_a_whole_or_not_at_all(
    postgres_url: str, old: str, by_hand: ByHand, catalog: Catalog
) -> None:
    """The last table cannot be created: a view has its name, and a view has no indexes."""
    by_hand("ALTER TABLE execution_errors RENAME TO moved; CREATE VIEW execution_errors AS SELECT * FROM moved")
    before = catalog(old)
    with pytest.raises(StoreError, match="execution_errors"):
        await open_and_close(postgres_url, old)
    assert catalog(old) == before
    by_hand("DROP VIEW execution_errors; ALTER TABLE moved RENAME TO execution_errors")
    await open_and_close(postgres_url, old)
    assert by_hand("SELECT count(*) FROM workflows WHERE name = id") == [(2,)]
