"""A small workflow host: what it takes to run workflows on any `PersistenceProvider`. `wfe-sql demo` runs two of it.

All that a host knows is in the store, so others carry on where a killed one stopped. A step that was running at that
moment runs again; one that was stored as done does not. Several hosts share a store by two rules:

- Steps run under a claim. A host claims a workflow for one turn, runs the steps that are due, and gives it back; so no
  two hosts run one step. A claim that its host does not renew, because it was killed or hangs, runs out and is taken by
  another, and from then on the store takes nothing more from the first.
- Every change is made to what is stored: load, change, store, and all over again when somebody else stored something in
  between (`_change`). So an event or a command changes a workflow while a claim holds it, and neither change is lost.
  A store opened with `on_conflict="overwrite"` would not tell.

Events and times are compared by the hosts' clocks, which must agree.

Where two writes belong together but are not one call of the store, they are in the order in which a kill between them
does no harm, and a comment says so. Likewise a wait is stored before it is looked for, so that what ends it finds it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from wfe_sql import (
    Claim,
    ClaimKind,
    ClaimLostError,
    CommandName,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    ScheduledCommand,
    StoreError,
    WorkflowConflictError,
    WorkflowInstance,
    WorkflowStatus,
    epoch_ms,
    utc_now,
)
from wfe_sql.demo.steps import (
    Definition,
    Result,
    Sleep,
    is_due,
    publish,
    rest,
    settle,
    waits_for_event,
    wake,
)

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds until something that failed, other than a step, is tried again."""

_Change = Callable[[WorkflowInstance], Sequence[EventSubscription] | None]
"""Changes a workflow in place and returns the subscriptions to store with it, if any; may be called several times."""

