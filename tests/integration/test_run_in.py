"""Units of work in an application's transactions, through every driver."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from joining import WAYS, Transaction, Way, asyncpg_options
from servers import OwnServer, with_option
from wfe_sql import (
    ClaimLostError,
    CommandName,
    EventAlreadyExistsError,
    EventNotFoundError,
    ExecutionError,
    PostgresPersistenceProvider,
    ProviderClosedError,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreBusyError,
    StoreError,
    StoreReadOnlyError,
    WorkflowConflictError,
    WorkflowNotFoundError,
    WorkflowStatus,
    utc_now,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing.samples import TIME, full_event, full_instance, full_subscription, sample_instance

FEW = {"sqlite3", "asyncpg"}
"""The ways that represent all others in most tests: a driver of each database, without async and with it."""
MOST_SLOW = [way if way.name in FEW else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
ON_SQLITE = [param for param, way in zip(MOST_SLOW, WAYS, strict=True) if way.dialect == "sqlite"]
ON_POSTGRES = [param for param, way in zip(MOST_SLOW, WAYS, strict=True) if way.dialect == "postgres"]
DRIVERS = [way for way in WAYS if "+" not in way.name and " " not in way.name.removesuffix(" async")]

Connect = Callable[..., Awaitable[Transaction]]


@pytest.fixture(params=MOST_SLOW, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def target(way: Way, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The file, or the URL of the server."""
    url: str = str(tmp_path / "store.db") if way.dialect == "sqlite" else request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def make_provider(way: Way, target: str, request: pytest.FixtureRequest) -> Callable[..., SqlPersistenceProvider]:
    """A function that returns a provider of the test's store."""

    def make_provider(mode: str = "rwc", **options: Any) -> SqlPersistenceProvider:
        if way.dialect == "sqlite":
            return SqlitePersistenceProvider(f"sqlite://{target}?mode={mode}", **options)
        url = with_option(target, f"mode={mode}")
        return PostgresPersistenceProvider(url, schema=request.getfixturevalue("shared_schema"), **options)

    return make_provider


@pytest.fixture
async def provider(
    way: Way, target: str, make_provider: Callable[..., SqlPersistenceProvider], request: pytest.FixtureRequest
) -> AsyncIterator[SqlPersistenceProvider]:
    """A provider of an empty store, in a database where the application has a table."""
    if way.dialect == "sqlite":
        with closing(sqlite3.connect(target)) as connection:
            connection.execute("CREATE TABLE orders (id TEXT)")
    else:
        request.getfixturevalue("empty_schema")
        with psycopg.connect(target, options="-c client_min_messages=warning") as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT)")
            connection.execute("DELETE FROM orders")
    async with make_provider() as provider:
        yield provider


@pytest.fixture
async def connect(way: Way, target: str) -> AsyncIterator[Connect]:
    """A function that connects like an application, to the store's database or another."""
    opened: list[Transaction] = []

    async def connect(to: str = target, *, in_autocommit: bool = False) -> Transaction:
        opened.append(await (way.connect_in_autocommit if in_autocommit else way.connect)(to))
        return opened[-1]

    yield connect
    for transaction in opened:
        await transaction.close()


async def _orders(connect: Connect) -> list[str]:
    return [id_ for (id_,) in await (await connect()).run("SELECT id FROM orders ORDER BY id")]


def _order(id_: str) -> str:
    return f"INSERT INTO orders VALUES ('{id_}')"


