"""A pooler between a provider and the server: PgBouncer in each of its modes."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolers import pooler
from wfe_sql import PostgresPersistenceProvider, ScheduledCommand, SerializationError, StoreError, WorkflowInstance
from wfe_sql.backends import load_postgres_queries
from wfe_sql.engines.postgres.plans import open_postgres_planner
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.testing import full_event, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

LEFT_BEHIND = """
    SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN (
        'application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'IntervalStyle'
    )
    UNION ALL SELECT 'prepared', name FROM pg_prepared_statements WHERE from_sql OR name NOT LIKE 'PGBOUNCER%%'
    UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'setting', 'wfe_sql.schema' WHERE current_setting('wfe_sql.schema', true) IS NOT NULL
"""


@pytest.fixture(
    scope="module", params=["transaction", "transaction, tracked", pytest.param("session", marks=pytest.mark.slow)]
)
def pooled_url(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    mode, _, tracked = request.param.partition(", ")
    with pooler(postgres_url, mode, prepared=200 if tracked else 0) as url:
        yield url


@pytest.fixture(scope="module")
def transaction_url(postgres_url: str) -> Iterator[str]:
    with pooler(postgres_url, "transaction", size=3) as url:
        yield url


async def test_two_stores_with_two_hosts_each(pooled_url: str, new_schema: Callable[[], str]) -> None:
    """Each host writes to its own schema, and no number is used twice."""
    schemas = [new_schema(), new_schema()]
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(PostgresPersistenceProvider(pooled_url, schema=schema))
            for schema in schemas * 2
        ]

        async def work(host: PostgresPersistenceProvider, number: int) -> list[int]:
            drawn = []
            for step in range(30):
                drawn.append(await host.next_definition_sequence("order"))
                await host.create_new_workflow(sample_instance(id=f"{number}-{step}"))
                assert (await host.get_workflow_instance(f"{number}-{step}")).id == f"{number}-{step}"
            return drawn

        drawn = await asyncio.gather(*(work(host, number) for number, host in enumerate(hosts * 4)))
        for store in range(2):
            assert sorted(n for numbers in drawn[store::2] for n in numbers) == list(range(1, 8 * 30 + 1))
            assert len(await hosts[store].get_runnable_instances(TIME + timedelta(days=9999))) == 8 * 30


async def test_nothing_of_ours_stays_on_a_servers_connection(transaction_url: str, schema: str) -> None:
    async with PostgresPersistenceProvider(transaction_url, schema=schema) as host:
        await asyncio.gather(*(host.create_event(full_event(id=f"e{n}")) for n in range(50)))
        await asyncio.gather(*(host.get_runnable_events(TIME) for _ in range(50)))
        await host.check()
        with pytest.raises(SerializationError):
            await host.get_workflow_instance_by_name("\0")
    # PgBouncer before 1.21 may keep a connection for a client that no longer uses it, until that client disconnects.
    held = [psycopg.connect(transaction_url) for _ in range(3)]
    try:
        for other in held:
            assert other.execute(LEFT_BEHIND).fetchall() == []
            assert "public" in other.execute("SHOW search_path").fetchall()[0][0]
    finally:
        for other in held:
            other.close()


async def test_a_call_takes_one_round_trip(transaction_url: str, schema: str, make_relay: Any) -> None:
    relay = await make_relay(transaction_url)
    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=1) as host:
        await host.create_event(full_event(id="e1"))
        before = relay.round_trips
        await host.get_event("e1")
        await host.next_definition_sequence("order")
        assert relay.round_trips - before == 2


async def test_a_unit_takes_one_round_trip(transaction_url: str, schema: str, make_relay: Any) -> None:
    relay = await make_relay(transaction_url)
    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=1) as host:
        await host.create_event(full_event(id="e1"))
        instance = sample_instance()
        before = relay.round_trips
        async with host.unit() as unit:
            unit.create_new_workflow(instance)
            unit.mark_event_processed("e1")
            unit.schedule_command(ScheduledCommand.process_workflow(instance.id, 1))
            unit.create_event_subscription(full_subscription())
        assert relay.round_trips - before == 1
        instance.data = "new"
        async with host.unit() as unit:
            unit.persist_workflow(instance)
            unit.mark_event_unprocessed("e1")
        assert relay.round_trips - before == 2


async def test_what_is_not_a_call_of_a_host(transaction_url: str, schema: str) -> None:
    """Snapshots, and opening a store that exists, see the right schema too."""
    async with PostgresPersistenceProvider(transaction_url, schema=schema) as host:
        await host.create_new_workflow(WorkflowInstance(id="w1", workflow_definition_id="d", version=1, data=None))
        await host.ensure_store_exists()
        await host.update_statistics()
        assert (await host.stats()).rows["workflows"] == 1
    async with PostgresPersistenceProvider(transaction_url, schema=schema) as again:
        assert (await again.get_workflow_instance("w1")).id == "w1"


async def test_plans_and_tuned_queries(transaction_url: str, schema: str, tmp_path: Path) -> None:
    """Looking at queries without running them finds the store's tables, and keeps nothing."""
    async with PostgresPersistenceProvider(transaction_url, schema=schema):
        pass
    own = load_postgres_queries()
    (tmp_path / "events.sql").write_text(own["get_event_group"].text.replace("AS event ON", "AS event\nON"))
    async with PostgresPersistenceProvider(transaction_url, schema=schema, sql_dir=tmp_path) as host:
        await host.create_event(full_event(id="e1"))

    def explain() -> list[Any]:
        target = PostgresTarget(transaction_url, timedelta(seconds=10))
        with open_postgres_planner(target, own, schema=schema) as planner:
            assert "events" in planner.survey().rows
            return [planner.explain(own["get_event_group"]).indexes for _ in range(20)]

    assert await asyncio.to_thread(explain) == [{"events_pkey"}] * 20
    with psycopg.connect(transaction_url) as other:
        assert other.execute(LEFT_BEHIND).fetchall() == []


async def test_a_pool_of_one(postgres_url: str, schema: str) -> None:
    with pooler(postgres_url, "transaction", size=1) as url:
        async with PostgresPersistenceProvider(url, schema=schema) as host:
            drawn = await asyncio.gather(*(host.next_definition_sequence("order") for _ in range(50)))
            assert sorted(drawn) == list(range(1, 51))


async def test_statement_mode_is_refused(postgres_url: str, schema: str) -> None:
    with (
        pooler(postgres_url, "statement") as url,
        pytest.raises(
            StoreError, match="behind a pooler that does not support transactions; set its pool_mode to transaction"
        ),
    ):
        await PostgresPersistenceProvider(url, schema=schema).open()
