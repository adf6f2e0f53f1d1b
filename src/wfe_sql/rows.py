"""How a dataclass becomes a row, and a document a dataclass: the only place that knows how columns are encoded.

A row is a dict of parameters. A document is a row as a query returns it: one JSON object with the model's field names,
which msgspec turns into the dataclass three times as fast as columns could be.

Booleans are 0 and 1, JSON is text, and times are RFC 3339 text in UTC ending "+00:00" with 0, 3 or 6 decimals, the
fewest that lose nothing, as chrono writes them in the reference: such text sorts as time, and equal times are equal
text. The reference may write nine decimals; they are cut to microseconds on reading.
"""

import json
import marshal
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import zip_longest
from math import isfinite
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

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

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""From when on epoch milliseconds are counted."""


class Codec(NamedTuple):
    """How one kind of column is written.

    Attributes:
        encode: Checks a value and turns it into a column's, or raises a ValueError that says what is wrong with it.
        optional: Whether None is NULL.
    """

    encode: Callable[[Any], Any]
    optional: bool = False


def _encode_text(value: Any) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at {error.start}, which is no text") from error
    return value


def _encode_id(value: Any) -> str:
    text = _encode_text(value)
    if not text:
        raise ValueError("is empty where an id belongs")
    if "\0" in text:
        raise ValueError(f"has a NUL character, which no id may have: {text!r}")
    return text


_TERMINATED = "wfe-sql:terminated"
"""The token that PostgreSQL's `event_subscriptions.sql` hides terminated subscriptions from the reference with."""


def _encode_token(value: Any) -> str:
    text = _encode_id(value)
    if text == _TERMINATED:
        raise ValueError(f"must not be {text!r}, which stands for a terminated subscription")
    return text


_LEAST, _GREATEST = -(2**63), 2**63 - 1


def _encode_integer(value: Any) -> int:
    if type(value) is int and _LEAST <= value <= _GREATEST:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be an int, not {type(value).__name__}")
    if not _LEAST <= value <= _GREATEST:
        raise ValueError(f"is beyond 64 bits: {value}")
    return value


def _encode_boolean(value: Any) -> int:
    if not isinstance(value, bool):
        raise ValueError(f"must be a bool, not {type(value).__name__}")
    return int(value)


def _encode_time(value: Any) -> str:
    utc = value if type(value) is type(EPOCH) and value.tzinfo is UTC else _to_utc(value)
    if utc.microsecond and not utc.microsecond % 1000:
        return utc.isoformat(timespec="milliseconds")
    return f"{_json_encoder.encode(utc)[1:-2].decode()}+00:00"  # it writes Z at the end, and five times as fast


def _to_utc(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise ValueError(f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(f"is naive: {value!r}; give it a time zone, such as datetime.UTC")
    try:
        # Subclasses, such as freezegun's and pendulum's, have arithmetic of their own; this gives a plain datetime.
        return EPOCH - EPOCH.__sub__(value)
    except OverflowError as error:
        raise ValueError(f"is out of range in UTC: {value!r}") from error


_ALWAYS_JSON = {int, bool, type(None)}

_LARGE_FLOAT = 1e16
"""From here on floats are written with an exponent."""


def _check_json(value: Any, depth: int = 0) -> bool:
    """Refuse what msgspec would turn into something else (NaN to null, bytes to text, the key 1 to "1").

    Returns whether there is a float that JSON would have with an exponent.
    """
    has_large_float = False
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
            if type(inner) not in _ALWAYS_JSON and _check_json(inner, depth + 1):
                has_large_float = True
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"cannot be JSON: {value}")
        has_large_float = abs(value) >= _LARGE_FLOAT
    elif value is not None and not isinstance(value, int):
        raise ValueError(f"cannot be JSON: {type(value).__name__} is no JSON type")
    return has_large_float


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


def _plain_float(text: str) -> float:
    if "e" in text:
        raise ValueError("has an exponent")
    return float(text)


_json_decoder = msgspec.json.Decoder(float_hook=_plain_float)


def _encode_json(value: Any) -> str:
    """Return JSON text; what comes back the same from it, which is quick to see, needs no further check."""
    try:
        encoded = _json_encoder.encode(value)
        if _json_decoder.decode(encoded) == value and encoded.count(b"[") + encoded.count(b"{") <= MAX_JSON_DEPTH:
            return encoded.decode()
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass  # the checks below say what is wrong, if anything is
    has_large_float = _check_json(value)
    text = _json_encoder.encode(value).decode()
    return _JSON_TOKEN.sub(_without_exponent, text) if has_large_float else text


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.e-]*')