@pytest.mark.parametrize("way", WAYS, ids=str, indirect=True)
async def test_a_unit_is_stored_when_the_caller_commits(provider: SqlPersistenceProvider, connect: Connect) -> None:
    instance, event, subscription = full_instance(id="w"), full_event(id="e"), full_subscription(id="s")
    await provider.create_event(full_event(id="before"))
    error = ExecutionError(error_time=TIME, workflow_id="w", execution_pointer_id="p", message='it\'s $1, "so" :so')
    unit = provider.unit()
    unit.create_new_workflow(instance)
    unit.create_event(event)
    unit.mark_event_unprocessed("before")
    found = unit.subscribe(subscription)
    unit.persist_errors([error, error])
    unit.schedule_command(ScheduledCommand(command_name=CommandName.ProcessWorkflow, data="w", execute_time=5))

    transaction = await connect()
    await transaction.run(_order("a"))
    await transaction.add(unit)
    await transaction.run(_order("b"))
    with pytest.raises(WorkflowNotFoundError):
        await provider.get_workflow_instance("w")
    await transaction.commit()

    assert await provider.get_workflow_instance("w") == instance
    assert await provider.get_event("e") == event
    assert not (await provider.get_event("before")).is_processed
    assert await provider.get_subscription("s") == subscription
    assert [stored.message for stored in await provider.get_execution_errors("w")] == [error.message] * 2
    assert found.event_ids == ["before", "e"]
    assert await _orders(connect) == ["a", "b"]


async def test_a_unit_may_come_first(provider: SqlPersistenceProvider, connect: Connect) -> None:
    """The driver, or SQLAlchemy, has not begun its transaction yet."""
    transaction = await connect()
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    await transaction.add(unit)
    with pytest.raises(EventNotFoundError):
        await provider.get_event("e")
    await transaction.commit()
    assert (await provider.get_event("e")).id == "e"


@pytest.mark.parametrize("way", MOST_SLOW, ids=str, indirect=True)
async def test_when_the_caller_rolls_back_nothing_is_stored(provider: SqlPersistenceProvider, connect: Connect) -> None:
    loaded = full_instance(id="loaded")
    await provider.create_new_workflow(loaded)
    new = sample_instance(id="new")
    loaded.description, loaded.execution_pointers[0].retry_count = "changed", 99
    unit = provider.unit()
    unit.create_new_workflow(new)
    unit.persist_workflow(loaded)

    transaction = await connect()
    await transaction.run(_order("a"))
    await transaction.add(unit)
    await transaction.rollback()

    assert await _orders(connect) == []
    with pytest.raises(WorkflowNotFoundError):
        await provider.get_workflow_instance("new")
    assert (await provider.get_workflow_instance("loaded")).description == "an order"
    # The instances remember their state from before, so the next persist is correct.
    await provider.create_new_workflow(new)
    await provider.persist_workflow(loaded)
    assert await provider.get_workflow_instance("loaded") == loaded


async def test_after_the_commit_an_instance_is_to_be_loaded_again(
    provider: SqlPersistenceProvider, connect: Connect
) -> None:
    instance = full_instance(id="w")
    await provider.create_new_workflow(instance)
    instance.description = "changed"
    instance.execution_pointers[0].retry_count = 99
    del instance.execution_pointers[1]
    unit = provider.unit()
    unit.persist_workflow_with_subscriptions(instance, [full_subscription(id="s", workflow_id="w")])
    transaction = await connect()
    await transaction.add(unit)
    await transaction.commit()

    with pytest.raises(WorkflowConflictError):
        await provider.persist_workflow(instance)
    loaded = await provider.get_workflow_instance("w")
    assert loaded == instance
    loaded.description = "changed again"
    await provider.persist_workflow(loaded)


