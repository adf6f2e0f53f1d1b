"""The header of each query matches the database's plan; a reviewer reads each plan that changed.

To record plans that changed on purpose: pytest tests/integration/test_plans.py --snapshot-update
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from syrupy.assertion import SnapshotAssertion

from dialects import CASES, Case, Store
from dialects.filling import fill_large
from wfe_sql.queries import Query
from wfe_sql.testing.clock import ManualClock

OpenFilled = Callable[[Case, bool], Store]

STATISTICS = [
    pytest.param(case, statistics, id=f"{case.name}-{'statistics' if statistics else 'no statistics'}")
    for case in CASES
    for statistics in (True, False)
    if statistics or case.works_without_statistics
]
PLANNED = [
    pytest.param(case, query, id=f"{case.name}-{query.name}")
    for case in CASES
    for query in case.queries.values()
    if query.has_plan
]
UNPLANNED = [
    pytest.param(query, id=f"{case.name}-{query.name}")
    for case in CASES
    for query in case.queries.values()
    if not query.has_plan
]


@pytest.fixture(scope="module")
def open_filled(tmp_path_factory: pytest.TempPathFactory, dialects: None) -> Iterator[OpenFilled]:
    """Open the large store of a dialect, with or without statistics; each is created once."""
    stores: dict[tuple[str, bool], Store] = {}
    with ExitStack() as stack:

        def open_filled(case: Case, statistics: bool) -> Store:
            if (case.name, statistics) not in stores:
                folder = tmp_path_factory.mktemp("plans")
                asyncio.run(fill_large(case.provider(folder, ManualClock()), case.large))
                store = stores[case.name, statistics] = stack.enter_context(case.open(folder))
                if statistics:
                    store.update_statistics()
            return stores[case.name, statistics]

        yield open_filled


def _named_indexes(case: Case) -> list[str]:
    """Return the indexes that headers name, except those of keys, which cannot be dropped."""
    named = {index for query in case.queries.values() for index in query.index}
    return sorted(index for index in named if index.startswith("idx_"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_there_are_plans_to_look_at(case: Case) -> None:
    planned = {query.name for query in case.queries.values() if query.has_plan}
    assert {"get_runnable_instances", "claim_commands", "get_workflow_instances"} <= planned
    assert "idx_workflows_runnable" in _named_indexes(case)


@pytest.mark.parametrize(("case", "query"), PLANNED)
def test_a_plan_is_what_its_header_says(
    open_filled: OpenFilled, case: Case, query: Query, snapshot: SnapshotAssertion
) -> None:
    plan = open_filled(case, True).explain(query)
    text = "\n".join(plan.lines)
    assert not plan.complaints(query), "\n".join([query.place, *plan.complaints(query), "the plan:", text])
    if case.works_without_statistics:
        unaware = open_filled(case, False).explain(query)
        assert not unaware.complaints(query), "\n".join([query.place, *unaware.complaints(query), *unaware.lines])
        if unaware != plan:
            text += "\nwithout statistics:\n" + "\n".join(unaware.lines)
    if case.version != case.planned_by:
        pytest.skip(f"the recorded plans are in the words of {case.name} {case.planned_by}, this is {case.version}")
    if (query.scan or "").startswith("the catalog"):
        return  # how the server reads its own catalog depends on what else is in the database
    assert text == snapshot


@pytest.mark.parametrize("query", UNPLANNED)
def test_what_has_no_plan_names_no_index(query: Query) -> None:
    assert query.index == ()


@pytest.mark.parametrize(
    ("case", "statistics", "index"),
    [
        pytest.param(*param.values, index, id=f"{param.id}-{index}")
        for param in STATISTICS
        for index in _named_indexes(param.values[0])  # type: ignore[arg-type]
    ],
)
def test_a_lost_index_is_seen_in_every_plan_that_names_it(
    open_filled: OpenFilled, case: Case, statistics: bool, index: str
) -> None:
    store = open_filled(case, statistics)
    queries = [query for query in case.queries.values() if index in query.index]
    with store.undone():
        store.drop_index(index)
        unseen = [query.place for query in queries if not store.explain(query).complaints(query)]
    assert queries
    assert not unseen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_index_beyond_the_reference_s_is_used(open_filled: OpenFilled, case: Case) -> None:
    ours = open_filled(case, True).list_indexes() - case.reference_indexes
    used = {index for query in case.queries.values() for index in query.index}
    assert ours
    assert ours - used <= case.indexes_of_keys


@pytest.mark.parametrize(
    ("case", "statistics", "sql", "indexes", "wrong"),
    [
        pytest.param(*param.values, *probe, id=f"{param.id}-{probe[0]}")
        for param in STATISTICS
        for probe in param.values[0].probes  # type: ignore[union-attr]
    ],
)
def test_scans_and_sorts_are_seen(
    open_filled: OpenFilled, case: Case, statistics: bool, sql: str, indexes: set[str], wrong: int
) -> None:
    query = Query("probe", (), "", "Probes.", ("run",), tuple(indexes), None, sql, "probe.sql", 1, sql)
    plan = open_filled(case, statistics).explain(query)
    assert plan.indexes == indexes
    assert len(plan.scans) == wrong
    assert len(plan.complaints(query)) == wrong
