"""A clock for tests, so that nothing sleeps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from wfe_sql import models


class ManualClock:
    """A clock that stands still until it is advanced; call it to get the time."""

    def __init__(self, now: datetime = datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)) -> None:
        """Start at a time."""
        self.now: datetime = now

    def __call__(self) -> datetime:
        """Return its current time."""
        return self.now

    def advance(self, **by: float) -> None:
        """Move forward by the arguments of `timedelta`, such as `seconds=30`."""
        self.now += timedelta(**by)


@contextmanager
def default_times(clock: Callable[[], datetime]) -> Iterator[None]:
    """Make `utc_now`, and so the default times of new models, use a clock in the block."""
    before = models._now
    models._now = lambda zone: clock().astimezone(zone)
    try:
        yield
    finally:
        models._now = before
