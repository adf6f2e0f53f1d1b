"""The backends: the providers that a host makes, what else each is made of, and which one a URL means."""

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Never, TypedDict, Unpack

from wfe_sql.codecs import INTEGER, TEXT
from wfe_sql.durations import check_duration
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
"""Both databases count timeouts in milliseconds, in 32 bits."""

_POLL_INTERVAL = timedelta(seconds=1)
_FALLBACK_INTERVAL = timedelta(minutes=2)


class StoreOptions(TypedDict, total=False):
    """What `connect` takes: the options of the providers, each of which documents its own. Lengths are `timedelta`s."""

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


def _check_options(
    provider: type[SqlPersistenceProvider], unknown: dict[str, Never], **options: Unpack[StoreOptions]
) -> None:
    """Check the types of options, and what no driver takes.

    Raises:
        StoreError: The provider does not have one of them, or it is of the wrong type, or a timeout is too long.
    """
    for name in unknown:
        known = ", ".join(inspect.getfullargspec(provider).kwonlyargs)
        raise StoreError(f"{provider.__name__} has no option {name!r}; its options are {known}")
    for name, value in options.items():
        if value is None and name in ("sql_dir", "app_sql", "statement_timeout"):
            continue
        if name in ("sql_dir", "app_sql"):
            _check_path(name, value)
        elif name == "allow_unfinished_copy":
            if not isinstance(value, bool):
                raise StoreError(f"{name} must be a bool, not {type(value).__name__}")
        elif name in ("max_connections", "schema", "application_name"):
            try:
                (INTEGER if name == "max_connections" else TEXT).encode(value)
            except ValueError as error:
                raise StoreError(f"{name} {error}") from error
        elif name.endswith(("_timeout", "_interval")) or name == "wait_for_server":
            check_duration(name, value, StoreError)
            if isinstance(value, timedelta) and value > _LONGEST_TIMEOUT:
                raise StoreError(f"{name} must be at most {_LONGEST_TIMEOUT.days} days, not {value}")


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise StoreError(f"{name} must be a str or a path, not {type(value).__name__}")


def load_sqlite_queries(sql_dir: str | os.PathLike[str] | None = None) -> QuerySet:
    """Return the queries of SQLite, with those in `sql_dir` in place of their namesakes.

    Raises:
        QueryFileError: A `.sql` file breaks a rule of the house, or a query there does not do for the one it replaces.
    """
    overlay = None if sql_dir is None else Path(sql_dir)
    return load("sqlite", InTransactionAdapter, check=check_tuned_sqlite, overlay=overlay)


