"""What a locked row costs callers that write other rows, on PostgreSQL.

    python tests/benchmarks/locked_row.py [--seconds 1.5] [--callers 24]

Each caller stores its own workflow, again and again: without a lock, with a locked row that nobody wants, and with the
first caller's row locked. The second case shows the cost of any open transaction: it keeps the server from removing
what updates leave behind, which slows down all of them. A vacuum runs before each case, and every other round reverses
the order, so that no case profits from another.
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from places import Schema, Schemas, postgres_server
from report import ON_DISK

from wfe_sql import PostgresPersistenceProvider, WorkflowInstance
from wfe_sql.testing import full_instance

ROUNDS = 6


async def write_until(end: float, provider: PostgresPersistenceProvider, instance: WorkflowInstance) -> int:
    """Store a workflow again and again, at least once, and return how often."""
    done = 0
    while not done or time.perf_counter() < end:
        instance.execution_pointers[0].retry_count += 1
        await provider.persist_workflow(instance)
        done += 1
    return done


async def measure(places: Schemas, place: Schema, callers: int, seconds: float) -> dict[str, list[float]]:
    """Return the writes per second in each round, by the id of the locked workflow, if there is one."""
    writes: dict[str, list[float]] = {"nobody": [], "unwanted": [], "w000": []}
    async with PostgresPersistenceProvider(place.url, schema=place.name, on_conflict="overwrite") as provider:
        instances = [full_instance(id=f"w{number:03}", name=f"w{number:03}") for number in range(callers)]
        for instance in instances:
            await provider.create_new_workflow(instance)
        await provider.create_new_workflow(full_instance(id="unwanted", name="unwanted"))
        for number in range(ROUNDS):
            for locked in sorted(writes, reverse=bool(number % 2)):
                with places.locked_workflow(place, locked):
                    end = time.perf_counter() + seconds
                    first, *others = [asyncio.create_task(write_until(end, provider, each)) for each in instances]
                    writes[locked].append(sum(await asyncio.gather(*others)) / seconds)
                await first  # it may have waited for the row; the next lock would wait for it, and block the event loop
    return writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", type=int, default=24, help="how many store a workflow each (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="how long each case of a round runs (default %(default)s)"
    )
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where the server's data is (default %(default)s)")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        places = Schemas(stack.enter_context(postgres_server(folder)), durable=True)
        with places.new_store("locked") as place:
            writes = asyncio.run(measure(places, place, options.callers, options.seconds))
    for locked, rates in writes.items():
        shares = (
            f"{median(a / b for a, b in zip(rates, writes[other], strict=True)):.0%} of {other}'s"
            for other in ("nobody", "unwanted")
        )
        print(f"{options.callers - 1} others, {locked} locked: {median(rates):,.0f} a second ({', '.join(shares)})")


if __name__ == "__main__":
    main()
