"""Maintenance of SQLite files: what it finds, moves, and leaves alone."""

import asyncio
import itertools
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from datetime import timedelta
from pathlib import Path

import pytest

from stores import dump, fill, found
from wfe_sql import (
    CorruptRowError,
    ExecutionError,
    FindingKind,
    SqlitePersistenceProvider,
    StoreCorruptError,
    StoreError,
    StoreNotEmptyError,
    StoreReadOnlyError,
    StoreUnavailableError,
    WorkflowStatus,
)
from wfe_sql.engines.sqlite.engine import SqliteEngine
from wfe_sql.testing import ManualClock, full_event, full_instance, sample_instance
from wfe_sql.testing.samples import TIME

DATA = Path(__file__).parents[1] / "data"
DAY = timedelta(days=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def provider(file: Path) -> AsyncIterator[SqlitePersistenceProvider]:
    async with SqlitePersistenceProvider(file, clock=ManualClock()) as opened:
        yield opened


def _by_hand(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


# checking


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ("workflows SET status = 'Finished' WHERE id = 'a'", "workflows.status of id 'a'"),
        ("workflows SET data = '{\"a\": ' WHERE id = 'a'", "workflows.data of id 'a'"),
        ("workflows SET create_time = 'yesterday' WHERE id = 'a'", "workflows.create_time of id 'a'"),
        ("workflows SET claim_expires_at = '2026-05-28T20:26:40'", "workflows.claim_expires_at of id 'a'"),
        ("workflows SET description = CAST(x'ff' AS TEXT) WHERE id = 'a'", "workflows.description of id 'a'"),
        ("workflows SET reference = x'00ff' WHERE id = 'a'", "workflows.reference of id 'a'"),
        ("execution_pointers SET active = 7 WHERE id = 'a-p1'", "execution_pointers.active of id 'a-p1'"),
        ("execution_pointers SET children = '{}' WHERE id = 'a-p1'", "execution_pointers.children of id 'a-p1'"),
        ("events SET event_data = '' WHERE id = 'e-a'", "events.event_data of id 'e-a'"),
        ("event_subscriptions SET step_id = 'x' WHERE id = 's-a'", "event_subscriptions.step_id of id 's-a'"),
        ("scheduled_commands SET command_name = 'Dance' WHERE data = 'a'", "scheduled_commands.command_name of id 2"),
        ("execution_errors SET error_time = '' WHERE workflow_id = 'a'", "execution_errors.error_time of id 2"),
        ("definition_sequences SET next_num = 'x'", "definition_sequences.next_num of id 'order'"),
    ],
)
async def test_rows_that_cannot_be_read(file: Path, provider: SqlitePersistenceProvider, edit: str, where: str) -> None:
    await fill(provider)
    assert await found(provider, FindingKind.Unreadable) == []
    _by_hand(file, f"UPDATE {edit}")
    messages = await found(provider, FindingKind.Unreadable)
    assert [message for message in messages if message.startswith(f"{where} cannot be read: ")] == messages[:1]
    with pytest.raises(CorruptRowError, match=where.rpartition(" of ")[0]):
        await dump(provider)


async def test_a_broken_foreign_key(file: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)
    _by_hand(file, "PRAGMA foreign_keys = OFF", "DELETE FROM workflows WHERE id = 'a'")
    messages = await found(provider, FindingKind.ForeignKey)
    assert messages == [f"execution_pointers row {row} refers to a missing row of workflows" for row in (3, 4)]


async def test_an_index_that_is_missing_is_found_and_made_again(file: Path) -> None:
    async with SqlitePersistenceProvider(file) as provider:
        _by_hand(file, "DROP INDEX idx_workflows_finished")
        (message,) = await found(provider, FindingKind.MissingIndex)
        assert "idx_workflows_finished" in message
    async with SqlitePersistenceProvider(file) as provider:
        assert await provider.check() == []


