"""What a SQLite store does if something happens to its file, its folder, its log, or its process."""

import asyncio
import concurrent.futures.thread  # noqa: F401 (who has no permissions cannot load it later)
import gc
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from stores import nobody
from wfe_sql import (
    FindingKind,
    SqlitePersistenceProvider,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    connect,
)
from wfe_sql.testing import sample_instance
from wfe_sql.testing.samples import TIME

DATA = Path(__file__).parent.parent / "data"
OLD = DATA / "wfe-sqlite-1.0.0.db"
LONG = timedelta(days=3650)
"""So long that nothing is overdue."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def provider(file: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(file) as opened:
        await opened.create_new_workflow(sample_instance(id="w1"))
        yield opened


def by_hand(file: Path, sql: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(sql)


def siblings(file: Path) -> list[Path]:
    return [Path(f"{file}{suffix}") for suffix in ("", "-wal", "-shm")]


# the open file is the file at the path


def delete(file: Path) -> None:
    file.unlink()


def delete_all(file: Path) -> None:
    for path in siblings(file):
        path.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("moved.db"))


def move_the_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


def replace(file: Path) -> None:
    shutil.copy(DATA / "wfe-sqlite-1.11.4.db", file.with_name("other.db"))
    file.with_name("other.db").replace(file)


LOST: dict[Callable[[Path], None], str] = {
    delete: "was deleted or moved",
    delete_all: "was deleted or moved",
    move: "was deleted or moved",
    move_the_folder: "was deleted or moved",
    replace: "was replaced by another file",
}


@pytest.mark.parametrize(("lose", "message"), LOST.items(), ids=[lose.__name__ for lose in LOST])
async def test_nothing_is_acknowledged_that_the_named_file_does_not_have(
    tmp_path: Path, lose: Callable[[Path], None], message: str
) -> None:
    file = tmp_path / "folder" / "store.db"
    file.parent.mkdir()
    async with SqlitePersistenceProvider(file) as provider:
        await provider.create_new_workflow(sample_instance(id="w1"))
        await provider.get_workflow_instance("w1")
        lose(file)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.db")}
        for call in (
            lambda: provider.create_new_workflow(sample_instance(id="w2")),
            lambda: provider.get_workflow_instance("w1"),
            lambda: provider.get_runnable_instances(TIME),
            provider.ensure_store_exists,
            provider.stats,
            provider.check,
            lambda: provider.backup(tmp_path / "backup.db"),
        ):
            with pytest.raises(StoreUnavailableError, match=message):
                await call()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.db")} == before


async def test_readers_on_threads_see_it_too(file: Path, provider: SqlitePersistenceProvider) -> None:
    delete(file)
    outcomes = await asyncio.gather(*(provider.get_workflow_instance("w1") for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}


async def test_after_the_first_error_nothing_more_is_written_to_a_file_that_was_moved(
    file: Path, provider: SqlitePersistenceProvider
) -> None:
    moved = file.with_name("moved.db")
    file.rename(moved)
    for number in range(3):
        with pytest.raises(StoreUnavailableError):
            await provider.create_new_workflow(sample_instance(id=f"late-{number}"))
    moved.rename(file)
    found = await provider.get_workflow_instances([f"late-{number}" for number in range(3)])
    assert [instance.id for instance in found] == ["late-0"]
    await provider.create_new_workflow(sample_instance(id="w2"))


async def test_a_file_that_was_emptied(file: Path, provider: SqlitePersistenceProvider) -> None:
    os.truncate(file, 0)
    with pytest.raises(StoreCorruptError, match="emptied"):
        await provider.create_new_workflow(sample_instance(id="w2"))
    with pytest.raises(StoreCorruptError):
        await provider.get_workflow_instance("w1")
    with pytest.raises(StoreCorruptError):
        await provider.backup(file.with_name("backup.db"))


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_log_that_was_deleted(file: Path, provider: SqlitePersistenceProvider, suffix: str) -> None:
    """Closing keeps what was acknowledged before, because it writes the log into the file."""
    Path(f"{file}{suffix}").unlink()
    with pytest.raises(StoreUnavailableError, match=f"lost .*{suffix}, which was deleted or moved"):
        await provider.create_new_workflow(sample_instance(id="w2"))
    await provider.close()
    async with connect(file) as again:
        assert (await again.get_workflow_instance("w1")).id == "w1"


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_no_shared_memory_for_the_index_of_the_log(
    file: Path, provider: SqlitePersistenceProvider, mode: str
) -> None:
    """A pipe can be opened and not be shared, like a file on some network file systems."""
    await provider.close()
    os.mkfifo(f"{file}-shm")
    with pytest.raises(StoreUnavailableError, match="put the file on a local disk") as raised:
        await connect(f"{file}?mode={mode}").open()
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)


async def test_a_relative_path_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    async with connect("sqlite://store.db") as provider:
        await provider.create_new_workflow(sample_instance(id="w1"))
        monkeypatch.chdir(tmp_path / "away")
        assert (await provider.stats()).rows["workflows"] == 1
        assert await provider.check(overdue_after=LONG) == []
        await provider.backup(tmp_path / "backup.db")
    assert list((tmp_path / "away").iterdir()) == []
    async with connect(tmp_path / "backup.db") as backup:
        assert (await backup.get_workflow_instance("w1")).id == "w1"


async def test_a_link_that_leads_elsewhere(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(file)
    async with connect(link) as provider:
        await provider.create_new_workflow(sample_instance(id="w1"))
        link.unlink()
        link.symlink_to(tmp_path / "other.db")
        shutil.copy(file, tmp_path / "other.db")
        with pytest.raises(StoreUnavailableError, match="replaced"):
            await provider.create_new_workflow(sample_instance(id="w2"))


# read-only places


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a store, which every user may enter."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def make_store(file: Path, *ids: str) -> None:
    async with connect(file) as provider:
        for id_ in ids:
            await provider.create_new_workflow(sample_instance(id=id_))


async def test_a_store_is_read_in_a_folder_that_may_not_be_written(folder: Path) -> None:
    file = folder / "store.db"
    await make_store(file, "w1")
    with nobody():
        async with connect(f"sqlite://{file}?mode=ro") as reader:
            assert (await reader.get_workflow_instance("w1")).id == "w1"
            assert await reader.check(overdue_after=LONG) == []
    assert list(folder.iterdir()) == [file]


async def test_a_link_to_a_store_in_a_folder_that_may_not_be_written(folder: Path, tmp_path: Path) -> None:
    (folder / "sealed").mkdir()
    (folder / "open").mkdir(mode=0o777)
    (folder / "open").chmod(0o777)
    file = folder / "sealed" / "store.db"
    await make_store(file, "w1")
    (folder / "open" / "link.db").symlink_to(file)
    with nobody():
        async with connect(f"sqlite://{folder}/open/link.db?mode=ro") as reader:
            assert (await reader.get_workflow_instance("w1")).id == "w1"
        with pytest.raises(StoreUnavailableError, match="no permission to write in .*sealed, where SQLite"):
            await connect(folder / "open" / "link.db").open()


async def test_somebody_writes_to_what_is_read_without_locks(folder: Path) -> None:
    file = folder / "store.db"
    await make_store(file, "w1")
    with nobody():
        reader = await connect(f"sqlite://{file}?mode=ro").open()
    async with connect(file) as writer:
        await writer.create_new_workflow(sample_instance(id="w2"))
        with pytest.raises(StoreUnavailableError, match="somebody has written to it since; open it again"):
            await reader.get_workflow_instance("w1")
    with pytest.raises(StoreUnavailableError, match="somebody has written to it since; open it again"):
        await reader.get_workflow_instance("w1")
    await reader.close()


async def test_a_log_in_a_folder_that_may_not_be_written(folder: Path) -> None:
    """As after a crash, or in a copy of both."""
    file = folder / "store.db"
    async with connect(file) as provider:
        await provider.create_new_workflow(sample_instance(id="w1"))
        (folder / "copy").mkdir()
        for path in siblings(file)[:2]:
            shutil.copy(path, folder / "copy")
    copy = folder / "copy" / "store.db"
    with nobody(), pytest.raises(StoreUnavailableError, match="has a log, .*store.db-wal, .*; open it once as a user"):
        await connect(f"sqlite://{copy}?mode=ro").open()


# a program that crashed


CRASH = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("PRAGMA cache_spill = 1")
connection.execute("BEGIN IMMEDIATE")
connection.executemany(
    "INSERT INTO workflows (id, definition_id, version, status, data, next_execution, create_time)"
    " VALUES (?, 'd', 1, 'Runnable', ?, 0, '2026-02-02T02:40:00+00:00')",
    [(f"x{number}", f'"{"z" * 2000}"') for number in range(300)],
)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""It leaves a rollback journal, and pages in the file that must be undone."""


