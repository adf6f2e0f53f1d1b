"""A clock for tests, so that nothing sleeps."""

from datetime import UTC, datetime, timedelta


class ManualClock:
    """A clock that stands still until it is moved; call it to get the time."""

    def __init__(self, now: datetime = datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)) -> None:
        """Start at a time."""
        self.now = now

    def __call__(self) -> datetime:
        """Return its current time."""
        return self.now

    def advance(self, **by: float) -> None:
        """Move forward by the arguments of `timedelta`, such as `seconds=30`."""
        self.now += timedelta(**by)
