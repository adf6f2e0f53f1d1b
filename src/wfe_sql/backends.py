"""The backends: their providers, their parts, and which of them a URL selects."""

import inspect
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Never, TypedDict, Unpack

from wfe_sql.codecs import INTEGER, TEXT
from wfe_sql.durations import check_duration
from wfe_sql.engines.reporting import OnUnit, Reporter
from wfe_sql.engines.sqlite.driver import InTransactionAdapter, NamedRowsAdapter, split_script
from wfe_sql.engines.sqlite.engine import SqliteEngine
from wfe_sql.engines.sqlite.plans import open_sqlite_planner
from wfe_sql.engines.sqlite.store import Durability, SqliteStore, new_store_scripts
from wfe_sql.engines.sqlite.tuning import check_tuned_sqlite
from wfe_sql.engines.stores import VERSION
from wfe_sql.errors import StoreError
from wfe_sql.models import utc_now
from wfe_sql.plans import Planner
from wfe_sql.provider import OnConflict, SqlPersistenceProvider
from wfe_sql.queries import QuerySet, load, load_application
from wfe_sql.urls import DEFAULT_SCHEMA, parse_postgres_url, parse_sqlite_url, scheme_of

_LONGEST_TIMEOUT = timedelta(milliseconds=2**31 - 1)
"""Both databases store timeouts as 32-bit milliseconds."""

_POLL_INTERVAL = timedelta(seconds=1)
_FALLBACK_INTERVAL = timedelta(minutes=2)


class StoreOptions(TypedDict, total=False):
    """The options that `connect` takes; each provider documents its own. Durations are `timedelta`s."""

    durability: Durability
    busy_timeout: timedelta
    max_connections: int
    clock: Callable[[], datetime]
    on_conflict: OnConflict
    poll_interval: timedelta
    fallback_interval: timedelta
    sql_dir: str | os.PathLike[str] | None
    app_sql: str | os.PathLike[str] | None
    allow_unfinished_copy: bool
    schema: str
    application_name: str
    connect_timeout: timedelta
    statement_timeout: timedelta | None
    wait_for_server: timedelta
    on_unit: OnUnit | None
    slow_unit: timedelta | None


def _check_options(
    provider: type[SqlPersistenceProvider], unknown: dict[str, Never], **options: Unpack[StoreOptions]
) -> None:
    """Check the types of options, and values that no driver accepts.

    Raises:
        StoreError: The provider does not have an option, or it has the wrong type, or a timeout is too long.
    """
    for name in unknown:
        known = ", ".join(inspect.getfullargspec(provider).kwonlyargs)
        raise StoreError(f"{provider.__name__} has no option {name!r}; its options are {known}")
    for name, value in options.items():
        if value is None and name in ("sql_dir", "app_sql", "statement_timeout", "on_unit", "slow_unit"):
            continue
        if name in ("sql_dir", "app_sql"):
            _check_path(name, value)
        elif name == "on_unit":
            if not callable(value):
                raise StoreError(f"on_unit must be a function that takes a UnitStats, not {type(value).__name__}")
        elif name == "allow_unfinished_copy":
            if not isinstance(value, bool):
                raise StoreError(f"{name} must be a bool, not {type(value).__name__}")
        elif name in ("max_connections", "schema", "application_name"):
            try:
                (INTEGER if name == "max_connections" else TEXT).encode(value)
            except ValueError as error:
                raise StoreError(f"{name} {error}") from error
        elif name.endswith(("_timeout", "_interval")) or name in ("wait_for_server", "slow_unit"):
            check_duration(name, value, StoreError)
            if name == "slow_unit" and isinstance(value, timedelta) and value < timedelta(0):
                raise StoreError(f"slow_unit must not be negative: {value}")
            if isinstance(value, timedelta) and value > _LONGEST_TIMEOUT:
                raise StoreError(f"{name} must be at most {_LONGEST_TIMEOUT.days} days, not {value}")


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise StoreError(f"{name} must be a str or a path, not {type(value).__name__}")


def load_sqlite_queries(sql_dir: str | os.PathLike[str] | None = None) -> QuerySet:
    """Return the queries for SQLite; those in `sql_dir` replace their namesakes.

    Raises:
        QueryFileError: A `.sql` file breaks a rule, or a query there cannot replace the library's own.
    """
    overlay = None if sql_dir is None else Path(sql_dir)
    return load("sqlite", InTransactionAdapter, check=check_tuned_sqlite, overlay=overlay)


