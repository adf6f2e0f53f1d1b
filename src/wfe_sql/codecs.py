"""How single values are stored: the only place that knows how columns are encoded.

Booleans are 0 and 1, JSON is text, and times are RFC 3339 text in UTC ending "+00:00" with 0, 3 or 6 decimals, the
fewest that lose nothing, as chrono writes them in the reference: such text sorts as time, and equal times are equal
text. The reference may write nine decimals; they are cut to microseconds on reading.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from math import isfinite
from typing import Any, NamedTuple

import msgspec

MAX_JSON_DEPTH = 127
"""How deep lists and dicts may be nested: serde_json, which the reference reads with, refuses more."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The time at which epoch milliseconds start."""


def _as_it_is(value: Any) -> Any:
    return value


class Codec(NamedTuple):
    """How values of one kind are stored. A ValueError says what is wrong with a value.

    Attributes:
        encode: Checks a value of a model and turns it into the value of a column.
        read: Turns the value of a column, whoever wrote it, into plain JSON in which equal values are equal text.
        portable: Turns a readable value of a column into one that every backend stores the same way.
    """

    encode: Callable[[Any], Any]
    read: Callable[[Any], Any]
    portable: Callable[[Any], Any] = _as_it_is


def _encode_text(value: Any) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"contains a lone surrogate at index {error.start}, which cannot be encoded as UTF-8"
        ) from error
    return value


def _encode_id_to_find(value: Any) -> str:
    text = _encode_text(value)
    if "\0" in text:
        raise ValueError(f"contains a NUL character, which no id may have: {text!r}")
    return text


def _encode_id(value: Any) -> str:
    if type(value) is str and value.isascii() and value and "\0" not in value:
        return value
    text = _encode_id_to_find(value)
    if not text:
        raise ValueError("must not be empty")
    return text


_TERMINATED = "wfe-sql:terminated"
"""The token with which PostgreSQL's `event_subscriptions.sql` hides terminated subscriptions from the reference."""


def _encode_token(value: Any) -> str:
    text = _encode_id(value)
    if text == _TERMINATED:
        raise ValueError(f"must not be {text!r}, which stands for a terminated subscription")
    return text


def _read_text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"is not text: {value!r}")
    return value


_LEAST, _GREATEST = -(2**63), 2**63 - 1


def _encode_integer(value: Any) -> int:
    if type(value) is int and _LEAST <= value <= _GREATEST:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be an int, not {type(value).__name__}")
    if not _LEAST <= value <= _GREATEST:
        raise ValueError(f"does not fit into 64 bits: {value}")
    return value


def _read_integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"is not an integer: {value!r}")
    return value


def _encode_boolean(value: Any) -> int:
    if not isinstance(value, bool):
        raise ValueError(f"must be a bool, not {type(value).__name__}")
    return int(value)


def _read_boolean(value: Any) -> bool:
    if value != 0 and value != 1:
        raise ValueError(f"is neither 0 nor 1: {value!r}")
    return bool(value)


def _encode_time(value: Any) -> str:
    utc = utc_of(value)
    if utc.microsecond and not utc.microsecond % 1000:
        return utc.isoformat(timespec="milliseconds")
    return f"{json_encoder.encode(utc)[1:-2].decode()}+00:00"  # it ends in Z, and is five times as fast


def utc_of(value: Any) -> datetime:
    """Return a time as a plain `datetime` in UTC, or raise a ValueError that says what is wrong with it."""
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime):
        raise ValueError(f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(f"is naive: {value!r}; give it a time zone, such as datetime.UTC")
    try:
        # Subclasses, such as freezegun's and pendulum's, have their own arithmetic; this gives a plain datetime.
        return EPOCH - EPOCH.__sub__(value)
    except OverflowError as error:
        raise ValueError(f"is out of range in UTC: {value!r}") from error


def _read_time(value: Any) -> str:
    return _encode_time(datetime.fromisoformat(_read_text(value)))


_ODD_DECIMALS = re.compile(r"\.(?!(?:\d{3}){1,3}\D)")


def _portable_time(value: str) -> str:
    """Return a time with 0, 3, 6 or 9 decimals, so that it sorts as text; PostgreSQL leaves out zeros at the end."""
    return _read_time(value) if _ODD_DECIMALS.search(value) else value


_SORTS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?:\d{3}){0,2}(?!000)\d{3})?\+00:00", re.ASCII)


def is_sortable(time: str) -> bool:
    """Tell whether a stored time is in the form that sorts as text, in which equal times are equal text."""
    return _SORTS.fullmatch(time) is not None


_ALWAYS_JSON = {int, bool, type(None)}

_LARGE_FLOAT = 1e16
"""The smallest float that is written with an exponent."""


