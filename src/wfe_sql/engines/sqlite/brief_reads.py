"""Reads on the event loop's own thread, as long as they are brief.

The way to a worker thread and back takes 30 to 60 microseconds, twice what most reads take. So a read runs where it is
asked for, and is given up when it is not brief: then it goes to a worker thread after all.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

from wfe_sql.engines import Unit
from wfe_sql.engines.queues import Job, Outcome
from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.errors import StoreError

_BRIEF = 0.0005
"""Seconds that a read may take here."""

_REST = 100
"""How many times as long as reads that were not brief nothing may run here, be they long or the disk slow: so the event
loop loses a hundredth of its time at most."""

_CREDIT = 2.0
"""Seconds of that rest that time without such reads pays for beforehand: one pause of the machine costs nothing."""

_STEPS = 1_000
"""Instructions of SQLite's virtual machine between two looks at the clock; most reads take fewer in all."""


class BriefReader:
    """Reads on a connection that was opened for it; its worker thread only opens and closes it.

    Args:
        connection: One that may be used on this thread, and waits for no lock.
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
        self.started_at = self._given_up_at = 0.0
        self._rests_until = float("-inf")
        self._raw.set_progress_handler(lambda: clock() > self._given_up_at, _STEPS)

    def read(self, unit: Unit) -> Outcome | None:
        """Run a unit, and return its outcome; None where a worker thread must run it."""
        self.started_at = started = self._clock()
        if started < self._rests_until:
            return None
        self._given_up_at = started + _BRIEF
        (outcome,) = self._run([(unit, started)], self._raw)
        ended = self._clock()
        if ended > self._given_up_at:
            self._rests_until = max(self._rests_until, ended - _CREDIT) + _REST * (ended - started)
        cause = outcome.__cause__ if isinstance(outcome, StoreError) else None
        if isinstance(cause, sqlite3.Error):
            # It was given up, or a thread may wait for what is locked, or say what is wrong. Without its frames, the
            # error ends here and now, instead of when garbage is collected.
            cause.__traceback__ = None
            return None
        return outcome
