"""A SQLite file as a store: how it is opened, checked, made and brought up to date."""

import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from wfe_sql.engines.sqlite.driver import split_script
from wfe_sql.engines.stores import VERSION, Parts, Scripts, later_version, of_table, parts_made_by, read_parts
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

_CREATE = re.compile(r"\bCREATE (?=TABLE|VIEW)", re.IGNORECASE)

_SCRIPTS = (
    "create_wfe_sql_store_table",
    "create_workflows_table",
    "name_workflows_without_name",
    "add_workflows_claim_and_revision",
    "create_workflows_indexes",
    "create_workflows_revision_trigger",
    "create_workflow_documents_view",
    "create_execution_pointers_table",
    "create_execution_pointer_documents_view",
    "create_definition_sequences_table",
    "create_events_table",
    "add_events_claim",
    "create_event_documents_view",
    "create_event_subscriptions_table",
    "create_event_subscription_documents_view",
    "create_scheduled_commands_table",
    "add_scheduled_commands_claim_and_rescheduled_time",
    "create_execution_errors_table",
    "create_execution_error_documents_view",
)
"""What makes a store, in this order; each is run where the store lacks something that it makes."""


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
        self.scripts = Scripts(_SCRIPTS, queries)
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
                self._parts(connection)
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
            self._check(self._parts(connection), connection)
            self._run_scripts(connection)
            self._queries.run(connection, "record_store_version", {"version": VERSION})
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
                self._parts(connection)
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
                self._check(self._parts(connection), connection)
            finally:
                connection.close()
        except BaseException:
            if not had_log:
                self.remove_empty_log()
            raise

    def _check(self, parts: Parts, connection: sqlite3.Connection) -> None:
        """Refuse tables that are not those of a store, and a store of a later version."""
        if "wfe_sql_store.version" in parts:
            version = self._queries.run(connection, "get_store_version", {})
            if version is None or version > VERSION:
                raise later_version(self.target, version)
        self.scripts.check_tables(self.target, parts, instead="file")

    def _run_scripts(self, connection: sqlite3.Connection) -> Parts:
        """Run the scripts that make what is missing, and return what is there then."""
        parts = self._parts(connection)
        for script in _SCRIPTS:
            if not self.scripts.made[script] <= parts.keys():
                self._queries.run(connection, script, {})
                parts = self._parts(connection)
        return parts

    def _make_readable(self, connection: sqlite3.Connection) -> None:
        """Have this connection see what the file lacks, for it must not be changed.

        Tables are empty, columns have their defaults, views are as they should be. What a script that changes rows
        would bring cannot be stood in for.
        """
        parts = self._parts(connection)
        self._check(parts, connection)
        missing = self.scripts.missing(parts)
        tables = {of_table(part) for part in parts}
        lacking = ["workflows"]
        if "workflows" in tables:
            lacking = sorted(part for name in missing.keys() - new_store_scripts() for part in missing[name])
        if lacking:
            raise StoreVersionError(
                f"{self.target} cannot be opened read-only yet: it lacks {', '.join(lacking)}. "
                "Open it once without mode=ro to upgrade it"
            )
        columns: dict[str, list[str]] = {}
        for name, lacks in missing.items():
            adds, table = name.startswith("add_"), of_table(min(lacks))
            if adds and table in tables:
                columns.setdefault(table, []).extend(self._complete[part] or "" for part in sorted(lacks))
                continue
            for statement in split_script(self._queries[name].sql):
                if (adds or _CREATE.match(statement)) and not parts_made_by(statement) <= parts.keys():
                    connection.execute(_CREATE.sub(r"\g<0>TEMP ", statement, count=1))
        for table, definitions in columns.items():
            stand_in = self._queries["stand_in_for_columns"]
            stand_in = replace(stand_in, sql=stand_in.filled_in("columns", ", ".join(definitions)))
            connection.execute(stand_in.filled_in("table_name", table))

    def _parts(self, connection: sqlite3.Connection) -> Parts:
        return read_parts(self._queries.run(connection, "list_parts", {}))

    @cached_property
    def _complete(self) -> Parts:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
            return self._run_scripts(scratch)


def new_store_scripts() -> list[str]:
    """Return what makes a new store; the other scripts change rows of old ones."""
    return [name for name in _SCRIPTS if name.startswith(("create_", "add_"))]


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
