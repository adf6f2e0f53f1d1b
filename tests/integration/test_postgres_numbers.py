"""Numbers of sequences: none is wasted or used twice, and `check` warns before they run out."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from wfe_sql import ExecutionError, PostgresPersistenceProvider, ScheduledCommand
from wfe_sql.maintenance.models import FindingKind
from wfe_sql.testing import full_pointer, sample_instance

RunSql = Callable[..., list[Any]]

SERIAL = 2**31 - 1


@pytest.fixture
def run_sql(postgres_url: str, schema: str) -> RunSql:
    def run(sql: str, *params: Any) -> list[Any]:
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as connection:
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    return run


async def _numbers(provider: PostgresPersistenceProvider) -> list[str]:
    return [finding.message for finding in await provider.check() if finding.kind == FindingKind.Numbers]


async def test_a_command_that_is_there_takes_no_number(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        for _ in range(3):
            await asyncio.gather(*(provider.schedule_command(ScheduledCommand.process_workflow("w", 5)) for _ in [0]))
        assert run_sql("SELECT last_value FROM scheduled_commands_id_seq") == [(1,)]
        run_sql("SELECT setval('scheduled_commands_id_seq', %s)", SERIAL)
        await provider.schedule_command(ScheduledCommand.process_workflow("w", 3))
        assert run_sql("SELECT execute_time FROM scheduled_commands") == [(3,)]


async def test_twins_scheduled_by_many_at_once_are_one(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        for number in range(20):
            command = f"w{number}"
            times = [5, 3, 9, 4, 7, 8]
            await asyncio.gather(
                *(provider.schedule_command(ScheduledCommand.process_workflow(command, at)) for at in times)
            )
        assert run_sql("SELECT execute_time FROM scheduled_commands") == [(3,)] * 20


@pytest.mark.parametrize("table", ["scheduled_commands", "execution_errors"])
async def test_check_warns_when_half_of_the_numbers_are_given(
    postgres_url: str, schema: str, run_sql: RunSql, table: str
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        run_sql(f"SELECT setval('{table}_id_seq', %s)", SERIAL // 2)
        assert await _numbers(provider) == []
        run_sql(f"SELECT setval('{table}_id_seq', %s)", SERIAL // 2 + 1)
        assert await _numbers(provider) == [
            f"1,073,741,824 of the 2,147,483,647 numbers of {table}.id are used; "
            "wfe-sql copy into another store numbers its rows from 1"
        ]


async def _fill_and_set_back(url: str, schema: str, run_sql: RunSql) -> None:
    """Leave a store as logical replication does: rows, and sequences that never counted."""
    async with PostgresPersistenceProvider(url, schema=schema) as provider:
        pointers = [full_pointer(id=f"p{number}") for number in range(30)]
        await provider.create_new_workflow(sample_instance(id="w", name="w", execution_pointers=pointers))
        await provider.schedule_command(ScheduledCommand.process_workflow("w", 5))
        error = ExecutionError(workflow_id="w", execution_pointer_id="p1", message="m")
        await provider.persist_errors([error, error])
    for sequence in ("execution_pointers_position_seq", "scheduled_commands_id_seq", "execution_errors_id_seq"):
        run_sql(f"SELECT setval('{sequence}', 1, FALSE)")


async def test_opening_has_numbers_go_on_after_those_that_are_stored(
    postgres_url: str, schema: str, run_sql: RunSql, caplog: pytest.LogCaptureFixture
) -> None:
    await _fill_and_set_back(postgres_url, schema, run_sql)
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        said = [
            f"{name} were at 0, and {count} is stored; they go on"
            for name, count in (
                ("execution_pointers.position", 30),
                ("scheduled_commands.id", 1),
                ("execution_errors.id", 2),
            )
        ]
        assert all(words in caplog.text for words in said)
        instance = await provider.get_workflow_instance("w")
        instance.execution_pointers.append(full_pointer(id="new"))
        await provider.persist_workflow(instance)
        assert [pointer.id for pointer in (await provider.get_workflow_instance("w")).execution_pointers][-1] == "new"
        await provider.schedule_command(ScheduledCommand.process_workflow("other", 5))
        await provider.persist_errors([ExecutionError(workflow_id="w", execution_pointer_id="p1", message="m")])
        assert await _numbers(provider) == []
        caplog.clear()
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        assert caplog.text == ""


async def test_check_says_that_numbers_are_behind_and_init_mends_them(
    postgres_url: str, schema: str, run_sql: RunSql
) -> None:
    await _fill_and_set_back(postgres_url, schema, run_sql)
    async with PostgresPersistenceProvider(f"{postgres_url}&mode=ro", schema=schema) as provider:
        assert len(await _numbers(provider)) == 3
        assert "the sequence of execution_pointers.position is at 0, but 30 is stored" in " ".join(
            await _numbers(provider)
        )
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        for number in range(20):  # later workflows, with positions that are lower
            await provider.create_new_workflow(sample_instance(id=f"later {number}"))
        run_sql("SELECT setval('execution_pointers_position_seq', 1, FALSE)")
        await provider.ensure_store_exists()
        assert await _numbers(provider) == []
