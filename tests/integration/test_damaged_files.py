"""Files with changed bytes: every call returns an answer or raises one of our errors."""

import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import CorruptRowError, ScheduledCommand, StoreCorruptError, WfeError, WorkflowStatus, connect
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, full_instance, full_pointer, sample_instance
from wfe_sql.testing.samples import TIME

WHOLE = Path(__file__).parent.parent / "data" / "wfe-sqlite-1.11.4.db"
COPIES = 30


def damage(whole: bytes, seed: int) -> bytes:
    """Return a copy with 1 to 40 changed bytes, the same ones for the same seed."""
    chance = random.Random(seed)
    copy = bytearray(whole)
    for _ in range(chance.choice([1, 3, 10, 40])):
        copy[chance.randrange(len(copy))] = chance.randrange(256)
    return bytes(copy)


def calls(provider: SqlPersistenceProvider, ids: list[str], backup: Path) -> Iterator[Callable[[], Awaitable[Any]]]:
    async def dump() -> None:
        async for _ in provider.dump():
            pass

    async def handle(command: ScheduledCommand) -> None:
        pass

    async def persist(id_: str) -> None:
        instance = await provider.get_workflow_instance(id_)
        instance.execution_pointers.append(full_pointer(id=f"new-{id_}"))
        await provider.persist_workflow(instance)

    yield from (provider.stats, provider.check, dump, provider.update_statistics)
    yield from (provider.list_workflows, provider.list_events, provider.list_scheduled_commands)
    yield from (provider.list_execution_errors, provider.get_execution_errors)
    yield lambda: provider.get_workflow_instances(ids)
    yield lambda: provider.get_runnable_instances(TIME)
    yield lambda: provider.get_runnable_events(TIME)
    yield lambda: provider.get_subscriptions("order.paid", "1", TIME)
    yield lambda: provider.create_new_workflow(full_instance(id="new", name=""))
    yield lambda: provider.create_event(full_event(id="new"))
    yield lambda: provider.next_definition_sequence("order")
    yield lambda: provider.process_commands(TIME, handle)
    for id_ in ids:
        yield partial(provider.get_workflow_instance_by_name, id_)
        yield partial(persist, id_)
    yield lambda: provider.purge_workflows(WorkflowStatus.Complete, timedelta(0))
    yield lambda: provider.delete_workflow(ids[0])
    yield lambda: provider.backup(backup)


async def ask_everything(url: str, ids: list[str], backup: Path) -> list[WfeError]:
    """Return our errors; raise any other."""
    errors: list[WfeError] = []
    try:
        async with connect(url) as provider:
            for call in calls(provider, ids, backup):
                try:
                    await call()
                except* WfeError as found:
                    errors += [error for error in found.exceptions if isinstance(error, WfeError)]
    except WfeError as error:
        errors.append(error)
    return errors


@pytest.mark.parametrize("mode", ["rwc", "ro"])
@pytest.mark.slow
async def test_only_our_errors_come_of_damaged_files(tmp_path: Path, mode: str) -> None:
    whole = WHOLE.read_bytes()
    with closing(sqlite3.connect(WHOLE)) as connection:
        ids = [id_ for (id_,) in connection.execute("SELECT id FROM workflows ORDER BY id")]
    with_errors = 0
    for seed in range(COPIES):
        file = tmp_path / f"{seed}.db"
        file.write_bytes(damage(whole, seed))
        try:
            with_errors += bool(await ask_everything(f"sqlite://{file}?mode={mode}", ids, tmp_path / f"{seed}.backup"))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert with_errors > COPIES / 2


async def test_an_index_that_finds_the_rows_of_others(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with connect(file) as provider:
        pointers = [full_pointer(), full_pointer()]
        await provider.create_new_workflow(sample_instance(id="workflow-1", execution_pointers=pointers))
    index = "SELECT rootpage FROM sqlite_master WHERE name = 'idx_execution_pointers_workflow_id'"
    with closing(sqlite3.connect(file)) as connection:
        ((page,),) = connection.execute(index).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    content = bytearray(file.read_bytes())
    second = content.index(b"workflow-1", (page - 1) * size)  # a page fills from its end
    assert second < page * size
    content[second : second + 10] = b"workflow-,"
    file.write_bytes(content)
    async with connect(file) as provider:
        with pytest.raises(CorruptRowError, match="index and table disagree on a pointer of workflow 'workflow-,'"):
            await provider.get_workflow_instances(["workflow-1", "workflow-2"])


@pytest.mark.parametrize("mode", ["rwc", "ro"])
async def test_a_schema_that_is_not_text(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "store.db"
    async with connect(file):
        pass
    content = bytearray(file.read_bytes())
    content[content.index(b"'step_id', step_id") + 1] = 0xFF  # SQLite itself still parses it
    file.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="is damaged: Could not decode to UTF-8"):
        async with connect(f"sqlite://{file}?mode={mode}"):
            pass


async def test_pointers_whose_workflow_was_deleted_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with connect(file) as provider:
        for id_ in ("w1", "w2"):
            await provider.create_new_workflow(sample_instance(id=id_, name="", execution_pointers=[full_pointer()]))
        with closing(sqlite3.connect(file)) as other, other:
            other.execute("DELETE FROM workflows WHERE id = 'w2'")
        assert [instance.id for instance in await provider.get_workflow_instances(["w1", "w2"])] == ["w1"]
