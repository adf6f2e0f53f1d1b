"""Every store does what the model does, whatever is asked of it, and however much at once."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from property.explore import Run
from property.operations import OPERATIONS_OF_A_RUN, operations_of
from wfe_sql import PostgresPersistenceProvider, SqlitePersistenceProvider
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock

SHORT = {"memory": 2_000, "file": 2_000, "postgres": 1_500}
"""How many operations the test's short form has."""


def hosts(store: str, request: pytest.FixtureRequest, clock: ManualClock) -> list[SqlPersistenceProvider]:
    """Return the providers of one store, not opened yet; a store in memory has one."""
    if store == "memory":
        return [SqlitePersistenceProvider(":memory:", clock=clock, on_conflict="raise")]
    if store == "file":
        path: Path = request.getfixturevalue("tmp_path") / "store.db"
        open_: Callable[..., SqlPersistenceProvider] = lambda **options: SqlitePersistenceProvider(path, **options)
    else:
        url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("schema")
        open_ = lambda **options: PostgresPersistenceProvider(url, schema=schema, **options)
    return [open_(clock=clock, on_conflict=how) for how in ("raise", "raise", "overwrite")]


@pytest.mark.parametrize("store", ["memory", "file", "postgres"])
def test_a_store_does_what_the_model_does(store: str, request: pytest.FixtureRequest) -> None:
    asked = request.config.getoption("--operations")
    at_least, done, clock = asked or SHORT[store], 0, ManualClock()

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def open_all() -> list[SqlPersistenceProvider]:
            return [await stack.enter_async_context(host) for host in hosts(store, request, clock)]

        providers = runner.run(open_all())

        @settings(
            max_examples=at_least // OPERATIONS_OF_A_RUN,
            derandomize=asked is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(st.lists(st.integers(0, 2**32), min_size=OPERATIONS_OF_A_RUN, max_size=OPERATIONS_OF_A_RUN))
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
            print(f"{store}: {done:,} operations")
            runner.run(stack.aclose())
