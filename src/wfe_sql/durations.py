"""Lengths of time, which are always a `timedelta`, so that nobody has to know which unit a number is in."""

from datetime import datetime, timedelta

from wfe_sql.errors import SerializationError, WfeError


def check_duration(name: str, value: object, error: type[WfeError] = SerializationError) -> None:
    """Check that a length of time is a `timedelta`.

    Raises:
        WfeError: It is something else; of the class `error`, and the message names the argument and says what to write.
    """
    if isinstance(value, timedelta):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    example = f"write timedelta(seconds={value})" if is_number else "such as timedelta(seconds=5)"
    raise error(f"{name} must be a timedelta, not {type(value).__name__}: {example}")


def time_after(now: datetime, name: str, length: timedelta) -> datetime:
    """Return the time that is so much later.

    Raises:
        SerializationError: The length is not a `timedelta` above zero, or goes beyond the year 9999.
    """
    check_duration(name, length)
    if length <= timedelta(0):
        raise SerializationError(f"{name} must be above zero, not {length}")
    try:
        return now + length
    except OverflowError as error:
        raise SerializationError(f"{name} is too long, it would end after the year 9999: {length}") from error


def time_before(now: datetime, name: str, length: timedelta) -> datetime:
    """Return the time that is so much earlier.

    Raises:
        SerializationError: The length is not a `timedelta` of at least zero, or goes back beyond the year 1.
    """
    check_duration(name, length)
    if length < timedelta(0):
        raise SerializationError(f"{name} must not be negative: {length}")
    try:
        return now - length
    except OverflowError as error:
        raise SerializationError(f"{name} goes back further than times do: {length}") from error