class SqlitePersistenceProvider(SqlPersistenceProvider):
    """A `PersistenceProvider` on one SQLite file, or in memory.

    Args:
        url: `sqlite:///absolute/path.db`, `sqlite://relative/path.db`, a plain path, or `:memory:`; `?mode=ro` opens
            read-only, and `?mode=rw` only a file that exists.
        durability: "full" puts each write on disk before it is acknowledged; "normal" may lose the last writes when the
            power fails, but never the file.
        busy_timeout: How long a call waits for other processes that hold the file.
        max_connections: One writes and the others read. From 3 on, one of them serves brief reads, of at most 0.5 ms,
            on the event loop; with 1 or 2, all use threads. A database in memory has one for both.
            `wait_for_work` has one more.
        clock: Returns the current time, aware; everything about expiry uses it.
        on_conflict: With "raise", persisting raises `WorkflowConflictError` if the workflow was changed, or deleted and
            created again, since the instance was loaded or stored; "overwrite" overwrites it, as the reference does.
        poll_interval: The longest pause before `wait_for_work` returns again for due work that nobody takes.
        fallback_interval: How often `wait_for_work` looks at the store even if nothing woke it.
        sql_dir: A folder with `.sql` files whose queries replace those of the same name.
        app_sql: A folder with the application's `.sql` files, for `UnitOfWork.run` and `fetch`: queries in the form of
            this library's, each with a line of text below its name. Those in its folder `sqlite`, if it has one, are
            for SQLite only. They must not begin or end transactions. The application creates their tables, and
            maintenance leaves them alone.
        allow_unfinished_copy: Open a store even if a `copy_to` into it was killed, or is in progress: to check it, or
            to copy into it again. It has only some of the rows, so no host may work on it.
        on_unit: Called once for each unit of work when it has ended, with its `UnitStats`, on the event loop and in
            the context (`contextvars`) of the call; it must be quick. If it raises, that is logged, and the call goes
            on. A unit in the caller's transaction is reported when it was added, because nobody learns whether the
            caller commits; with `run_in_sync`, on the caller's thread. Not reported are calls that were refused or
            cancelled before anything was sent, opening, and backups.
        slow_unit: A unit that takes at least this long, including waiting, is logged as a warning; None to log none.

    Raises:
        StoreError: The URL or an option is not one of these.
        QueryFileError: A `.sql` file breaks a rule of `sql/README.md`.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        busy_timeout: timedelta = timedelta(seconds=5),
        max_connections: int = 4,
        clock: Callable[[], datetime] = utc_now,
        on_conflict: OnConflict = "raise",
        poll_interval: timedelta = _POLL_INTERVAL,
        fallback_interval: timedelta = _FALLBACK_INTERVAL,
        sql_dir: str | os.PathLike[str] | None = None,
        app_sql: str | os.PathLike[str] | None = None,
        allow_unfinished_copy: bool = False,
        on_unit: OnUnit | None = None,
        slow_unit: timedelta | None = timedelta(seconds=1),
        **unknown: Never,
    ) -> None:
        _check_path("url", url)
        _check_options(
            SqlitePersistenceProvider,
            unknown,
            sql_dir=sql_dir,
            app_sql=app_sql,
            allow_unfinished_copy=allow_unfinished_copy,
            max_connections=max_connections,
            busy_timeout=busy_timeout,
            poll_interval=poll_interval,
            fallback_interval=fallback_interval,
            on_unit=on_unit,
            slow_unit=slow_unit,
        )
        queries = load_sqlite_queries(sql_dir)
        if app_sql is not None:
            own = load_application("sqlite", NamedRowsAdapter, Path(app_sql), split_script)
            queries = queries.with_application(own)
        target = parse_sqlite_url(url)
        store = SqliteStore(target, queries, durability, busy_timeout, allow_unfinished_copy=allow_unfinished_copy)
        reporter = Reporter("sqlite", queries, on_unit, slow_unit)
        engine = SqliteEngine(store, queries, reporter, max_connections=max_connections)
        super().__init__(
            engine,
            clock=clock,
            on_conflict=on_conflict,
            poll_interval=poll_interval,
            fallback_interval=fallback_interval,
        )


def load_postgres_queries(sql_dir: str | os.PathLike[str] | None = None) -> QuerySet:
    """Return the queries for PostgreSQL; those in `sql_dir` replace their namesakes.

    Whether the server accepts them, and which columns they return, is checked when a store is opened.

    Raises:
        QueryFileError: A `.sql` file breaks a rule of `sql/README.md`.
        StoreError: The driver is not installed.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise StoreError(
            "PostgreSQL needs the driver psycopg, which is not installed; run: "
            f"{shlex.quote(sys.executable)} -m pip install 'psycopg[binary]'"
        ) from error
    from wfe_sql.engines.postgres.driver import PostgresAdapter

    adapter: Any = PostgresAdapter  # its methods return awaitables, which aiosql passes on but has no type for
    return load("postgres", adapter, overlay=None if sql_dir is None else Path(sql_dir))


