"""Queued units, and the futures of their callers."""

import asyncio
from collections.abc import Sequence

from wfe_sql.engines import Results, Unit

Outcome = Results | Exception
Waiting = tuple[Unit, "asyncio.Future[Results]"]


def report_end(unit: Unit, outcome: Outcome | None) -> None:
    """Report how a unit ended to its `ended` callback, even if the caller was cancelled."""
    if unit[0].ended is not None:
        unit[0].ended(outcome)


def resolve_futures(batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    """Resolve the futures of a batch with its outcomes, skipping cancelled callers."""
    for (unit, future), outcome in zip(batch, outcomes, strict=True):
        report_end(unit, outcome)
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