def _without_exponent(token: re.Match[str]) -> str:
    """Write 1e16 as 10000000000000000.0: jsonb would keep neither the exponent nor that it was a float.

    https://www.postgresql.org/docs/current/datatype-json.html#JSON-TYPE-MAPPING-TABLE
    """
    text = token[0]
    is_large_float = text[0] != '"' and "e" in text and "e-" not in text
    return f"{Decimal(text):f}.0" if is_large_float else text


def _encode_strings(value: Any) -> str:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of str, not {value!r}")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"must be a list of str, not {value!r}")
    return _json_encoder.encode(value).decode()


def _encode_object(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"must be a dict, not {type(value).__name__}")
    return _encode_json(value)


def _enum_codec(kind: type[StrEnum]) -> Codec:
    by_text = {member.value: member for member in kind}

    def encode(value: Any) -> str:
        member = by_text.get(value) if isinstance(value, str) else None
        return kind(value).value if member is None else member.value

    return Codec(encode)


def _optional(codec: Codec) -> Codec:
    return codec._replace(optional=True)


ID = Codec(_encode_id)
TOKEN = Codec(_encode_token)
TEXT = Codec(_encode_text)
INTEGER = Codec(_encode_integer)
BOOLEAN = Codec(_encode_boolean)
TIME = Codec(_encode_time)
JSON = Codec(_encode_json)
STRINGS = Codec(_encode_strings)
OBJECT = Codec(_encode_object)

UNPARSED = "\0unparsed JSON: "
"""What a string in a document begins with when it is the text of a JSON column that cannot be parsed."""

Document = str | bytes
"""A row as a JSON object with the names of the fields; bytes where the engine knows that a column cannot be read."""


_MAX_SHAPES = 1_000
"""Combinations of types that a table's objects are seen to have, before it stops remembering more of them."""


