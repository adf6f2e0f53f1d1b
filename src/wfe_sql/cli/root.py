"""The command `wfe-sql`, which all others belong to."""

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wfe-sql {version('wfe-sql')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Look into, check and maintain the SQL store of a WFE workflow engine.

    A command exits with 0 when all is well, 1 when something is wrong or not found, and 2 for a usage error.

    Example: wfe-sql demo
    """
