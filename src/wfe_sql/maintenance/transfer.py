"""Dumps whole stores as text, copies them into other stores, and backs them up into files."""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from wfe_sql.engines import Engine, Read, Statement
from wfe_sql.engines.stores import UNFINISHED_COPY, VERSION
from wfe_sql.errors import CorruptRowError, StoreError, StoreNotEmptyError, WfeError
from wfe_sql.maintenance.models import CopyReport
from wfe_sql.maintenance.pages import Paging, Rows
from wfe_sql.maintenance.repository import MaintenanceRepository
from wfe_sql.tables import Table

_encoder = msgspec.json.Encoder(order="sorted")


class Transfer(Paging, MaintenanceRepository):
    """The methods of `MaintenanceRepository` that move whole stores."""

    _engine: Engine

    async def dump(self) -> AsyncGenerator[str, None]:
        async with self._engine.snapshot() as read, aclosing(self._pages(read)) as pages:
            await _check_ids(read)
            async for table, rows in pages:
                for line in _lines(table, rows):
                    yield line

    async def backup(self, path: str | os.PathLike[str]) -> None:
        await self._engine.backup(Path(path))

    async def copy_to(self, other: "Transfer", *, on_batch: Callable[[int, int], None] | None = None) -> CopyReport:
        """Copy every row into another store, which must be empty and must not be used by anybody else meanwhile.

        Everything is copied, including claims, revisions and the order of pointers. The copy is of one moment; what
        hosts write later is not in it. At the end the copy is read back, and row counts and a digest are compared.
        Until then the other store is marked as an unfinished copy, which `check` reports and opening refuses.

        Args:
            other: The provider of the other store, of any backend of this library. If it was opened with
                `allow_unfinished_copy`, the rows that a killed copy left there are deleted first.
            on_batch: Called with how many rows were copied, and how many were read back.

        Raises:
            StoreNotEmptyError: The other store has rows; nothing was copied.
            StoreError: The copy failed; the message says why, and whether the other store is empty again.
        """
        (version,) = await other._engine.read([Statement("get_store_version", {})])
        if version == UNFINISHED_COPY:
            await other._engine.write([Statement("empty_store", {})])
        if full := {table: count for table, count in (await other._count_rows()).items() if count}:
            what = ", ".join(f"{count:,} {table}" for table, count in full.items())
            raise StoreNotEmptyError(f"the destination is not empty ({what}); nothing was copied")
        copied: Counter[str] = Counter()
        try:
            return await self._copy_to(other, copied, on_batch or (lambda copied, verified: None))
        except BaseException as error:
            await asyncio.shield(other._empty(copied, error))
            if isinstance(error, WfeError):
                message = f"nothing was copied, and the destination is empty again: {error}"
                raise StoreError(message) from error
            raise

    async def _copy_to(
        self, other: "Transfer", counts: Counter[str], on_batch: Callable[[int, int], None]
    ) -> CopyReport:
        await other._engine.write([Statement("set_store_version", {"version": UNFINISHED_COPY})])
        digest = hashlib.sha256()
        async with self._engine.snapshot() as read, aclosing(self._pages(read)) as pages:
            await _check_ids(read)
            async for table, rows in pages:
                for line in _lines(table, rows):
                    digest.update(f"{line}\n".encode())
                await other._engine.write([_import_rows(table, rows)])
                counts[table.name] += len(rows)
                on_batch(counts.total(), 0)
        copied = {table: count for table, count in (await other._count_rows()).items() if count}
        if copied != counts:
            raise StoreError(f"the row counts differ: copied {dict(counts)}, found {copied}")
        copy_digest, verified = hashlib.sha256(), 0
        async with aclosing(other._pages(other._engine.read)) as pages:
            async for table, rows in pages:
                for line in _lines(table, rows):
                    copy_digest.update(f"{line}\n".encode())
                verified += len(rows)
                on_batch(counts.total(), verified)
        if copy_digest.digest() != digest.digest():
            raise StoreError("the rows read back from the copy differ from those copied")
        await other._engine.write([Statement("set_store_version", {"version": VERSION})])
        return CopyReport(dict(counts), digest.hexdigest())

    async def _count_rows(self) -> dict[str, int]:
        (rows,) = await self._engine.read([Statement("count_rows", {})])
        return dict(rows)

    async def _empty(self, copied: Counter[str], reason: BaseException) -> None:
        """Delete what a failed copy left, unless somebody else has written to the store too."""
        try:
            if any(count > copied[table] for table, count in (await self._count_rows()).items()):
                raise StoreError("it has rows that this copy did not write")
            await self._engine.write(
                [Statement("empty_store", {}), Statement("set_store_version", {"version": VERSION})]
            )
        except WfeError as error:
            message = (
                f"the copy failed ({reason}), and the copied rows are still there ({error}); delete the destination"
            )
            raise StoreError(message) from reason


async def _check_ids(read: Read) -> None:
    """Refuse rows that are in no page, because they would be left out silently."""
    (without_id,) = await read([Statement("find_rows_without_id", {})])
    for table, column in without_id:
        raise CorruptRowError(f"a row of {table} cannot be read: its {column} is empty", table=table, column=column)


def _lines(table: Table, rows: Rows) -> list[str]:
    """Return rows as lines of text, which are equal if the rows mean the same."""
    return [_encoder.encode({"table": table.name, "row": table.plain(row)}).decode() for row in rows]


def _import_rows(table: Table, rows: Rows) -> Statement:
    queries = {
        "definition_sequences": "import_definition_sequences",
        "workflows": "import_workflows",
        "execution_pointers": "import_execution_pointers",
        "events": "import_events",
        "event_subscriptions": "import_event_subscriptions",
        "scheduled_commands": "import_scheduled_commands",
        "execution_errors": "import_execution_errors",
    }
    return Statement(queries[table.name], [table.portable(row) for row in rows])
