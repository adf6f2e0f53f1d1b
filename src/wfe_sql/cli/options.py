"""What the commands about SQL share: the option for the dialect, and the search for a query."""

from difflib import get_close_matches
from typing import Annotated, NoReturn

import typer

from wfe_sql.backends import BACKENDS
from wfe_sql.cli.output import warn
from wfe_sql.queries import Query, QuerySet


def _check_dialect(name: str) -> str:
    if name not in BACKENDS:
        raise typer.BadParameter(f"unknown dialect {name}; use {' or '.join(BACKENDS)}")
    return name


DialectName = Annotated[str, typer.Option("--dialect", callback=_check_dialect, help=f"One of {', '.join(BACKENDS)}.")]


def find_query(queries: QuerySet, name: str) -> Query:
    """Return the query with this name; an unknown name ends the command."""
    if name not in queries:
        close = get_close_matches(name, queries, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see wfe-sql queries list"
        fail(f"no query has the name {name}; {hint}")
    return queries[name]


def fail(message: str, *, exit_code: int = 2) -> NoReturn:
    """End the command with one line on stderr."""
    warn(message)
    raise typer.Exit(exit_code)
