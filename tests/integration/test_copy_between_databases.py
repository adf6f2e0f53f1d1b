"""A store that moves from SQLite to PostgreSQL and back is the same."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from servers import with_option
from stores import dump
from wfe_sql import (
    ExecutionError,
    ExecutionPointer,
    FindingKind,
    PostgresPersistenceProvider,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreError,
    connect,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock, full_event, full_instance, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

DATA = Path(__file__).parents[1] / "data"
DAY = timedelta(days=1)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(tmp_path / "source.db", clock=ManualClock()) as opened:
        yield opened


@pytest.fixture
async def back(tmp_path: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(tmp_path / "back.db", clock=ManualClock()) as opened:
        yield opened


@pytest.fixture
async def postgres(postgres_url: str, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=ManualClock()) as opened:
        yield opened


async def _fill(provider: SqlPersistenceProvider) -> None:
    """Store one of everything, with ids whose order depends on the collation."""
    for id_ in ("a-1", "A-1", "a1", "ä", "Z", "~", "order 2", "order-10"):
        pointers = [full_pointer(id=f"{id_}-{number}") for number in (3, 1, 2)]
        pointers.append(ExecutionPointer(step_id=9, id=f"{id_}-0"))
        await provider.create_new_workflow(full_instance(id=id_, execution_pointers=pointers))
        await provider.create_event(full_event(id=id_))
        await provider.create_event_subscription(full_subscription(id=id_, workflow_id=id_))
        error = ExecutionError(error_time=TIME, workflow_id=id_, execution_pointer_id=f"{id_}-1", message="boom\n'\"")
        await provider.persist_errors([error])
        for _ in range(len(id_)):
            await provider.next_definition_sequence(id_)
    numbers = [1e16, -1.5e300, 1e-7, 5e-324, 2**64 - 1, -(2**63), 1.0, 0.1]
    await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0, data=numbers))
    await provider.create_event(full_event(id="claimed", is_processed=False, event_time=TIME - DAY))
    await provider.claim_runnable_instances(TIME, "host-1", lease=DAY, limit=1)
    await provider.claim_runnable_events(TIME, "host-1", lease=DAY, limit=1)
    free = {"external_token": None, "external_worker_id": None, "external_token_expiry": None}
    await provider.create_event_subscription(full_subscription(id="ended", workflow_id="Z", **free))
    for id_ in ("ended", "Z"):  # one that nobody holds, and one that a worker holds
        await provider.terminate_subscription(id_)
    changed = await provider.get_workflow_instance("Z")
    changed.execution_pointers.insert(0, ExecutionPointer(step_id=7, id="first"))
    await provider.persist_workflow(changed)

    await provider.schedule_command(ScheduledCommand.process_event("a1", 2**62))
    await provider.schedule_command(ScheduledCommand.process_workflow("Z", 0))


async def test_there_and_back(
    sqlite: SqlitePersistenceProvider,
    postgres: PostgresPersistenceProvider,
    back: SqlitePersistenceProvider,
    tmp_path: Path,
) -> None:
    await _fill(sqlite)
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection, connection:
        connection.execute("UPDATE scheduled_commands SET claim_token = 't', rescheduled_time = 5 WHERE data = 'Z'")
        connection.execute("UPDATE workflows SET complete_time = '2026-05-28T20:26:40.120+00:00' WHERE id = 'a1'")
    lines = await dump(sqlite)
    there = await sqlite.copy_to(postgres)
    assert await dump(postgres) == lines
    assert await postgres.copy_to(back) == there
    assert await dump(back) == lines
    with closing(sqlite3.connect(tmp_path / "source.db")) as one, closing(sqlite3.connect(tmp_path / "back.db")) as two:
        for query in ("SELECT * FROM workflows ORDER BY id", "SELECT * FROM event_subscriptions ORDER BY id"):
            before, after = one.execute(query).fetchall(), two.execute(query).fetchall()
            as_read = [[json.loads(v) if str(v)[:1] in "[{" else v for v in row] for row in before]
            assert [[json.loads(v) if str(v)[:1] in "[{" else v for v in row] for row in after] == as_read


KILLED_COPY = """
import asyncio, os, signal, sys
import wfe_sql

def kill(copied, compared):
    if copied >= int(sys.argv[3]) and compared >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with wfe_sql.connect(sys.argv[1]) as source, wfe_sql.connect(sys.argv[2]) as copy:
        await source.copy_to(copy, on_batch=kill)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [(1, 0), (60, 0), (1, 1)], ids=["at the start", "half way", "while it is compared"])
