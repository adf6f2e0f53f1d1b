"""The contents of a store as plain data, for comparisons."""

import json
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any


async def take_snapshot(source: Any) -> Any:
    """Return the contents of a store, or models or rows, as JSON.

    A provider gives `{table: [row, ...]}` with the rows of its `dump`, without empty tables. Anything else is
    converted to JSON: models and rows into dicts of their fields or columns, times into RFC 3339 in UTC.

    Raises:
        TypeError: It contains a value of another type.
    """
    if not hasattr(source, "dump"):
        return _plain(source)
    tables: dict[str, list[Any]] = {}
    async with aclosing(source.dump()) as lines:
        async for line in lines:
            found = json.loads(line)
            tables.setdefault(found["table"], []).append(found["row"])
    return tables


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)  # a plain str, not a member of an enum
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if hasattr(value, "keys"):  # a mapping, or a row of sqlite3
        return {str(key): _plain(value[key]) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, Iterable):
        return [_plain(each) for each in value]
    raise TypeError(f"a snapshot cannot have a value of type {type(value).__name__}")
