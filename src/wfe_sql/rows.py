"""How a dataclass becomes a row and a row a dataclass: the only place that knows how columns are encoded.

Booleans are 0 and 1, JSON is text, and times are RFC 3339 text in UTC ending "+00:00" with 0, 3 or 6 decimals, the
fewest that lose nothing, as chrono writes them in the reference: such text sorts as time, and equal times are equal
text. The reference may write nine decimals; they are cut to microseconds on reading.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import isfinite
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from wfe_sql.errors import CorruptRowError, SerializationError
from wfe_sql.models import (
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PointerStatus,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
)

Row = dict[str, Any]
"""Parameters of a query, by name."""

MAX_JSON_DEPTH = 127
"""Lists and dicts inside each other: serde_json, the reference's reader, refuses more."""

_T = TypeVar("_T")


class Codec(NamedTuple):
    """How one kind of column is written and read; both raise a ValueError that says what is wrong with the value.

    Attributes:
        encode: Checks a value and turns it into a column's.
        decode: Checks a column's value and turns it into a field's.
        convert: Does what `decode` does for a value of the right type, faster, or raises; None leaves it as it is.
        optional: Whether None is NULL.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    convert: Callable[[Any], Any] | None = None
    optional: bool = False


def _encode_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a str, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"has a lone surrogate at {error.start}, which is no text") from error
    return value


def _decode_text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"is no text: {value!r}")
    return value


def _encode_id(value: Any) -> str:
    text = _encode_text(value)
    if not text:
        raise ValueError("is empty where an id belongs")
    if "\0" in text:
        raise ValueError(f"has a NUL character, which no id may have: {text!r}")
    return text


def _encode_integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be an int, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"is beyond 64 bits: {value}")
    return value


def _decode_integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"is no integer: {value!r}")
    return value


def _encode_boolean(value: Any) -> int:
    if not isinstance(value, bool):
        raise ValueError(f"must be a bool, not {type(value).__name__}")
    return int(value)


def _decode_boolean(value: Any) -> bool:
    if value != 0 and value != 1:
        raise ValueError(f"is neither 0 nor 1: {value!r}")
    return bool(value)


def _encode_time(value: Any) -> str:
    utc = value if type(value) is datetime and value.tzinfo is UTC else _to_utc(value)
    if utc.microsecond and not utc.microsecond % 1000:
        return utc.isoformat(timespec="milliseconds")
    return utc.isoformat()


def _decode_time(value: Any) -> datetime:
    time = datetime.fromisoformat(_decode_text(value))
    if time.tzinfo is None:
        raise ValueError(f"has no time zone: {value!r}")
    return time if time.tzinfo is UTC else _to_utc(time)


def _convert_time(value: str) -> datetime:
    if not value.endswith("+00:00"):
        raise ValueError("is not as this library writes it")
    return datetime.fromisoformat(value)


def _to_utc(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise ValueError(f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(f"is naive: {value!r}; give it a time zone, such as datetime.UTC")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"is out of range in UTC: {value!r}") from error


_ALWAYS_JSON = {int, bool, type(None)}


def _check_json(value: Any, depth: int = 0) -> None:
    """Refuse what msgspec would turn into something else (NaN to null, bytes to text, the key 1 to "1")."""
    if isinstance(value, str):
        _encode_text(value)
    elif isinstance(value, dict | list | tuple):
        if depth == MAX_JSON_DEPTH:
            raise ValueError(f"cannot be JSON: it is nested more than {MAX_JSON_DEPTH} levels deep, or contains itself")
        if isinstance(value, dict):
            for key in value:
                if type(key) is not str or not key.isascii():
                    _check_json_key(key)
            value = value.values()
        for inner in value:
            if type(inner) not in _ALWAYS_JSON:
                _check_json(inner, depth + 1)
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"cannot be JSON: {value}")
    elif value is not None and not isinstance(value, int):
        raise ValueError(f"cannot be JSON: {type(value).__name__} is no JSON type")


def _check_json_key(key: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"cannot be JSON: the key {key!r} is no str")
    _encode_text(key)


def _as_builtin(value: Any) -> Any:
    """Let msgspec write subclasses of the JSON types, such as a NumPy float."""
    for builtin in (str, int, float, dict, list):
        if isinstance(value, builtin):
            return builtin(value)  # type: ignore[arg-type]
    raise TypeError(f"cannot be JSON: {type(value).__name__}")


_json_encoder = msgspec.json.Encoder(enc_hook=_as_builtin)


def _write_json(value: Any) -> str:
    return _json_encoder.encode(value).decode()


def _json_codec(shape: Any, check: Callable[[Any], None]) -> Codec:
    """Return the codec of a column whose JSON must have a shape, such as `list[str]`."""
    decoder = msgspec.json.Decoder(shape)

    def encode(value: Any) -> str:
        check(value)
        return _write_json(value)

    return Codec(encode, lambda value: decoder.decode(_decode_text(value)), decoder.decode)


def _check_strings(value: Any) -> None:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of str, not {value!r}")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"must be a list of str, not {value!r}")


def _check_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"must be a dict, not {type(value).__name__}")
    _check_json(value)


def _enum_codec(kind: type[StrEnum]) -> Codec:
    by_text = {member.value: member for member in kind}

    def encode(value: Any) -> str:
        member = by_text.get(value) if isinstance(value, str) else None
        return kind(value).value if member is None else member.value

    return Codec(encode, kind, by_text.__getitem__)


def _optional(codec: Codec) -> Codec:
    return codec._replace(optional=True)


ID = Codec(_encode_id, _decode_text)
TEXT = Codec(_encode_text, _decode_text)
INTEGER = Codec(_encode_integer, _decode_integer)
BOOLEAN = Codec(_encode_boolean, _decode_boolean, {0: False, 1: True}.__getitem__)
TIME = Codec(_encode_time, _decode_time, _convert_time)
JSON = _json_codec(Any, _check_json)
STRINGS = _json_codec(list[str], _check_strings)
OBJECT = _json_codec(dict[str, Any], _check_object)

_MAX_SHAPES = 1_000
"""Combinations of types that a table's rows are seen to have, before it stops remembering more of them."""


