"""Waiting until there may be work: one watch for all tasks of a provider that wait."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from wfe_sql.arguments import encode_bound, encode_ms_bound, to_utc
from wfe_sql.codecs import EPOCH, TIME, utc_of
from wfe_sql.durations import check_duration
from wfe_sql.engines import Engine, Statement
from wfe_sql.engines.alarms import Alarm, WakesOn, forget, listen
from wfe_sql.errors import ProviderClosedError, StoreError
from wfe_sql.models import utc_now
from wfe_sql.repositories import WaitingRepository

_LEASES = 10_000
"""How many held workflows, events or commands a look reads at most, to find the first lease that ends."""

_LONGEST_SLEEP = 1.0
"""Seconds until the clock is read again: it may have been set, or the machine may have been suspended."""

_REST = 10
"""After a look, rest this many times as long as it took, so that a stream of writes with nothing due costs at most a
tenth of the time."""

_LONGEST_REST = 0.05
"""The longest such rest, in seconds."""

_LINGER = 0.01
"""Seconds for which the alarm stays set after everybody was told: they are about to claim what is due, or come back."""

_FIRST_PAUSE = 0.001
"""Seconds until waiters that come back are woken again for the same work."""


async def poll_for_work(
    until: datetime | None = None,
    *,
    interval: timedelta = timedelta(milliseconds=250),
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Wait without notifications: return after the interval, or at `until` if that is sooner.

    A backend without notifications awaits this in its `wait_for_work`, and has the `wakes_on` "none".

    Raises:
        SerializationError: `until` is naive or not a time.
    """
    seconds = interval.total_seconds()
    if until is not None:
        left = to_utc("until", until) - to_utc("the clock's time", clock())
        seconds = min(seconds, left.total_seconds())
    await asyncio.sleep(max(0.0, seconds))


class Waiting(WaitingRepository):
    """`wait_for_work`, and whose writes wake it."""

    _engine: Engine
    _watch: "Watch"

    @property
    def wakes_on(self) -> WakesOn:
        return self._engine.wakes_on

    async def wait_for_work(self, until: datetime | None = None) -> None:
        await self._watch.wait(None if until is None else to_utc("until", until))


@dataclass(frozen=True, slots=True)
class _Due:
    """What a look found.

    Attributes:
        ids: The first workflow, event and command that are due and free; None for none.
        next: When the next thing becomes due after that.
    """

    ids: tuple[Any, ...]
    next: datetime | None

    @property
    def is_now(self) -> bool:
        return self.ids != (None, None, None)


