"""Ids that are the same in every run."""

from collections.abc import Iterator
from contextlib import contextmanager

from wfe_sql import models

_MS = 1_780_000_000_000
"""The time in these ids, at which `ManualClock` starts."""
_LATEST_MS = 2**48 - 2
"""Later than the system's clock, so that `new_id` only counts."""


@contextmanager
def seeded_ids(seed: int = 0) -> Iterator[None]:
    """Make `new_id`, and so the default ids of new models and the tokens of claims, count up from a seed in the block.

    They are UUIDv7 (RFC 9562) that sort in the order in which they are made. Two seeds have no id in common.

    Args:
        seed: From 0 to 4095.

    Raises:
        ValueError: The seed is out of range.
    """
    if not 0 <= seed < 2**12:
        raise ValueError(f"seed must be from 0 to 4095, not {seed}")
    with models._ids_lock:
        before = models._ids_ms, models._ids_begin, models._ids_count
        models._ids_ms, models._ids_count = _LATEST_MS, 0
        models._ids_begin = f"{_MS >> 16:08x}-{_MS & 0xFFFF:04x}-7{seed:03x}-8000-"
    try:
        yield
    finally:
        with models._ids_lock:
            models._ids_ms, models._ids_begin, models._ids_count = before
