"""Capabilities that a conforming backend may lack."""

from dataclasses import dataclass

from wfe_sql.engines.alarms import WakesOn


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the conformance suite may expect of a backend, from the fixture `capabilities`.

    Attributes:
        stores_nul: Whether text and JSON can contain the NUL character; if not, it is rejected with a
            `SerializationError` that names the column. No backend takes it in an id.
        longest_key: How many characters ids, names and keys may have; None for no limit.
        wakes_on: The provider's `wakes_on`; with "none", hosts that wait for work poll.
    """

    stores_nul: bool = True
    longest_key: int | None = None
    wakes_on: WakesOn = "store"
