"""Which units of work PostgreSQL runs as one set-based statement, and what its rows mean.

The query `persist_workflow_group(units)` runs any number of units that begin with `persist_workflow`. It takes them as
one JSON array of objects with the unit's number, the parameters of its first query, and under their names lists of the
parameters of its other queries; it returns rows that begin with the unit's number. A unit without a row found nothing;
one whose row has null found that somebody else holds the row that it is to change.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wfe_sql.engines import Results, Unit

Rows = Sequence[Sequence[Any]]

_BYTES_TOGETHER = 1024 * 1024
"""Bytes of JSON that are one statement at most, unless one unit is larger: the server copies a statement's array again
and again, so 24 units of 1 MB together took nearly three times as long as one by one. Of 64 KiB to 4 MiB, this served
most units of 100 KB, and units of 1 MB as well as any."""


def _changed(rows: Rows) -> Results:
    return [len(rows)]


def _value(rows: Rows) -> Results:
    return [rows[0][0] if rows else None]


def _row(rows: Rows) -> Results:
    return [rows[0] if rows else None]


def _rows(rows: Rows) -> Results:
    return [rows]


def _instance(rows: Rows) -> Results:
    """A row of the workflow's columns and the documents of the pointers, as the two queries of the unit return them."""
    if not rows:
        return [None, []]
    *workflow, pointers = rows[0]
    return [workflow, [(pointer,) for pointer in pointers]]


@dataclass(frozen=True, slots=True)
class Group:
    """Units that may go together.

    Attributes:
        lead: The query that each of them begins with.
        results: Turns a unit's rows, without the unit's number, into what its queries return.
        parts: What else a unit may consist of.
        key: The parameter that names the row a unit changes: two units with one key never run at the same time.
        lock: The query that waits for rows by their keys, and holds them.
        shares: Whether one statement serves all units of a key; else it can change a row only once.
        alike: A parameter that all units of one statement have in common.
        writes: Whether it changes anything.
        alone: The query that runs one unit, with the parameters of its lead: a set of one costs 0.1 ms more.
            Not for what has a lock: a plain query that passes over a held row costs as much as a set.
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
        """Turn a unit's rows into what its queries return; None where somebody else holds the row it is to change."""
        return None if self.lock and rows and rows[0][0] is None else self.results(rows)

    def results_alone(self, result: Any) -> Results | None:
        """Turn what `alone` returned into what the unit's queries return, as `results_of`."""
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
        Group("renew_workflow_claim", _changed, key="id", lock="lock_workflows"),
        Group("release_workflow_claim", _changed, key="id", lock="lock_workflows"),
        Group("next_definition_sequence", _value, key="definition_id", lock="lock_definition_sequences", shares=True),
        Group("create_event", _changed, alone="create_event"),
        Group("get_event", _row, writes=False, alone="get_event"),
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
    """Return what names the row that a unit begins with, where it is about one."""
    params = unit[0].params
    if isinstance(params, Sequence):
        return None
    return tuple(params[name] for name in _NAMES_A_ROW if name in params) or None


def encode_units(units: Sequence[Unit]) -> Iterator[tuple[int, str]]:
    """Yield units of one group as parameters of its query: how many units, and their text, one after the other."""
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
