"""The library itself, through its public API and with its defaults."""

from pathlib import Path
from typing import TYPE_CHECKING

from sides import Side
from wfe_sql import PostgresPersistenceProvider, SqlitePersistenceProvider

if TYPE_CHECKING:
    from places import Schema


def open_library(file: Path) -> SqlitePersistenceProvider:
    return SqlitePersistenceProvider(file)


def open_library_on_postgres(schema: "Schema") -> PostgresPersistenceProvider:
    return PostgresPersistenceProvider(schema.url, schema=schema.name)


LIBRARY = Side("wfe-sql", "the library with its defaults", open_library, on_finished=True, has_units=True)
LIBRARY_ON_POSTGRES = Side(
    "wfe-sql", "the library with its defaults: 10 connections", open_library_on_postgres, has_units=True
)
