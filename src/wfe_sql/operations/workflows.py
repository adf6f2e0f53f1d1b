"""The operations on workflows."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from wfe_sql.arguments import (
    encode_argument,
    encode_id,
    encode_ids,
    encode_key,
    encode_limit,
    encode_ms_bound,
    listed,
)
from wfe_sql.codecs import ID
from wfe_sql.engines import Results, Statement, UniqueViolationError, Unit
from wfe_sql.engines.reporting import log_refusal
from wfe_sql.errors import CorruptRowError, StoreError, WorkflowConflictError, WorkflowNotFoundError
from wfe_sql.models import Claim, ClaimKind, EventSubscription, Stored, WorkflowInstance
from wfe_sql.operations.claims import Claims, NothingChangedError, claim_lost, claims_of, token_of
from wfe_sql.operations.hosting import log_left_out
from wfe_sql.operations.persisting import (
    NumberTakenError,
    Snapshot,
    Turn,
    changes,
    creation,
    numbered_creation,
)
from wfe_sql.operations.subscriptions import create_subscription
from wfe_sql.repositories import HostingRepository, WorkflowRepository
from wfe_sql.tables import EXECUTION_POINTERS, WORKFLOWS


class Workflows(Claims, WorkflowRepository, HostingRepository):
    """A `WorkflowRepository`."""

    _raises_on_conflict: bool

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        snapshot = Snapshot(instance, None)
        workflow, store_id = snapshot.workflow, self._engine.store_id

        def ended(outcome: Results | Exception | None) -> None:
            if isinstance(outcome, list):
                snapshot.remember(instance, store_id, workflow["create_time"])

        await self._write_snapshot(snapshot, creation(snapshot, ended))
        return str(workflow["id"])

    async def create_numbered_workflow(self, instance: WorkflowInstance) -> str:
        snapshot = Snapshot(instance, None)
        workflow, store_id = snapshot.workflow, self._engine.store_id

        def ended(outcome: Results | Exception | None) -> None:
            if isinstance(outcome, list):
                instance.name = outcome[0]
                snapshot.remember(instance, store_id, workflow["create_time"])

        definition_id = workflow["definition_id"]
        while True:
            draw = _draw_number(definition_id)
            try:
                await self._write_snapshot(snapshot, numbered_creation(snapshot, draw, ended))
            except NothingChangedError:
                raise _no_more_numbers(definition_id) from None
            except NumberTakenError:
                await self._engine.write([Statement("pass_over_taken_numbers", {"definition_id": definition_id})])
            else:
                return instance.name

    async def persist_workflow(self, instance: WorkflowInstance, *, claim: Claim | None = None) -> None:
        await self._persist(instance, [], claim)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription], *, claim: Claim | None = None
    ) -> None:
        new = listed("subscriptions", EventSubscription, subscriptions)
        await self._persist(instance, [create_subscription(subscription) for subscription in new], claim)

    async def _persist(self, instance: WorkflowInstance, more: Unit, claim: Claim | None) -> None:
        """Write what changed since the instance was loaded or stored, if the workflow is still as it was then.

        If somebody else wrote in between, overwrite the workflow with the whole instance, or raise a conflict.
        """
        snapshot = Snapshot.of_changes(instance, self._engine.store_id, self._now())
        snapshot.workflow["claim_token"] = token_of(claim, ClaimKind.Workflow, snapshot.workflow["id"])
        async with Turn([instance], self._engine.store_id) as turn:
            stored = instance._stored.get(self._engine.store_id)
            while not await self._try_persist(instance, snapshot, stored, more, turn):
                id_ = snapshot.workflow["id"]
                (guards,) = await self._engine.read([get_guards(id_, stored)])
                check_guards(id_, stored, claim, guards, raises_on_conflict=self._raises_on_conflict)
                if not self._raises_on_conflict:
                    stored = None

    async def _try_persist(
        self, instance: WorkflowInstance, snapshot: Snapshot, stored: Stored | None, more: Unit, turn: Turn
    ) -> bool:
        """Write what differs from what is known to be stored; return False if the workflow is not in the known state.

        The instance then remembers what was written, even if the caller was cancelled meanwhile.
        """
        store_id = self._engine.store_id

        def ended(outcome: Results | Exception | None) -> None:
            if isinstance(outcome, list):
                revision, create_time = outcome[0]
                snapshot.remember(instance, store_id, create_time, revision)
            turn.end_write()

        turn.begin_write()
        try:
            await self._write_snapshot(snapshot, [*changes(snapshot, stored, ended), *more])
        except NothingChangedError:
            return False
        return True

    async def _write_snapshot(self, snapshot: Snapshot, unit: Unit) -> None:
        try:
            await self._engine.write(unit)
        except UniqueViolationError as error:
            (found,) = await self._engine.read([find_pointer_of_another_workflow(snapshot)])
            if found is None:
                raise
            raise pointer_of_another_workflow(snapshot, found) from error.__cause__

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": encode_ms_bound("as_at", as_at), "row_limit": encode_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_instances", params)])
        return [row[0] for row in rows]

    async def claim_runnable_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        params = {"as_at": encode_ms_bound("as_at", as_at), **self._new_claim(worker_id, lease, limit)}
        rows = await self._claim(
            "claim_runnable_instances", "find_free_runnable_instance", params, "release_workflow_claim"
        )
        return claims_of(ClaimKind.Workflow, rows, params)

    async def claim_and_load_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[tuple[Claim, WorkflowInstance]]:
        params = {"as_at": encode_ms_bound("as_at", as_at), **self._new_claim(worker_id, lease, limit)}
        unit = [Statement("claim_and_load_instances", params), Statement("get_claimed_execution_pointers", params)]
        rows, pointers = await self._claim_and_read(
            unit, "find_free_runnable_instance", params, "release_workflow_claim"
        )
        pointers_of = _by_workflow((row[0] for row in rows), pointers)
        workflows = {row[0]: row[2:] for row in rows}
        loaded = []
        for claim in claims_of(ClaimKind.Workflow, [row[:2] for row in rows], params):
            instance = None
            if workflows[claim.id][0] is not None:  # or it was changed while it was claimed
                with suppress(CorruptRowError):  # readable workflows in the same batch fail too
                    instance = self._decode_instance(workflows[claim.id], pointers_of[claim.id])
            try:
                loaded.append((claim, instance or await self.get_workflow_instance(claim.id)))
            except (CorruptRowError, WorkflowNotFoundError) as error:
                log_left_out(claim, error)
        return loaded

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        instance = await self._find_instance(encode_id("id", id))
        if instance is None:
            raise WorkflowNotFoundError(f"no workflow has id {id!r}", workflow_id=id)
        return instance

    async def _find_instance(self, id_: str) -> WorkflowInstance | None:
        workflow, pointers = await self._engine.read(
            [
                Statement("get_workflow_instance", {"id": id_}),
                Statement("get_execution_pointers", {"workflow_id": id_}),
            ]
        )
        return None if workflow is None else self._decode_instance(workflow, pointers)

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        params = {"name": encode_key("name", name)}
        workflow, pointers = await self._engine.read(
            [Statement("get_workflow_instance_by_name", params), Statement("get_execution_pointers_by_name", params)]
        )
        if workflow is None:
            raise WorkflowNotFoundError(f"no workflow has name {name!r}", name=name)
        return self._decode_instance(workflow, pointers)

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        ids = [encode_id("ids", id_) for id_ in listed("ids", str, ids)]
        if len(ids) == 1:  # an engine may run it together with other gets
            instance = await self._find_instance(ids[0])
            return [] if instance is None else [instance]
        params = {"ids": encode_ids(ids)}
        workflows, pointers = await self._engine.read(
            [Statement("get_workflow_instances", params), Statement("get_execution_pointers_of_instances", params)]
        )
        by_id = {workflow[0]: workflow for workflow in workflows}
        pointers_of = _by_workflow(ids, pointers)
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
        draw = _draw_number(encode_argument("definition_id", ID, definition_id))
        try:
            (number,) = await self._engine.write([draw])
        except NothingChangedError:
            raise _no_more_numbers(definition_id) from None
        return int(number)


def _draw_number(definition_id: str) -> Statement:
    params = {"definition_id": definition_id}
    return Statement("next_definition_sequence", params, otherwise=NothingChangedError())


def _no_more_numbers(definition_id: str) -> StoreError:
    return StoreError(f"the numbers of definition {definition_id!r} are used up: the last one is too close to 2**63")


def _by_workflow(ids: Iterable[str], pointers: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the rows of pointers, of (workflow's id, document), by their workflows, which have these ids.

    Raises:
        CorruptRowError: One is of another workflow.
    """
    pointers_of: dict[str, list[Any]] = {id_: [] for id_ in ids}
    for pointer in pointers:
        if pointer[0] not in pointers_of:
            raise CorruptRowError(
                f"index and table disagree on a pointer of workflow {pointer[0]!r}; restore a backup",
                table="execution_pointers",
                column="workflow_id",
            )
        pointers_of[pointer[0]].append(pointer[1:])
    return pointers_of