def _load_postgres_application(folder: Path) -> QuerySet:
    from wfe_sql.engines.postgres.driver import NamedRowsAdapter, split_script

    adapter: Any = NamedRowsAdapter
    return load_application("postgres", adapter, folder, split_script)


class PostgresPersistenceProvider(SqlPersistenceProvider):
    """A `PersistenceProvider` on one schema of a PostgreSQL database (14 or newer); needs `wfe-sql[postgres]`.

    A pooler in session or transaction mode may stand in front of the server; opening the store detects the mode. In
    transaction mode every call is a transaction that starts with its settings, and nothing is prepared.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it, and two more options:
            `schema=name` takes precedence over the argument; `mode=ro` opens read-only, and `mode=rw` only a store that
            exists.
        schema: The schema of the tables, a plain name. It is created if it does not exist.
        max_connections: The most connections; each is opened when it is needed. `wait_for_work` has one more,
            which it listens on.
        clock: Returns the current time, aware; everything about expiry uses it.
        sql_dir: A folder with `.sql` files whose queries replace those of the same name.
        app_sql: As for `SqlitePersistenceProvider`, with a folder `postgres`. A table without a schema before its name
            is looked for in the store's schema only, not in the role's search_path. The queries run with the settings
            of this library's queries (`set_up_connection`).
        poll_interval: How often `wait_for_work` looks at the store if the server cannot notify it: behind a pooler in
            transaction mode, on a standby, on Citus, if the store lacks the triggers, and while a lost connection is
            not back; also the longest pause before it returns again for due work that nobody takes.
        fallback_interval: How often `wait_for_work` looks at the store even if nothing woke it.
        on_conflict, allow_unfinished_copy, on_unit: As for `SqlitePersistenceProvider`.
        application_name: The name of the connections in the server's views and log, unless the URL has one.
        connect_timeout: How long connecting to each host of the URL may take, and how long a call waits for a free
            connection.
        statement_timeout: How long one statement may take, including waits for locks; None for no limit. If the server
            is silent for 5 seconds longer, the connection is closed.
        wait_for_server: How long calls keep trying while the server cannot be reached; with zero they fail at once. A
            write always fails if its connection was lost when it may have been committing.
        slow_unit: As for `SqlitePersistenceProvider`; also applies to a call that waits for a free connection.

    Raises:
        StoreError: The URL or an option is not one of these, or the driver is not installed.
        QueryFileError: A `.sql` file breaks a rule of `sql/README.md`.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        max_connections: int = 10,
        clock: Callable[[], datetime] = utc_now,
        sql_dir: str | os.PathLike[str] | None = None,
        app_sql: str | os.PathLike[str] | None = None,
        on_conflict: OnConflict = "raise",
        poll_interval: timedelta = _POLL_INTERVAL,
        fallback_interval: timedelta = _FALLBACK_INTERVAL,
        application_name: str = "wfe-sql",
        connect_timeout: timedelta = timedelta(seconds=10),
        statement_timeout: timedelta | None = timedelta(seconds=30),
        wait_for_server: timedelta = timedelta(0),
        allow_unfinished_copy: bool = False,
        on_unit: OnUnit | None = None,
        slow_unit: timedelta | None = timedelta(seconds=1),
        **unknown: Never,
    ) -> None:
        if not isinstance(url, str):
            raise StoreError(f"url must be a str, not {type(url).__name__}")
        _check_options(
            PostgresPersistenceProvider,
            unknown,
            sql_dir=sql_dir,
            app_sql=app_sql,
            allow_unfinished_copy=allow_unfinished_copy,
            schema=schema,
            max_connections=max_connections,
            application_name=application_name,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            wait_for_server=wait_for_server,
            poll_interval=poll_interval,
            fallback_interval=fallback_interval,
            on_unit=on_unit,
            slow_unit=slow_unit,
        )
        queries = load_postgres_queries(sql_dir)
        if app_sql is not None:
            queries = queries.with_application(_load_postgres_application(Path(app_sql)))
        from wfe_sql.engines.postgres.engine import PostgresEngine
        from wfe_sql.engines.postgres.store import PostgresStore
        from wfe_sql.engines.postgres.target import PostgresTarget

        location = parse_postgres_url(url)
        store = PostgresStore(
            PostgresTarget(location.url, connect_timeout, application_name),
            queries,
            schema=schema if location.schema is None else location.schema,
            statement_timeout=statement_timeout,
            mode=location.mode,
            allow_unfinished_copy=allow_unfinished_copy,
        )
        engine = PostgresEngine(
            store,
            queries,
            Reporter("postgresql", queries, on_unit, slow_unit),
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            wait_for_server=wait_for_server,
        )
        super().__init__(
            engine,
            clock=clock,
            on_conflict=on_conflict,
            poll_interval=poll_interval,
            fallback_interval=fallback_interval,
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of database.

    Attributes:
        name: The name of its folder in `sql/`.
        schemes: The schemes of its URLs.
        provider: Makes a provider for a URL; takes options.
        load: Returns its queries; those in a folder replace their namesakes. Raises `QueryFileError`.
        open_planner: Opens the store of a URL read-only, to explain queries on it. Raises `StoreError`.
        schema: Returns the DDL of a new store, as a script for the database's own command-line program.
        patient: The options with which no statement times out or is logged as slow.
    """

    name: str
    schemes: tuple[str, ...]
    provider: Callable[..., SqlPersistenceProvider]
    load: Callable[[str | os.PathLike[str] | None], QuerySet]
    open_planner: Callable[[str, QuerySet], AbstractContextManager[Planner]]
    schema: Callable[[QuerySet], str]
    patient: StoreOptions


