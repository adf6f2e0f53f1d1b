"""Which units of work PostgreSQL runs as one set-based statement, and what its rows mean.

The query `persist_workflow_group(units)` runs any number of units that begin with `persist_workflow`. It takes them as
one JSON array of objects with the unit's number, the parameters of its first query, and the parameters of its other
queries as lists under their names; it returns rows that begin with the unit's number. A unit without a row found
nothing; null in a unit's row means that somebody else holds the row that it must change.

A unit of work with several operations is split into such units, its parts (`steps_of`).
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wfe_sql.arguments import encode_ids
from wfe_sql.engines import Results, Statement, Unit

Rows = Sequence[Sequence[Any]]

_BYTES_TOGETHER = 1024 * 1024
"""The most bytes of JSON in one statement, unless one unit is larger: the server copies the array again and again, so
24 units of 1 MB together took nearly three times as long as one by one. Among 64 KiB to 4 MiB, this gave the highest
throughput for units of 100 KB, and was as good as any for units of 1 MB."""


def _changed(rows: Rows) -> Results:
    return [len(rows)]


def _value(rows: Rows) -> Results:
    return [rows[0][0] if rows else None]


def _row(rows: Rows) -> Results:
    return [rows[0] if rows else None]


def _rows(rows: Rows) -> Results:
    return [rows]


def _instance(rows: Rows) -> Results:
    """Split a row of the workflow's columns and its pointers' documents into the results of the unit's two queries."""
    if not rows:
        return [None, []]
    *workflow, pointers = rows[0]
    return [workflow, [(pointer,) for pointer in pointers]]


def _claimed_instances(rows: Rows) -> Results:
    """Rows of the workflows' columns, and those of their pointers, as the two queries of the unit return them."""
    workflows = [row[:-1] for row in rows]
    return [workflows, [(row[0], pointer) for row in rows for pointer in row[-1]]]


@dataclass(frozen=True, slots=True)
class Group:
    """Units that may run together.

    Attributes:
        lead: The query that each unit begins with.
        results: Turns a unit's rows, without the unit's number, into the results of its queries.
        parts: The other queries that a unit may have.
        key: The parameter that identifies the row a unit changes: units with the same key never run at the same time.
        lock: The query that waits for rows by their keys, and locks them.
        shares: Whether one statement can serve all units of a key; otherwise it can change a row only once.
        alike: A parameter that all units of one statement have in common.
        writes: Whether it changes anything.
        alone: The query that runs one unit, with the parameters of its lead: a set of one costs 0.1 ms more.
            Not for groups with a lock: a plain query that skips a locked row costs as much as a set.
    """

    lead: str
    results: Callable[[Rows], Results]
    parts: frozenset[str] = field(default_factory=frozenset)
    key: str = ""
    lock: str = ""
    shares: bool = False
    alike: str | None = None
    writes: bool = True
    alone: str | None = None

    @property
    def query(self) -> str:
        """The name of the query that runs them."""
        return f"{self.lead}_group"

    def results_of(self, rows: Rows) -> Results | None:
        """Turn a unit's rows into the results of its queries; None if another transaction holds its row."""
        return None if self.lock and rows and rows[0][0] is None else self.results(rows)

    def results_alone(self, result: Any) -> Results | None:
        """Turn the result of `alone` into the results of the unit's queries, as `results_of` does."""
        return [result] if self.alone == self.lead else self.results_of([] if result is None else [result])


_POINTER_WRITES = frozenset(
    {
        "delete_execution_pointers",
        "delete_gone_execution_pointers",
        "upsert_execution_pointers",
        "insert_execution_pointers",
        "create_event_subscription",
    }
)