@pytest.mark.slow
async def test_statistics_that_are_missing_or_old(file: Path, provider: SqlitePersistenceProvider) -> None:
    def store(count: int) -> None:
        _by_hand(
            file,
            f"WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count}) INSERT INTO"
            " execution_errors (error_time, workflow_id, execution_pointer_id, message)"
            " SELECT '2026-05-28T20:26:40+00:00', 'w', 'p', 'boom' FROM number",
        )

    store(9_999)
    assert await found(provider, FindingKind.Statistics) == []
    store(1)
    (message,) = await found(provider, FindingKind.Statistics)
    assert message == "execution_errors has 10,000 rows and no statistics; run wfe-sql init"
    await provider.update_statistics()
    assert await found(provider, FindingKind.Statistics) == []
    store(100_000)
    (message,) = await found(provider, FindingKind.Statistics)
    assert "execution_errors has 110,000 rows and statistics from when it had about " in message
    await provider.update_statistics()
    _by_hand(file, "DELETE FROM execution_errors WHERE id > 10000")
    (message,) = await found(provider, FindingKind.Statistics)
    assert "execution_errors has 10,000 rows and statistics from when it had about " in message


async def test_a_damaged_file(file: Path) -> None:
    async with SqlitePersistenceProvider(file) as provider:
        for number in range(50):
            await provider.create_new_workflow(full_instance(id=f"w{number}"))
    content = bytearray(file.read_bytes())
    content[4096 * 20 : 4096 * 24] = b"\xa5" * 4096 * 4
    file.write_bytes(content)
    async with SqlitePersistenceProvider(f"{file}?mode=ro") as provider:
        assert await found(provider, FindingKind.Integrity) != []


async def test_a_file_of_the_reference_is_only_looked_at(tmp_path: Path) -> None:
    file = Path(shutil.copy(DATA / "wfe-sqlite-1.11.4.db", tmp_path / "reference.db"))
    before = file.read_bytes()
    async with SqlitePersistenceProvider(f"{file}?mode=ro") as provider:
        stats, lines = await provider.stats(), await dump(provider)
        assert sum(stats.rows.values()) == len(lines) > 10
        missing = await found(provider, FindingKind.MissingIndex)
        assert any("idx_workflows_create_time" in message for message in missing)
        assert len((await provider.list_workflows()).items) == stats.rows["workflows"]
        await provider.list_events()
        await provider.list_scheduled_commands()
        with pytest.raises(StoreReadOnlyError):
            await provider.delete_workflow("w")
    assert file.read_bytes() == before
    async with SqlitePersistenceProvider(file) as provider:
        assert await found(provider, FindingKind.MissingIndex) == []
        assert await dump(provider) == lines


# dumping and copying


async def test_equal_stores_give_equal_text(tmp_path: Path) -> None:
    dumps = []
    for ids in ("ab", "cba"):
        async with SqlitePersistenceProvider(tmp_path / f"{ids}.db") as provider:
            await fill(provider, ids)
            if "c" in ids:
                await provider.delete_workflow("c")
            lines = [json.loads(line) for line in await dump(provider)]
            dumps.append([line for line in lines if line["table"] in ("workflows", "execution_pointers")])
    for row in (line["row"] for lines in dumps for line in lines):
        row.pop("create_time", None)
    assert dumps[0] == dumps[1]


async def test_a_copy_has_everything(file: Path, tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)
    await provider.create_new_workflow(sample_instance(id="claimed", next_execution=0))
    await provider.create_event(full_event(id="claimed", is_processed=False, event_time=TIME - DAY))
    await provider.claim_runnable_instances(TIME, "host-1", lease=DAY, limit=1)
    await provider.claim_runnable_events(TIME, "host-1", lease=DAY, limit=1)
    await provider.terminate_subscription("s-a")
    await provider.persist_workflow(await provider.get_workflow_instance("a"))
    _by_hand(file, "UPDATE scheduled_commands SET rescheduled_time = 7, claim_token = 't' WHERE data = 'a'")
    seen: list[tuple[int, int]] = []
    async with SqlitePersistenceProvider(tmp_path / "copy.db") as copy:
        report = await provider.copy_to(copy, on_batch=lambda copied, verified: seen.append((copied, verified)))
        lines = await dump(provider)
        assert await dump(copy) == lines
        assert await copy.get_workflow_instance("a") == await provider.get_workflow_instance("a")
        rows = (await provider.stats()).rows
        assert report.rows == rows == (await copy.stats()).rows
        assert seen[-1] == (len(lines), len(lines))
        assert await copy.next_definition_sequence("order") == 2
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        claims = "SELECT id FROM workflows WHERE claim_token IS NOT NULL AND revision = 0"
        assert connection.execute(claims).fetchall() == [("claimed",)]
        assert connection.execute("SELECT id FROM event_subscriptions WHERE terminated").fetchall() == [("s-a",)]


