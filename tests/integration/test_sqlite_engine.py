"""What the SQLite engine promises beyond the conformance suite: its connections, its lanes, closing."""

import asyncio
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from stores import no_thread_left, nobody
from wfe_sql import (
    ExecutionError,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    WorkflowNotFoundError,
    connect,
)
from wfe_sql.engines.sqlite.lanes import WorkerConnection
from wfe_sql.testing import ManualClock, full_event, full_instance, full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

HELD = Path(__file__).parents[1] / "data" / "held"
"""A tuned query that waits for a function that the test replaces."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def provider(file: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(file, busy_timeout=timedelta(milliseconds=50)) as opened:
        yield opened


@contextmanager
def write_lock(file: Path) -> Iterator[sqlite3.Connection]:
    """Lock the file like another process that writes."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


async def settings(provider: SqlitePersistenceProvider, name: str) -> tuple[list[Any], list[Any]]:
    """A pragma's values on the connections that write and that read, the last of them on the event loop."""
    engine: Any = provider._engine
    writers, readers = engine._writers.connections, [*engine._readers.connections]
    if engine._brief_reader is not None:
        readers.append(engine._brief_reader.connection)
    values = {c: await c.run(lambda raw: pragma(raw, name)) for c in (*writers, *readers)}
    return [values[c] for c in writers], [values[c] for c in readers]


# connections


async def test_one_writer_and_three_readers_are_set_up(provider: SqlitePersistenceProvider) -> None:
    assert await settings(provider, "journal_mode") == (["wal"], ["wal"] * 3)
    assert await settings(provider, "foreign_keys") == ([1], [1] * 3)
    assert await settings(provider, "busy_timeout") == ([0], [0] * 3)
    assert await settings(provider, "query_only") == ([0], [1] * 3)
    assert (await settings(provider, "synchronous"))[0] == [2]


async def test_normal_durability(file: Path) -> None:
    async with SqlitePersistenceProvider(file, durability="normal") as provider:
        assert (await settings(provider, "synchronous"))[0] == [1]


async def test_memory_has_one_connection_for_both() -> None:
    async with SqlitePersistenceProvider(":memory:") as provider:
        writers, readers = await settings(provider, "foreign_keys")
        assert writers == readers == [1]
        engine: Any = provider._engine
        assert engine._writers is engine._readers


@pytest.mark.parametrize(
    "options", [{"durability": "maybe"}, {"busy_timeout": timedelta(seconds=-1)}, {"max_connections": 0}]
)
def test_options_that_are_wrong(options: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=next(iter(options))):
        connect(":memory:", **options)


# opening


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="the folder .*missing does not exist"):
        await connect(tmp_path / "missing" / "store.db").open()


async def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="it is a folder"):
        await connect(tmp_path).open()


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_a_file_that_must_exist(file: Path, mode: str) -> None:
    with pytest.raises(StoreUnavailableError, match="does not exist"):
        await connect(f"sqlite://{file}?mode={mode}").open()
    assert not file.exists()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@pytest.mark.parametrize(
    ("mode", "of_file", "of_folder", "message"),
    [
        ("rwc", 0o444, 0o777, "no permission to read and write it"),
        ("rwc", 0o000, 0o777, "no permission to read and write it"),
        ("ro", 0o000, 0o777, "no permission to read it"),
        ("rwc", 0o666, 0o555, "no permission to write in .*, where SQLite keeps its log"),
        ("rwc", 0o666, 0o000, "no permission to look into"),
    ],
)
async def test_a_store_without_permission(folder: Path, mode: str, of_file: int, of_folder: int, message: str) -> None:
    file = folder / "store.db"
    async with connect(file):
        pass
    file.chmod(of_file)
    folder.chmod(of_folder)
    with nobody(), pytest.raises(StoreUnavailableError, match=message):
        await connect(f"sqlite://{file}?mode={mode}").open()


async def test_read_only(file: Path, provider: SqlitePersistenceProvider) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    async with connect(f"sqlite://{file}?mode=ro") as reader:
        assert await reader.get_workflow_instance(stored.id) == stored
        for write in (reader.persist_workflow(stored), reader.ensure_store_exists()):
            with pytest.raises(StoreReadOnlyError, match="reading only"):
                await write
        stored.data = "changed beside it"
        await provider.persist_workflow(stored)
        assert await reader.get_workflow_instance(stored.id) == stored


