"""The `wfe-sql` command."""

import errno
import logging
import os
import shlex
import sys

from wfe_sql.errors import WfeError
from wfe_sql.escaping import visible


def main() -> None:
    """Run the command line; an error of this library becomes one line on stderr and exit code 1.

    So does output that cannot be written. A pipe whose reader has left ends the command silently.
    """
    try:
        from wfe_sql.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "click", "rich"):
            raise
        python = shlex.quote(sys.executable)
        sys.exit(f"wfe-sql needs packages that are not installed; run: {python} -m pip install rich typer")
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # our own line says what it would warn of
    try:
        try:
            app(prog_name="wfe-sql")
        finally:
            if sys.stdout is not None:  # the caller may have closed it
                sys.stdout.flush()
    except WfeError as error:
        sys.stderr.write(f"wfe-sql: {visible(str(error))}\n")
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python tries again when it exits, and fails again
        left = error.errno == errno.EPIPE
        sys.exit(1 if left else f"wfe-sql: the output cannot be written: {error.strerror}")
