"""How waiters for work learn that a store was changed, by this process or by others."""

from collections.abc import Callable
from typing import Literal, Protocol

WakesOn = Literal["none", "process", "store"]
"""Whose writes end a wait for work at once: nobody's, those of this process, or those of every user of the store."""

_RINGS: dict[str, tuple[Callable[[], None], ...]] = {}
"""Functions to call when this process has changed a store, by the store's id."""


def ring(store_id: str) -> None:
    """Tell this process's waiters for work that a store was changed; called on any thread."""
    for listener in _RINGS.get(store_id, ()):
        listener()


def listen(store_id: str, listener: Callable[[], None]) -> None:
    """Call a function, on any thread, each time this process has changed a store."""
    _RINGS[store_id] = (*_RINGS.get(store_id, ()), listener)


def forget(store_id: str, listener: Callable[[], None]) -> None:
    """Stop calling a function; an unknown one is fine."""
    left = tuple(other for other in _RINGS.get(store_id, ()) if other != listener)
    if left:
        _RINGS[store_id] = left
    else:
        _RINGS.pop(store_id, None)


class Ring(Protocol):
    """What an alarm calls, on the event loop, when it rings."""

    def __call__(self, *, is_due: bool = False) -> None:
        """Note that the store was changed.

        Args:
            is_due: Whether the change makes something due, now or later.
        """
        ...


class Alarm(Protocol):
    """Rings when others have changed the store, if asked to."""

    async def ask(self) -> float | None:
        """Ring once after any later commit that may make something due; ringing too often is fine.

        Returns:
            Seconds after which to look anyway, because it may not ring; None if it will ring.
        """
        ...

    async def rest(self) -> None:
        """Stop watching, because nobody waits for it to ring."""
        ...


class NoAlarm:
    """The alarm of a store that only its own provider can change."""

    async def ask(self) -> float | None:
        """Do nothing."""
        return None

    async def rest(self) -> None:
        """Do nothing."""
