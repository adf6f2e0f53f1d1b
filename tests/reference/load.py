"""What the reference program's `load` does, by this library: a write load beside other programs on one store.

    python load.py STORE WORKER OPERATIONS SHARED[,SHARED...]

A store is a file, or URL#SCHEMA. Several rounds run at once, so that they share commits. Each prints one JSON line when
it is done.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionPointer,
    PersistenceProvider,
    StoreBusyError,
    StoreOptions,
    WorkflowInstance,
    connect,
)

FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)


async def retried(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    while True:
        try:
            return await call(*arguments)
        except StoreBusyError:
            await asyncio.sleep(0.005)


async def run_round(provider: PersistenceProvider, worker: str, number: int, shared: list[str]) -> None:
    sequence = await retried(provider.next_definition_sequence, "load")
    created = WorkflowInstance(
        name=f"load-{sequence}",
        workflow_definition_id="load",
        version=1,
        data={"worker": worker, "round": number, "step": 0},
        execution_pointers=[ExecutionPointer(step_id=0), ExecutionPointer(step_id=1)],
    )
    await retried(provider.create_new_workflow, created)
    workflow = await retried(provider.get_workflow_instance, created.id)
    assert workflow == created
    workflow.data["step"] = workflow.execution_pointers[0].retry_count = 1
    subscription = EventSubscription(
        workflow_id=workflow.id,
        step_id=0,
        execution_pointer_id=workflow.execution_pointers[0].id,
        event_name="load",
        event_key=workflow.id,
        subscribe_as_of=datetime.now(UTC),
    )
    await retried(provider.persist_workflow_with_subscriptions, workflow, [subscription])
    event = Event(event_name="load", event_key=workflow.id, event_data={"worker": worker, "round": number})
    await retried(provider.create_event, event)
    assert await retried(provider.get_subscriptions, "load", workflow.id, FAR_FUTURE) == [subscription]
    tokens = [
        id_
        for id_ in shared
        if await retried(provider.set_subscription_token, id_, f"{worker}-{number}", worker, FAR_FUTURE)
    ]
    await retried(provider.mark_event_processed, event.id)
    done = {"worker": worker, "round": number, "sequence": sequence, "workflow_id": workflow.id}
    print(json.dumps(done | {"event_id": event.id, "subscription_id": subscription.id, "tokens": tokens}), flush=True)


async def main(store: str, worker: str, operations: str, shared: str) -> None:
    numbers = iter(range(int(operations)))

    async def rounds() -> None:
        for number in numbers:
            await run_round(provider, worker, number, shared.split(","))

    url, _, schema = store.partition("#")
    options: StoreOptions = {"schema": schema} if schema else {}
    async with connect(url, **options) as provider:
        await asyncio.gather(*(rounds() for _ in range(8)))


asyncio.run(main(*sys.argv[1:]))
