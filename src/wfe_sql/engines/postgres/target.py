"""A PostgreSQL database, and how to connect to it."""

import asyncio
import random
import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.errors import store_error
from wfe_sql.errors import StoreError, StoreUnavailableError

_NO_URL = (
    "not a PostgreSQL URL: write postgresql://user:password@host:port/database, and percent-encode all characters "
    "other than letters and digits"
)
_PORTS = re.compile(r"[0-9,]*")

APPLICATION_NAME = "wfe-sql"

_ENCODING = {"client_encoding": "UTF8"}
"""Overrides the environment, the role and the database, because texts here may be any Unicode text."""

_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""Seconds after which a lost network is noticed while a statement waits for its answer."""


class PostgresTarget:
    """A database, and how to connect to it; never shows the password.

    Args:
        url: `postgresql://user:password@host:port/database?options`, as libpq reads it.
        connect_timeout: How long connecting to each host may take.
        application_name: The name of the connections on the server, unless the URL has one.
    """

    def __init__(self, url: str, connect_timeout: timedelta, application_name: str = APPLICATION_NAME) -> None:
        # The driver's message quotes the URL, and with it the password; ours would too, if an unencoded password
        # was parsed as something else.
        try:
            found: dict[str, Any] = dict(conninfo_to_dict(url))
        except (psycopg.Error, UnicodeEncodeError):
            raise StoreError(_NO_URL) from None
        if "\0" in application_name:  # libpq would ignore what comes after it, which may be the host
            raise StoreError(f"application_name contains a NUL character: {application_name!r}")
        if "\0" in url or _is_torn(url) or not _PORTS.fullmatch(str(found.get("port") or "")):
            raise StoreError(_NO_URL)
        self.connect_timeout = connect_timeout
        silence = {"tcp_user_timeout": max(1, connect_timeout // timedelta(milliseconds=1))}
        self._parameters = {"application_name": application_name, **_KEEPALIVES, **silence, **found} | _ENCODING
        place = ":".join(str(found[key]) for key in ("host", "port") if found.get(key))
        self._name = f"postgresql://{place}/{found.get('dbname') or ''}"

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"PostgresTarget({self._name!r})"

    async def connect(self) -> Connection:
        """Return a new connection in autocommit mode, without prepared statements.

        Raises:
            StoreUnavailableError: No connection can be made; the message says why.
        """
        failures: list[tuple[str, StoreError]] = []
        for attempt in self._attempts():
            try:
                return await self._connect(attempt)
            except StoreError as error:
                failures.append((f"{attempt.get('hostaddr') or attempt.get('host')}", error))
        if len(failures) == 1:
            raise failures[0][1]
        reasons = "; ".join(f"{host}: {error.args[0].removeprefix(f'{self} ')}" for host, error in failures)
        last = failures[-1][1]
        raise type(last)(f"{self} cannot be reached: {reasons}") from last.__cause__

    def _attempts(self) -> list[dict[str, Any]]:
        """Return the parameters of each attempt to connect, in the order of libpq.

        https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
        """
        given = self._parameters
        lists = {key: str(given[key]).split(",") for key in ("host", "hostaddr", "port") if given.get(key)}
        hosts = max((len(values) for key, values in lists.items() if key != "port"), default=1)
        if hosts == 1:
            return [given]
        attempts = [
            given | {key: values[number if len(values) > 1 else 0] for key, values in lists.items()}
            for number in range(hosts)
        ]
        if given.get("load_balance_hosts") == "random":
            random.shuffle(attempts)
        if given.get("target_session_attrs") == "prefer-standby":
            attempts = [
                attempt | {"target_session_attrs": wanted} for wanted in ("standby", "any") for attempt in attempts
            ]
        return attempts

    async def _connect(self, parameters: dict[str, Any]) -> Connection:
        seconds = self.connect_timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                connection: Connection = await Connection.connect(
                    autocommit=True, prepare_threshold=None, cursor_factory=psycopg.AsyncRawCursor, **parameters
                )
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self} cannot be reached: no connection within {self.connect_timeout}"
            ) from error
        except psycopg.Error as error:
            mapped = store_error(self, error)
            if self._shows_password(str(error)):
                raise type(mapped)(f"{self} cannot be reached") from None
            raise mapped from error
        connection.patience = seconds
        return connection

    def server(self, connection: Connection) -> str:
        """Return a name for a connection's server, the same whichever of several hosts answered."""
        hosts = str(self._parameters.get("host") or self._parameters.get("hostaddr") or "")
        info = connection.info
        return f"{hosts}:{self._parameters.get('port')}" if "," in hosts else f"{info.host}:{info.port}"

    def _shows_password(self, text: str) -> bool:
        password = str(self._parameters.get("password") or "")
        return bool(password) and (password in text or quote(password, safe="") in text)


def _is_torn(url: str) -> bool:
    """Tell whether a URL has an @ besides the one before its host; a part of the password may be outside its place."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    return scheme in ("postgresql", "postgres") and (authority.count("@") > 1 or "@" in path)
