"""What the stores of both databases have in common."""

from collections.abc import Iterable

from wfe_sql.errors import StoreVersionError

VERSION = 1
"""What `wfe_sql_store.version` says of a store that this code can work with; additive changes do not raise it."""

Columns = dict[str, set[str]]


def columns_by_table(rows: Iterable[tuple[str, str]]) -> Columns:
    """Return the columns of each table, of rows of (table, column)."""
    columns: Columns = {}
    for table, column in rows:
        columns.setdefault(table, set()).add(column)
    return columns


def out_of_date(store: object) -> StoreVersionError:
    """Return the error of a store that lacks tables or columns, where nothing may be made."""
    return StoreVersionError(f"{store} is not up to date; bring it up to date first: wfe-sql init")


def later_version(store: object, version: int | None) -> StoreVersionError:
    """Return the error of a store that is not of a version that this code knows."""
    return StoreVersionError(
        f"{store} is a store of version {version}, made by a later wfe-sql; "
        f"this one works with version {VERSION}: upgrade it"
    )
