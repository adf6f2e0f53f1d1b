"""Fills a store with finished or due workflows, faster than by running them."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import aiosql

from wfe_sql import connect

CUSTOMERS = 100
"""The customers that wait for payments: the number of keys of events and subscriptions."""

BATCH = 10_000
FIRST_TIME = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_MS = round(FIRST_TIME.timestamp() * 1000)
DATA = {
    "customer": {"name": "Ada Lovelace", "street": "12 St James's Square", "city": "London", "mail": "ada@example.org"},
    "items": [{"sku": f"book-{number}", "quantity": number, "price": 1250} for number in range(1, 4)],
    "note": "leave it with the neighbours",
}

_queries: Any = aiosql.from_path(Path(__file__).with_suffix(".sql"), "sqlite3")


class Shape(NamedTuple):
    """What each workflow has: its number of pointers, and how many workflows share an event and a subscription."""

    pointers: int
    event_every: int


IdOf = Callable[[str, int], str]
"""Returns the id of an object of the workflow with a number."""

WHATS = ("workflow", "event", "subscription")


def sorting_id(what: str, number: int) -> str:
    """Return a UUIDv7, as if a workflow had begun each second."""
    ms = FIRST_MS + number * 1000
    kind = WHATS.index(what) if what in WHATS else len(WHATS) + int(what)
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{kind:03x}-8000-{number:012x}"


def random_id(what: str, number: int) -> str:
    """Return an id that looks random, as those of the Rust crates do."""
    return str(uuid5(NAMESPACE_URL, f"{what} {number}"))


def customer_of(number: int) -> str:
    return f"customer {number % CUSTOMERS}"


def make_store(file: Path) -> None:
    """Create a file of the library."""

    async def open_and_close() -> None:
        async with connect(file):
            pass

    asyncio.run(open_and_close())


def fill(file: Path, numbers: range, *, live: bool, shape: Shape, id_of: IdOf) -> None:
    """Add a workflow for each number, finished or due."""
    with closing(sqlite3.connect(file)) as connection:
        _queries.journal_nothing(connection)
        _queries.flush_nothing(connection)
        _queries.cache_much(connection)
        for start in range(numbers.start, numbers.stop, BATCH):
            _fill_batch(connection, range(start, min(start + BATCH, numbers.stop)), live, shape, id_of)
        connection.commit()
    flush(file)


def flush(file: Path) -> None:
    """Flush a file to disk, so that none of it is written during a measurement."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _fill_batch(connection: sqlite3.Connection, numbers: range, live: bool, shape: Shape, id_of: IdOf) -> None:
    rows: list[dict[str, Any]] = [
        {
            "number": number,
            "id": id_of("workflow", number),
            "name": f"order-{number}",
            "status": "Runnable" if live else "Complete",
            "data": json.dumps(DATA | {"round": number}),
            "next_execution": number if live else None,
            "time": (FIRST_TIME + timedelta(seconds=number)).isoformat(),
            "event_key": customer_of(number),
            "done": not live,
        }
        for number in numbers
    ]
    _queries.insert_workflows(connection, rows)
    pointers = [
        {"id": id_of(str(step), row["number"]), "workflow_id": row["id"], "step": step, "time": row["time"]}
        for row in rows
        for step in range(shape.pointers)
    ]
    _queries.insert_pointers(connection, pointers)
    with_event = rows[:: shape.event_every]
    _queries.insert_events(connection, [row | {"id": id_of("event", row["number"])} for row in with_event])
    subscriptions = [
        row
        | {
            "id": id_of("subscription", row["number"]),
            "workflow_id": row["id"],
            "pointer_id": id_of("1", row["number"]),
        }
        for row in with_event
    ]
    _queries.insert_subscriptions(connection, subscriptions)
