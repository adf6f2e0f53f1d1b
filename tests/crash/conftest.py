import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from poolers import pooler
from wfe_sql import FindingKind, connect

OF_A_CROWDED_STORE = {FindingKind.Overdue, FindingKind.ExpiredClaim, FindingKind.Statistics}
"""What `check` may find right after hosts were killed: work that is due, and tables that grew fast."""


@pytest.fixture
def store_url(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a store may be made: a file, or a database of its own."""
    if backend == "sqlite":
        yield str(tmp_path / "store.db")
        return
    server, name = request.getfixturevalue("postgres_url"), f"test_{uuid4().hex}"
    with closing(psycopg.connect(server, autocommit=True)) as administrator:
        administrator.execute(f"CREATE DATABASE {name}")
        yield make_conninfo(server, dbname=name)
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(backend: str, store_url: str) -> Iterator[str]:
    """What hosts open."""
    if backend == "sqlite":
        yield store_url
    elif backend.startswith("pooler"):
        mode, _, tracked = backend.removeprefix("pooler, ").partition(", ")
        with pooler(store_url, mode, prepared=200 if tracked else 0) as pooler_url:
            yield as_url(pooler_url)
    else:
        yield as_url(store_url)


def as_url(server: str) -> str:
    return f"postgresql://?{urlencode(conninfo_to_dict(server), quote_via=quote)}"


@pytest.fixture
def ask(backend: str, store_url: str) -> Callable[[str], list[Any]]:
    """A function that returns the rows of a query, as a person at a prompt would see them."""

    def ask_file(sql: str) -> list[Any]:
        with closing(sqlite3.connect(store_url)) as connection:
            return connection.execute(sql).fetchall()

    def ask_server(sql: str) -> list[Any]:
        with closing(psycopg.connect(store_url, autocommit=True, options="-c search_path=wfc")) as connection:
            return connection.execute(sql).fetchall()

    return ask_file if backend == "sqlite" else ask_server


@pytest.fixture
def assert_sound(url: str) -> Callable[[], Awaitable[None]]:
    """A check of the whole store: nothing is damaged, and nothing belongs to what is not there."""

    async def assert_sound() -> None:
        async with connect(url) as provider:
            assert [found for found in await provider.check() if found.kind not in OF_A_CROWDED_STORE] == []

    return assert_sound
