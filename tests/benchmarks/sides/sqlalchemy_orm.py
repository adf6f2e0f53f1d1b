"""SQLAlchemy's async ORM on aiosqlite: mapped classes, a session per unit of work.

Objects outlive their session (`expire_on_commit=False`) and are added to the next one when they are persisted, so the
ORM writes only what changed.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Dialect, Enum, ForeignKey, String, TypeDecorator, event, literal_column, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship

from sides import Models, Side
from sides.stdlib import PRAGMAS
from wfe_sql import PointerStatus, WorkflowStatus, utc_now
from wfe_sql.models import new_id

CONNECTIONS = 1
"""Of 1, 2, 4 and 5 (the default) this writes fastest and has by far the best p99 in `mixed`: if one connection waits
for another, SQLite sleeps longer and longer, up to 100 ms. Two read about a tenth faster."""

POOL_TIMEOUT = 600
"""Seconds that a unit may wait for its turn: enough for any disk."""


class TimeText(TypeDecorator[datetime]):
    """Aware times as text, as in the tables; SQLAlchemy's own type for SQLite drops the zone."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else value.isoformat()

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


class Base(MappedAsDataclass, DeclarativeBase, eq=False):
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy declares it so
        datetime: TimeText,
        Any: JSON(none_as_null=True),
        list[str]: JSON,
        dict[str, Any]: JSON,
        WorkflowStatus: Enum(WorkflowStatus, native_enum=False),
        PointerStatus: Enum(PointerStatus, native_enum=False),
    }


class ExecutionPointer(Base, kw_only=True):
    __tablename__ = "execution_pointers"

    id: Mapped[str] = mapped_column(primary_key=True, default_factory=new_id)
    workflow_id: Mapped[str] = mapped_column(ForeignKey("workflows.id"), init=False)
    step_id: Mapped[int]
    active: Mapped[bool] = mapped_column(default=True)
    status: Mapped[PointerStatus] = mapped_column(default=PointerStatus.Pending)
    sleep_until: Mapped[datetime | None] = mapped_column(default=None)
    persistence_data: Mapped[Any] = mapped_column(default=None)
    start_time: Mapped[datetime | None] = mapped_column(default=None)
    end_time: Mapped[datetime | None] = mapped_column(default=None)
    event_name: Mapped[str | None] = mapped_column(default=None)
    event_key: Mapped[str | None] = mapped_column(default=None)
    event_published: Mapped[bool] = mapped_column(default=False)
    event_data: Mapped[Any] = mapped_column(default=None)
    step_name: Mapped[str | None] = mapped_column(default=None)
    retry_count: Mapped[int] = mapped_column(default=0)
    children: Mapped[list[str]] = mapped_column(default_factory=list)
    context_item: Mapped[Any] = mapped_column(default=None)
    predecessor_id: Mapped[str | None] = mapped_column(default=None)
    outcome: Mapped[Any] = mapped_column(default=None)
    scope: Mapped[list[str]] = mapped_column(default_factory=list)
    extension_attributes: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)


class WorkflowInstance(Base, kw_only=True):
    __tablename__ = "workflows"

    id: Mapped[str] = mapped_column(primary_key=True, default_factory=new_id)
    name: Mapped[str]
    root_workflow_id: Mapped[str | None] = mapped_column(default=None)
    workflow_definition_id: Mapped[str] = mapped_column("definition_id")
    version: Mapped[int]
    description: Mapped[str | None] = mapped_column(default=None)
    reference: Mapped[str | None] = mapped_column(default=None)
    execution_pointers: Mapped[list[ExecutionPointer]] = relationship(
        cascade="all, delete-orphan",
        lazy="selectin",
        order_by=literal_column("execution_pointers.rowid"),
        default_factory=list,
    )
    next_execution: Mapped[int | None] = mapped_column(default=0)
    status: Mapped[WorkflowStatus] = mapped_column(default=WorkflowStatus.Runnable)
    data: Mapped[Any]
    create_time: Mapped[datetime] = mapped_column(default_factory=utc_now)
    complete_time: Mapped[datetime | None] = mapped_column(default=None)


