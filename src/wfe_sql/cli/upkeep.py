"""Commands for a DBA, on whole stores."""

import hashlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from wfe_sql.backends import backend_of
from wfe_sql.cli.output import Cell, Output, format_size, print_json, say
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, SqlDir, Url, Yes, confirm, hide_password, open_store, parse_age, parse_time, run
from wfe_sql.models import WorkflowStatus
from wfe_sql.urls import SqliteTarget, parse_sqlite_url


@app.command()
def init(url: Url, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Create a store, or upgrade one.

    It makes the tables, columns and indexes that are missing, and updates the statistics that queries are planned with.
    Hosts may go on working.

    Example: wfe-sql init sqlite:///var/lib/app/wfe.db
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="rwc") as provider:
            await provider.ensure_store_exists()
            await provider.update_statistics()
        if as_json:
            print_json({"url": hide_password(url)})
        else:
            say(f"{hide_password(url)} is ready")

    run(command())


@app.command()
def check(
    url: Url,
    overdue_after: Annotated[str, typer.Option(help="Report work that is due for longer than this.")] = "5m",
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """Check a store, and report what is wrong with it.

    It checks the file itself, unfinished copies, foreign keys, orphans, unreadable rows, overdue work, claims of dead
    hosts, missing indexes, and missing or old statistics. It reads the whole store, changes nothing and blocks nobody.
    Exits with 1 when anything is wrong.

    Example: wfe-sql check wfe.db --json
    """
    limit = parse_age(overdue_after)

    async def command() -> None:
        output = Output()
        async with open_store(url, sql_dir, mode="ro", allow_unfinished_copy=True) as provider:
            findings = await provider.check(overdue_after=limit)
        if as_json:
            print_json(findings)
        elif findings:
            for finding in findings:
                output.line(f"{finding.kind}: {finding.message}")
        else:
            output.line(f"nothing is wrong with {hide_password(url)}")
        if findings:
            raise typer.Exit(1)

    run(command())


class Finished(StrEnum):
    """Statuses that can be purged."""

    Complete = "Complete"
    Terminated = "Terminated"


@app.command()
def purge(
    url: Url,
    status: Annotated[Finished, typer.Option(help="Delete workflows with this status.", show_default=False)],
    older_than: Annotated[
        str, typer.Option(help="Delete what ended before this, such as 30d (ago) or 2026-05-28.", show_default=False)
    ],
    events: Annotated[bool, typer.Option("--events", help="Also delete processed events that old.")] = False,
    orphaned_errors: Annotated[
        bool, typer.Option("--orphaned-errors", help="Also delete errors that old whose workflow is gone.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="How many are deleted per commit.")] = 500,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print how many there are.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """Delete finished workflows.

    Everything that belongs to them is deleted too: steps, subscriptions, errors, commands. Each batch is one commit,
    and hosts may go on working. If you stop it half way, what was deleted stays deleted. A workflow without a
    complete_time is as old as its create_time.

    Example: wfe-sql purge wfe.db --status Complete --older-than 30d --dry-run
    """
    bound, word = parse_time(older_than), WorkflowStatus(status)
    also = {"events": events, "orphaned errors": orphaned_errors}
    wanted = ["workflows", *(what for what, is_wanted in also.items() if is_wanted)]
    run(_purge(url, sql_dir, word, bound, wanted, batch_size, dry_run=dry_run, yes=yes, as_json=as_json))


async def _purge(
    url: str,
    sql_dir: Path | None,
    status: WorkflowStatus,
    older_than: datetime,
    wanted: Sequence[str],
    batch_size: int,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    async with open_store(url, sql_dir, mode="ro" if dry_run else "rw") as provider:
        purges: dict[str, Callable[..., Awaitable[int]]] = {
            "workflows": partial(provider.purge_workflows, status),
            "events": provider.purge_events,
            "orphaned errors": provider.purge_orphaned_errors,
        }
        counts = {what: await purges[what](older_than, dry_run=True) for what in wanted}
        what = " and ".join(f"{count:,} {name}" for name, count in counts.items())
        if not dry_run:
            confirm(f"Delete {what}, {status} before {older_than:%Y-%m-%d %H:%M:%S}?", yes=yes)
            with Output().progress() as progress:
                for each in wanted:
                    task = progress.add_task(each, total=counts[each])
                    show = partial(_show_progress, progress, task)
                    counts[each] = await purges[each](older_than, batch_size=batch_size, on_batch=show)
            what = " and ".join(f"{count:,} {name}" for name, count in counts.items())
    if as_json:
        print_json({**{what.replace(" ", "_"): count for what, count in counts.items()}, "dry_run": dry_run})
    else:
        typer.echo(f"{what} would be deleted" if dry_run else f"{what} deleted")


def _show_progress(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


@app.command()
def backup(url: Url, file: Path, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Copy a SQLite store into a new file.

    The copy is of one moment; hosts may go on writing. The file appears only once it is complete. It is a store like
    any other, and can be read with ?mode=ro from a read-only disk. Back up PostgreSQL with pg_dump.

    To restore: stop the hosts, move wfe.db, wfe.db-wal and wfe.db-shm away, and then copy the backup to wfe.db. SQLite
    would apply a -wal file that stays behind to the restored file.

    Example: wfe-sql backup wfe.db /var/backups/wfe-2026-05-28.db
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            await provider.backup(file)

    run(command())
    count = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "size_bytes": count})
    else:
        say(f"backed up to {file} ({format_size(count)})")


@app.command()
def dump(
    url: Url,
    digest: Annotated[bool, typer.Option("--digest", help="Print only the SHA-256 of the text.")] = False,
    sql_dir: SqlDir = None,
) -> None:
    """Print every row as a line of JSON.

    The order is stable, so equal stores give equal text.

    Example: wfe-sql dump wfe.db | gzip > wfe.jsonl.gz
    """

    async def command() -> None:
        hashed = hashlib.sha256()
        async with open_store(url, sql_dir, mode="ro") as provider, aclosing(provider.dump()) as lines:
            async for line in lines:
                if digest:
                    hashed.update(f"{line}\n".encode())
                else:
                    sys.stdout.write(f"{line}\n")
        if digest:
            typer.echo(hashed.hexdigest())

    run(command())


@app.command()
def copy(
    source: Url,
    dest: Annotated[str, typer.Argument(help="The store to copy into; it is created if it does not exist.")],
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """Copy a store into an empty one, and compare them.

    For example from SQLite to PostgreSQL. A new SQLite file gets the permissions of the SQLite file that it copies.

    The copy is of one moment: stop the hosts first, because what they write later is not in it. Nobody may use the
    destination meanwhile. If the copy fails, the destination is emptied again. If it is killed, the destination stays
    marked as an unfinished copy: it cannot be opened, check reports it, and another copy into it starts over.

    Example: wfe-sql copy wfe.db postgresql://wfe@db.example.com/wfe
    """

    async def command() -> None:
        output = Output()
        backend = backend_of(source)
        same = backend_of(dest) is backend
        async with open_store(source, sql_dir, mode="ro") as one, AsyncExitStack() as stack:
            if same and backend.name == "sqlite":
                _create_with_permissions_of(parse_sqlite_url(dest), parse_sqlite_url(source))
            tuned = sql_dir if same else None
            other = await stack.enter_async_context(open_store(dest, tuned, mode="rwc", allow_unfinished_copy=True))
            total = sum((await one.stats()).rows.values())
            with output.progress() as progress:
                copying = progress.add_task("copying", total=total)
                comparing = progress.add_task("comparing", total=total)

                def on_batch(copied: int, compared: int) -> None:
                    progress.update(copying, completed=copied)
                    progress.update(comparing, completed=compared)

                report = await one.copy_to(other, on_batch=on_batch)
        if as_json:
            print_json(report)
            return
        rows: list[list[Cell]] = [[table, f"{count:,}"] for table, count in report.rows.items()]
        output.table([("table", "left"), ("rows", "right")], rows)
        output.line(f"copied and compared, SHA-256 {report.digest}")

    run(command())


def _create_with_permissions_of(copy: SqliteTarget, original: SqliteTarget) -> None:
    """Create an empty file, which SQLite accepts as an empty database, with the permissions of the original.

    SQLite gives its log and index the permissions of the file (findCreateFileMode in
    https://sqlite.org/src/file/src/os_unix.c).
    """
    if copy.path is not None and copy.mode == "rwc" and original.path is not None:
        with suppress(OSError):  # it exists, or opening it says why it cannot be created
            mode = original.path.stat().st_mode & 0o066 | 0o600
            os.close(os.open(copy.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
