"""Rows that somebody edited by hand, in a real file."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    CorruptRowError,
    ExecutionError,
    PersistenceProvider,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreCorruptError,
)
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription
from wfe_sql.testing.samples import TIME

Read = Callable[[PersistenceProvider], Awaitable[Any]]


async def _handled(provider: PersistenceProvider) -> None:
    async def handler(command: ScheduledCommand) -> None:
        raise AssertionError(command)

    try:
        await provider.process_commands(TIME, handler)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


READS: dict[str, list[Read]] = {
    "workflows": [
        lambda provider: provider.get_workflow_instance("w1"),
        lambda provider: provider.get_workflow_instance_by_name("order-1"),
        lambda provider: provider.get_workflow_instances(["w1"]),
    ],
    "execution_pointers": [
        lambda provider: provider.get_workflow_instance("w1"),
        lambda provider: provider.get_workflow_instance_by_name("order-1"),
        lambda provider: provider.get_workflow_instances(["w1"]),
    ],
    "events": [lambda provider: provider.get_event("e1")],
    "event_subscriptions": [
        lambda provider: provider.get_subscription("s1"),
        lambda provider: provider.get_subscriptions("paid", "k1", TIME),
    ],
    "execution_errors": [lambda provider: provider.get_execution_errors()],
    "scheduled_commands": [_handled],
}

EDITS = [
    ("workflows", "status = 'Finished'", "status of id 'w1'"),
    ("workflows", "data = '{\"a\": '", "data of id 'w1'"),
    ("workflows", "create_time = 'yesterday'", "create_time of id 'w1'"),
    ("workflows", "create_time = '2026-05-28T20:26:40'", "create_time of id 'w1'"),
    ("workflows", "version = 'three'", "version of id 'w1'"),
    ("workflows", "next_execution = 1.5", "next_execution of id 'w1'"),
    ("workflows", "description = CAST(x'ff' AS TEXT)", "description of id 'w1'"),
    ("workflows", "reference = x'00ff'", "reference of id 'w1'"),
    ("execution_pointers", "status = ''", "status of id 'p1'"),
    ("execution_pointers", "active = 7", "active of id 'p1'"),
    ("execution_pointers", "children = '{}'", "children of id 'p1'"),
    ("execution_pointers", "extension_attributes = 'null'", "extension_attributes of id 'p1'"),
    ("execution_pointers", "outcome = ''", "outcome of id 'p1'"),
    ("events", "event_data = 'nul'", "event_data of id 'e1'"),
    ("events", "event_time = ''", "event_time of id 'e1'"),
    ("events", "is_processed = 'maybe'", "is_processed of id 'e1'"),
    ("event_subscriptions", "subscribe_as_of = '2026'", "subscribe_as_of of id 's1'"),
    ("event_subscriptions", "subscription_data = '[1,'", "subscription_data of id 's1'"),
    ("event_subscriptions", "step_id = 'x'", "step_id of id 's1'"),
    ("execution_errors", "error_time = 'x'", "error_time of id 1"),
    ("scheduled_commands", "command_name = 'Dance'", "command_name of id 1"),
]


@pytest.mark.parametrize(("table", "edit", "message"), EDITS, ids=[f"{table}-{edit}" for table, edit, _ in EDITS])
async def test_the_error_names_table_column_and_id(tmp_path: Path, table: str, edit: str, message: str) -> None:
    file = tmp_path / "store.db"
    async with SqlitePersistenceProvider(file) as provider:
        await provider.create_new_workflow(
            full_instance(id="w1", name="order-1", execution_pointers=[full_pointer(id="p1")])
        )
        await provider.create_event(full_event(id="e1"))
        await provider.create_event_subscription(full_subscription(id="s1"))
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        await provider.persist_errors([ExecutionError(workflow_id="w1", execution_pointer_id="p1", message="boom")])
        with sqlite3.connect(file) as by_hand:
            by_hand.execute(f"UPDATE {table} SET {edit}")
        by_hand.close()
        for read in READS[table]:
            with pytest.raises(CorruptRowError, match=f"{table}.{message}"):
                await read(provider)


async def test_an_unreadable_command_does_not_block_the_others(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    handled = []

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command.data)

    async with SqlitePersistenceProvider(file) as provider:
        for number in range(3):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))
        with sqlite3.connect(file) as by_hand:
            by_hand.execute("UPDATE scheduled_commands SET command_name = 'Dance' WHERE data = 'w1'")
        by_hand.close()
        with pytest.raises(ExceptionGroup) as raised:
            await provider.process_commands(TIME, handler)
    assert handled == ["w0", "w2"]
    assert [type(error) for error in raised.value.exceptions] == [CorruptRowError]


async def test_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async with SqlitePersistenceProvider(file) as provider:
        for number in range(50):
            await provider.create_new_workflow(full_instance(id=f"w{number}"))
    content = bytearray(file.read_bytes())
    content[4096 * 3 :] = b"\xa5" * (len(content) - 4096 * 3)
    file.write_bytes(content)
    with pytest.raises(StoreCorruptError) as raised:
        async with SqlitePersistenceProvider(file) as provider:
            for number in range(50):
                await provider.get_workflow_instance(f"w{number}")
    assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
