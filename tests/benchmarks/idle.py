"""What an idle host costs: the demo's host waits for work in a store in which nothing is due.

    python tests/benchmarks/idle.py [--postgres] [--seconds 30] [--json]

On SQLite the host polls for the same time again while another process holds the write lock: a poll that needed it would
wait, and fail after the busy timeout.
"""

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiosql
from measure import Meter
from places import FOLDER, Files, Places, Schema, Schemas, postgres_server
from report import ON_DISK, describe_machine, number, table
from sides.library import open_library, open_library_on_postgres

from wfe_sql.demo.host import WorkflowHost

Figures = dict[str, float]

QUERIES: Any = aiosql.from_path(FOLDER / "state.sql", "sqlite3")


class Timed:
    """A store that times every call of a host."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)

        async def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = await method(*args, **options)
            self.seconds.append(time.perf_counter() - begin)
            return result

        return call


async def idle(store: Any, place: Any, seconds: float) -> Figures:
    """Run a host for a while; if a poll fails, its error ends the host."""
    timed: Any = Timed(store)
    meter = Meter(place)
    with suppress(TimeoutError):
        await asyncio.wait_for(WorkflowHost(timed, [], worker_id="idle").run(), seconds)
    used = meter.read()
    figures = {
        "calls": len(timed.seconds),
        "longest, ms": max(timed.seconds, default=0) * 1000,
        "ms of CPU per second": used.cpu_seconds / used.seconds * 1000,
    }
    return figures if used.written is None else figures | {"bytes written": used.written}


def hold_lock(file: Path, begun: Any, ends: Any) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        QUERIES.take_write_lock(connection)
        begun.set()
        ends.wait()


@contextmanager
def lock_held(file: Path) -> Iterator[None]:
    """Let another process hold the write lock during the block."""
    context = get_context("spawn")
    begun, ends = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(file, begun, ends))
    process.start()
    try:
        begun.wait()
        yield
    finally:
        ends.set()
        process.join()


async def on_file(file: Path, seconds: float) -> dict[str, Figures]:
    results: dict[str, Figures] = {}
    async with open_library(file) as store:
        for name, held in (("file", False), ("file, write lock held", True)):
            with ExitStack() as stack:
                other = stack.enter_context(closing(sqlite3.connect(file, isolation_level=None)))
                if held:
                    stack.enter_context(lock_held(file))
                before = QUERIES.get_data_version(other)
                results[name] = await idle(store, file, seconds)
                results[name]["changes committed"] = QUERIES.get_data_version(other) - before
    return results


async def on_postgres(place: Schema, seconds: float) -> dict[str, Figures]:
    from psycopg import connect

    queries: Any = aiosql.from_path(FOLDER / "state_postgres.sql", "psycopg")
    counters = {"transaction ids": queries.get_next_transaction_id, "commits, reads too": queries.get_commits}
    with connect(place.url, autocommit=True) as other:
        async with open_library_on_postgres(place) as store:
            before = {name: count(other) for name, count in counters.items()}
            figures = await idle(store, place, seconds)
        for name, count in counters.items():
            figures[name] = count(other) - before[name]
    return {"PostgreSQL": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL instead of a file")
    parser.add_argument("--seconds", type=float, default=30, help="how long the host runs (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where stores are made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        if options.postgres:
            places: Places = Schemas(stack.enter_context(postgres_server(folder)), durable=True)
            schema = stack.enter_context(places.new_store("idle"))
            results = asyncio.run(on_postgres(schema, options.seconds))
        else:
            places = Files(folder)
            results = asyncio.run(on_file(folder / "idle.db", options.seconds))
        machine = describe_machine(options.folder) | places.described
    if options.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(", ".join(f"{what} {value}" for what, value in machine.items()))
    print(f"A host that has nothing to do, for {options.seconds:g} s.")
    for name, figures in results.items():
        print(*table([name, ""], [[what, number(value)] for what, value in figures.items()]), sep="\n")


if __name__ == "__main__":
    main()
