"""How commands print: for people on a terminal, plainly on a pipe, and as JSON for machines."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from wfe_sql.escaping import visible

Cell = str | Text
Side = Literal["left", "right", "whole"]
Column = tuple[str, Side]
"""A heading, and how the column is aligned; the last one may be "whole": it wraps instead of being cut."""

STYLES = {
    "Runnable": "cyan",
    "Running": "cyan",
    "Suspended": "yellow",
    "Sleeping": "blue",
    "WaitingForEvent": "magenta",
    "Complete": "green",
    "Failed": "red",
    "Terminated": "red",
}
"""The colours of statuses; the word is always printed too."""

_NARROWEST = 6
"""The fewest characters that a column is cut to."""


class Output:
    """Prints to stdout, and honours NO_COLOR, FORCE_COLOR and COLUMNS."""

    @cached_property
    def console(self) -> Console:
        """The console that prints to stdout."""
        return Console(highlight=False, markup=False, emoji=False)

    @property
    def is_plain(self) -> bool:
        """Whether stdout is not a terminal: no colours, no boxes, and lines of any length."""
        return not self.console.is_terminal

    @property
    def is_unicode(self) -> bool:
        """Whether characters beyond ASCII can be printed."""
        return not self.is_plain and self.console.encoding.startswith("utf")

    def line(self, line: Cell = "") -> None:
        """Print a line; on a terminal it wraps."""
        self.console.print(_as_cell(line), soft_wrap=self.is_plain)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        """Print a table; on a terminal, long texts are cut to its width."""
        texts = [[Text(visible(heading), style="bold") for heading, _ in columns]]
        texts += [[_as_cell(cell) for cell in row] for row in rows]
        widths = [max(cell.cell_len for cell in column) for column in zip(*texts, strict=True)]
        if not self.is_plain:
            is_whole = columns[-1][1] == "whole"
            if is_whole:
                widths[-1] = min(widths[-1], self.console.width // 2)
            _shrink(widths, [side == "left" for _, side in columns], self.console.width)
            if is_whole:
                widths[-1] = max(_NARROWEST, self.console.width - sum(widths[:-1]) - 2 * (len(widths) - 1))
        indent = " " * (sum(widths[:-1]) + 2 * (len(widths) - 1))
        for row in texts:
            line = Text()
            rest: Iterable[Text] = ()
            for cell, width, (_, side) in zip(row, widths, columns, strict=True):
                if cell.cell_len > width and side == "whole":
                    cell, *rest = cell.wrap(self.console, width)
                elif cell.cell_len > width:
                    cell.truncate(width - 2)
                    cell.append("..")
                gap = " " * (width - cell.cell_len)
                line = Text.assemble(line, gap, cell) if side == "right" else Text.assemble(line, cell, gap)
                line.append("  ")
            for part in (line, *(Text(indent) + part for part in rest)):
                part.rstrip()
                self.line(part)

    def progress(self) -> Progress:
        """Return a progress bar on stderr, visible only on a terminal."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _as_cell(cell: Cell) -> Text:
    """Return what is printed: text from a store is escaped, and a `Text` is escaped already."""
    return cell if isinstance(cell, Text) else Text(visible(cell))


def _shrink(widths: list[int], may_shrink: Sequence[bool], total: int) -> None:
    """Narrow the widest columns that may shrink until all fit, with two spaces between them."""
    while sum(widths) + 2 * (len(widths) - 1) > total:
        width, at = max(((width, at) for at, width in enumerate(widths) if may_shrink[at]), default=(0, 0))
        if width <= _NARROWEST:
            return
        widths[at] -= 1


def print_json(value: Any) -> None:
    """Print a value as one JSON document on one line; dataclasses become objects."""
    typer.echo(to_json(value))


def say(line: str) -> None:
    """Print a line, with control characters escaped."""
    typer.echo(visible(line))


def warn(line: str) -> None:
    """Print a line to stderr."""
    sys.stderr.write(f"wfe-sql: {visible(line)}\n")


def format_status(word: str) -> Text:
    """Return a status in its colour."""
    return Text(visible(word), style=STYLES.get(word, ""))


def format_time(time: datetime | int | None) -> str:
    """Return a time, or epoch milliseconds, to the second in UTC."""
    if time is None:
        return ""
    if isinstance(time, int):
        try:
            time = datetime.fromtimestamp(time / 1000, tz=UTC)
        except (ValueError, OverflowError, OSError):
            return f"{time} ms"
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def format_duration(length: timedelta) -> str:
    """Return a length of time in its largest fitting unit, such as "3 min"."""
    seconds = abs(length.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size, below in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * below:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:,.0f} d"


def format_age(time: datetime | None, now: datetime) -> str:
    """Return how far a time is from now, such as "3 min ago" or "in 3 min"."""
    if time is None:
        return ""
    return f"in {format_duration(time - now)}" if time > now else f"{format_duration(now - time)} ago"


def format_size(count: int) -> str:
    """Return a number of bytes in its largest fitting unit."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError(count)


def to_json(value: Any) -> str:
    """Return JSON as text on one line."""
    return msgspec.json.encode(value).decode()


def join_lines(text: str) -> str:
    """Return a text without its line breaks."""
    return " ".join(text.split())
