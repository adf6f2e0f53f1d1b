"""What a backend may lack and still conform."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the conformance suite may expect of a backend, from the fixture `capabilities`.

    Attributes:
        stores_nul: Whether text and JSON can contain the NUL character; if not, it is refused with a
            `SerializationError` that names the column.
        longest_key: How many characters ids, names and keys may have; None for no limit.
    """

    stores_nul: bool = True
    longest_key: int | None = None
