"""Puts faults into copies of the code, one at a time, and prints after how many operations the model finds each.

Run it from the project's folder: `PYTHONPATH=tests .venv/bin/python -m property.faults`. It works on SQLite files, with
three hosts on each.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from property.explore import Run, open_hosts
from property.operations import OPERATIONS_OF_A_RUN, operations_of
from wfe_sql import SqlitePersistenceProvider
from wfe_sql.testing import ManualClock

PROJECT = Path(__file__).parents[2]

SQL, COMMANDS = "sql/sqlite", "src/wfe_sql/operations/commands.py"
FREE = "\n            AND (claim_token IS NULL OR claim_expires_at <= :now)"
FAULTS: dict[str, tuple[str, str, str]] = {
    "none": (COMMANDS, "", ""),
    "a claim takes what another live lease holds": (f"{SQL}/workflows.sql", FREE, "\n            AND :now IS NOT NULL"),
    "a release does not check the token": (
        f"{SQL}/workflows.sql",
        "claim_expires_at = NULL\nWHERE id = :id AND claim_token = :token",
        "claim_expires_at = NULL\nWHERE id = :id AND :token IS NOT NULL",
    ),
    "a persist does not check the revision": (
        f"{SQL}/workflows.sql",
        "OR (revision = :expected_revision AND",
        "OR (:expected_revision IS NOT NULL AND",
    ),
    "an event is marked without a check of the claim": (
        f"{SQL}/events.sql",
        "WHERE id = :id AND (:claim_token IS NULL OR claim_token = :claim_token)",
        "WHERE id = :id AND (:claim_token IS NULL OR id IS NOT NULL)",
    ),
    "subscriptions are not ordered": (
        f"{SQL}/event_subscriptions.sql",
        "ORDER BY subscribe_as_of, id\nLIMIT coalesce(:row_limit, -1)",
        "ORDER BY id\nLIMIT coalesce(:row_limit, -1)",
    ),
    "the later time of two equal commands wins": (
        f"{SQL}/scheduled_commands.sql",
        "THEN min(execute_time, excluded.execute_time)",
        "THEN max(execute_time, excluded.execute_time)",
    ),
    "a terminated subscription stays open": (
        f"{SQL}/event_subscriptions.sql",
        "SET terminated = 1",
        "SET terminated = 0",
    ),
    "a token cannot be renewed": (f"{SQL}/event_subscriptions.sql", " OR external_token = :token", ""),
    "a purge deletes what is too young": (
        f"{SQL}/retention.sql",
        "create_time) < :older_than",
        "create_time) >= :older_than",
    ),
    "a number is given twice": (f"{SQL}/definition_sequences.sql", "next_num = next_num + 1", "next_num = next_num"),
    "removed pointers stay": (
        f"{SQL}/execution_pointers.sql",
        "AND id IN (SELECT value FROM json_each(:ids))",
        "AND id = :ids",
    ),
    "a command scheduled while it is handled is lost": (
        COMMANDS,
        '[Statement("reschedule_command", claim), Statement("complete_command", claim)]',
        '[Statement("complete_command", claim)]',
    ),
}


def explore(at_most: int) -> int:
    """Return after how many operations the store differs from the model; -1 if it does not."""
    random, done, clock = Random(0), 0, ManualClock()
    with asyncio.Runner() as runner, TemporaryDirectory() as folder:
        stack = AsyncExitStack()
        file = Path(folder) / "store.db"
        providers = runner.run(open_hosts(stack, lambda **how: SqlitePersistenceProvider(file, clock=clock, **how)))
        try:
            while done < at_most:
                numbers = [random.randrange(1, 2**32) for _ in range(OPERATIONS_OF_A_RUN)]
                run = Run(providers, clock)
                try:
                    runner.run(run.explore(operations_of(numbers)))
                except Exception:
                    return done + run.count
                done += run.count
        finally:
            runner.run(stack.aclose())
    return -1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m property.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--at-most", type=int, default=20_000, help="operations for each (default %(default)s)")
    parser.add_argument("--only", choices=FAULTS, nargs="+", default=FAULTS, help="the faults (default: all)")
    parser.add_argument("--explore", action="store_true", help="look for a fault that is already in the code")
    options = parser.parse_args()
    if options.explore:
        print(explore(options.at_most))
        return
    print("| fault | operations until it was found |\n|---|---:|")
    for name in options.only:
        count = find(*FAULTS[name], options.at_most)
        print(f"| {name} | {f'{count:,}' if count >= 0 else f'not in {options.at_most:,}'} |", flush=True)


def find(file: str, sound: str, faulty: str, at_most: int) -> int:
    """Return after how many operations a fault in a copy of the code is found; -1 if it is not."""
    with TemporaryDirectory() as folder:
        for part in ("src", "sql"):
            shutil.copytree(PROJECT / part, Path(folder) / part)
        patched = Path(folder) / file
        text = patched.read_text()
        if sound not in text:
            raise SystemExit(f"{file} no longer contains {sound!r}: change the fault")
        patched.write_text(text.replace(sound, faulty))
        path = os.pathsep.join([str(Path(folder) / "src"), str(PROJECT / "tests")])
        found = subprocess.run(
            [sys.executable, "-m", "property.faults", "--explore", "--at-most", str(at_most)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
    return int(found.stdout)


if __name__ == "__main__":
    main()
