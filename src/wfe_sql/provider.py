"""Every operation of the repositories, written once, as units of named queries.

The way of a call: a method here encodes its arguments through `rows`, hands a unit to the engine, and decodes what
comes back. It never names a dialect; a query's name is the words of the method that runs it.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from wfe_sql.engines import Engine, Statement, UniqueViolationError, Unit
from wfe_sql.errors import (
    EventAlreadyExistsError,
    EventNotFoundError,
    SerializationError,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WorkflowAlreadyExistsError,
    WorkflowNotFoundError,
)
from wfe_sql.models import Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance, new_id
from wfe_sql.repositories import CommandHandler
from wfe_sql.rows import (
    EVENT_SUBSCRIPTIONS,
    EVENTS,
    EXECUTION_ERRORS,
    EXECUTION_POINTERS,
    ID,
    INTEGER,
    SCHEDULED_COMMANDS,
    TEXT,
    TIME,
    WORKFLOWS,
    Row,
    encode_argument,
    encode_bound,
    encode_ids,
    epoch_ms,
)

_COMMAND_BATCH = 100
"""Commands that `process_commands` claims at a time."""

_BEFORE_ALL = (-(2**63), 0)
"""An (execute_time, id) that comes before every command."""


class SqlPersistenceProvider:
    """A `PersistenceProvider` on an engine; what each method does is documented there.

    Use it as an async context manager, or `await open()` it and `await close()` it.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime]) -> None:
        """Set up on an engine that is not open yet; `clock` returns the current time, aware."""
        self._engine = engine
        self._clock = clock
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}"

    async def open(self) -> Self:
        """Connect, make the store where it does not exist, and return this provider.

        Raises:
            StoreError: The store cannot be opened or made; the message says why.
            ProviderClosedError: It was opened before.
        """
        await self._engine.open()
        return self

    async def close(self) -> None:
        """Finish what is pending and disconnect; calls from now on raise `ProviderClosedError`. Twice is fine."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def ensure_store_exists(self) -> None:
        await self._engine.ensure_store_exists()

    # workflows

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        workflow, pointers = _encode_instance(instance)
        conflicts = {
            "workflows.id": WorkflowAlreadyExistsError(f"a workflow with id {instance.id!r} exists already"),
            "workflows.name": _name_in_use(instance),
        }
        unit = [Statement("create_new_workflow", workflow, conflicts=conflicts)]
        if pointers:
            unit.append(Statement("insert_execution_pointers", pointers))
        await self._write_instance(instance, unit)
        return instance.id

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        await self._persist(instance, [])

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        await self._persist(instance, [_create_subscription(subscription) for subscription in subscriptions])

    async def _persist(self, instance: WorkflowInstance, more: Unit) -> None:
        workflow, pointers = _encode_instance(instance)
        del workflow["create_time"]
        unit = [
            Statement(
                "persist_workflow",
                workflow,
                otherwise=WorkflowNotFoundError(f"no workflow has id {instance.id!r}"),
                conflicts={"workflows.name": _name_in_use(instance)},
            ),
            Statement("delete_execution_pointers", {"workflow_id": instance.id}),
        ]
        if pointers:
            unit.append(Statement("insert_execution_pointers", pointers))
        await self._write_instance(instance, [*unit, *more])

    async def _write_instance(self, instance: WorkflowInstance, unit: Unit) -> None:
        try:
            await self._engine.write(unit)
        except UniqueViolationError as error:
            ids = encode_ids(pointer.id for pointer in instance.execution_pointers)
            params = {"ids": ids, "workflow_id": instance.id}
            (found,) = await self._engine.read([Statement("find_execution_pointer_of_another_workflow", params)])
            if found is None:
                raise
            pointer_id, owner = found
            raise StoreError(
                f"execution pointer {pointer_id!r} of workflow {instance.id!r} belongs to workflow {owner!r}; "
                "nothing was written"
            ) from error.__cause__

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": epoch_ms("as_at", as_at), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_instances", params)])
        return [row[0] for row in rows]

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        workflow, pointers = await self._engine.read(
            [
                Statement("get_workflow_instance", {"id": _key("id", id)}),
                Statement("get_execution_pointers", {"workflow_id": id}),
            ]
        )
        if workflow is None:
            raise WorkflowNotFoundError(f"no workflow has id {id!r}")
        return _decode_instance(workflow, pointers)

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        params = {"name": _key("name", name)}
        workflow, pointers = await self._engine.read(
            [Statement("get_workflow_instance_by_name", params), Statement("get_execution_pointers_by_name", params)]
        )
        if workflow is None:
            raise WorkflowNotFoundError(f"no workflow has name {name!r}")
        return _decode_instance(workflow, pointers)

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        params = {"ids": encode_ids(_key("ids", id_) for id_ in ids)}
        workflows, pointers = await self._engine.read(
            [Statement("get_workflow_instances", params), Statement("get_execution_pointers_of_instances", params)]
        )
        by_id = {workflow[0]: workflow for workflow in workflows}
        pointers_of: dict[str, list[Any]] = {id_: [] for id_ in by_id}
        for pointer in pointers:
            pointers_of[pointer[-1]].append(pointer)
        return [_decode_instance(by_id[id_], pointers_of[id_]) for id_ in ids if id_ in by_id]

    async def next_definition_sequence(self, definition_id: str) -> int:
        params = {"definition_id": encode_argument("definition_id", ID, definition_id)}
        (number,) = await self._engine.write([Statement("next_definition_sequence", params)])
        return int(number)

    # subscriptions

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        await self._engine.write([_create_subscription(subscription)])
        return subscription.id

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> list[EventSubscription]:
        params = _name_key_bound(event_name, event_key, as_of)
        (rows,) = await self._engine.read([Statement("get_subscriptions", params)])
        return [EVENT_SUBSCRIPTIONS.decode(row) for row in rows]

    async def terminate_subscription(self, id: str) -> None:
        params = {"id": _key("id", id)}
        await self._engine.write([Statement("terminate_subscription", params, otherwise=_no_subscription(id))])

    async def get_subscription(self, id: str) -> EventSubscription:
        params = {"id": _key("id", id)}
        (row,) = await self._engine.read([Statement("get_subscription", params, otherwise=_no_subscription(id))])
        return EVENT_SUBSCRIPTIONS.decode(row)

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime
    ) -> EventSubscription | None:
        params = {**_name_key_bound(event_name, event_key, as_of), "now": self._now()}
        (row,) = await self._engine.read([Statement("get_first_open_subscription", params)])
        return None if row is None else EVENT_SUBSCRIPTIONS.decode(row)

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        params = {
            "id": _key("id", id),
            "token": encode_argument("token", ID, token),
            "worker_id": encode_argument("worker_id", ID, worker_id),
            "expiry": encode_argument("expiry", TIME, expiry),
            "now": self._now(),
        }
        changed, _ = await self._engine.write(
            [
                Statement("set_subscription_token", params),
                Statement("get_subscription", {"id": id}, otherwise=_no_subscription(id)),
            ]
        )
        return bool(changed)

    async def clear_subscription_token(self, id: str, token: str) -> None:
        changed, _ = await self._engine.write(
            [
                Statement("clear_subscription_token", {"id": _key("id", id), "token": _key("token", token)}),
                Statement("get_subscription", {"id": id}, otherwise=_no_subscription(id)),
            ]
        )
        if not changed:
            raise SubscriptionTokenError(f"subscription {id!r} does not hold token {token!r}; nothing was changed")

    # events

    async def create_event(self, event: Event) -> str:
        exists = EventAlreadyExistsError(f"an event with id {event.id!r} exists already")
        await self._engine.write([Statement("create_event", EVENTS.encode(event), conflicts={"events.id": exists})])
        return event.id

    async def get_event(self, id: str) -> Event:
        (row,) = await self._engine.read([Statement("get_event", {"id": _key("id", id)}, otherwise=_no_event(id))])
        return EVENTS.decode(row)

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": encode_bound("as_at", as_at), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_events", params)])
        return [row[0] for row in rows]

    async def get_events(self, event_name: str, event_key: str, as_of: datetime) -> list[str]:
        params = _name_key_bound(event_name, event_key, as_of)
        (rows,) = await self._engine.read([Statement("get_events", params)])
        return [row[0] for row in rows]

    async def mark_event_processed(self, id: str) -> None:
        params = {"id": _key("id", id)}
        await self._engine.write([Statement("mark_event_processed", params, otherwise=_no_event(id))])

    async def mark_event_unprocessed(self, id: str) -> None:
        params = {"id": _key("id", id)}
        await self._engine.write([Statement("mark_event_unprocessed", params, otherwise=_no_event(id))])

    # scheduled commands

    @property
    def supports_scheduled_commands(self) -> bool:
        return True

    async def schedule_command(self, command: ScheduledCommand) -> None:
        await self._engine.write([Statement("schedule_command", SCHEDULED_COMMANDS.encode(command))])

    async def process_commands(
        self,
        as_of: datetime,
        handler: CommandHandler,
        *,
        limit: int | None = None,
        lease: timedelta = timedelta(minutes=1),
    ) -> None:
        if lease <= timedelta(0):
            raise SerializationError(f"lease must be above zero, not {lease}")
        due, left, after = epoch_ms("as_of", as_of), _checked_limit(limit), _BEFORE_ALL
        failures: list[Exception] = []
        while left is None or left > 0:
            token = new_id()
            rows = await self._claim_commands(due, after, token, lease, min(left or _COMMAND_BATCH, _COMMAND_BATCH))
            if not rows:
                break
            after = (rows[-1][3], rows[-1][0])
            left = None if left is None else left - len(rows)
            failures += await self._handle_commands(rows, token, handler)
        if failures:
            raise ExceptionGroup(f"{len(failures)} scheduled commands failed and are due again", failures)

    async def _claim_commands(
        self, due: int, after: tuple[int, int], token: str, lease: timedelta, row_limit: int
    ) -> list[Any]:
        """Take due commands that come after a place in the order; return their rows in that order."""
        params = {
            "as_of": due,
            "now": self._now(),
            "after_time": after[0],
            "after_id": after[1],
            "token": token,
            "worker_id": self._worker_id,
            "expires_at": encode_argument("lease", TIME, self._clock() + lease),
            "row_limit": row_limit,
        }
        (rows,) = await self._engine.write([Statement("claim_commands", params)])
        return sorted(rows, key=lambda row: (row[3], row[0]))

    async def _handle_commands(self, rows: Sequence[Any], token: str, handler: CommandHandler) -> list[Exception]:
        failures: list[Exception] = []
        claims = [{"id": row[0], "token": token} for row in rows]
        try:
            for row in rows:
                try:
                    await handler(SCHEDULED_COMMANDS.decode(row[1:], row_id=row[0]))
                except Exception as error:  # the others still run; they are raised together
                    failures.append(error)
                    unit = [Statement("release_command", claims[0])]
                else:
                    unit = [Statement("reschedule_command", claims[0]), Statement("complete_command", claims[0])]
                await self._engine.write(unit)
                del claims[0]
        finally:
            if claims:
                await self._engine.write([Statement("release_command", claim) for claim in claims])
        return failures

    # errors

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        if errors:
            await self._engine.write(
                [Statement("persist_errors", [EXECUTION_ERRORS.encode(error) for error in errors])]
            )

    async def get_execution_errors(
        self, workflow_id: str | None = None, *, limit: int | None = None
    ) -> list[ExecutionError]:
        params: dict[str, Any] = {"row_limit": _checked_limit(limit)}
        if workflow_id is None:
            statement = Statement("get_execution_errors", params)
        else:
            params["workflow_id"] = _key("workflow_id", workflow_id)
            statement = Statement("get_execution_errors_of_workflow", params)
        (rows,) = await self._engine.read([statement])
        return [EXECUTION_ERRORS.decode(row, row_id=row[-1]) for row in rows]

    def _now(self) -> str:
        return str(encode_argument("the clock's time", TIME, self._clock()))


def _encode_instance(instance: WorkflowInstance) -> tuple[Row, list[Row]]:
    pointers: dict[str, Row] = {}
    for index, pointer in enumerate(instance.execution_pointers):
        if pointer.id in pointers:
            raise SerializationError(
                f"WorkflowInstance.execution_pointers[{index}].id {pointer.id!r} is the id of another of its pointers"
            )
        pointers[pointer.id] = {**EXECUTION_POINTERS.encode(pointer), "workflow_id": instance.id}
    return WORKFLOWS.encode(instance), list(pointers.values())


def _decode_instance(workflow: Sequence[Any], pointers: Sequence[Any]) -> WorkflowInstance:
    return WORKFLOWS.decode(workflow, execution_pointers=[EXECUTION_POINTERS.decode(pointer) for pointer in pointers])


def _create_subscription(subscription: EventSubscription) -> Statement:
    exists = StoreError(f"a subscription with id {subscription.id!r} exists already; nothing was written")
    conflicts: Mapping[str, Exception] = {"event_subscriptions.id": exists}
    return Statement("create_event_subscription", EVENT_SUBSCRIPTIONS.encode(subscription), conflicts=conflicts)


def _name_in_use(instance: WorkflowInstance) -> WorkflowAlreadyExistsError:
    return WorkflowAlreadyExistsError(f"another workflow has the name {instance.name or instance.id!r}")


def _no_subscription(id_: str) -> SubscriptionNotFoundError:
    return SubscriptionNotFoundError(f"no subscription has id {id_!r}")


def _no_event(id_: str) -> EventNotFoundError:
    return EventNotFoundError(f"no event has id {id_!r}")


def _key(name: str, value: str) -> Any:
    return encode_argument(name, TEXT, value)


def _name_key_bound(event_name: str, event_key: str, as_of: datetime) -> Row:
    return {
        "event_name": _key("event_name", event_name),
        "event_key": _key("event_key", event_key),
        "as_of": encode_bound("as_of", as_of),
    }


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and encode_argument("limit", INTEGER, limit) < 1:
        raise SerializationError(f"limit must be at least 1, or None for no limit, not {limit}")
    return limit