_Work = Callable[[str, Claim], Awaitable[None]]
"""Works on the workflow or event with this id, under this claim."""


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
        definitions: Iterable[Definition],
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
        self._tasks: Counter[ClaimKind] = Counter()
        self._progress = asyncio.Event()

    async def start(self, definition_id: str, data: dict[str, Any]) -> str:
        """Store a new workflow named `<definition_id>-<number>` and return its id; a host that runs picks it up.

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
        """Run what is due until cancelled, which cancels the steps that are running and gives back what was claimed.

        Raises:
            ExceptionGroup: With a `StoreError` in it: the store could not be polled.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_commands())
            while True:
                self._progress.clear()
                now, worker, lease = self._clock(), self._worker_id, self._lease
                if room := self._max_tasks - self._tasks[ClaimKind.Workflow]:
                    claims = await self._store.claim_runnable_instances(now, worker, lease=lease, limit=room)
                    self._begin(tasks, claims, self._run_due_steps)
                if room := self._max_tasks - self._tasks[ClaimKind.Event]:
                    claims = await self._store.claim_runnable_events(now, worker, lease=lease, limit=room)
                    self._begin(tasks, claims, self._deliver_event)
                await self._wait()

    async def _wait(self) -> None:
        """Wait until something may be due, or there is room for more."""
        waits = [asyncio.create_task(self._store.wait_for_work()), asyncio.create_task(self._progress.wait())]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                await wait
        finally:
            for wait in waits:
                wait.cancel()

    def _begin(self, tasks: asyncio.TaskGroup, claims: Iterable[Claim], work: _Work) -> None:
        for claim in claims:
            self._tasks[claim.kind] += 1
            tasks.create_task(self._hold(claim, work))

    async def _hold(self, claim: Claim, work: _Work) -> None:
        """Work on what is claimed, renew the claim meanwhile, and give it back."""
        try:
            async with asyncio.TaskGroup() as tasks:
                renewal = tasks.create_task(self._renew(claim))
                await work(claim.id, claim)
                renewal.cancel()
        except* ClaimLostError:  # this host was too slow, and another has it now
            _log.warning("lost %s to another host", claim.id)
        except* Exception:  # the others go on, and this one is tried again after a pause
            _log.exception("cannot work on %s", claim.id)
            await asyncio.sleep(_PAUSE)
        finally:
            with suppress(ClaimLostError, StoreError):  # what cannot be given back runs out
                await self._store.release_claim(claim)
            self._tasks[claim.kind] -= 1
            self._progress.set()

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                claim = await self._store.renew_claim(claim, self._lease)
            except StoreError:
                if self._clock() >= claim.expires_at:  # another host may have it
                    raise
                _log.exception("cannot renew the claim on %s", claim.id)

    async def _change(self, workflow_id: str, change: _Change, claim: Claim | None = None) -> None:
        """Change a workflow as it is stored, all over again when somebody else changed it in between."""
        while True:
            instance = await self._store.get_workflow_instance(workflow_id)
            subscriptions = change(instance) or ()
            settle(instance, self._clock())
            with suppress(WorkflowConflictError):
                await self._store.persist_workflow_with_subscriptions(instance, subscriptions, claim=claim)
                return

    # steps

    async def _run_due_steps(self, workflow_id: str, claim: Claim) -> None:
        """Run the steps of a workflow that are due, side by side, and store each when it is done.

        What becomes due meanwhile has the next turn, which comes when all of these are done.
        """
        instance = await self._store.get_workflow_instance(workflow_id)
        now = self._clock()
        due = [pointer for pointer in instance.execution_pointers if is_due(pointer, now)]
        if instance.status is not WorkflowStatus.Runnable or not due:
            await self._change(workflow_id, lambda _: None, claim)
            return
        async with asyncio.TaskGroup() as steps:
            for pointer in due:
                run = self._look_back if waits_for_event(pointer) else self._run_step
                steps.create_task(run(instance, pointer, claim))

    async def _run_step(self, instance: WorkflowInstance, pointer: ExecutionPointer, claim: Claim) -> None:
        definition = self._definitions[instance.workflow_definition_id]
        body = definition.steps[pointer.step_id].body
        if claim.expires_at - self._clock() < self._lease / 3:  # this host stood still since it claimed
            await self._store.renew_claim(claim, self._lease)
        began = self._clock()
        result: Result | Exception | None = None
        if body is not None:
            try:
                result = await body(instance, pointer)
            except Exception as error:  # whatever it is, it is stored, and the step is retried
                result = error
        now = self._clock()
        if isinstance(result, Exception):
            # The error first: killed in between, the step is run again, and no error is lost.
            message = f"{type(result).__name__}: {result}"
            stored = ExecutionError(
                error_time=now, workflow_id=instance.id, execution_pointer_id=pointer.id, message=message
            )
            await self._store.persist_errors([stored])
        change = partial(definition.apply, pointer_id=pointer.id, result=result, began=began, now=now)
        await self._change(instance.id, change, claim)
        if isinstance(result, Sleep) and result.by_command:
            # Stored as sleeping first: a command that comes at once finds the pointer, and killed in between, the
            # workflow wakes by itself.
            command = ScheduledCommand.process_workflow(instance.id, epoch_ms(now + result.duration))
            await self._store.schedule_command(command)
            await self._change(instance.id, partial(rest, pointer_id=pointer.id), claim)

    # scheduled commands

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
            await self._change(command.data, wake)

    # events

    async def _look_back(self, instance: WorkflowInstance, pointer: ExecutionPointer, claim: Claim) -> None:
        """Take an event that came before the subscription was stored; later ones are delivered to the subscription."""
        for event_id in await self._store.get_events(pointer.event_name or "", pointer.event_key or "", self._clock()):
            event = await self._store.get_event(event_id)
            if event.event_time >= instance.create_time:
                change = partial(publish, pointer_id=pointer.id, event_data=event.event_data)
                await self._change(instance.id, change, claim)
                # Last: no claim guards this, so a host that lost its claim must not come here.
                await self._store.terminate_subscription(pointer.id)
                return
        await self._change(instance.id, partial(rest, pointer_id=pointer.id), claim)

    async def _deliver_event(self, event_id: str, claim: Claim | None = None) -> None:
        """Hand an event to all who wait for it; it is marked last, so that after a kill it is delivered again."""
        event = await self._store.get_event(event_id)
        for waiting in await self._store.get_subscriptions(event.event_name, event.event_key, event.event_time):
            change = partial(publish, pointer_id=waiting.execution_pointer_id, event_data=event.event_data)
            await self._change(waiting.workflow_id, change)
            await self._store.terminate_subscription(waiting.id)
        await self._store.mark_event_processed(event_id, claim=claim)
