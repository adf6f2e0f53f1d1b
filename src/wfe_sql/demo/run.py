"""What `wfe-sql demo` does: orders on a SQLite file, and two hosts, one of which is killed half way and replaced.

This is the world outside the hosts: it places orders, ships parcels, kills one host and starts another, and at the end
compares what was run with what was stored. The host is `host.py`, the order's steps are in `order.py`.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wfe_sql import (
    Event,
    ExecutionError,
    PersistenceProvider,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)
from wfe_sql.demo.host import WorkflowHost
from wfe_sql.demo.order import OrderSteps, read_journal

_ORDERS = 6
_DEADLINE = 13.0
"""Seconds until the demo gives up."""

_GRACE = 1.0
"""Seconds within which a host must end when asked to."""

Attempt = tuple[str, int]
"""A pointer's id and the number of the attempt at its step."""


@dataclass(slots=True, kw_only=True)
class DemoReport:
    """What happened. All is well if `problems` is empty.

    Attributes:
        file: The store.
        journal: What was run, one JSON object per line.
        orders: The workflows, as stored at the end.
        errors: The errors of steps, as stored at the end.
        runs_by_host: How many runs of steps each host began, by its process id, in the order in which they started.
        killed: The process id of the host that was killed.
        stored: Attempts that were stored as done, or as failed, when it was killed.
        in_flight: Attempts that it had begun but not stored; each may run again.
        repeated: Attempts that were run more than once.
        problems: What is wrong, one line each.
    """

    file: Path
    journal: Path
    orders: list[WorkflowInstance] = field(default_factory=list)
    errors: list[ExecutionError] = field(default_factory=list)
    runs_by_host: dict[int, int] = field(default_factory=dict)
    killed: int | None = None
    stored: set[Attempt] = field(default_factory=set)
    in_flight: set[Attempt] = field(default_factory=set)
    repeated: set[Attempt] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


async def run_demo(file: Path, say: Callable[[str], None]) -> DemoReport:
    """Run the demo on a new file, which is kept, like the journal next to it.

    Args:
        file: The store to create.
        say: Called with a line of text when something happens.

    Raises:
        FileExistsError: The file or its journal already exists; nothing was changed.
        StoreError: The store cannot be created there.
    """
    report = DemoReport(file=file, journal=file.with_name(f"{file.name}.effects.jsonl"))
    for path in (report.file, report.journal):
        if path.exists():
            raise FileExistsError(f"{path} already exists; name a file that does not")
    async with connect(file) as store:
        demo = _Demo(store, report, say)
        try:
            async with asyncio.timeout(_DEADLINE):
                await demo.run()
        except TimeoutError:
            report.problems.append(f"not everything was done after {_DEADLINE:.0f} seconds")
        except _HostEndedError as error:
            report.problems.append(str(error))
        await demo.look()
        report.errors = await store.get_execution_errors()
    check(report)
    return report


class _HostEndedError(Exception):
    """A host ended by itself."""


