"""The workloads: their operations, written once for all sides, and the state that they must leave.

The Rust program of `tests/reference` does the same (`bench.rs`), with the same models and data.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, uuid5

from sides import Models, Store, StoreWithUnits

from wfe_sql import Event, EventSubscription, ScheduledCommand, WorkflowStatus, utc_now

NAME = "bench"

State = Counter[str]
"""What `describe_state` in state.sql counts."""


def data(round_: int) -> dict[str, Any]:
    return {"customer": "alice", "items": [1, 2, 3], "round": round_}


def fresh_pointers(models: Models, count: int) -> list[Any]:
    return [
        models.pointer(
            step_id=number,
            step_name=f"step {number}",
            persistence_data={"cursor": number},
            scope=["outer", "inner"],
            extension_attributes={"owner": "alice"},
        )
        for number in range(count)
    ]


def cursors(pointers: int) -> int:
    """Return the sum of the cursors in a number of fresh pointers."""
    return sum(range(pointers))


def workflow_id(number: int) -> str:
    """Return the id of a caller's workflow; it looks as random as the ids of hosts."""
    return str(uuid5(NAMESPACE_URL, f"{NAME}-{number}"))


class Caller(ABC):
    """A caller, which repeats its operation.

    Attributes:
        pointers: How many pointers the caller's workflow has before it starts; 0 for no workflow.
        per_operation: What an operation adds to the state.
        needs_units: Whether only a side with units of work can do it.
        durations: Seconds that each operation took.
    """

    pointers: ClassVar[int] = 0
    per_operation: ClassVar[State] = State()
    needs_units: ClassVar[bool] = False

    def __init__(self, store: Store, models: Models, number: int) -> None:
        self.store = store
        self.models = models
        self.workflow_id = workflow_id(number)
        self.durations: list[float] = []

    @classmethod
    def prepared(cls) -> State:
        """Return what the store contains for it before it starts."""
        if not cls.pointers:
            return State()
        return State({"workflows": 1, "pointers": cls.pointers, "cursors in pointers": cursors(cls.pointers)})

    async def start(self) -> None:
        """Prepare; not measured."""

    @abstractmethod
    async def operate(self) -> None:
        """Do one operation."""

    async def check(self) -> None:
        """Raise an AssertionError if what is read back is not what was written last."""


class Lifecycle(Caller):
    """A workflow from its creation to its end, with a wait for an event: ten calls."""

    per_operation = State(
        {
            "workflows": 1,
            "complete workflows": 1,
            "rounds in data": 2,
            "pointers": 5,
            "cursors in pointers": cursors(5),
            "events": 1,
            "processed events": 1,
            "subscriptions": 1,
            "terminated subscriptions": 1,
            "last number": 1,
        }
    )
    last: Any = None

    async def operate(self) -> None:
        store, models = self.store, self.models
        number = await store.next_definition_sequence(NAME)
        created = models.workflow(
            name=f"{NAME}-{number}",
            workflow_definition_id=NAME,
            version=1,
            data=data(0),
            execution_pointers=fresh_pointers(models, 1),
        )
        await store.create_new_workflow(created)

        workflow = await store.get_workflow_instance(created.id)
        workflow.data = data(1)
        workflow.execution_pointers = fresh_pointers(models, 3)
        waiting = workflow.execution_pointers[2]
        subscription = models.subscription(
            workflow_id=workflow.id,
            step_id=waiting.step_id,
            execution_pointer_id=waiting.id,
            event_name=NAME,
            event_key=workflow.id,
            subscribe_as_of=utc_now(),
        )
        await store.persist_workflow_with_subscriptions(workflow, [subscription])

        event = models.event(event_name=NAME, event_key=workflow.id, event_data={"paid": True})
        await store.create_event(event)
        (found,) = await store.get_subscriptions(NAME, workflow.id, event.event_time)

        workflow = await store.get_workflow_instance(workflow.id)
        workflow.data = data(2)
        workflow.execution_pointers = fresh_pointers(models, 5)
        workflow.status = WorkflowStatus.Complete
        workflow.complete_time = utc_now()
        await store.persist_workflow(workflow)
        await store.terminate_subscription(found.id)
        await store.mark_event_processed(event.id)
        self.last = workflow

    async def check(self) -> None:
        if self.last is not None:
            assert_same(await self.store.get_workflow_instance(self.last.id), self.last)


class DrawNumber(Caller):
    """The next number of one definition."""

    per_operation = State({"last number": 1})

    async def operate(self) -> None:
        await self.store.next_definition_sequence(NAME)


class Persist(Caller):
    """Persists its own workflow, with new data and one changed pointer each time."""

    pointers = 5
    per_operation = State({"rounds in data": 1, "retries of pointers": 1})
    workflow: Any
    round = 0

    async def start(self) -> None:
        self.workflow = await self.store.get_workflow_instance(self.workflow_id)

    async def operate(self) -> None:
        self.round += 1
        self.workflow.data = data(self.round)
        self.workflow.execution_pointers[self.round % self.pointers].retry_count += 1
        await self.store.persist_workflow(self.workflow)

    async def check(self) -> None:
        assert_same(await self.store.get_workflow_instance(self.workflow.id), self.workflow)


