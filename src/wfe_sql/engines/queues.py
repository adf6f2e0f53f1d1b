"""Units that wait, and those who wait for them: answered together."""

import asyncio
from collections.abc import Sequence

from wfe_sql.engines import Results, Unit
from wfe_sql.engines.watching import Watch

Outcome = Results | Exception

Job = tuple[Unit, float]
"""A unit, and when it was asked for (`time.monotonic`)."""

Waiting = tuple[Job, "asyncio.Future[Results]"]


def tell(unit: Unit, outcome: Outcome | None) -> None:
    """Tell whoever asked for it how a unit ended, whether or not its caller still waits."""
    if unit[0].ended is not None:
        unit[0].ended(outcome)


def answer(batch: Sequence[Waiting], outcomes: Sequence[Outcome], watch: Watch, began: float, together: int) -> None:
    """Tell those who wait for the units of a batch what became of them, but for those who have gone.

    For `began` and `together` see `Watch.ended`.
    """
    for ((unit, _), future), outcome in zip(batch, outcomes, strict=True):
        tell(unit, outcome)
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    watch.ended([job for job, _ in batch], outcomes, began, together=together)
