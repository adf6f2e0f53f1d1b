"""What persisting an instance needs besides its statements: the instance as it was at the call, and turns."""

import asyncio
from collections.abc import Collection, Hashable, Iterable, Mapping
from types import TracebackType
from typing import ClassVar

from wfe_sql.errors import SerializationError
from wfe_sql.models import Stored, WorkflowInstance
from wfe_sql.rows import EXECUTION_POINTERS, WORKFLOWS, Row, encode_fingerprint, fingerprints, is_exact


class Snapshot:
    """An instance as it is now, encoded: what changes the instance later does not change this.

    Attributes:
        workflow: The row of the workflow.
        fingerprints: A fingerprint of each pointer by its id, in their order; None where a pointer has none.
    """

    def __init__(self, instance: WorkflowInstance, stored: Stored | None) -> None:
        """Encode the instance, and those of its pointers that are not as they are known to be stored.

        Raises:
            SerializationError: A value cannot be stored, or two pointers have one id.
        """
        self.workflow = WORKFLOWS.encode(instance)
        pointers = instance.execution_pointers
        if not isinstance(pointers, list):
            kind = type(pointers).__name__
            raise SerializationError(
                f"WorkflowInstance.execution_pointers must be a list of ExecutionPointer, not {kind}"
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
            raise SerializationError(
                f"WorkflowInstance.execution_pointers[{at}].id {ids[at]!r} is the id of another of its pointers"
            )
        self._stored: Stored | None = None
        self._changed: Collection[str] = self.fingerprints
        self._rows: dict[str, Row] = {}
        changed = self.changed_since(stored)
        for pointer in pointers if len(changed) == len(pointers) else [p for p in pointers if p.id in changed]:
            self._rows[pointer.id] = EXECUTION_POINTERS.encode(pointer)
            mark = self.fingerprints[pointer.id]
            if mark is not None and not is_exact(mark, pointer):
                self.fingerprints[pointer.id] = None

    def changed_since(self, stored: Stored | None) -> Collection[str]:
        """Return the ids of the pointers that are not known to be stored as they are here."""
        if stored is not self._stored:
            known = {} if stored is None else _fingerprints(stored, self.fingerprints)
            self._stored = stored
            self._changed = {id_ for id_, mark in self.fingerprints.items() if mark is None or mark != known.get(id_)}
        return self._changed

    def pointer_rows(self, ids: Iterable[str]) -> list[Row]:
        """Return the rows of some of the pointers."""
        return [{**self._pointer_row(id_), "workflow_id": self.workflow["id"]} for id_ in ids]

    def _pointer_row(self, id_: str) -> Row:
        mark = self.fingerprints[id_]
        if id_ in self._rows or mark is None:
            return self._rows[id_]
        return encode_fingerprint(mark)


def _fingerprints(stored: Stored, ids: Collection[str]) -> Mapping[str, bytes | None]:
    """Return the fingerprints of stored pointers, where documents were read of those that have one of the ids."""
    if not stored.has_documents:
        return stored.pointers
    documents = {id_: document for id_, document in stored.pointers.items() if id_ in ids}
    pointers = EXECUTION_POINTERS.decode_all(list(documents.values()))
    return dict(zip(documents, fingerprints(pointers), strict=True))


class Turn:
    """Has persists of one instance that are under way at the same time follow each other.

    A write that has begun goes on when its caller is cancelled, and the next one must know what became of it.
    """

    _last: ClassVar[dict[Hashable, "Turn"]] = {}
    """The last of each line; providers of one store share it."""

    def __init__(self, instance: WorkflowInstance, store_id: str) -> None:
        """Look whether there is a line; enter it with `async with`."""
        self._instance = instance  # so that no other gets its id()
        self._key = (id(instance), store_id, asyncio.get_running_loop())
        self._earlier = self._last.get(self._key)
        self._over: asyncio.Future[None] | None = None
        self._is_writing = False
        self._was_left = False

    @property
    def is_first(self) -> bool:
        """Whether there is nobody to wait for."""
        return self._earlier is None

    async def __aenter__(self) -> "Turn":
        self._last[self._key] = self
        if self._earlier is not None:
            earlier_is_over = self._earlier._until_over()
            self._earlier = None  # else each would keep all before it
            try:
                await asyncio.wait([earlier_is_over])
            except asyncio.CancelledError:
                earlier_is_over.add_done_callback(lambda _: self._end())
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_writing and isinstance(error, asyncio.CancelledError):
            self._was_left = True
        else:
            self._end()

    def begin_write(self) -> None:
        """Say that a write begins, of which `end_write` will be called whatever becomes of this caller."""
        self._is_writing = True

    def end_write(self) -> None:
        """Say that the write has ended."""
        self._is_writing = False
        if self._was_left:
            self._end()

    def _until_over(self) -> "asyncio.Future[None]":
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        return self._over

    def _end(self) -> None:
        if self._over is not None:
            self._over.set_result(None)
        if self._last.get(self._key) is self:
            del self._last[self._key]
