"""Tuned queries of PostgreSQL: a valid replacement is accepted, any other is refused when a store is opened."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from stores import tuned
from wfe_sql import PostgresPersistenceProvider, QueryFileError, StoreError
from wfe_sql.backends import load_postgres_queries
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import sample_instance

OWN = load_postgres_queries()
POLL = "get_runnable_instances"

Provide = Callable[[Path], PostgresPersistenceProvider]


@pytest.fixture
def provide(postgres_url: str, schema: str) -> Provide:
    """Return a provider, with a folder of tuned queries, of the test's schema."""
    return lambda folder: PostgresPersistenceProvider(postgres_url, schema=schema, sql_dir=folder)


async def _refusal(provider: PostgresPersistenceProvider) -> QueryFileError:
    with pytest.raises(QueryFileError) as caught:
        await provider.open()
    return caught.value


async def test_a_tuned_query_is_the_one_that_runs(tmp_path: Path, provide: Provide) -> None:
    folder = tuned(OWN, tmp_path / "sql", (POLL, "ORDER BY next_execution, id", "ORDER BY next_execution DESC, id"))
    async with provide(folder) as provider:
        for number in (1, 2):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=number))
        assert await provider.get_runnable_instances(ManualClock().now) == ["w2", "w1"]


@pytest.mark.slow
async def test_every_query_of_the_library_does_for_itself(tmp_path: Path, provide: Provide) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    text = "\n".join(query.text.replace(query.sql, f"-- tuned\n{query.sql}") for query in OWN.values())
    (folder / "all.sql").write_text(text, encoding="utf-8")
    assert load_postgres_queries(folder).tuned == set(OWN)
    for _ in ("a store that is made", "a store that exists"):
        async with provide(folder) as provider:
            assert await provider.get_workflow_instances(["x"]) == []


async def test_a_tuned_index_is_made_in_a_store_that_exists(
    tmp_path: Path, provide: Provide, postgres_url: str, schema: str
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    first = "CREATE INDEX IF NOT EXISTS idx_workflows_status"
    index = "CREATE INDEX IF NOT EXISTS idx_mine ON workflows (reference);"
    async with provide(tuned(OWN, tmp_path / "sql", ("create_workflows_table", first, f"{index}\n{first}"))):
        pass
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_indexes WHERE schemaname = %s AND indexname = 'idx_mine'", [schema]
        )
        assert found.fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        (POLL, "FROM workflows", "FORM workflows", 'PostgreSQL refuses it: syntax error at or near "workflows"'),
        (POLL, "FROM workflows", "FROM workflow", 'PostgreSQL refuses it: relation "workflow" does not exist'),
        (POLL, "status =", "state =", 'PostgreSQL refuses it: column "state" does not exist'),
        (POLL, "status =", "version =", "PostgreSQL refuses it: invalid input syntax for type integer"),
        (POLL, "SELECT id", "SELECT name", "must return the columns (id), not (name)"),
        (POLL, "SELECT id", "SELECT id, name", "must return the columns (id), not (id, name)"),
        (
            "get_subscription",
            "SELECT document",
            "SELECT document AS it",
            "must return the columns (document), not (it)",
        ),
        ("create_event_documents_view", "'event_key', event_key,", "", "event_documents.'event_key' is missing"),
        ("get_subscriptions_group", "units.unit, found.document", "found.document, unit", "must return the columns"),
        ("get_event_group", "units.unit, ", "", "must return the columns (unit, document), not (document)"),
        ("persist_errors", "VALUES (", "VALUES (1, ", "PostgreSQL refuses it: INSERT has more expressions"),
        ("begin_read", "ISOLATION", "ISOLATED", 'PostgreSQL refuses it: syntax error at or near "ISOLATED"'),
        ("explain_query", "EXPLAIN", "EXPLAINS", 'PostgreSQL refuses it: syntax error at or near "EXPLAINS"'),
        ("set_up_connection", "set_config('jit'", "set_configs('jit'", "PostgreSQL refuses it: function set_configs"),
        ("list_parts", "FROM pg_class", "FROM pg_klass", 'PostgreSQL refuses it: relation "pg_klass" does not exist'),
        (
            "create_events_table",
            "event_key TEXT",
            "event_key TEXT,,",
            'PostgreSQL refuses it: syntax error at or near ","',
        ),
        (
            "create_events_table",
            "ALTER TABLE events ADD COLUMN IF NOT EXISTS claim_worker_id TEXT;\n",
            "",
            "must make the columns that its original makes; events.claim_worker_id is missing",
        ),
    ],
)
async def test_what_does_not_do_for_the_original(
    tmp_path: Path, provide: Provide, name: str, old: str, new: str, why: str
) -> None:
    folder = tuned(OWN, tmp_path / "sql", (name, old, new))
    message = str(await _refusal(provide(folder)))
    assert message.startswith(f"{folder / 'mine.sql'}:3: query {name}: ")
    assert why in message
    assert "\n" not in message


async def test_a_refused_query_makes_no_store_and_postgres_s_error_is_the_cause(
    tmp_path: Path, provide: Provide, postgres_url: str, schema: str
) -> None:
    error = await _refusal(provide(tuned(OWN, tmp_path / "sql", ("create_events_table", "TEXT", "TEKST"))))
    assert isinstance(error.__cause__, psycopg.errors.UndefinedObject)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchall() == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (f"name: {POLL}(as_at, row_limit)", f"name: {POLL}(as_at)", "must keep the parameters"),
        (f"name: {POLL}", "name: get_runnable", "no query with this name to replace"),
        ("row_limit)", "row_limit)^", "must keep the parameters and the operation"),
    ],
)
def test_what_is_seen_without_a_server(tmp_path: Path, old: str, new: str, why: str) -> None:
    folder = tuned(OWN, tmp_path / "sql", (POLL, old, new))
    with pytest.raises(QueryFileError, match=why):
        PostgresPersistenceProvider("postgresql://nowhere/db", sql_dir=folder)


async def test_a_server_that_is_not_there_is_not_the_query_s_fault(tmp_path: Path) -> None:
    folder = tuned(OWN, tmp_path / "sql", (POLL, "SELECT id", "SELECT  id"))
    provider = PostgresPersistenceProvider(f"postgresql:///db?host={tmp_path}", sql_dir=folder)
    with pytest.raises(StoreError) as caught:
        await provider.open()
    assert not isinstance(caught.value, QueryFileError)
