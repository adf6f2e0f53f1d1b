"""The parameters of each query for its snapshot, and how its results are written down."""

import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any

from dialects.case import Case, Params, Row, Store, read_row_line
from dialects.filling import START
from wfe_sql import ExecutionError
from wfe_sql.arguments import encode_bound
from wfe_sql.backends import load_sqlite_queries
from wfe_sql.engines import Statement
from wfe_sql.engines.postgres.grouping import encode_units
from wfe_sql.queries import Query
from wfe_sql.tables import EVENT_SUBSCRIPTIONS, EVENTS, EXECUTION_ERRORS, EXECUTION_POINTERS, WORKFLOWS
from wfe_sql.testing.samples import full_event, full_instance, full_pointer, full_subscription

NOW = (START + timedelta(hours=1)).isoformat()
BOUND = encode_bound("bound", START + timedelta(hours=1))

DEFAULTS: Mapping[str, Any] = {
    "after_id": 0,
    "after_time": 0,
    "as_at": 2000,
    "as_of": BOUND,
    "claim_token": None,
    "command_name": "ProcessWorkflow",
    "data": "workflow-1",
    "definition_id": "order",
    "event_key": "k1",
    "event_name": "paid",
    "execute_time": 500,
    "expected_create_time": NOW,
    "expected_revision": None,
    "expires_at": NOW,
    "expiry": NOW,
    "horizon": "3",
    "id": "workflow-1",
    "ids": json.dumps(["workflow-3", "workflow-full", "nobody"]),
    "name": "order-full",
    "now": NOW,
    "root_workflow_id": "root",
    "row_limit": 2,
    "since": START.isoformat(),
    "transactions": 100_000,
    "token": "token",
    "version": 2,
    "worker_id": "worker",
    "workflow_id": "workflow-1",
}
"""Default values of parameters; the next two override them."""

DEFAULTS_OF_FILE: Mapping[str, Mapping[str, Any]] = {
    "events": {"id": "event-2", "as_at": BOUND},
    "event_subscriptions": {"id": "subscription-1"},
    "health": {"as_of": 2000, "free_since": None, "older_than": BOUND, "row_limit": 5},
    "listing": {
        **dict.fromkeys(("status", "definition_id", "since", "is_processed", "after_time", "after_id")),
    },
    "retention": {
        "after_time": None,
        "event_ids": '["gone", "event-1"]',
        "from_id": 0,
        "ids": '["workflow-done", "workflow-1"]',
        "older_than": BOUND,
        "status": "Complete",
        "workflow_ids": '["gone", "workflow-1"]',
    },
    "scheduled_commands": {"id": 1, "ids": "[1, 2]", "as_of": 2000},
    "transfer": {"after_id": "", "after_workflow_id": "", "after_place": 0, "after_definition_id": ""},
}


def _workflow(**fields: Any) -> Mapping[str, Any]:
    return WORKFLOWS.encode(full_instance(execution_pointers=[], **fields))


def _pointer(id_: str) -> Mapping[str, Any]:
    return {**EXECUTION_POINTERS.encode(full_pointer(id=id_)), "workflow_id": "workflow-1"}


def _error(message: str) -> Mapping[str, Any]:
    return EXECUTION_ERRORS.encode(
        ExecutionError(error_time=START, workflow_id="workflow-1", execution_pointer_id="pointer-1-1", message=message)
    )


_NO_CLAIM = {"claim_token": None, "claim_worker_id": None, "claim_expires_at": None}

PARAMS_OF_QUERY: Mapping[str, Params] = {
    "clear_subscription_token": {"id": "subscription-1", "token": "token"},
    "count_due_events": {"as_at": BOUND},
    "create_event": EVENTS.encode(full_event(id="event-new")),
    "create_event_subscription": EVENT_SUBSCRIPTIONS.encode(
        full_subscription(id="subscription-new", workflow_id="workflow-1", execution_pointer_id="pointer-1-1")
    ),
    "create_new_workflow": _workflow(id="workflow-new", name=""),
    "create_numbered_workflow": _workflow(id="workflow-new", name=""),
    "delete_gone_execution_pointers": {"ids": '["pointer-1-1", "pointer-2-1"]', "workflow_id": "workflow-1"},
    "delete_orphaned_errors": {"ids": "[1, 4]"},
    "delete_processed_events": {"ids": '["event-1", "event-2"]'},
    "find_execution_pointer_of_another_workflow": {
        "ids": '["pointer-1-1", "pointer-2-1"]',
        "workflow_id": "workflow-1",
    },
    "import_definition_sequences": [{"definition_id": "new", "next_num": 7}],
    "import_event_subscriptions": [
        {
            **EVENT_SUBSCRIPTIONS.encode(
                full_subscription(id="subscription-new", workflow_id="workflow-1", execution_pointer_id="pointer-1-1")
            ),
            "terminated": 1,
        }
    ],
    "import_events": [{**EVENTS.encode(full_event(id="event-new")), **_NO_CLAIM}],
    "import_execution_errors": [_error("first")],
    "import_execution_pointers": [_pointer("pointer-new-1")],
    "import_scheduled_commands": [
        {"command_name": "ProcessEvent", "data": "new", "execute_time": 9, "rescheduled_time": None, **_NO_CLAIM}
    ],
    "import_workflows": [{**_workflow(id="workflow-new", name="new-1"), **_NO_CLAIM, "revision": 7}],
    "insert_execution_pointers": [_pointer("pointer-new-1"), _pointer("pointer-new-2")],
    "lift_statement_timeout": {"is_local": "true"},
    "list_numbers": {"workflows": 10},
    "lock_definition_sequences": {"ids": '["order", "gone"]'},
    "lock_event_subscriptions": {"ids": '["subscription-2", "subscription-1"]'},
    "lock_events": {"ids": '["event-2", "event-1"]'},
    "mend_number": {"table_name": "scheduled_commands", "column_name": "id", "highest": 1000},
    "pass_over_taken_numbers": {"definition_id": "new"},
    "persist_errors": [_error("first"), _error("second")],
    "persist_workflow": _workflow(id="workflow-1", name=""),
    "upsert_execution_pointers": [_pointer("pointer-1-2"), _pointer("pointer-new-1")],
}

