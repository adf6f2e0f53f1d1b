"""A backend made of dicts: workflows, subscriptions and events, without claims, conflicts, commands and the rest.

It stands for other people's backends, and shows that each part of the conformance suite asks for that part only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import wfe_sql
from wfe_sql import Event, EventSubscription, StoreError, WorkflowInstance, WorkflowStatus


class Items(dict[str, Any]):
    """Objects by id."""

    def __init__(self, exists: type[Exception], missing: type[Exception]) -> None:
        self._exists, self._missing = exists, missing

    async def create(self, item: Any) -> str:
        if item.id in self:
            raise self._exists(f"id {item.id!r} already exists")
        self[item.id] = deepcopy(item)
        return str(item.id)

    async def read(self, id: str) -> Any:
        return deepcopy(self[id])

    def __missing__(self, id: str) -> Any:
        raise self._missing(f"{id!r} does not exist")


class DictProvider:
    """Workflows, subscriptions and events in dicts."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._workflows = Items(wfe_sql.WorkflowAlreadyExistsError, wfe_sql.WorkflowNotFoundError)
        self._subscriptions = Items(StoreError, wfe_sql.SubscriptionNotFoundError)
        self._events = Items(wfe_sql.EventAlreadyExistsError, wfe_sql.EventNotFoundError)
        self.get_workflow_instance = self._workflows.read
        self.create_event_subscription, self.get_subscription = self._subscriptions.create, self._subscriptions.read
        self.create_event, self.get_event = self._events.create, self._events.read
        self._terminated: set[str] = set()
        self._numbers = Counter[str]()

    def _check_unique(self, instance: WorkflowInstance) -> None:
        pointers = {pointer.id for pointer in instance.execution_pointers}
        for other in self._workflows.values():
            if other.id != instance.id and other.name == (instance.name or instance.id):
                raise wfe_sql.WorkflowAlreadyExistsError(f"another workflow has the name {other.name!r}")
            if other.id != instance.id and (taken := pointers & {pointer.id for pointer in other.execution_pointers}):
                raise StoreError(f"pointers {sorted(taken)} belong to workflow {other.id!r}")

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        self._check_unique(instance)
        id_ = await self._workflows.create(instance)
        self._workflows[id_].name = instance.name or id_
        return id_

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        before, stored = self._workflows[instance.id], deepcopy(instance)
        stored.name, stored.create_time = stored.name or before.name, before.create_time
        self._check_unique(stored)
        self._workflows[stored.id] = stored

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        ids = [workflow.id for workflow in self._workflows.values() if workflow.name == name]
        found: WorkflowInstance = self._workflows[ids[0]] if ids else self._workflows.__missing__(name)
        return deepcopy(found)

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        return [deepcopy(self._workflows[id_]) for id_ in ids if id_ in self._workflows]

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        runnable = [each for each in self._workflows.values() if each.status is WorkflowStatus.Runnable]
        due = [(each.next_execution, each.id) for each in runnable if each.next_execution is not None]
        return [id_ for time, id_ in sorted(due) if datetime.fromtimestamp(time / 1000, UTC) <= as_at][:limit]

    async def next_definition_sequence(self, definition_id: str) -> int:
        self._numbers[definition_id] += 1
        return self._numbers[definition_id]

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> list[EventSubscription]:
        of_event = [s for s in self._subscriptions.values() if (s.event_name, s.event_key) == (event_name, event_key)]
        found = [s for s in of_event if s.subscribe_as_of <= as_of and s.id not in self._terminated]
        return sorted(deepcopy(found), key=lambda subscription: (subscription.subscribe_as_of, subscription.id))

    async def terminate_subscription(self, id: str) -> None:
        self._terminated.add(self._subscriptions[id].id)

    def _is_free(self, subscription: EventSubscription) -> bool:
        expiry = subscription.external_token_expiry
        return subscription.external_token is None or (expiry is not None and expiry <= self._clock())

    async def get_first_open_subscription(self, name: str, key: str, as_of: datetime) -> EventSubscription | None:
        return next(filter(self._is_free, await self.get_subscriptions(name, key, as_of)), None)

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        found = self._subscriptions[id]
        if id in self._terminated or not (self._is_free(found) or found.external_token == token):
            return False
        found.external_token, found.external_worker_id, found.external_token_expiry = token, worker_id, expiry
        return True

    async def clear_subscription_token(self, id: str, token: str) -> None:
        found = self._subscriptions[id]
        if found.external_token != token:
            raise wfe_sql.SubscriptionTokenError(f"subscription {id!r} is not held by {token!r}")
        found.external_token = found.external_worker_id = found.external_token_expiry = None

    def _event_ids(self, as_of: datetime, is_wanted: Callable[[Event], bool], limit: int | None) -> list[str]:
        found = [each for each in self._events.values() if each.event_time <= as_of and is_wanted(each)]
        return [event.id for event in sorted(found, key=lambda event: (event.event_time, event.id))][:limit]

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        return self._event_ids(as_at, lambda event: not event.is_processed, limit)

    async def get_events(self, name: str, key: str, as_of: datetime, *, limit: int | None = None) -> list[str]:
        return self._event_ids(as_of, lambda event: (event.event_name, event.event_key) == (name, key), limit)

    async def mark_event_processed(self, id: str) -> None:
        self._events[id].is_processed = True

    async def mark_event_unprocessed(self, id: str) -> None:
        self._events[id].is_processed = False
