"""The conformance suite on every backend of this library."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from poolers import pooler
from wfe_sql import PersistenceProvider, PostgresPersistenceProvider, SqlitePersistenceProvider
from wfe_sql.testing import Capabilities, ManualClock
from wfe_sql.testing.conformance import *  # noqa: F403 - the suite's classes are this module's tests


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def poolers(postgres_url: str) -> Iterator[Callable[[str], str]]:
    """A function that returns the URL of a pooler in one of its modes."""
    with ExitStack() as running:

        @cache
        def pooler_url(mode: str) -> str:
            prepared = 200 if mode == "transaction, tracked" else 0
            return running.enter_context(pooler(postgres_url, mode.partition(",")[0], prepared=prepared))

        yield pooler_url


@pytest.fixture(
    params=[
        *("file", "memory", "one connection", "postgres", "postgres, one connection"),
        *(
            pytest.param(f"postgres through {mode}", marks=pytest.mark.slow)
            for mode in ("session", "transaction", "transaction, tracked")
        ),
    ]
)
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[PersistenceProvider]:
    backend: str = request.param
    opening: PostgresPersistenceProvider | SqlitePersistenceProvider
    if backend.startswith("postgres"):
        url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("empty_schema")
        if through := backend.partition(" through ")[2]:
            url = request.getfixturevalue("poolers")(through)
        connections = 1 if backend.endswith("one connection") else 10
        opening = PostgresPersistenceProvider(url, schema=schema, max_connections=connections, clock=clock)
    else:
        path = ":memory:" if backend == "memory" else tmp_path / "store.db"
        opening = SqlitePersistenceProvider(path, max_connections=1 if backend == "one connection" else 4, clock=clock)
    async with opening as opened:
        yield opened


@pytest.fixture  # type: ignore[no-redef] # it overrides the suite's
def capabilities(provider: PersistenceProvider, request: pytest.FixtureRequest) -> Capabilities:
    if isinstance(provider, PostgresPersistenceProvider):
        return Capabilities(stores_nul=False, longest_key=600)  # at most 2704 bytes fit into an index's row
    return Capabilities(wakes_on="process" if "memory" in request.node.callspec.id else "store")
