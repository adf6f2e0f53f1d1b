"""How long ago something was."""

from datetime import datetime, timedelta

from wfe_sql.errors import SerializationError


def time_ago(name: str, age: timedelta, now: datetime) -> datetime:
    """Return the time that was so long before now.

    Raises:
        SerializationError: The age is negative, or goes back further than times do; the message names the argument.
    """
    if age < timedelta(0):
        raise SerializationError(f"{name} must not be negative: {age}")
    try:
        return now - age
    except OverflowError as error:
        raise SerializationError(f"{name} goes back further than times do: {age}") from error
