"""How those who wait for work hear that a store was changed: by this process, and by others."""

from collections.abc import Callable
from typing import Literal, Protocol

WakesOn = Literal["none", "process", "store"]
"""Whose writes end a wait for work at once: nobody's, those of this process, or those of all who use the store."""

_RINGS: dict[str, tuple[Callable[[], None], ...]] = {}
"""What to call when this process has changed a store, by the store's id."""


def ring(store_id: str) -> None:
    """Tell those of this process who wait for work that a store was changed; called on any thread."""
    for listener in _RINGS.get(store_id, ()):
        listener()


def listen(store_id: str, listener: Callable[[], None]) -> None:
    """Have a function called, on any thread, each time after this process has changed a store."""
    _RINGS[store_id] = (*_RINGS.get(store_id, ()), listener)


def forget(store_id: str, listener: Callable[[], None]) -> None:
    """Have a function called no more; one that is not known is fine."""
    left = tuple(other for other in _RINGS.get(store_id, ()) if other != listener)
    if left:
        _RINGS[store_id] = left
    else:
        _RINGS.pop(store_id, None)


class Alarm(Protocol):
    """Rings when others have changed the store, if it was asked to."""

    async def ask(self) -> float | None:
        """Ask it to ring once after any commit from now on that may make something due; ringing too often is fine.

        Returns:
            After how many seconds to look all the same, as it may not ring; None where it does.
        """
        ...

    async def rest(self) -> None:
        """Let it know that nobody waits for it to ring."""
        ...


class NoAlarm:
    """That of a store that nobody but its own provider can change."""

    async def ask(self) -> float | None:
        """Do nothing."""
        return None

    async def rest(self) -> None:
        """Do nothing."""
