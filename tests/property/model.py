"""What a store does, as plain dicts: a specification of `PersistenceProvider` and of much of maintenance.

Each method has the name and arguments of the provider's method, returns what that must return, and raises
`RefusedError` if that must raise. Rows are never changed in place, so that a copy of the model is cheap.

What only the store can decide comes from its result, `got`: a claim's fresh token, and the object of a loaded instance.
`busy` has ids that others write at the same time: a claim may leave them for the next poll.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from wfe_sql import (
    Claim,
    ClaimKind,
    ClaimLostError,
    Event,
    EventAlreadyExistsError,
    EventNotFoundError,
    EventSubscription,
    ExecutionError,
    ScheduledCommand,
    SerializationError,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WorkflowAlreadyExistsError,
    WorkflowConflictError,
    WorkflowInstance,
    WorkflowNotFoundError,
)

Fields = dict[str, Any]
COMMAND_BATCH = 20


class RefusedError(Exception):
    """The call must raise one of these errors, and change nothing."""

    def __init__(self, *errors: type[Exception]) -> None:
        self.errors = errors


@dataclass(frozen=True)
class Row:
    """One row: the fields of its dataclass, and the other columns of its table."""

    fields: Fields
    claim: Claim | None = None
    revision: int = 0
    terminated: bool = False
    rescheduled_time: int | None = None
    number: int = 0

    def holds(self, token: str) -> bool:
        return self.claim is not None and self.claim.token == token


class Model:
    """A store and the instances that remember being loaded from it."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.sequences: dict[str, int] = {}
        self.workflows: dict[str, Row] = {}
        self.events: dict[str, Row] = {}
        self.subscriptions: dict[str, Row] = {}
        self.commands: dict[tuple[str, str], Row] = {}
        self.errors: list[Row] = []
        self.remembered: dict[int, tuple[datetime, int]] = {}  # by id() of the instance: the life and the revision
        self.used = 0

    def copy(self) -> "Model":
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list):
                setattr(other, name, value.copy())
        return other

    def _next(self) -> int:
        self.used += 1
        return self.used

    # workflows

    def create_new_workflow(self, instance: WorkflowInstance) -> str:
        fields = fields_of(instance)
        fields["name"] = fields["name"] or fields["id"]
        wrong: list[type[Exception]] = []
        if fields["id"] in self.workflows or self._is_name_of_another(fields):
            wrong.append(WorkflowAlreadyExistsError)
        if self._has_pointer_of_another(fields):
            wrong.append(StoreError)
        refuse_if(wrong)
        self._store(instance, Row(fields))
        return instance.id

    def persist_workflow_with_subscriptions(
        self,
        instance: WorkflowInstance,
        subscriptions: Sequence[EventSubscription] = (),
        *,
        claim: Claim | None = None,
        overwrite: bool = False,
    ) -> None:
        fields = fields_of(instance)
        refuse_other_claim(claim, ClaimKind.Workflow, instance.id)
        stored = found(self.workflows, instance.id, WorkflowNotFoundError)
        if claim is not None and not stored.holds(claim.token):
            raise RefusedError(ClaimLostError)
        if not overwrite and self.remembered.get(id(instance)) not in (None, life(stored)):
            raise RefusedError(WorkflowConflictError)
        fields["name"] = fields["name"] or stored.fields["name"]
        fields["create_time"] = stored.fields["create_time"]
        new = [subscription.id for subscription in subscriptions]
        wrong: list[type[Exception]] = []
        if self._is_name_of_another(fields):
            wrong.append(WorkflowAlreadyExistsError)
        if (
            self._has_pointer_of_another(fields)
            or len(set(new)) < len(new)
            or not self.subscriptions.keys().isdisjoint(new)
        ):
            wrong.append(StoreError)
        refuse_if(wrong)
        self._store(instance, replace(stored, fields=fields, revision=stored.revision + 1))
        for subscription in subscriptions:
            self.create_event_subscription(subscription)

    persist_workflow = persist_workflow_with_subscriptions

    def _store(self, instance: WorkflowInstance, row: Row) -> None:
        self.workflows[instance.id] = row
        self.remembered[id(instance)] = life(row)

    def _is_name_of_another(self, fields: Fields) -> bool:
        return any(
            row.fields["name"] == fields["name"] and row.fields["id"] != fields["id"] for row in self.workflows.values()
        )

    def _has_pointer_of_another(self, fields: Fields) -> bool:
        theirs = {
            pointer["id"]
            for row in self.workflows.values()
            if row.fields["id"] != fields["id"]
            for pointer in row.fields["execution_pointers"]
        }
        return any(pointer["id"] in theirs for pointer in fields["execution_pointers"])

    def get_workflow_instance(self, id: str, *, got: WorkflowInstance | None) -> Fields:
        return self._loaded(found(self.workflows, id, WorkflowNotFoundError), got)

    def get_workflow_instance_by_name(self, name: str, *, got: WorkflowInstance | None) -> Fields:
        by_name = {row.fields["name"]: row for row in self.workflows.values()}
        return self._loaded(found(by_name, name, WorkflowNotFoundError), got)

    def get_workflow_instances(self, ids: Sequence[str], *, got: list[WorkflowInstance] | None) -> list[Fields]:
        rows = [self.workflows[id_] for id_ in ids if id_ in self.workflows]
        loaded: Sequence[object] = got or [None] * len(rows)
        return [self._loaded(row, instance) for row, instance in zip(rows, loaded, strict=False)]

    def _loaded(self, row: Row, got: object) -> Fields:
        self.remembered[id(got)] = life(row)
        return row.fields

    def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        due = {
            id_: row.fields["next_execution"]
            for id_, row in self.workflows.items()
            if row.fields["status"] == "Runnable"
            and row.fields["next_execution"] is not None
            and row.fields["next_execution"] <= ms(as_at)
        }
        return sorted(due, key=lambda id_: (due[id_], id_))[:limit]

    def next_definition_sequence(self, definition_id: str) -> int:
        self.sequences[definition_id] = self.sequences.get(definition_id, 0) + 1
        return self.sequences[definition_id]

    # claims

    def claim_runnable_instances(self, as_at: datetime, worker_id: str, **how: Any) -> list[Claim]:
        due = self.get_runnable_instances(as_at)
        return self._claim(self.workflows, due, worker_id, kind=ClaimKind.Workflow, **how)

    def claim_runnable_events(self, as_at: datetime, worker_id: str, **how: Any) -> list[Claim]:
        return self._claim(self.events, self.get_runnable_events(as_at), worker_id, kind=ClaimKind.Event, **how)

    def _claim(
        self,
        table: dict[str, Row],
        due: list[str],
        worker_id: str,
        *,
        kind: ClaimKind,
        lease: timedelta,
        limit: int,
        got: list[Claim] | None,
        busy: Collection[str] = (),
    ) -> list[Claim]:
        taken = [claim.id for claim in got or ()]
        free = [id_ for id_ in due if self._is_free(table[id_]) and (id_ not in busy or id_ in taken)]
        claims = []
        for id_ in free[:limit]:
            token, expires_at = got[0].token if got else "", self.clock() + lease
            claims.append(Claim(kind=kind, id=id_, token=token, worker_id=worker_id, expires_at=expires_at))
            table[id_] = replace(table[id_], claim=claims[-1])
        return claims

    def _is_free(self, row: Row) -> bool:
        return row.claim is None or row.claim.expires_at <= self.clock()

    def renew_claim(self, claim: Claim, lease: timedelta) -> Claim:
        renewed = replace(claim, expires_at=self.clock() + lease)
        self._change_claim(claim, renewed)
        return renewed

    def release_claim(self, claim: Claim) -> None:
        self._change_claim(claim, None)

    def _change_claim(self, claim: Claim, changed: Claim | None) -> None:
        table = self.workflows if claim.kind is ClaimKind.Workflow else self.events
        if claim.id not in table or not table[claim.id].holds(claim.token):
            raise RefusedError(ClaimLostError)
        table[claim.id] = replace(table[claim.id], claim=changed)

    # subscriptions

    def create_event_subscription(self, subscription: EventSubscription) -> str:
        if subscription.id in self.subscriptions:
            raise RefusedError(StoreError)
        self.subscriptions[subscription.id] = Row(asdict(subscription))
        return subscription.id

    def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[Fields]:
        live = [
            row.fields
            for row in self.subscriptions.values()
            if (row.fields["event_name"], row.fields["event_key"]) == (event_name, event_key)
            and row.fields["subscribe_as_of"] <= as_of
            and not row.terminated
        ]
        return sorted(live, key=lambda fields: (fields["subscribe_as_of"], fields["id"]))[:limit]

    def get_first_open_subscription(self, event_name: str, event_key: str, as_of: datetime) -> Fields | None:
        live = self.get_subscriptions(event_name, event_key, as_of)
        return next((fields for fields in live if self._has_no_holder(fields)), None)

    def _has_no_holder(self, fields: Fields) -> bool:
        expiry = fields["external_token_expiry"]
        return fields["external_token"] is None or (expiry is not None and expiry <= self.clock())

    def get_subscription(self, id: str) -> Fields:
        return found(self.subscriptions, id, SubscriptionNotFoundError).fields

    def terminate_subscription(self, id: str) -> None:
        row = found(self.subscriptions, id, SubscriptionNotFoundError)
        self.subscriptions[id] = replace(row, terminated=True)

    def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        row = found(self.subscriptions, id, SubscriptionNotFoundError)
        if row.terminated or not (self._has_no_holder(row.fields) or row.fields["external_token"] == token):
            return False
        self._set_token(id, token, worker_id, expiry)
        return True

    def clear_subscription_token(self, id: str, token: str) -> None:
        if found(self.subscriptions, id, SubscriptionNotFoundError).fields["external_token"] != token:
            raise RefusedError(SubscriptionTokenError)
        self._set_token(id, None, None, None)

    def _set_token(self, id_: str, token: str | None, worker_id: str | None, expiry: datetime | None) -> None:
        row = self.subscriptions[id_]
        held = {"external_token": token, "external_worker_id": worker_id, "external_token_expiry": expiry}
        self.subscriptions[id_] = replace(row, fields=row.fields | held)

    # events

    def create_event(self, event: Event) -> str:
        if event.id in self.events:
            raise RefusedError(EventAlreadyExistsError)
        self.events[event.id] = Row(asdict(event))
        return event.id

    def get_event(self, id: str) -> Fields:
        return found(self.events, id, EventNotFoundError).fields

    def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        return self._list_event_ids(lambda event: not event["is_processed"] and event["event_time"] <= as_at)[:limit]

    def get_events(self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None) -> list[str]:
        wanted = (event_name, event_key)
        return self._list_event_ids(
            lambda event: (event["event_name"], event["event_key"]) == wanted and event["event_time"] <= as_of
        )[:limit]

    def _list_event_ids(self, is_wanted: Callable[[Fields], bool]) -> list[str]:
        events = [row.fields for row in self.events.values() if is_wanted(row.fields)]
        return [event["id"] for event in sorted(events, key=lambda event: (event["event_time"], event["id"]))]

    def mark_event_processed(self, id: str, *, claim: Claim | None = None) -> None:
        refuse_other_claim(claim, ClaimKind.Event, id)
        row = found(self.events, id, EventNotFoundError)
        if claim is not None and not row.holds(claim.token):
            raise RefusedError(ClaimLostError)
        self.events[id] = replace(row, fields=row.fields | {"is_processed": True})

    def mark_event_unprocessed(self, id: str) -> None:
        row = found(self.events, id, EventNotFoundError)
        self.events[id] = replace(row, fields=row.fields | {"is_processed": False})

    # scheduled commands

    def schedule_command(self, command: ScheduledCommand) -> None:
        key, time = (command.command_name.value, command.data), command.execute_time
        row = self.commands.get(key)
        if row is None:
            self.commands[key] = Row(asdict(command), number=self._next())
        elif row.claim is None:
            self.commands[key] = replace(
                row, fields=row.fields | {"execute_time": min(row.fields["execute_time"], time)}
            )
        else:  # it is being handled, and runs again after that
            again = time if row.rescheduled_time is None else min(row.rescheduled_time, time)
            self.commands[key] = replace(row, rescheduled_time=again)

    def process_commands(
        self, as_of: datetime, *, lease: timedelta, limit: int | None = None
    ) -> Generator[Fields, bool, None]:
        """Yield each command as its handler begins; receive whether the handler failed."""
        after, left = (-float("inf"), 0), float("inf") if limit is None else limit
        while left > 0:
            due = [row for row in self._commands_in_order() if row.fields["execute_time"] <= ms(as_of)]
            free = [row for row in due if place(row) > after and self._is_free(row)]
            batch = free[: int(min(left, COMMAND_BATCH))]
            if not batch:
                return
            after, left, token = place(batch[-1]), left - len(batch), f"of call {self._next()}"
            keys = [(row.fields["command_name"].value, row.fields["data"]) for row in batch]
            self._hold_commands(keys, token, lease)
            for at, key in enumerate(keys):
                held = [other for other in keys[at:] if other in self.commands and self.commands[other].holds(token)]
                self._hold_commands(held, token, lease)  # a host never handles a command that it no longer holds
                if key in held:
                    failed = yield self.commands[key].fields
                    if key in self.commands and self.commands[key].holds(token):
                        self._finish_command(key, failed)

    def _commands_in_order(self) -> list[Row]:
        return sorted(self.commands.values(), key=place)

    def _hold_commands(self, keys: list[tuple[str, str]], token: str, lease: timedelta) -> None:
        for key in keys:
            claim = Claim(kind=ClaimKind.Workflow, id="", token=token, worker_id="", expires_at=self.clock() + lease)
            self.commands[key] = replace(self.commands[key], claim=claim)

    def _finish_command(self, key: tuple[str, str], failed: bool) -> None:
        row = self.commands.pop(key)
        times = [row.fields["execute_time"]] if failed else []
        times += [] if row.rescheduled_time is None else [row.rescheduled_time]
        if times:  # it is due again
            fields = row.fields | {"execute_time": min(times)}
            self.commands[key] = replace(row, fields=fields, claim=None, rescheduled_time=None)

    # errors

    def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        self.errors += [Row(asdict(error)) for error in errors]

    def get_execution_errors(self, workflow_id: str | None = None, *, limit: int | None = None) -> list[Fields]:
        errors = [row.fields for row in self.errors]
        return [error for error in errors if workflow_id in (None, error["workflow_id"])][:limit]

    # maintenance

    def delete_workflow(self, id: str) -> None:
        found(self.workflows, id, WorkflowNotFoundError)
        self._delete_workflows([id])

    def purge_workflows(self, status: str, older_than: timedelta, *, batch_size: int, dry_run: bool) -> int:
        old = [
            id_
            for id_, row in self.workflows.items()
            if row.fields["status"] == status
            and (row.fields["complete_time"] or row.fields["create_time"]) < self.clock() - older_than
        ]
        if not dry_run:
            self._delete_workflows(old)
        return len(old)

    def _delete_workflows(self, ids: list[str]) -> None:
        for id_ in ids:
            del self.workflows[id_]
            self.commands.pop(("ProcessWorkflow", id_), None)
        self.errors = [row for row in self.errors if row.fields["workflow_id"] not in ids]
        kept = {id_: row for id_, row in self.subscriptions.items() if row.fields["workflow_id"] not in ids}
        self.subscriptions = kept

    def purge_events(self, older_than: timedelta, *, batch_size: int, dry_run: bool) -> int:
        events = {id_: row.fields for id_, row in self.events.items()}
        bound = self.clock() - older_than
        old = [id_ for id_, event in events.items() if event["is_processed"] and event["event_time"] < bound]
        for id_ in [] if dry_run else old:
            del self.events[id_]
            self.commands.pop(("ProcessEvent", id_), None)
        return len(old)

    def list_workflows(self, *, status: str | None = None, since: datetime | None = None, **page: Any) -> list[str]:
        rows = [row.fields for row in self.workflows.values() if status in (None, row.fields["status"])]
        rows = [fields for fields in rows if since is None or fields["create_time"] >= since]
        return [fields["id"] for fields in sorted(rows, key=lambda it: (it["create_time"], it["id"]), reverse=True)]

    def list_events(self, *, is_processed: bool | None = None, **page: Any) -> list[str]:
        ids = self._list_event_ids(lambda event: is_processed in (None, event["is_processed"]))
        return ids[::-1]

    def list_scheduled_commands(self, **page: Any) -> list[str]:
        return [row.fields["data"] for row in self._commands_in_order()]

    def list_execution_errors(self, *, workflow_id: str | None = None, **page: Any) -> list[str]:
        return [error["message"] for error in self.get_execution_errors(workflow_id)][::-1]

    def dump(self) -> Iterator[tuple[str, Fields]]:
        """Yield the table and the columns of every row, in the order of the provider's dump."""
        for definition_id, number in sorted(self.sequences.items()):
            yield "definition_sequences", {"definition_id": definition_id, "next_num": number}
        for _, row in sorted(self.workflows.items()):
            columns = {key: value for key, value in row.fields.items() if key != "execution_pointers"}
            columns["definition_id"] = columns.pop("workflow_definition_id")
            yield "workflows", columns | claim_columns(row) | {"revision": row.revision}
        for id_, row in sorted(self.workflows.items()):
            for pointer in row.fields["execution_pointers"]:
                yield "execution_pointers", {"workflow_id": id_, **pointer}
        for _, row in sorted(self.events.items()):
            yield "events", row.fields | claim_columns(row)
        for _, row in sorted(self.subscriptions.items()):
            yield "event_subscriptions", row.fields | {"terminated": row.terminated}
        for row in sorted(self.commands.values(), key=lambda row: row.number):
            columns = row.fields | claim_columns(row)
            yield "scheduled_commands", columns | {"rescheduled_time": row.rescheduled_time}
        for row in self.errors:
            yield "execution_errors", row.fields


