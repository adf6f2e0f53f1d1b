"""The compared sides: each stores the same workflows in the same tables of SQLite or PostgreSQL, durably."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from wfe_sql import Event, EventSubscription, ExecutionPointer, WorkflowInstance


class Models(NamedTuple):
    """The classes that a side stores; all take the keywords of the library's dataclasses."""

    workflow: Callable[..., Any]
    pointer: Callable[..., Any]
    event: Callable[..., Any]
    subscription: Callable[..., Any]


DATACLASSES = Models(WorkflowInstance, ExecutionPointer, Event, EventSubscription)


class Store(Protocol):
    """An open store: the part of `PersistenceProvider` that the workloads call. Each call is one unit of work."""

    async def next_definition_sequence(self, definition_id: str, /) -> int: ...

    async def create_new_workflow(self, instance: Any, /) -> object: ...

    async def persist_workflow(self, instance: Any, /) -> None: ...

    async def persist_workflow_with_subscriptions(self, instance: Any, subscriptions: Sequence[Any], /) -> None: ...

    async def get_workflow_instance(self, id: str, /) -> Any: ...

    async def create_event(self, event: Any, /) -> object: ...

    async def mark_event_processed(self, id: str, /) -> None: ...

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime, /) -> Sequence[Any]: ...

    async def terminate_subscription(self, id: str, /) -> None: ...


class StoreWithUnits(Store, Protocol):
    """A store that also has units of work."""

    def unit(self) -> Any: ...


@dataclass(frozen=True)
class Side:
    """A way to store workflows.

    Attributes:
        name: Its column in the tables.
        setup: Its settings, in a line for readers of the tables.
        open: Opens a place (see `places`) that has the baseline's tables already.
        models: The classes that it stores.
        in_turns: Whether it has no concurrency, so that callers' operations run one after the other.
        on_finished: Whether it is also measured on filled stores.
        has_units: Whether it has units of work.
    """

    name: str
    setup: str
    open: Callable[[Any], AbstractAsyncContextManager[Store]]
    models: Models = DATACLASSES
    in_turns: bool = False
    on_finished: bool = False
    has_units: bool = False


def texts_of(queries: Any) -> dict[str, str]:
    """Return the text of each of aiosql's queries, by name."""
    return {name: getattr(queries, name).sql for name in queries.available_queries if not name.endswith("_cursor")}
