"""Ready pytest fixtures for the tests of a host: import them into a `conftest.py`. They need pytest-asyncio."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from wfe_sql.backends import SqlitePersistenceProvider
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still; the provider of the same test goes by it."""
    return ManualClock()


@pytest_asyncio.fixture
async def provider(clock: ManualClock) -> AsyncIterator[PersistenceProvider]:
    """Return an empty store in memory."""
    async with SqlitePersistenceProvider(":memory:", clock=clock) as opened:
        yield opened
