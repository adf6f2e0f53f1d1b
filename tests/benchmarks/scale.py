"""How long the library's calls take as a store grows: finished workflows should cost those that are due nothing.

    python tests/benchmarks/scale.py [--sizes 1000,10000,...] [--json]

One store grows from size to size. At each there are the same 100 workflows, events and subscriptions that are live.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import aiosql
from report import ON_DISK, describe_machine, number, table

from wfe_sql import PersistenceProvider, connect

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LIVE = 100
"""Workflows, events and subscriptions that are not finished; as many customers wait for payments."""

CALLS = 200
TARGET = 1.5
"""How many times as long as at the smallest size a call may take at the largest."""

BATCH = 10_000
FIRST_TIME = datetime(2026, 1, 1, tzinfo=UTC)
FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)
DATA = {
    "customer": {"name": "Ada Lovelace", "street": "12 St James's Square", "city": "London", "mail": "ada@example.org"},
    "items": [{"sku": f"book-{number}", "quantity": number, "price": 1250} for number in range(1, 4)],
    "note": "leave it with the neighbours",
}

_queries = aiosql.from_path(Path(__file__).with_suffix(".sql"), "sqlite3")


def id_of(what: str, number: int) -> str:
    return str(uuid5(NAMESPACE_URL, f"{what} {number}"))


def customer_of(number: int) -> str:
    return f"customer {number % LIVE}"


def fill(file: Path, numbers: range, *, live: bool) -> None:
    """Add workflows; finished ones have had an event and a subscription every other time."""
    with closing(sqlite3.connect(file)) as connection:
        _queries.journal_nothing(connection)
        _queries.flush_nothing(connection)
        _queries.cache_much(connection)
        for start in range(numbers.start, numbers.stop, BATCH):
            _fill_batch(connection, range(start, min(start + BATCH, numbers.stop)), live=live)
        connection.commit()
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _fill_batch(connection: sqlite3.Connection, numbers: range, *, live: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "id": id_of("workflow", number),
            "name": f"order-{number}",
            "status": "Runnable" if live else "Complete",
            "data": json.dumps(DATA | {"round": number}),
            "next_execution": number if live else None,
            "time": (FIRST_TIME + timedelta(seconds=number)).isoformat(),
            "event_key": customer_of(number),
            "done": not live,
        }
        for number in numbers
    ]
    _queries.insert_workflows(connection, rows)
    for step in range(2):
        pointers = [
            {"id": id_of(f"pointer {step}", row["number"]), "workflow_id": row["id"], "step": step, "time": row["time"]}
            for row in rows
        ]
        _queries.insert_pointers(connection, pointers)
    with_event = rows if live else rows[::2]
    _queries.insert_events(connection, [row | {"id": id_of("event", row["number"])} for row in with_event])
    subscriptions = [
        row
        | {
            "id": id_of("subscription", row["number"]),
            "workflow_id": row["id"],
            "pointer_id": id_of("pointer 1", row["number"]),
        }
        for row in with_event
    ]
    _queries.insert_subscriptions(connection, subscriptions)


class Stopwatch:
    """Keeps the seconds that each `with` block of it took."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.durations.append(time.perf_counter() - self._start)


