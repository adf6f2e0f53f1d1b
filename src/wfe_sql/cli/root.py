"""The command that all others hang on."""

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
    """The state of a WFE workflow engine, stored in SQL.

    A command ends with 0 when all is well, 1 when something is wrong or not found, and 2 when it was asked wrongly.

    Example: wfe-sql demo
    """
