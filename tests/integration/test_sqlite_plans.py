"""What the header of each query says about its plan is what SQLite does, on a store with data, old statistics or none.

https://sqlite.org/eqp.html
"""

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    ScheduledCommand,
    SqlitePersistenceProvider,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.backends import load_sqlite_queries
from wfe_sql.queries import Query

REFERENCE = Path(__file__).parents[1] / "data" / "wfe-sqlite-1.11.4.db"
START = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
LIVE = 12
"""One workflow, event and subscription in so many is not done yet."""

QUERIES = load_sqlite_queries()
PLANNED = [
    name
    for name, query in QUERIES.items()
    if query.operation != "#" and re.match(r"SELECT|INSERT|REPLACE|UPDATE|DELETE|WITH|VALUES", query.sql)
]
INDEXES = sorted({index for query in QUERIES.values() for index in query.index if index.startswith("idx_")})

PARAMS: dict[str, str | int] = {
    "ids": json.dumps(["workflow-1", "workflow-2", "workflow-3"]),
    "id": "workflow-1",
    "workflow_id": "workflow-1",
    "event_name": "paid",
    "event_key": "order-7",
    "as_of": (START + timedelta(hours=1)).isoformat(),
    "now": (START + timedelta(hours=1)).isoformat(),
    "row_limit": 100,
}


async def _fill(path: Path) -> None:
    """Store what a host has after a while: most of it is done."""
    async with SqlitePersistenceProvider(path) as provider:
        await asyncio.gather(*(_run_workflow(provider, number) for number in range(400)))


async def _run_workflow(provider: SqlitePersistenceProvider, number: int) -> None:
    at = START + timedelta(seconds=number)
    definition = f"definition-{number % 5}"
    workflow = WorkflowInstance(
        id=f"workflow-{number}",
        name=f"{definition}-{await provider.next_definition_sequence(definition)}",
        workflow_definition_id=definition,
        version=1,
        data={"number": number},
        execution_pointers=[ExecutionPointer(step_id=step) for step in range(4)],
        next_execution=number,
        create_time=at,
    )
    subscription = EventSubscription(
        workflow_id=workflow.id,
        step_id=1,
        execution_pointer_id=workflow.execution_pointers[1].id,
        event_name="paid" if number % 3 else "shipped",
        event_key=f"order-{number % 50}",
        subscribe_as_of=at,
    )
    event = Event(
        event_name=subscription.event_name, event_key=subscription.event_key, event_data=number, event_time=at
    )
    error = ExecutionError(
        workflow_id=f"workflow-{number % 40}", execution_pointer_id="pointer", message="no", error_time=at
    )
    await provider.create_new_workflow(workflow)
    await provider.persist_workflow_with_subscriptions(workflow, [subscription])
    await provider.create_event(event)
    await provider.persist_errors([error])
    await provider.schedule_command(ScheduledCommand.process_workflow(workflow.id, number))
    if number % LIVE != 0:
        workflow.status, workflow.next_execution, workflow.complete_time = WorkflowStatus.Complete, None, at
        await provider.persist_workflow(workflow)
        await provider.terminate_subscription(subscription.id)
        await provider.mark_event_processed(event.id)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "filled.db"
    asyncio.run(_fill(path))
    return path


@pytest.fixture(scope="module", params=["no statistics", "statistics"])
def store(request: pytest.FixtureRequest, filled: Path) -> Iterator[sqlite3.Connection]:
    path = shutil.copy(filled, filled.with_name(f"{request.param}.db"))
    if request.param == "statistics":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ANALYZE")
    # SQLite does not prepare an EXPLAIN again when the schema changed, so none may be cached.
    with closing(sqlite3.connect(path, isolation_level=None, cached_statements=0)) as connection:
        yield connection


def _plan(store: sqlite3.Connection, query: Query) -> list[str]:
    params = {param: PARAMS.get(param, 1) for param in query.params}
    return [detail for _, _, _, detail in store.execute(f"EXPLAIN QUERY PLAN {query.sql}", params)]


def _indexes(plan: list[str]) -> set[str]:
    return set(re.findall(r"USING .*?(INTEGER PRIMARY KEY|(?<=INDEX )\w+)", "\n".join(plan)))