GROUPS = {
    group.lead: group
    for group in (
        Group("create_new_workflow", _changed, parts=frozenset({"insert_execution_pointers"})),
        Group(
            "create_numbered_workflow",
            _value,
            parts=frozenset({"next_definition_sequence", "insert_execution_pointers"}),
            key="definition_id",
            lock="lock_definition_sequences",
            shares=True,
        ),
        Group("persist_workflow", _row, parts=_POINTER_WRITES, key="id", lock="lock_workflows"),
        Group(
            "get_workflow_instance",
            _instance,
            parts=frozenset({"get_execution_pointers"}),
            writes=False,
            alone="get_workflow_instance_alone",
        ),
        Group(
            "get_workflow_instance_by_name",
            _instance,
            parts=frozenset({"get_execution_pointers_by_name"}),
            writes=False,
        ),
        Group("claim_runnable_instances", _rows, alike="as_at"),
        Group(
            "claim_and_load_instances",
            _claimed_instances,
            parts=frozenset({"get_claimed_execution_pointers"}),
            alike="as_at",
        ),
        Group("renew_workflow_claim", _changed, key="id", lock="lock_workflows"),
        Group("release_workflow_claim", _changed, key="id", lock="lock_workflows"),
        Group("next_definition_sequence", _value, key="definition_id", lock="lock_definition_sequences", shares=True),
        Group("create_event", _changed, alone="create_event"),
        Group("get_event", _row, writes=False, alone="get_event"),
        Group("get_events_since", _rows, writes=False, alone="get_events_since"),
        Group("mark_event_processed", _changed, key="id", lock="lock_events"),
        Group("mark_event_unprocessed", _changed, key="id", lock="lock_events"),
        Group("claim_runnable_events", _rows, alike="as_at"),
        Group("renew_event_claim", _changed, key="id", lock="lock_events"),
        Group("release_event_claim", _changed, key="id", lock="lock_events"),
        Group("create_event_subscription", _changed),
        Group("get_subscriptions", _rows, writes=False, alone="get_subscriptions"),
        Group("terminate_subscription", _changed, key="id", lock="lock_event_subscriptions"),
    )
}
"""Every group, by its lead."""

_NAMES_A_ROW = ("id", "command_name", "data")


def group_of(unit: Unit) -> Group | None:
    """Return the group that runs a unit, or None if it runs alone."""
    group = GROUPS.get(unit[0].query)
    if group is not None and all(statement.query in group.parts for statement in unit[1:]):
        return group
    return None


def param_of(unit: Unit, name: str) -> Any:
    """Return a parameter of the query that a unit of a group begins with."""
    params: Any = unit[0].params  # a lead has one set of parameters
    return params[name]


def row_of(unit: Unit) -> tuple[Any, ...] | None:
    """Return a key for the row of a unit's first query; None if it is not about one row."""
    params = unit[0].params
    if isinstance(params, Sequence):
        return None
    return tuple(params[name] for name in _NAMES_A_ROW if name in params) or None


def encode_units(units: Sequence[Unit]) -> Iterator[tuple[int, str]]:
    """Yield units of one group as parameters of its query: the number of units, and their JSON."""
    encoded: list[bytes] = []
    size = 0
    for unit in units:
        text = _encode_unit(len(encoded), unit)
        if encoded and size + len(text) > _BYTES_TOGETHER:
            yield len(encoded), _array(encoded)
            encoded, size, text = [], 0, _encode_unit(0, unit)
        encoded.append(text)
        size += len(text)
    yield len(encoded), _array(encoded)


def _array(encoded: Sequence[bytes]) -> str:
    return f"[{b','.join(encoded).decode()}]"


def _encode_unit(number: int, unit: Unit) -> bytes:
    lead: Any = unit[0].params
    encoded = {"unit": number, **lead}
    for statement in unit[1:]:
        params = statement.params
        encoded.setdefault(statement.query, []).extend(params if isinstance(params, Sequence) else [params])
    return msgspec.json.encode(encoded)


def rows_by_unit(count: int, rows: Rows) -> list[list[Sequence[Any]]]:
    """Return the rows of each of `count` units, without the unit's number."""
    by_unit: list[list[Sequence[Any]]] = [[] for _ in range(count)]
    for number, *row in rows:
        by_unit[number].append(row)
    return by_unit


_CHECKS = {"check_workflow_claim": "lock_workflows", "check_event_claim": "lock_events"}
"""Queries that check a claim, each with the query that waits for the row."""

_TOGETHER = frozenset({*GROUPS, *_POINTER_WRITES, *_CHECKS, "persist_errors", "schedule_command"})
"""Queries allowed in units that run together, because none waits long. The application's own queries are excluded:
their locks last until the transaction ends, in an order that is safe only for their own unit."""


_Part = tuple[int, int, Unit]


@dataclass(frozen=True, slots=True)
class Step:
    """A statement of units of work that run together, with the parts that it runs.

    Attributes:
        statement: The statement.
        parts: For each part: the number of its unit, its place in the unit, and the part itself.
        group: The group of the statement, if any.
    """

    statement: Statement
    parts: Sequence[_Part]
    group: Group | None = None

    def results(self, returned: Any) -> Iterator[tuple[int, int, Unit, Any]]:
        """Yield for each part its unit's number, its place, itself, and its result: None if its row is held."""
        if self.group is None:
            yield *self.parts[0], [returned]
            return
        for part, rows in zip(self.parts, rows_by_unit(len(self.parts), returned), strict=True):
            yield *part, self.group.results_of(rows)


