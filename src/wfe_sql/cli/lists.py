"""`wfe-sql stats`, and lists of what is in a store."""

import asyncio
import shlex
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from wfe_sql.cli.output import (
    Cell,
    Column,
    Output,
    Side,
    format_age,
    format_duration,
    format_size,
    format_status,
    format_time,
    join_lines,
    print_json,
    to_json,
    warn,
)
from wfe_sql.cli.root import app
from wfe_sql.cli.store import (
    After,
    AsJson,
    Limit,
    SqlDir,
    Url,
    find_workflow,
    hide_password,
    open_store,
    parse_time,
    run,
)
from wfe_sql.maintenance.models import CommandSummary, Page, QueryStats, StoreStats, WorkflowSummary
from wfe_sql.models import WorkflowStatus, utc_now

_WATCH_EVERY = 2.0
"""Seconds between two counts, at least; a large store is read for at most a tenth of the time."""


@app.command()
def stats(
    url: Url,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds, with rates, until Ctrl-C.")] = False,
    queries: Annotated[
        bool, typer.Option("--queries", help="Show what the server counted for each query (pg_stat_statements).")
    ] = False,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """Count what is in a store, and what is due.

    Workflows are counted by definition and status. It reads the whole store, in one snapshot that blocks nobody. With
    --queries it only reads what the server counted since its statistics were reset, for all stores in the database.

    Example: wfe-sql stats wfe.db --watch
    """
    try:
        run(_stats(url, sql_dir, queries=queries, watch=watch, as_json=as_json))
    except KeyboardInterrupt:
        raise typer.Exit from None


async def _stats(url: str, sql_dir: Path | None, *, queries: bool, watch: bool, as_json: bool) -> None:
    output = Output()
    before: StoreStats | None = None
    async with open_store(url, sql_dir, mode="ro") as provider:
        while True:
            began = asyncio.get_running_loop().time()
            found = await (provider.query_stats() if queries else provider.stats())
            if as_json:
                print_json(found)
            else:
                if watch and not output.is_plain:
                    output.console.clear()
                if isinstance(found, StoreStats):
                    _print_stats(output, url, found)
                    if before is not None:
                        print_rates(output, before, found)
                    before = found
                else:
                    _print_query_stats(output, found)
            if not watch:
                return
            took = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(_WATCH_EVERY, 10 * took))


def _print_stats(output: Output, url: str, found: StoreStats) -> None:
    now = found.taken_at
    output.line(hide_password(url))
    free = "" if found.free_bytes is None else f", {format_size(found.free_bytes)} of it free"
    log = "" if not found.log_bytes else f", {format_size(found.log_bytes)} of log next to it"
    output.line(f"{format_size(found.size_bytes)}{free}{log}, at {format_time(now)} UTC")
    output.line()
    by_definition: dict[str, dict[str, int]] = defaultdict(dict)
    for each in found.workflows:
        by_definition[each.workflow_definition_id][each.status] = each.workflows
    others = sorted({each.status for each in found.workflows} - set(WorkflowStatus))
    statuses = [*WorkflowStatus, *others]
    columns: list[Column] = [("definition", "left"), *((word, "right") for word in statuses)]
    columns += [("all", "right"), ("oldest", "right"), ("newest", "right")]
    rows: list[list[Cell]] = []
    for definition, counts in by_definition.items():
        times = [(each.oldest, each.newest) for each in found.workflows if each.workflow_definition_id == definition]
        oldest = min((oldest for oldest, _ in times if oldest is not None), default=None)
        newest = max((newest for _, newest in times if newest is not None), default=None)
        ages = ["unreadable" if time is None else format_duration(now - time) for time in (oldest, newest)]
        counted = [f"{counts.get(word, 0):,}" for word in statuses]
        rows.append([definition, *counted, f"{sum(counts.values()):,}", *ages])
    if len(rows) > 1:
        totals = [sum(counts.get(word, 0) for counts in by_definition.values()) for word in statuses]
        rows.append(["all", *(f"{total:,}" for total in totals), f"{sum(totals):,}", "", ""])
    output.table(columns, rows)
    output.line()
    backlog = {"workflows": found.due_workflows, "events": found.due_events, "commands": found.due_commands}
    due: list[list[Cell]] = [
        [what, f"{each.due:,}", "" if each.since is None else format_duration(now - each.since)]
        for what, each in backlog.items()
    ]
    output.table([("due now", "left"), ("count", "right"), ("longest for", "right")], due)
    output.line()
    stored: list[list[Cell]] = [[table, f"{count:,}"] for table, count in sorted(found.rows.items())]
    output.table([("table", "left"), ("rows", "right")], stored)


def print_rates(output: Output, before: StoreStats, now: StoreStats) -> None:
    """Print how fast a store has grown since the last look, not counting what was purged meanwhile."""
    seconds = (now.taken_at - before.taken_at).total_seconds()
    if seconds > 0:
        rows: list[list[Cell]] = [
            [what, f"{(later - earlier) / seconds:+,.1f}"]
            for (what, earlier), later in zip(_growing(before).items(), _growing(now).values(), strict=True)
        ]
        output.line()
        output.table([("growth", "left"), ("per second", "right")], rows)