class Calls:
    """The calls that are measured, by their names in the table; each measures itself."""

    def __init__(self, provider: PersistenceProvider, size: int) -> None:
        self._provider = provider
        self._size = size
        self._random = random.Random(size)

    def _any_finished(self) -> int:
        return self._random.randrange(LIVE, LIVE + self._size)

    async def get_runnable_instances(self, watch: Stopwatch) -> None:
        with watch:
            found = await self._provider.get_runnable_instances(FAR_FUTURE, limit=10)
        assert len(found) == 10

    async def get_runnable_events(self, watch: Stopwatch) -> None:
        with watch:
            found = await self._provider.get_runnable_events(FAR_FUTURE, limit=10)
        assert len(found) == 10

    async def get_subscriptions(self, watch: Stopwatch) -> None:
        customer = customer_of(self._random.randrange(LIVE))
        with watch:
            found = await self._provider.get_subscriptions("paid", customer, FAR_FUTURE)
        assert len(found) == 1

    async def get_by_id(self, watch: Stopwatch) -> None:
        wanted = id_of("workflow", self._any_finished())
        with watch:
            found = await self._provider.get_workflow_instance(wanted)
        assert len(found.execution_pointers) == 2

    async def get_by_name(self, watch: Stopwatch) -> None:
        wanted = f"order-{self._any_finished()}"
        with watch:
            found = await self._provider.get_workflow_instance_by_name(wanted)
        assert len(found.execution_pointers) == 2

    async def claim_runnable_instances(self, watch: Stopwatch) -> None:
        with watch:
            claims = await self._provider.claim_runnable_instances(
                FAR_FUTURE, "benchmark", lease=timedelta(minutes=1), limit=1
            )
        (claim,) = claims
        await self._provider.release_claim(claim)

    async def persist_workflow(self, watch: Stopwatch) -> None:
        workflow = await self._provider.get_workflow_instance(id_of("workflow", self._any_finished()))
        workflow.data["round"] += 1
        workflow.execution_pointers[0].retry_count += 1
        with watch:
            await self._provider.persist_workflow(workflow)

    async def next_definition_sequence(self, watch: Stopwatch) -> None:
        with watch:
            await self._provider.next_definition_sequence("order")

    def all(self) -> list[Callable[[Stopwatch], Awaitable[None]]]:
        return [
            self.get_runnable_instances,
            self.get_runnable_events,
            self.get_subscriptions,
            self.get_by_id,
            self.get_by_name,
            self.claim_runnable_instances,
            self.persist_workflow,
            self.next_definition_sequence,
        ]


async def measure(file: Path, size: int, small_file: Path, small_size: int, calls: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each call, and how many times as long as in the small store that is.

    The two take turns, so that what else the machine does at the moment falls on both.
    """
    medians, ratios = {}, {}
    async with connect(file) as provider, connect(small_file) as small_provider:
        pairs = zip(Calls(provider, size).all(), Calls(small_provider, small_size).all(), strict=True)
        for call, small_call in pairs:
            watch, small_watch = Stopwatch(), Stopwatch()
            for _ in range(calls):
                await small_call(small_watch)
                await call(watch)
            medians[call.__name__] = median(watch.durations) * 1000
            ratios[call.__name__] = median(watch.durations) / median(small_watch.durations)
    return {"ms": medians, "ratios": ratios}


async def make_store(file: Path) -> None:
    async with connect(file):
        pass


def run(folder: Path, sizes: list[int], calls: int) -> list[dict[str, Any]]:
    file, small_file = folder / "store.db", folder / "small.db"
    asyncio.run(make_store(file))
    fill(file, range(LIVE), live=True)
    results: list[dict[str, Any]] = []
    filled = 0
    for size in sizes:
        print(f"{size:,} workflows ...", file=sys.stderr, flush=True)
        fill(file, range(LIVE + filled, LIVE + size), live=False)
        filled = size
        if not results:
            shutil.copy(file, small_file)
        measured = asyncio.run(measure(file, size, small_file, sizes[0], calls))
        results.append({"workflows": size, "megabytes": file.stat().st_size / 1_000_000, **measured})
    return results


def _describe(folder: Path) -> dict[str, str]:
    return describe_machine(folder) | {"SQLite": sqlite3.sqlite_version}


def as_text(results: list[dict[str, Any]], folder: Path) -> str:
    machine = ", ".join(f"{what} {value}" for what, value in _describe(folder).items())
    largest = results[-1]
    rows = []
    for call, ratio in largest["ratios"].items():
        verdict = "met" if ratio <= TARGET else "missed"
        rows.append([call, *(number(result["ms"][call]) for result in results), f"{ratio:.2f}", verdict])
    rows.append(["size of the file, MB", *(number(result["megabytes"]) for result in results), "", ""])
    return "\n".join(
        [
            machine,
            "Median milliseconds of a call, by the number of finished workflows. The ratio is that of the largest",
            f"store to one of {results[0]['workflows']:,} that took turns with it; target: at most {TARGET}",
            *table(["", *(f"{result['workflows']:,}" for result in results), "ratio", ""], rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="finished workflows (default %(default)s)")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each kind (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where the file is made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.sizes.split(","))
    with tempfile.TemporaryDirectory(prefix="wfe-sql-scale-", dir=options.folder) as folder:
        results = run(Path(folder), sizes, options.calls)
    if options.json:
        print(json.dumps({"machine": _describe(options.folder), "results": results}, indent=2))
    else:
        print(as_text(results, options.folder))


if __name__ == "__main__":
    main()
