"""A schema of a PostgreSQL database as a store: connecting to it, checking, creating and upgrading it."""

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus

from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.driver import split_script
from wfe_sql.engines.postgres.errors import (
    has_no_transactions,
    is_about_statement,
    is_missing_right,
    may_be_missing_right,
    store_error,
    text_of,
)
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.engines.postgres.tuning import check_tuned_postgres, tuned_query_error
from wfe_sql.engines.stores import (
    UNFINISHED_COPY,
    VERSION,
    Parts,
    Scripts,
    check_version,
    log_scripts,
    of_table,
    out_of_date,
    read_parts,
)
from wfe_sql.errors import QueryFileError, StoreError, StoreUnavailableError, StoreVersionError
from wfe_sql.queries import QuerySet
from wfe_sql.urls import DEFAULT_SCHEMA

_SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
"""Names that need no quotes except for their case, as in the reference; at most 63 bytes.
https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS"""

_PROBES = 5
"""How many connections are tested for sharing the server's with another: some may belong to another pooler."""

_ASKS = 10
"""How often each time the process is asked for: a busy pooler gives the same one again in about half of the cases."""

_LATE = 5.0
"""Seconds after the statement timeout at which a connection with a silent server is cut."""

OLDEST = 14
"""The oldest version of PostgreSQL that these queries are tested on."""

EVERY = 2**63 - 1
_LATEST = 10
"""How many of the latest workflows are checked when a store is opened: the last writer used the highest numbers."""

_INDEX = re.compile(r"\bCREATE INDEX (?=IF NOT EXISTS (\w+))")

_SCRIPTS = (
    "create_schema",
    "collate_ids_bytewise",
    "create_wfe_sql_store_table",
    "create_workflows_table",
    "name_workflows_without_name",
    "create_workflows_root_index",
    "create_workflows_revision_trigger",
    "create_workflow_documents_view",
    "create_execution_pointers_table",
    "create_execution_pointer_documents_view",
    "create_definition_sequences_table",
    "create_events_table",
    "create_event_documents_view",
    "create_event_subscriptions_table",
    "create_event_subscription_documents_view",
    "create_scheduled_commands_table",
    "create_wake_trigger",
    "create_execution_errors_table",
    "create_execution_error_documents_view",
    "grant_documents",
)
"""The scripts that create a store, and upgrade an old one, in order."""

_log = logging.getLogger("wfe_sql")


def check_server_version(target: object, number: int) -> None:
    """Reject a server that is too old; `number` is its `server_version_num`, such as 140012 for 14.12.

    Raises:
        StoreVersionError: It is; the message names both versions.
    """
    if number < OLDEST * 10_000:
        major = number // 10_000
        version = f"{major}.{number % 10_000}" if major >= 10 else f"{major}.{number // 100 % 100}"
        raise StoreVersionError(f"{target} is PostgreSQL {version}; wfe-sql works with {OLDEST} and later")


