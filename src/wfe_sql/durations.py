"""Durations are always a `timedelta`, so that nobody has to guess the unit of a number."""

from datetime import datetime, timedelta

from wfe_sql.errors import SerializationError, WfeError


def check_duration(name: str, value: object, error: type[WfeError] = SerializationError) -> None:
    """Check that a duration is a `timedelta`.

    Raises:
        WfeError: It is not; an error of class `error` whose message names the argument and says what to write.
    """
    if isinstance(value, timedelta):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    example = f"write timedelta(seconds={value})" if is_number else "such as timedelta(seconds=5)"
    raise error(f"{name} must be a timedelta, not {type(value).__name__}: {example}")


def time_after(now: datetime, name: str, length: timedelta) -> datetime:
    """Return the time that is `length` later.

    Raises:
        SerializationError: `length` is not a `timedelta` above zero, or ends after the year 9999.
    """
    check_duration(name, length)
    if length <= timedelta(0):
        raise SerializationError(f"{name} must be above zero, not {length}", field=name)
    try:
        return now + length
    except OverflowError as error:
        message = f"{name} is too long: it would end after the year 9999: {length}"
        raise SerializationError(message, field=name) from error


def time_before(now: datetime, name: str, length: timedelta) -> datetime:
    """Return the time that is `length` earlier.

    Raises:
        SerializationError: `length` is not a `timedelta` of at least zero, or begins before the year 1.
    """
    check_duration(name, length)
    if length < timedelta(0):
        raise SerializationError(f"{name} must not be negative: {length}", field=name)
    try:
        return now - length
    except OverflowError as error:
        raise SerializationError(f"{name} is too far in the past: {length}", field=name) from error
