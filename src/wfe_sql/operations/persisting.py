"""Storing an instance: a snapshot of it at the call, the statements that store it, and turns."""

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import ClassVar
from weakref import WeakKeyDictionary

from wfe_sql.arguments import Row, encode_ids, wrong_type
from wfe_sql.engines import Ended, Statement
from wfe_sql.errors import SerializationError, WorkflowAlreadyExistsError
from wfe_sql.models import Stored, WorkflowInstance
from wfe_sql.operations.claims import NothingChangedError
from wfe_sql.operations.fingerprints import encode_fingerprint, fingerprints, is_exact
from wfe_sql.tables import EXECUTION_POINTERS, WORKFLOWS

_NO_REVISION = -1
"""A revision that no workflow has."""


class Snapshot:
    """An instance as it is now, encoded; later changes to the instance do not affect it.

    Attributes:
        workflow: The row of the workflow.
        fingerprints: A fingerprint of each pointer by its id, in their order; None where a pointer has none.
    """

    __slots__ = ("_changed", "_rows", "_stored", "fingerprints", "workflow")

    def __init__(self, instance: WorkflowInstance, stored: Stored | None) -> None:
        """Encode the instance, and those of its pointers that differ from what is known to be stored.

        Raises:
            SerializationError: A value cannot be stored, or two pointers have the same id.
        """
        self.workflow = WORKFLOWS.encode(instance)
        pointers = instance.execution_pointers
        if not isinstance(pointers, list):
            kind = type(pointers).__name__
            raise SerializationError(
                f"WorkflowInstance.execution_pointers must be a list of ExecutionPointer, not {kind}",
                field="WorkflowInstance.execution_pointers",
            )
        try:
            self.fingerprints = dict(zip([pointer.id for pointer in pointers], fingerprints(pointers), strict=True))
        except (AttributeError, TypeError):
            for pointer in pointers:
                EXECUTION_POINTERS.encode(pointer)  # its error says which field is wrong
            raise
        if len(self.fingerprints) < len(pointers):
            ids = [pointer.id for pointer in pointers]
            at = next(at for at, id_ in enumerate(ids) if id_ in ids[:at])
            field = f"WorkflowInstance.execution_pointers[{at}].id"
            raise SerializationError(f"{field} {ids[at]!r} is used by another pointer of this workflow", field=field)
        self._stored: Stored | None = None
        self._changed: Collection[str] = self.fingerprints
        self._rows: dict[str, Row] = {}
        changed = self.changed_since(stored)
        for pointer in pointers if len(changed) == len(pointers) else [p for p in pointers if p.id in changed]:
            self._rows[pointer.id] = self._row(EXECUTION_POINTERS.encode(pointer))
            mark = self.fingerprints[pointer.id]
            if mark is not None and not is_exact(mark, pointer):
                self.fingerprints[pointer.id] = None

    @classmethod
    def of_changes(cls, instance: WorkflowInstance, store_id: str, now: str) -> "Snapshot":
        """Encode an instance that is to be persisted, based on what it remembers.

        Raises:
            SerializationError: It is not a `WorkflowInstance`, or cannot be stored.
        """
        if not isinstance(instance, WorkflowInstance):
            raise wrong_type(WorkflowInstance, instance)
        snapshot = cls(instance, instance._stored.get(store_id))
        del snapshot.workflow["create_time"]
        snapshot.workflow["now"] = now  # last_heartbeat_at, which only the reference's PostgreSQL table has
        return snapshot

    def remember(self, instance: WorkflowInstance, store_id: str, create_time: str, revision: int = 0) -> None:
        """Make the instance remember that this is stored."""
        instance._remember(store_id, Stored(self.workflow["id"], create_time, revision, self.fingerprints))

    def changed_since(self, stored: Stored | None) -> Collection[str]:
        """Return the ids of the pointers that differ from what is known to be stored."""
        if stored is not self._stored:
            known = {} if stored is None else _fingerprints(stored, self.fingerprints)
            self._stored = stored
            self._changed = {id_ for id_, mark in self.fingerprints.items() if mark is None or mark != known.get(id_)}
        return self._changed

    def pointer_rows(self, ids: Iterable[str]) -> list[Row]:
        """Return the rows of some of the pointers."""
        return [self._pointer_row(id_) for id_ in ids]

    def _pointer_row(self, id_: str) -> Row:
        mark = self.fingerprints[id_]
        if id_ in self._rows or mark is None:
            return self._rows[id_]
        return self._row(encode_fingerprint(mark))

    def _row(self, row: Row) -> Row:
        row["workflow_id"] = self.workflow["id"]
        return row


def _fingerprints(stored: Stored, ids: Collection[str]) -> Mapping[str, bytes | None]:
    """Return the fingerprints of stored pointers; made from their documents, they are limited to the given ids."""
    if not stored.has_documents:
        return stored.pointers
    documents = {id_: document for id_, document in stored.pointers.items() if id_ in ids}
    pointers = EXECUTION_POINTERS.decode_all(list(documents.values()))
    return dict(zip(documents, fingerprints(pointers), strict=True))


class NumberTakenError(Exception):
    """A workflow already has the name that a number would make."""


def creation(snapshot: Snapshot, ended: Ended | None) -> list[Statement]:
    """Return the statements that store a new workflow; `ended` is called with the outcome."""
    workflow = snapshot.workflow
    conflicts = {"workflows.id": partial(_id_in_use, workflow), "workflows.name": partial(_name_in_use, workflow)}
    create = Statement("create_new_workflow", workflow, conflicts=conflicts, ended=ended)
    return [create, *_insert_pointers(snapshot, snapshot.fingerprints)]


