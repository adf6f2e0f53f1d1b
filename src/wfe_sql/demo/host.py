"""A small workflow host: what it takes to run workflows on any `PersistenceProvider`. `wfe-sql demo` runs it.

All that the host knows is in the store, so a new host carries on where a killed one stopped. A step that was running
at that moment runs again; one that was stored as done does not. Where two writes belong together but are not one call
of the store, they are in the order in which a kill between them does no harm, and a comment says so.

One host at a time runs on a store. In it, each workflow is changed by one task at a time: see `_changing`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from wfe_sql import (
    CommandName,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
    utc_now,
)
from wfe_sql.demo.steps import (
    Definition,
    Done,
    Result,
    Sleep,
    WaitFor,
    epoch_ms,
    is_due,
    publish,
    settle,
    waits_for_event,
)

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds until something that failed, other than a step, is tried again."""


class WorkflowHost:
    """Starts workflows and runs what is due in a store.

    Args:
        store: Where everything is; opened and closed by the caller.
        definitions: The kinds of workflow that it can run.
        clock: Returns the current time, aware.
        poll_interval: How often to look for what became due.
        max_tasks: How many workflows and events to work on at the same time.
        command_lease: How long scheduled commands stay with a host that was killed while it handled them.
    """

    def __init__(
        self,
        store: PersistenceProvider,
        definitions: Iterable[Definition],
        *,
        clock: Callable[[], datetime] = utc_now,
        poll_interval: timedelta = timedelta(milliseconds=50),
        max_tasks: int = 100,
        command_lease: timedelta = timedelta(minutes=1),
    ) -> None:
        self._store = store
        self._definitions = {definition.id: definition for definition in definitions}
        self._clock = clock
        self._poll_interval = poll_interval.total_seconds()
        self._max_tasks = max_tasks
        self._command_lease = command_lease
        self._busy: set[str] = set()
        self._progress = asyncio.Event()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self, definition_id: str, data: dict[str, Any]) -> str:
        """Store a new workflow named `<definition_id>-<number>` and return its id; the host that runs picks it up.

        Raises:
            KeyError: This host has no such definition.
            SerializationError: `data` is no JSON.
        """
        definition = self._definitions[definition_id]
        number = await self._store.next_definition_sequence(definition_id)
        instance = WorkflowInstance(
            name=f"{definition_id}-{number}",
            workflow_definition_id=definition_id,
            version=definition.version,
            data=data,
            execution_pointers=[definition.first_pointer()],
            create_time=self._clock(),
        )
        return await self._store.create_new_workflow(instance)

    async def run(self) -> None:
        """Run what is due until cancelled, which cancels the steps that are running.

        Raises:
            ExceptionGroup: With a `StoreError` in it: the store could not be polled.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_commands())
            while True:
                self._progress.clear()
                now = self._clock()
                for workflow_id in await self._store.get_runnable_instances(now, limit=self._max_tasks):
                    self._spawn(tasks, self._run_due_steps, workflow_id)
                for event_id in await self._store.get_runnable_events(now, limit=self._max_tasks):
                    self._spawn(tasks, self._deliver_event, event_id)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_interval):
                        await self._progress.wait()

    def _spawn(self, tasks: asyncio.TaskGroup, work: Callable[[str], Awaitable[None]], id_: str) -> None:
        """Work on a workflow or an event, unless that goes on already or there is no room; a later poll finds it."""
        if id_ not in self._busy and len(self._busy) < self._max_tasks:
            self._busy.add(id_)
            tasks.create_task(self._work(work, id_))

    async def _work(self, work: Callable[[str], Awaitable[None]], id_: str) -> None:
        try:
            await work(id_)
        except Exception:  # the others go on, and this one is tried again after a pause
            _log.exception("cannot work on %s", id_)
            await asyncio.sleep(_PAUSE)
        finally:
            self._busy.discard(id_)
            self._progress.set()

    @asynccontextmanager
    async def _changing(self, workflow_id: str) -> AsyncIterator[WorkflowInstance]:
        """Load a workflow for a change that no other task comes between; where several hosts would claim it."""
        async with self._locks.setdefault(workflow_id, asyncio.Lock()):
            yield await self._store.get_workflow_instance(workflow_id)

    async def _save(self, instance: WorkflowInstance, *subscriptions: EventSubscription) -> None:
        settle(instance, self._clock())
        if subscriptions:
            await self._store.persist_workflow_with_subscriptions(instance, subscriptions)
        else:
            await self._store.persist_workflow(instance)

    # steps

    async def _run_due_steps(self, workflow_id: str) -> None:
        """Run the steps of a workflow that are due, side by side, and store it after each."""
        async with self._changing(workflow_id) as instance:
            if instance.status is not WorkflowStatus.Runnable:
                return
            now = self._clock()
            due = [pointer for pointer in instance.execution_pointers if is_due(pointer, now)]
            if not due:
                await self._save(instance)
            saving = asyncio.Lock()
            async with asyncio.TaskGroup() as steps:
                for pointer in due:
                    steps.create_task(self._run_step(instance, pointer, saving))

    async def _run_step(self, instance: WorkflowInstance, pointer: ExecutionPointer, saving: asyncio.Lock) -> None:
        definition = self._definitions[instance.workflow_definition_id]
        step = definition.steps[pointer.step_id]
        if waits_for_event(pointer):
            async with saving:
                await self._look_back(instance, pointer)
                await self._save(instance)
            return
        pointer.status, pointer.start_time = PointerStatus.Running, pointer.start_time or self._clock()
        result: Result | Exception | None = None
        if step.body is not None:
            try:
                result = await step.body(instance, pointer)
            except Exception as error:  # whatever it is, it is stored, and the step is retried
                result = error
        async with saving:
            subscriptions = []
            match result:
                case None:
                    definition.branch(instance, pointer, self._clock())
                case Done():
                    instance.data |= result.output
                    definition.finish(instance, pointer, self._clock())
                case Sleep():
                    await self._sleep(instance, pointer, result)
                case WaitFor():
                    subscriptions.append(self._wait(instance, pointer, result))
                case Exception():
                    await self._fail(instance, pointer, result)
            await self._save(instance, *subscriptions)

    async def _fail(self, instance: WorkflowInstance, pointer: ExecutionPointer, error: Exception) -> None:
        """Store the error, before the workflow: killed in between, the host runs the step again and loses no error."""
        now, message = self._clock(), f"{type(error).__name__}: {error}"
        stored = ExecutionError(
            error_time=now, workflow_id=instance.id, execution_pointer_id=pointer.id, message=message
        )
        await self._store.persist_errors([stored])
        self._definitions[instance.workflow_definition_id].retry_or_fail(instance, pointer, now)

    # timers and scheduled commands

    async def _sleep(self, instance: WorkflowInstance, pointer: ExecutionPointer, sleep: Sleep) -> None:
        pointer.status, pointer.persistence_data = PointerStatus.Sleeping, sleep.remember
        pointer.sleep_until = self._clock() + sleep.duration
        if sleep.by_command:
            # The command first: killed in between, the host schedules it again, and twins are one.
            command = ScheduledCommand.process_workflow(instance.id, epoch_ms(pointer.sleep_until))
            await self._store.schedule_command(command)
            pointer.active = False

    async def _run_commands(self) -> None:
        while True:
            try:
                await self._store.process_commands(self._clock(), self._handle_command, lease=self._command_lease)
            except ExceptionGroup:  # those that failed are due again
                _log.exception("scheduled commands failed")
                await asyncio.sleep(_PAUSE)
            await asyncio.sleep(self._poll_interval)

    async def _handle_command(self, command: ScheduledCommand) -> None:
        if command.command_name is CommandName.ProcessEvent:
            await self._deliver_event(command.data)
            return
        async with self._changing(command.data) as instance:
            for pointer in instance.execution_pointers:
                if pointer.status is PointerStatus.Sleeping:
                    pointer.active = True
            await self._save(instance)

    # events

    def _wait(self, instance: WorkflowInstance, pointer: ExecutionPointer, wait: WaitFor) -> EventSubscription:
        """Return the subscription to store. The pointer stays active for one more turn, in which it looks back."""
        pointer.status = PointerStatus.WaitingForEvent
        pointer.event_name, pointer.event_key = wait.event_name, wait.event_key
        return EventSubscription(
            id=pointer.id,
            workflow_id=instance.id,
            step_id=pointer.step_id,
            execution_pointer_id=pointer.id,
            event_name=wait.event_name,
            event_key=wait.event_key,
            subscribe_as_of=instance.create_time,
        )

    async def _look_back(self, instance: WorkflowInstance, pointer: ExecutionPointer) -> None:
        """Take an event that came before the subscription was stored; later ones are delivered to the subscription."""
        pointer.active = False
        for event_id in await self._store.get_events(pointer.event_name or "", pointer.event_key or "", self._clock()):
            event = await self._store.get_event(event_id)
            if event.event_time >= instance.create_time:
                # The subscription first: killed in between, the host looks back again.
                await self._store.terminate_subscription(pointer.id)
                publish(pointer, event.event_data)
                return

    async def _deliver_event(self, event_id: str) -> None:
        """Hand an event to all who wait for it; it is marked last, so that after a kill it is delivered again."""
        event = await self._store.get_event(event_id)
        for subscription in await self._store.get_subscriptions(event.event_name, event.event_key, event.event_time):
            async with self._changing(subscription.workflow_id) as instance:
                for pointer in instance.execution_pointers:
                    if pointer.id == subscription.execution_pointer_id and waits_for_event(pointer):
                        publish(pointer, event.event_data)
                        await self._save(instance)
            await self._store.terminate_subscription(subscription.id)
        await self._store.mark_event_processed(event_id)
