"""The library itself, through its public API and with its defaults."""

from pathlib import Path

from sides import Side
from wfe_sql import SqlitePersistenceProvider


def open_library(file: Path) -> SqlitePersistenceProvider:
    return SqlitePersistenceProvider(file)


LIBRARY = Side("wfe-sql", "the library with its defaults", open_library)
