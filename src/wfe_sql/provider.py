"""Every operation of the repositories, written once, as units of named queries.

The way of a call: a method here encodes its arguments through `rows`, hands a unit to the engine, and decodes what
comes back. It never names a dialect; a query's name is the words of the method that runs it.
"""

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from wfe_sql.durations import time_after
from wfe_sql.engines import Engine, Results, Statement, UniqueViolationError, Unit
from wfe_sql.errors import (
    ClaimLostError,
    CorruptRowError,
    EventAlreadyExistsError,
    EventNotFoundError,
    SerializationError,
    StoreError,
    SubscriptionNotFoundError,
    SubscriptionTokenError,
    WfeError,
    WorkflowAlreadyExistsError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from wfe_sql.maintenance import Maintenance
from wfe_sql.models import (
    Claim,
    ClaimKind,
    Event,
    EventSubscription,
    ExecutionError,
    ScheduledCommand,
    Stored,
    WorkflowInstance,
    new_id,
)
from wfe_sql.persisting import Snapshot, Turn
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
    TOKEN,
    WORKFLOWS,
    Row,
    encode_argument,
    encode_bound,
    encode_ids,
    epoch_ms,
    to_utc,
    wrong_type,
)

_log = logging.getLogger("wfe_sql")

OnConflict = Literal["overwrite", "raise"]

_COMMAND_BATCH = 20
"""Commands that `process_commands` claims at a time."""

_NO_REVISION = -1
"""No workflow is ever at it."""

