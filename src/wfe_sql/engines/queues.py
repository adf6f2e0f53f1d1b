"""Queued units, and the futures of their callers."""

import asyncio
from collections.abc import Sequence

from wfe_sql.engines import Results, Unit
from wfe_sql.engines.reporting import Reporter

Outcome = Results | Exception

Job = tuple[Unit, float]
"""A unit, and when the call was made (`time.monotonic`)."""

Waiting = tuple[Job, "asyncio.Future[Results]"]


def report_end(unit: Unit, outcome: Outcome | None) -> None:
    """Report how a unit ended to its `ended` callback, even if the caller was cancelled.

    The callback is dropped then: it usually refers to the unit, and only the garbage collector frees a cycle.
    """
    ended, unit[0].ended = unit[0].ended, None
    if ended is not None:
        ended(outcome)


def resolve_futures(
    batch: Sequence[Waiting], outcomes: Sequence[Outcome], reporter: Reporter, began: float, together: int
) -> None:
    """Resolve the futures of a batch with its outcomes, skipping cancelled callers, and report the units as ended.

    For `began` and `together` see `Reporter.ended`.
    """
    for ((unit, _), future), outcome in zip(batch, outcomes, strict=True):
        report_end(unit, outcome)
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    reporter.ended([job for job, _ in batch], outcomes, began, together=together)
