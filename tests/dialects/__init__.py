"""Dialects for the tests of `.sql` files: stores to plan and run queries on, written once, and each dialect's own part.

A dialect is one entry in `CASES`; what it must be able to do is `Case` and `Store`.
"""

from dialects.case import Case, Store
from dialects.postgres import PostgresCase
from dialects.sqlite import SqliteCase

CASES: tuple[Case, ...] = (SqliteCase(), PostgresCase())

__all__ = ["CASES", "Case", "Store"]
