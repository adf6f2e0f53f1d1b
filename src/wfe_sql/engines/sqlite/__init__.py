"""Units of work on SQLite."""
