"""`wfe-sql demo`."""

import asyncio
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from wfe_sql.cli.output import warn
from wfe_sql.cli.root import app
from wfe_sql.demo.run import DemoReport, run_demo
from wfe_sql.escaping import visible
from wfe_sql.models import PointerStatus, WorkflowInstance


@app.command()
def demo(
    file: Annotated[
        Path | None, typer.Argument(show_default=False, help="The SQLite file to create; a temporary one by default.")
    ] = None,
) -> None:
    """Run six orders, kill a host, and see them finish.

    Two hosts share one SQLite file. One is killed half way, and a new one takes its place. It takes a few seconds and
    leaves the file for you to look into.

    Example: wfe-sql demo /tmp/orders.db
    """
    if file is None:
        file = Path(tempfile.mkdtemp(prefix="wfe-sql-demo-")) / "demo.db"
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False, markup=False, emoji=False, soft_wrap=True)
    began = time.monotonic()

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - began:5.1f} s  {visible(line)}")

    try:
        report = asyncio.run(run_demo(file.absolute(), say))
    except FileExistsError as error:
        warn(str(error))
        raise typer.Exit(2) from None
    _print_demo(console, report)
    if report.problems:
        raise typer.Exit(1)


def _print_demo(console: Console, report: DemoReport) -> None:
    terminal = console.is_terminal
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
    table.add_column("order")
    table.add_column("status")
    for heading in ("steps done", "retries", "errors stored", "time"):
        table.add_column(heading, justify="right")
    errors = Counter(error.workflow_id for error in report.errors)
    for order in report.orders:
        done = sum(pointer.status is PointerStatus.Complete for pointer in order.execution_pointers)
        retries = sum(pointer.retry_count for pointer in order.execution_pointers)
        steps = f"{done} of {len(order.execution_pointers)}"
        table.add_row(visible(order.name), order.status.value, steps, str(retries), str(errors[order.id]), _took(order))
    console.print()
    console.print(table)
    console.print()
    for line in _summary(report):
        console.print(visible(line))


def _took(order: WorkflowInstance) -> str:
    if order.complete_time is None:
        return ""
    return f"{(order.complete_time - order.create_time).total_seconds():.1f} s"


def _summary(report: DemoReport) -> list[str]:
    runs = [
        f"  host {pid}: {count}{', then it was killed' if pid == report.killed else ''}"
        for pid, count in report.runs_by_host.items()
    ]
    if report.problems:
        verdict = [f"WRONG: {problem}" for problem in report.problems]
    else:
        verdict = [
            "No step ran again once it was stored as done:",
            f"  step runs stored when host {report.killed} was killed: {len(report.stored)}, "
            f"run again: {len(report.repeated & report.stored)}",
            f"  step runs that it had begun but not stored: {len(report.in_flight)}, run again: {len(report.repeated)}",
        ]
    commands = [
        (_program(), "show", shlex.quote(str(report.file)), "order-1"),
        ("sqlite3", shlex.quote(str(report.file)), '"select name, status from workflows"'),
        ("grep", "order-1", shlex.quote(str(report.journal))),
    ]
    return [
        "Step runs that each host began:",
        *runs,
        "",
        *verdict,
        "",
        f"The file is {report.file}",
        "Look further:",
        *("  " + " ".join(command) for command in commands),
    ]


def _program() -> str:
    """Return the command that started this program, which works even when its folder is not in the PATH."""
    called = Path(sys.argv[0])
    return shlex.quote(str(called)) if called.name == "wfe-sql" else "wfe-sql"
