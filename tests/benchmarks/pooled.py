"""The cost of a call directly and through PgBouncer: medians of rounds in turns, and their ratios.

    python tests/benchmarks/pooled.py [--calls 160] [--rounds 7]

It starts PostgreSQL, unless WFE_SQL_TEST_POSTGRES_URL names a server; pgbouncer must be installed.
"""

import argparse
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
from report import ON_DISK

from poolers import TRACKS_SINCE, pooler, version
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.testing import full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

CALLERS = (1, 16)

Call = Callable[[int], Awaitable[object]]


async def measure(urls: dict[str, str], calls: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each call through each URL, by name and number of callers."""
    found: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        sides = {side: await stack.enter_async_context(_calls(url)) for side, url in urls.items()}
        for name in next(iter(sides.values())):
            for callers in CALLERS:
                costs = [
                    {side: await _cost(by_name[name], callers, calls // callers) for side, by_name in sides.items()}
                    for _ in range(rounds)
                ]
                found[f"{name}, {callers}"] = {side: statistics.median(cost[side] for cost in costs) for side in sides}
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


async def _cost(call: Call, callers: int, times: int) -> float:
    async def repeat(caller: int) -> None:
        for _ in range(times):
            await call(caller)

    began = time.perf_counter()
    await asyncio.gather(*(repeat(caller) for caller in range(callers)))
    return (time.perf_counter() - began) / (times * callers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--calls", type=int, default=160, help="of each kind in a round, 16 at least (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="the figures are their medians (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where the server's data is (default %(default)s)")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        server = stack.enter_context(postgres_server(folder))
        urls = {"direct": server}
        for mode in ("session", "transaction"):
            urls[mode] = stack.enter_context(pooler(server, mode))
        if version() >= TRACKS_SINCE:
            urls["transaction, tracked"] = stack.enter_context(pooler(server, "transaction", prepared=200))
        costs = asyncio.run(measure(urls, options.calls, options.rounds))
    print(f"| µs a call, callers | {' | '.join(urls)} |\n|---|{'---|' * len(urls)}")
    for name, by_side in costs.items():
        cells = (f"{cost * 1e6:,.0f} ({cost / by_side['direct']:.2f})" for cost in by_side.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
