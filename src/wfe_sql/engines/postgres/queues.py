"""The queues in front of PostgreSQL's pool, one for each group of units that run together."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from wfe_sql.engines import Results, Unit
from wfe_sql.engines.postgres.connection import Attempt
from wfe_sql.engines.postgres.grouping import Group, param_of, rows_changed
from wfe_sql.engines.queues import Outcome, Waiting, report_end, resolve_futures
from wfe_sql.engines.reporting import Reporter

_UNITS_TOGETHER = 32
"""The most units in one statement: its joins cost more per unit the more units there are, and while the server runs a
full statement the next one is prepared. Of 16, 32 and 64, 32 gave the highest throughput with 64 callers on 2 cores."""

_SHARING_TOGETHER = 256
"""The same for units that share a row: no other statement begins while one has the row, so all waiting units join."""

_LONGEST_TURN = 0.1
"""Seconds after which a statement's turn ends, so that others need not wait for it."""

_Outcome = TypeVar("_Outcome")


class Turns:
    """Limits the concurrent statements of groups: only few, so that units that wait meanwhile run together.

    A statement that takes long probably waits for a lock, and others need not wait with it: its turn ends.
    """

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the block, or until its time is over."""
        await asyncio.sleep(0)  # callers that were just answered may call again, and join those that wait
        await self._free.acquire()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._free.release()

        ending = asyncio.get_running_loop().call_later(_LONGEST_TURN, end)
        try:
            yield
        finally:
            ending.cancel()
            end()


class GroupQueue:
    """Units of one group, which run as one statement.

    Waiting units run together when the running statement has ended: callers then stay together from call to call, and a
    commit serves many. Another statement begins meanwhile only if it would be full, or if the first one takes long,
    because that one probably waits for a lock and others need not wait with it.

    Units with the same key never run at the same time: the later one waits. A unit whose row somebody else holds waits
    for it together with the units of the same key; the others are answered without it.

    Args:
        group: The group of the units; None for units of work, each of which changes rows of several kinds.
        run: Runs units as one statement, and returns the outcome of each, in order; None if its row is held.
        run_held: Runs units of one key once their row is free, and returns the outcome of each, in order.
        at_once: The most concurrent statements.
        turns: Shared by all groups.
        reporter: Told of the units that have ended.
    """

    def __init__(
        self,
        group: Group | None,
        run: Callable[[Sequence[Unit], Attempt], Awaitable[Sequence[Outcome | None]]],
        run_held: Callable[[Sequence[Unit], Attempt], Awaitable[Sequence[Outcome]]],
        at_once: int,
        turns: Turns,
        reporter: Reporter,
    ) -> None:
        self._key = "" if group is None else group.key
        self._is_of_work = group is None
        self._shares = group is not None and group.shares
        self._together = _SHARING_TOGETHER if self._shares else _UNITS_TOGETHER
        self._alike = None if group is None else group.alike
        self._run_units = run
        self._run_held = run_held
        self._at_once = at_once
        self._turns = turns
        self._reporter = reporter
        self._waiting: deque[Waiting] = deque()
        self._keys_under_way: set[Any] = set()
        self._under_way = 0
        self._held_up = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        """Run a unit; the future gets the results of its statements."""
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append(((unit, time.monotonic()), future))
        if self._under_way <= self._held_up or len(self._waiting) >= self._together:
            self._start()
        return future

    async def finish(self) -> None:
        """Wait until nothing is pending."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        if self._under_way < self._at_once and self._waiting:
            # The task starts after everything that is ready to run now, so callers that were woken together still
            # run together, and a single caller waits for nobody.
            self._under_way += 1
            self._begin(self._drain())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        batch: list[Waiting] = []
        try:
            while self._waiting:
                async with self._turns.turn():
                    batch = self._take()
                    attempt = Attempt()
                    outcomes = await self._run(batch, attempt) if batch else []
                if not batch:
                    break
                self._finish_batch(batch, outcomes, attempt.began)
                batch = []
        finally:
            for _, future in batch:
                future.cancel()
            self._under_way -= 1

    def _finish_batch(self, batch: Sequence[Waiting], outcomes: Sequence[Outcome | None], began: float) -> None:
        """Resolve the units that ran; make those whose rows are held wait for them."""
        held: dict[tuple[Any, ...], list[Waiting]] = {}
        ran: list[Waiting] = []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            keys = self._keys_of(waiting[0][0])
            if outcome is None:
                held.setdefault(keys, []).append(waiting)
            else:
                self._keys_under_way.difference_update(keys)
                ran.append(waiting)
        known = [outcome for outcome in outcomes if outcome is not None]
        resolve_futures(ran, known, self._reporter, began, len(batch))
        for keys, some in held.items():
            self._begin(self._wait_for_row(keys, some))

    async def _wait_for_row(self, keys: tuple[Any, ...], held: Sequence[Waiting]) -> None:
        attempt = Attempt()
        try:
            outcomes = await _run_all(self._run_held, held, attempt)
            resolve_futures(held, outcomes, self._reporter, attempt.began, len(held))
        finally:
            for _, future in held:
                future.cancel()
            self._keys_under_way.difference_update(keys)
            self._start()

    async def _run(self, batch: Sequence[Waiting], attempt: Attempt) -> Sequence[Outcome | None]:
        is_held_up = False

        def let_another_begin() -> None:
            nonlocal is_held_up
            is_held_up = True
            self._held_up += 1
            self._start()

        holding_up = asyncio.get_running_loop().call_later(_LONGEST_TURN, let_another_begin)
        try:
            return await _run_all(self._run_units, batch, attempt)
        finally:
            holding_up.cancel()
            self._held_up -= is_held_up

    def _take(self) -> list[Waiting]:
        """Take the waiting units that run together, without those that must wait, or whose caller was cancelled."""
        batch: list[Waiting] = []
        shared: set[Any] = set()
        passed: deque[Waiting] = deque()
        while self._waiting and len(batch) < self._together:
            (unit, asked), future = self._waiting.popleft()
            if future.done():
                report_end(unit, None)
                continue
            if self._must_wait(unit, batch[0][0][0] if batch else unit):
                passed.append(((unit, asked), future))
                continue
            batch.append(((unit, asked), future))
            (shared if self._shares else self._keys_under_way).update(self._keys_of(unit))
        self._keys_under_way |= shared
        self._waiting.extendleft(reversed(passed))
        return batch

    def _keys_of(self, unit: Unit) -> tuple[Any, ...]:
        if self._is_of_work:
            return tuple((lock, id_) for lock, ids in rows_changed(unit).items() for id_ in ids)
        return (param_of(unit, self._key),) if self._key else ()

    def _must_wait(self, unit: Unit, first: Unit) -> bool:
        if not self._keys_under_way.isdisjoint(self._keys_of(unit)):
            return True
        return self._alike is not None and param_of(unit, self._alike) != param_of(first, self._alike)


async def _run_all(
    run: Callable[[Sequence[Unit], Attempt], Awaitable[Sequence[_Outcome]]], batch: Sequence[Waiting], attempt: Attempt
) -> Sequence[_Outcome | Exception]:
    """Run units; if all their callers are cancelled, cancel the work."""

    def give_up_unwanted(_: object) -> None:
        if not attempt.is_given_up and all(future.done() for _, future in batch):
            attempt.give_up()

    for _, future in batch:
        future.add_done_callback(give_up_unwanted)
    try:
        return await run([unit for (unit, _), _ in batch], attempt)
    except Exception as error:  # of any kind: the callers must not hang
        return [error for _ in batch]
