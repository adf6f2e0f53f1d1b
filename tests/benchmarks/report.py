"""Prints measurements as tables or JSON."""

import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from measure import CPU, PER_SECOND, WRITTEN, Cell, Sample

ON_DISK = Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir())
"""The default folder of files: /tmp is often not on a disk, and then durability costs nothing."""

WIDTH = 100
LIBRARY_NAME = "wfe-sql"
REFERENCE_NAME = "reference"


@dataclass
class Line:
    """One figure of one cell: each side's values, one for each repetition."""

    cell: Cell
    figure: str
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        named = self.figure in (PER_SECOND, CPU, WRITTEN)  # by its table
        return self.cell.workload.title + ("" if named else f": {self.figure}")

    @property
    def target(self) -> float | None:
        """The library's target: a multiple of the reference, if that was measured, or the most KiB written."""
        workload, callers = self.cell
        if self.figure == WRITTEN:
            return workload.most_written.get(callers)
        in_same_run = self.figure == PER_SECOND and REFERENCE_NAME in self.values
        return workload.targets.get(callers) if in_same_run else None

    def ratio(self, side: str) -> float | None:
        """Return how many times better the library is: the median of the repetitions' ratios."""
        if side not in self.values or self.figure in (CPU, WRITTEN):
            return None
        pairs = zip(self.values[LIBRARY_NAME], self.values[side], strict=True)
        if self.figure.endswith("ms"):
            return median(theirs / ours for ours, theirs in pairs)
        return median(ours / theirs for ours, theirs in pairs)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        if self.figure == WRITTEN:
            return "met" if median(self.values[LIBRARY_NAME]) <= self.target else "missed"
        return "met" if (self.ratio(REFERENCE_NAME) or 0) >= self.target else "missed"


def lines_of(cell: Cell, samples: dict[str, list[Sample]]) -> list[Line]:
    """Turn measurements into lines."""
    lines: dict[str, Line] = {}
    for side, repetitions in samples.items():
        for sample in repetitions:
            for figure, value in sample.items():
                line = lines.setdefault(figure, Line(cell, figure))
                line.values.setdefault(side, []).append(value)
    return list(lines.values())


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, str]
    repeat: int
    seconds: float
    sides: dict[str, str]
    notes: list[str]
    lines: list[Line] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def as_json(self) -> dict[str, Any]:
        return {
            "date": self.date,
            "machine": self.machine,
            "repeat": self.repeat,
            "seconds": self.seconds,
            "sides": self.sides,
            "notes": self.notes,
            "results": [
                {
                    "workload": line.cell.workload.name,
                    "finished": line.cell.workload.finished,
                    "callers": line.cell.callers,
                    "figure": line.figure,
                    "values": line.values,
                    "medians": {side: median(values) for side, values in line.values.items()},
                    "ratios": {side: line.ratio(side) for side in line.values if side != LIBRARY_NAME},
                    "target": line.target,
                    "verdict": line.verdict,
                }
                for line in self.lines
            ],
        }

    def as_text(self) -> str:
        machine = ", ".join(f"{what} {value}" for what, value in self.machine.items())
        titles = ["", "callers", *self.sides]
        baselines = [side for side in self.sides if side != LIBRARY_NAME]
        rates = [line for line in self.lines if line.figure not in (CPU, WRITTEN)]
        about = [
            f"{self.date}; {machine}",
            f"{self.repeat} repetitions of {self.seconds:g} s, medians; all durable, each side in a process of its own",
            *(f"- {side}: {setup}" for side, setup in self.sides.items()),
            *(f"- note: {note}" for note in self.notes),
        ]
        return "\n".join(
            [
                *(fill(line, WIDTH, subsequent_indent="  ") for line in about),
                "",
                "Operations per second (or as said)",
                *table(titles, (self._values(line) for line in rates)),
                "",
                "How many times better wfe-sql is: medians of the repetitions' ratios; targets: ÷ reference",
                *table(
                    ["", "callers", *(f"÷ {side}" for side in baselines), "target", ""],
                    (self._ratios(line, baselines) for line in rates),
                ),
                *self._kept_on_finished(),
                "",
                "CPU, µs per operation: of the side's process with all its threads, not of a server",
                *table(titles, (self._values(line) for line in self.lines if line.figure == CPU)),
                "",
                "Written, KiB per operation: by the side's process to files, or to the log (WAL) of the server",
                *table(
                    [*titles, "at most", ""],
                    ([*self._values(line), *_verdict(line)] for line in self.lines if line.figure == WRITTEN),
                ),
            ]
        )

    def _kept_on_finished(self) -> Iterable[str]:
        """Print how much of its rate on an empty store the library keeps on a filled one."""
        rates = [(line.cell, median(line.values[LIBRARY_NAME])) for line in self.lines if line.figure == PER_SECOND]
        on_empty = {(cell.workload.name, cell.callers): rate for cell, rate in rates if not cell.workload.finished}
        for cell, rate in rates:
            target = cell.workload.least_of_empty.get(cell.callers)
            if target is not None:
                kept = rate / on_empty[cell.workload.name, cell.callers]
                verdict = "met" if kept >= target else "missed"
                yield f"{cell}: {kept:.2f} of the library's rate on an empty store; target: {target:g}: {verdict}"

    def _values(self, line: Line) -> list[str]:
        medians = [median(line.values[side]) if side in line.values else None for side in self.sides]
        return [line.title, str(line.cell.callers), *(number(value) for value in medians)]

    def _ratios(self, line: Line, baselines: Sequence[str]) -> list[str]:
        ratios = [number(line.ratio(side)) for side in baselines]
        return [line.title, str(line.cell.callers), *ratios, *_verdict(line)]


def _verdict(line: Line) -> list[str]:
    return ["" if line.target is None else f"{line.target:g}", line.verdict]


def number(value: float | None) -> str:
    """Format a number for people: without decimals from 100 on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(titles: Sequence[str], rows: Iterable[list[str]]) -> list[str]:
    """Align columns, the first to the left and the others to the right."""
    cells = [list(titles), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def describe_machine(folder: Path) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "Python": platform.python_version(),
        "file system": file_system(folder),
    }


def file_system(folder: Path) -> str:
    """Return the file system type of a folder, if Linux reports it."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    entries = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(len(point), kind) for point, kind in entries if folder.resolve().is_relative_to(point)]
    return max(holding)[1]