def steps_of(units: Sequence[Unit], *, one_by_one: bool = False) -> list[Step]:
    """Return the statements that run units of work in one transaction: all parts of one group are one statement.

    Checks of claims are left out, because `hold_rows` checks them too. With `one_by_one`, each part and each operation
    has its own statement, so that an error belongs to one operation; nothing is left out.
    """
    alike: dict[Any, list[_Part]] = {}
    for number, unit in enumerate(units):
        for place, part in _parts_of(unit, one_by_one=one_by_one):
            if not one_by_one and part[0].query in _CHECKS:
                continue
            query = part[0].query
            if one_by_one or query not in GROUPS:
                alike[number, place] = [(number, place, part)]
            else:
                alike.setdefault(query, []).append((number, place, part))
    steps: list[Step] = []
    for parts in alike.values():
        lead = parts[0][2][0]
        group = GROUPS.get(lead.query)
        if group is None:
            steps.append(Step(lead, parts))
            continue
        for count, encoded in encode_units([part for _, _, part in parts]):
            steps.append(Step(Statement(group.query, {"units": encoded}), parts[:count], group))
            parts = parts[count:]
    if len(units) > 1:
        steps.sort(key=lambda step: _command(step.statement))
    return steps


def _command(statement: Statement) -> tuple[str, str]:
    """Return a sort key that puts commands last and in order, so that transactions cannot deadlock."""
    params: Any = statement.params
    return (params["command_name"], params["data"]) if statement.query == "schedule_command" else ("", "")


def _parts_of(unit: Unit, *, one_by_one: bool) -> Iterator[tuple[int, Unit]]:
    """Split a unit of work into the parts of groups, and single statements, with the place of each."""
    begin = 0
    for at, statement in enumerate(unit[1:], 1):
        lead = unit[begin]
        group = GROUPS.get(lead.query)
        is_part = group is not None and statement.query in group.parts
        if not is_part or (one_by_one and statement.operation != lead.operation):
            yield begin, unit[begin:at]
            begin = at
    yield begin, unit[begin:]


def go_together(unit: Unit) -> bool:
    """Tell whether a unit of work may run in one transaction with others."""
    return all(statement.query in _TOGETHER for statement in unit)


def rows_changed(unit: Unit) -> dict[str, list[str]]:
    """Return the ids of the rows that a unit of work changes, by the query that locks such rows."""
    rows: dict[str, list[str]] = {}
    for statement in unit:
        if lock := _lock_of(statement):
            params: Any = statement.params
            rows.setdefault(lock, []).append(params["id"])
    return rows


def needed_of(units: Sequence[Unit]) -> str | None:
    """Return the parameter of `hold_rows` for units of work; None if it cannot ensure that they succeed."""
    needed = []
    for statement in [statement for unit in units for statement in unit]:
        lock, params = _lock_of(statement), statement.params
        if lock and isinstance(params, Mapping):
            token, revision = params.get("claim_token", params.get("token")), params.get("expected_revision")
            needed.append(
                {
                    "lock": lock,
                    "id": params["id"],
                    "token": token,
                    "revision": revision,
                    "create_time": params.get("expected_create_time"),
                }
            )
        elif statement.otherwise is not None or statement.refused is not None:
            return None
    return msgspec.json.encode(needed).decode()


def _lock_of(statement: Statement) -> str:
    group = GROUPS.get(statement.query)
    return _CHECKS.get(statement.query, "") if group is None else group.lock


async def run_by_parts(unit: Unit, run: Callable[[Statement, Unit], Awaitable[Any]]) -> Results | None:
    """Run a unit of work statement by statement, in a transaction, once the rows that it changes are free.

    Args:
        unit: The unit.
        run: Runs a statement for a part of the unit.

    Returns:
        The results of its statements; None if a row that did not exist to be locked was created meanwhile, and is held.
    """
    results: Results = [None] * len(unit)
    for lock, ids in sorted(rows_changed(unit).items()):
        await run(Statement(lock, {"ids": encode_ids(ids)}), unit)
    for step in steps_of([unit], one_by_one=True):
        ((_, place, part),) = step.parts
        ((*_, result),) = step.results(await run(step.statement, part))
        if result is None:
            return None
        if (failure := part[0].failure(result[0])) is not None:
            part[0].name_in(failure)
            raise failure
        results[place] = result[0]
    return results
