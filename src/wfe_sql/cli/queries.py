"""`wfe-sql queries`: read and tune the SQL that the library runs."""

import difflib
from collections.abc import Iterable
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.syntax import Syntax
from rich.table import Table

from wfe_sql.backends import BACKENDS
from wfe_sql.cli.options import DialectName, fail, find_query
from wfe_sql.cli.output import Output, print_json
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, SqlDir
from wfe_sql.errors import QueryFileError
from wfe_sql.queries import Query, QuerySet, find_sql

queries_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(queries_app, name="queries")


@queries_app.callback()
def queries() -> None:
    """Read and tune the SQL that the library runs.

    Example: wfe-sql queries list
    """


@queries_app.command("list")
def list_(dialect: DialectName = "sqlite", sql_dir: SqlDir = None, as_json: AsJson = False) -> None:
    """List all queries, with the indexes they use.

    On a pipe, each query is a line of four columns separated by tabs: file, name, indexes, and the methods that run it.

    Example: wfe-sql queries list --json | jq -r '.[] | select(.index == []) | .name'
    """
    loaded = BACKENDS[dialect].load(sql_dir)
    if as_json:
        print_json([_as_json(query, loaded) for query in loaded.values()])
        return
    rows = [
        (
            Path(query.file).name,
            query.name + (" (tuned)" if query.name in loaded.tuned else ""),
            ", ".join(query.index) or (f"scan: {query.scan}" if query.scan else ""),
            ", ".join(query.used_by),
        )
        for query in loaded.values()
    ]
    if not Output().is_plain:
        _print_list(rows)
    else:
        typer.echo("\n".join("\t".join(row) for row in rows))


@queries_app.command()
def show(
    name: Annotated[str, typer.Argument(help="The query's name.")],
    dialect: DialectName = "sqlite",
    sql_dir: SqlDir = None,
    as_json: AsJson = False,
) -> None:
    """Print one query as it stands in its file.

    Example: wfe-sql queries show get_runnable_instances
    """
    loaded = BACKENDS[dialect].load(sql_dir)
    query = find_query(loaded, name)
    if as_json:
        print_json(_as_json(query, loaded))
    elif not Output().is_plain:
        out = Output().console
        out.print(f"{query.file}:{query.line}", style="dim")
        out.print(Syntax(query.text, "sql", background_color="default", word_wrap=True))
    else:
        typer.echo(query.text, nl=False)


@queries_app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one that does not exist.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these queries.", show_default=False)] = None,
    dialect: DialectName = "sqlite",
    as_json: AsJson = False,
) -> None:
    """Copy queries into a folder, to start tuning them.

    Whatever stays in the folder replaces the library's own queries, also after an upgrade: keep only what you change.

    Example: wfe-sql queries export tuned get_runnable_instances
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            fail(f"{folder} is not an empty folder; nothing was written")
        files = _files_of(names, dialect) if names else _all_files(dialect)
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{folder} cannot be written: {error.strerror}", exit_code=1)
    if as_json:
        print_json({"folder": str(folder), "files": sorted(files)})
        return
    typer.echo(f"{folder}: {', '.join(sorted(files))}")


@queries_app.command()
def diff(
    folder: Annotated[Path, typer.Argument(envvar="WFE_SQL_DIR", help="A folder with tuned queries.")],
    dialect: DialectName = "sqlite",
    as_json: AsJson = False,
) -> None:
    """Show what a folder of tuned queries changes.

    First checks that each query there can replace the library's own. Exits like diff: 0 when nothing is changed, 1 when
    something is, 2 when the folder cannot be used.

    Example: wfe-sql queries diff tuned
    """
    own = BACKENDS[dialect].load(None)
    try:
        tuned = BACKENDS[dialect].load(folder)
    except QueryFileError as error:
        fail(str(error))
    changed = {name: list(_unified_diff(own[name], tuned[name])) for name in own if name in tuned.tuned}
    if as_json:
        print_json([{**_as_json(tuned[name], tuned), "diff": "".join(lines)} for name, lines in changed.items()])
    else:
        out = Output().console
        for line in chain(*changed.values()):
            out.print(line, end="", style=_STYLES.get(line[0]), soft_wrap=True)
    if changed:
        raise typer.Exit(1)


def _print_list(rows: Iterable[tuple[str, str, str, str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for file, of_file in groupby(rows, key=itemgetter(0)):
        table.add_row(file, style="bold")
        for _, name, index, _ in of_file:
            table.add_row(f"  {name}", index)
    Output().console.print(table)


_STYLES = {"-": "red", "+": "green", "@": "cyan"}


def _unified_diff(own: Query, tuned: Query) -> Iterable[str]:
    return difflib.unified_diff(
        own.text.splitlines(keepends=True),
        tuned.text.splitlines(keepends=True),
        fromfile=f"{own.file}:{own.line}",
        tofile=f"{tuned.file}:{tuned.line}",
    )


def _as_json(query: Query, loaded: QuerySet) -> dict[str, Any]:
    return {
        "name": query.name,
        "parameters": query.params,
        "operation": query.operation,
        "summary": query.summary,
        "used_by": query.used_by,
        "index": query.index,
        "scan": query.scan,
        "keep": query.keep,
        "file": query.file,
        "line": query.line,
        "tuned": query.name in loaded.tuned,
        "sql": query.sql,
    }


def _all_files(dialect: str) -> dict[str, str]:
    folder = find_sql() / dialect
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".sql")}


def _files_of(names: Iterable[str], dialect: str) -> dict[str, str]:
    loaded = BACKENDS[dialect].load(None)
    texts: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        query = find_query(loaded, name)
        texts.setdefault(Path(query.file).name, []).append(query.text)
    return {file: "\n".join(parts) for file, parts in texts.items()}