class Step(Persist):
    """A step as one unit of work: a persist as above, a subscription, an event and a command."""

    store: StoreWithUnits
    needs_units = True
    per_operation = State({"rounds in data": 1, "retries of pointers": 1, "events": 1, "subscriptions": 1})

    async def operate(self) -> None:
        self.round += 1
        workflow, pointer = self.workflow, self.workflow.execution_pointers[self.round % self.pointers]
        workflow.data = data(self.round)
        pointer.retry_count += 1
        async with self.store.unit() as unit:
            unit.persist_workflow(workflow)
            unit.create_event_subscription(
                EventSubscription(
                    workflow_id=workflow.id,
                    step_id=pointer.step_id,
                    execution_pointer_id=pointer.id,
                    event_name=NAME,
                    event_key=workflow.id,
                    subscribe_as_of=utc_now(),
                )
            )
            unit.create_event(Event(event_name=NAME, event_key=workflow.id, event_data={"paid": True}))
            unit.schedule_command(ScheduledCommand.process_workflow(workflow.id, self.round))


class Get(Caller):
    """Loads its own workflow, decoded to objects."""

    pointers = 5
    read: Any = None

    async def operate(self) -> None:
        self.read = await self.store.get_workflow_instance(self.workflow_id)

    async def check(self) -> None:
        if self.read is not None:
            assert self.read.data == data(0)
            assert [pointer.step_id for pointer in self.read.execution_pointers] == list(range(self.pointers))


class BigPersist(Persist):
    pointers = 1_000


class BigGet(Get):
    pointers = 1_000


class HugePersist(Persist):
    pointers = 10_000


def assert_same(read: Any, written: Any) -> None:
    """Compare the fields that workloads change, because the ORM's objects are equal only to themselves."""
    for name in ("id", "name", "data", "status", "create_time", "complete_time"):
        assert getattr(read, name) == getattr(written, name), name
    for name in ("id", "step_id", "status", "retry_count", "persistence_data", "scope", "extension_attributes"):
        assert [getattr(pointer, name) for pointer in read.execution_pointers] == [
            getattr(pointer, name) for pointer in written.execution_pointers
        ], name


@dataclass(frozen=True)
class Workload:
    """Callers that run together.

    Attributes:
        name: As in the Rust program.
        caller: What each caller does.
        callers: The measured numbers of callers.
        beside: Background callers, whose operations are not measured.
        targets: The library's targets, as a multiple of the reference, by the number of callers.
        most_written: The most KiB that an operation should write, by the number of callers.
        finished: How many finished workflows are in the store from the start.
        least_of_empty: How much of its rate on an empty store the library should keep, by the number of callers.
    """

    name: str
    caller: type[Caller]
    callers: Sequence[int]
    beside: Sequence[type[Caller]] = ()
    targets: Mapping[int, float] = field(default_factory=dict)
    most_written: Mapping[int, float] = field(default_factory=dict)
    finished: int = 0
    least_of_empty: Mapping[int, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name}, {self.finished:,} finished" if self.finished else self.name

    def team(self, callers: int) -> list[type[Caller]]:
        return [self.caller] * callers + list(self.beside)

    def expected(self, callers: int, operations: int) -> State:
        """Return the state after a number of operations of the whole team."""
        state = State({what: amount * operations for what, amount in self.caller.per_operation.items()})
        for kind in self.team(callers):
            state.update(kind.prepared())
        return state


FINISHED = 100_000

WORKLOADS = (
    Workload("lifecycle", Lifecycle, (1, 16, 64, 256), targets={1: 1.3, 16: 6, 64: 8}, most_written={64: 25}),
    Workload("lifecycle", Lifecycle, (1, 64), finished=FINISHED, targets={64: 10}, least_of_empty={64: 0.8}),
    Workload("persist", Persist, (1, 16, 64, 256), targets={1: 2, 64: 12}),
    Workload("step", Step, (1, 16, 64)),
    Workload("get", Get, (1, 64), targets={1: 3, 64: 1.4}),
    Workload("sequence", DrawNumber, (1, 64, 256), targets={64: 20}),
    Workload("big_persist", BigPersist, (1,), targets={1: 20}),
    Workload("big_get", BigGet, (1,), targets={1: 1.3}),
    Workload("mixed", Persist, (8,), beside=[HugePersist, HugePersist]),
)

_TARGETS_ON_POSTGRES: dict[str, dict[int, float]] = {
    "lifecycle": {1: 1.1, 16: 2.5, 64: 3},
    "persist": {1: 1, 16: 2.5, 64: 4},
    "step": {},
    "get": {1: 1.2, 64: 3},
    "sequence": {1: 1, 64: 5},
}
WORKLOADS_ON_POSTGRES = tuple(
    replace(workload, callers=(1, 16, 64, 256), targets=_TARGETS_ON_POSTGRES[workload.name], most_written={})
    for workload in WORKLOADS
    if workload.name in _TARGETS_ON_POSTGRES and not workload.finished
)
