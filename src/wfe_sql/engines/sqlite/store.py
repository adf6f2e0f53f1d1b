"""A SQLite file as a store: how it is opened, checked, made and brought up to date."""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from wfe_sql.engines.stores import VERSION, Columns, columns_by_table, later_version
from wfe_sql.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreVersionError,
)
from wfe_sql.queries import QuerySet
from wfe_sql.urls import SqliteTarget

Durability = Literal["full", "normal"]

_CLAIM = {"claim_token", "claim_worker_id", "claim_expires_at"}
_ADDED_BY_US = {
    "workflows": _CLAIM | {"revision"},
    "events": _CLAIM,
    "scheduled_commands": _CLAIM | {"rescheduled_time"},
}
"""Columns that tables of the reference lack; what only reads such a file gets stand-ins for them."""
_ADDED_SINCE_1_0_0 = {"workflows": {"name", "root_workflow_id"}}
"""Columns that tables of the reference's first release lack."""


class SqliteStore:
    """Opens connections to one SQLite database; its methods are called on the threads of these connections."""

    def __init__(
        self, target: SqliteTarget, queries: QuerySet, durability: Durability, busy_timeout: timedelta
    ) -> None:
        """Set up without connecting; see `SqlitePersistenceProvider` for the options."""
        if durability not in ("full", "normal"):
            raise StoreError(f"durability must be 'full' or 'normal', not {durability!r}")
        if busy_timeout < timedelta(0):
            raise StoreError(f"busy_timeout must not be negative: {busy_timeout}")
        self.target = target
        self._queries = queries
        self._durability = durability
        self._busy_timeout = busy_timeout.total_seconds()

    def open_writer(self) -> sqlite3.Connection:
        """Open a connection that writes, and make the store where it does not exist.

        A file that is no store of ours is refused before anything of it is changed.
        """
        path = self.target.path
        if path is not None and path.exists():
            self._check_before_any_change()
        connection = self._connect(self.target.mode, busy_timeout=0)
        try:
            if path is not None:
                self._use_wal(connection)
            run = self._runner(connection)
            run("use_full_durability" if self._durability == "full" else "use_normal_durability")
            self.ensure_store_exists(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def open_reader(self, *, on_loop: bool = False) -> sqlite3.Connection:
        """Open a connection that only reads a store that exists.

        One for the event loop is opened on another thread: the loop finds the schema read, and waits for no lock.
        """
        connection = self._connect(self.target.mode, busy_timeout=self._busy_timeout, any_thread=on_loop)
        try:
            run = self._runner(connection)
            run("enforce_foreign_keys")
            if self.target.mode == "ro":
                self._make_readable(connection)
            run("refuse_writes")
            if on_loop:
                self._columns(connection)
                run("wait_for_no_lock")
        except BaseException:
            connection.close()
            raise
        return connection

    def ensure_store_exists(self, connection: sqlite3.Connection) -> None:
        """Make the tables, columns and indexes that are missing, in one transaction."""
        run = self._runner(connection)
        run("suspend_foreign_keys")
        try:
            self.begin_write(connection)
            self._bring_up_to_date(connection)
            run("commit")
        except BaseException:
            if connection.in_transaction:
                run("rollback")
            raise
        finally:
            run("enforce_foreign_keys")

    def has_log(self) -> bool:
        """Tell whether a write-ahead log lies beside the file."""
        return Path(f"{self.target}-wal").exists()

    def remove_empty_log(self) -> None:
        """Let SQLite remove a log that it made only to read a file: a connection that may write does so on closing."""
        log = Path(f"{self.target}-wal")
        if log.exists() and log.stat().st_size == 0:
            connection = self._connect("rw", busy_timeout=self._busy_timeout)
            try:
                self._columns(connection)
            finally:
                connection.close()

    def error(self, error: sqlite3.Error) -> StoreError:
        """Return our error for one of the driver's, which becomes its cause."""
        kind, what = _ERRORS.get(_primary_code(error), (StoreError, "cannot be worked with"))
        mapped = kind(f"{self.target} {what}: {error}")
        mapped.__cause__ = error
        return mapped

    def _runner(self, connection: sqlite3.Connection) -> Callable[[str], Any]:
        return partial(self._queries.run, connection, params={})

    def _connect(self, mode: str, *, busy_timeout: float, any_thread: bool = False) -> sqlite3.Connection:
        path = self.target.path
        return sqlite3.connect(
            ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={mode}",
            uri=path is not None,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=not any_thread,
            cached_statements=len(self._queries),
        )

    def begin_write(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that writes, as soon as no other connection does."""
        self._when_free(connection, "begin_write")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        mode = self._when_free(connection, "use_wal")
        if mode != "wal":
            raise StoreUnavailableError(f"{self.target} cannot have a write-ahead log; its mode stays {mode}")

    def _when_free(self, connection: sqlite3.Connection, query: str) -> Any:
        """Run a query as soon as other connections let it, or fail after the busy timeout.

        SQLite's own waiting is not for a writer: it sleeps longer and longer, up to 100 ms, so that of two busy
        processes one hardly ever gets its turn; and it does not wait at all for the change to a write-ahead log.
        """
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                return self._queries.run(connection, query, {})
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.0005, 0.0015))

    def _check_before_any_change(self) -> None:
        """Check an existing file through a connection that can change neither it nor, by closing, its log."""
        had_log = self.has_log()
        try:
            connection = self._connect("ro", busy_timeout=self._busy_timeout)
            try:
                self._check(self._columns(connection), connection)
            finally:
                connection.close()
        except BaseException:
            if not had_log:
                self.remove_empty_log()
            raise

    def _check(self, columns: Columns, connection: sqlite3.Connection) -> None:
        """Refuse tables that are not those of a store, and a store of a later version."""
        if "wfe_sql_store" in columns:
            version = self._queries.run(connection, "get_store_version", {})
            if version is None or version > VERSION:
                raise later_version(self.target, version)
        addable = {table: _columns_of(table, _ADDED_BY_US, _ADDED_SINCE_1_0_0) for table in columns}
        for table, expected in self._expected_columns.items():
            missing = expected - columns.get(table, expected) - addable.get(table, set())
            if missing:
                raise StoreVersionError(
                    f"{self.target} has a table {table} that is not one of a workflow store: it has the columns "
                    f"{', '.join(sorted(columns[table]))}, and lacks {', '.join(sorted(missing))}; use another file"
                )

    def _make_readable(self, connection: sqlite3.Connection) -> None:
        """Make do with tables of the reference; refuse what must first be made or brought up to date."""
        columns = self._columns(connection)
        self._check(columns, connection)
        lacking: list[str] = []
        for table, expected in self._expected_columns.items():
            if table in columns:
                missing = expected - columns[table] - _columns_of(table, _ADDED_BY_US)
                lacking += sorted(f"{table}.{column}" for column in missing)
            elif table != "wfe_sql_store":
                lacking.append(table)
        if lacking:
            raise StoreVersionError(
                f"{self.target} cannot be only read as it is, it lacks {', '.join(lacking)}; "
                "open it once without mode=ro, which brings it up to date"
            )
        run = self._runner(connection)
        if "claim_token" not in columns["workflows"]:
            run("stand_in_for_workflows_claim")
        if "claim_token" not in columns["events"]:
            run("stand_in_for_events_claim")
        if "claim_token" not in columns["scheduled_commands"]:
            run("stand_in_for_scheduled_commands_claim")

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        run = self._runner(connection)
        columns = self._columns(connection)
        self._check(columns, connection)
        without_name = "name" not in columns.get("workflows", {"name"})
        if without_name:
            run("set_aside_workflows_without_name")
        self._create_tables(connection)
        if without_name:
            run("restore_workflows_without_name")
        elif "claim_token" not in columns.get("workflows", _CLAIM):
            run("add_workflows_claim")
        run("create_workflows_revision_trigger")
        if "claim_token" not in columns.get("events", _CLAIM):
            run("add_events_claim")
        if "claim_token" not in columns.get("scheduled_commands", _CLAIM):
            run("add_scheduled_commands_claim")
        self._queries.run(connection, "record_store_version", {"version": VERSION})

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        for table in (
            "create_wfe_sql_store_table",
            "create_workflows_table",
            "create_execution_pointers_table",
            "create_definition_sequences_table",
            "create_events_table",
            "create_event_subscriptions_table",
            "create_scheduled_commands_table",
            "create_execution_errors_table",
        ):
            self._queries.run(connection, table, {})

    def _columns(self, connection: sqlite3.Connection) -> Columns:
        return columns_by_table(self._queries.run(connection, "list_columns", {}))

    @cached_property
    def _expected_columns(self) -> Columns:
        scratch = sqlite3.connect(":memory:", isolation_level=None)
        try:
            self._create_tables(scratch)
            columns = self._columns(scratch)
        finally:
            scratch.close()
        del columns["sqlite_sequence"]
        return columns


def check_path(target: SqliteTarget) -> None:
    """Say in plain words what SQLite would only call "unable to open database file"."""
    path = target.path
    if path is None:
        return
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            raise StoreUnavailableError(f"{path} cannot be opened: the folder {folder} does not exist; make it first")
        if path.is_dir():
            raise StoreUnavailableError(f"{path} cannot be opened: it is a folder; name a file in it")
        if target.mode != "rwc" and not path.exists():
            raise StoreUnavailableError(f"{path} cannot be opened: it does not exist (mode={target.mode})")
    except PermissionError as error:
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not look into {folder}") from error
    if target.mode != "ro" and not _may(folder, os.W_OK | os.X_OK):
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not write in {folder}, where its log lies")
    wanted = os.R_OK if target.mode == "ro" else os.R_OK | os.W_OK
    if path.exists() and not _may(path, wanted):
        verb = "read" if target.mode == "ro" else "read and write"
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not {verb} it")


def _may(path: Path, mode: int) -> bool:
    """Ask without opening: to close a file drops the locks that this process has on it.

    https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _columns_of(table: str, *added: Mapping[str, set[str]]) -> set[str]:
    return set().union(*(columns.get(table, set()) for columns in added))


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "is busy: another connection held it for longer than the busy timeout"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "is locked by another statement"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "is no SQLite database"),
    sqlite3.SQLITE_FULL: (StoreFullError, "has no room left"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "may not be written"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "cannot be opened"),
    sqlite3.SQLITE_PERM: (StoreUnavailableError, "may not be accessed"),
    sqlite3.SQLITE_AUTH: (StoreUnavailableError, "may not be accessed"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "cannot be read or written"),
}
"""SQLite's primary result codes. https://sqlite.org/rescode.html"""
