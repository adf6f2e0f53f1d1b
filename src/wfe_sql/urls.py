"""Parses the URLs of stores."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from wfe_sql.errors import StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_MODES = ("rwc", "rw", "ro")
_KEY_AND_VALUE = re.compile(
    r"\s*(host|hostaddr|port|dbname|user|password|passfile|service|servicefile|options|sslmode|connect_timeout)\s*="
)
"""The beginning of a connection string of key=value pairs, which libpq also accepts. https://www.postgresql.org/docs/current/libpq-connect.html"""

DEFAULT_SCHEMA = "wfc"
"""The schema of the tables in PostgreSQL by default, as in the reference."""


@dataclass(frozen=True, slots=True)
class SqliteTarget:
    """Which SQLite database, and how it is opened.

    Attributes:
        path: The file; None for a database in memory.
        mode: "rwc" creates the file if it is missing, "rw" does not, "ro" only reads.
    """

    path: Path | None
    mode: str = "rwc"

    def __post_init__(self) -> None:
        if self.path is not None:
            check_name(self.path)

    def __str__(self) -> str:
        return ":memory:" if self.path is None else str(self.path)


def check_name(path: Path) -> None:
    """Refuse a path that no file can have.

    Raises:
        StoreError: It contains a NUL character or a lone surrogate.
    """
    try:
        if b"\0" in os.fsencode(path):
            raise StoreError(f"{str(path)!r} cannot be the path of a file: it contains a NUL character")
    except UnicodeEncodeError as error:
        raise StoreError(
            f"{str(path)!r} cannot be the path of a file: it contains a lone surrogate at index {error.start}"
        ) from error


def scheme_of(url: str | os.PathLike[str]) -> str:
    """Return the scheme of a store's URL; for a path, "sqlite".

    Raises:
        StoreError: It is not a URL, but key=value pairs of PostgreSQL.
    """
    if isinstance(url, str) and (pair := _KEY_AND_VALUE.match(url)):
        raise StoreError(
            f"expected a URL, not {pair[1]}=... pairs: write postgresql://user:password@host:port/database"
            ", or pathlib.Path for a SQLite file of that name"
        )
    scheme = _SCHEME.match(url) if isinstance(url, str) else None
    return "sqlite" if scheme is None else scheme[1]


@dataclass(frozen=True, slots=True)
class PostgresLocation:
    """Which PostgreSQL store, and how it is opened.

    Attributes:
        url: What the driver connects to.
        schema: The schema of the tables; None if the URL does not name one.
        mode: "rwc" creates the store if it is missing, "rw" does not, "ro" only reads.
    """

    url: str
    schema: str | None = None
    mode: str = "rwc"


def parse_postgres_url(url: str) -> PostgresLocation:
    """Parse a PostgreSQL URL: its options `schema` and `mode` are ours, the others are the driver's.

    Raises:
        StoreError: The mode is unknown, or a character that must be percent-encoded is not; it shows no password.
    """
    location, question_mark, query = url.partition("?")
    if not _SCHEME.match(url):
        return PostgresLocation(url)  # key=value pairs, which the driver reads as well
    if "@" in location.partition("://")[2].partition("/")[2]:
        # The driver would read the password up to the slash as a port, and show it in its error.
        raise StoreError("the URL has an @ after a /: percent-encode a / in the password as %2F")
    options = query.split("&") if question_mark else []
    ours = dict(option.split("=", 1) for option in options if option.startswith(("schema=", "mode=")))
    theirs = "&".join(option for option in options if not option.startswith(("schema=", "mode=")))
    mode = ours.get("mode", _MODES[0])
    if mode not in _MODES:
        raise StoreError(f"mode={mode} is unknown; use one of {', '.join(_MODES)}")
    return PostgresLocation(f"{location}?{theirs}" if theirs else location, ours.get("schema"), mode)


def parse_sqlite_url(url: str | os.PathLike[str]) -> SqliteTarget:
    """Parse a SQLite URL or path, as the reference (sqlx) reads it.

    `:memory:`, `sqlite::memory:` and SQLAlchemy's `sqlite:///:memory:` are in memory; `sqlite:///tmp/x.db` is the
    absolute path /tmp/x.db; `sqlite://x.db`, `sqlite:x.db` and `x.db` are relative to the working directory.
    `?mode=ro`, `rw` or `rwc` may follow. A path-like object is used as it is.

    Raises:
        StoreError: The URL has another scheme, does not name a file that can exist, or has an unknown option.
    """
    if not isinstance(url, str):
        return SqliteTarget(Path(url))
    if scheme_of(url) != "sqlite":
        raise StoreError("this is not a SQLite URL; use sqlite:///absolute/path.db, :memory: or a path")
    location, _, query = url.partition("?")
    if location.startswith("sqlite:"):
        location = unquote(location.removeprefix("sqlite:").removeprefix("//"))
    mode = _parse_mode(url, query)
    if location in (":memory:", "/:memory:"):
        return SqliteTarget(None, mode)
    if not location:
        raise StoreError(f"{url!r} does not name a file; write sqlite:///absolute/path.db or :memory:")
    return SqliteTarget(Path(location), mode)


def _parse_mode(url: str, query: str) -> str:
    mode = _MODES[0]
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option != "mode":
            raise StoreError(f"{url!r}: unknown option {option!r}; the only one is mode")
        if value not in _MODES:
            raise StoreError(f"{url!r}: mode={value} is unknown; use one of {', '.join(_MODES)}")
        mode = value
    return mode
