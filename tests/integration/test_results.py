"""What each query returns and changes in a small store; a reviewer reads each row that changed.

To record what changed on purpose: pytest tests/integration/test_results.py --snapshot-update
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from dialects import CASES, Case, Store
from dialects.filling import fill_small
from dialects.results import changed_lines, run_and_describe
from wfe_sql.queries import Query
from wfe_sql.testing.clock import ManualClock

pytestmark = pytest.mark.usefixtures("dialects")

PLANNED = [
    pytest.param(case, query, id=f"{case.name}-{query.name}")
    for case in CASES
    for query in case.queries.values()
    if query.has_plan and query.name not in case.session
]
SCRIPTS = [
    pytest.param(case, query, id=f"{case.name}-{query.name}")
    for case in CASES
    for query in case.queries.values()
    if query.operation == "#"
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, dialects: None) -> Iterator[dict[str, Store]]:
    """Return the small store of each dialect."""
    stores = {}
    with ExitStack() as stack:
        for case in CASES:
            folder = tmp_path_factory.mktemp("results")
            asyncio.run(fill_small(case.provider(folder, ManualClock())))
            stores[case.name] = stack.enter_context(case.open(folder))
        yield stores


@pytest.mark.parametrize(("case", "query"), PLANNED)
def test_what_a_query_returns_and_changes(
    stores: dict[str, Store], case: Case, query: Query, snapshot: SnapshotAssertion
) -> None:
    text, did_something = run_and_describe(stores[case.name], query, case)
    assert text == snapshot
    assert did_something, f"give {query.place} parameters with which it finds or changes something: {text}"


@pytest.mark.parametrize(("case", "script"), SCRIPTS)
def test_what_a_script_makes(tmp_path: Path, case: Case, script: Query, snapshot: SnapshotAssertion) -> None:
    assert "\n".join(changed_lines(*case.run_script(tmp_path, script.name))) == snapshot


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_works_on_a_connection(tmp_path: Path, case: Case, snapshot: SnapshotAssertion) -> None:
    ran = case.run_session(tmp_path)
    of_this_run = {
        "get_server_process": "a number",
        "ask_for_wake": "a number",
        "get_database": "a text",
        "get_file": "a path",
    }
    shown = [(name, of_this_run.get(name, repr(result)), within) for name, result, within in ran]
    assert "\n".join(f"{name}: {result}, in a transaction: {within}" for name, result, within in shown) == snapshot


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_query_is_run(case: Case) -> None:
    run = {param.values[1].name for param in (*PLANNED, *SCRIPTS) if param.values[0] is case}  # type: ignore[union-attr]
    filled_in = {"explain_query", "prepare_query", "forget_query", "stand_in_for_columns"}
    assert set(case.queries) - run - filled_in == set(case.session), "run it in the session of tests/dialects"
