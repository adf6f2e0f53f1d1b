"""Reads on the event loop: only brief ones, for at most a small part of its time."""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import SqlitePersistenceProvider, WorkflowNotFoundError
from wfe_sql.engines import Statement, Unit
from wfe_sql.engines.queues import Job, Outcome
from wfe_sql.engines.sqlite.brief_reads import BriefReader
from wfe_sql.testing import full_pointer, sample_instance

SMALL: Unit = [Statement("get_workflow_instance", {"id": "small"})]
BIG: Unit = [Statement("get_execution_pointers", {"workflow_id": "big"})]


class Seconds:
    """A clock that advances by some time at each reading."""

    def __init__(self) -> None:
        self.now, self.each_look = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.each_look
        return self.now


@pytest.fixture
async def provider(tmp_path: Path, clock: Seconds) -> AsyncIterator[SqlitePersistenceProvider]:
    """A store whose reads on the event loop take no time unless a test advances the clock."""
    async with SqlitePersistenceProvider(tmp_path / "store.db") as opened:
        await opened.create_new_workflow(sample_instance(id="small"))
        await opened.create_new_workflow(
            sample_instance(id="big", execution_pointers=[full_pointer() for _ in range(500)])
        )
        engine: Any = opened._engine
        engine._brief_reader = brief_reader(opened, clock)
        yield opened


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


Run = Callable[[Sequence[Job], sqlite3.Connection], list[Outcome]]


def brief_reader(provider: SqlitePersistenceProvider, clock: Seconds, run: Run | None = None) -> BriefReader:
    engine: Any = provider._engine
    return BriefReader(engine._brief_reader.connection, run or engine.run_reads, clock=clock)


@contextmanager
def held(connections: Sequence[Any]) -> Iterator[None]:
    """Keep the connections' threads busy."""
    let_go = threading.Event()
    tasks = [asyncio.ensure_future(connection.run(lambda _: let_go.wait(timeout=30))) for connection in connections]
    try:
        yield
    finally:
        let_go.set()
        assert not [task for task in tasks if task.cancelled()]


async def test_a_brief_read_needs_no_thread(provider: SqlitePersistenceProvider) -> None:
    engine: Any = provider._engine
    with held([*engine._readers.connections, *engine._writers.connections]):
        async with asyncio.timeout(20):
            assert (await provider.get_workflow_instance("small")).id == "small"
            with pytest.raises(WorkflowNotFoundError):
                await provider.get_workflow_instance("other")


@pytest.mark.parametrize(("others", "needs_a_thread"), [(3, False), (4, True)])
async def test_many_callers_share_a_hop(provider: SqlitePersistenceProvider, others: int, needs_a_thread: bool) -> None:
    engine: Any = provider._engine
    with held([*engine._readers.connections, *engine._writers.connections]):
        writes = [asyncio.create_task(provider.next_definition_sequence("order")) for _ in range(others)]
        await asyncio.sleep(0)
        read = asyncio.create_task(provider.get_workflow_instance("small"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert read.done() != needs_a_thread
    assert await asyncio.gather(*writes) == [*range(1, others + 1)]
    assert (await read).id == "small"


async def test_a_read_that_is_not_brief_is_given_up(provider: SqlitePersistenceProvider, clock: Seconds) -> None:
    reader = brief_reader(provider, clock)
    assert isinstance(reader.read(BIG), list)
    clock.each_look = 0.0002
    assert reader.read(BIG) is None
    assert clock.now < 0.002, "it looks at the clock often enough"
    clock.each_look = 0
    assert isinstance(reader.read(SMALL), list)


async def test_what_was_given_up_leaves_nothing_to_the_garbage_collector(
    provider: SqlitePersistenceProvider, clock: Seconds
) -> None:
    clock.each_look = 0.0002
    reader = brief_reader(provider, clock)
    gc.collect()
    assert reader.read(BIG) is None
    assert gc.collect() == 0


@pytest.mark.slow
async def test_long_reads_time_and_again_take_a_hundredth_of_the_time(
    provider: SqlitePersistenceProvider, clock: Seconds
) -> None:
    one_look = clock.each_look = 0.00005
    reader = brief_reader(provider, clock)
    taken = 0.0
    while clock.now < 60:
        before = clock.now
        assert reader.read(BIG) is None
        if clock.now - before > 2 * one_look:
            taken += clock.now - before
        clock.now += 0.03
    assert 0.005 < taken / clock.now < 0.0125


async def test_a_slow_disk_sends_reads_to_threads_for_a_hundred_times_as_long(
    provider: SqlitePersistenceProvider, clock: Seconds
) -> None:
    engine: Any = provider._engine
    disk_takes = 0.0

    def run(jobs: Sequence[Job], connection: sqlite3.Connection) -> list[Outcome]:
        outcomes: list[Outcome] = engine.run_reads(jobs, connection)
        clock.now += disk_takes
        return outcomes

    reader = brief_reader(provider, clock, run)
    clock.now, disk_takes = 100, 0.015
    assert isinstance(reader.read(SMALL), list)
    disk_takes = 0.025
    assert isinstance(reader.read(SMALL), list), "two seconds of it are paid in advance"
    disk_takes = 0.0001
    clock.now += 1.9
    assert reader.read(SMALL) is None
    clock.now += 0.2
    assert isinstance(reader.read(SMALL), list)
    assert isinstance(reader.read(SMALL), list)


async def test_what_was_given_up_is_read_on_a_thread(provider: SqlitePersistenceProvider, clock: Seconds) -> None:
    clock.each_look = 1
    assert len((await provider.get_workflow_instance("big")).execution_pointers) == 500


async def test_a_caller_that_only_reads_leaves_others_their_turns(provider: SqlitePersistenceProvider) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    @asynccontextmanager
    async def counting() -> AsyncIterator[None]:
        task = asyncio.create_task(count_turns())
        yield
        task.cancel()

    async with counting():
        for _ in range(100):
            await provider.get_workflow_instance("small")
    assert turns >= 100


@pytest.mark.parametrize(("max_connections", "has_one"), [(1, False), (2, False), (3, True)])
async def test_how_many_connections_it_takes(tmp_path: Path, max_connections: int, has_one: bool) -> None:
    for mode in ("rwc", "ro"):
        url = f"sqlite://{tmp_path}/store.db?mode={mode}"
        async with SqlitePersistenceProvider(url, max_connections=max_connections) as opened:
            engine: Any = opened._engine
            assert (engine._brief_reader is not None) == has_one
            assert await opened.get_workflow_instances(["none"]) == []
