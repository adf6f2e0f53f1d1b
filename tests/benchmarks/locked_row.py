"""What a locked row costs callers that write other rows, on PostgreSQL.

    WFE_SQL_TEST_POSTGRES_URL=... python tests/benchmarks/locked_row.py [--seconds 1.5] [--callers 24]

Each caller stores its own workflow, again and again: without a lock, with a locked row that nobody wants, and with the
first caller's row locked. The second case shows the cost of any open transaction: it keeps the server from removing
what updates leave behind, which slows down all of them. A vacuum runs before each case, and every other round reverses
the order, so that no case profits from another.
"""

import argparse
import asyncio
import os
import time
from uuid import uuid4

import psycopg

from wfe_sql import PostgresPersistenceProvider, WorkflowInstance
from wfe_sql.testing import full_instance

ROUNDS = 6


async def writes_per_second(
    provider: PostgresPersistenceProvider, instances: list[WorkflowInstance], seconds: float
) -> float:
    """Return how many writes all instances but the first get; the first may wait until all have ended."""
    end, done = time.perf_counter() + seconds, 0

    async def write_again_and_again(instance: WorkflowInstance) -> None:
        nonlocal done
        while time.perf_counter() < end:
            instance.execution_pointers[0].retry_count += 1
            await provider.persist_workflow(instance)
            done += instance is not instances[0]

    first, *others = (asyncio.ensure_future(write_again_and_again(instance)) for instance in instances)
    await asyncio.gather(*others)
    if not first.done():
        first.cancel()
        await asyncio.wait([first])
    return done / seconds


async def main(url: str, callers: int, seconds: float) -> None:
    """Measure in a schema that is dropped at the end, and print the figures, also as shares of the first."""
    schema = f"locked_row_{uuid4().hex}"
    try:
        async with PostgresPersistenceProvider(url, schema=schema, on_conflict="overwrite") as provider:
            instances = [full_instance(id=f"w{number:03}", name=f"w{number:03}") for number in range(callers)]
            for instance in instances:
                await provider.create_new_workflow(instance)
            await provider.create_new_workflow(full_instance(id="unwanted", name="unwanted"))
            writes = dict.fromkeys(("nobody", "unwanted", "w000"), 0.0)
            options = f"-c search_path={schema}"
            with (
                psycopg.connect(url, options=options) as somebody,
                psycopg.connect(url, options=options, autocommit=True) as administrator,
            ):
                for number in range(ROUNDS):
                    for locked in sorted(writes, reverse=bool(number % 2)):
                        administrator.execute("VACUUM workflows, execution_pointers")
                        await asyncio.to_thread(
                            somebody.execute, "SELECT 1 FROM workflows WHERE id = %s FOR UPDATE", [locked]
                        )
                        if locked == "nobody":
                            somebody.rollback()
                        writes[locked] += await writes_per_second(provider, instances, seconds) / ROUNDS
                        somebody.rollback()
            for locked, rate in writes.items():
                shares = f"{rate / writes['nobody']:.0%} of nobody's, {rate / writes['unwanted']:.0%} of unwanted's"
                print(f"{callers - 1} others, {locked} locked: {rate:,.0f} a second ({shares})")
    finally:
        with psycopg.connect(url, autocommit=True, options="-c client_min_messages=warning") as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    asyncio.run(main(os.environ["WFE_SQL_TEST_POSTGRES_URL"], options.callers, options.seconds))