def get_guards(id_: str, stored: Stored | None) -> Statement:
    """Return the read that explains why a workflow with a known state was not persisted."""
    params = {"id": id_, "expected_create_time": None if stored is None else stored.create_time}
    return Statement("get_workflow_guards", params)


def check_guards(
    id_: str, stored: Stored | None, claim: Claim | None, guards: Sequence[Any] | None, *, raises_on_conflict: bool
) -> None:
    """Raise why a workflow with a known state was not persisted; return if it may be tried again.

    Raises:
        WorkflowNotFoundError: It does not exist.
        ClaimLostError: The claim does not hold it.
        WorkflowConflictError: It is in another state.
    """
    if guards is None:
        raise WorkflowNotFoundError(f"no workflow has id {id_!r}", workflow_id=id_)
    if claim is not None and guards[0] != claim.token:
        lost = claim_lost(claim)
        log_refusal(lost)
        raise lost
    if raises_on_conflict and stored is not None:
        _check_conflict(stored, id_, *guards[1:])


def find_pointer_of_another_workflow(snapshot: Snapshot) -> Statement:
    """Return the read of a pointer of an instance that belongs to another workflow."""
    params = {"ids": encode_ids(snapshot.fingerprints), "workflow_id": snapshot.workflow["id"]}
    return Statement("find_execution_pointer_of_another_workflow", params)


def pointer_of_another_workflow(snapshot: Snapshot, found: Sequence[Any]) -> StoreError:
    """Return the error for an instance with a pointer that belongs to another workflow."""
    pointer_id, owner = found
    return StoreError(
        f"execution pointer {pointer_id!r} of workflow {snapshot.workflow['id']!r} belongs to workflow {owner!r}; "
        "nothing was written"
    )


def _check_conflict(stored: Stored, id_: str, revision: int, is_same_life: int | None) -> None:
    """Raise the conflict between an instance's stored state and the workflow; return if there is none."""
    if stored.id != id_:
        what = f"the instance was loaded or stored as workflow {stored.id!r}, and its id was changed to {id_!r} since"
    elif not is_same_life or revision < stored.revision:
        what = f"workflow {id_!r} was deleted and created again since the instance was loaded or stored"
    elif stored.revision != revision:
        what = f"somebody else changed workflow {id_!r}: you have revision {stored.revision}, the store has {revision}"
    else:
        return
    conflict = WorkflowConflictError(f"{what}; load it again. Nothing was written", workflow_id=id_)
    log_refusal(conflict)
    raise conflict
