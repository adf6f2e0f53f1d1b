"""Counts what is in a store, and finds what is wrong with it."""

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
from wfe_sql.plans import is_about
from wfe_sql.tables import Table

_FINDINGS = 100
"""How many findings of one kind are listed."""

_EVERY = 2**63 - 1

_TRANSACTIONS_BEHIND = 100_000
"""How many transactions a replication slot may be behind."""

_LONG_LOG = 32 * 2**20
"""Bytes beyond which a write-ahead log is a finding: eight times the usual size in SQLite."""

_WORTH_STATISTICS = 10_000
"""Rows from which a table needs statistics for good plans."""


class Health(Paging, MaintenanceRepository):
    """The methods of `MaintenanceRepository` on the store as a whole."""

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
                    workflow_definition_id=_to_text(definition_id),
                    status=_to_text(status),
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
            raise StoreError("this database does not measure queries; PostgreSQL does, with pg_stat_statements")
        async with self._engine.snapshot() as read:
            (is_there,) = await read([Statement("find_query_statistics", {})])
            if not is_there:
                raise StoreError(
                    "the database does not measure queries, or this role may not read that; as an administrator, "
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
                except StoreCorruptError as error:  # this check ends here, the others go on
                    findings.append(Finding(FindingKind.Integrity, str(error)))
        return list(dict.fromkeys(findings))

    async def update_statistics(self) -> None:
        await self._engine.write([Statement("update_statistics", {})])

    async def _check_log(self) -> list[Finding]:
        """Report a long write-ahead log, and why it is long, unless the next write shrinks it."""
        size = self._engine.log_size or 0
        if size <= _LONG_LOG:
            return []
        is_held = await self._engine.is_log_held()
        if is_held is None:
            why = (
                "either a long-running reader, most likely in another process, keeps it from being reset, or nobody "
                "has written since: check with mode=rw to find out"
            )
        elif is_held:
            why = (
                "it cannot be reset while a connection reads an old snapshot: look for a long-running reader, most "
                "likely in another process; once it ends, the next writes shrink the log"
            )
        else:
            return []
        return [Finding(FindingKind.LongLog, f"the write-ahead log has {size // 10**6:,} MB; {why}")]

    async def _check_indexes(self, read: Read) -> list[Finding]:
        (rows,) = await read([Statement("list_indexes", {})])
        wanted = {index for query in self._engine.queries.values() for index in query.index if index.startswith("idx_")}
        return [
            Finding(FindingKind.MissingIndex, f"index {name} is missing; run wfe-sql init to build it")
            for name in sorted(wanted - {row[0] for row in rows})
        ]

    async def _check_numbers(self, read: Read) -> list[Finding]:
        """Report sequences, in a database that has them, that would repeat numbers or that run out."""
        if "list_numbers" not in self._engine.queries:
            return []
        (rows,) = await read([Statement("list_numbers", {"workflows": _EVERY})])
        behind = [
            f"the sequence of {table}.{column} is at {given:,}, but {highest:,} is stored, as after logical "
            "replication: inserts fail or are out of order; run wfe-sql init"
            for table, column, given, highest, _ in rows
            if given < highest
        ]
        ending = [
            f"{given:,} of the {last:,} numbers of {table}.{column} are used; wfe-sql copy into another store numbers "
            "its rows from 1"
            for table, column, given, _, last in rows
            if given > last // 2
        ]
        return [Finding(FindingKind.Numbers, message) for message in behind + ending]

    async def _check_snapshots(self, read: Read, longest_ago: datetime) -> list[Finding]:
        """Report what keeps dead rows from being vacuumed, in a database that has them."""
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
                f"{visible(holder)} keeps an old snapshot{'' if since is None else f' since {since}'}, so polls must "
                "skip every row version since then; end it",
            )
            for holder, since in rows
        ]

    async def _check_rows(self, read: Read) -> list[Finding]:
        """Read every row of every table, and report what cannot be read, or sorts wrongly."""
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
                        f"polls may take it at the wrong time; store {TIME.read(value)!r}"
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
    strays, orphans, waiting = await read(
        [
            Statement("check_foreign_keys", limit),
            Statement("find_orphans", limit),
            Statement("find_missing_pointers", limit),
        ]
    )
    return [
        *(
            Finding(FindingKind.ForeignKey, f"{table} row {number} refers to a missing row of {parent}")
            for table, number, parent in strays
        ),
        *(
            Finding(FindingKind.Orphan, f"{table}.{column} of id {id_!r} is {missing!r}, which does not exist")
            for table, id_, column, missing in orphans
        ),
        *(
            Finding(
                FindingKind.Orphan,
                f"{table}.{column} of id {id_!r} is {missing!r}, which is not a pointer of workflow {workflow!r}, so "
                "it waits forever; add the pointer again, or end the wait",
            )
            for table, id_, column, missing, workflow in waiting
        ),
    ]


