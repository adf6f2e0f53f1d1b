"""The conformance suite on every backend of this library."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import cache
from pathlib import Path

import pytest

from poolers import pooler
from wfe_sql import PersistenceProvider, PostgresPersistenceProvider, SqlitePersistenceProvider
from wfe_sql.backends import load_postgres_queries
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import Capabilities, ManualClock
from wfe_sql.testing.conformance import *  # noqa: F403 - the suite's classes are this module's tests

OTHERS = {
    "memory": pytest.mark.slow,
    "postgres through transaction": pytest.mark.slow,
    "postgres through transaction, tracked": pytest.mark.slow,
    "one connection": pytest.mark.exhaustive,
    "postgres, one connection": pytest.mark.exhaustive,
    "postgres through session": pytest.mark.exhaustive,
    "postgres with plans as on Citus": pytest.mark.exhaustive,
}
"""The backends on which the suite does not run by default, with what selects them."""


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


@pytest.fixture(scope="session")
def plans_as_on_citus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a version of set_up_connection that leaves plans to the server, as on Citus."""
    folder = tmp_path_factory.mktemp("sql")
    text = load_postgres_queries()["set_up_connection"].text
    assert text.count("'force_generic_plan'") == 1
    (folder / "connection.sql").write_text(text.replace("'force_generic_plan'", "'auto'"))
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on each backend that the marks may select: those of the others take long to make, too."""
    if "backend" in metafunc.fixturenames:
        is_default = metafunc.config.option.markexpr == "not slow and not exhaustive"
        others = {} if is_default else OTHERS
        metafunc.parametrize(
            "backend",
            ["file", "postgres", *(pytest.param(name, marks=mark) for name, mark in others.items())],
            indirect=True,
        )


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_provider(
    request: pytest.FixtureRequest, backend: str, tmp_path: Path, clock: ManualClock
) -> Callable[[], PostgresPersistenceProvider | SqlitePersistenceProvider]:
    """A function that returns a provider of the test's store, not opened yet."""
    if not backend.startswith("postgres"):
        path = ":memory:" if backend == "memory" else tmp_path / "store.db"
        connections = 1 if backend == "one connection" else 4
        return lambda: SqlitePersistenceProvider(path, max_connections=connections, clock=clock)
    url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("empty_schema")
    if through := backend.partition(" through ")[2]:
        url = request.getfixturevalue("poolers")(through)
    connections = 1 if backend.endswith("one connection") else 10
    tuned = request.getfixturevalue("plans_as_on_citus") if backend.endswith("as on Citus") else None
    return lambda: PostgresPersistenceProvider(
        url, schema=schema, max_connections=connections, clock=clock, sql_dir=tuned
    )


@pytest.fixture
async def provider(make_provider: Callable[[], SqlPersistenceProvider]) -> AsyncIterator[PersistenceProvider]:
    async with make_provider() as opened:
        yield opened


@pytest.fixture  # type: ignore[no-redef] # it overrides the suite's
async def another_provider(
    backend: str, make_provider: Callable[[], SqlPersistenceProvider]
) -> AsyncIterator[Callable[[], Awaitable[PersistenceProvider]]]:
    if backend == "memory":
        pytest.skip("a store in memory has one provider")
    async with AsyncExitStack() as opened:
        yield lambda: opened.enter_async_context(make_provider())


@pytest.fixture  # type: ignore[no-redef] # it overrides the suite's
def capabilities(provider: PersistenceProvider, backend: str) -> Capabilities:
    if isinstance(provider, PostgresPersistenceProvider):
        return Capabilities(stores_nul=False, longest_key=600)  # an index entry can have at most 2704 bytes
    return Capabilities(wakes_on="process" if backend == "memory" else "store")
