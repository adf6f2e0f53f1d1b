"""How long the library's calls take as a store grows: finished workflows should not slow down due ones.

    python tests/benchmarks/scale.py [--sizes 1000,10000,...] [--ids sorting|random] [--json]

One store grows from size to size. At each there are the same 100 workflows, events and subscriptions that are live.
"""

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from filling import CUSTOMERS, IdOf, Shape, customer_of, fill, flush, make_store, random_id, sorting_id
from places import bytes_written
from report import ON_DISK, describe_machine, number, table
from sides import DATACLASSES
from workloads import Lifecycle

from wfe_sql import PersistenceProvider, connect

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LIVE = CUSTOMERS
"""Unfinished workflows; each customer has one, with an open event and subscription."""

SHAPE_OF_LIVE = Shape(pointers=2, event_every=1)
SHAPE_OF_FINISHED = Shape(pointers=2, event_every=2)

CALLS = 200
ROUNDS = 10
"""How often the two compared stores take turns for each call."""

AT_ONCE = 64
TARGET = 1.25
"""How many times longer a call may take, and more bytes it may write, at the largest size than at the smallest."""

FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)


IDS: dict[str, IdOf] = {"sorting": sorting_id, "random": random_id}


class Stopwatch:
    """Records the seconds of each of its `with` blocks, and the bytes written in and between them."""

    def __init__(self, store: Path) -> None:
        self.durations: list[float] = []
        self.written = 0
        self._store = store
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.durations.append(time.perf_counter() - self._start)

    async def call(self, call: "Call", times: int) -> None:
        """Measure calls, one after the other."""
        before = bytes_written(self._store)
        for _ in range(times):
            await call(self)
        self.written += (bytes_written(self._store) or 0) - (before or 0)


Call = Callable[[Stopwatch], Awaitable[None]]


class Calls:
    """The measured calls, by their names in the table; each measures itself."""

    def __init__(self, provider: PersistenceProvider, size: int, id_of: IdOf) -> None:
        self._provider = provider
        self._size = size
        self._id_of = id_of
        self._random = random.Random(size)
        self._callers = [Lifecycle(provider, DATACLASSES, number) for number in range(AT_ONCE)]

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
        wanted = self._id_of("workflow", self._any_finished())
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
        workflow = await self._provider.get_workflow_instance(self._id_of("workflow", self._any_finished()))
        workflow.data["round"] += 1
        workflow.execution_pointers[0].retry_count += 1
        with watch:
            await self._provider.persist_workflow(workflow)

    async def next_definition_sequence(self, watch: Stopwatch) -> None:
        with watch:
            await self._provider.next_definition_sequence("order")

    async def lifecycle(self, watch: Stopwatch) -> None:
        with watch:
            await self._callers[0].operate()

    async def lifecycles_at_once(self, watch: Stopwatch) -> None:
        with watch:
            await asyncio.gather(*(caller.operate() for caller in self._callers))

    def all(self) -> list[Call]:
        return [
            self.get_runnable_instances,
            self.get_runnable_events,
            self.get_subscriptions,
            self.get_by_id,
            self.get_by_name,
            self.claim_runnable_instances,
            self.persist_workflow,
            self.next_definition_sequence,
            self.lifecycle,
            self.lifecycles_at_once,
        ]


async def measure(large: Path, size: int, small: Path, small_size: int, id_of: IdOf, calls: int) -> dict[str, Any]:
    """Return milliseconds (medians) and KiB written of each call, and their ratios to the small store's.

    The two take turns, so that other load on the machine affects both.
    """
    figures: dict[str, Any] = {"ms": {}, "ms ratios": {}, "KiB": {}, "KiB ratios": {}}
    async with connect(large) as provider, connect(small) as small_provider:
        pairs = zip(Calls(provider, size, id_of).all(), Calls(small_provider, small_size, id_of).all(), strict=True)
        for call, small_call in pairs:
            name = call.__name__
            in_a_round = 1 if name == "lifecycles_at_once" else -(-calls // ROUNDS)
            watch, small_watch = Stopwatch(large), Stopwatch(small)
            for _ in range(min(calls, ROUNDS)):
                await small_watch.call(small_call, in_a_round)
                await watch.call(call, in_a_round)
            figures["ms"][name] = median(watch.durations) * 1000
            figures["ms ratios"][name] = median(watch.durations) / median(small_watch.durations)
            if small_watch.written:
                figures["KiB"][name] = watch.written / 1024 / len(watch.durations)
                figures["KiB ratios"][name] = watch.written / small_watch.written
    return figures


def run(folder: Path, sizes: list[int], id_of: IdOf, calls: int) -> list[dict[str, Any]]:
    file, smallest, small = folder / "store.db", folder / "smallest.db", folder / "small.db"
    make_store(file)
    fill(file, range(LIVE), live=True, shape=SHAPE_OF_LIVE, id_of=id_of)
    results: list[dict[str, Any]] = []
    filled = 0
    for size in sizes:
        print(f"{size:,} workflows ...", file=sys.stderr, flush=True)
        fill(file, range(LIVE + filled, LIVE + size), live=False, shape=SHAPE_OF_FINISHED, id_of=id_of)
        filled = size
        if not results:
            shutil.copy(file, smallest)
        shutil.copy(smallest, small)
        flush(small)
        megabytes = file.stat().st_size / 1_000_000
        figures = asyncio.run(measure(file, size, small, sizes[0], id_of, calls))
        results.append({"workflows": size, "megabytes": megabytes, **figures})
    return results


def _describe(folder: Path) -> dict[str, str]:
    return describe_machine(folder) | {"SQLite": sqlite3.sqlite_version}


def as_text(results: list[dict[str, Any]], folder: Path) -> str:
    machine = ", ".join(f"{what} {value}" for what, value in _describe(folder).items())
    sizes = [f"{result['workflows']:,}" for result in results]
    megabytes = ["size of the file, MB", *(number(result["megabytes"]) for result in results), "", ""]
    return "\n".join(
        [
            machine,
            f"By the number of finished workflows; one caller, or {AT_ONCE} lifecycles at once. The ratio is that of",
            f"the largest store to one of {sizes[0]} that took turns with it; target: at most {TARGET}",
            "",
            *table(["median ms of a call", *sizes, "ratio", ""], [*_rows(results, "ms"), megabytes]),
            "",
            *table(["KiB written by a call", *sizes, "ratio", ""], _rows(results, "KiB")),
        ]
    )


def _rows(results: list[dict[str, Any]], figure: str) -> list[list[str]]:
    return [
        [
            call,
            *(number(result[figure].get(call)) for result in results),
            f"{ratio:.2f}",
            "met" if ratio <= TARGET else "missed",
        ]
        for call, ratio in results[-1][f"{figure} ratios"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="finished workflows (default %(default)s)")
    parser.add_argument("--ids", choices=IDS, default="sorting", help="of the finished ones (default %(default)s)")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each kind (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where the file is made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.sizes.split(","))
    with tempfile.TemporaryDirectory(prefix="wfe-sql-scale-", dir=options.folder) as folder:
        results = run(Path(folder), sizes, IDS[options.ids], options.calls)
    if options.json:
        print(json.dumps({"machine": _describe(options.folder), "results": results}, indent=2))
    else:
        print(as_text(results, options.folder))


if __name__ == "__main__":
    main()