class SqlitePersistenceProvider(SqlPersistenceProvider):
    """A `PersistenceProvider` on one SQLite file, or in memory.

    Args:
        url: `sqlite:///absolute/path.db`, `sqlite://relative/path.db`, a plain path, or `:memory:`; `?mode=ro` opens
            for reading only, and `?mode=rw` only a file that exists.
        durability: "full" has each write on the disk before it is acknowledged; "normal" may lose the last ones when
            the power fails, though never the file.
        busy_timeout: How long to wait for other processes that hold the file, from when a call is made.
        max_connections: One writes and the others read; from 3 on, one of these does brief reads, of at most 0.5 ms, on
            the event loop, and with 1 or 2 all go to threads. A database in memory has one for both. `wait_for_work`
            has one more.
        clock: Returns the current time, aware; everything about expiry uses it.
        on_conflict: "raise" has persisting raise `WorkflowConflictError` when the workflow was changed, or deleted and
            made again, since the instance was loaded or stored; "overwrite" writes over it, as the reference does.
        poll_interval: How long `wait_for_work` lets what is due and nobody takes rest until it returns for it again.
        fallback_interval: After how long `wait_for_work` looks at the store though nothing told it to.
        sql_dir: A folder with `.sql` files whose queries replace those of the same name.
        app_sql: A folder with `.sql` files of the application's own, for `UnitOfWork.run` and `fetch`: queries as this
            library has them, each with a line of text below its name. Those in its folder `sqlite`, if it has one, are
            for SQLite only. They may not begin or end transactions. Their tables are the application's: it makes them,
            and maintenance leaves them alone.
        allow_unfinished_copy: Open a store even if a `copy_to` into it was killed, or is under way: to check it, or to
            copy into it again. It has only a part of the rows, so no host may work on it.

    Raises:
        StoreError: The URL or an option is not one of these.
        QueryFileError: A `.sql` file breaks a rule of the house.
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
        )
        queries = load_sqlite_queries(sql_dir)
        if app_sql is not None:
            own = load_application("sqlite", NamedRowsAdapter, Path(app_sql), split_script)
            queries = queries.with_application(own)
        target = parse_sqlite_url(url)
        store = SqliteStore(target, queries, durability, busy_timeout, allow_unfinished_copy=allow_unfinished_copy)
        engine = SqliteEngine(store, queries, max_connections=max_connections)
        super().__init__(
            engine,
            clock=clock,
            on_conflict=on_conflict,
            poll_interval=poll_interval,
            fallback_interval=fallback_interval,
        )


def load_postgres_queries(sql_dir: str | os.PathLike[str] | None = None) -> QuerySet:
    """Return the queries of PostgreSQL, with those in `sql_dir` in place of their namesakes.

    What only a server can tell of those, whether it takes them and which columns they return, is checked when a store
    is opened.

    Raises:
        QueryFileError: A `.sql` file breaks a rule of the house.
        StoreError: The driver is not installed.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise StoreError(
            "PostgreSQL needs the driver psycopg, which is not installed: pip install 'wfe-sql[postgres]'"
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

    A pooler may stand between it and the server, in session or transaction mode; which of them is found out when it is
    opened. In transaction mode every call is a transaction that begins with its settings, and nothing is prepared.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it, and two more options:
            `schema=name` wins over the argument; `mode=ro` opens for reading only, and `mode=rw` only a store that
            exists.
        schema: Where the tables are: a plain name. It is made when it does not exist.
        max_connections: How many connections there are at most; they are made when they are needed. `wait_for_work`
            has one more, which it listens on.
        clock: Returns the current time, aware; everything about expiry uses it.
        sql_dir: A folder with `.sql` files whose queries replace those of the same name.
        app_sql: As for `SqlitePersistenceProvider`, with a folder `postgres`. A table without a schema before its name
            is looked for in the store's schema only, whatever the role's search_path. The queries run with the settings
            of this library's own (`set_up_connection`).
        poll_interval: How often `wait_for_work` looks at the store where the server cannot tell it: behind a pooler in
            transaction mode, on a standby, on Citus, where the store lacks the triggers, and until a connection that
            was lost is back; and how long it lets what is due and nobody takes rest.
        fallback_interval: After how long `wait_for_work` looks at the store though nothing told it to.
        on_conflict, allow_unfinished_copy: As for `SqlitePersistenceProvider`.
        application_name: What the server's views and log call the connections, unless the URL says so.
        connect_timeout: How long connecting may take, for each host of the URL, and how long a call waits for a free
            connection.
        statement_timeout: How long the server may take over one statement, waiting for locks included; None is no end.
            A connection whose server says nothing for 5 seconds longer is cut.
        wait_for_server: How long calls go on trying while the server cannot be reached; zero has them fail at once. A
            write whose connection was lost when it may have been committing fails in any case.

    Raises:
        StoreError: The URL or an option is not one of these, or the driver is not installed.
        QueryFileError: A `.sql` file breaks a rule of the house.
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
        )
        queries = load_postgres_queries(sql_dir)
        if app_sql is not None:
            queries = queries.with_application(_load_postgres_application(Path(app_sql)))
        from wfe_sql.engines.postgres.engine import PostgresEngine
        from wfe_sql.engines.postgres.pool import PostgresTarget
        from wfe_sql.engines.postgres.store import PostgresStore

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
        load: Returns its queries, with those in a folder in place of their namesakes. Raises `QueryFileError`.
        open_planner: Opens the store of a URL for reading only, to explain queries on it. Raises `StoreError`.
        schema: Returns the DDL of a new store, as a script for the database's own command line.
        patient: Options with which no statement is ended for taking long.
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
    from wfe_sql.engines.postgres.pool import PostgresTarget

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
        patient={},
    ),
    Backend(
        name="postgres",
        schemes=("postgresql", "postgres"),
        provider=PostgresPersistenceProvider,
        load=load_postgres_queries,
        open_planner=_open_postgres_planner,
        schema=_postgres_schema,
        patient={"statement_timeout": None},
    ),
)

BACKENDS = {backend.name: backend for backend in _ALL}

_BY_SCHEME = {scheme: backend for backend in _ALL for scheme in backend.schemes}


def backend_of(url: str | os.PathLike[str]) -> Backend:
    """Return the backend of a store's URL; a path is SQLite's.

    Raises:
        StoreError: No backend has the URL's scheme.
    """
    scheme = scheme_of(url)
    if scheme not in _BY_SCHEME:
        raise StoreError(
            f"{scheme}: is no scheme of a store; use sqlite:///absolute/path.db, sqlite://relative/path.db, :memory:, "
            "a path (pathlib.Path for a file name with a colon), or postgresql://user:password@host/database"
        )
    return _BY_SCHEME[scheme]


def connect(url: str | os.PathLike[str], **options: Unpack[StoreOptions]) -> SqlPersistenceProvider:
    """Return the provider for a URL, not opened yet: use it with `async with`, or `await` its `open()`.

    Args:
        url: What `SqlitePersistenceProvider` or `PostgresPersistenceProvider` takes.
        options: What the provider of that scheme takes.

    Raises:
        StoreError: No backend has the URL's scheme, the URL or an option is wrong, or the provider has no such option.
    """
    return backend_of(url).provider(url, **options)
