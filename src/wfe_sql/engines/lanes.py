"""Connections on worker threads, and the queues in front of them.

Each connection lives on the worker thread of an aiosqlite connection. A unit of work crosses to it once, whole, and
while it is there others queue up; they cross together next.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import TypeVar

import aiosqlite

from wfe_sql.engines import Results, Unit

Outcome = Results | Exception

_T = TypeVar("_T")


class WorkerConnection(aiosqlite.Connection):
    """A connection of aiosqlite whose worker thread takes whole functions."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=64)
        # A host that dies of an exception without closing the provider must not hang at exit; a thread that is cut
        # off is what a crash would be, and a crash loses nothing that was acknowledged.
        self._thread.daemon = True
        self._stopping: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Start the thread and connect on it; when that fails, the thread ends before the error is raised."""
        try:
            await self
        except BaseException:
            if self._stopping is not None:
                await self._stopping
            raise

    def stop(self) -> "asyncio.Future[None] | None":
        """Have the thread end, and remember what tells when it has."""
        self._stopping = super().stop()
        return self._stopping

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a function on the worker thread, in one hop."""
        result: _T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result


class Lane:
    """Connections that share a queue: what waits when one of them is free crosses to its thread together.

    Args:
        connections: Those that are free at first.
        run: Runs units on a connection, in order. It may stop early, so that nobody waits long for units that were only
            in the same batch; those that it returns no outcome for cross again.
        max_batch: How many units cross together at most.
    """

    def __init__(
        self,
        connections: Sequence[WorkerConnection],
        run: Callable[[Sequence[Unit], sqlite3.Connection], list[Outcome]],
        max_batch: int,
    ) -> None:
        self.connections = connections
        self._run = run
        self._max_batch = max_batch
        self._free = list(connections)
        self._waiting: deque[tuple[Unit, asyncio.Future[Results]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, unit: Unit) -> Results:
        """Have a unit run, and return what its statements returned."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Results] = loop.create_future()
        self._waiting.append((unit, future))
        if self._free:
            # The task starts after everything that is ready to run now, so callers that were woken together still
            # share a hop, and a caller that is alone waits for nobody.
            task = loop.create_task(self._drain(self._free.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _drain(self, connection: WorkerConnection) -> None:
        batch: list[tuple[Unit, asyncio.Future[Results]]] = []
        try:
            while batch := self._take():
                outcomes = await self._cross(connection, [unit for unit, _ in batch])
                self._waiting.extendleft(reversed(batch[len(outcomes) :]))
                batch = batch[: len(outcomes)]
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            for _, future in batch:
                future.cancel()
            self._free.append(connection)

    async def _cross(self, connection: WorkerConnection, units: Sequence[Unit]) -> Sequence[Outcome]:
        try:
            return await connection.run(partial(self._run, units))
        except Exception as error:  # whatever it is, those who wait must hear of it
            return [error for _ in units]

    def _take(self) -> list[tuple[Unit, asyncio.Future[Results]]]:
        """Take this connection's share of what waits, leaving out callers that were cancelled meanwhile."""
        while self._waiting:
            share = min(ceil(len(self._waiting) / len(self.connections)), self._max_batch)
            taken = [self._waiting.popleft() for _ in range(share)]
            if batch := [(unit, future) for unit, future in taken if not future.done()]:
                return batch
        return []
