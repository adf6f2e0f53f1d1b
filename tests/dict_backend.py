"""A backend made of dicts: workflows, subscriptions and events, without claims, conflicts, commands and the rest.

It stands for other people's backends, and shows that each part of the conformance suite asks for that part only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from wfe_sql import (
    Event,
    EventAlreadyExistsError,
    EventNotFoundError,
    EventSubscription,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WorkflowAlreadyExistsError,
    WorkflowInstance,
    WorkflowNotFoundError,
    WorkflowStatus,
)

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _found(items: dict[str, T], id: str, error: type[Exception]) -> T:
    if id not in items:
        raise error(f"{id!r} is not there")
    return items[id]


class DictProvider:
    """Workflows, subscriptions and events in dicts."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._workflows: dict[str, WorkflowInstance] = {}
        self._subscriptions: dict[str, EventSubscription] = {}
        self._terminated: set[str] = set()
        self._events: dict[str, Event] = {}
        self._numbers: Counter[str] = Counter()

    def _store(self, instance: WorkflowInstance) -> None:
        for other in self._workflows.values():
            if other.id != instance.id and other.name == instance.name:
                raise WorkflowAlreadyExistsError(f"another workflow has the name {instance.name!r}")
            taken = {pointer.id for pointer in other.execution_pointers if other.id != instance.id}
            if taken := taken & {pointer.id for pointer in instance.execution_pointers}:
                raise StoreError(f"pointers {sorted(taken)} are those of workflow {other.id!r}")
        self._workflows[instance.id] = instance

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        if instance.id in self._workflows:
            raise WorkflowAlreadyExistsError(f"another workflow has the id {instance.id!r}")
        stored = deepcopy(instance)
        stored.name = stored.name or stored.id
        self._store(stored)
        return stored.id

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        await self.persist_workflow_with_subscriptions(instance, [])

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        before = _found(self._workflows, instance.id, WorkflowNotFoundError)
        if taken := self._subscriptions.keys() & {subscription.id for subscription in subscriptions}:
            raise StoreError(f"subscriptions {sorted(taken)} exist")
        stored = deepcopy(instance)
        stored.name, stored.create_time = stored.name or before.name, before.create_time
        self._store(stored)
        self._subscriptions |= {subscription.id: deepcopy(subscription) for subscription in subscriptions}

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        return deepcopy(_found(self._workflows, id, WorkflowNotFoundError))

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        return deepcopy(_found({each.name: each for each in self._workflows.values()}, name, WorkflowNotFoundError))

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        return [deepcopy(self._workflows[id_]) for id_ in ids if id_ in self._workflows]

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        now = (as_at - EPOCH) // timedelta(milliseconds=1)
        runnable = [each for each in self._workflows.values() if each.status is WorkflowStatus.Runnable]
        due = [(each.next_execution, each.id) for each in runnable if each.next_execution is not None]
        return [id_ for time, id_ in sorted(due) if time <= now][:limit]

    async def next_definition_sequence(self, definition_id: str) -> int:
        self._numbers[definition_id] += 1
        return self._numbers[definition_id]

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        if subscription.id in self._subscriptions:
            raise StoreError(f"subscription {subscription.id!r} already exists")
        self._subscriptions[subscription.id] = deepcopy(subscription)
        return subscription.id

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[EventSubscription]:
        found = [
            deepcopy(each)
            for each in self._subscriptions.values()
            if (each.event_name, each.event_key) == (event_name, event_key)
            if each.subscribe_as_of <= as_of and each.id not in self._terminated
        ]
        return sorted(found, key=lambda each: (each.subscribe_as_of, each.id))[:limit]

    async def terminate_subscription(self, id: str) -> None:
        self._terminated.add(_found(self._subscriptions, id, SubscriptionNotFoundError).id)

    async def get_subscription(self, id: str) -> EventSubscription:
        return deepcopy(_found(self._subscriptions, id, SubscriptionNotFoundError))

    def _is_open(self, subscription: EventSubscription) -> bool:
        expiry = subscription.external_token_expiry
        is_held = subscription.external_token is not None and (expiry is None or expiry > self._clock())
        return not is_held and subscription.id not in self._terminated

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime
    ) -> EventSubscription | None:
        return next(filter(self._is_open, await self.get_subscriptions(event_name, event_key, as_of)), None)

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        found = _found(self._subscriptions, id, SubscriptionNotFoundError)
        if not self._is_open(found) and (found.external_token != token or id in self._terminated):
            return False
        found.external_token, found.external_worker_id, found.external_token_expiry = token, worker_id, expiry
        return True

    async def clear_subscription_token(self, id: str, token: str) -> None:
        found = _found(self._subscriptions, id, SubscriptionNotFoundError)
        if found.external_token != token:
            raise SubscriptionTokenError(f"subscription {id!r} is not held by {token!r}")
        found.external_token = found.external_worker_id = found.external_token_expiry = None

    async def create_event(self, event: Event) -> str:
        if event.id in self._events:
            raise EventAlreadyExistsError(f"event {event.id!r} already exists")
        self._events[event.id] = deepcopy(event)
        return event.id

    async def get_event(self, id: str) -> Event:
        return deepcopy(_found(self._events, id, EventNotFoundError))

    def _event_ids(self, is_wanted: Callable[[Event], bool], limit: int | None) -> list[str]:
        found = [(event.event_time, event.id) for event in self._events.values() if is_wanted(event)]
        return [id_ for _, id_ in sorted(found)][:limit]

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        return self._event_ids(lambda event: not event.is_processed and event.event_time <= as_at, limit)

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[str]:
        wanted = (event_name, event_key)
        return self._event_ids(
            lambda event: (event.event_name, event.event_key) == wanted and event.event_time <= as_of, limit
        )

    async def mark_event_processed(self, id: str) -> None:
        _found(self._events, id, EventNotFoundError).is_processed = True

    async def mark_event_unprocessed(self, id: str) -> None:
        _found(self._events, id, EventNotFoundError).is_processed = False
