"""Wrappers around a provider for tests: they fail on demand, or count calls."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial, wraps
from inspect import iscoroutinefunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wfe_sql.errors import ClaimLostError, StoreBusyError, StoreUnavailableError
from wfe_sql.models import WorkflowInstance

if TYPE_CHECKING:
    from wfe_sql.provider import SqlPersistenceProvider as _Provider
else:
    _Provider = object

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    stored: bool


class FailingProvider(_Provider):
    """A provider that fails on demand, and otherwise does what the wrapped one does.

    Failures of one method happen in the order in which they were requested, one for each call. A failure of `unit`
    happens at the end of the unit's block, where a unit is stored; if the block raises, the next unit fails instead.

    Args:
        provider: The provider that does the work, already open.
    """

    def __init__(self, provider: Any) -> None:
        self._wrapped = provider
        self._failures: dict[str, deque[_Failure]] = defaultdict(deque)

    def lose_claim(self, method: str) -> None:
        """Make the next call of a method raise `ClaimLostError`; nothing is written."""
        self.fail_next(method, ClaimLostError(f"{method} lost its claim, as the test requested; nothing was written"))

    def be_busy(self, method: str) -> None:
        """Make the next call of a method raise `StoreBusyError`; nothing is written."""
        self.fail_next(method, StoreBusyError(f"{method} found the store busy, as the test requested"))

    def lose_answer(self, method: str, *, stored: bool) -> None:
        """Make the next call of a method raise `StoreUnavailableError`, as if the connection was lost at the commit.

        Args:
            method: The method.
            stored: Whether it does its work before that; a host cannot tell, and must be correct in both cases.
        """
        error = StoreUnavailableError(
            f"{method} lost its connection, as the test requested; it is not known whether the write was committed"
        )
        self.fail_next(method, error, stored=stored)

    def fail_next(self, method: str, error: Exception, *, stored: bool = False) -> None:
        """Make the next call of a method raise an error; with `stored`, after it did its work.

        Raises:
            TypeError: The provider has no async method of this name, and it is not "unit".
        """
        if method != "unit" and not iscoroutinefunction(getattr(self._wrapped, method, None)):
            raise TypeError(
                f"{method!r} is not an async method of {type(self._wrapped).__name__}, nor 'unit', so it cannot fail"
            )
        self._failures[method].append(_Failure(error, stored))

    @property
    def pending(self) -> list[str]:
        """The methods with failures that have not happened yet; once for each failure."""
        return [method for method, failures in self._failures.items() for _ in failures]

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if name == "unit":

            @wraps(attribute)
            def unit(*args: Any, **kwargs: Any) -> _FailingUnit:
                return _FailingUnit(attribute(*args, **kwargs), self._failures[name])

            return unit
        if not iscoroutinefunction(attribute):
            return attribute

        @wraps(attribute)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if not (failures := self._failures.get(name)):
                return await attribute(*args, **kwargs)
            failure = failures.popleft()
            if failure.stored:
                await _call_without_memory(attribute, *args, **kwargs)
            raise failure.error

        return call


class _FailingUnit:
    """A unit of work that fails at the end of its block."""

    def __init__(self, unit: Any, failures: deque[_Failure]) -> None:
        self._unit = unit
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._unit, name)
        return partial(_call_without_memory, attribute) if self._failures and self._failures[0].stored else attribute

    async def __aenter__(self) -> Self:
        await self._unit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = self._failures.popleft() if error is None and self._failures else None
        if failure is not None and not failure.stored:
            kind, error = type(failure.error), failure.error
        await self._unit.__aexit__(kind, error, traceback)
        if failure is not None:
            raise failure.error


def _call_without_memory(method: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Call a method with copies of instances, so that the caller's do not remember the write: the answer never came."""
    return method(*map(_copied, args), **{key: _copied(value) for key, value in kwargs.items()})


def _copied(argument: Any) -> Any:
    return copy(argument) if isinstance(argument, WorkflowInstance) else argument


class CountingProvider(_Provider):
    """A provider that counts the calls to the wrapped one.

    Attributes:
        calls: How often each method was called.
    """

    def __init__(self, provider: Any) -> None:
        """Start counting.

        Args:
            provider: The provider that does the work, already open; one from `wfe_sql.connect` to count commits too.
        """
        self._wrapped = provider
        self.reset()

    def reset(self) -> None:
        """Start counting from zero."""
        self.calls: Counter[str] = Counter()
        self._commits_before = self._commits_so_far

    @property
    def commits(self) -> int:
        """How many transactions that may have written something were committed; calls that wait together share one.

        Raises:
            TypeError: The wrapped provider does not count its commits.
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
