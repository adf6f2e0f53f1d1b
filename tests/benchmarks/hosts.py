"""The effect of several host processes: the same number of callers in one process and in several, on one store.

    python tests/benchmarks/hosts.py [--postgres] [--repeat N] [--seconds N] [--json]

Each runs lifecycles; the settings take turns, so that other load on the machine affects all of them.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measure import CPU, PER_SECOND, WRITTEN, Cell, Sample, check_state, run
from places import Files, Places, Schemas, postgres_server
from report import ON_DISK, describe_machine, number, table
from sides import Side
from sides.library import LIBRARY, LIBRARY_ON_POSTGRES
from workloads import WORKLOADS

CALLERS = 32
"""Callers of each of several hosts; a single host has as many as all of these together."""

TARGETS = {False: {2: 1.2, 4: 1.0}, True: {2: 1.4}}
"""Targets by (on PostgreSQL, number of hosts): how many times the rate of one host with as many callers."""

LIFECYCLE = WORKLOADS[0]


class Setting(NamedTuple):
    """A number of host processes, and of callers in each."""

    hosts: int
    callers: int

    def __str__(self) -> str:
        return f"{self.hosts} x {self.callers}"

    @property
    def as_one_host(self) -> "Setting":
        return Setting(1, self.hosts * self.callers)


_together: Barrier


def keep_together(barrier: Barrier) -> None:
    global _together
    _together = barrier


def run_host(side: Side, callers: int, place: Any, seconds: float) -> tuple[int, Sample]:
    return run(side, Cell(LIFECYCLE, callers), place, seconds, _together.wait)


class Hosts:
    """Processes that measure at the same time."""

    def __init__(self, setting: Setting, side: Side) -> None:
        self._setting = setting
        self._side = side
        context = get_context("spawn")
        self._processes = ProcessPoolExecutor(
            setting.hosts, context, initializer=keep_together, initargs=(context.Barrier(setting.hosts),)
        )

    def measure(self, places: Places, seconds: float) -> Sample:
        setting, side = self._setting, self._side
        places.prepare(LIFECYCLE, setting.callers)
        with places.new_store(side.name) as place:
            asyncio.run(bring_up_to_date(side, place))
            running = [
                self._processes.submit(run_host, side, setting.callers, place, seconds) for _ in range(setting.hosts)
            ]
            ended = [host.result() for host in running]
            operations = sum(done for done, _ in ended)
            check_state(places.read_state(place), LIFECYCLE.expected(setting.callers, operations), str(setting))
        samples = [sample for _, sample in ended]
        rate = sum(sample[PER_SECOND] for sample in samples)
        # All hosts share PostgreSQL's log.
        figures = [CPU] if isinstance(places, Schemas) else [CPU, WRITTEN]
        means = {
            figure: sum(sample[figure] * sample[PER_SECOND] for sample in samples) / rate
            for figure in figures
            if figure in samples[0]
        }
        return {PER_SECOND: rate} | means


async def bring_up_to_date(side: Side, place: Any) -> None:
    async with side.open(place):
        pass


def as_json(samples: dict[Setting, list[Sample]], machine: dict[str, str], *, postgres: bool) -> dict[str, Any]:
    results = []
    for setting, repetitions in samples.items():
        pairs = zip(repetitions, samples[setting.as_one_host], strict=True)
        ratio = median(ours[PER_SECOND] / of_one[PER_SECOND] for ours, of_one in pairs)
        target = TARGETS[postgres].get(setting.hosts)
        results.append(
            {
                "hosts": setting.hosts,
                "callers": setting.callers,
                "medians": {figure: median(sample[figure] for sample in repetitions) for figure in repetitions[0]},
                "values": repetitions,
                "ratio": ratio,
                "target": target,
                "verdict": "" if target is None else "met" if ratio >= target else "missed",
            }
        )
    return {"machine": machine, "results": results}


def as_text(report: dict[str, Any]) -> str:
    figures = list(report["results"][0]["medians"])
    rows = [
        [
            str(Setting(result["hosts"], result["callers"])),
            *(number(result["medians"][figure]) for figure in figures),
            "" if result["hosts"] == 1 else f"{result['ratio']:.2f}",
            "" if result["target"] is None else f"{result['target']:g}",
            result["verdict"],
        ]
        for result in report["results"]
    ]
    return "\n".join(
        [
            ", ".join(f"{what} {value}" for what, value in report["machine"].items()),
            "Lifecycles of wfe-sql by hosts x callers of each: per second in all, and what each takes; medians.",
            "The ratio is that to one host with as many callers, the median of the repetitions' ratios.",
            *table(["hosts x callers", *figures, "ratio", "target", ""], rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL instead of a file")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="how long each takes (default %(default)s)")
    parser.add_argument("--callers", type=int, default=CALLERS, help="of each of several hosts (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where stores are made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settings = [
        each
        for hosts in (2, 4)
        for each in (Setting(hosts, options.callers).as_one_host, Setting(hosts, options.callers))
    ]
    side = LIBRARY_ON_POSTGRES if options.postgres else LIBRARY
    samples: dict[Setting, list[Sample]] = {setting: [] for setting in settings}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        places: Places = Files(folder)
        if options.postgres:
            places = Schemas(stack.enter_context(postgres_server(folder)), durable=True)
        hosts = {setting: Hosts(setting, side) for setting in settings}
        for repetition in range(options.repeat):
            print(f"repetition {repetition + 1} ...", file=sys.stderr, flush=True)
            for setting in settings:
                samples[setting].append(hosts[setting].measure(places, options.seconds))
        machine = describe_machine(options.folder) | places.described
    report = as_json(samples, machine, postgres=options.postgres)
    print(json.dumps(report, indent=2) if options.json else as_text(report))


if __name__ == "__main__":
    main()
