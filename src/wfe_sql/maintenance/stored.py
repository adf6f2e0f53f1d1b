"""Rows as they are stored: what dumping, copying, checking and listing go by, whatever the backend.

A row here is what a `page_` query returns: text and integers, with times and JSON as text and booleans as 0 or 1. Read
with care, column by column, it becomes a document: plain JSON, in which equal values are equal text.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from wfe_sql.errors import CorruptRowError
from wfe_sql.models import CommandName, PointerStatus, WorkflowStatus
from wfe_sql.rows import JSON, TIME

Document = dict[str, Any]
"""A row's values by column, as plain JSON."""


class Column(NamedTuple):
    """One column.

    Attributes:
        name: Its name.
        read: Returns its value as plain JSON, or raises.
        optional: Whether NULL is a value.
        portable: Turns a value that can be read into what every backend stores as this value.
    """

    name: str
    read: Callable[[Any], Any]
    optional: bool = False
    portable: Callable[[Any], Any] | None = None


def read_text(value: Any) -> str:
    """Return what a column of text holds, or raise a ValueError."""
    if type(value) is not str:
        raise ValueError(f"is no text: {value!r}")
    return value


def read_integer(value: Any) -> int:
    """Return what a column of integers holds, or raise a ValueError."""
    if type(value) is not int:
        raise ValueError(f"is no integer: {value!r}")
    return value


def read_time(value: Any) -> str:
    """Return a time in the form in which this library stores it, or raise a ValueError."""
    return str(TIME.encode(datetime.fromisoformat(read_text(value))))


_SORTS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?:\d{3}){1,3})?\+00:00", re.ASCII)
_ODD_DECIMALS = re.compile(r"\.(?!(?:\d{3}){1,3}\D)")


def _portable_time(value: str) -> str:
    """Return a time with 0, 3, 6 or 9 decimals, so that it sorts as text; PostgreSQL leaves out zeros at the end."""
    return read_time(value) if _ODD_DECIMALS.search(value) else value


def _read_boolean(value: Any) -> bool:
    if value != 0 and value != 1:
        raise ValueError(f"is neither 0 nor 1: {value!r}")
    return bool(value)


def _json_of(shape: Any) -> Callable[[Any], Any]:
    decoder = msgspec.json.Decoder(shape)

    def read(value: Any) -> Any:
        decoded = decoder.decode(read_text(value))
        return _without_negative_zeros(decoded) if _NEGATIVE_ZERO.search(value) else decoded

    return read


_NEGATIVE_ZERO = re.compile(r"-0(?:\.0|[eE])")


