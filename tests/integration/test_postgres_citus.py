"""What Citus requires of the queries, and how its errors are read, as far as a server without it can show."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands import run_command
from servers import with_option
from wfe_sql import (
    PostgresPersistenceProvider,
    ScheduledCommand,
    StoreUnavailableError,
    WorkflowAlreadyExistsError,
)
from wfe_sql.backends import load_postgres_queries
from wfe_sql.testing import ManualClock, full_event, full_instance, full_subscription, sample_instance
from wfe_sql.testing.samples import TIME

LEASE = timedelta(minutes=1)
QUERIES = load_postgres_queries()


def test_no_query_has_a_form_that_citus_refuses() -> None:
    for query in QUERIES.values():
        for updated in re.findall(r"DO UPDATE\s+SET(.*?)(?:RETURNING|;|\n\))", query.sql, re.DOTALL):
            assert "SELECT" not in updated.upper(), f"{query.place}: a subquery in DO UPDATE SET"
        for returned in re.findall(r"RETURNING\b(.*?)(?:;|\n\)|\Z)", query.sql, re.DOTALL):
            assert "(" not in returned, f"{query.place}: a function in RETURNING"
        if query.operation == "#" and "position BIGINT" in query.sql:
            table = r"CREATE TABLE IF NOT EXISTS execution_pointers \([^;]*\n    position BIGINT"
            assert re.search(table, query.sql), query.place


def test_a_schema_is_distributed_as_printed(postgres_url: str, schema: str, admin: Callable[..., Any]) -> None:
    readme = Path(__file__).parents[2] / "sql" / "postgres" / "README.md"
    (block,) = re.findall(r"```sql\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    command, *statements = block.replace("'wfc'", f"'{schema}'").splitlines()
    assert command == "-- wfe-sql init postgresql://wfe@coordinator/wfe?schema=wfc"
    assert run_command("init", with_option(postgres_url, f"schema={schema}")).code == 0
    if not admin("has_citus"):
        pytest.skip("the rest needs Citus, which the server does not have")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def planned_anew(tmp_path: Path) -> Path:
    """A folder with a version of set_up_connection that lets the server plan for each value, as on Citus."""
    text = QUERIES["set_up_connection"].text
    assert text.count("'force_generic_plan'") == 1
    (tmp_path / "connection.sql").write_text(text.replace("'force_generic_plan'", "'force_custom_plan'"))
    return tmp_path


@pytest.mark.parametrize("mode", ["auto", pytest.param("force_custom_plan", marks=pytest.mark.slow)])
async def test_queries_need_no_generic_plan(postgres_url: str, schema: str, planned_anew: Path, mode: str) -> None:
    tuned = planned_anew / "connection.sql"
    tuned.write_text(tuned.read_text().replace("force_custom_plan", mode))
    async with PostgresPersistenceProvider(
        postgres_url, schema=schema, clock=ManualClock(), sql_dir=planned_anew
    ) as provider:
        instances = [full_instance(id=f"w{n}", name=f"w{n}", status="Runnable", next_execution=0) for n in range(12)]
        for instance in instances:
            await provider.create_new_workflow(instance)
            instance.execution_pointers[0].retry_count += 1
            await provider.persist_workflow_with_subscriptions(instance, [full_subscription()])
            instance.execution_pointers.reverse()
            await provider.persist_workflow(instance)
            await provider.create_event(full_event(id=instance.id, is_processed=False))
            await provider.mark_event_processed(instance.id)
            await provider.mark_event_unprocessed(instance.id)
            await provider.schedule_command(ScheduledCommand.process_workflow(instance.id, 5))
            async with provider.unit() as unit:
                unit.persist_workflow(instance)
                unit.mark_event_unprocessed(instance.id)
                unit.subscribe(full_subscription())
        assert await provider.get_workflow_instances([instance.id for instance in instances]) == instances
        assert len(await provider.get_subscriptions("paid", "k1", TIME)) == 24
        for claims in (
            await provider.claim_runnable_instances(TIME, "one", lease=LEASE, limit=12),
            await provider.claim_runnable_events(TIME, "one", lease=LEASE, limit=12),
        ):
            assert len(claims) == 12
            for claim in claims:
                async with provider.unit(claim) as unit:
                    unit.persist_errors([])
                await provider.release_claim(await provider.renew_claim(claim, LEASE))
        handled = []

        async def handle(command: ScheduledCommand) -> None:
            handled.append(command.data)

        await provider.process_commands(TIME, handle)
        assert sorted(handled) == sorted(instance.id for instance in instances)
        assert [await provider.next_definition_sequence("a") for _ in range(10)] == list(range(1, 11))


@pytest.fixture
def raised_by_worker(postgres_url: str, schema: str) -> Callable[..., None]:
    """A function that makes each new workflow, or persist, fail with an error that has only a message."""

    def raise_(event: str, code: str, message: str) -> None:
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as connection:
            connection.execute(
                f"""
                CREATE OR REPLACE FUNCTION {schema}.raised() RETURNS TRIGGER LANGUAGE plpgsql AS $$
                BEGIN
                    RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = '{message}';
                END
                $$;
                CREATE OR REPLACE TRIGGER raised BEFORE {event} ON workflows EXECUTE FUNCTION {schema}.raised()
                """
            )

    return raise_


@pytest.mark.parametrize("code", ["23505", "XX000"])
@pytest.mark.parametrize(
    ("constraint", "said"), [("workflows_pkey_102022", "id 'w'"), ("workflows_name_key_102022", "name 'n'")]
)
async def test_a_constraint_of_a_shard_is_known_from_the_message(
    postgres_url: str, schema: str, raised_by_worker: Callable[..., None], code: str, constraint: str, said: str
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        raised_by_worker("INSERT", code, f'duplicate key value violates unique constraint "{constraint}"')
        with pytest.raises(WorkflowAlreadyExistsError, match=said):
            await provider.create_new_workflow(sample_instance(id="w", name="n"))


@pytest.mark.parametrize(
    "message",
    [
        "failure on connection marked as essential: worker:5432",
        "server closed the connection unexpectedly",
        "failed to COPY to shard 102022",
        "could not find the intermediate result file",
    ],
)
async def test_a_lost_worker_is_a_store_that_is_unavailable(
    postgres_url: str, schema: str, raised_by_worker: Callable[..., None], message: str
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        raised_by_worker("INSERT", "XX000", message)
        with pytest.raises(StoreUnavailableError, match="has lost a worker"):
            await provider.create_new_workflow(sample_instance())
