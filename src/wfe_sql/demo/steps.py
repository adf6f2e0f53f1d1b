"""What a workflow of the demo host is made of, and how a step's result moves its pointers. Nothing here uses a store.

A pointer is due when it is `active` and its `sleep_until` is past. What has to wait for something else (its children,
an event, a scheduled command) is not active until that comes. A pointer that begins to wait stays active at first, and
the host calls `rest` when it is sure that what is waited for will find it waiting.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from wfe_sql import EventSubscription, ExecutionPointer, PointerStatus, WorkflowInstance, WorkflowStatus, epoch_ms

_FINISHED = (PointerStatus.Complete, PointerStatus.Failed)


@dataclass(frozen=True, slots=True)
class Done:
    """The step is done; `output` is merged into the workflow's data."""

    output: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Run the step again later, with `remember` (any JSON) in its pointer's `persistence_data`.

    With `by_command` a scheduled command wakes the step, otherwise the workflow's own `next_execution` does.
    """

    duration: timedelta
    remember: Any
    by_command: bool = False


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Run the step again when an event of this name and key has come, with its data in the pointer's `event_data`.

    An event that came since the workflow was created counts, even if the step did not wait for it yet. A step may wait
    once.
    """

    event_name: str
    event_key: str


Result = Done | Sleep | WaitFor

StepBody = Callable[[WorkflowInstance, ExecutionPointer], Awaitable[Result]]
"""What a step does. Only what it returns is stored, not what it changes in its arguments.

An exception that it raises is stored too, and the step is run again.
"""


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

    def first_pointer(self) -> ExecutionPointer:
        """Return the pointer that a new workflow starts with."""
        return self._pointer(self.steps[0].name)

    def apply(
        self,
        instance: WorkflowInstance,
        pointer_id: str,
        result: Result | Exception | None,
        *,
        began: datetime,
        now: datetime,
    ) -> list[EventSubscription]:
        """Move a pointer on by what its step returned or raised; None is the result of a step without a body.

        Returns:
            The subscriptions to store with the workflow.
        """
        pointer = next(pointer for pointer in instance.execution_pointers if pointer.id == pointer_id)
        pointer.start_time = pointer.start_time or began
        match result:
            case None:
                self._branch(instance, pointer, now)
            case Done():
                instance.data |= result.output
                self._finish(instance, pointer, now)
            case Sleep():
                pointer.status, pointer.persistence_data = PointerStatus.Sleeping, result.remember
                pointer.sleep_until = now + result.duration
            case WaitFor():
                pointer.status = PointerStatus.WaitingForEvent
                pointer.event_name, pointer.event_key = result.event_name, result.event_key
                return [_subscription(instance, pointer, result)]
            case Exception():
                self._retry_or_fail(instance, pointer, now)
        return []

    def _finish(self, instance: WorkflowInstance, pointer: ExecutionPointer, now: datetime) -> None:
        """Complete a step; go on to the next one or, after the last of a branch, back to the step that branched."""
        pointer.status, pointer.active, pointer.end_time = PointerStatus.Complete, False, now
        following = self.steps[pointer.step_id].next
        if following is not None:
            instance.execution_pointers.append(self._pointer(following, pointer, pointer.scope))
        elif pointer.scope and _all_finished(p for p in instance.execution_pointers if p.scope == pointer.scope):
            parent = next(p for p in instance.execution_pointers if p.id == pointer.scope[-1])
            parent.active = True

    def _branch(self, instance: WorkflowInstance, pointer: ExecutionPointer, now: datetime) -> None:
        """Start the children of a step or, when it has none or comes back because they are done, complete it."""
        names = self.steps[pointer.step_id].children
        if pointer.children or not names:
            self._finish(instance, pointer, now)
            return
        scope = [*pointer.scope, pointer.id]
        children = [self._pointer(name, pointer, scope) for name in names]
        pointer.active, pointer.children = False, [child.id for child in children]
        instance.execution_pointers.extend(children)

    def _retry_or_fail(self, instance: WorkflowInstance, pointer: ExecutionPointer, now: datetime) -> None:
        """Have a step that raised an error run again later or, after too many times, suspend its workflow."""
        step = self.steps[pointer.step_id]
        if pointer.retry_count < step.max_retries:
            pointer.retry_count += 1
            pointer.status, pointer.sleep_until = PointerStatus.Sleeping, now + step.retry_after
        else:
            pointer.status, pointer.active, pointer.end_time = PointerStatus.Failed, False, now
            instance.status = WorkflowStatus.Suspended

    def _pointer(
        self, name: str, predecessor: ExecutionPointer | None = None, scope: Iterable[str] = ()
    ) -> ExecutionPointer:
        step_id = next(place for place, step in enumerate(self.steps) if step.name == name)
        predecessor_id = None if predecessor is None else predecessor.id
        return ExecutionPointer(step_id=step_id, step_name=name, predecessor_id=predecessor_id, scope=list(scope))


def waits_for_event(pointer: ExecutionPointer) -> bool:
    """Return whether the pointer's event has not come yet."""
    return pointer.status is PointerStatus.WaitingForEvent and not pointer.event_published


def publish(instance: WorkflowInstance, pointer_id: str, event_data: Any) -> None:
    """Hand an event to a pointer, if it still waits for one."""
    for pointer in instance.execution_pointers:
        if pointer.id == pointer_id and waits_for_event(pointer):
            pointer.event_data, pointer.event_published, pointer.active = event_data, True, True


def wake(instance: WorkflowInstance) -> None:
    """Wake the pointers that sleep; none of them runs before its time."""
    for pointer in instance.execution_pointers:
        if pointer.status is PointerStatus.Sleeping:
            pointer.status, pointer.active = PointerStatus.Pending, True


def rest(instance: WorkflowInstance, pointer_id: str) -> None:
    """Leave a pointer to whatever wakes it or hands it its event, unless that has happened already."""
    for pointer in instance.execution_pointers:
        if pointer.id == pointer_id and (pointer.status is PointerStatus.Sleeping or waits_for_event(pointer)):
            pointer.active = False


def is_due(pointer: ExecutionPointer, now: datetime) -> bool:
    """Return whether the pointer's step is to be run."""
    return pointer.active and (pointer.sleep_until is None or pointer.sleep_until <= now)


def settle(instance: WorkflowInstance, now: datetime) -> None:
    """Set what follows from the pointers: whether the workflow is complete, and when it is due next."""
    if instance.status is WorkflowStatus.Runnable and _all_finished(instance.execution_pointers):
        instance.status, instance.complete_time = WorkflowStatus.Complete, now
    times = [p.sleep_until for p in instance.execution_pointers if p.active]
    runnable = instance.status is WorkflowStatus.Runnable
    instance.next_execution = min((_due_ms(time) for time in times), default=None) if runnable else None


def _subscription(instance: WorkflowInstance, pointer: ExecutionPointer, wait: WaitFor) -> EventSubscription:
    return EventSubscription(
        id=pointer.id,
        workflow_id=instance.id,
        step_id=pointer.step_id,
        execution_pointer_id=pointer.id,
        event_name=wait.event_name,
        event_key=wait.event_key,
        subscribe_as_of=instance.create_time,
    )


def _due_ms(sleep_until: datetime | None) -> int:
    return 0 if sleep_until is None else epoch_ms(sleep_until)


def _all_finished(pointers: Iterable[ExecutionPointer]) -> bool:
    return all(pointer.status in _FINISHED for pointer in pointers)
