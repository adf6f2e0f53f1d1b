"""Holds `used by:` in the header of a query to the code: the methods named there exist and run the query."""

from collections.abc import Callable, Sequence
from inspect import isfunction, unwrap
from types import CodeType
from typing import Any

from wfe_sql.errors import QueryFileError

_GROUP = "_group"
"""How the name of a query ends that runs many units of the query before it as one statement."""


def check_users(name: str, used_by: Sequence[str], users: Sequence[type], *, place: str) -> None:
    """Check that each method named in a query's header exists and runs the query, itself or in what it calls.

    Raises:
        QueryFileError: One of them does not; the message begins with the place.
    """
    for user in used_by:
        methods = [method for owner in users if isfunction(method := getattr(owner, user, None))]
        if not methods:
            raise QueryFileError(f"{place}: used by {user}, which is no method of {_names(users)}")
        if not any(name.removesuffix(_GROUP) in _constants(method, users) for method in methods):
            raise QueryFileError(f"{place}: nobody uses it, {user} does not run it")


def _constants(method: Callable[..., Any], users: Sequence[type]) -> set[str]:
    """Return every string in the code of a method and of the private methods and functions that it calls."""
    found: set[str] = set()
    seen: set[str] = set()
    pending: list[Any] = [method]
    while pending:
        function = unwrap(pending.pop())
        names, strings = _names_and_strings(function.__code__)
        found |= strings
        for name in (name for name in names - seen if name.startswith("_")):
            seen.add(name)
            helpers = [getattr(owner, name, None) for owner in users] + [function.__globals__.get(name)]
            pending.extend(helper for helper in helpers if hasattr(helper, "__code__"))
    return found


def _names_and_strings(code: CodeType) -> tuple[set[str], set[str]]:
    names, strings = set(code.co_names), set[str]()
    pending = list(code.co_consts)
    while pending:
        constant = pending.pop()
        if isinstance(constant, str):
            strings.add(constant)
        elif isinstance(constant, tuple):
            pending.extend(constant)
        elif isinstance(constant, CodeType):
            names.update(constant.co_names)
            pending.extend(constant.co_consts)
    return names, strings


def _names(users: Sequence[type]) -> str:
    return " or ".join(user.__name__ for user in users)
