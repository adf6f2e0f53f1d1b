"""Runs reads on the event loop's own thread as long as they are brief.

A hop to a worker thread and back takes 30 to 60 microseconds, twice as long as most reads. So a read starts on the
event loop. If it takes too long it is interrupted, and runs on a worker thread instead. A read that overran costs the
event loop time, so brief reads then pause for 100 times as long: the loop loses at most a hundredth of its time. A
quiet spell earns a credit against that pause, so that a single hiccup, such as a slow disk, costs nothing.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

from wfe_sql.engines import Unit
from wfe_sql.engines.queues import Job, Outcome
from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.errors import StoreError

_BRIEF = 0.0005
"""Seconds that a read may take on the event loop."""

_BACK_OFF = 100
"""Back-off factor: after a read that overran, use threads for 100 times as long as it took."""

_CREDIT = 2.0
"""Back-off seconds forgiven after a quiet spell, so that one hiccup costs nothing."""

_STEPS = 1_000
"""Instructions of SQLite's virtual machine between two looks at the clock; most reads take fewer altogether."""


class BriefReader:
    """Reads on its own connection; the connection's worker thread only opens and closes it.

    Args:
        connection: A connection that may be used on this thread, and never waits for a lock.
        run: Runs units on a connection.
        clock: Returns seconds.

    Attributes:
        started_at: When the last read began.
    """

    def __init__(
        self,
        connection: WorkerConnection,
        run: Callable[[Sequence[Job], sqlite3.Connection], list[Outcome]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.connection = connection
        self._raw = connection.raw
        self._run = run
        self._clock = clock
        self.started_at = self._deadline = 0.0
        self._backs_off_until = float("-inf")
        self._raw.set_progress_handler(lambda: clock() > self._deadline, _STEPS)

    def read(self, unit: Unit) -> Outcome | None:
        """Run a unit and return its outcome; None if a worker thread must run it."""
        self.started_at = started = self._clock()
        if started < self._backs_off_until:
            return None
        self._deadline = started + _BRIEF
        (outcome,) = self._run([(unit, started)], self._raw)
        ended = self._clock()
        if ended > self._deadline:
            self._backs_off_until = max(self._backs_off_until, ended - _CREDIT) + _BACK_OFF * (ended - started)
        cause = outcome.__cause__ if isinstance(outcome, StoreError) else None
        if isinstance(cause, sqlite3.Error):
            # It was interrupted, or failed: a thread can wait for locks, and report errors. Dropping the frames frees
            # the error now, instead of at the next garbage collection.
            cause.__traceback__ = None
            return None
        return outcome
