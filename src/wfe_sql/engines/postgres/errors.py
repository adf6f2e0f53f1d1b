"""What PostgreSQL's errors mean here.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg

from wfe_sql.engines import UniqueViolationError, Unit
from wfe_sql.errors import (
    SerializationError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    WfeError,
)
from wfe_sql.escaping import visible
from wfe_sql.tables import (
    EVENT_SUBSCRIPTIONS,
    EVENTS,
    EXECUTION_ERRORS,
    EXECUTION_POINTERS,
    SCHEDULED_COMMANDS,
    WORKFLOWS,
    ModelTable,
)

_RETRIED = {"40001", "40P01"}
_FOREIGN_KEY_VIOLATION = "23503"

_UNIQUE_VIOLATION = "23505"
_NOT_NULL_VIOLATION = "23502"
_INSUFFICIENT_PRIVILEGE = "42501"
_PROGRAM_LIMIT = "54000"
_INTERNAL = "XX000"
_READ_ONLY = "25006"
_CANCELLED = "57014"
_NOT_FOUND = {"3F000", "42P01"}

_MEANINGS: dict[str, tuple[type[StoreError], str]] = {
    _READ_ONLY: (StoreReadOnlyError, "cannot be written"),
    "40001": (StoreBusyError, "is busy: others changed the same rows each time"),
    "40P01": (StoreBusyError, "is busy: others held the same rows each time"),
    "53100": (StoreFullError, "has no disk space left"),
    "53300": (StoreBusyError, "is busy: it accepts no more connections"),
    "55P03": (StoreBusyError, "is busy: a lock was held for too long"),
    _CANCELLED: (StoreBusyError, "is busy: a statement took longer than the statement timeout"),
    "XX001": (StoreCorruptError, "is damaged"),
    "XX002": (StoreCorruptError, "is damaged"),
}
_UNAVAILABLE_CLASSES = {"08", "28", "3D", "57"}
"""Connection failures, authentication, unknown databases, and a server that is being stopped."""
_SERVER_STOPS = {"57P01", "57P02", "57P03"}
_DATA_CLASS = "22"
_SIZE_CLASS = "54"
_VALUE_CLASSES = {"21", _DATA_CLASS, "23", _SIZE_CLASS}
"""Cardinality violations, data, constraints, and sizes."""
_STATEMENT_CLASSES = {"0A", _DATA_CLASS, "42"}
"""Unsupported features, literals in a statement, and syntax, names and types."""

_STATE_CLASSES = {"25", "40", "53", "55", "57", "58"}
"""Read-only and failed transactions, serialization failures, resources, locks and an operator's intervention."""

_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LOST_WORKER = re.compile(
    r"failure on connection|could not establish connection|connection to the remote node|connection not open|"
    r"server closed the connection|failed to COPY|could not find the intermediate result file",
    re.IGNORECASE,
)
"""What Citus says, as an internal error (XX000), when a worker is gone or a schema moves; nothing was written."""
_SHARD = re.compile(r"_\d{6,}$")
"""The suffix that Citus adds to the name of a table or constraint on a worker."""
_NAME = re.compile(r'"(\w+)"')
_INT_LIMIT = 2**31
_INT_COLUMNS = {"version", "step_id", "retry_count"}
"""Columns of 32 bits, as the reference has them; all other integers have 64."""
_INDEXED_COLUMNS = {"id", "name", "workflow_id", "definition_id", "event_name", "event_key", "command_name"}
"""Indexed text columns; the data of a scheduled command are indexed too."""
_INDEXED_DATA = {"schedule_command", "import_scheduled_commands"}
"""The queries whose `data` are those of a scheduled command."""
_WRITTEN: dict[str, ModelTable[Any]] = {
    "create_new_workflow": WORKFLOWS,
    "create_numbered_workflow": WORKFLOWS,
    "persist_workflow": WORKFLOWS,
    "insert_execution_pointers": EXECUTION_POINTERS,
    "upsert_execution_pointers": EXECUTION_POINTERS,
    "create_event": EVENTS,
    "create_event_subscription": EVENT_SUBSCRIPTIONS,
    "schedule_command": SCHEDULED_COMMANDS,
    "persist_errors": EXECUTION_ERRORS,
}
"""The table of each query whose parameters are the fields of an object; those of the others are arguments."""
_TABLES = (
    "workflows",
    "execution_pointers",
    "event_subscriptions",
    "events",
    "scheduled_commands",
    "definition_sequences",
)


