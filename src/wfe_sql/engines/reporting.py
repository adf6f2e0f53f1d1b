"""Reports units of work that have ended: logs those that were slow or refused, and calls the host's `on_unit`.

Only names of queries, counts and times are reported, never what is stored.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from itertools import zip_longest
from typing import Any

from wfe_sql.engines import Read, Results, Script, Statement, Unit
from wfe_sql.errors import ClaimLostError, WorkflowConflictError
from wfe_sql.models import UnitStats
from wfe_sql.queries import QuerySet

OnUnit = Callable[[UnitStats], None]

_Ran = tuple[Unit, Results | Exception, float, float]
"""A unit of a script, its outcome, and when it began and ended (`time.monotonic`)."""

_log = logging.getLogger("wfe_sql")

_VALUES = {"next_definition_sequence"}
"""Queries that return one value, even if the database has them only in the form for groups."""

_NAMES_SHOWN = 5
"""The most kinds of units in a line of the log."""


class Reporter:
    """Takes an engine's reports of units that have ended; used on the event loop.

    Args:
        database: The kind of database, as in `UnitStats`.
        queries: The queries of the units.
        on_unit: Called for each unit; None to call nothing.
        slow_unit: How long a unit takes, including waiting, that is logged as slow; None to log none.
    """

    def __init__(self, database: str, queries: QuerySet, on_unit: OnUnit | None, slow_unit: timedelta | None) -> None:
        self._database = database
        self._queries = queries
        self._on_unit = on_unit
        self.slow = float("inf") if slow_unit is None else slow_unit.total_seconds()

    def begin(self, unit: Unit, *, writes: bool) -> None:
        """Note the context of the call, in which `on_unit` runs; called when a unit is submitted."""
        if self._on_unit is not None:
            unit[0].asked = copy_context(), writes

    def ended(
        self,
        units: Sequence[tuple[Unit, float]],
        outcomes: Sequence[Results | Exception],
        began: float,
        *,
        together: int,
        now: float | None = None,
    ) -> None:
        """Report units that were sent to the database together.

        Args:
            units: The units, each with the time of its call (`time.monotonic`), the oldest first.
            outcomes: The outcome of each.
            began: When they were sent; 0 if they never were.
            together: How many units were sent, these included.
            now: When they ended; None if they just did.
        """
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                log_refusal(outcome)
        now = time.monotonic() if now is None else now
        began = began or now
        if self._on_unit is None and not (units and now - units[0][1] >= self.slow):
            return
        slow: dict[str, tuple[int, float]] = {}
        for (unit, asked), outcome in zip(units, outcomes, strict=True):
            if now - asked >= self.slow:
                count, longest = slow.get(unit[0].query, (0, 0.0))
                slow[unit[0].query] = count + 1, max(longest, now - asked)
            if self._on_unit is not None and unit[0].asked is not None:
                self._tell(self._on_unit, unit, outcome, max(began - asked, 0.0), now - began, together)
        if slow:
            self._log_slow(slow, now - began, together)

    def watch_read(self, read: Read) -> Read:
        """Return a function that reads on a snapshot and reports each of its units."""

        async def watched(unit: Unit) -> Results:
            self.begin(unit, writes=False)
            began = time.monotonic()
            try:
                results = await read(unit)
            except Exception as error:
                self.ended([(unit, began)], [error], began, together=1)
                raise
            self.ended([(unit, began)], [results], began, together=1)
            return results

        return watched

    @contextmanager
    def watch_script(self, script: Script) -> Iterator[Script]:
        """Yield the script to run in the caller's transaction, and report its units when the block ends.

        They are reported only then, in the context of the block, because a driver may run the script on another thread.
        """
        ran: list[_Ran] = []
        try:
            yield _noted(script, ran)
        finally:
            for unit, outcome, began, ended in ran:
                self.begin(unit, writes=bool(unit[0].operation))
                self.ended([(unit, began)], [outcome], began, together=1, now=ended)

    def _tell(
        self, on_unit: OnUnit, unit: Unit, outcome: Results | Exception, waited: float, worked: float, together: int
    ) -> None:
        context, writes = unit[0].asked  # type: ignore[misc]
        failed = isinstance(outcome, Exception)
        stats = UnitStats(
            database=self._database,
            queries=tuple(statement.query for statement in unit),
            writes=writes,
            rows=0 if failed else sum(map(self._rows, unit, _padded(unit, outcome))),
            units_together=together,
            waited=waited,
            worked=worked,
            outcome=type(outcome).__name__ if failed else "ok",
        )
        try:
            context.run(on_unit, stats)
        except Exception:
            _log.exception("on_unit failed, for a unit of %s", unit[0].query)

    def _rows(self, statement: Statement, result: Any) -> int:
        """Return how many rows a statement returned or changed."""
        if result is None:
            return len(statement.params) if isinstance(statement.params, Sequence) else 0
        query = self._queries.get(statement.query) or self._queries.application.get(statement.query)
        if statement.query in _VALUES or (query is not None and query.operation in ("^", "$")):
            return 1
        if isinstance(result, int):
            return result
        is_row = isinstance(result, list | tuple) and result and not isinstance(result[0], list | tuple | dict)
        return 1 if is_row else len(result)

    def _log_slow(self, slow: Mapping[str, tuple[int, float]], worked: float, together: int) -> None:
        kinds = [f"{count} x {query} up to {longest:.2f} s" for query, (count, longest) in slow.items()]
        more = f" and {len(kinds) - _NAMES_SHOWN} other kinds" if len(kinds) > _NAMES_SHOWN else ""
        _log.warning(
            "slow: %s%s, of which the database took %.2f s for %d units together",
            ", ".join(kinds[:_NAMES_SHOWN]),
            more,
            worked,
            together,
        )


def _noted(script: Script, ran: list[_Ran]) -> Script:
    """Yield what a script yields, and note how each unit ended, and when."""
    unit = next(script, None)
    while unit is not None:
        began = time.monotonic()
        try:
            outcome: Results | Exception = yield unit
        except Exception as error:
            outcome = error
        ran.append((unit, outcome, began, time.monotonic()))
        try:
            unit = script.throw(outcome) if isinstance(outcome, Exception) else script.send(outcome)
        except StopIteration:
            return


def _padded(unit: Unit, results: Any) -> list[Any]:
    """Return a result for each statement, None for those of which the database returns none, as in a group."""
    return [result for _, result in zip_longest(unit, results)]


def log_refusal(error: Exception) -> None:
    """Log a write that was refused because its claim was lost, or because somebody else changed the workflow first."""
    if isinstance(error, ClaimLostError):
        _log.warning("a write was refused: %s", error)
    elif isinstance(error, WorkflowConflictError):
        _log.debug("a write was refused: %s", error)
