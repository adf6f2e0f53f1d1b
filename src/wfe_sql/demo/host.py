"""A small workflow host: what it takes to run workflows on any `PersistenceProvider`. `wfe-sql demo` runs two of it.

All that a host knows is in the store, so others carry on where a killed one stopped. Whatever belongs together is one
unit of work: a step's result, and the error, command or subscription that comes of it; or an event's delivery to all
who wait for it. So a step that runs when its host is killed runs again, and one that was stored as done does not.
The `README.md` beside this file has the rules.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from wfe_sql import Claim, CommandName, ExecutionError, ExecutionPointer, ScheduledCommand, epoch_ms, utc_now
from wfe_sql.demo import steps
from wfe_sql.errors import ClaimLostError, WorkflowConflictError
from wfe_sql.models import Subscribed, WorkflowInstance
from wfe_sql.repositories import Change, PersistenceProvider, UnitOfWork

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds until something that failed, other than a step, is tried again."""

_Work = Callable[[], Awaitable[None]]
_Add = Callable[[UnitOfWork], Subscribed | None]


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
        max_tasks: How many workflows, and how many events, to work on at the same time.
        lease: How long what this host has taken stays with it when it is killed. It must be long compared with the time
            that the host's process may stand still: a step whose host is late to renew is run by another host too.
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

    async def start(self, definition_id: str, data: dict[str, Any]) -> str:
        """Store a new workflow named `<definition_id>-<number>` and return its id; a host that runs picks it up."""
        instance = self._definitions[definition_id].new(data, self._clock())
        await self._store.create_numbered_workflow(instance)
        return instance.id

    async def run(self) -> None:
        """Run what is due until cancelled, or until the store cannot be polled; what was claimed is given back."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work_on(self._claim_workflows))
            tasks.create_task(self._work_on(self._claim_events))
            tasks.create_task(self._run_commands())

    async def _work_on(self, claim_due: Callable[[int], Awaitable[Sequence[tuple[Claim, _Work]]]]) -> None:
        """Claim what is due and work on it, each in a task of its own, as many at a time as there may be."""
        busy: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                claimed = await claim_due(self._max_tasks - len(busy))
                for claim, work in claimed:
                    busy.add(task := tasks.create_task(self._hold(claim, work)))
                    task.add_done_callback(busy.discard)
                if len(busy) == self._max_tasks:
                    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                elif not claimed:
                    await self._store.wait_for_work()

    async def _claim_workflows(self, limit: int) -> Sequence[tuple[Claim, _Work]]:
        take = self._store.claim_and_load_instances
        claimed = await take(self._clock(), self._worker_id, lease=self._lease, limit=limit)
        return [(claim, partial(self._run_due_steps, _Turn(claim, instance))) for claim, instance in claimed]

    async def _claim_events(self, limit: int) -> Sequence[tuple[Claim, _Work]]:
        take = self._store.claim_runnable_events
        claims = await take(self._clock(), self._worker_id, lease=self._lease, limit=limit)
        return [(claim, partial(self._deliver_event, claim.id, claim)) for claim in claims]

    async def _hold(self, claim: Claim, work: _Work) -> None:
        try:
            async with self._store.hold(claim, self._lease):
                try:
                    await work()
                except* ClaimLostError:
                    raise
                except* Exception:  # the others go on, and this one is tried again after a pause
                    _log.exception("cannot work on %s", claim.id)
                    await asyncio.sleep(_PAUSE)
        except* ClaimLostError:  # this host was too slow
            _log.warning("lost %s to another host", claim.id)

    async def _run_due_steps(self, turn: _Turn) -> None:
        """Run the steps of a workflow that are due, side by side, and then those that have become due by it."""
        while not turn.is_over:
            due = steps.due_pointers(turn.instance, self._clock())
            turn.running = len(due)
            if not due:
                await self._persist(turn, partial(steps.settle, now=self._clock()))
            elif len(due) == 1:
                await self._run_step(turn, due[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for pointer in due:
                        tasks.create_task(self._run_step(turn, pointer))

    async def _run_step(self, turn: _Turn, pointer: ExecutionPointer) -> None:
        if steps.waits_for_event(pointer):  # the host that stored the wait was killed, or nothing has come yet
            for event_id in await self._store.get_events(
                pointer.event_name or "", pointer.event_key or "", self._clock()
            ):
                await self._deliver_event(event_id)
            await self._persist(turn, partial(steps.publish, pointer_ids={pointer.id}, event=None, now=self._clock()))
            return
        instance, began = turn.instance, self._clock()
        definition = self._definitions[instance.workflow_definition_id]
        body = definition.steps[pointer.step_id].body
        result: steps.Result | Exception | None = None
        try:
            result = None if body is None else await body(instance, pointer)
        except Exception as error:  # whatever it is, it is stored, and the step is retried
            result = error
        now = self._clock()

        def add(unit: UnitOfWork) -> Subscribed | None:
            match result:
                case Exception():
                    text, of = f"{type(result).__name__}: {result}", pointer.id
                    error = ExecutionError(
                        error_time=now, workflow_id=instance.id, execution_pointer_id=of, message=text
                    )
                    unit.persist_errors([error])
                case steps.Sleep(by_command=True):
                    due = epoch_ms(now + result.duration)
                    unit.schedule_command(ScheduledCommand.process_workflow(instance.id, due))
                case steps.WaitFor():
                    return unit.subscribe(steps.subscription(instance, pointer, result))
            return None

        change = partial(definition.apply, pointer_id=pointer.id, result=result, began=began, now=now)
        waiting = await self._persist(turn, change, add)
        if waiting is not None and waiting.event_ids:  # it came before the wait
            await self._deliver_event(waiting.event_ids[0])

    async def _persist(self, turn: _Turn, change: Change, add: _Add = lambda _: None) -> Subscribed | None:
        """Change a workflow and store it with what `add` adds; give it back when it is to wait now."""
        async with turn.storing:
            turn.running -= 1
            while True:
                change(turn.instance)
                turn.is_over = turn.running <= 0 and not steps.due_pointers(turn.instance, self._clock())
                with suppress(WorkflowConflictError):  # an event or a command changed it meanwhile
                    async with self._store.unit(turn.claim, release=turn.is_over) as unit:
                        unit.persist_workflow(turn.instance)
                        return add(unit)
                turn.instance = await self._store.get_workflow_instance(turn.instance.id)

    async def _run_commands(self) -> None:
        while True:
            try:
                await self._store.process_commands(self._clock(), self._handle_command, lease=self._lease)
            except ExceptionGroup:  # those that failed are due again
                _log.exception("scheduled commands failed")
                await asyncio.sleep(_PAUSE)
            await self._store.wait_for_work()

    async def _handle_command(self, command: ScheduledCommand) -> None:
        if command.command_name is CommandName.ProcessEvent:
            await self._deliver_event(command.data)
        else:
            await self._store.change(command.data, partial(steps.wake, now=self._clock()))

    async def _deliver_event(self, event_id: str, claim: Claim | None = None) -> None:
        """Hand an event to all who wait for it, again where something else changed one of them meanwhile."""
        event = await self._store.get_event(event_id)
        while True:
            waits = await self._store.get_subscriptions(event.event_name, event.event_key, event.event_time)
            instances = await self._store.get_workflow_instances(list({wait.workflow_id for wait in waits}))
            with suppress(WorkflowConflictError):
                async with self._store.unit(claim, release=claim is not None) as unit:
                    for instance in instances:
                        steps.publish(instance, {wait.execution_pointer_id for wait in waits}, event, self._clock())
                        unit.persist_workflow(instance)
                    for wait in waits:
                        unit.terminate_subscription(wait.id)
                    unit.mark_event_processed(event_id)
                return