async def test_a_relative_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect("sqlite:store.db"):
        assert (tmp_path / "store.db").exists()


# units


async def test_units_that_wait_together_share_a_commit(file: Path, provider: SqlitePersistenceProvider) -> None:
    """The log grows by a frame for each changed page of a commit; 64 separate units write the same page 64 times."""
    log, frame = Path(f"{file}-wal"), 4096 + 24
    await provider.next_definition_sequence("order")
    before = log.stat().st_size
    await asyncio.gather(*(provider.next_definition_sequence("order") for _ in range(64)))
    together = log.stat().st_size
    for _ in range(64):
        await provider.next_definition_sequence("order")
    apart = log.stat().st_size
    assert (together - before, apart - together) == (frame, 64 * frame)


@pytest.mark.slow
async def test_a_transaction_takes_in_no_more_after_its_time(provider: SqlitePersistenceProvider) -> None:
    """Units behind a workflow of 5,000 pointers, which takes far longer, are committed separately."""
    engine: Any = provider._engine
    batches: list[int] = []
    run_writes = engine._writers._run

    def count_units(units: Any, connection: sqlite3.Connection) -> Any:
        outcomes = run_writes(units, connection)
        batches.append(len(outcomes))
        return outcomes

    engine._writers._run = count_units
    big = sample_instance(execution_pointers=[full_pointer() for _ in range(5_000)])
    small = [sample_instance(id=f"w{number}") for number in range(20)]
    await asyncio.gather(*(provider.create_new_workflow(instance) for instance in (big, *small)))
    assert batches[0] == 1
    assert sum(batches) == 21
    assert await provider.get_workflow_instances([instance.id for instance in small]) == small


async def test_reads_see_the_writes_before_them(provider: SqlitePersistenceProvider) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    for step in range(50):
        stored.data = step
        await provider.persist_workflow(stored)
        assert (await provider.get_workflow_instance(stored.id)).data == step


async def test_a_load_sees_one_state_of_a_workflow(provider: SqlitePersistenceProvider) -> None:
    """A workflow and its pointers are read on one snapshot, however often both change meanwhile."""
    stored = sample_instance(data=0, execution_pointers=[full_pointer(id="p1", retry_count=0)])
    await provider.create_new_workflow(stored)
    done = False

    async def change() -> None:
        nonlocal done
        for step in range(1, 200):
            stored.data = stored.execution_pointers[0].retry_count = step
            await provider.persist_workflow(stored)
        done = True

    async def look() -> None:
        while not done:
            loaded = await provider.get_workflow_instance(stored.id)
            assert loaded.data == loaded.execution_pointers[0].retry_count

    await asyncio.gather(change(), look(), look(), look())


async def test_a_busy_store(file: Path, provider: SqlitePersistenceProvider) -> None:
    stored = sample_instance()
    await provider.create_new_workflow(stored)
    with write_lock(file):
        with pytest.raises(StoreBusyError, match="busy") as raised:
            await provider.next_definition_sequence("order")
        assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
        assert await provider.get_workflow_instance(stored.id) == stored
    assert await provider.next_definition_sequence("order") == 1


async def test_making_a_store_that_is_busy_leaves_foreign_keys_on(
    file: Path, provider: SqlitePersistenceProvider
) -> None:
    with write_lock(file), pytest.raises(StoreBusyError):
        await provider.ensure_store_exists()
    assert (await settings(provider, "foreign_keys"))[0] == [1]


async def test_a_full_store_fails_only_what_does_not_fit(file: Path, provider: SqlitePersistenceProvider) -> None:
    engine: Any = provider._engine

    def leave_little_room(raw: sqlite3.Connection) -> None:
        pragma(raw, f"max_page_count = {pragma(raw, 'page_count') + 5}")

    await engine._writers.connections[0].run(leave_little_room)
    small, big = sample_instance(id="small"), sample_instance(id="big", data="x" * 1_000_000)
    outcomes = await asyncio.gather(
        *(provider.create_new_workflow(instance) for instance in (small, big)),
        provider.next_definition_sequence("order"),
        return_exceptions=True,
    )
    assert outcomes[0] == "small"
    assert isinstance(outcomes[1], StoreFullError)
    assert outcomes[2] == 1
    assert await provider.get_workflow_instances(["small", "big"]) == [small]


