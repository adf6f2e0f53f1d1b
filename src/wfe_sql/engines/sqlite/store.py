"""Opens, checks, creates and upgrades the SQLite file of a store."""

import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, Literal

from wfe_sql.engines.sqlite.driver import split_script
from wfe_sql.engines.sqlite.files import StoreFile, is_permitted
from wfe_sql.engines.sqlite.library import check_library
from wfe_sql.engines.stores import (
    VERSION,
    Parts,
    Scripts,
    check_version,
    log_scripts,
    of_table,
    parts_made_by,
    read_parts,
)
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

DRIVER_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What the driver raises; the second if SQLite's message quotes a damaged schema that is no longer UTF-8."""

_CREATE = re.compile(r"\bCREATE (?=TABLE|VIEW)", re.IGNORECASE)

_SCRIPTS = (
    "create_wfe_sql_store_table",
    "create_workflows_table",
    "name_workflows_without_name",
    "add_workflows_claim_and_revision",
    "create_workflows_indexes",
    "create_workflows_root_index",
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
"""The scripts that make a store, in order; each is run if the store lacks something that it makes."""


class SqliteStore:
    """Opens connections to one SQLite database; its methods are called on the threads of these connections."""

    def __init__(
        self,
        target: SqliteTarget,
        queries: QuerySet,
        durability: Durability,
        busy_timeout: timedelta,
        *,
        allow_unfinished_copy: bool = False,
    ) -> None:
        """Set up without connecting; see `SqlitePersistenceProvider` for the options."""
        if durability not in ("full", "normal"):
            raise StoreError(f"durability must be 'full' or 'normal', not {durability!r}")
        if busy_timeout < timedelta(0):
            raise StoreError(f"busy_timeout must not be negative: {busy_timeout}")
        path = None if target.path is None else target.path.absolute()
        self.target = replace(target, path=path)
        self.file = None if path is None else StoreFile(path)
        self._queries = queries
        self.scripts = Scripts(_SCRIPTS, queries)
        self._durability = durability
        self.busy_timeout = busy_timeout.total_seconds()
        self._allow_unfinished_copy = allow_unfinished_copy

    def open_writer(self) -> sqlite3.Connection:
        """Open a connection that writes, and create the store if it does not exist.

        A file that is not a store is refused before it is changed.
        """
        path = self.target.path
        if path is not None and path.exists():
            self._check_before_any_change()
        connection = self._connect(self.target.mode, busy_timeout=0)
        try:
            run = self._runner(connection)
            if path is not None:
                self._use_wal(connection)
                run("limit_log")
            run("use_full_durability" if self._durability == "full" else "use_normal_durability")
            self.ensure_store_exists(connection)
            if self.file is not None:
                self.file.mark_as_store(writes=True)
        except BaseException:
            connection.close()
            raise
        return connection

    def open_reader(self, *, in_pool: bool = False) -> sqlite3.Connection:
        """Open a connection that only reads a store that exists.

        Those in the pool of `SqliteEngine` do not wait for locks themselves, have read the schema, and may be used on
        the event loop.

        Raises:
            StoreUnavailableError: The file has a log that cannot be read here.
        """
        try:
            return self._open_reader(in_pool=in_pool)
        except sqlite3.OperationalError as error:
            file = self.file
            if file is None or code_of(error) not in _CANNOT_CREATE_LOG or is_permitted(file.log.parent, os.W_OK):
                raise
            if file.is_sealed:
                return self._open_reader(in_pool=in_pool, sealed=True)
            raise StoreUnavailableError(
                f"{self.target} cannot be read: it has a log, {file.log}, and this user may not write in that folder; "
                "open it once as a user who may, or copy both files to another folder"
            ) from error

    def _open_reader(self, *, in_pool: bool, sealed: bool = False) -> sqlite3.Connection:
        mode = "ro" if self.target.mode == "ro" else "rw"
        connection = self._connect(mode, busy_timeout=self.busy_timeout, any_thread=in_pool, sealed=sealed)
        try:
            run = self._runner(connection)
            run("enforce_foreign_keys")
            if self.target.mode == "ro":
                self._make_readable(connection)
            run("refuse_writes")
            if in_pool:
                if self.file is not None:
                    run("get_store_version")
                run("wait_for_no_lock")
            if self.file is not None:
                self.file.mark_as_store(writes=False)
        except BaseException:
            connection.close()
            raise
        return connection

    def ensure_store_exists(self, connection: sqlite3.Connection, *, asked_at: float | None = None) -> None:
        """Make the tables, columns and indexes that are missing, in one transaction; for `asked_at` see begin_write."""
        run = self._runner(connection)
        run("suspend_foreign_keys")
        try:
            self.begin_write(connection, time.monotonic() if asked_at is None else asked_at)
            parts = self._parts(connection)
            self._check(parts, connection)
            self._run_scripts(connection, parts)
            self._queries.run(connection, "record_store_version", {"version": VERSION})
            run("commit")
            if self.file is not None:
                log_scripts(self.target, parts, list(self.scripts.missing(parts)))
        except BaseException:
            if connection.in_transaction:
                run("rollback")
            raise
        finally:
            run("enforce_foreign_keys")

    def has_log(self) -> bool:
        """Tell whether there is a write-ahead log next to the file."""
        return self.file is not None and self.file.log_size is not None

    def remove_empty_log(self) -> None:
        """Let SQLite remove a log that it made only for reading: a connection that may write does so when it closes."""
        if self.file is not None and self.file.log_size == 0:
            with suppress(sqlite3.Error), closing(self._connect("rw", busy_timeout=self.busy_timeout)) as connection:
                self._parts(connection)  # if this fails the log stays, which does no harm

    def check_in_place(self) -> None:
        """Check that the file is still the one that was opened.

        Raises:
            StoreError: It is not.
        """
        if self.file is not None:
            self.file.check_in_place()

    def error(self, error: sqlite3.Error | UnicodeDecodeError) -> StoreError:
        """Return our error for an error of the driver, which becomes its cause."""
        if isinstance(error, UnicodeDecodeError):
            code, said = sqlite3.SQLITE_CORRUPT, error.object.decode(errors="backslashreplace")
        else:
            code, said = sqlite3.SQLITE_CORRUPT if is_undecodable(error) else code_of(error), str(error)
        kind, what = _ERRORS.get(code) or _ERRORS.get(
            code & 0xFF, (StoreError, "failed with an unexpected database error")
        )
        mapped = kind(f"{self.target} {what}: {said}")
        if isinstance(mapped, StoreBusyError) and code == sqlite3.SQLITE_BUSY:
            mapped.timeout = timedelta(seconds=self.busy_timeout)
        mapped.__cause__ = error
        return mapped

    def _runner(self, connection: sqlite3.Connection) -> Callable[[str], Any]:
        return partial(self._queries.run, connection, params={})

    def _connect(
        self, mode: str, *, busy_timeout: float, any_thread: bool = False, sealed: bool = False
    ) -> sqlite3.Connection:
        """Connect to the file, which must be the same each time; a sealed one is read without locks and log."""
        check_library(self.target)
        file = self.file
        if sealed and file is not None:
            file.remember_contents()
        connection = sqlite3.connect(
            ":memory:" if file is None else f"{file.path.as_uri()}?mode={mode}{'&immutable=1' if sealed else ''}",
            uri=file is not None,
            timeout=busy_timeout,
            isolation_level=None,
            check_same_thread=not any_thread,
            cached_statements=len(self._queries),
        )
        if file is not None:
            try:
                file.remember_identity()
            except BaseException:
                connection.close()
                raise
        return connection

    def begin_write(self, connection: sqlite3.Connection, asked_at: float) -> None:
        """Begin a transaction that writes, as soon as no other connection does.

        Args:
            connection: Where.
            asked_at: When the call was made (`time.monotonic`), which is when the busy timeout starts.
        """
        self._when_free(connection, "begin_write", asked_at)

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        mode = self._when_free(connection, "use_wal", time.monotonic())
        if mode != "wal":
            raise StoreUnavailableError(f"{self.target} cannot use a write-ahead log; its journal mode stays {mode}")

    def _when_free(self, connection: sqlite3.Connection, query: str, asked_at: float) -> Any:
        """Run a query as soon as other connections let it, or fail after the busy timeout.

        SQLite's own busy handler does not suit a writer: it sleeps longer and longer, up to 100 ms, so that one of two
        busy processes starves; and it does not wait at all for the change to a write-ahead log.
        """
        while True:
            try:
                return self._queries.run(connection, query, {})
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= asked_at + self.busy_timeout:
                    raise
                pause()

    def _check_before_any_change(self) -> None:
        """Check an existing file through a connection that can change neither it nor, by closing, its log.

        If a program crashed half way through a write, that must be rolled back first, by one that may write.
        """
        had_log = self.has_log()
        try:
            try:
                self._check_through("ro")
            except sqlite3.OperationalError as error:
                if code_of(error) != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise
                self._check_through("rw")
        except BaseException:
            if not had_log:
                self.remove_empty_log()
            raise

    def _check_through(self, mode: str) -> None:
        connection = self._connect(mode, busy_timeout=self.busy_timeout)
        try:
            self._check(self._parts(connection), connection)
        finally:
            connection.close()

    def _check(self, parts: Parts, connection: sqlite3.Connection) -> None:
        """Refuse tables that do not belong to a store, and a store of a later version."""
        if "wfe_sql_store.version" in parts:
            version = self._queries.run(connection, "get_store_version", {})
            if version is not None:  # or the row was deleted; a writer records it again
                check_version(self.target, version, allow_unfinished_copy=self._allow_unfinished_copy)
        self.scripts.check_tables(self.target, parts, instead="file")

    def _run_scripts(self, connection: sqlite3.Connection, parts: Parts) -> None:
        """Run the scripts that make what is missing, where these parts exist."""
        made = self.scripts.made
        is_new = parts.keys().isdisjoint(set().union(*made.values()))
        for script in _SCRIPTS:
            if not made[script] <= parts.keys():
                self._queries.run(connection, script, {})
                # In a new store each script makes all its parts; reading them each time took longer than making them.
                parts = {**parts, **dict.fromkeys(made[script])} if is_new else self._parts(connection)

    def _make_readable(self, connection: sqlite3.Connection) -> None:
        """Let this connection see what the file lacks, because the file must not be changed.

        Temporary views stand in: tables are empty, and columns have their defaults. Nothing can stand in for a script
        that changes rows.
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
            self._run_scripts(scratch, {})
            return self._parts(scratch)


def new_store_scripts() -> list[str]:
    """Return the scripts that make a new store; the others change rows of old ones."""
    return [name for name in _SCRIPTS if name.startswith(("create_", "add_"))]


def code_of(error: BaseException | None) -> int:
    """Return SQLite's result code; 0 if the error is not SQLite's, but Python's own."""
    return getattr(error, "sqlite_errorcode", 0)


def is_undecodable(error: sqlite3.Error) -> bool:
    """Tell whether Python could not decode a text, because it is not UTF-8."""
    return str(error).startswith("Could not decode to UTF-8")


def is_busy(error: BaseException | None) -> bool:
    """Tell whether SQLite failed because another connection holds the file."""
    return code_of(error) & 0xFF == sqlite3.SQLITE_BUSY


def pause() -> None:
    """Sleep a little, so that another connection can finish."""
    time.sleep(random.uniform(0.0005, 0.0015))


_CANNOT_CREATE_LOG = {
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY_DIRECTORY),
    *(sqlite3.SQLITE_READONLY_CANTINIT, sqlite3.SQLITE_READONLY_RECOVERY),
}
"""Result codes of SQLite when it would have to create a log, or its index, to read a file."""

