"""Schemas of PostgreSQL: the reference's, older ones, those of others, and roles with few privileges."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import wfe_sql
from wfe_sql import (
    PostgresPersistenceProvider,
    SerializationError,
    StoreError,
    StoreUnavailableError,
    StoreVersionError,
    WorkflowAlreadyExistsError,
)
from wfe_sql.engines.postgres.store import check_server_version
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription, sample_instance

REFERENCE = (Path(__file__).parent.parent / "data" / "wfe-postgres-1.11.4.sql").read_text(encoding="utf-8")
"""What the reference runs on an empty schema, and on an existing one."""

RunSql = Callable[..., list[Any]]


@pytest.fixture
def run_sql(postgres_url: str) -> RunSql:
    """A function that runs SQL with a schema as the search path."""

    def run(schema: str, sql: str) -> list[Any]:
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"SET client_min_messages = warning; SET search_path TO {schema}")
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def reference_schema(schema: str, run_sql: RunSql) -> str:
    """A schema of the reference, with a workflow of two pointers."""
    run_sql("public", f"CREATE SCHEMA {schema}")
    run_sql(schema, REFERENCE)
    run_sql(
        schema,
        """
        INSERT INTO workflows (id, name, definition_id, version, status, create_time)
        VALUES ('w1', 'order-1', 'order', 1, 'Runnable', '2026-05-28 20:26:40.5+02');
        INSERT INTO execution_pointers (id, workflow_id, step_id, status)
        VALUES ('z', 'w1', 0, 'Complete'), ('a', 'w1', 1, 'Pending');
        INSERT INTO definition_sequences (definition_id, next_num) VALUES ('order', 7)
        """,
    )
    return schema


def describe(run_sql: RunSql, schema: str) -> set[Any]:
    """Return what must be equal in two schemas: columns, constraints, indexes, triggers."""
    columns = f"""
        SELECT table_name, column_name, data_type, is_nullable, is_identity,
            regexp_replace(column_default, '.*nextval.*', 'next')
        FROM information_schema.columns WHERE table_schema = '{schema}'"""
    constraints = f"""
        SELECT conname, conrelid::regclass::text, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace"""
    indexes = f"""
        SELECT tablename, replace(replace(indexdef, '{schema}', ''), ' COLLATE "C"', '')
        FROM pg_indexes WHERE schemaname = '{schema}'"""
    triggers = f"""
        SELECT tgname, pg_get_triggerdef(pg_trigger.oid, true)
        FROM pg_trigger INNER JOIN pg_class ON tgrelid = pg_class.oid
        WHERE NOT tgisinternal AND relnamespace = '{schema}'::regnamespace"""
    return {row for query in (columns, constraints, indexes, triggers) for row in run_sql(schema, query)}


async def test_a_schema_of_the_reference_is_continued(
    postgres_url: str, reference_schema: str, run_sql: RunSql, new_schema: Callable[[], str]
) -> None:
    fresh = new_schema()
    async with PostgresPersistenceProvider(postgres_url, schema=fresh) as provider:
        assert await provider.check() == []
    async with PostgresPersistenceProvider(postgres_url, schema=reference_schema) as provider:
        instance = await provider.get_workflow_instance_by_name("order-1")
        assert [pointer.id for pointer in instance.execution_pointers] == ["z", "a"]
        instance.execution_pointers.reverse()
        await provider.persist_workflow(instance)
        assert await provider.get_workflow_instance("w1") == instance
        assert await provider.next_definition_sequence("order") == 8
    assert describe(run_sql, reference_schema) == describe(run_sql, fresh)


async def test_the_reference_works_on_a_schema_of_ours(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        instance = full_instance(id="w1")
        await provider.create_new_workflow(instance)
        before = describe(run_sql, schema)
        run_sql(schema, REFERENCE)
        assert describe(run_sql, schema) == before
        run_sql(schema, "UPDATE workflows SET status = 'Complete', last_heartbeat_at = now() WHERE id = 'w1'")
        run_sql(schema, "DELETE FROM execution_pointers WHERE workflow_id = 'w1'")
        pointers = ", ".join(f"('{pointer.id}', 'w1', 1, 'Complete')" for pointer in instance.execution_pointers)
        run_sql(schema, f"INSERT INTO execution_pointers (id, workflow_id, step_id, status) VALUES {pointers}")
        loaded = await provider.get_workflow_instance("w1")
        assert loaded.status == "Complete"
        assert [pointer.id for pointer in loaded.execution_pointers] == [
            pointer.id for pointer in instance.execution_pointers
        ]


@pytest.mark.parametrize("token", [None, "held"])
async def test_the_reference_does_not_find_what_was_terminated(
    postgres_url: str, schema: str, run_sql: RunSql, token: str | None
) -> None:
    """It deletes subscriptions that it terminates, and checks only whether a subscription has a token."""
    found_by_the_reference = "SELECT id FROM event_subscriptions WHERE event_name = 'paid' AND external_token IS NULL"
    free = full_subscription(id="free", external_token=None)
    ended = full_subscription(id="ended", external_token=token)
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        for subscription in (free, ended):
            await provider.create_event_subscription(subscription)
        await provider.terminate_subscription("ended")
        assert run_sql(schema, found_by_the_reference) == [("free",)]
        assert await provider.get_subscription("ended") == ended
        if token is not None:
            await provider.clear_subscription_token("ended", token)
            assert run_sql(schema, found_by_the_reference) == [("free",)]
            assert (await provider.get_subscription("ended")).external_token is None


async def test_a_schema_from_before_names(
    postgres_url: str, reference_schema: str, run_sql: RunSql, new_schema: Callable[[], str]
) -> None:
    run_sql(
        reference_schema,
        """
        ALTER TABLE workflows DROP COLUMN name, DROP COLUMN root_workflow_id, DROP COLUMN last_heartbeat_at;
        DROP TABLE definition_sequences
        """,
    )
    async with PostgresPersistenceProvider(postgres_url, schema=reference_schema) as provider:
        instance = await provider.get_workflow_instance_by_name("w1")
        assert (instance.name, len(instance.execution_pointers)) == ("w1", 2)
        with pytest.raises(WorkflowAlreadyExistsError, match="name 'w1'"):
            await provider.create_new_workflow(sample_instance(name="w1"))
    fresh = new_schema()
    async with PostgresPersistenceProvider(postgres_url, schema=fresh):
        assert describe(run_sql, reference_schema) == describe(run_sql, fresh)


async def test_names_that_may_be_missing_are_filled_in(
    postgres_url: str, reference_schema: str, run_sql: RunSql
) -> None:
    run_sql(
        reference_schema,
        """
        ALTER TABLE workflows ALTER COLUMN name DROP NOT NULL, DROP CONSTRAINT workflows_name_key;
        UPDATE workflows SET name = NULL
        """,
    )
    async with PostgresPersistenceProvider(postgres_url, schema=reference_schema) as provider:
        assert (await provider.get_workflow_instance_by_name("w1")).id == "w1"


async def test_tables_of_another_application(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    run_sql("public", f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.events (id INT, what TEXT)")
    before = describe(run_sql, schema)
    with pytest.raises(StoreVersionError, match="has a table events that does not belong to a workflow store"):
        await PostgresPersistenceProvider(postgres_url, schema=schema).open()
    assert describe(run_sql, schema) == before


async def test_a_store_of_a_later_version(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        run_sql(schema, "UPDATE wfe_sql_store SET version = 2")
    with pytest.raises(StoreVersionError, match="version 2, made by a later wfe-sql"):
        await PostgresPersistenceProvider(postgres_url, schema=schema).open()


async def test_a_store_whose_version_is_gone_has_it_again(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        run_sql(schema, "DELETE FROM wfe_sql_store")
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        assert run_sql(schema, "SELECT version FROM wfe_sql_store") == [(1,)]


@pytest.mark.parametrize(
    "schema", ["", "wfc; DROP TABLE x", "1wfc", "has space", "public.wfc", '"quoted"', "wfc--", "x" * 64, "wfc\n", "é"]
)
def test_names_that_no_schema_may_have(schema: str) -> None:
    with pytest.raises(StoreError, match="schema must be a plain name"):
        PostgresPersistenceProvider("postgresql:///x", schema=schema)


async def test_a_schema_is_known_by_its_case(postgres_url: str, schema: str, run_sql: RunSql) -> None:
    mixed = f"Mixed_{schema}"
    try:
        async with PostgresPersistenceProvider(postgres_url, schema=mixed) as provider:
            await provider.create_new_workflow(sample_instance())
        assert run_sql("public", f'SELECT count(*) FROM "{mixed}".workflows') == [(1,)]
    finally:
        run_sql("public", f'DROP SCHEMA IF EXISTS "{mixed}" CASCADE')


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_connections": 0}, "max_connections must be at least 1"),
        ({"connect_timeout": timedelta(0)}, "connect_timeout must be above zero"),
        ({"statement_timeout": timedelta(0)}, "statement_timeout must be at least a millisecond"),
        ({"wait_for_server": timedelta(seconds=-1)}, "wait_for_server must not be negative"),
        ({"on_conflict": "ignore"}, "on_conflict must be"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        PostgresPersistenceProvider("postgresql:///x", **options)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_connect_picks_it_by_the_scheme(postgres_url: str, schema: str, scheme: str) -> None:
    url = scheme + postgres_url.removeprefix("postgresql")
    async with wfe_sql.connect(url, schema=schema) as provider:
        assert isinstance(provider, PostgresPersistenceProvider)
        assert await provider.next_definition_sequence("a") == 1


# passwords


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://somebody:S3cr%2Ft@127.0.0.1:1/x",
        "postgresql://somebody:S3cr%2Ft@127.0.0.1:port/x",
        "postgresql://somebody:S3cr%2Ft@nowhere.invalid/x",
        "postgresql://somebody:S3cr/t@127.0.0.1/x",
        "postgresql://somebody:pass@S3cr@127.0.0.1/x",
        "postgresql://somebody:pass?S3cr@127.0.0.1/x",
        "postgresql://somebody:1/S3cr@127.0.0.1/x",
        "postgresql://somebody:pass word:S3cr@127.0.0.1:x/x",
        "postgresql://somebody:S3cr%2Ft@127.0.0.1/x?nonsense=1",
    ],
)
async def test_the_password_never_shows(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError) as caught:
        await PostgresPersistenceProvider(url).open()
    shown = [caplog.text]
    error: BaseException | None = caught.value
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "S3cr" not in "".join(shown)


async def test_a_user_that_is_unknown_is_said_to_be_that(postgres_url: str) -> None:
    url = make_conninfo(postgres_url, user=f"nobody_{uuid4().hex}", password="S3cret")
    provider = PostgresPersistenceProvider(url)
    with pytest.raises(StoreUnavailableError, match="nobody_") as caught:
        await provider.open()
    assert "S3cret" not in f"{caught.value} {caught.value.__cause__} {provider!r}"


# roles


@pytest.fixture
def role(postgres_url: str, schema: str) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"role_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'S3cret'")
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def url_of_role(postgres_url: str, role: str) -> str:
    return make_conninfo(postgres_url, user=role, password="S3cret")


async def test_a_role_that_may_not_make_the_schema(url_of_role: str, role: str, schema: str, run_sql: RunSql) -> None:
    with pytest.raises(StoreError, match=f"GRANT CREATE ON DATABASE .* TO {role}"):
        await PostgresPersistenceProvider(url_of_role, schema=schema).open()
    run_sql("public", f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {role}")
    with pytest.raises(StoreError, match=f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}"):
        await PostgresPersistenceProvider(url_of_role, schema=schema).open()
    run_sql("public", f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}")
    async with PostgresPersistenceProvider(url_of_role, schema=schema) as provider:
        await provider.create_new_workflow(sample_instance())


async def test_a_role_that_may_only_use_a_store(
    postgres_url: str, url_of_role: str, role: str, schema: str, run_sql: RunSql
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    with pytest.raises(StoreError, match=f"GRANT USAGE ON SCHEMA {schema} TO {role}"):
        await PostgresPersistenceProvider(url_of_role, schema=schema).open()
    run_sql("public", f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {schema}.wfe_sql_store TO {role}")
    async with PostgresPersistenceProvider(url_of_role, schema=schema) as provider:
        with pytest.raises(StoreError, match=f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}"):
            await provider.create_new_workflow(sample_instance())
    run_sql(
        "public",
        f"""
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}
        """,
    )
    async with PostgresPersistenceProvider(url_of_role, schema=schema) as provider:
        instance = full_instance()
        await provider.create_new_workflow(instance)
        await provider.schedule_command(wfe_sql.ScheduledCommand.process_workflow(instance.id, 0))
        await provider.persist_workflow(instance)
        assert await provider.get_workflow_instance(instance.id) == instance


# indexes and versions


async def test_a_missing_index_is_left_to_init(
    postgres_url: str, schema: str, run_sql: RunSql, caplog: pytest.LogCaptureFixture
) -> None:
    """Building it takes long on a large table, and blocks writers unless it is done concurrently."""
    has_index = "SELECT to_regclass('idx_workflows_runnable') IS NOT NULL"
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        run_sql(schema, "DROP INDEX idx_workflows_runnable")
    timeout = timedelta(milliseconds=500)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, statement_timeout=timeout) as provider:
        assert run_sql(schema, has_index) == [(False,)]
        assert "lacks indexes, so that queries are slow: idx_workflows_runnable; run wfe-sql init" in caplog.text
        await provider.create_new_workflow(sample_instance())
        await provider.ensure_store_exists()
        assert run_sql(schema, has_index) == [(True,)]


@pytest.mark.slow
async def test_an_index_is_built_while_hosts_write_and_without_the_statement_timeout(
    postgres_url: str, schema: str, run_sql: RunSql
) -> None:
    timeout = timedelta(milliseconds=200)
    async with PostgresPersistenceProvider(postgres_url, schema=schema, statement_timeout=timeout) as provider:
        run_sql(schema, "DROP INDEX idx_workflows_runnable")
        with psycopg.connect(postgres_url, options=f"-c search_path={schema}") as somebody:
            somebody.execute("INSERT INTO definition_sequences VALUES ('held', 1)")
            somebody.execute(
                "UPDATE workflows SET data = '1'"
            )  # building waits for transactions that wrote to the table
            building = asyncio.create_task(provider.ensure_store_exists())
            longer_than_allowed = """
                SELECT count(*) > 0 FROM pg_stat_activity
                WHERE query LIKE '%CREATE INDEX CONCURRENTLY%' AND pid <> pg_backend_pid()
                AND clock_timestamp() - query_start > INTERVAL '400 ms'"""
            while not run_sql("public", longer_than_allowed)[0][0]:
                assert not building.done()
                await asyncio.sleep(0)
            await provider.create_new_workflow(sample_instance())
        await building
        assert run_sql(schema, "SELECT to_regclass('idx_workflows_runnable') IS NOT NULL") == [(True,)]


async def test_an_index_whose_building_was_broken_off_is_built_anew(
    postgres_url: str, schema: str, run_sql: RunSql
) -> None:
    is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_events_unprocessed'::regclass"
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        run_sql(
            schema,
            "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'idx_events_unprocessed'::regclass",
        )
        assert "idx_events_unprocessed is invalid" in str(await provider.check())
        await provider.ensure_store_exists()
        assert run_sql(schema, is_valid) == [(True,)]
        assert await provider.check() == []


@pytest.mark.parametrize(("number", "name"), [(130_022, "13.22"), (120_000, "12.0"), (90_624, "9.6")])
def test_an_older_server_is_refused_by_name(number: int, name: str) -> None:
    with pytest.raises(StoreVersionError, match=f"the store is PostgreSQL {name}; wfe-sql works with 14 and later"):
        check_server_version("the store", number)


@pytest.mark.parametrize("number", [140_000, 180_004, 190_000])
def test_a_server_that_is_new_enough_is_taken(number: int) -> None:
    check_server_version("the store", number)


# texts that are too long for an index


LONG = "".join(chr(65 + (at * at) % 26) + str(at) for at in range(3_000))


async def test_a_text_that_is_too_long_for_an_index_is_refused_by_its_field(postgres_url: str, schema: str) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as provider:
        refused = {
            "WorkflowInstance.id": provider.create_new_workflow(sample_instance(id=LONG, name="n")),
            "WorkflowInstance.name": provider.create_new_workflow(sample_instance(name=LONG)),
            "ExecutionPointer.id": provider.create_new_workflow(
                sample_instance(execution_pointers=[full_pointer(id=LONG)])
            ),
            "Event.event_key": provider.create_event(full_event(event_key=LONG)),
            "EventSubscription.event_name": provider.create_event_subscription(full_subscription(event_name=LONG)),
            "definition_id": provider.next_definition_sequence(LONG),
            "ScheduledCommand.data": provider.schedule_command(wfe_sql.ScheduledCommand.process_workflow(LONG, 5)),
        }
        for field, call in refused.items():
            column = field.rpartition(".")[2]
            message = f"^{column} .*has {len(LONG):,} bytes, and an index entry can have at most about 2,700 bytes"
            with pytest.raises(SerializationError, match=message) as raised:
                await call
            assert raised.value.field == field
            assert len(str(raised.value)) < 300
        await provider.create_event(full_event(event_data=LONG))


async def test_a_copy_says_which_row_is_too_long(postgres_url: str, schema: str, tmp_path: Path) -> None:
    async with (
        wfe_sql.connect(tmp_path / "store.db") as source,
        PostgresPersistenceProvider(postgres_url, schema=schema) as target,
    ):
        for number in range(10):
            await source.create_event(full_event(id=f"e{number}", event_key="k" * 4_000 if number == 3 else "k"))
        await source.create_event(full_event(id="guilty", event_key=LONG))
        with pytest.raises(StoreError, match="nothing was copied.*event_key of id 'guilty' .* has [0-9,]+ bytes"):
            await source.copy_to(target)
