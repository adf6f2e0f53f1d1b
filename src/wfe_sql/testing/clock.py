"""A clock for tests, so that nothing sleeps."""

from datetime import UTC, datetime, timedelta


class ManualClock:
    """A clock that stands still until it is moved; call it for the time."""

    def __init__(self, now: datetime = datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)) -> None:
        """Start at a time."""
        self.now: datetime = now

    def __call__(self) -> datetime:
        """Return the time that it stands at."""
        return self.now

    def advance(self, **by: float) -> None:
        """Move on by what `timedelta` takes, such as `seconds=30`."""
        self.now += timedelta(**by)