class Event(Base, kw_only=True):
    __tablename__ = "events"

    id: Mapped[str] = mapped_column(primary_key=True, default_factory=new_id)
    event_name: Mapped[str]
    event_key: Mapped[str]
    event_data: Mapped[Any]
    event_time: Mapped[datetime] = mapped_column(default_factory=utc_now)
    is_processed: Mapped[bool] = mapped_column(default=False)


class EventSubscription(Base, kw_only=True):
    __tablename__ = "event_subscriptions"

    id: Mapped[str] = mapped_column(primary_key=True, default_factory=new_id)
    workflow_id: Mapped[str]
    step_id: Mapped[int]
    execution_pointer_id: Mapped[str]
    event_name: Mapped[str]
    event_key: Mapped[str]
    subscribe_as_of: Mapped[datetime]
    subscription_data: Mapped[Any] = mapped_column(default=None)
    external_token: Mapped[str | None] = mapped_column(default=None)
    external_worker_id: Mapped[str | None] = mapped_column(default=None)
    external_token_expiry: Mapped[datetime | None] = mapped_column(default=None)
    terminated: Mapped[bool] = mapped_column(default=False)


class DefinitionSequence(Base, kw_only=True):
    __tablename__ = "definition_sequences"

    definition_id: Mapped[str] = mapped_column(primary_key=True)
    next_num: Mapped[int]


class SqlAlchemyStore:
    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def next_definition_sequence(self, definition_id: str) -> int:
        statement = (
            insert(DefinitionSequence)
            .values(definition_id=definition_id, next_num=1)
            .on_conflict_do_update(
                index_elements=[DefinitionSequence.definition_id], set_={"next_num": DefinitionSequence.next_num + 1}
            )
            .returning(DefinitionSequence.next_num)
        )
        async with self._sessions.begin() as session:
            return (await session.execute(statement)).scalar_one()

    async def create_new_workflow(self, instance: WorkflowInstance) -> None:
        await self._store(instance)

    async def persist_workflow(self, instance: WorkflowInstance) -> None:
        await self._store(instance)

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        await self._store(instance, *subscriptions)

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        async with self._sessions() as session:
            return await session.get_one(WorkflowInstance, id)

    async def create_event(self, event: Event) -> None:
        await self._store(event)

    async def mark_event_processed(self, id: str) -> None:
        async with self._sessions.begin() as session:
            await session.execute(update(Event).where(Event.id == id).values(is_processed=True))

    async def get_subscriptions(self, event_name: str, event_key: str, as_of: datetime) -> Sequence[EventSubscription]:
        statement = (
            select(EventSubscription)
            .where(
                EventSubscription.event_name == event_name,
                EventSubscription.event_key == event_key,
                EventSubscription.subscribe_as_of <= as_of,
                EventSubscription.terminated.is_(False),
            )
            .order_by(EventSubscription.subscribe_as_of, EventSubscription.id)
        )
        async with self._sessions() as session:
            return (await session.scalars(statement)).all()

    async def terminate_subscription(self, id: str) -> None:
        statement = update(EventSubscription).where(EventSubscription.id == id).values(terminated=True)
        async with self._sessions.begin() as session:
            await session.execute(statement)

    async def _store(self, *objects: Base) -> None:
        async with self._sessions.begin() as session:
            session.add_all(objects)


@asynccontextmanager
async def open_sqlalchemy(file: Path) -> AsyncIterator[SqlAlchemyStore]:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{file.absolute()}",
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    try:
        yield SqlAlchemyStore(async_sessionmaker(engine, expire_on_commit=False))
    finally:
        await engine.dispose()


SQLALCHEMY = Side(
    "sqlalchemy",
    "async ORM on aiosqlite, a session per unit, one connection, which is fastest; writes what was changed",
    open_sqlalchemy,
    models=Models(WorkflowInstance, ExecutionPointer, Event, EventSubscription),
)
