"""What can be done with the SQL of each dialect without a provider: load it, explain it, print its tables."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from wfe_sql.backends import load_postgres_queries, load_sqlite_queries
from wfe_sql.engines.sqlite.plans import open_sqlite_planner
from wfe_sql.engines.sqlite.store import new_store_scripts
from wfe_sql.engines.stores import VERSION
from wfe_sql.plans import Planner
from wfe_sql.queries import QuerySet
from wfe_sql.urls import DEFAULT_SCHEMA, parse_postgres_url, parse_sqlite_url, scheme_of


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect's SQL.

    Attributes:
        name: The name of its folder in `sql/`.
        load: Returns its queries, with those in a folder in place of their namesakes. Raises `QueryFileError`.
        open_planner: Opens the store of a URL for reading only, to explain queries on it. Raises `StoreError`.
        schema: Returns the DDL of a new store, as a script for the database's own command line.
    """

    name: str
    load: Callable[[str | os.PathLike[str] | None], QuerySet]
    open_planner: Callable[[str, QuerySet], AbstractContextManager[Planner]]
    schema: Callable[[QuerySet], str]


def dialect_of(url: str) -> Dialect:
    """Return the dialect of a store's URL.

    Raises:
        StoreError: No backend has the URL's scheme.
    """
    return _BY_SCHEME[scheme_of(url)]


def _sqlite_schema(queries: QuerySet) -> str:
    version = queries["record_store_version"]
    recorded = version.text.replace(version.sql, version.filled_in("version", str(VERSION)))
    return "\n".join([*(queries[name].text for name in new_store_scripts()), recorded])


def _postgres_schema(queries: QuerySet) -> str:
    from wfe_sql.engines.postgres.store import schema_script

    return schema_script(queries)


@contextmanager
def _open_postgres_planner(url: str, queries: QuerySet) -> Iterator[Planner]:
    from wfe_sql.engines.postgres.plans import open_postgres_planner
    from wfe_sql.engines.postgres.pool import PostgresTarget

    location = parse_postgres_url(url)
    target = PostgresTarget(location.url, timedelta(seconds=10))
    with open_postgres_planner(target, queries, schema=location.schema or DEFAULT_SCHEMA) as planner:
        yield planner


DIALECTS = {
    "sqlite": Dialect(
        name="sqlite",
        load=load_sqlite_queries,
        open_planner=lambda url, queries: open_sqlite_planner(parse_sqlite_url(url), queries),
        schema=_sqlite_schema,
    ),
    "postgres": Dialect(
        name="postgres",
        load=load_postgres_queries,
        open_planner=_open_postgres_planner,
        schema=_postgres_schema,
    ),
}

_BY_SCHEME = {"sqlite": DIALECTS["sqlite"], "postgresql": DIALECTS["postgres"]}
