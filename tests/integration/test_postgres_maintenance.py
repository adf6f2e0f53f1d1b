"""Maintenance of PostgreSQL stores: findings, privileges, and hosts that work meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from servers import with_option
from stores import dump, fill, found
from wfe_sql import (
    CorruptRowError,
    ExecutionPointer,
    FindingKind,
    PostgresPersistenceProvider,
    QueryStats,
    SerializationError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    WorkflowNotFoundError,
    WorkflowStatus,
    utc_now,
)
from wfe_sql.backends import load_postgres_queries
from wfe_sql.engines import Statement
from wfe_sql.engines.postgres.engine import PostgresEngine
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.testing import ManualClock, full_event, sample_instance
from wfe_sql.testing.samples import TIME

DAY = timedelta(days=1)

ByHand = Callable[..., list[Any]]


@pytest.fixture
def by_hand(postgres_url: str, schema: str) -> ByHand:
    """Run statements like a person at the psql prompt, and return the rows of the last."""

    def run(*statements: str) -> list[Any]:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"SET search_path TO {schema}")
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
async def provider(postgres_url: str, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=ManualClock()) as opened:
        yield opened


# checking


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ("workflows SET status = 'Finished' WHERE id = 'a'", "workflows.status of id 'a'"),
        pytest.param(
            "workflows SET create_time = 'infinity' WHERE id = 'a'",
            "workflows.create_time of id 'a'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "workflows SET complete_time = '0044-03-15 BC' WHERE id = 'a'",
            "workflows.complete_time of id 'a'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "execution_pointers SET event_published = NULL WHERE id = 'a-p1'",
            "execution_pointers.event_published of id",
            marks=pytest.mark.slow,
        ),
        ("execution_pointers SET children = '{}' WHERE id = 'a-p1'", "execution_pointers.children of id 'a-p1'"),
        pytest.param(
            "event_subscriptions SET subscribe_as_of = '-infinity'",
            "event_subscriptions.subscribe_as_of of id 's-a'",
            marks=pytest.mark.slow,
        ),
        ("scheduled_commands SET command_name = 'Dance' WHERE data = 'a'", "scheduled_commands.command_name of id 2"),
    ],
)
async def test_rows_that_cannot_be_read(
    by_hand: ByHand, provider: PostgresPersistenceProvider, edit: str, where: str
) -> None:
    await fill(provider)
    assert await found(provider, FindingKind.Unreadable) == []
    by_hand(f"UPDATE {edit}")
    messages = await found(provider, FindingKind.Unreadable)
    assert messages[0].startswith(where)
    with pytest.raises(CorruptRowError, match=where.rpartition(" of ")[0]):
        await dump(provider)


async def test_a_broken_foreign_key(by_hand: ByHand, provider: PostgresPersistenceProvider) -> None:
    await fill(provider)
    by_hand("SET session_replication_role = replica", "DELETE FROM workflows WHERE id = 'a'")
    assert await found(provider, FindingKind.ForeignKey) == [
        f"execution_pointers row {row} refers to a missing row of workflows" for row in (3, 4)
    ]


async def test_an_index_that_could_not_be_made(by_hand: ByHand, provider: PostgresPersistenceProvider) -> None:
    await fill(provider)
    with pytest.raises(psycopg.errors.UniqueViolation):
        by_hand("CREATE UNIQUE INDEX CONCURRENTLY mine ON workflows (definition_id)")
    assert await found(provider, FindingKind.Integrity) == ["index mine is invalid; REINDEX it"]


async def test_an_index_that_is_missing_is_found_and_made_again(
    by_hand: ByHand, provider: PostgresPersistenceProvider, postgres_url: str, schema: str
) -> None:
    by_hand("DROP INDEX idx_workflows_finished")
    (message,) = await found(provider, FindingKind.MissingIndex)
    assert "idx_workflows_finished" in message
    async with PostgresPersistenceProvider(with_option(postgres_url, "mode=rw"), schema=schema):
        assert len(await found(provider, FindingKind.MissingIndex)) == 1
    await provider.ensure_store_exists()
    assert await provider.check() == []


@pytest.mark.slow
async def test_statistics_that_are_missing_or_old(by_hand: ByHand, provider: PostgresPersistenceProvider) -> None:
    by_hand("ALTER TABLE execution_errors SET (autovacuum_enabled = off)")

    def store(count: int) -> None:
        by_hand(
            "INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)"
            f" SELECT now(), 'w', 'p', 'boom' FROM generate_series(1, {count})"
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
    assert message == "execution_errors has 110,000 rows and statistics from when it had about 10,000; run wfe-sql init"
    await provider.update_statistics()
    assert await found(provider, FindingKind.Statistics) == []
    by_hand("DELETE FROM execution_errors WHERE id > 10000")
    (message,) = await found(provider, FindingKind.Statistics)
    assert message == "execution_errors has 10,000 rows and statistics from when it had about 110,000; run wfe-sql init"


async def test_sizes(provider: PostgresPersistenceProvider) -> None:
    before = await provider.stats()
    await provider.create_event(full_event(event_data=[str(uuid4()) for _ in range(9_999)]))
    after = await provider.stats()
    assert after.size_bytes > before.size_bytes > 0
    assert after.free_bytes is None  # no answer without an extension


# one moment


async def test_a_snapshot_writes_nothing_and_goes_on_after_an_error(provider: PostgresPersistenceProvider) -> None:
    await fill(provider)
    page = {"after_id": "", "row_limit": 9}
    async with provider._engine.snapshot() as read:
        with pytest.raises(StoreReadOnlyError):
            await read([Statement("empty_store", {})])
        with pytest.raises(SerializationError):
            await read([Statement("export_workflows", {**page, "row_limit": "x"})])
        (rows,) = await read([Statement("export_workflows", page)])
    assert [row[0] for row in rows] == ["a", "b"]


async def test_a_backup_is_left_to_pg_dump(provider: PostgresPersistenceProvider, tmp_path: Path, schema: str) -> None:
    with pytest.raises(StoreError, match=f"pg_dump --format=custom --schema={schema} --file=.*backup"):
        await provider.backup(tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


# while hosts work


async def test_a_workflow_that_came_back_to_life_between_is_not_purged(
    by_hand: ByHand, provider: PostgresPersistenceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(provider)
    by_hand("UPDATE workflows SET status = 'Complete'")
    write = PostgresEngine.write

    async def revive_first(self: PostgresEngine, unit: Any) -> Any:
        by_hand("UPDATE workflows SET status = 'Runnable' WHERE id = 'a'")
        return await write(self, unit)

    monkeypatch.setattr(PostgresEngine, "write", revive_first)
    assert await provider.purge_workflows(WorkflowStatus.Complete, TIME + 9 * DAY) == 1
    assert len((await provider.get_workflow_instance("a")).execution_pointers) == 2
    assert [each.subscription.id for each in await provider.list_event_subscriptions("a")] == ["s-a"]
    assert await provider.list_event_subscriptions("b") == []


@pytest.mark.parametrize("status", [WorkflowStatus.Complete, WorkflowStatus.Runnable])
async def test_a_purge_waits_for_a_host_that_writes(
    provider: PostgresPersistenceProvider, postgres_url: str, schema: str, status: WorkflowStatus
) -> None:
    """It also deletes pointers that the host adds, or leaves alone a workflow that the host makes Runnable again."""
    await fill(provider, "a")
    async with await psycopg.AsyncConnection.connect(postgres_url) as host:
        await host.execute(f"SET search_path TO {schema}")
        await host.execute("UPDATE workflows SET status = 'Complete'")
        await host.commit()
        await host.execute("UPDATE workflows SET status = %s", [status])
        await host.execute("INSERT INTO execution_pointers (id, workflow_id, step_id, status) VALUES ('n', 'a', 1, '')")
        purge = asyncio.create_task(provider.purge_workflows(WorkflowStatus.Complete, TIME + 9 * DAY))
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as watcher:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            while (await (await watcher.execute(waits, [host.info.backend_pid])).fetchone()) != (1,):
                pass
        await host.commit()
        assert await purge == int(status is WorkflowStatus.Complete)
    rows = (await provider.stats()).rows
    left = 1 if status is WorkflowStatus.Runnable else 0
    assert (rows["workflows"], rows["execution_pointers"]) == (left, 3 * left)


async def test_hosts_that_persist_what_is_deleted(provider: PostgresPersistenceProvider) -> None:
    async def persist(id_: str) -> None:
        instance = sample_instance(id=id_)
        await provider.create_new_workflow(instance)
        with pytest.raises(WorkflowNotFoundError):
            while True:
                instance.execution_pointers.append(ExecutionPointer(step_id=1))
                await provider.persist_workflow(instance)

    async def delete(id_: str) -> None:
        while True:
            try:
                return await provider.delete_workflow(id_)
            except WorkflowNotFoundError:  # it is not made yet
                await asyncio.sleep(0)

    ids = [f"w{number}" for number in range(10)]
    await asyncio.gather(*map(persist, ids), *map(delete, ids))
    assert set((await provider.stats()).rows.values()) == {0}


# what a role may, and what opening makes


async def test_a_role_that_may_only_read(
    by_hand: ByHand, provider: PostgresPersistenceProvider, schema: str, make_role: Callable[..., str]
) -> None:
    """It is enough for all reads, even if an index that a later version adds is missing."""
    await fill(provider)
    url = make_role()
    role = conninfo_to_dict(url)["user"]
    by_hand(f"GRANT USAGE ON SCHEMA {schema} TO {role}", f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    by_hand("DROP INDEX idx_workflows_finished")
    async with PostgresPersistenceProvider(url, schema=schema) as reader:
        assert await dump(reader) == await dump(provider)
        assert (await reader.stats()).rows == (await provider.stats()).rows
        assert len((await reader.list_workflows()).items) == 2
        assert len(await found(reader, FindingKind.MissingIndex)) == 1
        with pytest.raises(StoreError, match=f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES .* TO {role}"):
            await reader.delete_workflow("a")


@pytest.mark.parametrize("mode", ["ro", "rw"])
async def test_what_is_not_there_is_not_made(postgres_url: str, schema: str, by_hand: ByHand, mode: str) -> None:
    with pytest.raises(StoreUnavailableError, match=rf"cannot be opened with mode={mode}: it does not exist"):
        await PostgresPersistenceProvider(with_option(postgres_url, f"schema={schema}&mode={mode}")).open()
    assert by_hand(f"SELECT nspname FROM pg_namespace WHERE nspname = '{schema}'") == []


async def test_a_store_opened_for_reading(
    provider: PostgresPersistenceProvider, postgres_url: str, schema: str
) -> None:
    await fill(provider)
    async with PostgresPersistenceProvider(with_option(postgres_url, "mode=ro"), schema=schema) as reader:
        assert await dump(reader) == await dump(provider)
        for write in (reader.delete_workflow("a"), reader.create_event(full_event())):
            with pytest.raises(StoreReadOnlyError):
                await write
        with pytest.raises(StoreReadOnlyError):
            await reader.persist_workflow(await reader.get_workflow_instance("a"))


async def test_ids_of_the_reference_s_tables_get_the_order_of_their_bytes(
    by_hand: ByHand, postgres_url: str, schema: str
) -> None:
    queries = load_postgres_queries()
    tables = [name for name in queries if name.startswith("create_") and name.endswith("_table")]
    tables = sorted({*tables} - {"create_wfe_sql_store_table"}, key=lambda name: name != "create_workflows_table")
    made = [queries[name].sql.partition(";")[0].replace(' COLLATE "C"', "") for name in tables]
    by_hand(f"CREATE SCHEMA {schema}", *made)
    by_hand(
        "INSERT INTO workflows (id, name, definition_id, version, status, create_time)"
        " SELECT id, id, 'd', 1, 'Complete', now() FROM unnest(ARRAY['b', 'A', 'a', 'B']) AS listed (id)",
        "INSERT INTO execution_pointers (id, workflow_id, step_id, status) SELECT id, id, 1, 'Complete' FROM workflows",
    )
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        assert [line.count('"table":"workflows"') for line in await dump(provider)] == [1] * 4 + [0] * 4
        assert await provider.check() == []
    columns = (
        "SELECT attrelid::regclass::text, attname, collname FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid"
        " JOIN pg_collation ON attcollation = pg_collation.oid"
        " WHERE relnamespace = {}::regnamespace AND attnum > 0 ORDER BY relname, attname"
    )
    upgraded = by_hand(columns.format(f"'{schema}'"))
    by_hand(f"DROP SCHEMA {schema} CASCADE")
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        assert by_hand(columns.format(f"'{schema}'")) == upgraded


# what the server counts, and what makes it slow


async def test_what_queries_cost(provider: PostgresPersistenceProvider, by_hand: ByHand, schema: str) -> None:
    """A view replaces the extension's, with statements in the server's form."""
    with pytest.raises(StoreError, match="CREATE EXTENSION pg_stat_statements"):
        await provider.query_stats()
    by_hand(
        "CREATE VIEW pg_stat_statements AS SELECT oid AS dbid, query, calls, total_exec_time, rows, shared_blks_hit, "
        "shared_blks_read FROM pg_database, (VALUES ('/* get_event */ SELECT $1', 3::bigint, 6::float8, 2::bigint, "
        "5::bigint, 1::bigint), ('/* get_event */ SELECT $1, $2', 1, 2, 1, 0, 0), "
        "('/* persist */ UPDATE', 1, 50, 1, 0, 0), "
        "('SELECT 1', 1, 1, 1, 1, 1)) AS v (query, calls, total_exec_time, rows, shared_blks_hit, shared_blks_read)"
    )
    assert await provider.query_stats() == [
        QueryStats(name="persist", calls=1, mean_ms=50.0, rows=1, buffers=0),
        QueryStats(name="get_event", calls=4, mean_ms=2.0, rows=3, buffers=6),
    ]
    by_hand("DROP VIEW pg_stat_statements")  # other stores of the database would find it


async def test_the_server_sees_who_calls_and_what(postgres_url: str, schema: str, by_hand: ByHand) -> None:
    seen = "SELECT application_name, split_part(query, ' ', 2) FROM pg_stat_activity WHERE application_name LIKE %s"
    for host, name in (
        (PostgresPersistenceProvider(postgres_url, schema=schema), "wfe-sql"),
        (PostgresPersistenceProvider(postgres_url, schema=schema, application_name="a host"), "a host"),
        (
            PostgresPersistenceProvider(
                make_conninfo(postgres_url, application_name="of the URL"), schema=schema, application_name="other"
            ),
            "of the URL",
        ),
    ):
        async with host:
            await host.next_definition_sequence("order")
            with psycopg.connect(postgres_url) as administrator:
                assert (name, "next_definition_sequence_group") in administrator.execute(seen, [name]).fetchall()


async def test_values_stay_out_of_the_servers_log(postgres_url: str, schema: str) -> None:
    """Even if the server is configured to log them with errors."""
    url = make_conninfo(postgres_url, options="-c log_parameter_max_length_on_error=-1")
    store = PostgresStore(
        PostgresTarget(url, timedelta(seconds=10)), load_postgres_queries(), schema=schema, statement_timeout=None
    )
    connection = await store.open_connection()
    cursor = await connection.execute("SHOW log_parameter_max_length_on_error")
    assert await cursor.fetchone() == ("0",)
    await connection.close()


async def test_who_keeps_an_old_snapshot(postgres_url: str, schema: str) -> None:
    """A person's transaction that has been open for longer than the check allows."""
    with psycopg.connect(make_conninfo(postgres_url, application_name="psql")) as left_open:
        left_open.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        left_open.execute("SELECT 1")
        for ahead, found in ((timedelta(), []), (timedelta(hours=1), [FindingKind.OldSnapshot])):
            clock = ManualClock(utc_now() + ahead)
            async with PostgresPersistenceProvider(postgres_url, schema=schema, clock=clock) as provider:
                findings = await provider.check()
                assert [finding.kind for finding in findings] == found
                assert all(
                    f"session {left_open.info.backend_pid} of postgres (psql) keeps" in f.message for f in findings
                )
