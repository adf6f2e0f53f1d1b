"""What is in a store, and what is wrong with it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from wfe_sql.arguments import encode_argument, encode_bound, encode_ms_bound
from wfe_sql.codecs import EPOCH, TIME
from wfe_sql.durations import time_before
from wfe_sql.engines import Engine, Read, Statement
from wfe_sql.engines.stores import NOT_FINISHED, UNFINISHED_COPY
from wfe_sql.errors import StoreCorruptError, StoreError
from wfe_sql.escaping import visible
from wfe_sql.maintenance.models import Backlog, Finding, FindingKind, QueryStats, StoreStats, WorkflowCount
from wfe_sql.maintenance.pages import Paging
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.plans import fits
from wfe_sql.tables import Table

_FINDINGS = 100
"""How many findings of one kind are listed."""

_EVERY = 2**63 - 1

_TRANSACTIONS_BEHIND = 100_000
"""How far a replication slot may be behind."""

_LONG_LOG = 32 * 2**20
"""Bytes beyond which a write-ahead log is a finding: eight times what SQLite's usually has."""

_WORTH_STATISTICS = 10_000
"""Rows of a table from which on plans may suffer without statistics."""


class Health(Paging, MaintenanceRepository):
    """What of `MaintenanceRepository` looks after the store as a whole."""

    _engine: Engine
    _clock: Callable[[], datetime]

    async def stats(self) -> StoreStats:
        now = self._clock()
        async with self._engine.snapshot() as read:
            size, workflows, rows = await read(
                [Statement("get_store_size", {}), Statement("count_workflows", {}), Statement("count_rows", {})]
            )
            due_workflows, due_events, due_commands = [
                Backlog(due, _time_or_none(since)) for due, since in await _count_due(read, now)
            ]
        return StoreStats(
            taken_at=now,
            size_bytes=size[0],
            free_bytes=size[1],
            log_bytes=self._engine.log_size,
            workflows=[
                WorkflowCount(
                    workflow_definition_id=_words(definition_id),
                    status=_words(status),
                    workflows=count,
                    oldest=_time_or_none(oldest),
                    newest=_time_or_none(newest),
                )
                for definition_id, status, count, oldest, newest in workflows
            ],
            rows=dict(rows),
            due_workflows=due_workflows,
            due_events=due_events,
            due_commands=due_commands,
        )

    async def query_stats(self) -> list[QueryStats]:
        if "list_query_statistics" not in self._engine.queries:
            raise StoreError("this database does not count what queries cost; PostgreSQL does, with pg_stat_statements")
        async with self._engine.snapshot() as read:
            (is_there,) = await read([Statement("find_query_statistics", {})])
            if not is_there:
                raise StoreError(
                    "the database does not count what queries cost, or this role may not read it; as an administrator, "
                    "set shared_preload_libraries = 'pg_stat_statements', and run: CREATE EXTENSION pg_stat_statements"
                )
            (rows,) = await read([Statement("list_query_statistics", {})])
        return [QueryStats(*row) for row in rows]

    async def check(self, *, overdue_after: timedelta = timedelta(minutes=5)) -> list[Finding]:
        longest_ago = time_before(self._clock(), "overdue_after", overdue_after)
        findings = await self._check_log()
        async with self._engine.snapshot() as read:
            for look in (
                _check_integrity,
                _check_whether_finished,
                _check_references,
                self._check_rows,
                lambda read: _check_overdue(read, longest_ago),
                self._check_indexes,
                _check_statistics,
                self._check_numbers,
                lambda read: self._check_snapshots(read, longest_ago),
            ):
                try:
                    findings += await look(read)
                except StoreCorruptError as error:  # nothing more can be learned this way, but the rest goes on
                    findings.append(Finding(FindingKind.Integrity, str(error)))
        return list(dict.fromkeys(findings))

    async def update_statistics(self) -> None:
        await self._engine.write([Statement("update_statistics", {})])

    async def _check_log(self) -> list[Finding]:
        """Return that the write-ahead log is long, and why, unless the next write shrinks it."""
        size = self._engine.log_size or 0
        if size <= _LONG_LOG:
            return []
        is_held = await self._engine.is_log_held()
        if is_held is None:
            why = (
                "either a connection, most likely of another process, reads for so long that it cannot start anew, or "
                "nobody has written since: check with mode=rw, which tells"
            )
        elif is_held:
            why = (
                "it cannot start anew as long as a connection, most likely of another process, reads an old moment: "
                "look for one that reads for long; once it ends, writing shrinks the log"
            )
        else:
            return []
        return [Finding(FindingKind.LongLog, f"the write-ahead log has {size // 10**6:,} MB; {why}")]

    async def _check_indexes(self, read: Read) -> list[Finding]:
        (rows,) = await read([Statement("list_indexes", {})])
        wanted = {index for query in self._engine.queries.values() for index in query.index if index.startswith("idx_")}
        return [
            Finding(FindingKind.MissingIndex, f"index {name} is missing; wfe-sql init makes it again")
            for name in sorted(wanted - {row[0] for row in rows})
        ]

    async def _check_numbers(self, read: Read) -> list[Finding]:
        """Return which numbers would be given twice, or come to an end, where a database keeps them in sequences."""
        if "list_numbers" not in self._engine.queries:
            return []
        (rows,) = await read([Statement("list_numbers", {"workflows": _EVERY})])
        behind = [
            f"the numbers of {table}.{column} are at {given:,}, and {highest:,} is stored, as after logical "
            "replication: inserts fail or get out of order; run wfe-sql init"
            for table, column, given, highest, _ in rows
            if given < highest
        ]
        ending = [
            f"{given:,} of the {last:,} numbers of {table}.{column} are given; wfe-sql copy into another store gives "
            "its rows numbers from 1"
            for table, column, given, _, last in rows
            if given > last // 2
        ]
        return [Finding(FindingKind.Numbers, message) for message in behind + ending]

    async def _check_snapshots(self, read: Read, longest_ago: datetime) -> list[Finding]:
        """Return who keeps what polls step over from being cleared away, where the database has such."""
        if "find_old_snapshots" not in self._engine.queries:
            return []
        params = {
            "older_than": encode_argument("now", TIME, longest_ago),
            "transactions": _TRANSACTIONS_BEHIND,
            "row_limit": _FINDINGS,
        }
        (rows,) = await read([Statement("find_old_snapshots", params)])
        return [
            Finding(
                FindingKind.OldSnapshot,
                f"{visible(holder)} keeps an old snapshot{'' if since is None else f' since {since}'}, so polls step "
                "over all that was changed meanwhile; end it",
            )
            for holder, since in rows
        ]

    async def _check_rows(self, read: Read) -> list[Finding]:
        """Read every row of every table, and return what cannot be read, or is found at the wrong moment."""
        (without_id,) = await read([Statement("find_rows_without_id", {})])
        findings = [
            Finding(FindingKind.Unreadable, f"a row of {table} cannot be read: its {column} is empty")
            for table, column in without_id
        ]
        counts = Counter(finding.kind for finding in findings)
        async for table, rows in self._pages(read):
            for finding in (finding for row in rows for finding in self._check_row(table, row)):
                counts[finding.kind] += 1
                if counts[finding.kind] <= _FINDINGS:
                    findings.append(finding)
        return findings

    def _check_row(self, table: Table, row: Sequence[Any]) -> Iterator[Finding]:
        _, problems = table.read(row)
        for problem in problems.values():
            yield Finding(FindingKind.Unreadable, problem)
        if self._engine.has_times_as_text:
            for column, value in table.odd_times(row):
                if column not in problems:
                    message = (
                        f"{table.name}.{column} of id {table.id_of(row)!r} is {value!r}, which is compared as text, so "
                        f"that polls may take it at the wrong moment; store {TIME.read(value)!r}"
                    )
                    yield Finding(FindingKind.Unsorted, message)