class Watch:
    """Checks the store on behalf of all waiting tasks, after changes and when something becomes due.

    Due work that nobody takes must not make a host spin: while nothing changes, tasks that wait again are woken for the
    same work after a pause that doubles, from a millisecond up to the poll interval.

    Args:
        engine: Runs the queries, and opens the alarm that rings when others have changed the store.
        clock: Returns the current time in UTC.
        poll_interval: See `SqlitePersistenceProvider`.
        fallback_interval: See `SqlitePersistenceProvider`.

    Raises:
        StoreError: An interval is not above zero.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], datetime], *, poll_interval: timedelta, fallback_interval: timedelta
    ) -> None:
        for name, interval in {"poll_interval": poll_interval, "fallback_interval": fallback_interval}.items():
            check_duration(name, interval, StoreError)
            if interval <= timedelta(0):
                raise StoreError(f"{name} must be above zero, not {interval}")
        self._engine = engine
        self._clock = clock
        self._poll_interval = poll_interval.total_seconds()
        self._fallback_interval = fallback_interval.total_seconds()
        self._waiting: dict[asyncio.Future[None], datetime | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._alarm: Alarm | None = None
        self._wake = asyncio.Event()
        self._is_rung = False
        self._is_due = False
        self._is_closed = False
        self._changes = 0
        self._told: tuple[int, tuple[Any, ...]] | None = None
        self._pause = 0.0
        self._tell_again_at = 0.0

    async def wait(self, until: datetime | None) -> None:
        """Return when something may be due, or at `until`."""
        self._engine.check_open()
        if self._is_closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        self._waiting[told] = until
        self._wake.set()
        if self._task is None:
            self._task = loop.create_task(self._run())
        try:
            await told
        finally:
            if told in self._waiting:
                del self._waiting[told]
                self._wake.set()

    async def close(self) -> None:
        """End all waits with `ProviderClosedError`."""
        self._is_closed = True
        self.abandon()
        self._fail(_closed())
        if self._task is not None:
            self._wake.set()
            await asyncio.wait({self._task})

    def abandon(self) -> None:
        """Stop listening for changes."""
        forget(self._engine.store_id, self.ring)

    def ring(self) -> None:
        """Note that this process has changed the store; called on any thread."""
        if not self._is_rung:
            self._is_rung = True
            task = self._task
            if task is not None:
                with suppress(RuntimeError):  # the loop is closed
                    task.get_loop().call_soon_threadsafe(self._wake.set)

    def hear_alarm(self, *, is_due: bool = False) -> None:
        """Note that others have changed the store; called on the event loop.

        Args:
            is_due: Whether the change makes something due, now or later: waiters are then told without a look.
        """
        self._is_due = self._is_due or is_due
        self._is_rung = True
        self._wake.set()

    async def look(self) -> _Due:
        """Return what is due, and when the next thing becomes due."""
        now = self._clock()
        params = {
            "as_at": encode_ms_bound("now", now),
            "as_of": encode_bound("now", now),
            "now": TIME.encode(now),
            "row_limit": _LEASES,
        }
        (row,) = await self._engine.read([Statement("find_next_due", params)])
        times = [*map(_time_of_ms, row[3:5]), *map(_time_of, row[5:])]
        return _Due(tuple(row[:3]), min((time for time in times if time is not None), default=None))

    async def _run(self) -> None:
        try:
            alarm = await self._open_alarm()
            await self._look_and_tell()
            while self._waiting:
                await self._turn(alarm)
        except Exception as error:  # of any kind: waiting tasks must not hang
            self._fail(error)
        finally:
            self._task = None

    async def _open_alarm(self) -> Alarm:
        if self._alarm is None:
            listen(self._engine.store_id, self.ring)
            self._alarm = await self._engine.open_alarm(self.hear_alarm, self._poll_interval)
        return self._alarm

    async def _turn(self, alarm: Alarm) -> None:
        """Wait until another look is worthwhile, then look."""
        time = asyncio.get_running_loop().time
        try:
            at_most = await alarm.ask()
            began = time()
            due = await self._look_and_tell()  # for commits from before the alarm was set
            took = time() - began
            await self._sleep(due, self._fallback_interval if at_most is None else at_most)
            if self._is_due:
                self._tell(self._waiting)
            elif self._waiting:
                await self._look_and_tell()
            if not self._waiting:
                await self._linger()
        finally:
            await alarm.rest()
        rest = began + min(2 * _REST * took, _LONGEST_REST) - time()
        if self._waiting and rest > 0:
            await asyncio.sleep(rest)

    async def _look_and_tell(self) -> _Due:
        self._wake.clear()
        self._is_due = False
        if self._is_rung:
            self._is_rung = False
            self._changes += 1
        due = await self.look()
        now, time = self._clock(), asyncio.get_running_loop().time()
        tells = due.is_now and self._may_tell(due, time)
        self._tell([told for told, until in self._waiting.items() if tells or (until is not None and until <= now)])
        return due

    def _tell(self, those: Iterable[asyncio.Future[None]]) -> None:
        for told in list(those):
            del self._waiting[told]
            if not told.done():
                told.set_result(None)

    async def _linger(self) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                await self._wake.wait()

    def _may_tell(self, due: _Due, time: float) -> bool:
        """Tell whether to wake waiters for this work now; if so, note that they were."""
        what = (self._changes, due.ids)
        if what != self._told:
            self._told, self._pause = what, _FIRST_PAUSE
        elif time < self._tell_again_at:
            return False
        else:
            self._pause = min(2 * self._pause, self._poll_interval)
        self._tell_again_at = time + self._pause
        return True

    async def _sleep(self, due: _Due, at_most: float) -> None:
        """Sleep until something changes or becomes due, or a waiter comes or goes."""
        time = asyncio.get_running_loop().time
        until = time() + at_most
        if due.is_now:
            until = min(until, self._tell_again_at)
        times = [then for then in (due.next, *self._waiting.values()) if then is not None]
        while self._waiting and not self._wake.is_set():
            left = until - time()
            if times:
                left = min(left, (min(times) - self._clock()).total_seconds())
            if left <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LONGEST_SLEEP)):
                    await self._wake.wait()
        if due.next is not None and due.next <= self._clock():
            self._changes += 1

    def _fail(self, error: Exception) -> None:
        while self._waiting:
            told, _ = self._waiting.popitem()
            if not told.done():
                told.set_exception(error)


def _closed() -> ProviderClosedError:
    return ProviderClosedError("the provider was closed while this waited for work")


def _time_of_ms(ms: int | None) -> datetime | None:
    with suppress(OverflowError):
        return None if ms is None else EPOCH + timedelta(milliseconds=ms)
    return None


def _time_of(text: str | None) -> datetime | None:
    """Return a stored time; None if Python cannot represent it, because it will never come."""
    with suppress(ValueError):
        return None if text is None else utc_of(datetime.fromisoformat(text))
    return None