_BEFORE_ALL = (-(2**63), 0)
"""An (execute_time, id) that comes before every command."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _HeldCommands:
    """Commands that one claim holds: those that are not handled yet, and the one that is being handled.

    Attributes:
        ids: Which they are. What is found lost is taken out.
        lease: How long they are held from each renewal.
        token: The claim's token.
        expires_at: Until when the store is known to hold them.
        renewing: Held by a renewal, so that a later one ends later also in the store.
    """

    ids: list[int]
    lease: timedelta
    token: str
    expires_at: datetime
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)


class SqlPersistenceProvider(Maintenance):
    """A `PersistenceProvider` and `MaintenanceRepository` on an engine; what each method does is documented there.

    Use it as an async context manager, or `await open()` it and `await close()` it.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime], on_conflict: OnConflict) -> None:
        """Set up on an engine that is not open yet; see `SqlitePersistenceProvider` for the options."""
        if on_conflict not in ("overwrite", "raise"):
            raise StoreError(f"on_conflict must be 'overwrite' or 'raise', not {on_conflict!r}")
        if not callable(clock):
            kind = type(clock).__name__
            raise StoreError(f"clock must be a function that returns the time, such as wfe_sql.utc_now, not {kind}")
        self._engine = engine
        self._clock: Callable[[], datetime] = lambda: to_utc("the clock's time", clock())
        self._raises_on_conflict = on_conflict == "raise"
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}"

    def __del__(self) -> None:
        engine: Engine | None = getattr(self, "_engine", None)  # None when an option was refused
        if engine is not None and engine.is_open:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=1)
            engine.abandon()

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
        snapshot = Snapshot(instance, None)
        workflow = snapshot.workflow
        store_id, create_time = self._engine.store_id, workflow["create_time"]

        def ended(outcome: Results | Exception | None) -> None:
            if isinstance(outcome, list):
                instance._remember(store_id, Stored(workflow["id"], create_time, 0, snapshot.fingerprints))

        conflicts = {
            "workflows.id": WorkflowAlreadyExistsError(f"a workflow with id {workflow['id']!r} exists already"),
            "workflows.name": _name_in_use(workflow),
        }
        create = Statement("create_new_workflow", workflow, conflicts=conflicts, ended=ended)
        await self._write_snapshot(snapshot, [create, *_insert_pointers(snapshot, snapshot.fingerprints)])
        return str(workflow["id"])

    async def persist_workflow(self, instance: WorkflowInstance, *, claim: Claim | None = None) -> None:
        await self._persist(instance, [], claim)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription], *, claim: Claim | None = None
    ) -> None:
        new = _listed("subscriptions", EventSubscription, subscriptions)
        await self._persist(instance, [_create_subscription(subscription) for subscription in new], claim)

    async def _persist(self, instance: WorkflowInstance, more: Unit, claim: Claim | None) -> None:
        """Write what changed since the instance was loaded or stored, if the workflow is still as it was then.

        Where somebody else wrote in between, the whole instance is written over it, or a conflict is raised.
        """
        if not isinstance(instance, WorkflowInstance):
            raise wrong_type(WorkflowInstance, instance)
        turn = Turn(instance, self._engine.store_id)
        snapshot = Snapshot(instance, instance._stored.get(self._engine.store_id) if turn.is_first else None)
        del snapshot.workflow["create_time"]
        snapshot.workflow["now"] = self._now()  # last_heartbeat_at, which only the reference's PostgreSQL table has
        snapshot.workflow["claim_token"] = _checked_token(claim, ClaimKind.Workflow, snapshot.workflow["id"])
        async with turn:
            stored = instance._stored.get(self._engine.store_id)
            while not await self._try_persist(instance, snapshot, stored, more, turn):
                id_ = snapshot.workflow["id"]
                params = {"id": id_, "expected_create_time": None if stored is None else stored.create_time}
                (guards,) = await self._engine.read([Statement("get_workflow_guards", params)])
                if guards is None:
                    raise WorkflowNotFoundError(f"no workflow has id {id_!r}")
                if claim is not None and guards[0] != claim.token:
                    raise _claim_lost(claim)
                if not self._raises_on_conflict:
                    stored = None
                elif stored is not None:
                    _check_conflict(stored, id_, *guards[1:])

    async def _try_persist(
        self, instance: WorkflowInstance, snapshot: Snapshot, stored: Stored | None, more: Unit, turn: Turn
    ) -> bool:
        """Write what is not as it is known to be stored; return False where the workflow is not the one that is known.

        The instance then remembers what was written, even where the caller was cancelled meanwhile.
        """
        workflow, store_id = snapshot.workflow, self._engine.store_id
        is_known = stored is not None and stored.id == workflow["id"]
        guards = {
            "expected_revision": None if stored is None else stored.revision if is_known else _NO_REVISION,
            "expected_create_time": None if stored is None else stored.create_time,
        }

        def ended(outcome: Results | Exception | None) -> None:
            if isinstance(outcome, list):
                revision, create_time = outcome[0]
                instance._remember(store_id, Stored(workflow["id"], create_time, revision, snapshot.fingerprints))
            turn.end_write()

        persist = Statement(
            "persist_workflow",
            {**workflow, **guards},
            otherwise=_NothingChangedError(),
            conflicts={"workflows.name": _name_in_use(workflow)},
            ended=ended,
        )
        pointers = self._change_pointers(snapshot, stored if is_known else None)
        turn.begin_write()
        try:
            await self._write_snapshot(snapshot, [persist, *pointers, *more])
        except _NothingChangedError:
            return False
        return True

    def _change_pointers(self, snapshot: Snapshot, stored: Stored | None) -> list[Statement]:
        """Return what turns the pointers that are known to be stored into those of the snapshot.

        Their order is that of their rows, so what was kept must come first and in the same order as before, and what is
        new after it. Otherwise all of them are written anew.
        """
        ids, known = list(snapshot.fingerprints), {} if stored is None else stored.pointers
        kept = [id_ for id_ in known if id_ in snapshot.fingerprints]
        workflow_id = snapshot.workflow["id"]
        if not kept or kept != ids[: len(kept)]:
            delete = Statement("delete_execution_pointers", {"workflow_id": workflow_id})
            return [delete, *_insert_pointers(snapshot, ids)]
        statements = []
        if gone := [id_ for id_ in known if id_ not in snapshot.fingerprints]:
            params = {"ids": encode_ids(gone), "workflow_id": workflow_id}
            statements.append(Statement("delete_gone_execution_pointers", params))
        if changed := known.keys() & snapshot.changed_since(stored):
            rows = snapshot.pointer_rows(id_ for id_ in kept if id_ in changed)
            statements.append(Statement("upsert_execution_pointers", rows))
        return statements + _insert_pointers(snapshot, ids[len(kept) :])

    async def _write_snapshot(self, snapshot: Snapshot, unit: Unit) -> None:
        try:
            await self._engine.write(unit)
        except UniqueViolationError as error:
            id_ = snapshot.workflow["id"]
            params = {"ids": encode_ids(snapshot.fingerprints), "workflow_id": id_}
            (found,) = await self._engine.read([Statement("find_execution_pointer_of_another_workflow", params)])
            if found is None:
                raise
            pointer_id, owner = found
            raise StoreError(
                f"execution pointer {pointer_id!r} of workflow {id_!r} belongs to workflow {owner!r}; "
                "nothing was written"
            ) from error.__cause__

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": epoch_ms("as_at", as_at), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_instances", params)])
        return [row[0] for row in rows]

    async def claim_runnable_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        params = {"as_at": epoch_ms("as_at", as_at), **self._new_claim(worker_id, lease, limit)}
        rows = await self._claim(
            "claim_runnable_instances", "find_free_runnable_instance", params, "release_workflow_claim"
        )
        return _claims(ClaimKind.Workflow, rows, params)

    async def renew_claim(self, claim: Claim, lease: timedelta) -> Claim:
        expires_at = self._expiry(lease)
        query = "renew_workflow_claim" if _kind(claim) is ClaimKind.Workflow else "renew_event_claim"
        params = {**_id_and_token(claim), "expires_at": TIME.encode(expires_at)}
        await self._engine.write([Statement(query, params, otherwise=_claim_lost(claim))])
        return replace(claim, expires_at=expires_at)

    async def release_claim(self, claim: Claim) -> None:
        query = "release_workflow_claim" if _kind(claim) is ClaimKind.Workflow else "release_event_claim"
        await self._engine.write([Statement(query, _id_and_token(claim), otherwise=_claim_lost(claim))])

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        workflow, pointers = await self._engine.read(
            [
                Statement("get_workflow_instance", {"id": _key("id", id)}),
                Statement("get_execution_pointers", {"workflow_id": id}),
            ]
        )
        if workflow is None:
            raise WorkflowNotFoundError(f"no workflow has id {id!r}")
        return self._decode_instance(workflow, pointers)

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        params = {"name": _key("name", name)}
        workflow, pointers = await self._engine.read(
            [Statement("get_workflow_instance_by_name", params), Statement("get_execution_pointers_by_name", params)]
        )
        if workflow is None:
            raise WorkflowNotFoundError(f"no workflow has name {name!r}")
        return self._decode_instance(workflow, pointers)

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        ids = _listed("ids", str, ids)
        params = {"ids": encode_ids(_key("ids", id_) for id_ in ids)}
        workflows, pointers = await self._engine.read(
            [Statement("get_workflow_instances", params), Statement("get_execution_pointers_of_instances", params)]
        )
        by_id = {workflow[0]: workflow for workflow in workflows}
        pointers_of: dict[str, list[Any]] = {id_: [] for id_ in ids}
        for pointer in pointers:
            if pointer[0] not in pointers_of:
                raise CorruptRowError(f"execution_pointers: one of workflow {pointer[0]!r} is found by another id")
            pointers_of[pointer[0]].append(pointer[1:])
        return [self._decode_instance(by_id[id_][1:], pointers_of[id_]) for id_ in ids if id_ in by_id]

    def _decode_instance(self, workflow: Sequence[Any], documents: Sequence[Any]) -> WorkflowInstance:
        """Return the instance of a row of (document, revision, create_time) and its pointers' rows of (document,)."""
        document, revision, create_time = workflow
        instance = WORKFLOWS.decode(document)
        texts = [row[0] for row in documents]
        instance.execution_pointers = EXECUTION_POINTERS.decode_all(texts)
        by_id = dict(zip([pointer.id for pointer in instance.execution_pointers], texts, strict=True))
        instance._remember(self._engine.store_id, Stored(instance.id, create_time, revision, by_id, has_documents=True))
        return instance

    async def next_definition_sequence(self, definition_id: str) -> int:
        params = {"definition_id": encode_argument("definition_id", ID, definition_id)}
        exhausted = StoreError(
            f"the numbers of definition {definition_id!r} have come to an end: the last one given is too near to 2**63"
        )
        (number,) = await self._engine.write([Statement("next_definition_sequence", params, otherwise=exhausted)])
        return int(number)

    # subscriptions

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        await self._engine.write([_create_subscription(subscription)])
        return subscription.id

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[EventSubscription]:
        params = {**_name_key_bound(event_name, event_key, as_of), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_subscriptions", params)])
        return EVENT_SUBSCRIPTIONS.decode_all([row[0] for row in rows])

    async def terminate_subscription(self, id: str) -> None:
        params = {"id": _key("id", id)}
        await self._engine.write([Statement("terminate_subscription", params, otherwise=_no_subscription(id))])

    async def get_subscription(self, id: str) -> EventSubscription:
        params = {"id": _key("id", id)}
        (row,) = await self._engine.read([Statement("get_subscription", params, otherwise=_no_subscription(id))])
        return EVENT_SUBSCRIPTIONS.decode(row[0])

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime
    ) -> EventSubscription | None:
        params = {**_name_key_bound(event_name, event_key, as_of), "now": self._now()}
        (row,) = await self._engine.read([Statement("get_first_open_subscription", params)])
        return None if row is None else EVENT_SUBSCRIPTIONS.decode(row[0])

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        params = {
            "id": _key("id", id),
            "token": encode_argument("token", TOKEN, token),
            "worker_id": encode_argument("worker_id", ID, worker_id),
            "expiry": encode_argument("expiry", TIME, expiry),
            "now": self._now(),
        }
        ((is_taken,),) = await self._engine.write(
            [Statement("set_subscription_token", params, otherwise=_no_subscription(id))]
        )
        return bool(is_taken)

    async def clear_subscription_token(self, id: str, token: str) -> None:
        _, changed = await self._engine.write(
            [
                Statement("get_subscription", {"id": _key("id", id)}, otherwise=_no_subscription(id)),
                Statement("clear_subscription_token", {"id": id, "token": _key("token", token)}),
            ]
        )
        if not changed:
            raise SubscriptionTokenError(f"subscription {id!r} does not hold token {token!r}; nothing was changed")

    # events

    async def create_event(self, event: Event) -> str:
        row = EVENTS.encode(event)
        exists = EventAlreadyExistsError(f"an event with id {event.id!r} exists already")
        await self._engine.write([Statement("create_event", row, conflicts={"events.id": exists})])
        return event.id

    async def get_event(self, id: str) -> Event:
        (row,) = await self._engine.read([Statement("get_event", {"id": _key("id", id)}, otherwise=_no_event(id))])
        return EVENTS.decode(row[0])

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": encode_bound("as_at", as_at), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_events", params)])
        return [row[0] for row in rows]

    async def claim_runnable_events(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        params = {"as_at": encode_bound("as_at", as_at), **self._new_claim(worker_id, lease, limit)}
        rows = await self._claim("claim_runnable_events", "find_free_runnable_event", params, "release_event_claim")
        return _claims(ClaimKind.Event, rows, params)

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[str]:
        params = {**_name_key_bound(event_name, event_key, as_of), "row_limit": _checked_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_events", params)])
        return [row[0] for row in rows]

    async def mark_event_processed(self, id: str, *, claim: Claim | None = None) -> None:
        params = {"id": _key("id", id), "claim_token": _checked_token(claim, ClaimKind.Event, id)}
        try:
            await self._engine.write([Statement("mark_event_processed", params, otherwise=_NothingChangedError())])
        except _NothingChangedError:
            await self.get_event(id)
            raise (_no_event(id) if claim is None else _claim_lost(claim)) from None

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
        if not callable(handler):
            kind = type(handler).__name__
            raise SerializationError(f"handler must be an async function that takes a ScheduledCommand, not {kind}")
        due, left, after = epoch_ms("as_of", as_of), _checked_limit(limit), _BEFORE_ALL
        failures: list[Exception] = []
        while left is None or left > 0:
            claim = self._new_claim(self._worker_id, lease, min(left or _COMMAND_BATCH, _COMMAND_BATCH))
            params = {"as_of": due, "after_time": after[0], "after_id": after[1], **claim}
            rows = await self._claim("claim_commands", "find_free_command", params, "release_command")
            if not rows:
                break
            rows = sorted(rows, key=lambda row: (row[1], row[0]))
            after = (rows[-1][1], rows[-1][0])
            left = None if left is None else left - len(rows)
            held = _HeldCommands([row[0] for row in rows], lease, claim["token"], _expires_at(claim))
            failures += await self._handle_commands(rows, held, handler)
        if failures:
            raise ExceptionGroup(f"{len(failures)} scheduled commands failed and are due again", failures)

    async def _handle_commands(
        self, rows: Sequence[Any], held: _HeldCommands, handler: CommandHandler
    ) -> list[Exception]:
        """Handle claimed commands in their order, those that are still held; return what handlers raised."""
        failures: list[Exception] = []
        async with self._renewing(held):
            for id_, _, document in rows:
                await self._make_sure(held)
                if id_ not in held.ids:
                    continue
                claim = {"id": id_, "token": held.token}
                try:
                    await handler(SCHEDULED_COMMANDS.decode(document, row_id=id_))
                except Exception as error:  # the others still run; they are raised together
                    failures.append(error)
                    unit = [Statement("release_command", claim)]
                else:
                    unit = [Statement("reschedule_command", claim), Statement("complete_command", claim)]
                if id_ in held.ids:  # or a renewal found it lost while it was handled
                    held.ids.remove(id_)
                    changed = await _settled(self._engine.submit(unit))
                    if not any(changed):
                        _log_lost(id_)
        return failures

    @asynccontextmanager
    async def _renewing(self, held: _HeldCommands) -> AsyncIterator[None]:
        """Renew the claims on the commands that are still held, while the block runs; give back what it leaves."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(held.lease.total_seconds() / 3)
                try:
                    await self._renew_commands(held)
                except WfeError as error:  # the next turn tries again, well before the lease has passed
                    _log_not_renewed(held, error)

        renewal = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewal.cancel()
            if held.ids:
                await self._give_back("release_command", held.ids, held.token)

    async def _make_sure(self, held: _HeldCommands) -> None:
        """See to it that what is held is held now, by the clock; take out what is not.

        It is renewed at every third of the lease, so where less than a third is left, this host stood still, or the
        store did not answer, and another host may have taken it.
        """
        if held.expires_at - self._clock() >= held.lease / 3:
            return
        try:
            await self._renew_commands(held)
        except StoreError as error:
            if self._clock() >= held.expires_at:
                raise
            _log_not_renewed(held, error)
        if held.ids and self._clock() >= held.expires_at:
            _log.warning("%d scheduled commands are given back: renewing takes longer than their lease", len(held.ids))
            given_back, held.ids = held.ids, []
            await self._give_back("release_command", given_back, held.token)

    async def _renew_commands(self, held: _HeldCommands) -> None:
        """Move on the end of the claims on commands, and take out those that the token does not hold any more."""
        async with held.renewing:
            ids, expires_at = list(held.ids), self._expiry(held.lease)
            params = {"ids": encode_ids(ids), "token": held.token, "expires_at": TIME.encode(expires_at)}
            (rows,) = await self._engine.write([Statement("renew_commands", params)])
            held.expires_at = expires_at
            renewed = {row[0] for row in rows}
            for id_ in ids:
                if id_ in held.ids and id_ not in renewed:
                    held.ids.remove(id_)
                    _log_lost(id_)

    # errors

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        if rows := [EXECUTION_ERRORS.encode(error) for error in _listed("errors", ExecutionError, errors)]:
            await self._engine.write([Statement("persist_errors", rows)])

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
        return EXECUTION_ERRORS.decode_all([row[0] for row in rows], [row[1] for row in rows])

    async def _claim(self, query: str, look: str, params: Row, release: str) -> Sequence[Any]:
        """Run a query that claims and return its rows; a caller that is cancelled meanwhile gives back what it took.

        A poll that finds nothing takes no lock: see `Engine.may_find`.
        """
        if not await self._engine.may_find(Statement(look, params)):
            return []
        claiming = self._engine.submit([Statement(query, params)])
        try:
            (rows,) = await _settled(claiming)
        except asyncio.CancelledError:
            if not claiming.cancelled() and claiming.exception() is None:
                (rows,) = claiming.result()
                await self._give_back(release, [row[0] for row in rows], params["token"])
            raise
        return list(rows)

    async def _give_back(self, release: str, ids: Sequence[Any], token: str) -> None:
        """End claims where the token still holds them; what cannot be given back runs out."""
        try:
            releasing = [self._engine.submit([Statement(release, {"id": id_, "token": token})]) for id_ in ids]
            await _settled(asyncio.gather(*releasing))
        except WfeError as error:
            _log.warning("what was claimed is not given back, it is free when its lease is over: %s", error)

    def _now(self) -> str:
        return str(TIME.encode(self._clock()))

    def _expiry(self, lease: timedelta) -> datetime:
        return time_after(self._clock(), "lease", lease)

    def _new_claim(self, worker_id: str, lease: timedelta, limit: int) -> Row:
        """Return the parameters that every query has that takes claims: one fresh token for all that it takes."""
        return {
            "now": self._now(),
            "token": new_id(),
            "worker_id": encode_argument("worker_id", ID, worker_id),
            "expires_at": TIME.encode(self._expiry(lease)),
            "row_limit": _checked_limit(limit),
        }


class _NothingChangedError(Exception):
    """A guarded write found no row that it may change."""


def _check_conflict(stored: Stored, id_: str, revision: int, is_same_life: int | None) -> None:
    """Raise what is wrong with persisting an instance of a stored state over a workflow; nothing, if they fit."""
    if stored.id != id_:
        what = f"the instance was loaded or stored as workflow {stored.id!r}, and its id was changed to {id_!r} since"
    elif not is_same_life or revision < stored.revision:
        what = f"workflow {id_!r} was deleted and made again since the instance was loaded or stored"
    elif stored.revision != revision:
        what = (
            f"workflow {id_!r} was changed by somebody else: it was loaded or stored at revision {stored.revision} and "
            f"is now at {revision}"
        )
    else:
        return
    raise WorkflowConflictError(f"{what}; load it again. Nothing was written")


def _insert_pointers(snapshot: Snapshot, ids: Collection[str]) -> list[Statement]:
    return [Statement("insert_execution_pointers", snapshot.pointer_rows(ids))] if ids else []


def _claims(kind: ClaimKind, rows: Sequence[Any], params: Row) -> list[Claim]:
    """Return the claims on rows of (id, place in the poll's order)."""
    held = {"token": params["token"], "worker_id": params["worker_id"], "expires_at": _expires_at(params)}
    return [Claim(kind=kind, id=row[0], **held) for row in sorted(rows, key=lambda row: (row[1], row[0]))]


def _claim_lost(claim: Claim) -> ClaimLostError:
    return ClaimLostError(
        f"worker {claim.worker_id!r} does not hold {claim.kind.lower()} {claim.id!r} any more: its claim was released, "
        "or expired and was taken by another; nothing was written"
    )


def _checked_token(claim: Claim | None, kind: ClaimKind, id_: str) -> str | None:
    if claim is None:
        return None
    if (_kind(claim), claim.id) != (kind, id_):
        raise SerializationError(
            f"the claim is on {claim.kind.lower()} {claim.id!r}, which is not what is written, {kind.lower()} {id_!r}"
        )
    return str(_id_and_token(claim)["token"])


def _kind(claim: Claim) -> ClaimKind:
    """Return what a claim is on, which is text where the claim came back from JSON."""
    try:
        return ClaimKind(claim.kind)
    except AttributeError as error:
        raise wrong_type(Claim, claim) from error
    except ValueError as error:
        raise SerializationError(f"Claim.kind must be one of {', '.join(ClaimKind)}, not {claim.kind!r}") from error


def _id_and_token(claim: Claim) -> Row:
    return {
        "id": encode_argument("Claim.id", ID, claim.id),
        "token": encode_argument("Claim.token", ID, claim.token),
    }


def _expires_at(params: Row) -> datetime:
    return datetime.fromisoformat(params["expires_at"])


def _listed(name: str, kind: type[_T], values: Iterable[_T]) -> list[_T]:
    """Return the values of an argument as a list; a str is not taken for the list of its letters."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise SerializationError(f"{name} must be a list of {kind.__name__}, not {type(values).__name__}")
    return list(values)


def _log_lost(command_id: int) -> None:
    _log.warning("scheduled command %d is no longer held: its lease was over, and another host took it", command_id)


def _log_not_renewed(held: _HeldCommands, error: WfeError) -> None:
    _log.warning("the claims on scheduled commands %s are not renewed: %s", held.ids, error)


async def _settled(future: "asyncio.Future[_T]") -> _T:
    """Wait for what is under way; a caller that is cancelled does not stop it, and hears of that when it is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        raise


def _create_subscription(subscription: EventSubscription) -> Statement:
    row = EVENT_SUBSCRIPTIONS.encode(subscription)
    exists = StoreError(f"a subscription with id {subscription.id!r} exists already; nothing was written")
    conflicts: Mapping[str, Exception] = {"event_subscriptions.id": exists}
    return Statement("create_event_subscription", row, conflicts=conflicts)


def _name_in_use(workflow: Row) -> WorkflowAlreadyExistsError:
    return WorkflowAlreadyExistsError(f"another workflow has the name {workflow['name'] or workflow['id']!r}")


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