async def test_the_journal_of_a_crashed_program_is_rolled_back(file: Path) -> None:
    shutil.copy(OLD, file)
    assert subprocess.run([sys.executable, "-c", CRASH, file], check=False).returncode == -signal.SIGKILL
    assert Path(f"{file}-journal").stat().st_size > 0
    assert file.stat().st_size > OLD.stat().st_size
    with pytest.raises(StoreReadOnlyError, match="left a journal, which must be rolled back; open it once for writing"):
        await connect(f"sqlite://{file}?mode=ro").open()
    async with connect(file) as provider:
        assert len(await provider.get_runnable_instances(TIME)) == 2
        assert await provider.get_workflow_instances([f"x{number}" for number in range(300)]) == []
    assert not Path(f"{file}-journal").exists()


# the busy timeout


@contextmanager
def held_by_another_process(file: Path, sql: str) -> Iterator[None]:
    """Let another process run statements on a file, and stay connected."""
    program = (
        "import sqlite3, sys\n"
        "other = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for statement in sys.argv[2].split(';'):\n"
        "    other.execute(statement).fetchall()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(file), sql]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        yield
        other.communicate()


@pytest.mark.slow
async def test_the_busy_timeout_counts_from_the_call(file: Path) -> None:
    timeout = 0.5
    took: list[float] = []
    async with SqlitePersistenceProvider(file, busy_timeout=timedelta(seconds=timeout)) as provider:
        assert await provider.next_definition_sequence("order") == 1

        async def call() -> None:
            began = time.monotonic()
            with pytest.raises(StoreBusyError):
                await provider.next_definition_sequence("order")
            took.append(time.monotonic() - began)

        with held_by_another_process(file, "BEGIN IMMEDIATE"):
            first = [asyncio.create_task(call()) for _ in range(1_500)]
            await asyncio.sleep(timeout / 2)
            await asyncio.gather(*first, *(call() for _ in range(1_500)))
        assert await provider.next_definition_sequence("order") == 2
    assert min(took) >= timeout
    assert max(took) < 4 * timeout, "six batches waited one after the other"


async def test_the_busy_timeout_of_reads_counts_from_the_call(file: Path) -> None:
    """In a file without a write-ahead log readers wait for a writer, too."""
    timeout = 0.3
    took: list[float] = []
    await make_store(file, "w1")
    by_hand(file, "PRAGMA journal_mode = DELETE")
    url = f"sqlite://{file}?mode=ro"
    async with SqlitePersistenceProvider(url, busy_timeout=timedelta(seconds=timeout), max_connections=1) as reader:

        async def call() -> None:
            began = time.monotonic()
            with pytest.raises(StoreBusyError):
                await reader.get_workflow_instance("w1")
            took.append(time.monotonic() - began)

        with held_by_another_process(file, "BEGIN EXCLUSIVE"):
            await asyncio.gather(*(call() for _ in range(1_000)))
            waits = asyncio.create_task(reader.get_workflow_instance("w1"))
            await asyncio.sleep(0.05)
        assert (await waits).id == "w1"
    assert min(took) >= timeout
    assert max(took) < 8 * timeout, "sixteen batches waited one after the other"


# the log


async def write_much(provider: SqlitePersistenceProvider, megabytes: int) -> None:
    for _ in range(megabytes):
        await provider.create_new_workflow(sample_instance(data="x" * 1_000_000))


@pytest.mark.slow
async def test_a_log_that_a_reader_of_another_process_holds(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with SqlitePersistenceProvider(file, durability="normal") as provider:
        await write_much(provider, 2)
        assert (await provider.stats()).log_bytes == Path(f"{file}-wal").stat().st_size > 0
        with held_by_another_process(file, "BEGIN; SELECT count(*) FROM workflows"):
            assert await provider.check(overdue_after=LONG) == []
            await write_much(provider, 40)
            engine: Any = provider._engine
            engine._store.file._looked_at_log = 0.0  # as a second later
            await write_much(provider, 2)
            (finding,) = await provider.check(overdue_after=LONG)
            assert finding.kind is FindingKind.LongLog
            assert "cannot be reset while a connection reads an old snapshot" in finding.message
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            assert "store.db has grown to" in caplog.text
            async with connect(f"sqlite://{file}?mode=ro") as reader:
                (finding,) = await reader.check(overdue_after=LONG)
                assert "check with mode=rw to find out" in finding.message
        assert await provider.check(overdue_after=LONG) == []
        await write_much(provider, 2)
        assert Path(f"{file}-wal").stat().st_size <= 16 * 2**20
        assert len(caplog.records) == 1


# providers that nobody closes


def open_files(file: Path) -> list[str]:
    return [name for name in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if name.startswith(str(file))]


def test_a_provider_that_is_dropped_without_close(file: Path) -> None:
    before = set(threading.enumerate())

    async def drop() -> None:
        provider = await connect(file).open()
        await provider.create_new_workflow(sample_instance(id="w1"))
        await asyncio.gather(*(provider.get_workflow_instance("w1") for _ in range(20)))
        await provider.stats()
        assert open_files(file)
        with pytest.warns(ResourceWarning, match="SqlitePersistenceProvider .* was dropped without close"):
            del provider
        for thread in set(threading.enumerate()) - before:
            await asyncio.to_thread(thread.join, 0.5 if "asyncio" in thread.name else 20)

    asyncio.run(drop())
    gc.collect()
    assert set(threading.enumerate()) <= before  # a thread of an earlier test may have ended meanwhile
    assert open_files(file) == []


def test_a_provider_that_is_dropped_after_its_loop_has_ended(file: Path) -> None:
    before = set(threading.enumerate())
    kept = []

    async def use() -> None:
        kept.append(await connect(file).open())
        await kept[0].next_definition_sequence("order")

    asyncio.run(use())
    with pytest.warns(ResourceWarning):
        kept.clear()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
    assert set(threading.enumerate()) <= before  # a thread of an earlier test may have ended meanwhile
    assert open_files(file) == []


# plain words


def in_a_fork(work: Callable[[], str]) -> str:
    """Return what a function returns in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = work()
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_a_fork(file: Path) -> None:
    with asyncio.Runner() as own:
        provider = connect(file)
        own.run(provider.open())

        def use() -> str:
            said = []
            for call in (provider.next_definition_sequence("order"), provider.get_runnable_instances(TIME)):
                try:
                    own.run(asyncio.wait_for(call, 10))
                except StoreError as error:
                    said.append(str(error))
            try:
                asyncio.run(provider.close())
            except StoreError as error:
                said.append(str(error))
            return "\n".join(said)

        said = in_a_fork(use).splitlines()
        message = f"belongs to process {os.getpid()}, which this one was forked from; open one after the fork"
        assert [message in line for line in said] == [True] * 3
        assert own.run(provider.next_definition_sequence("order")) == 1
        own.run(provider.close())


def test_without_an_event_loop_of_asyncio(file: Path) -> None:
    """As under trio, which runs coroutines itself."""
    with pytest.raises(StoreError, match="needs a running asyncio event loop.* trio"):
        connect(file).open().send(None)


@pytest.mark.parametrize("length", [248, 300])
async def test_a_name_that_is_too_long(tmp_path: Path, length: int) -> None:
    with pytest.raises(StoreUnavailableError, match="name is too long: with -journal it can have 255 bytes, and 511"):
        await connect(tmp_path / ("x" * length)).open()


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["x" * 100] * 5)
    folder.mkdir(parents=True)
    with pytest.raises(StoreUnavailableError, match="name is too long"):
        await connect(folder / "store.db").open()


OPEN_WITH_LITTLE_ROOM = """
import asyncio, resource, signal, sys, wfe_sql
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    asyncio.run(wfe_sql.connect(sys.argv[1]).open())
except wfe_sql.StoreFullError as error:
    print(error)
"""


def test_a_disk_without_room_for_the_index_of_the_log(file: Path) -> None:
    """A process can set a limit on the length of files for itself."""
    command = [sys.executable, "-c", OPEN_WITH_LITTLE_ROOM, str(file), "10000"]
    opened = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{file} has no disk space left" in opened.stdout, opened.stderr


# in memory


@pytest.mark.slow
async def test_a_snapshot_of_a_store_in_memory_is_of_one_moment() -> None:
    async with SqlitePersistenceProvider(":memory:") as provider, SqlitePersistenceProvider(":memory:") as copy:
        for number in range(1_500):  # two pages
            await provider.create_new_workflow(sample_instance(id=f"w{number:04}", name=""))
        lines = [line async for line in provider.dump()]
        dump = provider.dump()
        first = await anext(dump)
        await provider.create_new_workflow(sample_instance(id="z", name=""))
        await provider.delete_workflow("w1400")
        assert [first, *[line async for line in dump]] == lines

        async def disturb(copied: int, compared: int) -> None:
            await provider.create_new_workflow(sample_instance())

        disturbing: list[asyncio.Task[None]] = []
        report = await provider.copy_to(
            copy, on_batch=lambda *counts: disturbing.append(asyncio.create_task(disturb(*counts)))
        )
        await asyncio.gather(*disturbing)
        assert report.rows["workflows"] == 1_500
        assert disturbing