def fields_of(instance: WorkflowInstance) -> Fields:
    ids = [pointer.id for pointer in instance.execution_pointers]
    values = [instance.data, *(pointer.outcome for pointer in instance.execution_pointers)]
    if len(set(ids)) < len(ids) or any(value != value for value in values):  # NaN, which JSON does not have
        raise RefusedError(SerializationError)
    return asdict(instance)


def life(row: Row) -> tuple[datetime, int]:
    """What an instance remembers: a workflow that was deleted and created again has another create_time."""
    return row.fields["create_time"], row.revision


def found(table: dict[str, Row], id_: str, error: type[Exception]) -> Row:
    if id_ not in table:
        raise RefusedError(error)
    return table[id_]


def refuse_if(wrong: list[type[Exception]]) -> None:
    if wrong:
        raise RefusedError(*wrong)


def refuse_other_claim(claim: Claim | None, kind: ClaimKind, id_: str) -> None:
    if claim is not None and (claim.kind, claim.id) != (kind, id_):
        raise RefusedError(SerializationError)


def claim_columns(row: Row) -> Fields:
    names = {"claim_token": "token", "claim_worker_id": "worker_id", "claim_expires_at": "expires_at"}
    return {column: getattr(row.claim, name, None) for column, name in names.items()}


def place(row: Row) -> tuple[int, int]:
    return row.fields["execute_time"], row.number


def ms(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
