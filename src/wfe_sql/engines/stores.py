"""What the stores of both databases share: their version, and the scripts that create and upgrade them.

The same scripts create a store and upgrade an old one, in the order in which each database's store lists them. What a
script makes is read from its SQL, so keep to the format of the others. To extend a store, write a script, `add_...` if
it adds columns to a table and `create_...` if it makes anything else, and list it.
"""

import logging
import re
from collections.abc import Sequence, Set
from functools import cached_property, lru_cache

from wfe_sql.errors import StoreError, StoreVersionError
from wfe_sql.queries import QuerySet

_log = logging.getLogger("wfe_sql")

VERSION = 1
"""The `wfe_sql_store.version` that this code supports; additive changes do not raise it."""

UNFINISHED_COPY = 2**31 - 1
"""The version while a copy into the store is unfinished; other releases see a later version, and refuse it."""

NOT_FINISHED = (
    "a copy into it was started but not finished; copy into it again, which starts over (wfe-sql copy), or delete it"
)

Parts = dict[str, str | None]
"""The parts of a store, each with its definition if that is known. Their names are "table.column", "view",
"view.column", "view.'key'" for a key of its documents, "index", "trigger", "trigger:column" for a watched column."""

_ADDS = re.compile(r"\bALTER TABLE (\w+) ADD COLUMN (?:IF NOT EXISTS )?(\w+)", re.IGNORECASE)
_CREATES = re.compile(
    r"\bCREATE (?:OR REPLACE |UNIQUE )?(TABLE|VIEW|TRIGGER|INDEX) (?:IF NOT EXISTS )?(\w+)\b(?!\.)([^;]*)",
    re.IGNORECASE,
)
_COLUMN = {
    "TABLE": re.compile(r"^    ([a-z_]\w*) ", re.MULTILINE),
    "VIEW": re.compile(r"^    (?:.* AS )?(\w+),?$", re.MULTILINE),
}
_KEY = re.compile(r"'\w+'")
_WATCHED = re.compile(r"\bUPDATE\s+OF\s+(.*?)\s+ON\b", re.DOTALL)


def parts_made_by(sql: str) -> Set[str]:
    """Return what a script, or one statement of it, makes."""
    return _added_by(sql) | _created_by(sql)


@lru_cache(maxsize=256)
def _added_by(sql: str) -> Set[str]:
    return {f"{table}.{column}" for table, column in _ADDS.findall(sql)}


@lru_cache(maxsize=256)
def _created_by(sql: str) -> Set[str]:
    parts: set[str] = set()
    for kind, name, text in _CREATES.findall(sql):
        if column := _COLUMN.get(kind.upper()):
            parts.update(f"{name}.{found}" for found in column.findall(text))
        if kind.upper() != "TABLE":
            parts.add(name)
        if kind.upper() in ("VIEW", "TRIGGER"):
            parts |= _defined_by(name, text)
    return parts


@lru_cache(maxsize=256)
def _defined_by(name: str, definition: str) -> Set[str]:
    """Return the keys of a view's documents, or the columns that a trigger watches."""
    watched = (column for columns in _WATCHED.findall(definition) for column in re.findall(r"\w+", columns))
    return {f"{name}.{key}" for key in _KEY.findall(definition)} | {f"{name}:{column}" for column in watched}


def read_parts(rows: Sequence[tuple[str, str | None]]) -> Parts:
    """Return the parts of a store from the rows of `list_parts`."""
    parts = dict(rows)
    for name, definition in rows:
        if definition is not None and "." not in name:
            parts.update(dict.fromkeys(_defined_by(name, definition)))
    return parts


def of_table(part: str) -> str:
    """Return the table, or view, that a part belongs to."""
    return part.partition(".")[0]


class Scripts:
    """The scripts that make a store, in order."""

    def __init__(self, names: Sequence[str], queries: QuerySet) -> None:
        """Take their names, and the queries that contain them."""
        self.names = names
        self._queries = queries

    @cached_property
    def made(self) -> dict[str, Set[str]]:
        """What each script makes, including what the library's own script makes if this one replaces it."""
        own = self._queries.replaced
        return {
            name: parts_made_by(self._queries[name].sql) | (parts_made_by(own[name].sql) if name in own else set())
            for name in self.names
        }

    def missing(self, parts: Parts) -> dict[str, Set[str]]:
        """Return the scripts that make something that the store lacks, with what it lacks."""
        return {name: lacks for name in self.names if (lacks := self.made[name] - parts.keys())}

    def check_tables(self, store: object, parts: Parts, *, instead: str) -> None:
        """Refuse tables that do not belong to a store, because they lack columns that no script adds.

        Raises:
            StoreVersionError: There is one; the message names it, and says to use another file or schema (`instead`).
        """
        tables = {of_table(part) for part in parts}
        added = set().union(*(_added_by(self._queries[name].sql) for name in self.names))
        for name in (name for name in self.names if name.endswith("_table")):
            missing = {part for part in self.made[name] - added - parts.keys() if "." in part}
            for table in tables.intersection(map(of_table, missing)):
                raise StoreVersionError(
                    f"{store} has a table {table} that does not belong to a workflow store: it has the columns "
                    f"{_columns(table, parts)}, and lacks {_columns(table, missing)}; use another {instead}"
                )


def _columns(table: str, parts: Parts | Set[str]) -> str:
    return ", ".join(sorted(part.partition(".")[2] for part in parts if of_table(part) == table and "." in part))


def log_scripts(store: object, parts: Parts, ran: Sequence[str]) -> None:
    """Log that a store was made, or which scripts upgraded it, where it had these parts before."""
    if ran and parts:
        _log.info("upgraded %s: %s", store, ", ".join(ran))
    elif ran:
        _log.info("made %s", store)


def out_of_date(store: object) -> StoreVersionError:
    """Return the error for a store that lacks tables or columns, and must not be changed."""
    return StoreVersionError(f"{store} is out of date; upgrade it first: wfe-sql init")


def check_version(store: object, version: int, *, allow_unfinished_copy: bool) -> None:
    """Refuse a store of an unknown version, and an unfinished copy.

    Raises:
        StoreVersionError: It was made by a later release.
        StoreError: A copy into it is not finished.
    """
    if version == UNFINISHED_COPY:
        if not allow_unfinished_copy:
            raise StoreError(f"{store} cannot be used: {NOT_FINISHED}")
    elif version > VERSION:
        raise StoreVersionError(
            f"{store} has version {version}, made by a later wfe-sql; this one supports version {VERSION}: "
            "upgrade wfe-sql"
        )