def _without_negative_zeros(value: Any) -> Any:
    """Return JSON with 0.0 for -0.0, which equals it, and which PostgreSQL does not keep apart."""
    if isinstance(value, dict):
        return {key: _without_negative_zeros(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_negative_zeros(inner) for inner in value]
    return 0.0 if isinstance(value, float) and value == 0 else value


_EXPONENT = re.compile(r"[0-9][eE]")


def _portable_json(value: str) -> str:
    """Return JSON without exponents, as the reference writes them: PostgreSQL would read 1e16 as an integer."""
    return str(JSON.encode(msgspec.json.decode(value))) if _EXPONENT.search(value) else value


def _word_of(kind: type[StrEnum]) -> Callable[[Any], str]:
    return lambda value: kind(value).value


class StoredTable:
    """The columns of one table in the order of its queries.

    Args:
        name: The table's name.
        columns: What its `page_` query returns first, and its `import_` query takes.
        id_column: The column that error messages know a row by; None for the number that comes after the columns.
    """

    def __init__(self, name: str, columns: Sequence[Column], *, id_column: str | None) -> None:
        self.name = name
        self.columns = columns
        self.column_names = tuple(column.name for column in columns)
        self._id_at = -1 if id_column is None else self.column_names.index(id_column)

    def id_of(self, row: Sequence[Any]) -> Any:
        """Return what error messages know the row by."""
        return row[self._id_at]

    def read(self, row: Sequence[Any]) -> tuple[Document, dict[str, str]]:
        """Return the row as a document, and what is wrong with each column that cannot be read."""
        document: Document = {}
        problems: dict[str, str] = {}
        for column, value in zip(self.columns, row, strict=False):
            if value is None and column.optional:
                document[column.name] = None
                continue
            try:
                document[column.name] = column.read(value)
            except (ValueError, msgspec.MsgspecError, RecursionError, OverflowError) as error:
                problems[column.name] = str(error)
        return document, problems

    def parameters(self, row: Sequence[Any]) -> dict[str, Any]:
        """Return a row that can be read as the parameters of the table's `import_` query, of any backend."""
        return {
            column.name: value if value is None or column.portable is None else column.portable(value)
            for column, value in zip(self.columns, row, strict=False)
        }

    def odd_times(self, row: Sequence[Any]) -> list[tuple[str, str]]:
        """Return times that are not in the form that sorts as text, with the names of their columns."""
        return [
            (column.name, value)
            for column, value in zip(self.columns, row, strict=False)
            if column.read is read_time and isinstance(value, str) and not _SORTS.fullmatch(value)
        ]

    def document(self, row: Sequence[Any]) -> Document:
        """Return the row as a document.

        Raises:
            CorruptRowError: A column cannot be read; the message names table, column and id.
        """
        document, problems = self.read(row)
        for column, problem in problems.items():
            raise CorruptRowError(f"{self.name}.{column} of id {self.id_of(row)!r} cannot be read: {problem}")
        return document


def _text(name: str, *, optional: bool = False) -> Column:
    return Column(name, read_text, optional)


def _integer(name: str, *, optional: bool = False) -> Column:
    return Column(name, read_integer, optional)


def _boolean(name: str) -> Column:
    return Column(name, _read_boolean)


def _time(name: str, *, optional: bool = False) -> Column:
    return Column(name, read_time, optional, _portable_time)


_read_json = _json_of(Any)


def _json(name: str, *, optional: bool = False) -> Column:
    return Column(name, _read_json, optional, _portable_json)


_CLAIM = [
    _text("claim_token", optional=True),
    _text("claim_worker_id", optional=True),
    _time("claim_expires_at", optional=True),
]

WORKFLOWS = StoredTable(
    "workflows",
    [
        _text("id"),
        _text("name"),
        _text("root_workflow_id", optional=True),
        _text("definition_id"),
        _integer("version"),
        _text("description", optional=True),
        _text("reference", optional=True),
        Column("status", _word_of(WorkflowStatus)),
        _json("data"),
        _integer("next_execution", optional=True),
        _time("create_time"),
        _time("complete_time", optional=True),
        *_CLAIM,
        _integer("revision"),
    ],
    id_column="id",
)

EXECUTION_POINTERS = StoredTable(
    "execution_pointers",
    [
        _text("workflow_id"),
        _text("id"),
        _integer("step_id"),
        _boolean("active"),
        Column("status", _word_of(PointerStatus)),
        _time("sleep_until", optional=True),
        _json("persistence_data", optional=True),
        _time("start_time", optional=True),
        _time("end_time", optional=True),
        _text("event_name", optional=True),
        _text("event_key", optional=True),
        _boolean("event_published"),
        _json("event_data", optional=True),
        _text("step_name", optional=True),
        _integer("retry_count"),
        Column("children", _json_of(list[str])),
        _json("context_item", optional=True),
        _text("predecessor_id", optional=True),
        _json("outcome", optional=True),
        Column("scope", _json_of(list[str])),
        Column("extension_attributes", _json_of(dict[str, Any]), portable=_portable_json),
    ],
    id_column="id",
)

DEFINITION_SEQUENCES = StoredTable(
    "definition_sequences", [_text("definition_id"), _integer("next_num")], id_column="definition_id"
)

EVENTS = StoredTable(
    "events",
    [
        _text("id"),
        _text("event_name"),
        _text("event_key"),
        _json("event_data"),
        _time("event_time"),
        _boolean("is_processed"),
        *_CLAIM,
    ],
    id_column="id",
)

EVENT_SUBSCRIPTIONS = StoredTable(
    "event_subscriptions",
    [
        _text("id"),
        _text("workflow_id"),
        _integer("step_id"),
        _text("execution_pointer_id"),
        _text("event_name"),
        _text("event_key"),
        _time("subscribe_as_of"),
        _json("subscription_data", optional=True),
        _text("external_token", optional=True),
        _text("external_worker_id", optional=True),
        _time("external_token_expiry", optional=True),
        _boolean("terminated"),
    ],
    id_column="id",
)

SCHEDULED_COMMANDS = StoredTable(
    "scheduled_commands",
    [
        Column("command_name", _word_of(CommandName)),
        _text("data"),
        _integer("execute_time"),
        *_CLAIM,
        _integer("rescheduled_time", optional=True),
    ],
    id_column=None,
)

EXECUTION_ERRORS = StoredTable(
    "execution_errors",
    [_time("error_time"), _text("workflow_id"), _text("execution_pointer_id"), _text("message")],
    id_column=None,
)
