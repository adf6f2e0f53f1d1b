"""Checks the arguments of calls and turns them into parameters of queries; errors name the argument."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from wfe_sql.codecs import EPOCH, ID_TO_FIND, INTEGER, TEXT, Codec, json_encoder, utc_of
from wfe_sql.errors import SerializationError

_T = TypeVar("_T")

Row = dict[str, Any]
"""Parameters of a query, by name."""


def wrong_type(expected: type, value: object) -> SerializationError:
    """Return the error for an argument of the wrong class; it does not show the value."""
    return SerializationError(f"expected {expected.__name__}, not {type(value).__name__}")


def listed(name: str, kind: type[_T], values: Iterable[_T]) -> list[_T]:
    """Return the values of an argument as a list; a str is not a list of letters.

    Raises:
        SerializationError: It is not a list, and cannot be made one.
    """
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise SerializationError(f"{name} must be a list of {kind.__name__}, not {type(values).__name__}", field=name)
    return list(values)


def encode_argument(name: str, codec: Codec, value: Any) -> Any:
    """Return one argument of a call as a parameter of a query.

    Raises:
        SerializationError: The value cannot be stored; the message names the argument.
    """
    try:
        return codec.encode(value)
    except ValueError as error:
        raise SerializationError(f"{name} {error}", field=name) from error


def encode_key(name: str, value: str) -> Any:
    """Return a lookup key, which is text, as a parameter of a query.

    Raises:
        SerializationError: It is not text.
    """
    return encode_argument(name, TEXT, value)


def encode_id(name: str, value: str) -> Any:
    """Return the id of what is looked up as a parameter of a query.

    Raises:
        SerializationError: It is not text, or contains a NUL character, which no id does.
    """
    return encode_argument(name, ID_TO_FIND, value)


def encode_ids(ids: Iterable[str | int]) -> str:
    """Return ids as the JSON array that queries read."""
    return json_encoder.encode(list(ids)).decode()


def encode_count(name: str, count: int, *, at_most: int | None = None) -> int:
    """Return how many of something are wanted.

    Raises:
        SerializationError: It is not a number of at least 1, and of at most `at_most` if that is given.
    """
    number = int(encode_argument(name, INTEGER, count))
    if number < 1 or (at_most is not None and number > at_most):
        range_ = "at least 1" if at_most is None else f"from 1 to {at_most:,}"
        raise SerializationError(f"{name} must be {range_}, not {number}", field=name)
    return number


def encode_limit(limit: int | None) -> int | None:
    """Return the most rows that are wanted; None for no limit.

    Raises:
        SerializationError: It is not a number of at least 1.
    """
    return None if limit is None else encode_count("limit", limit)


def to_utc(name: str, value: datetime) -> datetime:
    """Return a time as a plain `datetime` in UTC: subtracting times of one other zone ignores its summer time.

    https://docs.python.org/3/library/datetime.html#datetime-objects (aware arithmetic within one zone)

    Raises:
        SerializationError: It is not a time, is naive or is out of range in UTC; the message names the argument.
    """
    try:
        return utc_of(value)
    except ValueError as error:
        raise SerializationError(f"{name} {error}", field=name) from error


def encode_bound(name: str, value: datetime) -> str:
    """Return a time as an upper bound that includes its whole microsecond, with the nanoseconds of the reference.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    return to_utc(name, value).isoformat(timespec="microseconds").replace("+00:00", "999+00:00")


def encode_name_key_bound(event_name: str, event_key: str, as_of: datetime) -> Row:
    """Return the lookup keys of events and subscriptions: name, key, and a time as a bound."""
    return {
        "event_name": encode_key("event_name", event_name),
        "event_key": encode_key("event_key", event_key),
        "as_of": encode_bound("as_of", as_of),
    }


def encode_ms_bound(name: str, value: datetime) -> int:
    """Return a time as an upper bound in epoch milliseconds, rounded down.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    return (to_utc(name, value) - EPOCH) // timedelta(milliseconds=1)


def epoch_ms(time: datetime) -> int:
    """Return a time in epoch milliseconds, rounded up, for `next_execution` and `execute_time`.

    Times have microseconds. Rounded down, work would be due up to 999 microseconds too early, and a step that sleeps
    until then would find that its time has not come. Rounded up, nothing is due before its time.

    Raises:
        SerializationError: It is not a time, is naive or is out of range in UTC.
    """
    return -((EPOCH - to_utc("time", time)) // timedelta(milliseconds=1))
