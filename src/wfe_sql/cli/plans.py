"""`wfe-sql explain` and `wfe-sql schema`."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from rich.console import Console

from wfe_sql.backends import BACKENDS, backend_of
from wfe_sql.cli.options import DialectName, find_query
from wfe_sql.cli.output import Output, print_json
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, SqlDir
from wfe_sql.errors import StoreError
from wfe_sql.escaping import visible
from wfe_sql.plans import Contents, Planner, judge
from wfe_sql.queries import Query


@app.command()
def explain(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="The store, such as sqlite:///var/lib/app/wfe.db, or :memory: (empty)."),
    ],
    name: Annotated[str | None, typer.Argument(metavar="QUERY", help="Only this query.", show_default=False)] = None,
    sql_dir: SqlDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan of each query on a store.

    It names the indexes that the plan uses, and marks scans and sorts. The store is opened read-only, and none of the
    queries is run. Exits with 1 when a plan differs from the query's header, for example because an index is missing.
    It is fine for the planner to scan a small table.

    Example: wfe-sql explain sqlite:///var/lib/app/wfe.db get_runnable_instances
    """
    backend = backend_of(url)
    queries = backend.load(sql_dir)
    wanted = [query for query in queries.values() if query.has_plan] if name is None else [find_query(queries, name)]
    with backend.open_planner(url, queries) as planner:
        survey = cache(planner.survey)
        plans = [_plan(query, planner, survey, is_tuned=query.name in queries.tuned) for query in wanted]
    if as_json:
        print_json(plans)
    else:
        out = Output().console
        for plan in plans:
            _print_plan(plan, out)
    if any(plan["wrong"] for plan in plans):
        raise typer.Exit(1)


@app.command()
def schema(dialect: DialectName = "sqlite", sql_dir: SqlDir = None, as_json: AsJson = False) -> None:
    """Print the DDL of a new store.

    Pipe it into the database's own command-line program.

    Example: wfe-sql schema | sqlite3 new.db
    """
    script = BACKENDS[dialect].schema(BACKENDS[dialect].load(sql_dir))
    if as_json:
        print_json({"dialect": dialect, "sql": script})
    else:
        typer.echo(script, nl=False)


def _plan(query: Query, planner: Planner, survey: Callable[[], Contents], *, is_tuned: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"query": query.name, "indexes": [], "scan": query.scan, "plan": [], "scans": []}
    found |= {"wrong": [], "chosen": []}
    if not query.has_plan:
        return found
    try:
        plan = planner.explain(query)
    except StoreError as error:
        return {**found, "wrong": [str(error)]}
    if complaints := plan.complaints(query):
        found["wrong"], found["chosen"] = judge(complaints, plan, query, survey(), is_tuned=is_tuned)
    found |= {"indexes": sorted(plan.indexes), "plan": plan.lines, "scans": plan.scans}
    return found


def _print_plan(plan: dict[str, Any], out: Console) -> None:
    if plan["scan"]:
        uses = f"scan: {plan['scan']}"
    elif plan["indexes"]:
        uses = f"index: {', '.join(plan['indexes'])}"
    else:
        uses = "index: none"
    out.print(plan["query"], style="bold", end="  ", soft_wrap=True)
    out.print(uses, style="yellow" if plan["scan"] else None, soft_wrap=True)
    for line in plan["plan"]:
        scans = line in plan["scans"]
        out.print(f"  {'*' if scans else ' '} {visible(line)}", style="yellow" if scans else None, soft_wrap=True)
    for line in plan["wrong"]:
        out.print(f"  ! {visible(line)}", style="red", soft_wrap=True)
    for line in plan["chosen"]:
        out.print(f"    the planner's choice: {visible(line)}", soft_wrap=True)