class Table(Generic[_T]):
    """How the objects of one dataclass become rows of one table, and documents become objects."""

    def __init__(self, name: str, model: type[_T], columns: Sequence[tuple[str, Codec]], **renamed: str) -> None:
        """Name the columns of a row; `renamed` gives the field of a column that is named otherwise."""
        self.name = name
        self.columns = tuple(column for column, _ in columns)
        self._model = model
        self._fields = tuple(renamed.get(column, column) for column in self.columns)
        self.values = attrgetter(*self._fields)
        self._encoders = tuple((column, codec.encode, codec.optional) for column, codec in columns)
        self._plans: dict[tuple[type, ...], list[tuple[str, Callable[[Any], Any]]]] = {}
        self._hints = get_type_hints(model)
        self._times = [
            field for field, (_, codec) in zip(self._fields, columns, strict=True) if codec.encode is TIME.encode
        ]
        # msgspec takes no dataclass with an InitVar, so what it decodes is a struct with the same fields.
        self._is_struct = any(type(hint) is InitVar for hint in self._hints.values())
        document = [(field, self._hints[field]) for field in self._fields]
        decoded: Any = msgspec.defstruct(model.__name__, document) if self._is_struct else model
        self._decoder = msgspec.json.Decoder(list[decoded])

    def encode(self, item: _T) -> Row:
        """Return the object's columns by name.

        Raises:
            SerializationError: A value cannot be stored; the message names the field.
        """
        try:
            values = self.values(item)
        except AttributeError as error:
            raise wrong_type(self._model, item) from error
        return self.encode_values(values)

    def encode_values(self, values: Sequence[Any]) -> Row:
        """Return the columns of an object's values, which are in the order of the columns; see `encode`."""
        shape = tuple(map(type, values))
        plan = self._plans.get(shape)
        if plan is None:
            return self._encode_with_care(values, shape)
        row = dict(zip(self.columns, values, strict=True))
        try:
            for column, encode in plan:
                row[column] = encode(row[column])
        except (ValueError, TypeError):
            return self._encode_with_care(values, shape)
        return row

    def _encode_with_care(self, values: Sequence[Any], shape: tuple[type, ...]) -> Row:
        """Encode each column; for objects of the same types, remember which columns are not None."""
        row: Row = {}
        for (column, encode, optional), value in zip(self._encoders, values, strict=True):
            try:
                row[column] = None if value is None and optional else encode(value)
            except (ValueError, TypeError) as error:
                field = self._fields[len(row)]
                raise SerializationError(f"{self._model.__name__}.{field} {error}") from error
        if len(self._plans) < _MAX_SHAPES:
            self._plans[shape] = [(column, encode) for column, encode, _ in self._encoders if row[column] is not None]
        return row

    def decode(self, document: Document, row_id: Any = None) -> _T:
        """Return the object of a document; `row_id` is for messages, where the document has no id.

        Raises:
            CorruptRowError: A column cannot be read; the message names table, column and id.
        """
        return self.decode_all([document], [row_id])[0]

    def decode_all(self, documents: Sequence[Document], row_ids: Iterable[Any] = ()) -> list[_T]:
        """Return the objects of documents, in their order; see `decode`."""
        try:
            items = self._decoder.decode("[" + ",".join(documents) + "]")  # type: ignore[arg-type]
            for item in items:
                for field in self._times:
                    time = getattr(item, field)
                    if time is not None and time.tzinfo is not UTC:
                        setattr(item, field, _to_utc(time))
        except (ValueError, TypeError, RecursionError) as error:
            for document, row_id in zip_longest(documents, row_ids):
                self._find_what_is_wrong(document, row_id)
            raise CorruptRowError(f"a row of {self.name} cannot be read: {error}") from error
        return [self._model(**msgspec.structs.asdict(item)) for item in items] if self._is_struct else items

    def _find_what_is_wrong(self, document: Document, row_id: Any) -> None:
        """Raise an error that names the first column of a document that cannot be read; do nothing if all can be."""
        text = document if isinstance(document, str) else document.decode(errors="surrogateescape")
        values = json.loads(text)
        for column, field in zip(self.columns, self._fields, strict=True):
            try:
                self._check_value(values[field], self._hints[field])
            except (ValueError, RecursionError) as error:
                row_id = values["id"] if row_id is None else row_id
                raise CorruptRowError(f"{self.name}.{column} of id {row_id!r} cannot be read: {error}") from error

    def _check_value(self, value: Any, kind: Any) -> None:
        if isinstance(value, str) and value.startswith(UNPARSED):
            value = msgspec.json.decode(value.removeprefix(UNPARSED))
        _check_json(value)
        found = msgspec.convert(value, kind)
        if isinstance(found, datetime):
            _to_utc(found)


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
        ("external_token", _optional(TOKEN)),
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


