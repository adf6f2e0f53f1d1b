"""Units of work on SQLite."""

import sqlite3

if not hasattr(sqlite3, "SQLITE_CONSTRAINT_UNIQUE"):
    raise ImportError(
        f"wfe-sql needs Python's own module sqlite3, whose errors say what happened; {sqlite3.__name__} is in its "
        "place. For another version of SQLite, have Python's module load that library (LD_PRELOAD=.../libsqlite3.so.0)"
    )