async def _check_integrity(read: Read) -> list[Finding]:
    (rows,) = await read([Statement("check_integrity", {"row_limit": _FINDINGS})])
    return [Finding(FindingKind.Integrity, str(problem)) for (problem,) in rows]


async def _check_whether_finished(read: Read) -> list[Finding]:
    (version,) = await read([Statement("get_store_version", {})])
    return [Finding(FindingKind.UnfinishedCopy, NOT_FINISHED)] if version == UNFINISHED_COPY else []


async def _check_references(read: Read) -> list[Finding]:
    limit = {"row_limit": _FINDINGS}
    strays, orphans = await read([Statement("check_foreign_keys", limit), Statement("find_orphans", limit)])
    return [
        Finding(FindingKind.ForeignKey, f"row {number} of {table} belongs to a row of {parent} that is not there")
        for table, number, parent in strays
    ] + [
        Finding(FindingKind.Orphan, f"{table}.{column} of id {id_!r} is {missing!r}, which is not there")
        for table, id_, column, missing in orphans
    ]


async def _count_due(read: Read, now: datetime, *, free_since: datetime | None = None) -> list[tuple[int, Any]]:
    """Return how many workflows, events and commands are due, and since when as stored; maybe only what is free."""
    free = {"free_since": None if free_since is None else encode_argument("now", TIME, free_since)}
    return await read(
        [
            Statement("count_due_workflows", {"as_at": encode_ms_bound("now", now), **free}),
            Statement("count_due_events", {"as_at": encode_bound("now", now), **free}),
            Statement("count_due_commands", {"as_of": encode_ms_bound("now", now), **free}),
        ]
    )