def store_error(target: object, error: psycopg.Error, statement_timeout: timedelta | None = None) -> StoreError:
    """Return our error for one of the driver's, which becomes its cause.

    With the statement timeout, if it is known, so that an error that it caused has it.
    """
    code = error.sqlstate or ""
    if code == _INSUFFICIENT_PRIVILEGE:
        kind, what = StoreError, "grants this role too few privileges"
    elif code == _CANCELLED and "user request" in str(error):
        kind, what = StoreBusyError, "is busy: somebody cancelled a statement (pg_cancel_backend)"
        statement_timeout = None
    elif code in _MEANINGS:
        kind, what = _MEANINGS[code]
    elif _is_lost_worker(error):
        kind, what = StoreUnavailableError, "has lost a worker; try again"
    elif code[:2] in _UNAVAILABLE_CLASSES or (not code and isinstance(error, psycopg.OperationalError)):
        kind, what = StoreUnavailableError, "cannot be reached"
    else:
        kind, what = StoreError, "failed with an unexpected database error"
    mapped = kind(f"{target} {what}: {text_of(error)}")
    if isinstance(mapped, StoreBusyError) and code == _CANCELLED:
        mapped.timeout = statement_timeout
    mapped.__cause__ = error
    return mapped


def text_of(error: psycopg.Error) -> str:
    """Return the driver's message in one line; it may quote values."""
    return visible(" ".join(str(error).split()))


def is_lost(error: psycopg.Error, connection: psycopg.AsyncConnection[Any]) -> bool:
    """Tell whether the connection is lost, with whatever was under way on it."""
    code = error.sqlstate or ""
    return connection.closed or code[:2] == "08" or code in _SERVER_STOPS


def has_no_transactions(error: psycopg.Error) -> bool:
    """Tell whether PgBouncer refuses to begin a transaction, as in statement mode; its code has many meanings."""
    return "statement pooling mode" in str(error)


def is_of_replica(error: psycopg.Error) -> bool:
    """Tell whether the server, or the role, is read-only."""
    return error.sqlstate == _READ_ONLY


def is_retried(error: psycopg.Error) -> bool:
    """Tell whether the work may succeed if it runs again.

    It may after a serialization failure or a deadlock, and after a violation of the pointers' foreign key, which only
    happens when a workflow is deleted while somebody else changes its pointers. The application's keys do not count.
    """
    return error.sqlstate in _RETRIED or (
        error.sqlstate == _FOREIGN_KEY_VIOLATION and "execution_pointers" in str(error.diag.message_primary)
    )


def is_about_values(error: psycopg.Error) -> bool:
    """Tell whether an error comes from the values to write, and not from the state of the server.

    An error of the driver itself, without a code, does not: if it cannot read the answer, the write may be committed.
    """
    return _code(error)[:2] in _VALUE_CLASSES


def is_about_all(error: psycopg.Error) -> bool:
    """Tell whether an error comes from the server or its state, so that it concerns all units of a transaction."""
    return (error.sqlstate or "")[:2] in _STATE_CLASSES


def is_about_statement(error: psycopg.Error) -> bool:
    """Tell whether an error of a statement with valid parameters comes from how it is written."""
    return (error.sqlstate or "")[:2] in _STATEMENT_CLASSES and not is_missing_right(error)


def is_missing_right(error: psycopg.Error) -> bool:
    """Tell whether the role lacks a privilege."""
    return error.sqlstate == _INSUFFICIENT_PRIVILEGE


def may_be_missing_right(error: psycopg.Error) -> bool:
    """Tell whether the role may lack a privilege, where the error says that a table does not exist.

    PostgreSQL skips a schema that the role may not use, so that its tables seem not to exist.
    https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PRIV
    """
    return is_missing_right(error) or error.sqlstate in _NOT_FOUND


def unit_error(
    target: object, error: psycopg.Error, unit: Unit, statement_timeout: timedelta | None = None
) -> WfeError:
    """Return what an error of the driver means for the unit that raised it; see `store_error`."""
    code = _code(error)
    mapped: Exception
    if code == _UNIQUE_VIOLATION:
        column = _unique_column(error)
        mapped = _conflict(unit, column, error.diag.message_detail or "") or UniqueViolationError(column)
    elif code == _NOT_NULL_VIOLATION and _is_of_pointers(error):
        mapped = UniqueViolationError("execution_pointers.id")
    elif not code and isinstance(error, psycopg.DataError) and _refused(unit) is None:
        mapped = StoreError(
            f"{target} returned an answer that cannot be read; the write may have been committed: {text_of(error)}"
        )
    elif code == _PROGRAM_LIMIT and "index row" in (error.diag.message_primary or ""):
        mapped = _longest(unit)
    elif code[:2] in (_DATA_CLASS, _SIZE_CLASS) or isinstance(error, psycopg.DataError):
        mapped = _refused(unit) or SerializationError(f"{text_of(error)}; nothing was written")
    else:
        return store_error(target, error, statement_timeout)
    mapped.__cause__ = error
    return mapped  # type: ignore[return-value]  # the conflicts of a statement are errors of ours


