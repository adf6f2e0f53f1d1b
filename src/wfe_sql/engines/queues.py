"""Units that wait, and those who wait for them: taken together, answered together."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from wfe_sql.engines import Results

_T = TypeVar("_T")

Outcome = Results | Exception
Waiting = tuple[_T, "asyncio.Future[Results]"]


def take(waiting: deque[Waiting[_T]], at_most: int) -> list[Waiting[_T]]:
    """Take what waits, leaving out callers that were cancelled meanwhile."""
    batch: list[Waiting[_T]] = []
    while waiting and len(batch) < at_most:
        unit, future = waiting.popleft()
        if not future.done():
            batch.append((unit, future))
    return batch


def answer(batch: Sequence[Waiting[_T]], outcomes: Sequence[Outcome]) -> None:
    """Tell those who wait for the units of a batch what became of them, but for those who have gone."""
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