async def _check_overdue(read: Read, longest_ago: datetime) -> list[Finding]:
    """Return what should have been done, or taken over from a host that died, at `longest_ago` already."""
    findings = []
    words = ("workflows are due", "events are not processed", "scheduled commands are due")
    for what, (due, stored) in zip(words, await _count_due(read, longest_ago, free_since=longest_ago), strict=True):
        if due:
            since = _time_or_none(stored)
            longest = repr(stored) if since is None else TIME.encode(since)
            message = f"{due:,} {what} and nobody takes them, the longest since {longest}"
            findings.append(Finding(FindingKind.Overdue, message))
    params = {"now": encode_argument("now", TIME, longest_ago), "row_limit": _FINDINGS}
    (claims,) = await read([Statement("find_expired_claims", params)])
    return findings + [
        Finding(
            FindingKind.ExpiredClaim,
            f"{table} id {id_!r}: the claim of {worker!r} ended at {visible(_words(until))}; nobody took it",
        )
        for table, id_, worker, until in claims
    ]


async def _check_statistics(read: Read) -> list[Finding]:
    """Return what the planner does not know of tables that are large enough to need it."""
    has_statistics, counts = await read([Statement("has_statistics", {}), Statement("count_rows", {})])
    known: dict[str, int] = {}
    if has_statistics:
        (statistics,) = await read([Statement("list_statistics", {})])
        known = dict(statistics)
    return [
        Finding(FindingKind.Statistics, f"{table} has {count:,} rows and {_said(known.get(table))}; update them")
        for table, count in counts
        if count >= _WORTH_STATISTICS and not fits(count, known.get(table))
    ]


def _said(known: int | None) -> str:
    return "no statistics" if known is None else f"statistics from when it had about {known:,}"


def _time_or_none(stored: Any) -> datetime | None:
    """Return a stored time, as text or as epoch milliseconds; None where it is none, or beyond the years 1 to 9999."""
    try:
        if isinstance(stored, int | float):
            return EPOCH + timedelta(milliseconds=stored)
        return datetime.fromisoformat(TIME.read(stored))
    except (ValueError, OverflowError):
        return None


def _words(stored: Any) -> str:
    """Return what is stored in a column of text, which may be anything."""
    return stored.decode(errors="backslashreplace") if isinstance(stored, bytes) else str(stored)
