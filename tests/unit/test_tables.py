import json
from array import array
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wfe_sql
from wfe_sql.arguments import Row, encode_bound, encode_ms_bound
from wfe_sql.codecs import JSON as JSON_CODEC
from wfe_sql.codecs import TIME
from wfe_sql.damaged import UNPARSED
from wfe_sql.errors import CorruptRowError, SerializationError
from wfe_sql.models import ExecutionPointer, PointerStatus, WorkflowInstance
from wfe_sql.operations.fingerprints import encode_fingerprint, fingerprints, is_exact
from wfe_sql.tables import EXECUTION_POINTERS, WORKFLOWS
from wfe_sql.testing import full_pointer

settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
TIMES = st.datetimes(
    min_value=datetime(1, 1, 3),
    max_value=datetime(9999, 12, 29),
    timezones=st.timezones() | st.just(UTC) | st.just(timezone(timedelta(hours=14))),
)
UTC_TIMES = TIMES.map(lambda time: time.astimezone(UTC))


PARSED = {"persistence_data", "event_data", "children", "context_item", "outcome", "scope", "extension_attributes"}
"""Columns of a pointer that are JSON."""


def document(row: Row) -> str:
    """Return a pointer's row as a query returns it."""
    columns = {
        column: json.loads(value) if column in PARSED and value is not None else value for column, value in row.items()
    }
    return json.dumps(columns | {"active": bool(row["active"]), "event_published": bool(row["event_published"])})


def decoded(**changed: Any) -> ExecutionPointer:
    """Return the pointer of a document with these values."""
    values = json.loads(document(EXECUTION_POINTERS.encode(full_pointer(id="p1"))))
    return EXECUTION_POINTERS.decode(json.dumps(values | changed))


@given(JSON)
def test_json_comes_back(value: Any) -> None:
    pointer = full_pointer(outcome=value)
    row = EXECUTION_POINTERS.encode(pointer)
    assert EXECUTION_POINTERS.decode(document(row)) == pointer


@given(st.floats(min_value=1e15, allow_infinity=False))
def test_large_floats_are_written_without_an_exponent_and_stay_floats(value: float) -> None:
    text = JSON_CODEC.encode([value, "1e16", {"a": -value}])
    first, word, inner = json.loads(text)
    assert (first, word, inner) == (value, "1e16", {"a": -value})
    assert isinstance(first, float)
    assert "e" not in text.replace('"1e16"', "")


@given(TIMES)
def test_times_come_back(value: datetime) -> None:
    text = TIME.encode(value)
    assert datetime.fromisoformat(text) == value.astimezone(UTC)
    assert text.endswith("+00:00")
    read = decoded(sleep_until=text).sleep_until
    assert read == value.astimezone(UTC)
    assert read is not None
    assert read.tzinfo is UTC


@given(UTC_TIMES, UTC_TIMES)
def test_text_sorts_as_time_and_a_bound_takes_in_its_microsecond(one: datetime, other: datetime) -> None:
    text, bound = TIME.encode(one), encode_bound("as_of", other)
    assert (text < TIME.encode(other)) == (one < other)
    assert (text <= bound) == (one <= other)


@pytest.mark.parametrize(
    ("microsecond", "text"),
    [
        (0, "2026-05-28T20:26:40+00:00"),
        (500_000, "2026-05-28T20:26:40.500+00:00"),
        (1_000, "2026-05-28T20:26:40.001+00:00"),
        (123_456, "2026-05-28T20:26:40.123456+00:00"),
        (1, "2026-05-28T20:26:40.000001+00:00"),
    ],
)
def test_times_have_the_fewest_decimals(microsecond: int, text: str) -> None:
    assert TIME.encode(datetime(2026, 5, 28, 20, 26, 40, microsecond, UTC)) == text


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-05-28T20:26:43Z", datetime(2026, 5, 28, 20, 26, 43, tzinfo=UTC)),
        ("2026-05-28T22:26:43+02:00", datetime(2026, 5, 28, 20, 26, 43, tzinfo=UTC)),
    ],
)
def test_times_that_others_wrote(text: str, time: datetime) -> None:
    read = decoded(sleep_until=text).sleep_until
    assert read == time
    assert read is not None
    assert read.tzinfo is UTC


