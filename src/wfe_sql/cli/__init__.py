"""The `wfe-sql` command."""

import errno
import logging
import os
import sys

from wfe_sql.errors import WfeError
from wfe_sql.escaping import visible


def main() -> None:
    """Run the command line; an error of this library becomes one line on stderr and exit code 1.

    So does output that cannot be written, but for a pipe whose reader has left: that ends without a word.
    """
    try:
        from wfe_sql.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "click", "rich"):
            raise
        sys.exit("wfe-sql needs its command-line packages: pip install 'wfe-sql[cli]'")
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # what it would warn of is in our own line
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at its end, and fail again
        left = error.errno == errno.EPIPE
        sys.exit(1 if left else f"wfe-sql: the output cannot be written: {error.strerror}")
