"""A workflow's steps as a tree, with a bar for the time that each took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.text import Text

from wfe_sql.cli.output import STYLES, Output, format_duration
from wfe_sql.escaping import visible
from wfe_sql.models import ExecutionPointer, PointerStatus, WorkflowInstance

_LINES = {True: ("├─ ", "└─ ", "│  ", "   "), False: ("|- ", "`- ", "|  ", "   ")}
"""What a tree is drawn with, with Unicode or without: a branch, the last one, and what runs on below them."""

_BARS = {True: ("█", "░", "·"), False: ("#", "-", ".")}
"""What a bar is drawn with: time spent, time spent waiting, and the time around it."""

_WAITS = {PointerStatus.Sleeping, PointerStatus.WaitingForEvent, PointerStatus.PendingPredecessor}
_SHORTEST_BAR = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One step in a tree: what is drawn before its name, and its pointer."""

    lead: str
    pointer: ExecutionPointer


def tree(pointers: Sequence[ExecutionPointer], *, is_unicode: bool) -> list[Line]:
    """Return pointers in the order of a tree: those of a scope below the step that opened it, as stored otherwise.

    A pointer whose scope does not exist is at the top, and so is one whose scopes form a circle.
    """
    by_id = {pointer.id: pointer for pointer in pointers}
    below: dict[str | None, list[ExecutionPointer]] = {}
    for pointer in pointers:
        below.setdefault(_parent(pointer, by_id), []).append(pointer)
    branch, last, on, gap = _LINES[is_unicode]

    def lines(parent: str | None, lead: str) -> Iterator[Line]:
        children = below.pop(parent, [])
        for child in children:
            is_last = child is children[-1]
            yield Line(lead + (last if is_last else branch), child)
            yield from lines(child.id, lead + (gap if is_last else on))

    drawn = list(lines(None, ""))
    while below:
        drawn += lines(next(iter(below)), "")
    return drawn


def _parent(pointer: ExecutionPointer, by_id: dict[str, ExecutionPointer]) -> str | None:
    """Return the step that opened the innermost scope that exists; scopes are listed outermost first."""
    return next((id_ for id_ in reversed(pointer.scope) if id_ in by_id and id_ != pointer.id), None)


def print_steps(output: Output, instance: WorkflowInstance, now: datetime) -> None:
    """Print the steps of a workflow, at least one, each on a line as wide as the terminal."""
    lines = tree(instance.execution_pointers, is_unicode=output.is_unicode)
    labels = [f"{line.lead}{_label(line.pointer)}" for line in lines]
    states = [line.pointer.status.value for line in lines]
    lengths = [_length(line.pointer, now) for line in lines]
    notes = [_note(line.pointer, now) for line in lines]
    state_width = max(6, *map(len, states))
    length_width = max(4, *map(len, lengths))
    width = 100 if output.is_plain else output.console.width
    fixed = state_width + length_width + 6
    label_width = min(max(map(len, labels), default=0), max(12, width - fixed - _SHORTEST_BAR - 8))
    note_width = min(max(map(len, notes), default=0), max(0, width - fixed - label_width - _SHORTEST_BAR - 2))
    bar_width = max(8, width - fixed - label_width - note_width - (2 if note_width else 0))
    begin, end = _frame(instance, now)
    scale = f"0{format_duration(end - begin).rjust(bar_width - 1)}"
    head = f"{'step'.ljust(label_width)}  {'status'.ljust(state_width)}  {scale}  {'took'.rjust(length_width)}"
    output.line(Text(head, style="bold"))
    for line, label, state, length, note in zip(lines, labels, states, lengths, notes, strict=True):
        style = STYLES.get(state, "")
        text = Text(_fit(label, label_width))
        text.append("  ").append(state.ljust(state_width), style=style).append("  ")
        text.append(_bar(line.pointer, begin, end, now, bar_width, is_unicode=output.is_unicode), style=style)
        text.append(f"  {length.rjust(length_width)}")
        if note_width:
            text.append(f"  {_fit(note, note_width)}")
        text.rstrip()
        output.line(text)


def _label(pointer: ExecutionPointer) -> str:
    return f"{pointer.step_id} {visible(pointer.step_name)}" if pointer.step_name else f"step {pointer.step_id}"


def _note(pointer: ExecutionPointer, now: datetime) -> str:
    """Return what a person wants to know about a step besides its status."""
    notes = []
    if pointer.retry_count:
        notes.append(f"{pointer.retry_count} {'retry' if pointer.retry_count == 1 else 'retries'}")
    if pointer.status is PointerStatus.WaitingForEvent:
        notes.append(f"for {pointer.event_name} {pointer.event_key}")
    if pointer.status is PointerStatus.Sleeping and pointer.sleep_until is not None:
        notes.append(f"{format_duration(pointer.sleep_until - now)} left" if pointer.sleep_until > now else "is due")
    return visible(", ".join(notes))


def _length(pointer: ExecutionPointer, now: datetime) -> str:
    if pointer.start_time is None:
        return ""
    return format_duration((pointer.end_time or now) - pointer.start_time)


def _frame(instance: WorkflowInstance, now: datetime) -> tuple[datetime, datetime]:
    """Return the time that all bars stand for: from the workflow's creation to its end, or to now."""
    times = [time for each in instance.execution_pointers for time in (each.start_time, each.end_time) if time]
    begin = min([instance.create_time, *times])
    last = max([begin, *times])
    open_ended = any(each.start_time and not each.end_time for each in instance.execution_pointers)
    return begin, max(last, now if open_ended else last, begin + timedelta(microseconds=1))


def _bar(
    pointer: ExecutionPointer, begin: datetime, end: datetime, now: datetime, width: int, *, is_unicode: bool
) -> str:
    """Return the bar of one step: where in the workflow's time it stands."""
    spent, waiting, around = _BARS[is_unicode]
    if pointer.start_time is None:
        return around * width
    first = int((pointer.start_time - begin) / (end - begin) * width)
    first = min(max(first, 0), width - 1)
    last = round(((pointer.end_time or now) - begin) / (end - begin) * width)
    length = min(max(last - first, 1), width - first)
    mark = waiting if pointer.status in _WAITS else spent
    return around * first + mark * length + around * (width - first - length)


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 2]}.."
