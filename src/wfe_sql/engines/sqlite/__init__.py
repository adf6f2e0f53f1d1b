"""Units of work on SQLite."""

import sqlite3

if not hasattr(sqlite3, "SQLITE_CONSTRAINT_UNIQUE"):
    raise ImportError(
        f"wfe-sql needs Python's own sqlite3 module, whose errors have codes, but {sqlite3.__name__} has replaced it. "
        "To use another version of SQLite, let Python's module load that library (LD_PRELOAD=.../libsqlite3.so.0)"
    )
