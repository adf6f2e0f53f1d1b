"""Every store does what the model does, with any calls, and with many at once."""

import asyncio
import faulthandler
from collections.abc import Callable
from contextlib import AsyncExitStack
from math import ceil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from property.explore import Run, open_hosts
from property.operations import NOTHING, OPERATIONS_OF_A_RUN, operations_of
from wfe_sql import PostgresPersistenceProvider, SqlitePersistenceProvider
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock

SHORT = {"memory": 600, "file": 500, "postgres": 300}
"""How many operations the test has in the short form."""

numbers_of_a_run = st.lists(st.integers(NOTHING, 2**32), min_size=OPERATIONS_OF_A_RUN, max_size=OPERATIONS_OF_A_RUN)


@pytest.fixture
def host(store: str, request: pytest.FixtureRequest, clock: ManualClock) -> Callable[..., SqlPersistenceProvider]:
    """Makes a provider of the test's store."""
    if store == "memory":
        return lambda **options: SqlitePersistenceProvider(":memory:", clock=clock, **options)
    if store == "file":
        path: Path = request.getfixturevalue("tmp_path") / "store.db"
        return lambda **options: SqlitePersistenceProvider(path, clock=clock, **options)
    url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema")
    return lambda **options: PostgresPersistenceProvider(url, schema=schema, clock=clock, **options)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.mark.parametrize("store", ["memory", "file", "postgres"])
def test_a_store_does_what_the_model_does(
    store: str,
    host: Callable[..., SqlPersistenceProvider],
    clock: ManualClock,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    asked, done = pytestconfig.getoption("--operations"), 0
    if asked:
        faulthandler.cancel_dump_traceback_later()  # it may take hours

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        providers = runner.run(open_hosts(stack, host, count=1 if store == "memory" else 3))

        @settings(
            max_examples=ceil((asked or SHORT[store]) / OPERATIONS_OF_A_RUN),
            derandomize=asked is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(numbers_of_a_run)
        def explore(numbers: list[int]) -> None:
            nonlocal done
            operations = operations_of(numbers)
            note("\n".join(map(repr, operations)))
            run = Run(providers, clock)
            try:
                runner.run(run.explore(operations))
            finally:
                done += run.count

        try:
            explore()
        finally:
            record_property("operations", f"{store}: {done:,} operations")
            runner.run(stack.aclose())
