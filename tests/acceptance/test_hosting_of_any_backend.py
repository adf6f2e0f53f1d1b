"""`Hosting` for any backend that inherits it, with only the other Protocols; and a workflow that cannot be read."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from wfe_sql import Claim, Hosting, SqlitePersistenceProvider, UnitOfWork
from wfe_sql.testing import ManualClock, sample_instance
from wfe_sql.testing.conformance.hosting import (  # noqa: F401 - the suite's classes are this module's tests
    TestChange,
    TestHold,
    TestLoadedClaims,
    TestNumberedWorkflows,
    TestProcess,
)
from wfe_sql.testing.samples import TIME

LEASE = timedelta(seconds=30)


class AnyBackend(SqlitePersistenceProvider):
    """A backend that adds nothing for hosts, and whose units do not tell `hold` what they release."""

    create_numbered_workflow = Hosting.create_numbered_workflow
    claim_and_load_instances = Hosting.claim_and_load_instances
    _unit_that_tells_conflicts = Hosting._unit_that_tells_conflicts

    def unit(self, claim: Claim | None = None, *, release: bool = False) -> UnitOfWork:
        self._held_claims.clear()
        return super().unit(claim, release=release)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def provider(clock: ManualClock, tmp_path: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with AnyBackend(tmp_path / "store.db", clock=clock) as opened:
        yield opened


@pytest.mark.parametrize("backend", [AnyBackend, SqlitePersistenceProvider])
async def test_a_damaged_workflow_does_not_hold_up_the_others(
    backend: type[SqlitePersistenceProvider], clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "store.db"
    async with backend(file, clock=clock) as store:
        for id_ in ("damaged", "one", "two"):
            await store.create_new_workflow(sample_instance(id=id_, next_execution=0))
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("UPDATE workflows SET data = '{' WHERE id = 'damaged'")
            connection.commit()
        loaded = await store.claim_and_load_instances(TIME, "host", lease=LEASE, limit=10)
        assert [instance.id for _, instance in loaded] == ["one", "two"]
        assert "'damaged' is left out, and stays claimed until its lease ends" in caplog.text
        assert await store.claim_and_load_instances(TIME, "host", lease=LEASE, limit=10) == []
        clock.advance(seconds=LEASE.total_seconds() + 1)
        again = await store.claim_runnable_instances(TIME, "host", lease=timedelta(seconds=1), limit=1)
        assert [claim.id for claim in again] == ["damaged"]
