"""The providers that a host makes, and `connect`, which picks one by the URL's scheme."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from wfe_sql.engines.sqlite import SqliteEngine
from wfe_sql.engines.sqlite_plans import SqlitePlanner
from wfe_sql.engines.sqlite_store import Durability, InTransactionAdapter, SqliteStore
from wfe_sql.engines.sqlite_tuning import check_tuned_sqlite
from wfe_sql.models import utc_now
from wfe_sql.provider import OnConflict, SqlPersistenceProvider
from wfe_sql.queries import QuerySet, load
from wfe_sql.urls import parse_sqlite_url, scheme_of


def load_sqlite_queries(sql_dir: str | os.PathLike[str] | None = None) -> QuerySet:
    """Return the queries of SQLite, with those in `sql_dir` in place of their namesakes.

    Raises:
        QueryFileError: A `.sql` file breaks a rule of the house, or a query there does not do for the one it replaces.
    """
    users = (SqlPersistenceProvider, SqliteEngine, SqliteStore, SqlitePlanner)
    own = load("sqlite", InTransactionAdapter(), users)
    if sql_dir is None:
        return own
    tuned = load("sqlite", InTransactionAdapter(), users, overlay=Path(sql_dir))
    check_tuned_sqlite(tuned, own)
    return tuned


class SqlitePersistenceProvider(SqlPersistenceProvider):
    """A `PersistenceProvider` on one SQLite file, or in memory.

    Args:
        url: `sqlite:///absolute/path.db`, `sqlite://relative/path.db`, a plain path, or `:memory:`; `?mode=ro` opens
            for reading only, and `?mode=rw` only a file that exists.
        durability: "full" has each write on the disk before it is acknowledged; "normal" may lose the last ones when
            the power fails, though never the file.
        busy_timeout: How long to wait for other processes that hold the file.
        max_connections: One writes and the others read; a database in memory has one for both.
        clock: Returns the current time, aware; everything about expiry uses it.
        on_conflict: "raise" has persisting raise `WorkflowConflictError` when the workflow was changed since the
            instance was loaded or stored through a provider; "overwrite" writes over it, as the reference does.
        sql_dir: A folder with `.sql` files whose queries replace those of the same name.

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
        on_conflict: OnConflict = "overwrite",
        sql_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        queries = load_sqlite_queries(sql_dir)
        store = SqliteStore(parse_sqlite_url(url), queries, durability, busy_timeout)
        engine = SqliteEngine(store, queries, max_connections=max_connections)
        super().__init__(engine, clock=clock, on_conflict=on_conflict)


def connect(url: str | os.PathLike[str], **options: Any) -> SqlPersistenceProvider:
    """Return the provider for a URL, not opened yet: use it with `async with`, or `await` its `open()`.

    Args:
        url: What `SqlitePersistenceProvider` takes.
        options: What the provider of that scheme takes.

    Raises:
        StoreError: No backend has the URL's scheme, or the URL or an option is wrong.
    """
    return _PROVIDERS[scheme_of(url)](url, **options)


_PROVIDERS: dict[str, Callable[..., SqlPersistenceProvider]] = {"sqlite": SqlitePersistenceProvider}
