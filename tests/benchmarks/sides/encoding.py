"""Dataclasses to parameters and rows to dataclasses, written by hand with the standard library."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from wfe_sql import Event, EventSubscription, ExecutionPointer, PointerStatus, WorkflowInstance, WorkflowStatus

Row = dict[str, Any]


def encode_workflow(workflow: WorkflowInstance) -> Row:
    return {
        "id": workflow.id,
        "name": workflow.name,
        "root_workflow_id": workflow.root_workflow_id,
        "definition_id": workflow.workflow_definition_id,
        "version": workflow.version,
        "description": workflow.description,
        "reference": workflow.reference,
        "status": workflow.status.value,
        "data": json.dumps(workflow.data),
        "next_execution": workflow.next_execution,
        "create_time": workflow.create_time.isoformat(),
        "complete_time": _encode_time(workflow.complete_time),
    }


def encode_pointers(workflow: WorkflowInstance) -> list[Row]:
    return [
        {
            "id": pointer.id,
            "workflow_id": workflow.id,
            "step_id": pointer.step_id,
            "active": pointer.active,
            "status": pointer.status.value,
            "sleep_until": _encode_time(pointer.sleep_until),
            "persistence_data": _encode_json(pointer.persistence_data),
            "start_time": _encode_time(pointer.start_time),
            "end_time": _encode_time(pointer.end_time),
            "event_name": pointer.event_name,
            "event_key": pointer.event_key,
            "event_published": pointer.event_published,
            "event_data": _encode_json(pointer.event_data),
            "step_name": pointer.step_name,
            "retry_count": pointer.retry_count,
            "children": json.dumps(pointer.children),
            "context_item": _encode_json(pointer.context_item),
            "predecessor_id": pointer.predecessor_id,
            "outcome": _encode_json(pointer.outcome),
            "scope": json.dumps(pointer.scope),
            "extension_attributes": json.dumps(pointer.extension_attributes),
        }
        for pointer in workflow.execution_pointers
    ]


def decode_workflow(row: Sequence[Any], pointers: Sequence[Sequence[Any]]) -> WorkflowInstance:
    return WorkflowInstance(
        id=row[0],
        name=row[1],
        root_workflow_id=row[2],
        workflow_definition_id=row[3],
        version=row[4],
        description=row[5],
        reference=row[6],
        execution_pointers=[_decode_pointer(pointer) for pointer in pointers],
        next_execution=row[7],
        status=WorkflowStatus(row[8]),
        data=json.loads(row[9]),
        create_time=datetime.fromisoformat(row[10]),
        complete_time=_decode_time(row[11]),
    )


def _decode_pointer(row: Sequence[Any]) -> ExecutionPointer:
    return ExecutionPointer(
        id=row[0],
        step_id=row[1],
        active=bool(row[2]),
        status=PointerStatus(row[3]),
        sleep_until=_decode_time(row[4]),
        persistence_data=_decode_json(row[5]),
        start_time=_decode_time(row[6]),
        end_time=_decode_time(row[7]),
        event_name=row[8],
        event_key=row[9],
        event_published=bool(row[10]),
        event_data=_decode_json(row[11]),
        step_name=row[12],
        retry_count=row[13],
        children=json.loads(row[14]),
        context_item=_decode_json(row[15]),
        predecessor_id=row[16],
        outcome=_decode_json(row[17]),
        scope=json.loads(row[18]),
        extension_attributes=json.loads(row[19]),
    )


def encode_event(event: Event) -> Row:
    return {
        "id": event.id,
        "event_name": event.event_name,
        "event_key": event.event_key,
        "event_data": json.dumps(event.event_data),
        "event_time": event.event_time.isoformat(),
        "is_processed": event.is_processed,
    }


def encode_subscription(subscription: EventSubscription) -> Row:
    return {
        "id": subscription.id,
        "workflow_id": subscription.workflow_id,
        "step_id": subscription.step_id,
        "execution_pointer_id": subscription.execution_pointer_id,
        "event_name": subscription.event_name,
        "event_key": subscription.event_key,
        "subscribe_as_of": subscription.subscribe_as_of.isoformat(),
        "subscription_data": _encode_json(subscription.subscription_data),
        "external_token": subscription.external_token,
        "external_worker_id": subscription.external_worker_id,
        "external_token_expiry": _encode_time(subscription.external_token_expiry),
    }


def decode_subscription(row: Sequence[Any]) -> EventSubscription:
    return EventSubscription(
        id=row[0],
        workflow_id=row[1],
        step_id=row[2],
        execution_pointer_id=row[3],
        event_name=row[4],
        event_key=row[5],
        subscribe_as_of=datetime.fromisoformat(row[6]),
        subscription_data=_decode_json(row[7]),
        external_token=row[8],
        external_worker_id=row[9],
        external_token_expiry=_decode_time(row[10]),
    )


def _encode_time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def _decode_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


def _encode_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _decode_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)
