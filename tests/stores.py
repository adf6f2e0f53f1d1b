"""What tests of both databases do with a store, and with tuned copies of its queries."""

import os
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from wfe_sql import ExecutionError, FindingKind, ScheduledCommand
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.queries import QuerySet
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription
from wfe_sql.testing.samples import TIME


async def fill(provider: SqlPersistenceProvider, ids: str = "ba") -> None:
    """Store one of everything for each letter, which is the workflow's id."""
    for id_ in ids:
        pointers = [full_pointer(id=f"{id_}-p{number}") for number in (2, 1)]
        await provider.create_new_workflow(full_instance(id=id_, name=f"order-{id_}", execution_pointers=pointers))
        await provider.create_event(full_event(id=f"e-{id_}"))
        await provider.create_event_subscription(full_subscription(id=f"s-{id_}", workflow_id=id_))
        await provider.schedule_command(ScheduledCommand.process_workflow(id_, 2**60))
        error = ExecutionError(error_time=TIME, workflow_id=id_, execution_pointer_id=f"{id_}-p1", message="boom")
        await provider.persist_errors([error])
    await provider.next_definition_sequence("order")


async def dump(provider: SqlPersistenceProvider) -> list[str]:
    """Return all rows, a line each."""
    async with aclosing(provider.dump()) as lines:
        return [line async for line in lines]


async def found(provider: SqlPersistenceProvider, kind: FindingKind) -> list[str]:
    """Return the findings of one kind."""
    return [finding.message for finding in await provider.check() if finding.kind is kind]


def tuned(own: QuerySet, folder: Path, *changes: tuple[str, str, str]) -> Path:
    """Write copies of queries, each with a text replaced, and return the folder."""
    folder.mkdir(exist_ok=True)
    texts = []
    for name, old, new in changes:
        assert old in own[name].text
        texts.append(own[name].text.replace(old, new))
    (folder / "mine.sql").write_text("-- Mine.\n\n" + "\n".join(texts), encoding="utf-8")
    return folder


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Check that every thread that the block starts ends."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user for whom permissions count."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