def _growing(found: StoreStats) -> dict[str, int]:
    complete = sum(each.workflows for each in found.workflows if each.status == WorkflowStatus.Complete)
    return {
        "workflows created": found.rows["workflows"],
        "workflows completed": complete,
        "events": found.rows["events"],
        "errors": found.rows["execution_errors"],
    }


def _print_query_stats(output: Output, found: Sequence[QueryStats]) -> None:
    columns: list[Column] = [("query", "left")]
    columns += [(what, "right") for what in ("calls", "mean ms", "rows", "buffers", "buffers a call")]
    rows: list[list[Cell]] = [
        [
            each.name,
            *(f"{each.calls:,}", f"{each.mean_ms:.3f}", f"{each.rows:,}", f"{each.buffers:,}"),
            f"{each.buffers / max(each.calls, 1):,.1f}",
        ]
        for each in found
    ]
    output.table(columns, rows)


@app.command()
def workflows(
    url: Url,
    wanted: Annotated[
        WorkflowStatus | None, typer.Option("--status", show_default=False, help="Only those with this status.")
    ] = None,
    definition: Annotated[str | None, typer.Option(show_default=False, help="Only those of this definition.")] = None,
    since: Annotated[
        str | None, typer.Option(show_default=False, help="Only those created since, such as 12h or 2026-05-28.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(show_default=False, help="Only the children of the workflow with this name or id.")
    ] = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """List workflows, the newest first.

    Example: wfe-sql workflows wfe.db --status Suspended --since 7d
    """
    bound = None if since is None else parse_time(since)

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            root_id = None if root is None else (await find_workflow(provider, root)).id
            page = await provider.list_workflows(
                status=wanted,
                definition_id=definition,
                since=bound,
                root_workflow_id=root_id,
                after=after,
                limit=limit,
            )
        now = utc_now()
        rows: list[list[Cell]] = [
            [
                each.name,
                each.workflow_definition_id,
                format_status(each.status),
                format_time(each.create_time),
                ("" if each.next_execution is None else format_time(each.next_execution))
                if each.complete_time is None
                else f"took {format_duration(each.complete_time - each.create_time)}",
                _format_holder(each, now),
            ]
            for each in page.items
        ]
        _print_page(page, ["name", "definition", "status", "created", "due, or took", "held by, until"], rows, as_json)

    run(command())


@app.command()
def errors(
    url: Url,
    workflow: Annotated[
        str | None, typer.Option(show_default=False, help="Only errors of the workflow with this name or id.")
    ] = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """List errors of steps, the last stored first.

    Example: wfe-sql errors wfe.db --workflow order-3
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            id_ = None if workflow is None else (await find_workflow(provider, workflow)).id
            page = await provider.list_error_summaries(workflow_id=id_, after=after, limit=limit)
        rows: list[list[Cell]] = [
            [
                format_time(each.error_time),
                each.workflow_name or each.workflow_id,
                each.execution_pointer_id if each.step_id is None else each.step_name or f"step {each.step_id}",
                join_lines(each.message),
            ]
            for each in page.items
        ]
        _print_page(page, ["time", "workflow", "step", "message"], rows, as_json, last="whole")

    run(command())


@app.command()
def events(
    url: Url,
    processed: Annotated[
        bool | None,
        typer.Option(
            "--processed/--unprocessed", show_default=False, help="Only processed, or only unprocessed, events."
        ),
    ] = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """List events, the newest first.

    Example: wfe-sql events wfe.db --unprocessed
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            page = await provider.list_events(is_processed=processed, after=after, limit=limit)
        rows: list[list[Cell]] = [
            [
                format_time(each.event_time),
                each.event_name,
                each.event_key,
                "yes" if each.is_processed else "no",
                to_json(each.event_data),
            ]
            for each in page.items
        ]
        _print_page(page, ["time", "name", "key", "processed", "data"], rows, as_json)

    run(command())


@app.command()
def commands(url: Url, after: After = None, limit: Limit = 50, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """List scheduled commands in the order they are due.

    Example: wfe-sql commands wfe.db --json
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            page = await provider.list_scheduled_commands(after=after, limit=limit)
        now = utc_now()
        rows: list[list[Cell]] = [
            [
                format_time(each.execute_time),
                each.command_name,
                each.data,
                _format_holder(each, now),
            ]
            for each in page.items
        ]
        _print_page(page, ["due", "command", "for", "held by, until"], rows, as_json)

    run(command())


def _print_page(
    page: Page[Any], headings: list[str], rows: list[list[Cell]], as_json: bool, *, last: Side = "left"
) -> None:
    if as_json:
        print_json(page)
        return
    columns: list[Column] = [(heading, "left") for heading in headings]
    columns[-1] = (headings[-1], last)
    Output().table(columns, rows)
    if page.after is not None:
        warn(f"there may be more: --after {shlex.quote(page.after)}")


def _format_holder(item: WorkflowSummary | CommandSummary, now: datetime) -> str:
    return "" if item.claim_worker_id is None else f"{item.claim_worker_id}, {format_age(item.claim_expires_at, now)}"
