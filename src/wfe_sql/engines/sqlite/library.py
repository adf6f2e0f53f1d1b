"""The SQLite library that Python loads."""

import sqlite3

from wfe_sql.errors import StoreError

LEAST_VERSION = (3, 35, 4)
"""The oldest that the tests run on; RETURNING came with 3.35. https://sqlite.org/lang_returning.html"""


def check_library(store: object) -> None:
    """Refuse a SQLite that is older than the queries.

    Raises:
        StoreError: It is; the message names both versions.
    """
    if sqlite3.sqlite_version_info < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise StoreError(
            f"{store} cannot be opened: this Python loads SQLite {sqlite3.sqlite_version}, and wfe-sql needs {least} "
            "or newer; install a newer library, or another Python"
        )