async def test_another_program_deletes_a_workflow_with_its_pointers(
    file: Path, provider: SqlitePersistenceProvider
) -> None:
    stored = full_instance()
    await provider.create_new_workflow(stored)
    with closing(sqlite3.connect(file)) as other, other:
        other.execute("PRAGMA foreign_keys = ON")
        other.execute("DELETE FROM workflows")
    with pytest.raises(WorkflowNotFoundError):
        await provider.get_workflow_instance(stored.id)
    await provider.create_new_workflow(stored)


# cancellation


async def test_a_write_cancelled_before_it_began_does_not_happen(
    file: Path, provider: SqlitePersistenceProvider
) -> None:
    with write_lock(file):
        first = asyncio.create_task(provider.next_definition_sequence("order"))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(provider.next_definition_sequence("order"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(StoreBusyError):
            await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await provider.next_definition_sequence("order") == 1


async def test_a_cancelled_read_leaves_the_reader_sound(provider: SqlitePersistenceProvider) -> None:
    stored = full_instance(execution_pointers=[full_pointer() for _ in range(500)])
    await provider.create_new_workflow(stored)
    for _ in range(20):
        task = asyncio.create_task(provider.get_workflow_instance(stored.id))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await provider.get_workflow_instance(stored.id) == stored


# closing


async def test_close_finishes_what_is_pending(file: Path) -> None:
    provider = await connect(file, max_connections=1).open()
    instances = [full_instance(id=f"w{number}") for number in range(100)]
    pending = []
    for wave in (instances[:50], instances[50:]):
        pending += [asyncio.ensure_future(provider.create_new_workflow(instance)) for instance in wave]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await provider.close()
    assert await asyncio.gather(*pending) == [instance.id for instance in instances]
    assert not Path(f"{file}-wal").exists()
    async with connect(file) as again:
        assert await again.get_workflow_instances([instance.id for instance in instances]) == instances


async def test_an_opening_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database, whatever its name says" * 100)
    with no_thread_left(), pytest.raises(StoreError):
        await connect(tmp_path / "store.db").open()


def test_an_opening_that_fails_at_the_end_of_a_loop(tmp_path: Path) -> None:
    """No thread may call a closed loop: pytest turns that into an error."""
    (tmp_path / "store.db").write_bytes(b"this is no database, whatever its name says" * 100)
    for _ in range(30):
        with no_thread_left(), pytest.raises(StoreError):
            asyncio.run(connect(tmp_path / "store.db").open())


async def test_an_idle_provider_has_nothing_scheduled(provider: SqlitePersistenceProvider) -> None:
    loop: Any = asyncio.get_running_loop()
    await provider.create_new_workflow(sample_instance(id="w1"))
    await asyncio.gather(*(provider.next_definition_sequence("order") for _ in range(10)))
    first = asyncio.create_task(provider.get_workflow_instance("w1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(first, *(provider.get_workflow_instance("w1") for _ in range(10)))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


async def test_an_idle_thread_keeps_nothing_of_what_it_answered() -> None:
    class Answer:
        pass

    connection = WorkerConnection(lambda: sqlite3.connect(":memory:"))
    await connection.open()
    answer = Answer()
    kept = weakref.ref(answer)
    connection.post(partial(lambda answer, _: answer, answer), partial(lambda answer, _: None, answer))
    del answer
    async with asyncio.timeout(20):
        while kept() is not None:
            await asyncio.sleep(0)
    await connection.close()


async def test_a_long_read_does_not_hold_up_short_ones(file: Path) -> None:
    let_go = threading.Event()

    def held() -> str:
        let_go.wait(timeout=30)
        return "let go"

    def not_here() -> str:
        raise RuntimeError("a read that SQLite refuses on the event loop goes to a thread")

    async with SqlitePersistenceProvider(file, sql_dir=HELD) as provider:
        engine: Any = provider._engine
        for connection in engine._readers.connections:
            await connection.run(lambda raw: raw.create_function("sqlite_version", 0, held))
        engine._brief_reader.connection.raw.create_function("sqlite_version", 0, not_here)
        await provider.create_new_workflow(sample_instance(id="w1"))
        await provider.create_event(full_event(id="e1"))
        long = asyncio.create_task(provider.get_event("e1"))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                await asyncio.gather(*(provider.get_workflow_instance("w1") for _ in range(5)))
            assert not long.done()
        finally:
            let_go.set()
        assert (await long).id == "e1"


async def test_a_unit_that_fails_half_done_fails_alone(provider: SqlitePersistenceProvider) -> None:
    """Its workflow is written before its pointer turns out to be another's; the other units of the batch stay."""
    taken = full_pointer(id="p1")
    await provider.create_new_workflow(sample_instance(id="owner", execution_pointers=[taken]))
    thief = sample_instance(id="thief", execution_pointers=[full_pointer(id="p0"), taken])
    outcomes = await asyncio.gather(
        provider.create_new_workflow(sample_instance(id="before")),
        provider.create_new_workflow(thief),
        provider.create_new_workflow(sample_instance(id="after")),
        *(provider.next_definition_sequence("order") for _ in range(3)),
        return_exceptions=True,
    )
    assert [outcome if isinstance(outcome, str | int) else type(outcome) for outcome in outcomes] == [
        *["before", StoreError, "after"],
        *[1, 2, 3],
    ]
    found = await provider.get_workflow_instances(["before", "thief", "after", "owner"])
    assert [instance.id for instance in found] == ["before", "after", "owner"]
    assert found[-1].execution_pointers == [taken]


async def test_rows_of_one_statement_are_stored_all_or_none(file: Path, provider: SqlitePersistenceProvider) -> None:
    """Its first row is written before its second is refused; the other units of the batch stay."""
    with closing(sqlite3.connect(file)) as by_hand, by_hand:
        by_hand.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON execution_errors WHEN new.message = 'refused'"
            " BEGIN SELECT RAISE(ABORT, 'refused by a trigger'); END"
        )

    def errors(*messages: str) -> list[ExecutionError]:
        return [ExecutionError(workflow_id="w", execution_pointer_id="p", message=message) for message in messages]

    outcomes = await asyncio.gather(
        provider.persist_errors(errors("before")),
        provider.persist_errors(errors("with it", "refused")),
        provider.persist_errors(errors("after")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), StoreError, type(None)]
    assert [error.message for error in await provider.get_execution_errors()] == ["before", "after"]


# commands whose lease cannot be renewed


class ClockOfAStall(ManualClock):
    """The clock of a host that is suspended after it claimed, while another process locks the file."""

    def __init__(self, seconds: float, locks: sqlite3.Connection) -> None:
        super().__init__()
        self._seconds, self._locks = seconds, locks
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        if self.looks == 3:  # the first two are for the claim
            self.advance(seconds=self._seconds)
            self._locks.execute("BEGIN IMMEDIATE")
        return super().__call__()


@pytest.mark.parametrize("seconds", [45, 61])
async def test_commands_whose_lease_cannot_be_renewed(
    file: Path, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """They are handled only while the lease is known to hold: `seconds` of 60 have passed."""
    handled = []
    async with SqlitePersistenceProvider(file) as provider:
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:

        async def handler(command: ScheduledCommand) -> None:
            other.execute("ROLLBACK")
            handled.append(command.data)

        clock = ClockOfAStall(seconds, other)
        timeout = timedelta(milliseconds=20)
        async with SqlitePersistenceProvider(file, clock=clock, busy_timeout=timeout) as provider:
            if seconds < 60:
                await provider.process_commands(TIME, handler, lease=timedelta(seconds=60))
                assert "claims on scheduled commands [1] could not be renewed" in caplog.text
            else:
                with pytest.raises(StoreBusyError):
                    await provider.process_commands(TIME, handler, lease=timedelta(seconds=60))
                assert handled == []
                assert "could not be released" in caplog.text
    assert handled == (["w1"] if seconds < 60 else [])