class _Demo:
    """The world outside; all it knows about the hosts is what they store."""

    def __init__(self, store: PersistenceProvider, report: DemoReport, say: Callable[[str], None]) -> None:
        self._store = store
        self._report = report
        self._say = say
        self._order = OrderSteps(report.journal).definition()
        self._ids: list[str] = []
        self._shipped: set[str] = set()

    async def run(self) -> None:
        """Play the demo to its end."""
        desk = WorkflowHost(self._store, [self._order], worker_id="desk")
        for number in range(_ORDERS):
            self._ids.append(await desk.start(self._order.id, {"packing_ms": 600 + 200 * number}))
        self._say(f"{_ORDERS} orders are stored; no host runs yet")
        async with AsyncExitStack() as hosts:
            first = await hosts.enter_async_context(_host_process(self._report))
            second = await hosts.enter_async_context(_host_process(self._report))
            self._say(f"hosts {first.pid} and {second.pid} start")
            while not await self._is_half_way(first.pid):
                _check_alive(first, second)
            _check_alive(first, second)
            first.kill()
            await first.wait()
            await self._note_kill(first.pid)
            orders = self._report.orders
            self._say(f"host {first.pid} is killed with SIGKILL; stored steps: {_steps_by_status(orders)}")
            self._say(f"{await self._ship(orders)} 'shipped' events are published")
            third = await hosts.enter_async_context(_host_process(self._report))
            self._say(f"host {third.pid} takes its place, and host {second.pid} continues")
            while any(order.status is WorkflowStatus.Runnable for order in await self.look()):
                _check_alive(second, third)
        self._say("all orders have ended")

    async def look(self) -> list[WorkflowInstance]:
        """Read the orders from the store after a moment; for use in a loop."""
        await asyncio.sleep(0.02)
        self._report.orders = await self._store.get_workflow_instances(self._ids)
        return self._report.orders

    async def _is_half_way(self, pid: int) -> bool:
        """Ship half of the orders when they wait for it; return whether this is a good moment to kill a host."""
        begun = self._begun(lambda by: by == pid)
        orders = await self.look()
        await self._ship(order for order in orders[: _ORDERS // 2] if _has_step(order, PointerStatus.WaitingForEvent))
        done = sum(p.status is PointerStatus.Complete for order in orders for p in order.execution_pointers)
        part = done / (_ORDERS * len(self._order.steps))
        # The best moment is when it has begun a step that is not stored; a slow machine may miss all such moments.
        return part >= 1 / 2 and (bool(begun - _stored_attempts(orders)) or part >= 2 / 3)

    async def _note_kill(self, pid: int) -> None:
        """Note what was stored when a host was killed; the other one continues meanwhile."""
        before, after = _stored_attempts(self._report.orders), _stored_attempts(await self.look())
        begun = self._begun(lambda by: by == pid)
        taken_over = begun & self._begun(lambda by: by != pid)
        self._report.killed = pid
        self._report.stored = before | (after - taken_over)  # the other host may already have stored what it took over
        self._report.in_flight = begun - self._report.stored

    def _begun(self, of: Callable[[int], bool]) -> set[Attempt]:
        return {(run.pointer_id, run.attempt) for run in read_journal(self._report.journal) if of(run.pid)}

    async def _ship(self, orders: Iterable[WorkflowInstance]) -> int:
        """Send the events that orders wait for, each once; return how many."""
        names = {order.name for order in orders} - self._shipped
        for name in sorted(names):
            event = Event(event_name="shipped", event_key=name, event_data={"parcel": f"parcel of {name}"})
            await self._store.create_event(event)
        self._shipped |= names
        return len(names)


@asynccontextmanager
async def _host_process(report: DemoReport) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a host in a separate process, and end it afterwards."""
    arguments = (str(report.file), str(report.journal), str(os.getpid()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "wfe_sql.demo.order", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the demo alone, which then ends its hosts
    )
    report.runs_by_host[process.pid] = 0
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_GRACE):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _check_alive(*hosts: asyncio.subprocess.Process) -> None:
    for host in hosts:
        if host.returncode is not None:
            raise _HostEndedError(f"host {host.pid} ended by itself, with exit code {host.returncode}")


def _stored_attempts(orders: Iterable[WorkflowInstance]) -> set[Attempt]:
    """Return what ran according to the store: a pointer counts its failed attempts, and a complete one had one more."""
    return {
        (pointer.id, attempt)
        for order in orders
        for pointer in order.execution_pointers
        if not pointer.children
        for attempt in range(1, pointer.retry_count + (pointer.status is PointerStatus.Complete) + 1)
    }


def _has_step(order: WorkflowInstance, status: PointerStatus) -> bool:
    return any(pointer.status is status for pointer in order.execution_pointers)


def _steps_by_status(orders: Iterable[WorkflowInstance]) -> str:
    counts = Counter(pointer.status.value for order in orders for pointer in order.execution_pointers)
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())


def check(report: DemoReport) -> None:
    """Compare what was run with what was stored, and note in the report who ran it, and any problems."""
    journal = read_journal(report.journal)
    report.runs_by_host |= Counter(run.pid for run in journal)
    runs = Counter((run.pointer_id, run.attempt) for run in journal)
    report.repeated = {attempt for attempt, times in runs.items() if times > 1}
    for order in report.orders:
        if order.status is not WorkflowStatus.Complete:
            report.problems.append(f"{order.name} is {order.status}, not Complete")
        retries = sum(pointer.retry_count for pointer in order.execution_pointers)
        if sum(error.workflow_id == order.id for error in report.errors) < retries:
            report.problems.append(f"{order.name} was retried {retries} times, and not all of its errors are stored")
    wrong = {
        "were stored as done and were run again": report.repeated & report.stored,
        "were run again without a reason": report.repeated - report.stored - report.in_flight,
        "are stored as done and were never run": _stored_attempts(report.orders) - runs.keys(),
    }
    report.problems += [f"{len(attempts)} steps {what}" for what, attempts in wrong.items() if attempts]
