"""A copy of a whole SQLite database, taken while others write to it."""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from wfe_sql.errors import StoreError, StoreUnavailableError


def copy_database(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the database of a connection, as it is at one moment, into a new file; called on the connection's thread.

    The file appears under its name only when it is whole. https://sqlite.org/backup.html

    Raises:
        StoreError: The file exists already.
        StoreUnavailableError: It cannot be made there.
        sqlite3.Error: The database cannot be read, or the copy not written.
    """
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(number)
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be made: {error.strerror}") from error
    part = Path(name)
    try:
        with closing(sqlite3.connect(part)) as copy:
            connection.backup(copy)
        path.hardlink_to(part)
    except FileExistsError as error:
        raise StoreError(f"{path} exists already; name a file that does not") from error
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be made: {error.strerror}") from error
    finally:
        part.unlink()
