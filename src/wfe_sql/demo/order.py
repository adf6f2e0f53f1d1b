"""The orders of the demo: what an application gives to a host. As a program, one host process of the demo.

Each step that works writes a line to a journal outside the store, so that what was run can be compared with what was
stored.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from wfe_sql import ExecutionPointer, WorkflowInstance, connect
from wfe_sql.demo.host import WorkflowHost
from wfe_sql.demo.steps import Definition, Done, Sleep, Step, WaitFor

_DECLINED = 2
"""How often the bank declines a card before it accepts it."""

_WORK = 0.1
"""Seconds between a step's line in the journal and its end: time for a kill."""

_MAX_TASKS = 2
"""How many orders a host works on at the same time: too few for one host to claim all."""

_LEASE = timedelta(seconds=1)
"""Short only for the demo, so that another host soon takes over from a killed one."""


class CardDeclinedError(Exception):
    """The bank declined the card; this makes a step of the demo fail."""


class Run(NamedTuple):
    """One attempt at one step, from the journal; after a failed attempt a step has another one."""

    pointer_id: str
    attempt: int
    pid: int


class OrderSteps:
    """The work of an order's steps."""

    def __init__(self, journal: Path) -> None:
        """Set up; `journal` is the file that gets a line for each attempt at a step."""
        self._journal = journal

    def definition(self) -> Definition:
        """Return the definition of an order."""
        return Definition(
            "order",
            1,
            (
                Step(name="reserve stock", body=self.work, next="prepare"),
                Step(name="prepare", children=("charge card", "pack"), next="ship"),
                Step(name="charge card", body=self.charge_card),
                Step(name="pack", body=self.pack),
                Step(name="ship", body=self.ship, next="follow up"),
                Step(name="follow up", body=self.follow_up, next="close"),
                Step(name="close", body=self.work),
            ),
        )

    async def work(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        """Complete the step at once."""
        await self._work(order, pointer)
        return Done()

    async def charge_card(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        """Fail, until it was retried often enough."""
        await self._work(order, pointer)
        if pointer.retry_count < _DECLINED:
            raise CardDeclinedError(f"attempt {pointer.retry_count + 1} for {order.name}")
        return Done({"charged": True})

    async def pack(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done | Sleep:
        """Wait for a timer first."""
        if pointer.persistence_data is None:
            return Sleep(timedelta(milliseconds=order.data["packing_ms"]), remember="packing")
        await self._work(order, pointer)
        return Done({"packed": True})

    async def ship(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
        """Wait for the carrier's event first; its key is the order's name."""
        if not pointer.event_published:
            return WaitFor("shipped", order.name)
        await self._work(order, pointer)
        return Done({"parcel": pointer.event_data["parcel"]})

    async def follow_up(self, order: WorkflowInstance, pointer: ExecutionPointer) -> Done | Sleep:
        """Wait for a scheduled command first."""
        if pointer.persistence_data is None:
            return Sleep(timedelta(milliseconds=300), remember="scheduled", by_command=True)
        await self._work(order, pointer)
        return Done()

    async def _work(self, order: WorkflowInstance, pointer: ExecutionPointer) -> None:
        line = {
            "order": order.name,
            "step": pointer.step_name,
            "attempt": pointer.retry_count + 1,
            "pid": os.getpid(),
            "pointer": pointer.id,
        }
        _append(self._journal, json.dumps(line))
        await asyncio.sleep(_WORK)


def read_journal(journal: Path) -> list[Run]:
    """Return what was run, in order, without a last line that is still being written."""
    if not journal.exists():
        return []
    lines = journal.read_text().split("\n")[:-1]
    return [Run(line["pointer"], line["attempt"], line["pid"]) for line in map(json.loads, lines)]


def _append(journal: Path, line: str) -> None:
    with journal.open("a") as file:
        file.write(line + "\n")


async def serve(file: Path, journal: Path, parent_pid: int) -> None:
    """Run a host on a store until SIGTERM, or until the process that started this one is gone.

    Raises:
        StoreError: The store cannot be opened, or, in an `ExceptionGroup`, polled.
    """
    async with connect(file) as store:
        orders = OrderSteps(journal).definition()
        host = WorkflowHost(store, [orders], worker_id=f"host {os.getpid()}", max_tasks=_MAX_TASKS, lease=_LEASE)
        running = asyncio.create_task(host.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        while not running.done() and os.getppid() == parent_pid:
            await asyncio.wait([running], timeout=0.2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