class Table(Generic[_T]):
    """How the rows of one table and the objects of one dataclass become each other."""

    def __init__(self, name: str, model: type[_T], columns: Sequence[tuple[str, Codec]], **renamed: str) -> None:
        """Name the columns in the order of queries; `renamed` gives the field of a column that is named otherwise."""
        self.name = name
        self.columns = tuple(column for column, _ in columns)
        self._model = model
        self._fields = tuple(renamed.get(column, column) for column in self.columns)
        self._values = attrgetter(*self._fields)
        self._codecs = tuple(codec for _, codec in columns)
        self._encoders = tuple((column, codec.encode, codec.optional) for column, codec in columns)
        self._conversions: dict[tuple[type, ...], list[tuple[int, str, Callable[[Any], Any]]]] = {}

    def encode(self, item: _T) -> Row:
        """Return the object's columns by name.

        Raises:
            SerializationError: A value cannot be stored; the message names the field.
        """
        row: Row = {}
        for (column, encode, optional), value in zip(self._encoders, self._values(item), strict=True):
            try:
                row[column] = None if value is None and optional else encode(value)
            except (ValueError, TypeError) as error:
                field = self._fields[len(row)]
                raise SerializationError(f"{self._model.__name__}.{field} {error}") from error
        return row

    def decode(self, row: Sequence[Any], row_id: Any = None, **rest: Any) -> _T:
        """Return the object of a row, whose first columns are the table's.

        Args:
            row: What a query returned.
            row_id: The row's id for error messages, when it is not the first column.
            rest: Fields that are no columns of the row.

        Raises:
            CorruptRowError: A column cannot be read; the message names table, column and id.
        """
        conversions = self._conversions.get(tuple(map(type, row)))
        if conversions is None:
            values = self._decode_with_care(row, row_id)
        else:
            values = dict(zip(self._fields, row, strict=False))
            try:
                for at, field, convert in conversions:
                    values[field] = convert(row[at])
            except (ValueError, KeyError, msgspec.MsgspecError, RecursionError):
                values = self._decode_with_care(row, row_id)
        if rest:
            values |= rest
        return self._model(**values)

    def _decode_with_care(self, row: Sequence[Any], row_id: Any) -> dict[str, Any]:
        """Check each column. Where all can be read, rows of the same types need only what turns these types around."""
        values: dict[str, Any] = {}
        for column, field, codec, value in zip(self.columns, self._fields, self._codecs, row, strict=False):
            try:
                values[field] = None if value is None and codec.optional else codec.decode(value)
            except (ValueError, msgspec.MsgspecError, RecursionError, OverflowError) as error:
                row_id = row[0] if row_id is None else row_id
                raise CorruptRowError(f"{self.name}.{column} of id {row_id!r} cannot be read: {error}") from error
        if len(self._conversions) < _MAX_SHAPES:
            self._conversions[tuple(map(type, row))] = [
                (at, field, codec.convert)
                for at, (field, codec) in enumerate(zip(self._fields, self._codecs, strict=True))
                if codec.convert is not None and row[at] is not None
            ]
        return values