async def _count_due(read: Read, now: datetime, *, free_since: datetime | None = None) -> list[tuple[int, Any]]:
    """Return how many workflows, events and commands are due, or due and free, and since when, as stored."""
    free = {"free_since": None if free_since is None else encode_argument("now", TIME, free_since)}
    return await read(
        [
            Statement("count_due_workflows", {"as_at": encode_ms_bound("now", now), **free}),
            Statement("count_due_events", {"as_at": encode_bound("now", now), **free}),
            Statement("count_due_commands", {"as_of": encode_ms_bound("now", now), **free}),
        ]
    )


async def _check_overdue(read: Read, longest_ago: datetime) -> list[Finding]:
    """Report work that should have been done, or taken over from a dead host, by `longest_ago`."""
    findings = []
    kinds = ("workflows", "events", "scheduled commands")
    for what, (due, stored) in zip(kinds, await _count_due(read, longest_ago, free_since=longest_ago), strict=True):
        if due:
            since = _time_or_none(stored)
            longest = repr(stored) if since is None else TIME.encode(since)
            message = f"{due:,} {what} are overdue and unclaimed; the oldest has been due since {longest}"
            findings.append(Finding(FindingKind.Overdue, message))
    params = {"now": encode_argument("now", TIME, longest_ago), "row_limit": _FINDINGS}
    (claims,) = await read([Statement("find_expired_claims", params)])
    return findings + [
        Finding(
            FindingKind.ExpiredClaim,
            f"{table} id {id_!r}: the claim of {worker!r} expired at {visible(_to_text(until))}; nobody took it over",
        )
        for table, id_, worker, until in claims
    ]


async def _check_statistics(read: Read) -> list[Finding]:
    """Report large tables with missing or old statistics."""
    has_statistics, counts = await read([Statement("has_statistics", {}), Statement("count_rows", {})])
    known: dict[str, int] = {}
    if has_statistics:
        (statistics,) = await read([Statement("list_statistics", {})])
        known = dict(statistics)
    return [
        Finding(
            FindingKind.Statistics, f"{table} has {count:,} rows and {_describe(known.get(table))}; run wfe-sql init"
        )
        for table, count in counts
        if count >= _WORTH_STATISTICS and not is_about(count, known.get(table))
    ]


def _describe(known: int | None) -> str:
    return "no statistics" if known is None else f"statistics from when it had about {known:,}"


def _time_or_none(stored: Any) -> datetime | None:
    """Return a stored time, which is text or epoch milliseconds; None if it is invalid or out of range."""
    try:
        if isinstance(stored, int | float):
            return EPOCH + timedelta(milliseconds=stored)
        return datetime.fromisoformat(TIME.read(stored))
    except (ValueError, OverflowError):
        return None


def _to_text(stored: Any) -> str:
    """Return the value of a text column, which may be anything, as text."""
    return stored.decode(errors="backslashreplace") if isinstance(stored, bytes) else str(stored)
