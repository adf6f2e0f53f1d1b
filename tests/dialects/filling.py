"""The contents of the stores in which queries are planned and run."""

import asyncio
from datetime import UTC, datetime, timedelta

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing.samples import full_event, full_instance, full_pointer, full_subscription

START = datetime(2026, 5, 28, 20, 0, tzinfo=UTC)
DEFINITIONS = 5
LIVE = 12
"""One workflow, event and subscription in this many is unfinished."""
CHILDREN = 10
"""One workflow in this many has no root; it is the root of those that follow."""


async def fill_large(provider: SqlPersistenceProvider, workflows: int) -> None:
    """Store what a host has after a while: most of it is finished."""
    async with provider:
        for number in range(DEFINITIONS):
            await provider.next_definition_sequence(f"definition-{number}")
        await asyncio.gather(*(_store_workflow(provider, number) for number in range(workflows)))
        await provider.persist_errors([_error(number) for number in range(workflows)])


async def _store_workflow(provider: SqlPersistenceProvider, number: int) -> None:
    at = START + timedelta(seconds=number)
    definition = f"definition-{number % DEFINITIONS}"
    is_finished = number % LIVE != 0
    workflow = WorkflowInstance(
        id=f"workflow-{number}",
        name=f"{definition}-{number // DEFINITIONS + 1}",
        root_workflow_id=f"workflow-{number - number % CHILDREN}" if number % CHILDREN else None,
        workflow_definition_id=definition,
        version=1,
        data={"number": number},
        execution_pointers=[ExecutionPointer(step_id=step) for step in range(4)],
        status=WorkflowStatus.Complete if is_finished else WorkflowStatus.Runnable,
        next_execution=None if is_finished else number,
        create_time=at,
        complete_time=at if is_finished else None,
    )
    subscription = EventSubscription(
        workflow_id=workflow.id,
        step_id=1,
        execution_pointer_id=workflow.execution_pointers[1].id,
        event_name="paid" if number % 3 else "shipped",
        event_key=f"order-{number % 50}",
        subscribe_as_of=at,
    )
    event = Event(
        event_name=subscription.event_name,
        event_key=subscription.event_key,
        event_data=number,
        event_time=at,
        is_processed=is_finished,
    )
    await provider.create_new_workflow(workflow)
    await provider.create_event_subscription(subscription)
    await provider.create_event(event)
    await provider.schedule_command(ScheduledCommand.process_workflow(workflow.id, number))
    if is_finished:
        await provider.terminate_subscription(subscription.id)


def _error(number: int) -> ExecutionError:
    return ExecutionError(
        workflow_id=f"workflow-{number % 40}",
        execution_pointer_id="pointer",
        message="no",
        error_time=START + timedelta(seconds=number),
    )


async def fill_small(provider: SqlPersistenceProvider) -> None:
    """Store a few rows of each kind, the same each time: one has every field set, others are due at 1000 to 3000 ms."""
    async with provider:
        pointers = [full_pointer(id="pointer-full"), ExecutionPointer(id="pointer-0-2", step_id=4)]
        await provider.create_new_workflow(
            full_instance(id="workflow-full", name="order-full", execution_pointers=pointers)
        )
        for number in (1, 2, 3):
            at = START + timedelta(minutes=number)
            workflow = WorkflowInstance(
                id=f"workflow-{number}",
                name=f"order-{await provider.next_definition_sequence('order')}",
                workflow_definition_id="order",
                version=1,
                data={"number": number},
                execution_pointers=[
                    ExecutionPointer(id=f"pointer-{number}-{step}", step_id=step, step_name=f"step {step}")
                    for step in (2, 1)
                ],
                next_execution=number * 1000,
                create_time=at,
            )
            await provider.create_new_workflow(workflow)
            subscription = full_subscription(
                id=f"subscription-{number}",
                workflow_id=workflow.id,
                execution_pointer_id=f"pointer-{number}-1",
                subscribe_as_of=at,
            )
            if number > 1:
                subscription.external_token = subscription.external_worker_id = None
                subscription.external_token_expiry = None
            await provider.create_event_subscription(subscription)
            await provider.create_event(full_event(id=f"event-{number}", event_time=at, is_processed=number == 1))
            await provider.persist_errors(
                [
                    ExecutionError(
                        error_time=at, workflow_id=workflow.id, execution_pointer_id="pointer-1-1", message="no"
                    )
                ]
            )
            await provider.schedule_command(ScheduledCommand.process_workflow(workflow.id, number * 1000))
        await provider.terminate_subscription("subscription-3")
        await provider.create_new_workflow(
            full_instance(
                id="workflow-done",
                name="order-done",
                status=WorkflowStatus.Complete,
                next_execution=None,
                execution_pointers=[ExecutionPointer(id="pointer-done", step_id=1)],
                complete_time=START,
            )
        )
        await _leave_orphans(provider)


async def _leave_orphans(provider: SqlPersistenceProvider) -> None:
    """Store rows that belong to a deleted workflow or event."""
    await provider.create_event_subscription(
        full_subscription(id="subscription-gone", workflow_id="gone", execution_pointer_id="gone", event_key="gone")
    )
    error = ExecutionError(error_time=START, workflow_id="gone", execution_pointer_id="gone", message="no")
    await provider.persist_errors([error])
    await provider.schedule_command(ScheduledCommand.process_workflow("gone", 5000))
    await provider.schedule_command(ScheduledCommand.process_event("gone", 5000))
