"""Dialects for the tests of `.sql` files: stores to plan and run queries on, and a part for each dialect.

A dialect is one entry in `CASES`, and implements `Case` and `Store`.
"""

from dialects.case import Case, Store
from dialects.postgres import PostgresCase
from dialects.sqlite import SqliteCase

CASES: tuple[Case, ...] = (SqliteCase(), PostgresCase())

__all__ = ["CASES", "Case", "Store"]
