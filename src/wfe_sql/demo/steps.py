"""What a workflow of the demo host is made of, and how a step's result moves its pointers. Nothing here uses a store.

A pointer is due when it is `active` and its `sleep_until` is past. What waits for something else is not active.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from wfe_sql import Event, EventSubscription, ExecutionError, ExecutionPointer, ScheduledCommand, epoch_ms
from wfe_sql.models import PointerStatus, Subscribed, WorkflowInstance, WorkflowStatus
from wfe_sql.repositories import UnitOfWork

_LOOK_BACK = timedelta(minutes=1)
"""When a waiting pointer is due anyway, in case its host is killed before it has looked for an earlier event."""


@dataclass(frozen=True, slots=True)
class Done:
    """The step is done; `output` is merged into the workflow's data."""

    output: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Run the step again later, woken by a command or by `next_execution`; it finds `remember`, JSON, again."""

    duration: timedelta
    remember: Any
    by_command: bool = False


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Run the step again, once, when such an event has come since the workflow was created; see `event_data`."""

    event_name: str
    event_key: str


Result = Done | Sleep | WaitFor
Outcome = Result | Exception | None

StepBody = Callable[[WorkflowInstance, ExecutionPointer], Awaitable[Result]]
"""What a step does. It changes nothing in its arguments; what it returns or raises is stored."""

Effect = Callable[[UnitOfWork], Subscribed | None]
"""Adds what is stored together with a workflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a definition: a body, or children that run side by side; and the name of the step after it."""

    name: str
    body: StepBody | None = None
    children: tuple[str, ...] = ()
    next: str | None = None
    max_retries: int = 3
    retry_after: timedelta = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True)
class Definition:
    """A kind of workflow. It starts with its first step; a step's id is its place in `steps`."""

    id: str
    version: int
    steps: tuple[Step, ...]

    def new(self, data: dict[str, Any], now: datetime) -> WorkflowInstance:
        """Return a workflow that starts now."""
        instance = WorkflowInstance(workflow_definition_id=self.id, version=self.version, data=data, create_time=now)
        instance.execution_pointers.append(self._pointer(self.steps[0].name))
        return instance

    def apply(self, instance: WorkflowInstance, ran: ExecutionPointer, result: Outcome, now: datetime) -> Effect | None:
        """Move a pointer on by what its step returned or raised; a step without a body returns None."""
        (pointer,) = (pointer for pointer in instance.execution_pointers if pointer.id == ran.id)
        pointer.start_time, step = ran.start_time, self.steps[pointer.step_id]
        match result:
            case None if step.children and not pointer.children:
                children = [self._pointer(name, pointer.id, [*pointer.scope, pointer.id]) for name in step.children]
                pointer.active, pointer.children = False, [child.id for child in children]
                instance.execution_pointers.extend(children)
            case None:  # its children are done, or it has none
                self._finish(instance, pointer, now)
            case Done():
                instance.data |= result.output
                self._finish(instance, pointer, now)
            case Sleep():
                pointer.status, pointer.persistence_data = PointerStatus.Sleeping, result.remember
                pointer.sleep_until, pointer.active = now + result.duration, not result.by_command
                if result.by_command:
                    command = ScheduledCommand.process_workflow(instance.id, epoch_ms(pointer.sleep_until))
                    return lambda unit: unit.schedule_command(command)
            case WaitFor():
                pointer.status, pointer.sleep_until = PointerStatus.WaitingForEvent, now + _LOOK_BACK
                pointer.event_name, pointer.event_key = result.event_name, result.event_key
                subscription = EventSubscription(
                    id=pointer.id,  # a step waits once
                    workflow_id=instance.id,
                    step_id=pointer.step_id,
                    execution_pointer_id=pointer.id,
                    event_name=result.event_name,
                    event_key=result.event_key,
                    subscribe_as_of=instance.create_time,
                )
                return lambda unit: unit.subscribe(subscription)
            case Exception():
                if pointer.retry_count < step.max_retries:
                    pointer.retry_count += 1
                    pointer.status, pointer.sleep_until = PointerStatus.Sleeping, now + step.retry_after
                else:
                    pointer.status, pointer.active, pointer.end_time = PointerStatus.Failed, False, now
                    instance.status = WorkflowStatus.Suspended
                what, at = f"{type(result).__name__}: {result}", pointer.id
                error = ExecutionError(error_time=now, workflow_id=instance.id, execution_pointer_id=at, message=what)
                return lambda unit: unit.persist_errors([error])
        return None

    def _finish(self, instance: WorkflowInstance, pointer: ExecutionPointer, now: datetime) -> None:
        """Complete a step; go on to the next one or, after the last of a branch, back to the step that branched."""
        pointer.status, pointer.active, pointer.end_time = PointerStatus.Complete, False, now
        following = self.steps[pointer.step_id].next
        if following is not None:
            instance.execution_pointers.append(self._pointer(following, pointer.id, pointer.scope))
        elif pointer.scope and _all_finished(p for p in instance.execution_pointers if p.scope == pointer.scope):
            for parent in instance.execution_pointers:
                parent.active |= parent.id == pointer.scope[-1]

    def _pointer(self, name: str, predecessor_id: str | None = None, scope: Iterable[str] = ()) -> ExecutionPointer:
        step_id = next(place for place, step in enumerate(self.steps) if step.name == name)
        return ExecutionPointer(step_id=step_id, step_name=name, predecessor_id=predecessor_id, scope=list(scope))


def due_pointers(instance: WorkflowInstance, now: datetime) -> list[ExecutionPointer]:
    """Return the pointers whose steps are to be run."""
    pointers = instance.execution_pointers if instance.status is WorkflowStatus.Runnable else []
    return [p for p in pointers if p.active and (p.sleep_until is None or p.sleep_until <= now)]


def publish(instance: WorkflowInstance, pointer_ids: set[str], event: Event | None, now: datetime) -> None:
    """Give an event to the pointers that still wait for one; with None, they wait until one is delivered."""
    for pointer in instance.execution_pointers:
        if pointer.id in pointer_ids and pointer.status is PointerStatus.WaitingForEvent:
            pointer.active, pointer.sleep_until = event is not None, None
            if event is not None:
                pointer.status, pointer.event_data = PointerStatus.Pending, event.event_data
                pointer.event_published = True
    settle(instance, now)


def wake(instance: WorkflowInstance, now: datetime) -> None:
    """Wake the pointers that sleep; none of them runs before its time."""
    for pointer in instance.execution_pointers:
        if pointer.status is PointerStatus.Sleeping:
            pointer.status, pointer.active = PointerStatus.Pending, True
    settle(instance, now)


def settle(instance: WorkflowInstance, now: datetime) -> bool:
    """Derive from the pointers whether the workflow is complete and when it is due; return whether it is due now."""
    if instance.status is WorkflowStatus.Runnable and _all_finished(instance.execution_pointers):
        instance.status, instance.complete_time = WorkflowStatus.Complete, now
    active = [p for p in instance.execution_pointers if p.active and instance.status is WorkflowStatus.Runnable]
    instance.next_execution = min((epoch_ms(p.sleep_until) if p.sleep_until else 0 for p in active), default=None)
    return bool(due_pointers(instance, now))


def _all_finished(pointers: Iterable[ExecutionPointer]) -> bool:
    return all(pointer.status in (PointerStatus.Complete, PointerStatus.Failed) for pointer in pointers)