def numbered_creation(snapshot: Snapshot, draw: Statement, ended: Ended) -> list[Statement]:
    """Return the statements that store a new workflow under the number that `draw` draws; the first returns its name.

    They fail with `NumberTakenError` if the name is in use.
    """
    workflow = snapshot.workflow
    conflicts: dict[str, Callable[[], Exception]] = {"workflows.name": NumberTakenError}
    conflicts["workflows.id"] = partial(_id_in_use, workflow)
    create = Statement("create_numbered_workflow", workflow, otherwise=draw.otherwise, conflicts=conflicts, ended=ended)
    return [create, draw, *_insert_pointers(snapshot, snapshot.fingerprints)]


def _id_in_use(workflow: Row) -> WorkflowAlreadyExistsError:
    id_ = workflow["id"]
    return WorkflowAlreadyExistsError(f"a workflow with id {id_!r} already exists", workflow_id=id_)


def changes(snapshot: Snapshot, stored: Stored | None, ended: Ended | None) -> list[Statement]:
    """Return the statements that turn a workflow in the stored state into the snapshot; in any state, if it is None.

    They fail with `NothingChangedError` if the workflow is not in that state. `ended` is called with the outcome; the
    first result is (revision, create_time).
    """
    workflow = snapshot.workflow
    if stored is None:
        workflow["expected_revision"] = workflow["expected_create_time"] = None
    else:
        is_known = stored.id == workflow["id"]
        workflow["expected_revision"] = stored.revision if is_known else _NO_REVISION
        workflow["expected_create_time"] = stored.create_time
        stored = stored if is_known else None
    conflicts = {"workflows.name": partial(_name_in_use, workflow)}
    nothing_changed = NothingChangedError()
    persist = Statement("persist_workflow", workflow, otherwise=nothing_changed, conflicts=conflicts, ended=ended)
    return [persist, *_change_pointers(snapshot, stored)]


def _name_in_use(workflow: Row) -> WorkflowAlreadyExistsError:
    name = workflow["name"] or workflow["id"]
    return WorkflowAlreadyExistsError(f"another workflow has the name {name!r}", name=name)


def _change_pointers(snapshot: Snapshot, stored: Stored | None) -> list[Statement]:
    """Return the statements that turn the pointers known to be stored into those of the snapshot.

    Their order is that of their rows, so what was kept must come first and in the same order as before, and what is
    new after it. Otherwise all of them are written again.
    """
    ids, known = list(snapshot.fingerprints), {} if stored is None else stored.pointers
    kept = [id_ for id_ in known if id_ in snapshot.fingerprints]
    workflow_id = snapshot.workflow["id"]
    if not kept or kept != ids[: len(kept)]:
        delete = Statement("delete_execution_pointers", {"workflow_id": workflow_id})
        return [delete, *_insert_pointers(snapshot, ids)]
    statements = []
    if len(kept) < len(known):
        gone = [id_ for id_ in known if id_ not in snapshot.fingerprints]
        params = {"ids": encode_ids(gone), "workflow_id": workflow_id}
        statements.append(Statement("delete_gone_execution_pointers", params))
    changed = snapshot.changed_since(stored)
    if rows := snapshot.pointer_rows(id_ for id_ in kept if id_ in changed):
        statements.append(Statement("upsert_execution_pointers", rows))
    return statements + _insert_pointers(snapshot, ids[len(kept) :])


def _insert_pointers(snapshot: Snapshot, ids: Collection[str]) -> list[Statement]:
    """Return the statement that inserts some of the pointers, in order."""
    return [Statement("insert_execution_pointers", snapshot.pointer_rows(ids))] if ids else []


_Turns = dict[Hashable, list["asyncio.Future[None]"]]
"""The waiting callers of each instance that has a turn."""


class Turn:
    """Makes concurrent persists of the same instances follow each other.

    A write that has begun continues when its caller is cancelled, and the next one must know its outcome, so the turn
    of such a caller ends with its write.
    """

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, "_Turns"]] = WeakKeyDictionary()
    """The turns taken now; providers of one store share them."""

    def __init__(self, instances: Iterable[WorkflowInstance], store_id: str) -> None:
        """Prepare a turn with all of the instances; it lasts for the `async with` block."""
        by_id = {id(instance): instance for instance in instances}
        self._instances = by_id  # keeps them alive, so that no other object gets one's id()
        self._keys = [(id_, store_id) for id_ in sorted(by_id)]  # in one order, so that no two wait for each other
        self._taken: list[Hashable] = []
        self._is_writing = self._has_left = False
        loop = asyncio.get_running_loop()
        turns = self._by_loop.get(loop)
        self._turns: _Turns = self._by_loop.setdefault(loop, {}) if turns is None else turns

    async def __aenter__(self) -> "Turn":
        for key in self._keys:
            waiting = self._turns.get(key)
            if waiting is None:
                self._turns[key] = []
            else:
                comes = asyncio.get_running_loop().create_future()
                waiting.append(comes)
                try:
                    await comes
                except asyncio.CancelledError:
                    if not comes.cancelled():  # the turn came at the same moment
                        self._taken.append(key)
                    self._end()
                    raise
            self._taken.append(key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_left = True
        if not (self._is_writing and isinstance(error, asyncio.CancelledError)):
            self._end()

    def begin_write(self) -> None:
        """Note that a write begins; `end_write` follows even if this caller is cancelled."""
        self._is_writing = True

    def end_write(self) -> None:
        """Note that the write has ended."""
        self._is_writing = False
        if self._has_left:
            self._end()

    def _end(self) -> None:
        """Give the turn with each instance to the caller that has waited longest for it."""
        for key in self._taken:
            waiting = self._turns[key]
            while waiting:
                comes = waiting.pop(0)
                if not comes.done():
                    comes.set_result(None)
                    break
            else:
                del self._turns[key]
