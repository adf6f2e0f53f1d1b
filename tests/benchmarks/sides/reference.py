"""The published Rust crate, driven by the program in tests/reference; it prepares its file and checks it by itself."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from measure import PER_SECOND, Cell, Sample, check_state, remove
from workloads import State

FOLDER = Path(__file__).parents[2] / "reference"

_PILOT = 10
"""Operations, at least, from which it is seen how many fit into the time."""


class Reference:
    """Measures the Rust program, which is told how many operations to do."""

    name = "reference"
    setup = "wfe-sqlite 1.11.4 (Rust, sqlx, release build) with its defaults: 4 connections; a process of its own"

    def __init__(self, program: Path) -> None:
        self.busy_retries = 0
        self._program = program
        self._rates: dict[tuple[str, int], float] = {}

    @classmethod
    def build(cls, *, quick: bool) -> "Reference":
        """Build the program; minutes on a new machine, nothing the next time. A quick run makes do with a debug build.

        Raises:
            OSError: There is no cargo.
            subprocess.CalledProcessError: It cannot be built.
        """
        profile = [] if quick else ["--release"]
        subprocess.run(["cargo", "build", "--quiet", *profile], cwd=FOLDER, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", FOLDER / "target"))
        return cls(target / ("debug" if quick else "release") / "wfe-sql-reference")

    def can_run(self, cell: Cell) -> bool:
        return not cell.workload.beside

    def measure(self, cell: Cell, template: Path, seconds: float) -> Sample:
        key = (cell.workload.name, cell.callers)
        if key not in self._rates:
            self._rates[key] = self._run(cell, template, max(_PILOT, cell.callers))
        self._rates[key] = self._run(cell, template, max(cell.callers, round(self._rates[key] * seconds)))
        return {PER_SECOND: self._rates[key]}

    def _run(self, cell: Cell, template: Path, operations: int) -> float:
        file = template.with_name(f"{self.name}.db")
        options = {"workload": cell.workload.name, "callers": cell.callers, "operations": operations}
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        try:
            ended = subprocess.run(
                [self._program, "bench", file, *words], stdout=subprocess.PIPE, text=True, check=True
            )
            expected = cell.workload.expected(cell.callers, operations)
            if "last number" in expected:
                expected += State({"last number": 1})  # its own check draws one more
            check_state(file, expected, f"{self.name}, {cell}")
        finally:
            remove(file)
        line: dict[str, Any] = json.loads(ended.stdout)
        self.busy_retries += line["busy_retries"]
        return operations / float(line["seconds"])
