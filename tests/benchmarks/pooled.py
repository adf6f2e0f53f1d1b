"""What a call costs directly and through PgBouncer, in microseconds, the median of several rounds.

    python tests/benchmarks/pooled.py

PostgreSQL starts by itself, or is that of WFE_SQL_TEST_POSTGRES_URL; pgbouncer must be installed.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from places import postgres_server

from poolers import pooler
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.testing import full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

CALLS, ROUNDS = 160, 3
CALLERS = (1, 16)

Call = Callable[[int], Awaitable[object]]


async def measure(url: str) -> dict[str, int]:
    """Return the microseconds of each call, by its name and how many callers there are."""
    found: dict[str, int] = {}
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

        calls: dict[str, Call] = {
            "get": lambda caller: host.get_workflow_instance(f"w{caller}"),
            "persist": persist,
            "sequence": lambda caller: host.next_definition_sequence("order"),
            "poll": lambda caller: host.get_runnable_instances(TIME, limit=1),
        }
        for name, call in calls.items():
            for callers in CALLERS:
                found[f"{name}, {callers}"] = await _cost(call, callers)
    return found


async def _cost(call: Call, callers: int) -> int:
    async def repeat(caller: int) -> None:
        for _ in range(CALLS // callers):
            await call(caller)

    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await asyncio.gather(*(repeat(caller) for caller in range(callers)))
        rounds.append((time.perf_counter() - began) / (CALLS // callers * callers))
    return round(statistics.median(rounds) * 1e6)


def main() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        sides = {"direct": server}
        for mode in ("session", "transaction"):
            sides[mode] = stack.enter_context(pooler(server, mode))
        costs = {side: asyncio.run(measure(url)) for side, url in sides.items()}
    print("us a call", *sides, sep="\t")
    for name in costs["direct"]:
        print(name, *(costs[side][name] for side in sides), sep="\t")


if __name__ == "__main__":
    main()