class PostgresStore:
    """Opens connections to the store in one schema, and creates it if it does not exist.

    Attributes:
        target: The database.
        id: Identifies the store, once there was a connection.
        database: Identifies its database, once the store was opened by a role that may ask.
        statement_timeout: How long a statement may take; None for no limit.
    """

    def __init__(
        self,
        target: PostgresTarget,
        queries: QuerySet,
        *,
        schema: str,
        statement_timeout: timedelta | None,
        mode: str = "rwc",
        allow_unfinished_copy: bool = False,
    ) -> None:
        """Set up without connecting; see `PostgresPersistenceProvider` for the options."""
        if not _SCHEMA_NAME.fullmatch(schema):
            raise StoreError(
                f"schema must be a plain name of at most 63 letters, digits and underscores, not {schema!r}"
            )
        if statement_timeout is not None and statement_timeout < timedelta(milliseconds=1):
            raise StoreError(f"statement_timeout must be at least a millisecond, or None, not {statement_timeout}")
        self.target = target
        self.id = ""
        self.database: str | None = None
        self._queries = queries
        self._scripts = Scripts(_SCRIPTS, queries)
        self._schema = schema
        self._mode = mode
        self._allow_unfinished_copy = allow_unfinished_copy
        self.statement_timeout = statement_timeout
        self.patience = None if statement_timeout is None else statement_timeout.total_seconds() + _LATE
        """Seconds that a statement may take until its connection is cut; None without a statement timeout."""
        self._is_shared: bool | None = None

    def __str__(self) -> str:
        return f"{self.target} (schema {self._schema})"

    @property
    def schema(self) -> str:
        """The schema of the tables."""
        return self._schema

    async def open_connection(self) -> Connection:
        """Open a connection on which names refer to this store's tables.

        Raises:
            StoreUnavailableError: No connection can be made.
            StoreError: A pooler in front of the server does not support transactions.
        """
        connection = await self.target.connect()
        try:
            if self._is_shared is None:
                self._is_shared = await self._is_lent_for_transactions(connection)
            if self._is_shared:
                connection.run_shared = self._runner(connection, is_local=True)
            else:
                connection.prepare_threshold = 0
                await self._runner(connection)("set_up_connection")
            connection.patience = self.patience
        except BaseException as error:
            await connection.close()
            if isinstance(error, psycopg.Error):
                raise store_error(self, error) from error
            raise
        self.id = f"{self.target.server(connection)}/{connection.info.dbname}/{self._schema}"
        return connection

    async def find_database(self, connection: Connection) -> None:
        """Identify the database, for `run_in` to compare; without the privilege, `run_in` does not compare."""
        try:
            self.database = await self._runner(connection)("get_database")
        except psycopg.Error as error:
            if not is_missing_right(error):
                raise

    def settings_within(self, settings: str) -> dict[str, Any]:
        """Return the settings for a unit in somebody else's transaction, for which `get_settings` returned these."""
        timeout = json.loads(settings)["statement_timeout"]
        return {"schema": self._schema, "statement_timeout": timeout, "read_only": None, "is_local": "True"}

    @property
    def mode(self) -> str:
        """The mode of the URL: "ro" is read-only."""
        return self._mode

    async def begin(self, connection: Connection, query: str) -> None:
        """Begin a transaction, with its settings if a pooler lends a server connection only for its duration."""
        run = connection.run_shared
        if run is None:
            await self._runner(connection)(query)
        elif connection.pgconn.pipeline_status == PipelineStatus.OFF:
            async with connection.pipeline():
                await self.begin(connection, query)
        else:
            await run(query)
            await run("set_up_connection")

    @asynccontextmanager
    async def settled(self, connection: Connection) -> AsyncIterator[None]:
        """Make names refer to the store's tables in the block; behind a pooler, this needs a transaction."""
        if connection.run_shared is None:
            yield
            return
        await self.begin(connection, "begin_write")
        try:
            yield
        finally:
            if not connection.closed:
                await connection.run_shared("rollback")

    async def _is_lent_for_transactions(self, connection: Connection) -> bool:
        """Tell whether a pooler lends the server's connection for one transaction at a time.

        A pooler reports a process to its client that is not the server's. The process of an idle client serves others
        meanwhile, or changes. Nothing is left behind on the server's connections. If this cannot be determined, the
        answer is True, because that works with any pooler.
        """
        run = self._runner(connection)
        process = await run("get_server_process")
        if process == connection.info.backend_pid:
            return False
        for _ in range(_PROBES):
            try:
                other = await self.target.connect()
            except StoreError:
                return True
            try:
                beside = self._runner(other)
                await beside("begin_write")
                is_lent = await beside("get_server_process") == process
                is_lent = is_lent or {await run("get_server_process") for _ in range(_ASKS)} != {process}
                await beside("rollback")
                if is_lent:
                    return True
            except psycopg.Error as error:
                if has_no_transactions(error):
                    raise StoreError(
                        f"{self} is behind a pooler that does not support transactions; set its pool_mode to "
                        "transaction or session for this database"
                    ) from error
                return True
            finally:
                other.pgconn.finish()
        return False

    async def check(self, connection: Connection) -> None:
        """Check that the store exists and is up to date, and that PostgreSQL accepts the tuned queries.

        Raises:
            StoreError: It does not exist.
            StoreVersionError: It is out of date, or of another version.
            QueryFileError: A tuned query cannot replace the original.
        """
        try:
            run = self._runner(connection)
            parts = await self._parts(run)
            if not parts:
                raise StoreError(f"{self} does not exist")
            await self._check(parts, run)
            if not await self._is_complete(parts, run):
                raise out_of_date(self)
            await check_tuned_postgres(self._queries, connection, self.settled)
        except psycopg.Error as error:
            raise store_error(self, error, self.statement_timeout) from error

    async def ensure_store_exists(self, connection: Connection) -> None:
        """Create the missing schema, tables and columns, in one transaction.

        A complete store is left alone, so that a role without privileges to create can open it; so is one that lacks
        only indexes, which `build_indexes` builds because that may take long. A tuned script always runs, because it
        may create more. Tables of another application with our names are rejected before anything is changed.
        """
        run = self._runner(connection)
        check_server_version(self, connection.info.server_version)
        works = False
        try:
            parts = await self._parts(run)
            works = await self._is_complete(parts, run)
            missing = set().union(*self._scripts.missing(parts).values())
            slow = sorted(missing & self._indexes().keys()) if works else []
            lacks = bool(not works or missing.difference(slow) or self._queries.tuned.intersection(self._scripts.names))
            if not works and self._mode != "rwc":
                await self._check(parts, run)
                raise self._incomplete(parts)
        except psycopg.Error as error:
            if may_be_missing_right(error):
                raise self.missing_right(error, connection) from error
            raise store_error(self, error, self.statement_timeout) from error
        try:
            if lacks and self._mode == "rwc":
                await self._make(connection)
            elif slow:
                _log.warning("%s lacks indexes, so that queries are slow: %s; run wfe-sql init", self, ", ".join(slow))
            if self._mode != "ro":
                await self.mend_numbers(connection, _LATEST)
            await check_tuned_postgres(self._queries, connection, self.settled)
        except psycopg.Error as error:
            if may_be_missing_right(error):
                if works:
                    return
                raise StoreError(f"{self} {self._advice(connection)}: {text_of(error)}") from error
            raise store_error(self, error, self.statement_timeout) from error

    async def build_indexes(self, connection: Connection) -> None:
        """Build missing indexes, and those whose build was interrupted, while hosts continue to work.

        Each is a statement outside a transaction, without a time limit, on its own connection. A pooler that lends
        connections for single transactions allows neither: writers then wait, and statements time out.
        https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
        """
        try:
            run = self._runner(connection)
            is_shared = connection.run_shared is not None
            if not is_shared:
                connection.patience = None
                await run("lift_statement_timeout", is_local=False)
            await run("drop_invalid_indexes")
            parts = await self._parts(run)
            for index, statement in self._indexes().items():
                if index not in parts:
                    statement = statement if is_shared else statement.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
                    await connection.execute(statement.encode(), prepare=False)
        except psycopg.Error as error:
            raise (
                self.missing_right(error, connection) if may_be_missing_right(error) else store_error(self, error)
            ) from error

    def _indexes(self) -> dict[str, str]:
        """Return the statements of the scripts that build indexes, by index."""
        return {
            found[1]: statement
            for script in _SCRIPTS
            for statement in split_script(self._queries[script].sql)
            if (found := _INDEX.search(statement))
        }

    async def mend_numbers(self, connection: Connection, workflows: int) -> None:
        """Let sequences continue after the highest stored numbers, among this many of the latest workflows.

        They fall behind if somebody writes rows without the sequences, as logical replication does: pointers would
        come back out of order, and inserts would fail.
        """
        run = self._runner(connection)
        if not _behind(await run("list_numbers", workflows=workflows)):
            return
        for table, column, given, highest, _ in _behind(await run("list_numbers", workflows=EVERY)):
            where = f"{self}: the numbers of {table}.{column} were at {given:,}, and {highest:,} is stored"
            try:
                await run("mend_number", table_name=table, column_name=column, highest=highest)
                _log.warning("%s; they go on from there", where)
            except psycopg.Error as error:
                if not is_missing_right(error):
                    raise
                _log.warning("%s, so inserts fail or get out of order; as its owner, run wfe-sql init", where)

    async def _make(self, connection: Connection) -> None:
        run = self._runner(connection)
        patience, connection.patience = connection.patience, None
        await self.begin(connection, "begin_write")
        try:
            await run("lift_statement_timeout", is_local=True)
            await run("hold_making_lock")
            parts = await self._bring_up_to_date(run)
            await run("commit")
        except BaseException:
            if not connection.closed:
                await run("rollback")
            raise
        else:
            log_scripts(self, parts, list(self._scripts.missing(parts)))
        finally:
            connection.patience = patience

    def missing_right(self, error: psycopg.Error, connection: Connection) -> StoreError:
        """Return the error for a statement that the role may not run; it says what to grant."""
        schema, role = _quoted(self._schema), _quoted(connection.info.user)
        return StoreError(
            f"role {role} lacks privileges on {self}; as its owner, run: GRANT USAGE ON SCHEMA {schema} TO {role}; "
            f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; GRANT USAGE ON "
            f"ALL SEQUENCES IN SCHEMA {schema} TO {role} ({text_of(error)})"
        )

    def _advice(self, connection: Connection) -> str:
        schema, role = _quoted(self._schema), _quoted(connection.info.user)
        database = _quoted(connection.info.dbname)
        return (
            f"is incomplete, and role {role} may not create what is missing; open it once as a role that may, or run "
            f"as an administrator: GRANT CREATE ON DATABASE {database} TO {role} (for the schema), "
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role} (for tables in one that exists)"
        )

    def _runner(self, connection: Connection, *, is_local: bool = False) -> Callable[..., Awaitable[Any]]:
        """Return a function that runs a query; if PostgreSQL rejects a tuned one, the error names its place.

        Settings last for the connection, or with `is_local` for the transaction.
        """
        settings = {
            "schema": self._schema,
            "statement_timeout": (self.statement_timeout or timedelta(0)) // timedelta(milliseconds=1),
            "read_only": "on" if self._mode == "ro" else None,
            "is_local": str(is_local),
        }

        async def run(query: str, **params: Any) -> Any:
            params = settings if query == "set_up_connection" else params
            try:
                return await self._queries.run(connection, query, params)
            except psycopg.Error as error:
                if query in self._queries.tuned and is_about_statement(error):
                    raise tuned_query_error(self._queries[query], error) from error
                raise

        return run

    async def _is_complete(self, parts: Parts, run: Callable[..., Awaitable[Any]]) -> bool:
        """Tell whether a store lacks nothing except perhaps indexes."""
        versions = (VERSION, UNFINISHED_COPY) if self._allow_unfinished_copy else (VERSION,)
        return not self._lacking(parts) and await run("get_store_version") in versions

    def _lacking(self, parts: Parts) -> list[str]:
        return sorted(part for lacks in self._scripts.missing(parts).values() for part in lacks if "." in part)

    def _incomplete(self, parts: Parts) -> StoreError:
        """Return the error for an incomplete store whose mode does not allow creating what is missing."""
        if not any(of_table(part) == "workflows" for part in parts):
            return StoreUnavailableError(f"{self} cannot be opened with mode={self._mode}: it does not exist")
        lacking = ", ".join(self._lacking(parts)) or "its version"
        return StoreUnavailableError(
            f"{self} cannot be opened with mode={self._mode} yet: it lacks {lacking}. "
            f"Open it once without mode={self._mode} to upgrade it"
        )

    async def _bring_up_to_date(self, run: Callable[..., Awaitable[Any]]) -> Parts:
        """Run the scripts that create what is missing; return the parts that existed before."""
        parts = await self._parts(run)
        await self._check(parts, run)
        missing = self._scripts.missing(parts)
        for script in _SCRIPTS:
            # A complete one may be of a later version, and have more than this script would leave.
            if script in missing or not script.endswith(("_view", "_trigger")):
                await run(script)
        for script, lacks in self._scripts.missing(await self._parts(run)).items():
            if lacking := sorted(part for part in lacks if "." in part):
                place = self._queries[script].place
                raise QueryFileError(f"{place}: must make the columns that its original makes; {lacking[0]} is missing")
        await run("record_store_version", version=VERSION)
        return parts

    async def _check(self, parts: Parts, run: Callable[..., Awaitable[Any]]) -> None:
        """Reject tables that do not belong to a store, and a store of a later version."""
        self._scripts.check_tables(self, parts, instead="schema")
        if "wfe_sql_store.version" in parts:
            version = await run("get_store_version")
            if version is not None:
                check_version(self, version, allow_unfinished_copy=self._allow_unfinished_copy)

    async def _parts(self, run: Callable[..., Awaitable[Any]]) -> Parts:
        return read_parts(await run("list_parts"))


def _behind(numbers: Sequence[Any]) -> list[Any]:
    return [row for row in numbers if row[2] < row[3]]


def schema_script(queries: QuerySet) -> str:
    """Return a script that creates a new store in the default schema, as one transaction."""
    settings, version = queries["set_up_connection"], queries["record_store_version"]
    filled = settings
    for param, value in {
        "schema": f"'{DEFAULT_SCHEMA}'",
        "statement_timeout": "'0'",
        "read_only": "NULL",
        "is_local": "'False'",
    }.items():
        filled = replace(filled, sql=filled.filled_in(param, value))
    return "\n".join(
        [
            settings.text.replace(settings.sql, filled.sql),
            *(queries[name].text for name in ("begin_write", "hold_making_lock", *_SCRIPTS)),
            version.text.replace(version.sql, version.filled_in("version", str(VERSION))),
            queries["commit"].text,
        ]
    )


def _quoted(name: str) -> str:
    """Return a name, quoted if SQL needs it."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