_EXACT_FIELDS = (
    *("id", "step_id", "active", "persistence_data", "event_name", "event_key", "event_published", "event_data"),
    *("step_name", "retry_count", "children", "context_item", "predecessor_id", "outcome", "scope"),
    "extension_attributes",
)
_OTHER_FIELDS = ("status", "sleep_until", "start_time", "end_time")
_STATUS_TYPES = {PointerStatus, str}
_status = attrgetter("status")
_exact_values = attrgetter(*_EXACT_FIELDS)
_other_values = attrgetter(*_OTHER_FIELDS)
_encode_others = msgspec.msgpack.Encoder().encode
_decode_others = msgspec.msgpack.Decoder().decode
_MARSHAL_VERSION = 2
"""The last one that writes the same value the same way whoever else refers to it."""
_NO_FINGERPRINT = (ValueError, TypeError, OverflowError, RecursionError)


def fingerprints(pointers: Sequence[ExecutionPointer]) -> list[bytes | None]:
    """Return bytes for each pointer that differ when its row would, ten times faster than its row; None for none.

    They keep apart what JSON does not, such as NaN and null, or 1 and 1.0, and types that look alike: marshal writes a
    set and a list differently and refuses a subclass. Statuses and times, which it does not take, are MessagePack.
    """
    try:
        if _STATUS_TYPES.issuperset(map(type, map(_status, pointers))):
            return [
                marshal.dumps((_exact_values(pointer), _encode_others(_other_values(pointer))), _MARSHAL_VERSION)
                for pointer in pointers
            ]
    except _NO_FINGERPRINT:
        pass
    if len(pointers) == 1:
        return [None]
    return [mark for pointer in pointers for mark in fingerprints([pointer])]


def is_exact(fingerprint: bytes, pointer: ExecutionPointer) -> bool:
    """Tell whether a fingerprint has the values of its pointer: marshal writes NumPy's numbers and texts as bytes."""
    return bool(marshal.loads(fingerprint)[0] == _exact_values(pointer))  # noqa: S302  # made above


def encode_fingerprint(fingerprint: bytes) -> Row:
    """Return the row of the pointer that has an exact fingerprint."""
    exact, others = marshal.loads(fingerprint)  # noqa: S302  # made above
    values = dict(zip(_EXACT_FIELDS + _OTHER_FIELDS, (*exact, *_decode_others(others)), strict=True))
    return EXECUTION_POINTERS.encode_values([values[column] for column in EXECUTION_POINTERS.columns])


def encode_argument(name: str, codec: Codec, value: Any) -> Any:
    """Return one argument of a call as a parameter of a query.

    Raises:
        SerializationError: The value cannot be stored; the message names the argument.
    """
    try:
        return codec.encode(value)
    except ValueError as error:
        raise SerializationError(f"{name} {error}") from error


def wrong_type(expected: type, value: object) -> SerializationError:
    """Return the error of a call that was given something else than an object of a class, without showing it."""
    return SerializationError(f"expected {expected.__name__}, not {type(value).__name__}")


def to_utc(name: str, value: datetime) -> datetime:
    """Return a time as a plain `datetime` in UTC: subtracting times of one other zone ignores its summer time.

    https://docs.python.org/3/library/datetime.html#datetime-objects (aware arithmetic within one zone)

    Raises:
        SerializationError: It is not a time, is naive or is out of range in UTC; the message names the argument.
    """
    if type(value) is type(EPOCH) and value.tzinfo is UTC:
        return value
    try:
        return _to_utc(value)
    except ValueError as error:
        raise SerializationError(f"{name} {error}") from error


def encode_bound(name: str, value: datetime) -> str:
    """Return a time as an upper bound that takes in its whole microsecond, nanoseconds of the reference included.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    return to_utc(name, value).isoformat(timespec="microseconds").replace("+00:00", "999+00:00")


def epoch_ms(name: str, value: datetime) -> int:
    """Return a time in epoch milliseconds, cut downwards.

    Raises:
        SerializationError: The time is naive; the message names the argument.
    """
    return (to_utc(name, value) - EPOCH) // timedelta(milliseconds=1)


def encode_ids(ids: Iterable[str | int]) -> str:
    """Return ids as the JSON array that a query takes apart."""
    return _json_encoder.encode(list(ids)).decode()
