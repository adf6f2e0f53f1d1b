"""One measurement: a side, a workload and some callers, on a fresh store, for a while; then its state is checked."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from math import ceil
from multiprocessing import get_context
from typing import Any, NamedTuple, Protocol

from places import Places, bytes_written
from sides import Side
from workloads import Caller, State, Workload

WARM_UP = 0.1
"""How long the callers warm up, as a fraction of the time they are measured."""

READ_BACK = 10
"""The most callers that read back what they wrote."""

PER_SECOND = "per second"
CPU = "µs of CPU"
WRITTEN = "KiB written"
P50, P99 = "p50, ms", "p99, ms"
BESIDE = "big, per second"


class Cell(NamedTuple):
    """A line of the tables."""

    workload: Workload
    callers: int

    def __str__(self) -> str:
        return f"{self.workload.title} at {self.callers}"


Sample = dict[str, float]
"""What was measured, by the name of the figure."""


class Used(NamedTuple):
    """The cost of operations: seconds, CPU seconds of all threads of the process, and bytes written, if known."""

    seconds: float
    cpu_seconds: float
    written: int | None

    def per(self, operations: int) -> Sample:
        """Return the figures of a number of operations."""
        sample = {PER_SECOND: operations / self.seconds, CPU: self.cpu_seconds * 1e6 / operations}
        return sample if self.written is None else sample | {WRITTEN: self.written / 1024 / operations}


class Meter:
    """Measures what is used from its creation until it is read."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self._written = bytes_written(place)
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def read(self) -> Used:
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu
        after = bytes_written(self._place)
        written = None if after is None or self._written is None else after - self._written
        return Used(seconds, cpu_seconds, written)


class Runner(Protocol):
    """Measures one side."""

    @property
    def name(self) -> str: ...

    @property
    def setup(self) -> str: ...

    def can_run(self, cell: Cell) -> bool:
        """Tell whether this side knows the workload."""
        ...

    def measure(self, cell: Cell, places: Places, seconds: float) -> Sample:
        """Measure for about this long, on a new store."""
        ...


class Worker:
    """Measures a Python side, in a separate process that loads nothing of the others.

    Their objects would slow it down, because garbage collection traverses them.
    """

    def __init__(self, side: Side) -> None:
        self.name = side.name
        self.setup = side.setup
        self._side = side
        self._process = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))

    def can_run(self, cell: Cell) -> bool:
        if cell.workload.finished:
            return self._side.on_finished
        if cell.workload.caller.needs_units and not self._side.has_units:
            return False
        return not (self._side.in_turns and cell.workload.beside)

    def measure(self, cell: Cell, places: Places, seconds: float) -> Sample:
        with places.new_store(self.name) as place:
            operations, sample = self._process.submit(run, self._side, cell, place, seconds).result()
            expected = places.state_before + cell.workload.expected(cell.callers, operations)
            check_state(places.read_state(place), expected, f"{self.name}, {cell}")
        return sample


def run(
    side: Side, cell: Cell, place: Any, seconds: float, wait_for_others: Callable[[], object] = lambda: None
) -> tuple[int, Sample]:
    """Return how many operations were done, and the measurements; background callers run only meanwhile."""
    return asyncio.run(_run(side, cell, place, seconds, wait_for_others))


async def _run(
    side: Side, cell: Cell, place: Any, seconds: float, wait_for_others: Callable[[], object]
) -> tuple[int, Sample]:
    team = cell.workload.team(cell.callers)
    async with side.open(place) as store:
        callers = [kind(store, side.models, number) for number, kind in enumerate(team)]
        for caller in callers:
            await caller.start()
        await _call(callers, seconds * WARM_UP, in_turns=side.in_turns)
        warm_up = take_durations(callers)
        gc.collect()
        wait_for_others()
        meter = Meter(place)
        await _call(callers, seconds, in_turns=side.in_turns)
        used = meter.read()
        wait_for_others()
        measured = take_durations(callers[: cell.callers])
        beside = take_durations(callers[cell.callers :])
        for caller in [*callers[:READ_BACK], *callers[cell.callers :]]:
            await caller.check()
    sample = used.per(len(measured))
    if cell.workload.beside:
        sample = {P50: percentile(measured, 50), P99: percentile(measured, 99), BESIDE: len(beside) / used.seconds}
    return len(warm_up) + len(measured) + len(beside), sample


async def _call(callers: Sequence[Caller], seconds: float, *, in_turns: bool) -> None:
    deadline = time.perf_counter() + seconds
    groups = [callers] if in_turns else [[caller] for caller in callers]
    await asyncio.gather(*(take_turns(group, deadline) for group in groups))


async def take_turns(callers: Sequence[Caller], deadline: float) -> None:
    """Run operations one after the other until the deadline, at least one."""
    for caller in cycle(callers):
        begin = time.perf_counter()
        await caller.operate()
        end = time.perf_counter()
        caller.durations.append(end - begin)
        if end >= deadline:
            return


def take_durations(callers: Sequence[Caller]) -> list[float]:
    """Return how long the operations since the last call took."""
    durations = [duration for caller in callers for duration in caller.durations]
    for caller in callers:
        caller.durations.clear()
    return durations


def percentile(durations: Sequence[float], percent: int) -> float:
    """Return the percentile of the operations' durations, in milliseconds."""
    return sorted(durations)[ceil(len(durations) * percent / 100) - 1] * 1000


def check_state(state: State, expected: State, who: str) -> None:
    """Raise an AssertionError if a store is not in the state that this many operations should leave."""
    assert state == expected, f"{who} left {dict(state)}, not {dict(expected)}"
