"""Objects for tests; those of `full_...` have no field left at its default."""

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from wfe_sql.models import (
    Event,
    EventSubscription,
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
    new_id,
)

TIME = datetime(2026, 5, 28, 20, 26, 40, 123456, tzinfo=UTC)
JSON: dict[str, Any] = {
    "none": None,
    "yes": True,
    "big": 2**63,
    "float": 1.5,
    "text": "żółć ✓ 😀 'quoted' \"twice\"",
    "list": [1, [2, {"deep": []}]],
    "": {},
}


def sample_instance(**fields: Any) -> WorkflowInstance:
    """Return a small workflow with a name and one pointer; `fields` override its own."""
    values: dict[str, Any] = {
        "id": new_id(),
        "workflow_definition_id": "order",
        "version": 1,
        "data": {"amount": 1},
        "execution_pointers": [ExecutionPointer(step_id=0)],
        "create_time": TIME,
    }
    values |= fields
    values.setdefault("name", f"order-{values['id']}")
    return WorkflowInstance(**values)


def full_pointer(**fields: Any) -> ExecutionPointer:
    """Return a pointer with every field set."""
    values: dict[str, Any] = {
        "step_id": 3,
        "active": False,
        "status": PointerStatus.WaitingForEvent,
        "sleep_until": TIME + timedelta(hours=1),
        "persistence_data": {"cursor": deepcopy(JSON)},
        "start_time": TIME + timedelta(milliseconds=1),
        "end_time": TIME.replace(microsecond=0),
        "event_name": "paid",
        "event_key": "k1",
        "event_published": True,
        "event_data": [1, "two", None],
        "step_name": "wait for payment",
        "retry_count": 7,
        "children": ["c1", "c2"],
        "context_item": "item",
        "predecessor_id": "before",
        "outcome": False,
        "scope": ["outer", "inner"],
        "extension_attributes": {"owner": "alice", "nested": deepcopy(JSON)},
    }
    return ExecutionPointer(**values | fields)


def full_instance(**fields: Any) -> WorkflowInstance:
    """Return a workflow with every field set, and three pointers."""
    values: dict[str, Any] = {
        "name": f"order-{new_id()}",
        "root_workflow_id": "root",
        "description": "an order",
        "reference": "ref-1",
        "version": 3,
        "execution_pointers": [full_pointer(), ExecutionPointer(step_id=4), full_pointer(step_id=5)],
        "next_execution": 1_780_000_000_000,
        "status": WorkflowStatus.Suspended,
        "data": deepcopy(JSON),
        "complete_time": TIME + timedelta(days=1),
    }
    return sample_instance(**values | fields)


def full_event(**fields: Any) -> Event:
    """Return an event with every field set."""
    values: dict[str, Any] = {
        "event_name": "paid",
        "event_key": "k1",
        "event_data": deepcopy(JSON),
        "event_time": TIME,
        "is_processed": True,
    }
    return Event(**values | fields)


def full_subscription(**fields: Any) -> EventSubscription:
    """Return a subscription with every field set, held by a worker."""
    values: dict[str, Any] = {
        "workflow_id": new_id(),
        "step_id": 3,
        "execution_pointer_id": new_id(),
        "event_name": "paid",
        "event_key": "k1",
        "subscribe_as_of": TIME,
        "subscription_data": deepcopy(JSON),
        "external_token": "token",
        "external_worker_id": "worker-1",
        "external_token_expiry": TIME + timedelta(minutes=1),
    }
    return EventSubscription(**values | fields)
