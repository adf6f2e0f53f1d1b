"""Finds the column that makes a document unreadable, so that the error can name it."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from wfe_sql.codecs import check_json, utc_of

Document = str | bytes
"""A row as a JSON object with the names of the fields; bytes if the engine knows that a column cannot be read."""

UNPARSED = "\0unparsed JSON: "
"""The prefix of a string in a document that is the unparsable text of a JSON column."""


def find_damage(document: Document, types: Mapping[str, Any], row_id: Any) -> tuple[str, Any, Exception] | None:
    """Return the first field of a document that cannot be read, the row's id and the reason; or None.

    Args:
        document: The document.
        types: The type of each field.
        row_id: The id of its row; None if the document has it.
    """
    text = document if isinstance(document, str) else document.decode(errors="surrogateescape")
    values = json.loads(text)
    for field, kind in types.items():
        try:
            _check_value(values[field], kind)
        except (ValueError, RecursionError) as error:
            return field, values["id"] if row_id is None else row_id, error
    return None


def _check_value(value: Any, kind: Any) -> None:
    if isinstance(value, str) and value.startswith(UNPARSED):
        value = msgspec.json.decode(value.removeprefix(UNPARSED))
    check_json(value)
    found = msgspec.convert(value, kind)
    if isinstance(found, datetime):
        utc_of(found)