async def test_a_copy_is_refused_where_something_is(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)
    async with SqlitePersistenceProvider(tmp_path / "copy.db") as copy:
        await copy.next_definition_sequence("mine")
        with pytest.raises(StoreNotEmptyError, match=r"1 definition_sequences\); nothing was copied"):
            await provider.copy_to(copy)
        assert (await copy.stats()).rows["definition_sequences"] == 1


async def test_a_copy_that_fails_leaves_nothing(
    file: Path, tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    await fill(provider)
    _by_hand(file, "UPDATE execution_errors SET error_time = 'x' WHERE workflow_id = 'a'")
    async with SqlitePersistenceProvider(tmp_path / "copy.db") as copy:
        with pytest.raises(StoreError, match="empty again: execution_errors.error_time of id 2") as raised:
            await provider.copy_to(copy)
        assert isinstance(raised.value.__cause__, CorruptRowError)
        assert set((await copy.stats()).rows.values()) == {0}


async def test_a_copy_that_is_cancelled_leaves_nothing(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)

    def cancel(copied: int, verified: int) -> None:
        if copied > 2:
            raise asyncio.CancelledError

    async with SqlitePersistenceProvider(tmp_path / "copy.db") as copy:
        with pytest.raises(asyncio.CancelledError):
            await provider.copy_to(copy, on_batch=cancel)
        assert set((await copy.stats()).rows.values()) == {0}


async def test_a_copy_into_which_somebody_writes_is_seen(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)
    file = tmp_path / "copy.db"

    def change(copied: int, verified: int) -> None:
        if copied == 13 and not verified:
            _by_hand(file, "UPDATE workflows SET data = '1' WHERE id = 'a'")

    async with SqlitePersistenceProvider(file) as copy:
        with pytest.raises(StoreError, match="the rows read back from the copy differ"):
            await provider.copy_to(copy, on_batch=change)


async def test_a_copy_that_fails_deletes_nothing_of_somebody_else(
    tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    await fill(provider)
    file = tmp_path / "copy.db"

    def write(copied: int, verified: int) -> None:
        if copied == 1:
            _by_hand(file, "INSERT INTO execution_errors VALUES (1, '2026-05-28T20:26:40+00:00', 'w', 'p', 'theirs')")
            theirs = f"'a', 'theirs', NULL, 'd', 1, NULL, NULL, 'Complete', '1', 0, '{TIME.isoformat()}'"
            _by_hand(file, f"INSERT INTO workflows VALUES ({theirs}, NULL, NULL, NULL, NULL, 0)")

    async with SqlitePersistenceProvider(file) as copy:
        with pytest.raises(StoreError, match="the copied rows are still there"):
            await provider.copy_to(copy, on_batch=write)
        assert (await copy.stats()).rows["execution_errors"] == 1


# backing up


async def test_a_backup_while_hosts_write(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    stored: list[str] = []

    async def write(host: str) -> None:
        for number in range(100):
            await provider.create_new_workflow(full_instance(id=f"{host}-{number}"))
            stored.append(f"{host}-{number}")

    async with asyncio.TaskGroup() as tasks:
        for host in "abcd":
            tasks.create_task(write(host))
        while len(stored) < 40:
            await asyncio.sleep(0)
        before = set(stored)
        await provider.backup(tmp_path / "backup.db")
    async with SqlitePersistenceProvider(f"{tmp_path / 'backup.db'}?mode=ro") as backup:
        assert [finding for finding in await backup.check() if finding.kind is not FindingKind.Overdue] == []
        copied = {workflow.id for workflow in (await backup.list_workflows(limit=1_000)).items}
        assert before <= copied
        assert (await backup.get_workflow_instance(min(before))).execution_pointers
    assert not list(tmp_path.glob(".*"))


async def test_a_backup_of_a_store_in_memory(tmp_path: Path) -> None:
    async with SqlitePersistenceProvider(":memory:") as provider:
        await fill(provider)
        await provider.backup(tmp_path / "backup.db")
        async with SqlitePersistenceProvider(tmp_path / "backup.db") as backup:
            assert await dump(backup) == await dump(provider)


async def test_a_backup_can_be_read_where_nothing_may_be_written(
    tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    await fill(provider)
    await provider.backup(tmp_path / "backup.db")
    with closing(sqlite3.connect(f"{(tmp_path / 'backup.db').as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("SELECT count(*) FROM workflows").fetchone() == (2,)
    assert {path.name for path in tmp_path.iterdir()} <= {"backup.db", "store.db", "store.db-wal", "store.db-shm"}


async def test_a_backup_of_a_damaged_store_is_an_error(
    file: Path, tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    await provider.persist_errors(
        [ExecutionError(workflow_id="w", execution_pointer_id="p", message="x" * 500) for _ in range(100)]
    )
    _by_hand(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as damaged:
        damaged.seek(-3 * 4096, os.SEEK_END)
        damaged.write(b"\xff" * 4096)
    with pytest.raises(StoreCorruptError, match="store.db is damaged"):
        await provider.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("*backup*"))


async def test_a_backup_of_what_is_not_a_store_is_an_error(
    file: Path, tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    _by_hand(file, "DROP TABLE execution_errors")
    with pytest.raises(StoreError, match="store.db does not have the tables of a store: .*execution_errors"):
        await provider.backup(tmp_path / "backup.db")
    assert not list(tmp_path.glob("*backup*"))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
async def test_a_backup_to_a_path_that_no_file_can_have(
    tmp_path: Path, provider: SqlitePersistenceProvider, name: str
) -> None:
    with pytest.raises(StoreError, match=r"'.*a\\\w+b' cannot be the path of a file"):
        await provider.backup(tmp_path / name)


async def test_a_backup_that_a_full_disk_cuts_off_names_the_copy(file: Path, tmp_path: Path) -> None:
    async with SqlitePersistenceProvider(file) as provider:
        await provider.persist_errors(
            [ExecutionError(workflow_id="w", execution_pointer_id="p", message="x" * 500) for _ in range(1_000)]
        )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with SqlitePersistenceProvider(f"{file}?mode=ro") as provider:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            with pytest.raises(StoreUnavailableError, match="backup.db cannot be created: disk I/O error"):
                await provider.backup(tmp_path / "backup.db")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.glob("*backup*"))
        await provider.backup(tmp_path / "backup.db")


async def test_a_backup_that_is_cancelled_leaves_nothing(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    await fill(provider)
    for number in itertools.count():
        backup = asyncio.ensure_future(provider.backup(tmp_path / f"backup{number}.db"))
        while not (under_way := list(tmp_path.glob(".backup*"))) and not backup.done():
            await asyncio.sleep(0)
        if under_way and backup.cancel():
            break  # it may end before the test sees it
    with pytest.raises(asyncio.CancelledError):
        await backup
    assert not list(tmp_path.glob(".*"))


STOPPED_BACKUP = """
import asyncio, os, signal, sys
import wfe_sql

def stop_at_the_copy(event, args):
    if event == "sqlite3.connect" and str(args[0]).endswith(".part"):
        os.kill(os.getpid(), signal.SIGSTOP)

async def main():
    async with wfe_sql.connect(sys.argv[1]) as provider:
        sys.addaudithook(stop_at_the_copy)
        await provider.backup(sys.argv[2])

asyncio.run(main())
"""


async def test_what_a_killed_backup_left_is_removed_by_the_next(
    file: Path, tmp_path: Path, provider: SqlitePersistenceProvider
) -> None:
    backup = tmp_path / "backup.db"
    with subprocess.Popen([sys.executable, "-c", STOPPED_BACKUP, file, backup]) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        (part,) = tmp_path.glob(".*.part")
        Path(f"{part}-wal").touch()
        await provider.backup(backup)
        assert part.exists()
        process.kill()
    backup.unlink()
    await provider.backup(backup)
    assert not list(tmp_path.glob(".*"))


async def test_a_backup_over_a_file_is_refused(tmp_path: Path, provider: SqlitePersistenceProvider) -> None:
    (tmp_path / "backup.db").write_text("precious")
    with pytest.raises(StoreError, match="backup.db already exists"):
        await provider.backup(tmp_path / "backup.db")
    with pytest.raises(StoreUnavailableError, match="cannot be created"):
        await provider.backup(tmp_path / "no" / "backup.db")
    assert (tmp_path / "backup.db").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} <= {"backup.db", "store.db", "store.db-wal", "store.db-shm"}


# purging while hosts work, and how much memory it takes


async def test_each_batch_of_a_purge_is_committed_while_hosts_write(
    file: Path, provider: SqlitePersistenceProvider
) -> None:
    for number in range(30):
        await provider.create_new_workflow(full_instance(id=f"done-{number}", status=WorkflowStatus.Complete))
    seen: list[int] = []
    live = sample_instance(id="live")
    await provider.create_new_workflow(live)

    async def work() -> None:
        for number in range(30):
            live.data = number
            await provider.persist_workflow(live)

    with closing(sqlite3.connect(file)) as other:

        def look(deleted: int) -> None:
            (left,) = other.execute("SELECT count(*) FROM workflows WHERE status = 'Complete'").fetchone()
            seen.append(left)

        purge = provider.purge_workflows(WorkflowStatus.Complete, TIME + 9 * DAY, batch_size=10, on_batch=look)
        _, deleted = await asyncio.gather(work(), purge)
    assert (deleted, seen) == (30, [20, 10, 0])
    assert await provider.get_workflow_instance("live") == live


@pytest.mark.parametrize("change", ["status = 'Runnable'", "complete_time = '2999-01-01T00:00:00+00:00'"])
async def test_a_workflow_that_changed_between_is_not_purged(
    file: Path, monkeypatch: pytest.MonkeyPatch, provider: SqlitePersistenceProvider, change: str
) -> None:
    await fill(provider)
    _by_hand(file, "UPDATE workflows SET status = 'Complete'")
    write = SqliteEngine.write

    async def change_first(self: SqliteEngine, unit: object) -> object:
        _by_hand(file, f"UPDATE workflows SET {change} WHERE id = 'a'")
        return await write(self, unit)  # type: ignore[arg-type]

    before = [line for line in await dump(provider) if '"table":"event_subscriptions"' in line]
    monkeypatch.setattr(SqliteEngine, "write", change_first)
    assert await provider.purge_workflows(WorkflowStatus.Complete, TIME + 9 * DAY) == 1
    assert len((await provider.get_workflow_instance("a")).execution_pointers) == 2
    assert [line for line in await dump(provider) if '"table":"event_subscriptions"' in line] == before[:1]


def _store_many(file: Path, count: int) -> None:
    """Store finished workflows faster than a host would: this test measures memory."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "INSERT INTO workflows (id, name, definition_id, version, status, data, create_time, complete_time)"
            " VALUES (?1, ?1, 'order', 1, 'Complete', ?2, '2020-01-01T00:00:00+00:00', '2020-01-02T00:00:00+00:00')",
            ((f"w{number:06}", json.dumps("x" * 200)) for number in range(count)),
        )


async def _drain(provider: SqlitePersistenceProvider) -> int:
    count = 0
    async with aclosing(provider.dump()) as lines:
        async for _ in lines:
            count += 1
    return count


async def _purge(provider: SqlitePersistenceProvider) -> int:
    return await provider.purge_workflows(WorkflowStatus.Complete, DAY)


async def _check(provider: SqlitePersistenceProvider) -> int:
    assert len(await provider.check()) < 2
    return (await provider.stats()).rows["workflows"]


@pytest.mark.slow
@pytest.mark.parametrize("work", [_drain, _purge, _check])
async def test_memory_does_not_grow_with_the_store(
    tmp_path: Path, work: Callable[[SqlitePersistenceProvider], Awaitable[int]]
) -> None:
    """10,000 more take less memory than their ids alone would; threads take and free some of it."""
    peaks = []
    for count in (2_000, 12_000):
        file = tmp_path / f"{count}.db"
        async with SqlitePersistenceProvider(file) as provider:
            _store_many(file, count)
            tracemalloc.start()
            try:
                assert await work(provider) == count
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10_000 * sys.getsizeof("w000001")
