"""A small workflow host: what it takes to run workflows on any `PersistenceProvider`. `wfe-sql demo` runs two of it.

All that a host knows is in the store, so others carry on where a killed one stopped. Whatever belongs together is one
unit of work: a step's result, and the error, command or subscription that comes of it; or an event's delivery to all
who wait for it. So a step that runs when its host is killed runs again, and one that was stored as done does not.
The `README.md` beside this file has the rules.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from wfe_sql import Claim, CommandName, ExecutionPointer, PointerStatus, ScheduledCommand, WorkflowInstance, utc_now
from wfe_sql.demo import steps
from wfe_sql.errors import WorkflowConflictError
from wfe_sql.repositories import PersistenceProvider

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds until something that failed, other than a step, is tried again."""


@dataclass(slots=True)
class _Turn:
    """What one claim on a workflow is for."""

    claim: Claim
    instance: WorkflowInstance
    running: int = 0
    is_over: bool = False
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)


class WorkflowHost:
    """Starts workflows and runs what is due in a store, beside any number of other hosts.

    Args:
        store: Where everything is, opened and closed by the caller, with the default `on_conflict`.
        definitions: The kinds of workflow that it can run; all hosts of a store have the same.
        worker_id: What the store shows as the holder of this host's claims.
        clock: Returns the current time, aware, the one that the store goes by.
        max_tasks: How many workflows to run, and how many events to hand over, at the same time.
        lease: How long a killed host's claims last. A host that stands still for as long loses its claims, too.
    """

    def __init__(
        self,
        store: PersistenceProvider,
        definitions: Iterable[steps.Definition],
        *,
        worker_id: str,
        clock: Callable[[], datetime] = utc_now,
        max_tasks: int = 100,
        lease: timedelta = timedelta(minutes=1),
    ) -> None:
        self._store = store
        self._definitions = {definition.id: definition for definition in definitions}
        self._worker_id = worker_id
        self._clock: Callable[[], datetime] = lambda: clock().astimezone(UTC)
        self._max_tasks = max_tasks
        self._lease = lease
        self._delivering: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(self, definition_id: str, data: dict[str, Any]) -> str:
        """Store a new workflow named `<definition_id>-<number>` and return its id; a host that runs picks it up."""
        instance = self._definitions[definition_id].new(data, self._clock())
        await self._store.create_numbered_workflow(instance)
        return instance.id

    async def run(self) -> None:
        """Run what is due until cancelled, or until the store cannot be polled; what was claimed is given back."""
        run = self._store.process_instances
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(self._worker_id, self._run_workflow, lease=self._lease, max_tasks=self._max_tasks))
            tasks.create_task(self._repeat(self._deliver_events))
            tasks.create_task(self._repeat(self._run_commands))

    async def _repeat(self, do_what_is_due: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await do_what_is_due()
                await self._store.wait_for_work()  # returns at once if more is due
            except ExceptionGroup:  # whatever failed is still due
                _log.exception("not everything that is due could be done")
                await asyncio.sleep(_PAUSE)

    async def _run_workflow(self, claim: Claim, instance: WorkflowInstance) -> None:
        """Run the steps of a workflow that are due, side by side, and then those that have become due by it."""
        turn = _Turn(claim, instance)
        while not turn.is_over:
            due = steps.due_pointers(turn.instance, self._clock())
            turn.running = len(due)
            if not due:
                await self._persist(turn, lambda _: None)
            elif len(due) == 1:
                await self._run_step(turn, due[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for pointer in due:
                        tasks.create_task(self._run_step(turn, pointer))

    async def _run_step(self, turn: _Turn, pointer: ExecutionPointer) -> None:
        instance, now = turn.instance, self._clock()
        if pointer.status is PointerStatus.WaitingForEvent:  # nothing came, or the host was killed that stored the wait
            name, key = pointer.event_name or "", pointer.event_key or ""
            for event_id in await self._store.get_events(name, key, now):
                await self._deliver_event(event_id)
            await self._persist(turn, partial(steps.publish, pointer_ids={pointer.id}, event=None, now=now))
            return
        pointer.start_time = pointer.start_time or now
        definition = self._definitions[instance.workflow_definition_id]
        body = definition.steps[pointer.step_id].body
        result: steps.Outcome
        try:
            result = None if body is None else await body(instance, pointer)
        except Exception as error:  # any error is stored, and the step is retried
            result = error
        await self._persist(turn, partial(definition.apply, ran=pointer, result=result, now=self._clock()))

    async def _persist(self, turn: _Turn, change: Callable[[WorkflowInstance], steps.Effect | None]) -> None:
        """Change a workflow and store it with everything that follows; release it if it now waits."""
        async with turn.storing:
            turn.running -= 1
            while True:
                add = change(turn.instance)
                turn.is_over = not steps.settle(turn.instance, self._clock()) and turn.running <= 0
                with suppress(WorkflowConflictError):  # an event or a command changed it meanwhile
                    async with self._store.unit(turn.claim, release=turn.is_over) as unit:
                        unit.persist_workflow(turn.instance)
                        wait = None if add is None else add(unit)
                    break
                turn.instance = await self._store.get_workflow_instance(turn.instance.id)
        if wait is not None and wait.event_ids:  # it came before the wait
            await self._deliver_event(wait.event_ids[0])

    async def _deliver_events(self) -> None:
        """Deliver due events without claiming them: if two hosts do so at once, one gets a conflict."""
        due = await self._store.get_runnable_events(self._clock(), limit=self._max_tasks)
        outcomes = await asyncio.gather(*map(self._deliver_event, due), return_exceptions=True)
        if failures := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
            raise ExceptionGroup("events could not be delivered", failures)

    async def _deliver_event(self, event_id: str) -> None:
        """Deliver an event to everyone waiting for it; retry if another host changed a workflow meanwhile."""
        async with self._delivering.setdefault(event_id, asyncio.Lock()):  # the step that waits may find it, too
            while True:
                event = await self._store.get_event(event_id)
                waits = await self._store.get_subscriptions(event.event_name, event.event_key, event.event_time)
                if event.is_processed and not waits:
                    return
                instances = await self._store.get_workflow_instances(list({wait.workflow_id for wait in waits}))
                with suppress(WorkflowConflictError):
                    async with self._store.unit() as unit:
                        for instance in instances:
                            steps.publish(instance, {wait.execution_pointer_id for wait in waits}, event, self._clock())
                            unit.persist_workflow(instance)
                        for wait in waits:
                            unit.terminate_subscription(wait.id)
                        unit.mark_event_processed(event_id)
                    return

    async def _run_commands(self) -> None:
        await self._store.process_commands(self._clock(), self._handle_command, lease=self._lease)

    async def _handle_command(self, command: ScheduledCommand) -> None:
        if command.command_name is CommandName.ProcessEvent:
            await self._deliver_event(command.data)
        else:
            await self._store.change(command.data, partial(steps.wake, now=self._clock()))
