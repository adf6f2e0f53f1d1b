"""The conformance suite on every backend of this library."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from wfe_sql import PersistenceProvider, SqlitePersistenceProvider
from wfe_sql.testing import ManualClock
from wfe_sql.testing.conformance import *  # noqa: F403 - the suite's classes are this module's tests


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["file", "memory", "one connection"])
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[PersistenceProvider]:
    url = ":memory:" if request.param == "memory" else tmp_path / "store.db"
    connections = 1 if request.param == "one connection" else 4
    async with SqlitePersistenceProvider(url, max_connections=connections, clock=clock) as opened:
        yield opened