FIND_NOTHING = {
    *("check_integrity", "check_copy", "check_foreign_keys", "find_rows_without_id", "find_old_snapshots"),
    *("find_missing_pointers", "hold_rows"),
}
"""Queries that return problems, of which there are none."""

RUN_BEFORE: Mapping[str, Sequence[str]] = {
    "has_statistics": ["update_statistics"],
    "list_statistics": ["update_statistics"],
    "check_workflow_claim": ["claim_runnable_instances"],
    "get_claimed_execution_pointers": ["claim_runnable_instances"],
    "pass_over_taken_numbers": ["import_workflows"],
    "check_event_claim": ["claim_runnable_events"],
    "renew_workflow_claim": ["claim_runnable_instances"],
    "release_workflow_claim": ["claim_runnable_instances"],
    "renew_event_claim": ["claim_runnable_events"],
    "release_event_claim": ["claim_runnable_events"],
    "renew_commands": ["claim_commands"],
    "complete_command": ["claim_commands"],
    "release_command": ["claim_commands"],
    "reschedule_command": ["claim_commands", "schedule_command"],
    "renew_workflow_claim_group": ["claim_runnable_instances_group"],
    "release_workflow_claim_group": ["claim_runnable_instances_group"],
    "renew_event_claim_group": ["claim_runnable_events_group"],
    "release_event_claim_group": ["claim_runnable_events_group"],
}
"""Queries that must run first, so that another has something to do."""


LEADS = load_sqlite_queries()
"""The queries that groups combine, with the parameters of their units."""

PARTS: Mapping[str, Mapping[str, Params]] = {
    "create_new_workflow": {
        "insert_execution_pointers": [
            {**_pointer(f"pointer-new-{number}"), "workflow_id": "workflow-new"} for number in (1, 2)
        ],
    },
    "persist_workflow": {
        "delete_gone_execution_pointers": PARAMS_OF_QUERY["delete_gone_execution_pointers"],
        "upsert_execution_pointers": PARAMS_OF_QUERY["upsert_execution_pointers"],
        "create_event_subscription": PARAMS_OF_QUERY["create_event_subscription"],
    },
    "create_numbered_workflow": {
        "next_definition_sequence": {"definition_id": "order"},
        "insert_execution_pointers": [
            {**_pointer(f"pointer-new-{number}"), "workflow_id": "workflow-new"} for number in (1, 2)
        ],
    },
    "claim_and_load_instances": {
        "get_claimed_execution_pointers": {"as_at": 2000, "token": "token", "row_limit": 2},
    },
    "get_workflow_instance": {"get_execution_pointers": {"workflow_id": "workflow-1"}},
    "get_workflow_instance_by_name": {"get_execution_pointers_by_name": {"name": "order-full"}},
}
"""The other queries of a unit, by its first query."""

OTHERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Params]]] = {
    "create_new_workflow": ({"id": "workflow-new-2", "name": "other"}, {}),
    "persist_workflow": (
        {"id": "workflow-2"},
        {
            "delete_execution_pointers": {"workflow_id": "workflow-2"},
            "insert_execution_pointers": [{**_pointer("pointer-new-3"), "workflow_id": "workflow-2"}],
        },
    ),
    "get_workflow_instance_by_name": ({"name": "nobody"}, {}),
    "next_definition_sequence": ({"definition_id": "new"}, {}),
    "create_numbered_workflow": ({"id": "workflow-new-2", "definition_id": "new"}, {}),
    "claim_and_load_instances": (
        {"token": "other"},
        {"get_claimed_execution_pointers": {"as_at": 2000, "token": "other", "row_limit": 2}},
    ),
    "create_event": ({"id": "event-new-2"}, {}),
    "create_event_subscription": ({"id": "subscription-new-2"}, {}),
    "get_subscriptions": ({"event_key": "gone"}, {}),
    "claim_runnable_instances": ({"token": "other"}, {}),
    "claim_runnable_events": ({"token": "other"}, {}),
}
"""Parameters and other queries of a second unit; by default it refers to a row that does not exist."""


