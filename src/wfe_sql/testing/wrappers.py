"""Providers for tests that stand before another one: they fail when they are told to, or count what is asked."""

from collections import Counter, defaultdict, deque
from copy import copy
from dataclasses import dataclass
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from wfe_sql.errors import ClaimLostError, StoreBusyError, StoreUnavailableError
from wfe_sql.models import WorkflowInstance

if TYPE_CHECKING:
    from wfe_sql.provider import SqlPersistenceProvider as _Provider
else:
    _Provider = object


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    stored: bool


class FailingProvider(_Provider):
    """A provider whose next call of a method fails, if the test says so; otherwise it does what the wrapped one does.

    Failures of one method come in the order in which they were asked for, one for each call.

    Args:
        provider: The provider that does the work, open already.
    """

    def __init__(self, provider: Any) -> None:
        self._wrapped = provider
        self._failures: dict[str, deque[_Failure]] = defaultdict(deque)

    def lose_claim(self, method: str) -> None:
        """Have the next call of a method raise `ClaimLostError`; nothing is written."""
        self.fail_next(method, ClaimLostError(f"{method} lost its claim, as the test asked for; nothing was written"))

    def be_busy(self, method: str) -> None:
        """Have the next call of a method raise `StoreBusyError`; nothing is written."""
        self.fail_next(method, StoreBusyError(f"{method} found the store busy, as the test asked for"))

    def lose_answer(self, method: str, *, stored: bool) -> None:
        """Have the next call of a method raise `StoreUnavailableError`, as if the connection was lost at the commit.

        Args:
            method: The method.
            stored: Whether it does its work before that; a host cannot tell, and must be right in both cases.
        """
        error = StoreUnavailableError(
            f"{method} lost its connection, as the test asked for; it is not known whether the write was committed"
        )
        self.fail_next(method, error, stored=stored)

    def fail_next(self, method: str, error: Exception, *, stored: bool = False) -> None:
        """Have the next call of a method raise an error, after it did its work if `stored`.

        Raises:
            TypeError: The provider has no async method of this name.
        """
        if not iscoroutinefunction(getattr(self._wrapped, method, None)):
            raise TypeError(f"{method!r} is not an async method of {type(self._wrapped).__name__}, so it cannot fail")
        self._failures[method].append(_Failure(error, stored))

    @property
    def pending(self) -> list[str]:
        """The methods that have not been called since they were told to fail; once for each failure."""
        return [method for method, failures in self._failures.items() for _ in failures]

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not iscoroutinefunction(attribute):
            return attribute

        @wraps(attribute)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if not (failures := self._failures.get(name)):
                return await attribute(*args, **kwargs)
            failure = failures.popleft()
            if failure.stored:
                await attribute(*map(_without_memory, args), **{key: _without_memory(kwargs[key]) for key in kwargs})
            raise failure.error

        return call


def _without_memory(argument: Any) -> Any:
    """Return what may be stored without the caller's instance remembering it, as the answer never came."""
    return copy(argument) if isinstance(argument, WorkflowInstance) else argument


class CountingProvider(_Provider):
    """A provider that counts what is asked of another one, which does the work.

    Attributes:
        calls: How often each method was called.
    """

    def __init__(self, provider: Any) -> None:
        """Count from now on.

        Args:
            provider: The provider that does the work, open already; one of `wfe_sql.connect`, to count commits too.
        """
        self._wrapped = provider
        self.reset()

    def reset(self) -> None:
        """Count from nothing again."""
        self.calls: Counter[str] = Counter()
        self._commits_before = self._commits_so_far

    @property
    def commits(self) -> int:
        """How many transactions that may have written something were committed; calls that wait together share one.

        Raises:
            TypeError: The provider that does the work does not count its commits.
        """
        if self._commits_so_far is None or self._commits_before is None:
            raise TypeError(f"{type(self._wrapped).__name__} does not count its commits")
        return self._commits_so_far - self._commits_before

    @property
    def _commits_so_far(self) -> int | None:
        engine = getattr(self._wrapped, "_engine", None)
        return None if engine is None else engine.commits

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute):
            return attribute

        @wraps(attribute)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return attribute(*args, **kwargs)

        return call