def check_json(value: Any, depth: int = 0) -> bool:
    """Refuse what msgspec would silently change (NaN to null, bytes to text, the key 1 to "1").

    Returns whether there is a float that is written with an exponent.
    """
    has_large_float = False
    if isinstance(value, str):
        _encode_text(value)
    elif isinstance(value, dict | list | tuple):
        if depth == MAX_JSON_DEPTH:
            raise ValueError(
                f"cannot be stored as JSON: it is nested more than {MAX_JSON_DEPTH} levels deep, or contains itself"
            )
        if isinstance(value, dict):
            for key in value:
                if type(key) is not str or not key.isascii():
                    _check_json_key(key)
            value = value.values()
        for inner in value:
            if type(inner) not in _ALWAYS_JSON and check_json(inner, depth + 1):
                has_large_float = True
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"cannot be stored as JSON: {value}")
        has_large_float = abs(value) >= _LARGE_FLOAT
    elif value is not None and not isinstance(value, int):
        raise ValueError(f"cannot be stored as JSON: {type(value).__name__} is not a JSON type")
    return has_large_float


def _check_json_key(key: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"cannot be stored as JSON: object keys must be str, not {type(key).__name__}: {key!r}")
    _encode_text(key)


def _as_builtin(value: Any) -> Any:
    """Let msgspec encode subclasses of the JSON types, such as a NumPy float."""
    for builtin in (str, int, float, dict, list):
        if isinstance(value, builtin):
            return builtin(value)  # type: ignore[arg-type]
    raise TypeError(f"cannot be stored as JSON: {type(value).__name__}")


json_encoder = msgspec.json.Encoder(enc_hook=_as_builtin)


def _plain_float(text: str) -> float:
    if "e" in text:
        raise ValueError("has an exponent")
    return float(text)


_json_decoder = msgspec.json.Decoder(float_hook=_plain_float)


def _encode_json(value: Any) -> str:
    """Return JSON text; a value that decodes to itself, which is quick to test, needs no further check."""
    try:
        encoded = json_encoder.encode(value)
        if _json_decoder.decode(encoded) == value and encoded.count(b"[") + encoded.count(b"{") <= MAX_JSON_DEPTH:
            return encoded.decode()
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass  # the checks below say what is wrong, if anything
    has_large_float = check_json(value)
    text = json_encoder.encode(value).decode()
    return _JSON_TOKEN.sub(_without_exponent, text) if has_large_float else text


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.e-]*')


def _without_exponent(token: re.Match[str]) -> str:
    """Write 1e16 as 10000000000000000.0: jsonb would drop the exponent, and forget that it was a float.

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
    return json_encoder.encode(value).decode() if value else "[]"


def _encode_object(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"must be a dict, not {type(value).__name__}")
    return _encode_json(value) if value else "{}"


def _read_json_of(shape: Any) -> Callable[[Any], Any]:
    decoder = msgspec.json.Decoder(shape)

    def read(value: Any) -> Any:
        decoded = decoder.decode(_read_text(value))
        return _without_negative_zeros(decoded) if _NEGATIVE_ZERO.search(value) else decoded

    return read


_NEGATIVE_ZERO = re.compile(r"-0(?:\.0|[eE])")


def _without_negative_zeros(value: Any) -> Any:
    """Return JSON with 0.0 for -0.0: they are equal, and PostgreSQL does not distinguish them."""
    if isinstance(value, dict):
        return {key: _without_negative_zeros(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_negative_zeros(inner) for inner in value]
    return 0.0 if isinstance(value, float) and value == 0 else value


_EXPONENT = re.compile(r"[0-9][eE]")


def _portable_json(value: str) -> str:
    """Return JSON without exponents, as the reference writes them: PostgreSQL would read 1e16 as an integer."""
    return _encode_json(msgspec.json.decode(value)) if _EXPONENT.search(value) else value


def words(kind: type[StrEnum]) -> Codec:
    """Return the codec for the members of an enum."""
    texts = {member.value: member.value for member in kind}

    def encode(value: Any) -> str:
        return (texts.get(value) if isinstance(value, str) else None) or kind(value).value

    return Codec(encode, lambda value: kind(value).value)


ID = Codec(_encode_id, _read_text)
ID_TO_FIND = Codec(_encode_id_to_find, _read_text)
TOKEN = Codec(_encode_token, _read_text)
TEXT = Codec(_encode_text, _read_text)
INTEGER = Codec(_encode_integer, _read_integer)
BOOLEAN = Codec(_encode_boolean, _read_boolean)
TIME = Codec(_encode_time, _read_time, _portable_time)
JSON = Codec(_encode_json, _read_json_of(Any), _portable_json)
STRINGS = Codec(_encode_strings, _read_json_of(list[str]))
OBJECT = Codec(_encode_object, _read_json_of(dict[str, Any]), _portable_json)