@given(TIMES)
def test_epoch_milliseconds_are_cut_downwards(value: datetime) -> None:
    ms = encode_ms_bound("as_at", value)
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert start <= value.astimezone(UTC) < start + timedelta(milliseconds=1)


@given(TIMES)
def test_epoch_milliseconds_for_a_host_are_rounded_up(value: datetime) -> None:
    ms = wfe_sql.epoch_ms(value)
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert start - timedelta(milliseconds=1) < value.astimezone(UTC) <= start


def test_a_naive_time_has_no_epoch_milliseconds() -> None:
    with pytest.raises(SerializationError, match="time is naive"):
        wfe_sql.epoch_ms(datetime(2026, 5, 28))


def test_times_beyond_the_calendar_in_utc() -> None:
    with pytest.raises(SerializationError, match="as_of is out of range in UTC"):
        encode_bound("as_of", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))))


class Money(float):
    pass


class Word(str):
    __slots__ = ()


def test_subclasses_of_json_types_are_stored_as_those_types() -> None:
    value = {"money": Money(1.5), "word": Word("w"), "status": PointerStatus.Running, "pair": (1, 2), "on": True}
    assert JSON_CODEC.encode(value) == '{"money":1.5,"word":"w","status":"Running","pair":[1,2],"on":true}'


def test_an_error_names_the_field_as_the_model_has_it() -> None:
    instance = WorkflowInstance(workflow_definition_id="", version=1, data=None)
    with pytest.raises(SerializationError, match="WorkflowInstance.workflow_definition_id must not be empty"):
        WORKFLOWS.encode(instance)
    with pytest.raises(ValueError, match="ExecutionPointer.step_id"):
        EXECUTION_POINTERS.encode(ExecutionPointer(step_id=2**63))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("step_id", "three"),
        ("step_id", 3.5),
        ("step_id", None),
        ("active", 2),
        ("active", "yes"),
        ("status", "Finished"),
        ("status", None),
        ("sleep_until", "tomorrow"),
        ("sleep_until", "2026-05-28T20:26:40"),
        ("sleep_until", 5),
        ("persistence_data", UNPARSED + "{"),
        ("persistence_data", UNPARSED + "NaN"),
        ("persistence_data", UNPARSED + "1e999"),
        ("persistence_data", "\ud800"),
        ("persistence_data", UNPARSED + "[" * 100_000),
        ("children", None),
        ("children", ["c1", 2]),
        ("scope", "outer"),
        ("extension_attributes", []),
        ("step_name", [255]),
        ("step_name", "\udcff"),
        ("retry_count", [49]),
    ],
)
def test_a_column_that_cannot_be_read_is_named(column: str, value: Any) -> None:
    values = json.loads(document(EXECUTION_POINTERS.encode(full_pointer(id="p1"))))
    text = json.dumps(values | {column: value})
    careful = text.encode() if UNPARSED[1:] in text else text
    with pytest.raises(CorruptRowError, match=f"^execution_pointers.{column} of id 'p1' cannot be read"):
        EXECUTION_POINTERS.decode(careful)


class Look(Enum):
    """Values that MessagePack writes like a PointerStatus."""

    Running = "Running"


def test_a_fingerprint_that_does_not_have_the_values_is_not_exact() -> None:
    pointer = full_pointer(status="Running")
    (mark,) = fingerprints([pointer])
    assert mark is not None
    assert is_exact(mark, pointer)
    assert encode_fingerprint(mark) == EXECUTION_POINTERS.encode(pointer)
    buffer = full_pointer(outcome=array("d", [1.5]))  # marshal accepts it, like NumPy's numbers
    without_mark: Any = full_pointer(status=Look.Running)
    again, mark, none = fingerprints([pointer, buffer, without_mark])
    assert again == fingerprints([pointer])[0]
    assert mark is not None
    assert not is_exact(mark, buffer)
    assert none is None
