"""Connections on worker threads, and the queues in front of them.

Each connection lives on the worker thread of an aiosqlite connection. A unit of work crosses to the thread once, as a
whole. Units that arrive meanwhile queue up, and cross together next.
"""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from wfe_sql.engines import Results, Unit
from wfe_sql.engines.queues import Job, Outcome, Waiting, report_end, resolve_futures
from wfe_sql.engines.reporting import Reporter

_PATIENCE = 0.002
"""Seconds that a batch takes before another connection helps out. Because of the GIL, a second busy thread costs more
than it gains, so this is for long reads."""

_T = TypeVar("_T")


class WorkerConnection(aiosqlite.Connection):
    """An aiosqlite connection whose worker thread runs whole functions."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=64)
        # A host that dies of an exception without closing the provider must not hang at exit. Killing the thread is
        # like a crash, and a crash loses nothing that was acknowledged.
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

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection of sqlite3."""
        return self._conn

    def stop(self) -> "asyncio.Future[None] | None":
        """Stop the thread, and remember the future that tells when it has stopped."""
        self._stopping = super().stop()
        return self._stopping

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a function on the worker thread, in one hop."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[_T] = loop.create_future()
        self.post(work, partial(_resolve_future, answered))
        return await answered

    def abandon(self) -> None:
        """Let the thread close the connection and stop, without waiting and without an event loop."""
        raw, self._connection = self._connection, None
        if raw is not None:
            self._tx.put_nowait((None, partial(_close_and_stop, raw)))

    def post(self, work: Callable[[sqlite3.Connection], _T], done: Callable[[_T | Exception], None]) -> None:
        """Run a function on the worker thread, and call `done` on the running loop with its result or exception.

        This is `run` without its future, which costs as much as a short unit.
        """
        errands = [(asyncio.get_running_loop(), self._conn, work, done)]

        def on_thread() -> None:
            # The thread keeps its last function alive until the next one. The function must not keep alive its result,
            # nor this connection, whose thread stops once nobody refers to it.
            loop, raw, work, done = errands.pop()
            try:
                result: _T | Exception = work(raw)
            except Exception as error:  # of any kind: the callers must get it
                result = error
            loop.call_soon_threadsafe(done, result)

        self._tx.put_nowait((None, on_thread))


def _resolve_future(answered: "asyncio.Future[_T]", result: _T | Exception) -> None:
    if answered.done():
        return
    if isinstance(result, Exception):
        answered.set_exception(result)
    else:
        answered.set_result(result)


def _close_and_stop(raw: sqlite3.Connection) -> object:
    raw.close()
    return _STOP_RUNNING_SENTINEL


class Lane:
    """Connections that share a queue: units that queue up while a batch runs become the next batch.

    Args:
        connections: The first one does all the work, unless a batch takes long: then the others help out.
        run: Runs units on a connection, in order. It may stop early, so that nobody waits long for other units of the
            same batch; units without an outcome go into the next batch.
        max_batch: The most units in a batch.
        reporter: Told of the units that have ended.
    """

    def __init__(
        self,
        connections: Sequence[WorkerConnection],
        run: Callable[[Sequence[Job], sqlite3.Connection], list[Outcome]],
        max_batch: int,
        reporter: Reporter,
    ) -> None:
        self.connections = connections
        self._run = run
        self._max_batch = max_batch
        self._reporter = reporter
        self._free = list(reversed(connections))
        self._waiting: deque[Waiting] = deque()
        self._starts = False
        self._started_at = 0.0
        self._helper: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Queue a unit; the future gets the results of its statements."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Results] = loop.create_future()
        self._waiting.append(((unit, time.monotonic()), future))
        if len(self._free) == len(self.connections):
            self._start_soon(loop)
        elif self._free and self._helper is None:
            self._helper = loop.call_later(_PATIENCE, self._start_helper, loop)
        return future

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        await self._idle.wait()

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start once everything that is ready has run.

        So callers that woke up together share a hop, and a single caller waits for nobody.
        """
        if not self._starts:
            self._starts = True
            self._idle.clear()
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._starts = False
        if self._free and (batch := self._take_batch()):
            self._started_at = began = time.monotonic()
            connection = self._free.pop()
            jobs = [job for job, _ in batch]
            connection.post(partial(self._run, jobs), partial(self._finish_batch, loop, connection, batch, began))
        elif len(self._free) == len(self.connections):
            self._idle.set()
            if self._helper is not None:
                self._helper.cancel()
                self._helper = None

    def _take_batch(self) -> list[Waiting]:
        """Take units from the queue, skipping cancelled callers."""
        batch: list[Waiting] = []
        while self._waiting and len(batch) < self._max_batch:
            job, future = self._waiting.popleft()
            if future.done():
                report_end(job[0], None)
            else:
                batch.append((job, future))
        return batch

    def _start_helper(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start another batch while one takes long."""
        self._helper = None
        if self._waiting and self._free:
            wait = self._started_at + _PATIENCE - time.monotonic()
            if wait <= 0:
                self._start(loop)
            self._helper = loop.call_later(wait if wait > 0 else _PATIENCE, self._start_helper, loop)

    def _finish_batch(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: WorkerConnection,
        batch: list[Waiting],
        began: float,
        result: list[Outcome] | Exception,
    ) -> None:
        self._free.append(connection)
        outcomes = [result] * len(batch) if isinstance(result, Exception) else result
        self._waiting.extendleft(reversed(batch[len(outcomes) :]))
        resolve_futures(batch[: len(outcomes)], outcomes, self._reporter, began, len(outcomes))
        self._start_soon(loop)