@pytest.mark.parametrize("to", ["sqlite", "postgres"])
@pytest.mark.parametrize("source", ["sqlite", "postgres"])
async def test_a_copy_that_was_killed_is_known_as_such(
    source: str, to: str, at: tuple[int, int], postgres_url: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    def new_url(backend: str, name: str) -> str:
        if backend == "sqlite":
            return str(tmp_path / name)
        return with_option(postgres_url, f"schema={new_schema()}")

    url, copy_url = new_url(source, "source.db"), new_url(to, "copy.db")
    async with connect(url, clock=ManualClock()) as provider:
        await _fill(provider)
        lines = await dump(provider)
        command = [sys.executable, "-c", KILLED_COPY, url, copy_url, *map(str, at)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL

        for mode in ("ro", "rw", "rwc"):
            with pytest.raises(StoreError, match="a copy into it was started but not finished; copy into it again"):
                await connect(with_option(copy_url, f"mode={mode}")).open()
        async with connect(copy_url, allow_unfinished_copy=True) as copy:
            assert FindingKind.UnfinishedCopy in {finding.kind for finding in await copy.check()}
        async with connect(copy_url, allow_unfinished_copy=True) as copy:
            await provider.copy_to(copy)
    async with connect(copy_url, clock=ManualClock()) as copy:
        assert await dump(copy) == lines
        assert FindingKind.UnfinishedCopy not in {finding.kind for finding in await copy.check()}


async def test_hosts_go_on_with_a_copy(
    sqlite: SqlitePersistenceProvider, postgres: PostgresPersistenceProvider
) -> None:
    await _fill(sqlite)
    await sqlite.copy_to(postgres)
    for id_ in ("Z", "claimed", "ä"):
        instance = await sqlite.get_workflow_instance(id_)
        copied = await postgres.get_workflow_instance(id_)
        assert copied == instance
        copied.execution_pointers.append(ExecutionPointer(step_id=8, id=f"last of {id_}"))
        await postgres.persist_workflow(copied)
        assert await postgres.get_workflow_instance(id_) == copied
    assert await postgres.next_definition_sequence("order-10") == len("order-10") + 1
    await postgres.persist_errors([ExecutionError(workflow_id="Z", execution_pointer_id="p", message="later")])
    assert (await postgres.list_execution_errors(limit=1)).items[0].message == "later"
    await postgres.schedule_command(ScheduledCommand.process_workflow("later", 3))
    assert await postgres.claim_runnable_instances(TIME, "host-2", lease=DAY, limit=9) == []
    ended = await postgres.get_subscription("ended")
    assert ended.external_token is None
    assert [s.id for s in await postgres.get_subscriptions("paid", "k1", TIME) if s.id in ("ended", "Z")] == []


async def test_what_the_reference_wrote(postgres: PostgresPersistenceProvider, tmp_path: Path) -> None:
    """Its times have nine decimals, which must be cut, not rounded, and its floats may have an exponent."""
    file = Path(shutil.copy(DATA / "wfe-sqlite-1.11.4.db", tmp_path / "reference.db"))
    with closing(sqlite3.connect(file)) as connection, connection:
        data = '{"large": 1e16, "small": 1E-7, "zero": -0.0, "text": "-0.0 1e5", "deep": [[-0e0]]}'
        connection.execute("UPDATE workflows SET data = ?, create_time = '2026-05-28T20:26:40.999999999+00:00'", [data])
        connection.execute("UPDATE events SET event_time = '2026-12-31T23:59:59.999999501+00:00'")
    async with SqlitePersistenceProvider(f"{file}?mode=ro") as reference:
        await reference.copy_to(postgres)
        assert await dump(postgres) == await dump(reference)
        for workflow in (await reference.list_workflows()).items:
            copied = await postgres.get_workflow_instance(workflow.id)
            assert copied == await reference.get_workflow_instance(workflow.id)
            assert isinstance(copied.data["large"], float)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ("workflows SET data = '{\"a\": \"\\u0000\"}' WHERE id = 'Z'", "data of id 'Z' .* NUL"),
        pytest.param(
            "workflows SET description = 'a' || char(0) || 'b' WHERE id = 'a1'",
            "description of id 'a1' .* NUL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "execution_pointers SET outcome = '\"\\u0000\"' WHERE id = 'first'",
            "outcome of id 'first' .* NUL",
            marks=pytest.mark.slow,
        ),
        ("workflows SET version = 2147483648 WHERE id = 'a1'", "version of id 'a1' .* 2147483648, .* 32 bits"),
        pytest.param(
            "event_subscriptions SET step_id = -2147483649 WHERE id = 'ä'",
            "step_id of id 'ä' .* 32 bits",
            marks=pytest.mark.slow,
        ),
        (
            "events SET event_key = replace(hex(zeroblob(9999)), '0', hex(randomblob(9))) WHERE id = 'a1'",
            "event_key of id 'a1' .* bytes",
        ),
    ],
)
async def test_what_postgresql_cannot_store(
    sqlite: SqlitePersistenceProvider, postgres: PostgresPersistenceProvider, tmp_path: Path, edit: str, where: str
) -> None:
    await _fill(sqlite)
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection, connection:
        connection.execute(f"UPDATE {edit}")
    before = await dump(sqlite)
    with pytest.raises(StoreError, match=f"nothing was copied, and the destination is empty again: .*{where}"):
        await sqlite.copy_to(postgres)
    assert set((await postgres.stats()).rows.values()) == {0}
    assert await dump(sqlite) == before


async def test_times_that_postgresql_shortens_have_their_decimals_again(
    postgres: PostgresPersistenceProvider, back: SqlitePersistenceProvider, tmp_path: Path
) -> None:
    for decimals, microsecond in enumerate((0, 100_000, 120_000, 123_000, 123_400, 123_450, 123_456)):
        await postgres.create_event(full_event(id=str(decimals), event_time=TIME.replace(microsecond=microsecond)))
    await postgres.copy_to(back)
    with closing(sqlite3.connect(tmp_path / "back.db")) as connection:
        found = connection.execute("SELECT substr(event_time, 20) FROM events ORDER BY id").fetchall()
    ends = ["", ".100", ".120", ".123", ".123400", ".123450", ".123456"]
    assert [time for (time,) in found] == [f"{end}+00:00" for end in ends]


async def test_a_copy_between_schemas(
    postgres: PostgresPersistenceProvider, postgres_url: str, new_schema: Callable[[], str]
) -> None:
    await _fill(postgres)
    name = new_schema()
    async with PostgresPersistenceProvider(with_option(postgres_url, f"schema={name}"), max_connections=1) as copy:
        await postgres.copy_to(copy)
        assert await dump(copy) == await dump(postgres)
        with pytest.raises(StoreError, match="destination is not empty .9 workflows"):
            await postgres.copy_to(copy)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute(f"SELECT count(*) FROM {name}.workflows").fetchone() == (9,)