def _conflict(unit: Unit, column: str, detail: str) -> Exception | None:
    """Return the error that the statement with the existing value names for this conflict.

    The detail has the value as `Key (id)=(value)`.
    """
    said = [(statement, statement.conflicts[column]) for statement in unit if column in statement.conflicts]
    _, name = column.split(".")
    for statement, error in said:
        params = statement.params
        if not isinstance(params, Sequence) and f"=({params[name]})" in detail:
            return error()
    return said[0][1]() if said else None


def _unique_column(error: psycopg.Error) -> str:
    """Return "table.column" from the constraint's name, which PostgreSQL formed from both.

    Through Citus only the error's message has the name, and there it may end in the number of a shard.
    """
    constraint = _SHARD.sub("", error.diag.constraint_name or _named(error))
    table = next((table for table in _TABLES if constraint.startswith(f"{table}_")), error.diag.table_name or "")
    column = constraint.removeprefix(f"{table}_")
    return f"{table}.{'id' if column == 'pkey' else column.removesuffix('_key')}"


def _code(error: psycopg.Error) -> str:
    """Return an error's code; an internal error from Citus may be a unique violation, by its text."""
    if error.sqlstate == _INTERNAL and "violates unique constraint" in (error.diag.message_primary or ""):
        return _UNIQUE_VIOLATION
    return error.sqlstate or ""


def _named(error: psycopg.Error) -> str:
    """Return the first name that an error's message quotes."""
    found = _NAME.search(error.diag.message_primary or "")
    return found[1] if found else ""


def _is_of_pointers(error: psycopg.Error) -> bool:
    table = error.diag.table_name or "execution_pointers"
    return table.startswith("execution_pointers") and (error.diag.column_name or _named(error)) == "workflow_id"


def _is_lost_worker(error: psycopg.Error) -> bool:
    return error.sqlstate == _INTERNAL and bool(_LOST_WORKER.search(error.diag.message_primary or ""))


class _Value(NamedTuple):
    """A value of a unit: its query, the id of its row where there are several, its column, and itself."""

    query: str
    row_id: str | None
    column: str
    value: Any

    def refused(self, why: str) -> SerializationError:
        which = "" if self.row_id is None or self.column == "id" else f" of id {self.row_id!r}"
        table = _WRITTEN.get(self.query)
        return SerializationError(
            f"{self.column}{which} (in {self.query}) {why}; nothing was written",
            field=self.column if table is None else table.field_of(self.column),
        )


def _longest(unit: Unit) -> SerializationError:
    """Return the error of the text that is too long for an index: the longest after compression, as in PostgreSQL."""
    texts = [
        found
        for found in _values(unit)
        if isinstance(found.value, str)
        and (found.column in _INDEXED_COLUMNS or (found.column == "data" and found.query in _INDEXED_DATA))
    ]
    if not texts:  # an application's own query, on a table of its own
        return SerializationError("a text is too long for an index entry, about 2,700 bytes; nothing was written")
    longest = max(texts, key=lambda found: len(zlib.compress(found.value.encode())))
    text = longest.value.encode()
    return longest.refused(
        f"has {len(text):,} bytes, and an index entry can have at most about 2,700 bytes; "
        f"it begins with {text[:40].decode(errors='ignore')!r}"
    )


def _refused(unit: Unit) -> SerializationError | None:
    """Return the error of a value that this library can encode but PostgreSQL cannot store."""
    for found in _values(unit):
        if isinstance(found.value, str) and ("\0" in found.value or _NUL_IN_JSON.search(found.value)):
            return found.refused("contains a NUL character, which PostgreSQL cannot store")
    for found in _values(unit):
        number = found.value
        if found.column in _INT_COLUMNS and isinstance(number, int) and not -_INT_LIMIT <= number < _INT_LIMIT:
            return found.refused(f"is {number}, which does not fit into the column's 32 bits")
    return None


def _values(unit: Unit) -> Iterator[_Value]:
    for statement in unit:
        params = statement.params
        for row in params if isinstance(params, Sequence) else [params]:
            row_id = row.get("id") if isinstance(params, Sequence) else None
            for column, value in row.items():
                yield _Value(statement.query, row_id, column, value)
