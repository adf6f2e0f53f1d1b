"""The cost of a call directly and through PgBouncer: medians of rounds in turns, and their ratios.

    python tests/benchmarks/pooled.py

It starts PostgreSQL, unless WFE_SQL_TEST_POSTGRES_URL names a server; pgbouncer must be installed.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from places import postgres_server

from poolers import TRACKS_SINCE, pooler, version
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.testing import full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

CALLS, ROUNDS = 160, 7
CALLERS = (1, 16)

Call = Callable[[int], Awaitable[object]]


async def measure(urls: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the seconds of each call through each URL, by name and number of callers."""
    found: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        sides = {side: await stack.enter_async_context(_calls(url)) for side, url in urls.items()}
        for name in next(iter(sides.values())):
            for callers in CALLERS:
                rounds = [
                    {side: await _cost(calls[name], callers) for side, calls in sides.items()} for _ in range(ROUNDS)
                ]
                found[f"{name}, {callers}"] = {
                    side: statistics.median(costs[side] for costs in rounds) for side in sides
                }
    return found


@asynccontextmanager
async def _calls(url: str) -> AsyncIterator[dict[str, Call]]:
    """Open a store with a workflow of five pointers for each caller, and yield the calls to measure."""
    async with PostgresPersistenceProvider(url, schema=f"bench_{uuid4().hex}", on_conflict="overwrite") as host:
        instances = [
            sample_instance(id=f"w{number}", execution_pointers=[full_pointer() for _ in range(5)])
            for number in range(max(CALLERS))
        ]
        for instance in instances:
            await host.create_new_workflow(instance)

        async def persist(caller: int) -> None:
            instances[caller].data = time.perf_counter()
            await host.persist_workflow(instances[caller])

        yield {
            "get": lambda caller: host.get_workflow_instance(f"w{caller}"),
            "persist": persist,
            "sequence": lambda caller: host.next_definition_sequence("order"),
            "poll": lambda caller: host.get_runnable_instances(TIME, limit=1),
        }


async def _cost(call: Call, callers: int) -> float:
    async def repeat(caller: int) -> None:
        for _ in range(CALLS // callers):
            await call(caller)

    began = time.perf_counter()
    await asyncio.gather(*(repeat(caller) for caller in range(callers)))
    return (time.perf_counter() - began) / (CALLS // callers * callers)


def main() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        urls = {"direct": server}
        for mode in ("session", "transaction"):
            urls[mode] = stack.enter_context(pooler(server, mode))
        if version() >= TRACKS_SINCE:
            urls["transaction, tracked"] = stack.enter_context(pooler(server, "transaction", prepared=200))
        costs = asyncio.run(measure(urls))
    print(f"| µs a call, callers | {' | '.join(urls)} |\n|---|{'---|' * len(urls)}")
    for name, by_side in costs.items():
        cells = (f"{cost * 1e6:,.0f} ({cost / by_side['direct']:.2f})" for cost in by_side.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
