"""What waiting for work costs, and how soon it ends: hosts in separate processes, on one store.

    python tests/benchmarks/waiting.py [--postgres] [--hosts N] [--events N] [--seconds N] [--repeat N] [--json]

Another process stores events at random moments; each is timed from then to the start of its handler. Then all are idle.
On PostgreSQL, lifecycles run in turns with and without the triggers that notify.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from hosts import LIFECYCLE, bring_up_to_date
from measure import CPU, PER_SECOND, Cell, Sample, percentile, run
from places import Files, Places, Schemas, bytes_written, postgres_server
from report import ON_DISK, describe_machine
from sides.library import LIBRARY, LIBRARY_ON_POSTGRES

from wfe_sql import Event, PersistenceProvider, connect, utc_now

LEASE = timedelta(seconds=10)
CALLERS = 64


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def host(url: str, schema: str) -> None:
    """Handle events until stdin ends; for each line there, print what was used since the last one."""
    options: dict[str, Any] = {"schema": schema} if schema else {}
    async with connect(url, **options) as provider:
        working = asyncio.create_task(handle_events(provider))
        await asyncio.sleep(0.2)
        say(ready=True)
        cpu, written = time.process_time(), bytes_written(Path())
        while await asyncio.to_thread(sys.stdin.readline):
            now, at = bytes_written(Path()), time.process_time()
            say(cpu=at - cpu, written=None if now is None or written is None else now - written)
            cpu, written = time.process_time(), bytes_written(Path())
        working.cancel()


async def handle_events(provider: PersistenceProvider) -> None:
    while True:
        await provider.wait_for_work()
        for claim in await provider.claim_runnable_events(utc_now(), "host", lease=LEASE, limit=10):
            event = await provider.get_event(claim.id)
            say(waited=time.monotonic() - event.event_data)
            await provider.mark_event_processed(claim.id, claim=claim)


class Hosts:
    """Host processes of one store."""

    def __init__(self, number: int, url: str, schema: str, logs: Path) -> None:
        logs.mkdir()
        self._logs = [logs / str(each) for each in range(number)]
        self._processes = []
        for log in self._logs:
            command = [sys.executable, __file__, "--host", url, schema]
            with log.open("w") as said:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, text=True))
        self.wait_for("ready", number)

    def said(self, what: str) -> list[Any]:
        return [line for log in self._logs for line in self._read(log, what)]

    def _read(self, log: Path, what: str) -> list[Any]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if what in line]

    def wait_for(self, what: str, number: int) -> list[Any]:
        while len(found := self.said(what)) < number:
            assert all(process.poll() is None for process in self._processes), "a host has ended"
            time.sleep(0.05)
        return found

    def ask(self) -> list[Any]:
        """Return what each has used since the last call."""
        before = len(self.said("cpu"))
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        self.wait_for("cpu", before + len(self._processes))
        return [self._read(log, "cpu")[-1] for log in self._logs]

    def end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


async def send(url: str, schema: str, events: int) -> None:
    options: dict[str, Any] = {"schema": schema} if schema else {}
    async with connect(url, **options) as provider:
        for _ in range(events):
            await asyncio.sleep(random.uniform(0.05, 0.4))
            now = time.monotonic()
            await provider.create_event(Event(event_name="e", event_key="", event_data=now, event_time=utc_now()))


def measure_waiting(options: argparse.Namespace, places: Places, logs: Path) -> dict[str, float]:
    with places.new_store("wfe-sql") as place:
        asyncio.run(bring_up_to_date(LIBRARY_ON_POSTGRES if options.postgres else LIBRARY, place))
        url, schema = (place.url, place.name) if options.postgres else (f"sqlite:///{place}", "")
        hosts = Hosts(options.hosts, url, schema, logs)
        try:
            asyncio.run(send(url, schema, options.events))
            waited = [line["waited"] for line in hosts.wait_for("waited", options.events)]
            figures = {f"wait, p{share}, ms": percentile(waited, share) for share in (50, 99)}
            time.sleep(LEASE.total_seconds() + 2)  # hosts that saw a claim look again when its lease ends
            hosts.ask()
            began = time.monotonic()
            time.sleep(options.seconds)
            took = time.monotonic() - began
            if isinstance(places, Schemas):
                figures["sessions that did anything while idle"] = len(places.list_active_sessions(took))
            used = hosts.ask()
            figures["idle, % of a core for a host"] = 100 * sum(line["cpu"] for line in used) / took / len(used)
            if all(line["written"] is not None for line in used):
                figures["idle, bytes written by all"] = sum(line["written"] for line in used)
        finally:
            hosts.end()
    return figures


@contextmanager
def server_cpu(places: Schemas, sample: dict[str, float]) -> Iterator[None]:
    """Note the server's CPU seconds within the block."""

    first = str(places.server_process())

    def seconds() -> float:
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
                parent, used = (fields := file.read_text().rpartition(")")[2].split())[1], fields[11:15]
                if file.parent.name == first:
                    ticks += sum(map(int, used))
                elif parent == first:
                    ticks += sum(map(int, used[:2]))
        return ticks / os.sysconf("SC_CLK_TCK")

    before = seconds()
    yield
    sample["server"] = seconds() - before


def measure_triggers(options: argparse.Namespace, places: Schemas) -> dict[str, float]:
    samples: dict[bool, list[Sample]] = {True: [], False: []}
    places.prepare(LIFECYCLE, CALLERS)
    for _ in range(options.repeat):
        for has_triggers, found in samples.items():
            with places.new_store("wfe-sql") as place:
                asyncio.run(bring_up_to_date(LIBRARY_ON_POSTGRES, place))
                if not has_triggers:
                    places.disable_wake_triggers(place)
                server: Sample = {}
                with server_cpu(places, server):
                    operations, sample = run(LIBRARY_ON_POSTGRES, Cell(LIFECYCLE, CALLERS), place, options.seconds)
                found.append(sample | {"µs of CPU, server": server["server"] * 1e6 / operations})
    figures = {}
    for figure in (PER_SECOND, CPU, "µs of CPU, server"):
        for has, found in samples.items():
            figures[f"lifecycle, {figure}, {'with' if has else 'without'} triggers"] = median(
                sample[figure] for sample in found
            )
        ratios = (a[figure] / b[figure] for a, b in zip(samples[True], samples[False], strict=True))
        figures[f"lifecycle, {figure}, ratio"] = median(ratios)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["--host"]:
        asyncio.run(host(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL instead of a file")
    parser.add_argument("--hosts", type=int, default=1, help="host processes that wait (default %(default)s)")
    parser.add_argument("--events", type=int, default=200, help="how many are stored (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long they are idle (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=0, help="lifecycles with and without triggers (default: none)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where stores are made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        places: Places = Files(folder)
        if options.postgres:
            places = Schemas(stack.enter_context(postgres_server(folder)), durable=True)
        places.prepare(LIFECYCLE, 1)
        report = {"machine": describe_machine(options.folder) | places.described, "hosts": options.hosts}
        figures = measure_waiting(options, places, folder / "said") if options.events else {}
        if options.repeat and isinstance(places, Schemas):
            figures |= measure_triggers(options, places)
    if options.json:
        print(json.dumps(report | {"figures": figures}))
        return
    print(", ".join(f"{what} {value}" for what, value in report["machine"].items()), f"{options.hosts} hosts", sep=", ")
    for figure, value in figures.items():
        print(f"{figure}: {value:,.3g}" if value < 1000 else f"{figure}: {value:,.0f}")


if __name__ == "__main__":
    main()
