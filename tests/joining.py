"""An application's connections, of each driver that a unit of work can join."""

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from wfe_sql import UnitOfWork


@dataclass
class Way:
    """A kind of connection.

    Attributes:
        name: What it is called.
        dialect: Its database.
        is_async: Which of a unit's methods takes it.
        connect: Connects to a file or URL, so that a transaction is open or begins by itself.
        connect_in_autocommit: Connects so that each statement is a transaction.
        run: Runs a statement of the application, and returns its rows.
    """

    name: str
    dialect: str
    is_async: bool
    connect: Callable[[str], Awaitable["Transaction"]]
    connect_in_autocommit: Callable[[str], Awaitable["Transaction"]]

    def __str__(self) -> str:
        return self.name


class Transaction:
    """An application's connection, how to run a statement on it, and how to end it."""

    def __init__(
        self,
        connection: Any,
        run: Callable[[str], Awaitable[list[Any]]],
        commit: Callable[[], Any],
        rollback: Callable[[], Any],
        *close: Callable[[], Any],
    ) -> None:
        self.connection = connection
        self.run = run
        self._commit = commit
        self._rollback = rollback
        self._close = close

    async def add(self, unit: UnitOfWork) -> None:
        """Add a unit, with the method for this kind of connection."""
        if isinstance(self.connection, _SYNC):
            unit.run_in_sync(self.connection)
        else:
            await unit.run_in(self.connection)

    async def commit(self) -> None:
        await _done(self._commit())

    async def rollback(self) -> None:
        await _done(self._rollback())

    async def close(self) -> None:
        for close in self._close:
            await _done(close())
        self._close = ()


_SYNC = (sqlite3.Connection, psycopg.Connection, sqlalchemy.Connection, Session, scoped_session)


async def _done(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result


def _plain(connection: Any) -> Transaction:
    """A connection with the methods of Python's database API, with or without async."""

    async def run(sql: str) -> list[Any]:
        cursor = await _done(connection.execute(sql))
        return list(await _done(cursor.fetchall())) if cursor.description else []

    return Transaction(connection, run, connection.commit, connection.rollback, connection.close)


async def _sqlite3(path: str, **options: Any) -> Transaction:
    return _plain(sqlite3.connect(path, timeout=0, **options))


async def _aiosqlite(path: str, **options: Any) -> Transaction:
    return _plain(await aiosqlite.connect(path, timeout=0, **options))


async def _psycopg(url: str, **options: Any) -> Transaction:
    return _plain(psycopg.connect(url, **options))


async def _async_psycopg(url: str, **options: Any) -> Transaction:
    return _plain(await psycopg.AsyncConnection.connect(url, **options))


def asyncpg_options(url: str) -> dict[str, Any]:
    """Return asyncpg's options for a URL, of which it reads less than libpq."""
    info = conninfo_to_dict(url)
    port = int(info.get("port") or 5432)
    options = {"host": info["host"], "port": port, "user": info["user"], "database": info["dbname"]}
    return {**options, "password": info.get("password") or None}


async def _asyncpg(url: str, *, begins: bool = True) -> Transaction:
    connection = await asyncpg.connect(**asyncpg_options(url))
    transaction = connection.transaction()
    if begins:
        await transaction.start()

    async def run(sql: str) -> list[Any]:
        return [tuple(row) for row in await connection.fetch(sql)]

    return Transaction(connection, run, transaction.commit, transaction.rollback, connection.close)


def _address(driver: str) -> Callable[[str], Any]:
    """Return a function that makes SQLAlchemy's URL of a file or URL."""

    def address(target: str) -> Any:
        if "sqlite" in driver:
            return f"{driver}:///{target}?timeout=0"
        options = asyncpg_options(target)
        query = {"host": options["host"], "port": str(options["port"])}
        return sqlalchemy.URL.create(
            driver, options["user"], options["password"], database=options["database"], query=query
        )

    return address


def _sqlalchemy(driver: str, kind: str, **options: Any) -> Callable[[str], Awaitable[Transaction]]:
    address = _address(driver)

    async def connect(target: str) -> Transaction:
        engine = sqlalchemy.create_engine(address(target), **options)
        made: Any = engine.connect() if kind == "connection" else Session(engine)
        if kind == "scoped session":
            made = scoped_session(sessionmaker(engine))

        async def run(sql: str) -> list[Any]:
            found = made.execute(sqlalchemy.text(sql))
            return [tuple(row) for row in found] if found.returns_rows else []

        return Transaction(made, run, made.commit, made.rollback, made.close, engine.dispose)

    return connect


def _async_sqlalchemy(driver: str, kind: str, **options: Any) -> Callable[[str], Awaitable[Transaction]]:
    address = _address(driver)

    async def connect(target: str) -> Transaction:
        engine = create_async_engine(address(target), **options)
        made: Any = await engine.connect() if kind == "connection" else AsyncSession(engine)

        async def run(sql: str) -> list[Any]:
            found = await made.execute(sqlalchemy.text(sql))
            return [tuple(row) for row in found] if found.returns_rows else []

        return Transaction(made, run, made.commit, made.rollback, made.close, engine.dispose)

    return connect


def _with(connect: Callable[..., Awaitable[Transaction]], **options: Any) -> Callable[[str], Awaitable[Transaction]]:
    return lambda target: connect(target, **options)


def _of_sqlalchemy() -> list[Way]:
    ways = []
    for dialect, driver, is_async in (
        ("sqlite", "sqlite", False),
        ("sqlite", "sqlite+aiosqlite", True),
        ("postgres", "postgresql+psycopg", False),
        ("postgres", "postgresql+psycopg", True),
        ("postgres", "postgresql+asyncpg", True),
    ):
        make = _async_sqlalchemy if is_async else _sqlalchemy
        for kind in ("connection", "session") if is_async else ("connection", "session", "scoped session"):
            name = f"{driver} {'async ' if is_async else ''}{kind}"
            autocommit = make(driver, kind, isolation_level="AUTOCOMMIT")
            ways.append(Way(name, dialect, is_async, make(driver, kind), autocommit))
    return ways


WAYS = [
    Way("sqlite3", "sqlite", False, _sqlite3, _with(_sqlite3, isolation_level=None)),
    Way("aiosqlite", "sqlite", True, _aiosqlite, _with(_aiosqlite, isolation_level=None)),
    Way("psycopg", "postgres", False, _psycopg, _with(_psycopg, autocommit=True)),
    Way("psycopg async", "postgres", True, _async_psycopg, _with(_async_psycopg, autocommit=True)),
    Way("asyncpg", "postgres", True, _asyncpg, _with(_asyncpg, begins=False)),
    *_of_sqlalchemy(),
]
