"""The demo's host: whole workflows per second, of three steps, a wait for an event, and two steps.

    python tests/benchmarks/steps.py [--postgres] [--seconds N] [--callers N ...]

Each caller starts a workflow, publishes its event when the step that waits for it has run, and starts the next one
after its last step. They run in the host's process, so the CPU figures include them. They look at nothing in the store,
because the wait is queued before the event, and so is stored before it.
"""

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from places import postgres_server
from report import ON_DISK

from wfe_sql import Event, ExecutionPointer, WorkflowInstance, connect
from wfe_sql.demo.host import WorkflowHost
from wfe_sql.demo.steps import Definition, Done, Step, WaitFor

_CALLERS = (1, 16, 64)

_STEPS = 6


class Figures(NamedTuple):
    """The result for a number of callers."""

    callers: int
    per_second: float
    cpu_ms: float
    commits: float

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"{self.callers:3} at once: {self.per_second:6.0f} workflows/s, {self.cpu_ms:5.2f} ms CPU and "
            f"{self.commits:5.2f} commits each, {self.commits / _STEPS:.2f} commits a step"
        )


class _Work:
    """The steps, and the callers that wait for each to run."""

    def __init__(self) -> None:
        self._ran: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def definition(self) -> Definition:
        names = ["reserve", "charge", "pack", "ship", "thank", "close"]
        bodies = [self._work, self._work, self._work, self._wait, self._work, self._close]
        following = [*names[1:], None]
        return Definition("order", 1, tuple(map(self._step, names, bodies, following)))

    @staticmethod
    def _step(name: str, body: Any, following: str | None) -> Step:
        return Step(name=name, body=body, next=following)

    async def reached(self, what: str, key: str) -> None:
        await self._ran[what + key].wait()
        del self._ran[what + key]

    async def _work(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        return Done({f"step {pointer.step_id}": "done"})

    async def _wait(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
        if pointer.event_published:
            return Done({"parcel": pointer.event_data})
        self._ran["waits" + order.data["key"]].set()
        return WaitFor("shipped", order.data["key"])

    async def _close(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        self._ran["closed" + order.data["key"]].set()
        return Done()


async def measure(url: str, callers: int, seconds: float) -> Figures:
    """Run workflows for some seconds, and then finish those that have begun."""
    async with connect(url) as store:
        work = _Work()
        host = WorkflowHost(store, [work.definition()], worker_id="host")
        running = asyncio.create_task(host.run())
        ids: list[str] = []
        ends = time.perf_counter() + seconds

        async def call(caller: int) -> None:
            while time.perf_counter() < ends:
                key = f"{caller}-{len(ids)}"
                ids.append(await host.start("order", {"key": key, "amount": 12}))
                await work.reached("waits", key)
                await store.create_event(Event(event_name="shipped", event_key=key, event_data={"parcel": key}))
                await work.reached("closed", key)

        began, cpu, commits = time.perf_counter(), time.process_time(), store._engine.commits
        await asyncio.gather(*(call(caller) for caller in range(callers)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        commits = store._engine.commits - commits
        while any(order.complete_time is None for order in await store.get_workflow_instances(ids[-callers:])):
            await asyncio.sleep(0.01)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return Figures(callers, len(ids) / took, 1000 * cpu / len(ids), commits / len(ids))


def main() -> None:
    """Print the figures for each number of callers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL rather than on SQLite")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to start workflows for (default: 5)")
    parser.add_argument("--callers", type=int, nargs="+", default=_CALLERS, help="how many workflows at once")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where stores are made (default %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=arguments.folder)))
        url = stack.enter_context(postgres_server(folder)) if arguments.postgres else ""
        for callers in arguments.callers:
            place = f"{url}{'&' if '?' in url else '?'}schema=steps_{callers}" if url else str(folder / f"{callers}.db")
            print(asyncio.run(measure(place, callers, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
