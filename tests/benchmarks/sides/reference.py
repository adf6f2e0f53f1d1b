"""The published Rust crates, through the program in tests/reference, which prepares and checks its store itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import PER_SECOND, Cell, Sample, Used, check_state
from places import Places
from workloads import State

FOLDER = Path(__file__).parents[2] / "reference"

_PILOT = 10
"""The fewest operations from which to estimate how many fit into the time."""


class Reference:
    """Measures the Rust program, which is told how many operations to do."""

    name = "reference"

    def __init__(self, program: Path, *, postgres: bool, build: str) -> None:
        crate, connections = ("wfe-postgres", 10) if postgres else ("wfe-sqlite", 4)
        self.setup = f"{crate} 1.11.4 (Rust, sqlx, {build} build) with its defaults: {connections} connections"
        self.busy_retries = 0
        self._keeps_terminated = not postgres
        self._program = program
        self._rates: dict[str, float] = {}

    @classmethod
    def build(cls, *, postgres: bool, quick: bool) -> "Reference":
        """Build the program; minutes on a new machine, nothing the next time. A quick run uses a debug build.

        Raises:
            OSError: cargo is not installed.
            subprocess.CalledProcessError: It cannot be built.
        """
        build, profile = ("debug", []) if quick else ("release", ["--release"])
        print("cargo builds the Rust program ...", file=sys.stderr, flush=True)
        subprocess.run(["cargo", "build", "--quiet", *profile], cwd=FOLDER, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", FOLDER / "target"))
        return cls(target / build / "wfe-sql-reference", postgres=postgres, build=build)

    def can_run(self, cell: Cell) -> bool:
        return not (cell.workload.beside or cell.workload.caller.needs_units)

    def measure(self, cell: Cell, places: Places, seconds: float) -> Sample:
        key = str(cell)
        if key not in self._rates:
            self._rates[key] = self._run(cell, places, max(_PILOT, cell.callers))[PER_SECOND]
        sample = self._run(cell, places, max(cell.callers, round(self._rates[key] * seconds)))
        self._rates[key] = sample[PER_SECOND]
        return sample

    def _run(self, cell: Cell, places: Places, operations: int) -> Sample:
        options = {"workload": cell.workload.name, "callers": cell.callers, "operations": operations}
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        with places.new_store(self.name, of_reference=True) as place:
            ended = subprocess.run(
                [self._program, "bench", str(place), *words], stdout=subprocess.PIPE, text=True, check=True
            )
            expected = places.state_before + cell.workload.expected(cell.callers, operations)
            if "last number" in expected:
                expected += State({"last number": 1})  # its own check takes one more
            if not self._keeps_terminated:
                expected -= State({what: expected[what] for what in ("subscriptions", "terminated subscriptions")})
            check_state(places.read_state(place), expected, f"{self.name}, {cell}")
        line: dict[str, Any] = json.loads(ended.stdout)
        self.busy_retries += line["busy_retries"]
        return Used(line["seconds"], line["cpu_seconds"], line["bytes_written"]).per(operations)
