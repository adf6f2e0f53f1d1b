"""A queue in front of connections: what waits when one of them is free goes to it together."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from math import ceil
from typing import Generic, TypeVar

from wfe_sql.engines import Results, Unit

Outcome = Results | Exception

_C = TypeVar("_C")


class UnitQueue(ABC, Generic[_C]):
    """Units that wait, and the connections that take them.

    Args:
        connections: Those that are free at first.
        max_batch: How many units go together at most.
    """

    def __init__(self, connections: Sequence[_C], max_batch: int) -> None:
        self.connections = connections
        self._max_batch = max_batch
        self._free = list(connections)
        self._waiting: deque[tuple[Unit, asyncio.Future[Results]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def run(self, connection: _C, units: Sequence[Unit]) -> Sequence[Outcome]:
        """Run units on a connection, in order, and return their outcomes.

        It may stop early, so that nobody waits long for units that were only in the same batch; those that it returns
        no outcome for go again.
        """

    async def submit(self, unit: Unit) -> Results:
        """Have a unit run, and return what its statements returned."""
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        if self._may_start():
            self._start()
        return await future

    def _may_start(self) -> bool:
        """Tell whether a free connection may take what waits; at once, unless overridden."""
        return True

    def _start(self) -> None:
        if self._free and self._waiting:
            # The task starts after everything that is ready to run now, so callers that were woken together still
            # go together, and a caller that is alone waits for nobody.
            task = asyncio.get_running_loop().create_task(self._drain(self._free.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _drain(self, connection: _C) -> None:
        batch: list[tuple[Unit, asyncio.Future[Results]]] = []
        try:
            while self._waiting:
                async with self._turn():
                    batch = self._take()
                    outcomes = await self._outcomes(connection, [unit for unit, _ in batch]) if batch else []
                self._waiting.extendleft(reversed(batch[len(outcomes) :]))
                batch = batch[: len(outcomes)]
                _answer(batch, outcomes)
                if not batch:
                    break
        finally:
            for _, future in batch:
                future.cancel()
            self._free.append(connection)

    def _turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until a batch may be taken, and hold that right while it runs; at once, unless overridden."""
        return nullcontext()

    async def _outcomes(self, connection: _C, units: Sequence[Unit]) -> Sequence[Outcome]:
        try:
            return await self.run(connection, units)
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


def _answer(batch: Sequence[tuple[Unit, asyncio.Future[Results]]], outcomes: Sequence[Outcome]) -> None:
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
