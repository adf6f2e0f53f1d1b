"""The `wfe-sql` command."""

import logging
import sys

from wfe_sql.errors import WfeError
from wfe_sql.escaping import visible


def main() -> None:
    """Run the command line; an error of this library becomes one line on stderr and exit code 1."""
    try:
        from wfe_sql.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "click", "rich"):
            raise
        sys.exit("wfe-sql needs its command-line packages: pip install 'wfe-sql[cli]'")
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # what it would warn of is in our own line
    try:
        app(prog_name="wfe-sql")
    except WfeError as error:
        sys.stderr.write(f"wfe-sql: {visible(str(error))}\n")
        sys.exit(1)
