"""The benchmark: the library and its alternatives, on the same stores, in one run.

    python tests/benchmarks [--postgres] [--quick] [--only WORKLOAD] [--json]

Each repetition measures every side once, one after the other, so that other load on the machine affects all of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from measure import Cell, Runner, Sample, Worker
from places import Files, Places, Schemas, postgres_server
from report import ON_DISK, Report, describe_machine, lines_of
from sides.aiosql_stock import AIOSQL
from sides.library import LIBRARY, LIBRARY_ON_POSTGRES
from sides.reference import Reference
from sides.stdlib import STDLIB
from workloads import FINISHED, WORKLOADS, WORKLOADS_ON_POSTGRES

QUICK_CALLERS = 16
"""A quick run leaves out more callers than this."""

QUICK_FINISHED = 200


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument(
        "--postgres",
        action="store_true",
        help="measure on PostgreSQL: a server of its own, or that of WFE_SQL_TEST_POSTGRES_URL",
    )
    parser.add_argument("--quick", action="store_true", help="see that all works; the figures mean nothing")
    parser.add_argument("--repeat", type=int, help="repetitions, whose median is shown (default 5)")
    parser.add_argument("--seconds", type=float, help="how long each measurement takes (default 0.4)")
    parser.add_argument("--only", action="append", choices=sorted({workload.name for workload in WORKLOADS}))
    parser.add_argument("--finished", type=int, help=f"workflows of a store that is not empty (default {FINISHED:,})")
    parser.add_argument("--no-reference", action="store_true", help="leave out the Rust crate, which needs cargo")
    parser.add_argument("--folder", type=Path, default=ON_DISK, help="where the stores are made (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    options.repeat = options.repeat or (1 if options.quick else 5)
    options.finished = options.finished or (QUICK_FINISHED if options.quick else FINISHED)
    options.seconds = options.seconds or (0.01 if options.quick else 0.4)
    return options


def find_runners(*, postgres: bool, with_reference: bool, quick: bool) -> tuple[list[Runner], list[str]]:
    """Return the sides that can run here, and why the others cannot."""
    runners: list[Runner] = [Worker(LIBRARY), Worker(STDLIB), Worker(AIOSQL)]
    notes = []
    if postgres:
        from sides.psycopg_pool import PSYCOPG

        runners = [Worker(LIBRARY_ON_POSTGRES), Worker(PSYCOPG)]
    elif find_spec("sqlalchemy") and find_spec("greenlet"):
        from sides.sqlalchemy_orm import SQLALCHEMY

        runners.append(Worker(SQLALCHEMY))
    else:
        notes.append("without sqlalchemy: pip install 'sqlalchemy[asyncio]'")
    if with_reference:
        try:
            runners.append(Reference.build(postgres=postgres, quick=quick))
        except (OSError, subprocess.CalledProcessError) as error:
            notes.append(f"without reference: {error}")
    return runners, notes


def measure(cell: Cell, runners: list[Runner], places: Places, repeat: int, seconds: float) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {runner.name: [] for runner in runners if runner.can_run(cell)}
    places.prepare(cell.workload, cell.callers)
    for _ in range(repeat):
        for runner in runners:
            if runner.name in samples:
                samples[runner.name].append(runner.measure(cell, places, seconds))
    return samples


def main() -> None:
    options = parse_options()
    runners, notes = find_runners(
        postgres=options.postgres, with_reference=not options.no_reference, quick=options.quick
    )
    cells = [
        Cell(replace(workload, finished=options.finished) if workload.finished else workload, callers)
        for workload in (WORKLOADS_ON_POSTGRES if options.postgres else WORKLOADS)
        if not options.only or workload.name in options.only
        for callers in workload.callers
        if not options.quick or callers <= QUICK_CALLERS
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wfe-sql-", dir=options.folder)))
        places: Places = Files(folder)
        if options.postgres:
            places = Schemas(stack.enter_context(postgres_server(folder)), durable=not options.quick)
        report = Report(
            machine=describe_machine(options.folder) | places.described,
            repeat=options.repeat,
            seconds=options.seconds,
            sides={runner.name: runner.setup for runner in runners},
            notes=notes,
        )
        for cell in cells:
            print(f"{cell} ...", file=sys.stderr, flush=True)
            samples = measure(cell, runners, places, options.repeat, options.seconds)
            report.lines += lines_of(cell, samples)
    for runner in runners:
        if isinstance(runner, Reference) and runner.busy_retries:
            notes.append(f"reference: {runner.busy_retries} operations were repeated as the database was locked")
    print(json.dumps(report.as_json(), indent=2) if options.json else report.as_text())


main()