WORKFLOWS = Table(
    "workflows",
    WorkflowInstance,
    [
        ("id", ID),
        ("name", TEXT),
        ("root_workflow_id", _optional(ID)),
        ("definition_id", ID),
        ("version", INTEGER),
        ("description", _optional(TEXT)),
        ("reference", _optional(TEXT)),
        ("next_execution", _optional(INTEGER)),
        ("status", _enum_codec(WorkflowStatus)),
        ("data", JSON),
        ("create_time", TIME),
        ("complete_time", _optional(TIME)),
    ],
    definition_id="workflow_definition_id",
)

EXECUTION_POINTERS = Table(
    "execution_pointers",
    ExecutionPointer,
    [
        ("id", ID),
        ("step_id", INTEGER),
        ("active", BOOLEAN),
        ("status", _enum_codec(PointerStatus)),
        ("sleep_until", _optional(TIME)),
        ("persistence_data", _optional(JSON)),
        ("start_time", _optional(TIME)),
        ("end_time", _optional(TIME)),
        ("event_name", _optional(TEXT)),
        ("event_key", _optional(TEXT)),
        ("event_published", BOOLEAN),
        ("event_data", _optional(JSON)),
        ("step_name", _optional(TEXT)),
        ("retry_count", INTEGER),
        ("children", STRINGS),
        ("context_item", _optional(JSON)),
        ("predecessor_id", _optional(ID)),
        ("outcome", _optional(JSON)),
        ("scope", STRINGS),
        ("extension_attributes", OBJECT),
    ],
)

EVENTS = Table(
    "events",
    Event,
    [
        ("id", ID),
        ("event_name", TEXT),
        ("event_key", TEXT),
        ("event_data", JSON),
        ("event_time", TIME),
        ("is_processed", BOOLEAN),
    ],
)

EVENT_SUBSCRIPTIONS = Table(
    "event_subscriptions",
    EventSubscription,
    [
        ("id", ID),
        ("workflow_id", ID),
        ("step_id", INTEGER),
        ("execution_pointer_id", ID),
        ("event_name", TEXT),
        ("event_key", TEXT),
        ("subscribe_as_of", TIME),
        ("subscription_data", _optional(JSON)),
        ("external_token", _optional(ID)),
        ("external_worker_id", _optional(ID)),
        ("external_token_expiry", _optional(TIME)),
    ],
)

SCHEDULED_COMMANDS = Table(
    "scheduled_commands",
    ScheduledCommand,
    [("command_name", _enum_codec(CommandName)), ("data", ID), ("execute_time", INTEGER)],
)

EXECUTION_ERRORS = Table(
    "execution_errors",
    ExecutionError,
    [("error_time", TIME), ("workflow_id", ID), ("execution_pointer_id", ID), ("message", TEXT)],
)


_fingerprint_encoder = msgspec.msgpack.Encoder()


def fingerprint(pointer: ExecutionPointer) -> bytes | None:
    """Return bytes that differ when a pointer's row would, ten times faster than its row; None if there are none.

    MessagePack keeps apart what JSON does not, such as NaN and null, or bytes and text, so that a value which cannot be
    stored never looks like the one that is stored.
    """
    try:
        return _fingerprint_encoder.encode(pointer)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def encode_argument(name: str, codec: Codec, value: Any) -> Any:
    """Return one argument of a call as a parameter of a query.

    Raises:
        SerializationError: The value cannot be stored; the message names the argument.
    """
    try:
        return codec.encode(value)
    except ValueError as error:
        raise SerializationError(f"{name} {error}") from error


def encode_bound(name: str, value: datetime) -> str:
    """Return a time as an upper bound that takes in its whole microsecond, nanoseconds of the reference included.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    encode_argument(name, TIME, value)
    return _to_utc(value).isoformat(timespec="microseconds").replace("+00:00", "999+00:00")


def epoch_ms(name: str, value: datetime) -> int:
    """Return a time in epoch milliseconds, cut downwards.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    encode_argument(name, TIME, value)
    return (value - _EPOCH) // timedelta(milliseconds=1)


def encode_ids(ids: Iterable[str | int]) -> str:
    """Return ids as the JSON array that a query takes apart."""
    return _write_json(list(ids))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