def _sqlite_schema(queries: QuerySet) -> str:
    version = queries["record_store_version"]
    recorded = version.text.replace(version.sql, version.filled_in("version", str(VERSION)))
    return "\n".join([*(queries[name].text for name in new_store_scripts()), recorded])


def _postgres_schema(queries: QuerySet) -> str:
    from wfe_sql.engines.postgres.store import schema_script

    return schema_script(queries)


def _open_postgres_planner(url: str, queries: QuerySet) -> AbstractContextManager[Planner]:
    from wfe_sql.engines.postgres.plans import open_postgres_planner
    from wfe_sql.engines.postgres.target import PostgresTarget

    location = parse_postgres_url(url)
    target = PostgresTarget(location.url, timedelta(seconds=10))
    return open_postgres_planner(target, queries, schema=location.schema or DEFAULT_SCHEMA)


_ALL = (
    Backend(
        name="sqlite",
        schemes=("sqlite",),
        provider=SqlitePersistenceProvider,
        load=load_sqlite_queries,
        open_planner=lambda url, queries: open_sqlite_planner(parse_sqlite_url(url), queries),
        schema=_sqlite_schema,
        patient={"slow_unit": None},
    ),
    Backend(
        name="postgres",
        schemes=("postgresql", "postgres"),
        provider=PostgresPersistenceProvider,
        load=load_postgres_queries,
        open_planner=_open_postgres_planner,
        schema=_postgres_schema,
        patient={"statement_timeout": None, "slow_unit": None},
    ),
)

BACKENDS = {backend.name: backend for backend in _ALL}

_BY_SCHEME = {scheme: backend for backend in _ALL for scheme in backend.schemes}


def backend_of(url: str | os.PathLike[str]) -> Backend:
    """Return the backend of a store's URL; for a path, SQLite.

    Raises:
        StoreError: No backend has the URL's scheme.
    """
    scheme = scheme_of(url)
    if scheme not in _BY_SCHEME:
        raise StoreError(
            f"unknown URL scheme {scheme!r}; use sqlite:///absolute/path.db, sqlite://relative/path.db, :memory:, "
            "a path (pathlib.Path for a file name with a colon), or postgresql://user:password@host/database"
        )
    return _BY_SCHEME[scheme]


def connect(url: str | os.PathLike[str], **options: Unpack[StoreOptions]) -> SqlPersistenceProvider:
    """Return a provider for a URL, not yet opened: use `async with`, or `await` its `open()`.

    Args:
        url: A URL or path as `SqlitePersistenceProvider` or `PostgresPersistenceProvider` takes it.
        options: The options of that provider.

    Raises:
        StoreError: No backend has the URL's scheme, the URL or an option is wrong, or the provider has no such option.
    """
    return backend_of(url).provider(url, **options)