_NO_SHARED_MEMORY = (
    StoreUnavailableError,
    "cannot have a write-ahead log here: processes cannot share or lock its index, X-shm, as on network file systems; "
    "put the file on a local disk",
)

_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "is busy: another connection held it for longer than the busy timeout"),
    sqlite3.SQLITE_BUSY_SNAPSHOT: (
        StoreBusyError,
        "was changed by another connection since the transaction began to read; roll it back and begin again",
    ),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "is locked by another statement"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "is damaged"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "is not a SQLite database"),
    sqlite3.SQLITE_FULL: (StoreFullError, "has no disk space left"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "cannot be written"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "cannot be opened"),
    sqlite3.SQLITE_PERM: (StoreUnavailableError, "cannot be accessed"),
    sqlite3.SQLITE_AUTH: (StoreUnavailableError, "cannot be accessed"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "cannot be read or written"),
    sqlite3.SQLITE_PROTOCOL: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMMAP: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMOPEN: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMLOCK: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_LOCK: _NO_SHARED_MEMORY,
    sqlite3.SQLITE_IOERR_SHMSIZE: (StoreFullError, "has no disk space left for the index of its log"),
    sqlite3.SQLITE_READONLY_ROLLBACK: (
        StoreReadOnlyError,
        "cannot be read: a program that crashed left a journal, which must be rolled back; open it once for writing",
    ),
}
"""SQLite's result codes, extended ones before primary ones. https://sqlite.org/rescode.html"""