TOGETHER: Mapping[str, Mapping[str, Any]] = {
    "claim_and_load_instances": {"row_limit": 1},
    "claim_runnable_instances": {"row_limit": 1},
    "claim_runnable_events": {"row_limit": 1},
}
"""Parameters of two units, so that there is something for each."""


def unit_of(lead: str, case: Case, **otherwise: Any) -> list[Statement]:
    """Return a unit of work that begins with a query of SQLite's."""
    params = params_of(LEADS[lead], case)
    assert isinstance(params, Mapping)
    return [Statement(lead, {**params, "now": NOW, **otherwise}), *_statements(PARTS.get(lead, {}))]


def _other_unit_of(lead: str, unit: Sequence[Statement]) -> list[Statement]:
    others, parts = OTHERS.get(lead, ({"id": "nobody"}, {}))
    params = unit[0].params
    assert isinstance(params, Mapping)
    return [Statement(lead, {**params, **others}), *_statements(parts)]


def _statements(parts: Mapping[str, Params]) -> list[Statement]:
    return [Statement(name, params) for name, params in parts.items()]


def params_of(query: Query, case: Case) -> Params:
    """Return parameters with which a query finds or changes something in the small store."""
    if query.params == ("units",):
        lead = query.name.removesuffix("_group")
        unit = unit_of(lead, case, **TOGETHER.get(lead, {}))
        ((_, units),) = encode_units([unit, _other_unit_of(lead, unit)])
        return {"units": units}
    own = case.own_part.get(query.name, PARAMS_OF_QUERY.get(query.name, {}))
    if not isinstance(own, Mapping):
        return own
    file = query.file.rpartition("/")[2].removesuffix(".sql")
    known = {**DEFAULTS, **DEFAULTS_OF_FILE.get(file, {}), **own}
    assert set(query.params) <= set(known), f"give {query.name} its parameters in tests/dialects/results.py"
    return {param: known[param] for param in query.params}


def run_before(store: Store, query: str, case: Case) -> None:
    """Run the queries that must run first, in the dialect's form."""
    for name in RUN_BEFORE.get(query, ()):
        known = case.queries.get(name) or case.queries[f"{name}_group"]
        store.run(known.name, params_of(known, case))


def run_and_describe(store: Store, query: Query, case: Case) -> tuple[str, bool]:
    """Run a query and undo it; return its results and changes as text, and whether there are any."""
    with store.undone():
        run_before(store, query.name, case)
        before = store.dump()
        result = store.run(query.name, params_of(query, case))
        changes = changed_lines(before, store.dump())
    if isinstance(result, list):
        result = in_order(result, query)
    rows = result if isinstance(result, list) else [result]
    text = [f"returns {len(rows)} rows" if isinstance(result, list) else "returns", *map(_describe_row, rows)]
    return "\n".join([*text, *(["changes", *changes] if changes else [])]), result not in (
        None,
        [],
        0,
    ) or query.name in FIND_NOTHING


def in_order(rows: list[Any], query: Query) -> list[Any]:
    """Sort unordered rows; rows of units are ordered only within each unit."""
    if "in no order" in query.summary:
        return sorted(rows, key=repr)
    return sorted(rows, key=itemgetter(0)) if query.params == ("units",) else rows


def changed_lines(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return the differences: the changed columns of rows, and the changed lines of definitions."""
    diff = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[:1] in "-+"][2:]
    rows: dict[tuple[str, Any], list[Row]] = {}
    lines = []
    for line in diff:
        if (found := read_row_line(line[1:])) is None:
            lines.append(line)
        else:
            table, row = found
            rows.setdefault((table, row.get("id", row.get("definition_id"))), [{}, {}])[line[0] == "+"] = row
    for (table, key), (old, new) in rows.items():
        columns = [
            f"  {column}: {f'{_shown(old[column])} -> ' if column in old else ''}{_shown(value)}"
            for column, value in new.items()
            if value != old.get(column)
        ]
        if columns or not new or old == new:
            what = "removed" if not new else "added" if not old else "changed" if columns else "moved"
            lines += [f"{what} {table} {key!r}", *columns]
    return lines


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _describe_row(row: Any) -> str:
    """Write each column on its own line, a JSON document on several."""
    columns = [
        part
        for column in (row if isinstance(row, tuple) else (row,))
        for part in (column if isinstance(column, list) else [column])
    ]
    lines = "\n".join(
        json.dumps(json.loads(column), indent=2, ensure_ascii=False)
        if isinstance(column, str) and column.startswith("{")
        else repr(column)
        for column in columns
    )
    return "  - " + lines.replace("\n", "\n    ")