@pytest.mark.parametrize("way", MOST_SLOW, ids=str, indirect=True)
async def test_a_unit_that_fails_leaves_the_transaction_as_it_was(
    way: Way, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    await provider.create_event(full_event(id="e"))
    transaction = await connect()
    await transaction.run(_order("a"))
    unit = provider.unit()
    unit.create_new_workflow(sample_instance(id="w"))
    unit.create_event(full_event(id="e"))
    with pytest.raises(EventAlreadyExistsError, match="'e'") as raised:
        await transaction.add(unit)
    drivers = (sqlite3.Error, psycopg.Error, asyncpg.PostgresError)
    assert isinstance(raised.value.__cause__, drivers)
    assert ("asyncpg" in way.name) == isinstance(raised.value.__cause__, asyncpg.PostgresError)
    assert any("create_event('e')" in note for note in raised.value.__notes__)

    unknown = provider.unit()
    unknown.mark_event_processed("unknown")
    with pytest.raises(EventNotFoundError):
        await transaction.add(unknown)
    good = provider.unit()
    good.create_event(full_event(id="f"))
    await transaction.add(good)
    await transaction.run(_order("b"))
    await transaction.commit()
    assert await _orders(connect) == ["a", "b"]
    assert (await provider.get_event("f")).id == "f"
    with pytest.raises(WorkflowNotFoundError):
        await provider.get_workflow_instance("w")


async def test_what_an_error_means_is_asked_in_the_transaction(
    provider: SqlPersistenceProvider, connect: Connect
) -> None:
    """Only the transaction can see the pointer's owner and the workflow's revision."""
    transaction = await connect()
    first, second = sample_instance(id="first"), sample_instance(id="second")
    second.execution_pointers = first.execution_pointers
    unit = provider.unit()
    unit.create_new_workflow(first)
    await transaction.add(unit)
    unit = provider.unit()
    unit.create_new_workflow(second)
    with pytest.raises(StoreError, match="of workflow 'second' belongs to workflow 'first'"):
        await transaction.add(unit)
    unit = provider.unit()
    unit.persist_workflow(sample_instance(id="unknown"))
    with pytest.raises(WorkflowNotFoundError, match="'unknown'"):
        await transaction.add(unit)


async def test_a_conflict_may_be_overwritten(
    provider: SqlPersistenceProvider, make_provider: Callable[..., SqlPersistenceProvider], connect: Connect
) -> None:
    async with make_provider(on_conflict="overwrite") as overwriting:
        instance = sample_instance(id="w")
        await overwriting.create_new_workflow(instance)
        other = await provider.get_workflow_instance("w")
        other.description = "of somebody else"
        await provider.persist_workflow(other)
        instance.description = "mine"
        unit = overwriting.unit()
        unit.persist_workflow(instance)
        transaction = await connect()
        await transaction.add(unit)
        await transaction.commit()
    assert (await provider.get_workflow_instance("w")).description == "mine"


@pytest.mark.parametrize("way", DRIVERS, ids=str, indirect=True)
async def test_every_operation(provider: SqlPersistenceProvider, connect: Connect) -> None:
    """Each driver must send each parameter so that the server gives it the type of its column."""
    for id_ in ("ended", "taken", "given back"):
        free = full_subscription(id=id_, external_token=None, external_worker_id=None, external_token_expiry=None)
        await provider.create_event_subscription(free)
    expiry = utc_now() + timedelta(minutes=1)
    assert await provider.set_subscription_token("given back", "token", "worker", expiry)
    await provider.create_event(full_event(id="done", is_processed=False))
    workflow = full_instance(id="w", status=WorkflowStatus.Runnable, next_execution=1)
    await provider.create_new_workflow(workflow)
    (claim,) = await provider.claim_runnable_instances(TIME, "worker", lease=timedelta(minutes=1), limit=1)

    workflow.description = "changed"
    unit = provider.unit(claim, release=True)
    unit.persist_workflow_with_subscriptions(workflow, [full_subscription(id="new")])
    unit.create_event_subscription(full_subscription(id="newer"))
    unit.terminate_subscription("ended")
    unit.set_subscription_token("taken", "token", "worker", expiry)
    unit.clear_subscription_token("given back", "token")
    unit.mark_event_processed("done")
    transaction = await connect()
    await transaction.add(unit)
    await transaction.commit()

    assert (await provider.get_workflow_instance("w")).description == "changed"
    for id_ in ("new", "newer"):
        assert (await provider.get_subscription(id_)).subscribe_as_of == TIME
    assert (await provider.get_event("done")).is_processed
    taken, given_back = await provider.get_subscription("taken"), await provider.get_subscription("given back")
    assert (taken.external_token, taken.external_token_expiry) == ("token", expiry)
    assert given_back.external_token is None
    with pytest.raises(ClaimLostError):
        await provider.renew_claim(claim, timedelta(minutes=1))
    lost = provider.unit(claim)
    lost.create_event(full_event(id="e"))
    with pytest.raises(ClaimLostError):
        await (await connect()).add(lost)


@pytest.mark.parametrize("way", DRIVERS, ids=str, indirect=True)
async def test_queries_of_the_application_s_own(
    provider: SqlPersistenceProvider,
    make_provider: Callable[..., SqlPersistenceProvider],
    connect: Connect,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    values = "VALUES (:id, :amount, :price, :is_paid)"
    (folder / "invoices.sql").write_text(
        "-- name: make_table#\n-- Makes it.\nDROP TABLE IF EXISTS invoices;\n"
        "CREATE TABLE invoices (id TEXT, amount BIGINT, price DOUBLE PRECISION, is_paid BOOLEAN);\n"
        f"-- name: insert_invoice!\n-- Adds one.\nINSERT INTO invoices {values};\n"
        f"-- name: insert_and_tell\n-- Adds one.\nINSERT INTO invoices {values} RETURNING id, amount;\n"
        "-- name: count_invoices$\n-- Counts them.\nSELECT count(*) FROM invoices WHERE amount > :above;\n"
        "-- name: drop_table#\n-- Drops it.\nDROP TABLE invoices;\n"
    )
    async with make_provider(app_sql=folder) as own:
        unit = own.unit()
        unit.run("make_table")
        inserted = unit.run("insert_invoice", id="it's", amount=2**40, price=1.5, is_paid=True)
        told = unit.run("insert_and_tell", id=None, amount=1, price=-0.1, is_paid=None)
        counted = unit.run("count_invoices", above=0)
        transaction = await connect()
        await transaction.add(unit)
        assert (inserted.value, counted.value) == (1, 2)
        assert told.value == [{"id": None, "amount": 1}]
        unit = own.unit()
        unit.run("drop_table")
        await transaction.add(unit)
        await transaction.commit()


async def _refused(provider: SqlPersistenceProvider, transaction: Transaction, match: str) -> None:
    unit = provider.unit()
    unit.create_event(full_event(id="refused"))
    with pytest.raises(StoreError, match=match):
        await transaction.add(unit)


async def test_a_connection_in_autocommit_is_refused(provider: SqlPersistenceProvider, connect: Connect) -> None:
    await _refused(provider, await connect(in_autocommit=True), "it is not in a transaction, .*; begin one")
    with pytest.raises(EventNotFoundError):
        await provider.get_event("refused")


@pytest.mark.parametrize("way", [way for way in WAYS if "session" not in way.name], ids=str, indirect=True)
async def test_a_connection_that_is_closed_is_refused(provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    await transaction.close()
    await _refused(provider, transaction, r"(?i)cannot take a unit .* clos.*[^.]\. Nothing was written")


async def test_a_connection_to_another_database_is_refused(
    way: Way, target: str, provider: SqlPersistenceProvider, connect: Connect, tmp_path: Path
) -> None:
    if way.dialect == "sqlite":
        other = str(tmp_path / "other.db")
        async with SqlitePersistenceProvider(other):
            pass
    else:
        other = _other_database(target)
    transaction = await connect(other)
    await _refused(provider, transaction, "it is connected to another database")


def _other_database(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'other_for_run_in'").fetchone():
            connection.execute("CREATE DATABASE other_for_run_in")
    return psycopg.conninfo.make_conninfo(url, dbname="other_for_run_in")


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_a_connection_to_another_server_is_refused(
    own_server: OwnServer, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    """Its database and schema may have the same names."""
    await _refused(provider, await connect(own_server.url), "it is connected to another database")


@pytest.mark.parametrize("way", ON_SQLITE, ids=str, indirect=True)
async def test_a_connection_to_memory_is_refused(provider: SqlPersistenceProvider, connect: Connect) -> None:
    await _refused(provider, await connect(":memory:"), "it is connected to another database")


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_a_transaction_that_has_failed_is_refused(
    way: Way, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    with pytest.raises(Exception, match="unknown_table"):
        await transaction.run("SELECT * FROM unknown_table")
    await _refused(provider, transaction, "(?i)cannot take a unit .*(has failed|is aborted)")
    await transaction.rollback()


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
@pytest.mark.parametrize("other", MOST_SLOW, ids=str)
async def test_a_connection_of_another_kind_is_refused(
    dialect: str, other: Way, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An asynchronous one for run_in_sync, a synchronous one for run_in, and one to the other kind of database."""
    url: str = str(tmp_path / "other.db") if other.dialect == "sqlite" else request.getfixturevalue("postgres_url")
    provider: SqlPersistenceProvider = SqlitePersistenceProvider(tmp_path / "store.db")
    if dialect == "postgres":
        schema = request.getfixturevalue("shared_schema")
        provider = PostgresPersistenceProvider(request.getfixturevalue("postgres_url"), schema=schema)
    transaction = await other.connect(url)
    async with provider:
        takes = r"await unit.run_in\(\) takes .*; unit.run_in_sync\(\) takes "
        if (other.dialect, other.is_async) != (dialect, False):
            with pytest.raises(StoreError, match=f"run_in_sync cannot add .* {takes}"):
                provider.unit().run_in_sync(transaction.connection)
        if (other.dialect, other.is_async) != (dialect, True):
            with pytest.raises(StoreError, match=f"run_in cannot add .* {takes}"):
                await provider.unit().run_in(transaction.connection)
    await transaction.close()


@pytest.mark.parametrize("connection", [None, "sqlite:///x.db", object()], ids=["nothing", "text", "object"])
async def test_what_is_no_connection_is_refused(connection: object, tmp_path: Path) -> None:
    kind = rf"of builtins\.{type(connection).__name__}: .* takes aiosqlite\.Connection, .* takes sqlite3\.Connection"
    async with SqlitePersistenceProvider(tmp_path / "store.db") as provider:
        with pytest.raises(StoreError, match=kind):
            await provider.unit().run_in(connection)
        with pytest.raises(StoreError, match=kind):
            provider.unit().run_in_sync(connection)


async def test_a_unit_is_stored_once(way: Way, provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    await transaction.add(unit)
    with pytest.raises(StoreError, match="the unit is over"):
        await transaction.add(unit)
    await transaction.commit()
    async with provider.unit() as stored:
        stored.create_event(full_event(id="f"))
    with pytest.raises(StoreError, match="the unit is over"):
        await transaction.add(stored)


@pytest.mark.parametrize("way", DRIVERS, ids=str, indirect=True)
async def test_a_unit_without_operations_does_nothing(provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    await transaction.add(provider.unit())
    await transaction.commit()


@pytest.mark.parametrize("way", DRIVERS, ids=str, indirect=True)
async def test_a_provider_that_is_closed_adds_nothing(provider: SqlPersistenceProvider, connect: Connect) -> None:
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    await provider.close()
    with pytest.raises(ProviderClosedError, match="is closed"):
        await (await connect()).add(unit)


@pytest.mark.parametrize("way", DRIVERS, ids=str, indirect=True)
async def test_a_store_that_is_open_for_reading_only_adds_nothing(
    provider: SqlPersistenceProvider, make_provider: Callable[..., SqlPersistenceProvider], connect: Connect
) -> None:
    async with make_provider(mode="ro") as reading:
        unit = reading.unit()
        unit.create_event(full_event(id="e"))
        with pytest.raises(StoreReadOnlyError, match="mode=ro"):
            await (await connect()).add(unit)


async def test_a_store_in_memory_has_no_other_connections(tmp_path: Path) -> None:
    async with SqlitePersistenceProvider(":memory:") as provider:
        with (
            closing(sqlite3.connect(":memory:")) as connection,
            pytest.raises(StoreError, match="no other connection can reach it; use a file"),
        ):
            provider.unit().run_in_sync(connection)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.is_async], ids=str, indirect=True)
async def test_another_thread_may_add_a_unit(way: Way, target: str, provider: SqlPersistenceProvider) -> None:
    """As in a web framework without async, whose requests run on threads without an event loop."""
    unit = provider.unit()
    unit.create_event(full_event(id="e"))

    def serve() -> None:
        async def request() -> None:
            transaction = await way.connect(target)
            await transaction.add(unit)
            await transaction.commit()
            await transaction.close()

        with pytest.raises(StopIteration):
            request().send(None)

    await asyncio.to_thread(serve)
    assert (await provider.get_event("e")).id == "e"


@pytest.mark.parametrize("way", ON_SQLITE, ids=str, indirect=True)
async def test_a_file_that_somebody_else_writes_to_is_busy(
    target: str, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    with closing(sqlite3.connect(target, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        unit = provider.unit()
        unit.create_event(full_event(id="e"))
        with pytest.raises(StoreBusyError, match="another connection held it") as raised:
            await transaction.add(unit)
        writer.execute("ROLLBACK")
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
    unit = provider.unit()
    unit.create_event(full_event(id="f"))
    await transaction.add(unit)
    await transaction.commit()
    assert (await provider.get_event("f")).id == "f"


@pytest.mark.parametrize("way", [way for way in DRIVERS if way.dialect == "sqlite"], ids=str, indirect=True)
async def test_a_transaction_that_has_read_an_old_moment_is_busy(
    provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    await transaction.run("BEGIN")
    await transaction.run("SELECT * FROM orders")
    await provider.create_event(full_event(id="e"))
    unit = provider.unit()
    unit.create_event(full_event(id="f"))
    with pytest.raises(StoreBusyError, match="since the transaction began to read; roll it back and begin again"):
        await transaction.add(unit)
    await transaction.run("SELECT * FROM orders")
    await transaction.rollback()


@pytest.mark.parametrize("way", [way for way in DRIVERS if way.dialect == "sqlite"], ids=str, indirect=True)
async def test_a_unit_that_fails_does_not_hold_the_lock_of_all_writers(
    target: str, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    """If it began the transaction itself: the caller may not think of rolling it back."""
    transaction = await connect()
    unit = provider.unit()
    unit.mark_event_processed("unknown")
    with pytest.raises(EventNotFoundError):
        await transaction.add(unit)
    assert not transaction.connection.in_transaction
    with closing(sqlite3.connect(target, isolation_level=None, timeout=0)) as writer:
        writer.execute("BEGIN IMMEDIATE")


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_a_row_that_somebody_else_holds_is_waited_for(
    way: Way, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    instance = sample_instance(id="w")
    await provider.create_new_workflow(instance)
    holder, transaction = await connect(), await connect()
    instance.description = "of the holder"
    unit = provider.unit()
    unit.persist_workflow(instance)
    await holder.add(unit)

    await transaction.run("SET LOCAL lock_timeout = 1")
    await transaction.run(_order("a"))
    unit = provider.unit()
    unit.persist_workflow(instance)
    with pytest.raises(StoreBusyError, match="a lock was held for too long"):
        await transaction.add(unit)
    await holder.rollback()
    unit = provider.unit()
    unit.persist_workflow(instance)
    await transaction.add(unit)
    await transaction.commit()
    assert (await provider.get_workflow_instance("w")).description == "of the holder"


_SETTINGS = "SELECT name, setting FROM pg_settings ORDER BY name"


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_settings_of_a_server_s_connection_are_left_alone(
    provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    await transaction.run("SET search_path = public")
    await transaction.run("SET LOCAL TimeZone = 'Asia/Tokyo'")
    await transaction.run("SET LOCAL statement_timeout = '77s'")
    before = await transaction.run(_SETTINGS)
    good = provider.unit()
    good.create_event(full_event(id="e"))
    await transaction.add(good)
    assert await transaction.run(_SETTINGS) == before
    bad = provider.unit()
    bad.create_event(full_event(id="e"))
    with pytest.raises(EventAlreadyExistsError):
        await transaction.add(bad)
    assert await transaction.run(_SETTINGS) == before
    await transaction.commit()
    other = await connect()
    await other.run("SET search_path = public")
    assert [row for row in await other.run(_SETTINGS) if row[0] == "jit"] == [row for row in before if row[0] == "jit"]


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_settings_are_as_they_were_after_the_commit(
    way: Way, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    await transaction.run("SET search_path = public, pg_catalog")
    before = await transaction.run(_SETTINGS)
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    await transaction.add(unit)
    await transaction.commit()
    if way.name != "asyncpg":  # asyncpg's transaction has ended; its connection is in autocommit again
        assert await transaction.run("SHOW search_path") == [("public, pg_catalog",)]
    assert await transaction.run(_SETTINGS) == before


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_a_temporary_table_is_not_taken_for_the_store_s(
    provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    await transaction.run("CREATE TEMPORARY TABLE events (id TEXT)")
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    await transaction.add(unit)
    assert await transaction.run("SELECT * FROM events") == []
    await transaction.commit()
    assert (await provider.get_event("e")).id == "e"


@pytest.mark.parametrize("way", [way for way in WAYS if way.name == "asyncpg"], ids=str, indirect=True)
async def test_codecs_of_asyncpg_change_nothing(provider: SqlPersistenceProvider, connect: Connect) -> None:
    """Users of asyncpg often let the driver encode JSON, which would encode ours twice."""
    transaction = await connect()
    for kind in ("json", "jsonb"):
        await transaction.connection.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    await transaction.connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=str, decoder=lambda text: f"the time {text}"
    )
    instance, event = full_instance(id="w"), full_event(id="e")
    unit = provider.unit()
    unit.create_new_workflow(instance)
    unit.create_event(event)
    subscribed = unit.subscribe(full_subscription(id="s"))
    await transaction.add(unit)
    assert await transaction.run("SELECT '[1]'::jsonb, '2026-01-01Z'::timestamptz::text <> ''") == [([1], True)]
    await transaction.commit()
    assert await provider.get_workflow_instance("w") == instance
    assert await provider.get_event("e") == event
    assert subscribed.event_ids == ["e"]


@pytest.mark.parametrize("way", [way for way in WAYS if way.name.startswith("psycopg")], ids=str, indirect=True)
async def test_what_psycopg_is_set_to_changes_nothing(provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    connection = transaction.connection
    connection.row_factory = psycopg.rows.dict_row
    connection.adapters.register_dumper(str, psycopg.types.string.StrDumper)  # it sends texts with the type text
    instance = full_instance(id="w")
    unit = provider.unit()
    unit.create_new_workflow(instance)
    subscribed = unit.subscribe(full_subscription(id="s"))
    unit.create_event(full_event(id="e"))
    await transaction.add(unit)
    assert await transaction.run("SELECT 1 AS one") == [{"one": 1}]
    await transaction.commit()
    assert await provider.get_workflow_instance("w") == instance
    assert subscribed.event_ids == ["e"]


@pytest.mark.parametrize("way", [way for way in DRIVERS if way.dialect == "sqlite"], ids=str, indirect=True)
async def test_what_sqlite3_is_set_to_changes_nothing(
    way: Way, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    connection = transaction.connection
    connection.row_factory, connection.text_factory = sqlite3.Row, bytes
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    subscribed = unit.subscribe(full_subscription(id="s"))
    await transaction.add(unit)
    bad = provider.unit()
    bad.create_event(full_event(id="e"))
    with pytest.raises(EventAlreadyExistsError):
        await transaction.add(bad)
    (row,) = await transaction.run("SELECT id FROM events")
    assert (type(row), row["id"]) == (sqlite3.Row, b"e")
    assert connection.isolation_level == ""
    with pytest.raises(sqlite3.OperationalError, match="no such savepoint"):
        await transaction.run("RELEASE unit_of_work")
    await transaction.commit()
    assert subscribed.event_ids == ["e"]


@pytest.mark.parametrize(
    "way", [way for way in WAYS if "psycopg" in way.name and "+" not in way.name], ids=str, indirect=True
)
async def test_a_pipeline_is_to_be_ended_first(way: Way, provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    await transaction.run(_order("a"))
    if way.is_async:
        async with transaction.connection.pipeline():
            await _refused(provider, transaction, "it is in a pipeline; end that first")
    else:
        with transaction.connection.pipeline():
            await _refused(provider, transaction, "it is in a pipeline; end that first")


@pytest.mark.parametrize("way", ON_POSTGRES, ids=str, indirect=True)
async def test_a_transaction_that_only_reads_is_said_to(provider: SqlPersistenceProvider, connect: Connect) -> None:
    transaction = await connect()
    await transaction.run("SET TRANSACTION READ ONLY")
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    with pytest.raises(StoreReadOnlyError):
        await transaction.add(unit)


@pytest.mark.parametrize("way", [way for way in DRIVERS if way.dialect == "postgres"], ids=str, indirect=True)
async def test_a_connection_that_is_lost_is_said_to_be(
    target: str, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    transaction = await connect()
    ((process,),) = await transaction.run("SELECT pg_backend_pid()")
    with psycopg.connect(target, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", [process])
    unit = provider.unit()
    unit.create_event(full_event(id="e"))
    with pytest.raises(StoreError, match="cannot be reached|it is closed"):
        await transaction.add(unit)


async def test_a_lent_connection_of_a_pool_of_asyncpg(postgres_url: str, empty_schema: str) -> None:
    async with (
        PostgresPersistenceProvider(postgres_url, schema=empty_schema) as provider,
        asyncpg.create_pool(**asyncpg_options(postgres_url), min_size=1) as pool,
        pool.acquire() as connection,
    ):
        unit = provider.unit()
        unit.create_event(full_event(id="e"))
        async with connection.transaction():
            await unit.run_in(connection)
        assert (await provider.get_event("e")).id == "e"


@pytest.mark.parametrize("way", [way for way in DRIVERS if way.is_async], ids=str, indirect=True)
async def test_a_caller_that_is_cancelled(
    way: Way, target: str, provider: SqlPersistenceProvider, connect: Connect
) -> None:
    """A unit that waits for a row is undone; work on a thread continues, and the caller rolls it back."""
    instance = sample_instance(id="w")
    await provider.create_new_workflow(instance)
    transaction = await connect()
    await transaction.run(_order("a"))
    unit = provider.unit()
    unit.persist_workflow(instance)
    if way.dialect == "postgres":
        holder = await connect()
        held = provider.unit()
        held.persist_workflow(instance)
        await holder.add(held)
    adding = asyncio.create_task(transaction.add(unit))
    await asyncio.sleep(0)
    if way.dialect == "postgres":
        with psycopg.connect(target, autocommit=True) as watcher:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while watcher.execute(waits).fetchone() == (0,):
                await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    if way.dialect == "postgres":
        await transaction.run(_order("b"))
        await transaction.commit()
        await holder.rollback()
        assert await _orders(connect) == ["a", "b"]
        await provider.persist_workflow(instance)
    else:
        await transaction.rollback()
        assert await _orders(connect) == []
