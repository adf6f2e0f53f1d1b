"""Takes the plans of queries from PostgreSQL.

https://www.postgresql.org/docs/current/using-explain.html
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import psycopg

from wfe_sql.engines.parameters import number_parameters
from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.errors import is_lost, store_error, text_of
from wfe_sql.engines.postgres.store import PostgresStore
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.errors import StoreError
from wfe_sql.plans import Contents, Plan
from wfe_sql.queries import Query, QuerySet

_INDEX = re.compile(r"(?:Index (?:Only )?Scan(?: Backward)? using|Bitmap Index Scan on) (?!pg_)(\w+)")
_READS_A_TABLE = re.compile(r"(?:Parallel )?(?:Seq|Sample|Tid|Tid Range|Index|Index Only|Bitmap Heap) Scan\b")
_READS_A_WHOLE_TABLE = re.compile(r"(?:Parallel )?(?:Seq|Sample) Scan\b|.* on pg_")
"""The server's catalog counts as whole tables: it is small, and its indexes are not ours."""
_READS_AN_INDEX = re.compile(r"(?:Parallel )?(?:Index|Index Only|Bitmap Index) Scan\b")
_SORTS = re.compile(r"(?:Incremental )?Sort\b")
_LIMITS = re.compile(r"Limit\b")
_ARROW = "->  "
_ASIDE = re.compile(r"(?:CTE|InitPlan|SubPlan) ")
"""The line above a step that does not feed its parent row by row."""


class PostgresPlanner:
    """Explains queries on an open connection, which belongs to the runner's event loop."""

    def __init__(self, store: PostgresStore, queries: QuerySet, connection: Connection, runner: asyncio.Runner) -> None:
        """Take a connection; whoever opened it closes it."""
        self._store = store
        self._queries = queries
        self._connection = connection
        self._runner = runner
        self._numbers = count(1)

    def explain(self, query: Query) -> Plan:
        """Return the generic plan of a query, which serves all values of its parameters, without running it.

        Raises:
            StoreError: PostgreSQL cannot plan it, for example because a table is missing.
        """
        return self._runner.run(self._explain(query))

    async def _explain(self, query: Query) -> Plan:
        name = f"wfe_sql_explained_{next(self._numbers)}"
        sql, order = number_parameters(query.sql, "$")
        values = ", ".join(["null"] * len(order))
        try:
            async with self._store.settled(self._connection):
                await self._fill_in("prepare_query", f"{name} AS {sql.rstrip().rstrip(';')}")
                cursor = await self._fill_in("explain_query", f"{name}({values})" if order else name)
                await self._fill_in("forget_query", name)
            return _read_plan([line for (line,) in await cursor.fetchall()])
        except psycopg.Error as error:
            if is_lost(error, self._connection):
                raise store_error(self._store, error) from error
            raise StoreError(text_of(error)) from error

    async def _fill_in(self, name: str, text: str) -> Any:
        return await self._connection.execute(self._queries[name].filled_in("query", text).encode(), prepare=False)

    def survey(self) -> Contents:
        """Return what the store contains; every row is counted."""
        return self._runner.run(self._survey())

    async def _survey(self) -> Contents:
        run = partial(self._queries.run, self._connection, params={})
        try:
            indexes, rows = await run("list_indexes"), await run("count_rows")
            statistics = await run("list_statistics")
        except psycopg.Error as error:
            raise store_error(self._store, error) from error
        return Contents(frozenset(name for (name,) in indexes), dict(rows), dict(statistics))


@contextmanager
def open_postgres_planner(target: PostgresTarget, queries: QuerySet, *, schema: str) -> Iterator[PostgresPlanner]:
    """Connect to a store, to explain queries on it; nothing is created or written.

    Raises:
        StoreError: It does not exist, or cannot be reached.
        StoreVersionError: It is out of date, so that its plans would be misleading.
    """
    store = PostgresStore(target, queries, schema=schema, statement_timeout=None)
    with asyncio.Runner() as runner:
        connection = runner.run(store.open_connection())
        try:
            runner.run(store.check(connection))
            yield PostgresPlanner(store, queries, connection, runner)
        finally:
            runner.run(connection.close())


@dataclass(slots=True)
class _Node:
    """One step of a plan: its line, its indentation, its details, and the steps that feed it."""

    line: str
    depth: int
    details: list[str] = field(default_factory=list)
    inputs: list["_Node"] = field(default_factory=list)

    @property
    def what(self) -> str:
        return self.line.strip().removeprefix(_ARROW)

    @property
    def begins_with_a_table(self) -> bool:
        """Tell whether the first rows come from a table, without a limit."""
        if _LIMITS.match(self.what):
            return False
        if self.inputs and not _READS_A_TABLE.match(self.what):
            return self.inputs[0].begins_with_a_table
        return bool(_READS_A_TABLE.match(self.what))

    @property
    def scans(self) -> bool:
        """Tell whether the step reads a whole table, or sorts rows of one.

        An index without a condition is read as a whole. Rows looked up for a JSON array, or for the rows of an earlier
        step, are a batch of the caller's: sorting them is not a scan.
        """
        if _READS_A_WHOLE_TABLE.match(self.what):
            return True
        if _READS_AN_INDEX.match(self.what):
            return not any(detail.startswith("Index Cond:") for detail in self.details)
        return bool(_SORTS.match(self.what)) and self.begins_with_a_table


def _read_plan(lines: Sequence[str]) -> Plan:
    nodes = list(_read_nodes(lines))
    return Plan(
        lines=tuple(lines),
        indexes=frozenset(index for node in nodes for index in _INDEX.findall(node.what)),
        scans=tuple(node.line for node in nodes if node.scans),
    )


def _read_nodes(lines: Iterable[str]) -> Iterator[_Node]:
    """Read the steps of a plan; those that feed another come below its details, indented further."""
    above: list[_Node] = []
    previous = ""
    for line in lines:
        text = line.lstrip()
        is_aside, previous = bool(_ASIDE.match(previous)), text
        if above and not text.startswith(_ARROW):
            above[-1].details.append(text)
            continue
        node = _Node(line, len(line) - len(text))
        while above and above[-1].depth >= node.depth:
            above.pop()
        if above and not is_aside:
            above[-1].inputs.append(node)
        above.append(node)
        yield node