def _complaints(plan: list[str], query: Query) -> list[str]:
    """Return what the plan does otherwise than the query's header says."""
    made_by_the_plan = {line.split()[1] for line in plan if line.startswith(("MATERIALIZE ", "CO-ROUTINE "))}
    scans = [
        line
        for line in plan
        if (scan := re.match(r"SCAN (?:TABLE )?(\S+)|SEARCH (?:TABLE )?\S+$", line))
        and not re.search(r"VIRTUAL TABLE|CONSTANT ROW", line)
        and scan[1] not in made_by_the_plan
    ]
    sorts = [line for line in plan if re.match(r"USE TEMP B-TREE FOR .*ORDER BY", line)]
    if query.scan is not None:
        return [] if scans or sorts else ["'scan:' in the header, but nothing is scanned or sorted"]
    wrong = [f"{line}, without 'scan:' in the header" for line in scans + sorts]
    if (indexes := _indexes(plan)) != set(query.index):
        wrong.append(
            f"'index: {', '.join(query.index) or 'none'}' in the header, but it is {sorted(indexes) or 'none'}"
        )
    return wrong


def test_there_are_plans_to_look_at() -> None:
    assert {"get_runnable_instances", "claim_commands", "persist_workflow", "persist_errors"} <= set(PLANNED)
    assert "idx_workflows_runnable" in INDEXES


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_is_what_the_header_says(store: sqlite3.Connection, name: str) -> None:
    query = QUERIES[name]
    if name == "list_statistics" and store.execute(QUERIES["has_statistics"].sql).fetchone() == (0,):
        pytest.skip("the table of statistics is made with the first of them")
    plan = _plan(store, query)
    wrong = _complaints(plan, query)
    assert not wrong, "\n".join([query.place, *wrong, "the plan:", *plan])


@pytest.mark.parametrize("name", sorted(set(QUERIES) - set(PLANNED)))
def test_what_has_no_plan_names_no_index(name: str) -> None:
    assert QUERIES[name].index == ()


@pytest.mark.parametrize("index", INDEXES)
def test_a_lost_index_is_seen_in_every_plan_that_names_it(store: sqlite3.Connection, index: str) -> None:
    queries = [query for query in QUERIES.values() if index in query.index]
    store.execute("BEGIN")
    try:
        store.execute(f"DROP INDEX {index}")
        unseen = [query.place for query in queries if not _complaints(_plan(store, query), query)]
    finally:
        store.execute("ROLLBACK")
    assert not unseen


def test_every_index_beyond_the_reference_s_is_used(store: sqlite3.Connection) -> None:
    names = "SELECT name FROM sqlite_master WHERE type = 'index'"
    with closing(sqlite3.connect(f"{REFERENCE.as_uri()}?mode=ro&immutable=1", uri=True)) as reference:
        ours = set(store.execute(names)) - set(reference.execute(names))
    assert ours
    assert sorted(name for (name,) in ours if name not in INDEXES) == []


@pytest.mark.parametrize(
    ("sql", "indexes", "wrong"),
    [
        ("SELECT id FROM workflows WHERE id = 'x'", {"sqlite_autoindex_workflows_1"}, 0),
        ("SELECT id FROM scheduled_commands WHERE id = 1", {"INTEGER PRIMARY KEY"}, 0),
        ("SELECT value FROM json_each('[1]')", set(), 0),
        ("WITH one AS MATERIALIZED (SELECT 1 AS id) SELECT id FROM one", set(), 0),
        (
            "SELECT id FROM workflows WHERE id IN (SELECT value FROM json_each('[]'))",
            {"sqlite_autoindex_workflows_1"},
            0,
        ),
        ("INSERT INTO definition_sequences VALUES ('x', 1)", set(), 0),
        ("SELECT count(data) FROM workflows", set(), 1),
        ("SELECT data FROM workflows AS w ORDER BY data", set(), 2),
        ("SELECT id FROM events ORDER BY event_time, event_data", {"idx_events_event_time"}, 2),
        ("DELETE FROM events WHERE event_data = 'x'", set(), 1),
        (
            "SELECT data FROM workflows WHERE id > (SELECT min(event_data) FROM events)",
            {"sqlite_autoindex_workflows_1"},
            1,
        ),
    ],
)
def test_scans_and_sorts_are_seen(store: sqlite3.Connection, sql: str, indexes: set[str], wrong: int) -> None:
    query = Query("probe", (), "", "Probes.", ("run",), tuple(indexes), None, sql, "probe.sql", 1)
    plan = _plan(store, query)
    assert _indexes(plan) == indexes
    assert len(_complaints(plan, query)) == wrong
