"""A query of both dialects returns the same in both, and a group of units the results of the single units."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from dialects import CASES, Case, Store
from dialects.filling import fill_small
from dialects.results import LEADS, params_of, run_before, unit_of
from wfe_sql.engines.postgres.grouping import GROUPS, encode_units, rows_by_unit
from wfe_sql.testing.clock import ManualClock

SQLITE, POSTGRES = CASES
OTHERWISE = {
    "get_store_size": "bytes are counted differently",
    "list_parts": "each dialect has columns and tables of its own",
    "list_indexes": "each has indexes of its own",
    "list_statistics": "SQLite keeps none of an empty table",
}
"""Queries that do not return the same in both, and why."""
COMMON = sorted(
    name
    for name in set(SQLITE.queries) & set(POSTGRES.queries)
    if SQLITE.queries[name].has_plan and name not in OTHERWISE
)

Stores = Mapping[str, Store]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, dialects: None) -> Iterator[Stores]:
    with ExitStack() as stack:
        opened = {}
        for case in CASES:
            folder = tmp_path_factory.mktemp("same")
            asyncio.run(fill_small(case.provider(folder, ManualClock())))
            opened[case.name] = stack.enter_context(case.open(folder))
        yield opened


def _returned(store: Store, name: str, case: Case) -> Any:
    query = case.queries[name]
    with store.undone():
        run_before(store, name, case)
        result = _plain(store.run(name, params_of(query, case)))
    return sorted(result, key=repr) if "in no order" in query.summary else result


def _plain(value: Any) -> Any:
    """Return rows as values that are equal if they mean the same: parsed documents, times as times."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    if isinstance(value, str):
        if value[:1] in ("{", "["):
            return _plain(msgspec.json.decode(value))
        if len(value) >= len("2026-05-28T20:00:00+00:00") and value.endswith("+00:00"):
            return datetime.fromisoformat(value)
    return value


def test_there_are_results_to_compare() -> None:
    assert {"claim_commands", "get_workflow_instances", "get_first_open_subscription", "export_events"} <= set(COMMON)
    assert set(OTHERWISE) <= set(SQLITE.queries) & set(POSTGRES.queries)


@pytest.mark.parametrize("name", COMMON)
def test_both_return_the_same(stores: Stores, name: str) -> None:
    one, other = (_returned(stores[case.name], name, case) for case in CASES)
    assert one == other


@pytest.mark.parametrize("lead", sorted(GROUPS))
def test_a_unit_of_a_group_returns_what_its_queries_return_in_sqlite(stores: Stores, lead: str) -> None:
    unit, group = unit_of(lead, POSTGRES), GROUPS[lead]
    sqlite, postgres = stores["sqlite"], stores["postgres"]
    with sqlite.undone():
        run_before(sqlite, lead, SQLITE)
        expected = [_plain(sqlite.run(statement.query, statement.params)) for statement in unit]
    with postgres.undone():
        run_before(postgres, group.query, POSTGRES)
        ((_, units),) = encode_units([unit])
        rows = postgres.run(group.query, {"units": units})
    found = _plain(group.results(rows_by_unit(1, rows)[0]))
    if "in no order" in LEADS[lead].summary:
        expected[0], found[0] = sorted(expected[0]), sorted(found[0])
    assert found == expected[: len(found)]
    assert found[0], f"give {lead} parameters with which it finds or changes something"


@pytest.mark.parametrize("lead", sorted(lead for lead, group in GROUPS.items() if group.alone == f"{lead}_alone"))
def test_a_unit_alone_returns_what_the_group_does(stores: Stores, lead: str) -> None:
    group, postgres = GROUPS[lead], stores["postgres"]
    assert group.alone is not None
    for otherwise in ({}, {"id": "nobody", "definition_id": "nobody"}):
        unit = unit_of(lead, POSTGRES, **otherwise)
        ((_, units),) = encode_units([unit])
        with postgres.undone():
            (rows,) = rows_by_unit(1, postgres.run(group.query, {"units": units}))
        with postgres.undone():
            found = group.results_alone(postgres.run(group.alone, unit[0].params))
        assert _plain(found) == _plain(group.results(rows))


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_what_is_said_to_differ_does(stores: Stores, name: str) -> None:
    one, other = (_returned(stores[case.name], name, case) for case in CASES)
    assert one != other
