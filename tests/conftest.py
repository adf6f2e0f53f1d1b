import asyncio
import math
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosql
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from servers import OwnServer, folder_in_memory, with_option
from wfe_sql import PostgresPersistenceProvider, SqlitePersistenceProvider
from wfe_sql.backends import load_postgres_queries
from wfe_sql.provider import SqlPersistenceProvider

pytest.register_assert_rewrite("wfe_sql.testing")

CATALOG = Path(__file__).parent / "data" / "postgres_catalog.sql"
ADMIN_QUERIES: Any = aiosql.from_path(Path(__file__).parent / "data" / "postgres_admin.sql", "psycopg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reference", action="store_true", help="also run the tests against the Rust crate; needs cargo")
    parser.addoption(
        "--operations", type=int, metavar="N", help="how many random operations tests/property does on each store"
    )


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        # Many containers set it: each worker, and each program that is started, would compile and rewrite all modules.
        sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What a shell starts in the background ignores Ctrl-C, and so would the programs that tests stop with it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = folder_in_memory()
    if folder and not os.statvfs(folder).f_flag & os.ST_NOEXEC:  # programs are installed into these folders
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))  # as for servers: processes end, not machines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--reference"):
        reason = "" if shutil.which("cargo") else "needs cargo, which is not on the PATH"
    else:
        reason = "drives the Rust crate: run with --reference"
    if reason:
        for item in items:
            if item.get_closest_marker("reference"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--operations"):
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
            for name, value in report.user_properties:
                if name == "operations" and report.when == "call":
                    terminalreporter.write_line(str(value))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server: the one of WFE_SQL_TEST_POSTGRES_URL, or one started for these tests."""
    url = os.environ.get("WFE_SQL_TEST_POSTGRES_URL")
    if url:
        yield url
        return
    with OwnServer.started() as server:
        yield server.url


@pytest.fixture(scope="session")
def own_server() -> Iterator[OwnServer]:
    """A PostgreSQL server that tests may stop, kill and reconfigure, and that commits nothing by itself."""
    with OwnServer.started(autovacuum="off") as server:
        yield server


@pytest.fixture(scope="session")
def dialects(request: pytest.FixtureRequest) -> Iterator[None]:
    """The dialects of `tests/dialects` can be used."""
    from dialects import CASES  # only now, so that pytest rewrites the asserts of wfe_sql.testing

    for case in CASES:
        case.start(request.getfixturevalue)
    yield
    for case in CASES:
        case.stop()


@pytest.fixture(scope="session")
def schemas(postgres_url: str) -> Iterator[list[str]]:
    """The names of all schemas that tests create; they are dropped at the end if the server is not ours."""
    names: list[str] = []
    yield names
    if "WFE_SQL_TEST_POSTGRES_URL" in os.environ:
        with psycopg.connect(postgres_url, autocommit=True, options="-c client_min_messages=warning") as connection:
            for name in names:
                connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def new_schema(schemas: list[str]) -> Callable[[], str]:
    """Names of schemas that do not exist."""

    def name() -> str:
        schemas.append(f"test_{uuid4().hex}")
        return schemas[-1]

    return name


@pytest.fixture
def schema(new_schema: Callable[[], str]) -> str:
    """The name of a schema that does not exist."""
    return new_schema()


@pytest.fixture(scope="session")
def shared_schema(postgres_url: str, schemas: list[str]) -> str:
    """The name of a schema that tests share, because creating a store takes longer than most tests.

    If the server has Citus, the schema has a store, which is distributed.
    """
    schemas.append(f"test_{uuid4().hex}")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if ADMIN_QUERIES.has_citus(connection):
            with ThreadPoolExecutor() as threads:  # the event loop of the test may run here
                threads.submit(asyncio.run, _make_store(postgres_url, schemas[-1])).result()
            ADMIN_QUERIES.allow_triggers(connection)
            ADMIN_QUERIES.distribute_schema(connection, schema=schemas[-1])
    return schemas[-1]


async def _make_store(url: str, schema: str) -> None:
    async with PostgresPersistenceProvider(url, schema=schema):
        pass


@pytest.fixture(scope="session")
def emptying(postgres_url: str, shared_schema: str) -> Iterator[psycopg.Connection]:
    """A connection to the schema that tests share: to open one takes ten times as long as to empty a store."""
    options = f"-c search_path={shared_schema}"
    with psycopg.connect(postgres_url, autocommit=True, options=options) as connection:
        yield connection


@pytest.fixture
def empty_schema(emptying: psycopg.Connection, shared_schema: str) -> str:
    """The name of a schema with no store yet, or with one that has no rows and whose numbers go on."""
    if ADMIN_QUERIES.has_store(emptying):
        emptying.execute(load_postgres_queries()["empty_store"].sql.encode())
    return shared_schema


@pytest.fixture
def admin(postgres_url: str, schema: str) -> Iterator[Callable[..., Any]]:
    """A function that runs a query of `postgres_admin.sql`, where names mean the tables of the test's schema."""
    with psycopg.connect(postgres_url, autocommit=True, options=f"-c search_path={schema}") as connection:

        def run(query: str, **params: Any) -> Any:
            result = getattr(ADMIN_QUERIES, query)(connection, **params)
            return list(result) if isinstance(result, Iterator) else result

        yield run


@pytest.fixture
def make_role(postgres_url: str, admin: Callable[..., Any]) -> Iterator[Callable[..., str]]:
    """A function that creates a role that may only connect, and returns the role's URL."""
    roles: list[str] = []

    def make_role(*, secret: str = "of a test", connections: int = -1) -> str:
        roles.append(f"test_{uuid4().hex}")
        admin("make_role", role=roles[-1], secret=secret, connections=connections)
        return make_conninfo(postgres_url, user=roles[-1], password=secret)

    admin("make_role_functions")
    yield make_role
    for role in roles:
        admin("drop_role", role=role)


@pytest.fixture
async def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that moves the event loop's clock forward by some seconds."""
    loop = asyncio.get_running_loop()
    real_time = loop.time
    ahead = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(loop, "time", lambda: real_time() + ahead)
    return pass_time


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend whose store is outside this process."""
    name: str = request.param
    return name


@pytest.fixture
def store(backend: str, request: pytest.FixtureRequest) -> Path | str:
    """Where the test's store is: a file, or the name of a schema."""
    if backend == "sqlite":
        path: Path = request.getfixturevalue("tmp_path") / "store.db"
        return path
    schema: str = request.getfixturevalue("schema")
    return schema


@pytest.fixture
def store_url(store: Path | str, request: pytest.FixtureRequest) -> str:
    """The URL of the test's store."""
    if isinstance(store, Path):
        return f"sqlite://{store}"
    return with_option(request.getfixturevalue("postgres_url"), f"schema={store}")


@pytest.fixture
def connect_store(store: Path | str, request: pytest.FixtureRequest) -> Callable[..., SqlPersistenceProvider]:
    """Providers, not opened yet, of the test's store, or with `other=True` of another one."""

    def connect_store(*, other: bool = False, **options: Any) -> SqlPersistenceProvider:
        if isinstance(store, Path):
            return SqlitePersistenceProvider(store.with_name("other.db") if other else store, **options)
        schema = request.getfixturevalue("new_schema")() if other else store
        return PostgresPersistenceProvider(request.getfixturevalue("postgres_url"), schema=schema, **options)

    return connect_store


@pytest.fixture
def by_hand(store: Path | str, request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """A function that runs a statement on the test's store as a person at a prompt would, and returns its rows."""

    def run_on_file(sql: str) -> list[Any]:
        with closing(sqlite3.connect(store)) as connection, connection:
            return connection.execute(sql).fetchall()

    def run_on_server(sql: str) -> list[Any]:
        with psycopg.connect(request.getfixturevalue("postgres_url")) as connection:
            connection.execute(f"SET search_path TO {store}")
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    return run_on_file if isinstance(store, Path) else run_on_server


@pytest.fixture
def catalog(postgres_url: str) -> Callable[[str], set[tuple[str, ...]]]:
    """A function that returns the parts of a schema: the kind, the table, the name and the definition of each."""

    def catalog(schema: str) -> set[tuple[str, ...]]:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"SET search_path TO {schema}")
            return set(connection.execute(CATALOG.read_bytes()).fetchall())

    return catalog


class Relay:
    """Stands between a provider and the PostgreSQL server, and relays what they send.

    Attributes:
        round_trips: How often a client sent something after the server did.
        swallows_answers: Whether the server's answers are lost; the line is then cut.
        answers: How much of the server's answers is relayed on each line; the rest is silently lost.
    """

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._lines: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.round_trips = 0
        self.swallows_answers = False
        self.answers = math.inf

    @property
    def url(self) -> str:
        """The URL that connects through the relay."""
        return make_conninfo(self._server_url, host="127.0.0.1", port=self._port, sslmode="disable")

    async def start(self) -> None:
        """Start, or start again, at the same address."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut all lines, and accept no new ones."""
        if self._listener is not None:
            self._listener.close()
            self.cut()
            await asyncio.gather(*self._serving)
            self._listener = None

    def cut(self) -> None:
        """Cut all lines."""
        for line in self._lines:
            line.close()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await self._dial()
        lines = {to_client, to_server}
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        self._lines |= lines
        server_spoke_last = True

        async def pass_on_questions() -> None:
            nonlocal server_spoke_last
            while said := await from_client.read(2**16):
                self.round_trips += server_spoke_last
                server_spoke_last = False
                to_server.write(said)

        async def pass_on_answers() -> None:
            nonlocal server_spoke_last
            answers = 0
            while said := await from_server.read(2**16):
                if self.swallows_answers:
                    return
                answers += 1
                if answers > self.answers:
                    continue
                server_spoke_last = True
                to_client.write(said)

        directions = [asyncio.create_task(pass_on_questions()), asyncio.create_task(pass_on_answers())]
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for line in lines:
            line.close()
        self._lines -= lines
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        info = conninfo_to_dict(self._server_url)
        host, port = str(info.get("host") or "localhost"), int(info.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)


@pytest.fixture
async def make_relay() -> AsyncIterator[Callable[[str], Awaitable[Relay]]]:
    """A function that starts a relay to a server."""
    async with AsyncExitStack() as started:

        async def make_relay(url: str) -> Relay:
            relay = Relay(url)
            await relay.start()
            started.push_async_callback(relay.stop)
            return relay

        yield make_relay


@pytest.fixture
async def relay(postgres_url: str, make_relay: Callable[[str], Awaitable[Relay]]) -> Relay:
    return await make_relay(postgres_url)
