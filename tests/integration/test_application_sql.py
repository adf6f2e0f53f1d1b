"""The application's queries: loaded from its folder, run in units of work and by `fetch`, on its own tables."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import (
    Claim,
    ClaimKind,
    ClaimLostError,
    EventNotFoundError,
    PostgresPersistenceProvider,
    QueryFileError,
    SerializationError,
    SqlitePersistenceProvider,
    StoreError,
    StoreReadOnlyError,
    UnitOfWork,
    connect,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, sample_instance

QUERIES = """
-- name: create_invoices()#
-- Makes the application's tables.
CREATE TABLE customers (id TEXT PRIMARY KEY);
CREATE TABLE invoices (
    id TEXT PRIMARY KEY,
    amount INTEGER NOT NULL CHECK (amount > 0),
    paid_at TEXT,
    customer TEXT REFERENCES customers (id)
);
INSERT INTO customers (id) VALUES ('known');

-- name: drop_invoices()#
-- Removes them.
DROP TABLE invoices;
DROP TABLE customers;

-- name: insert_invoice(id, amount)!
-- Stores an invoice.
INSERT INTO invoices (id, amount) VALUES (:id, :amount);

-- name: insert_invoice_of(id, customer)!
-- Stores an invoice of a customer.
INSERT INTO invoices (id, amount, customer) VALUES (:id, 1, :customer);

-- name: raise_invoice(id, by)^
-- Raises an invoice.
UPDATE invoices SET amount = amount + :by
WHERE id = :id
RETURNING id, amount;

-- name: invoices(at_least)
-- The invoices of an amount.
SELECT id, amount FROM invoices
WHERE amount >= :at_least
ORDER BY id;

-- name: count_invoices()$
-- How many there are.
SELECT count(*) FROM invoices;

-- name: insert_and_list(id)
-- Writes, and returns rows.
INSERT INTO invoices (id, amount) VALUES (:id, 1)
RETURNING id;

-- name: pay(id, at)!
-- Says when an invoice was paid.
UPDATE invoices SET paid_at = :at
WHERE id = :id;

-- name: lists_nothing()
-- Reads a table that is not there.
SELECT id FROM no_such_table;
"""


def _folder(path: Path, queries: str = QUERIES, name: str = "invoices.sql") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(queries)
    return path


@pytest.fixture(
    params=[
        *("file", "memory", "postgres"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("one connection", "postgres, one connection")),
    ]
)
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlPersistenceProvider]:
    """A store with the application's tables, and an invoice of 5."""
    backend, app_sql = request.param, _folder(tmp_path / "app")
    connections = 1 if "one connection" in backend else 4
    opening: SqlPersistenceProvider
    if backend.startswith("postgres"):
        url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("empty_schema")
        opening = PostgresPersistenceProvider(url, schema=schema, app_sql=app_sql, max_connections=connections)
    else:
        path = ":memory:" if backend == "memory" else tmp_path / "store.db"
        opening = SqlitePersistenceProvider(path, app_sql=app_sql, max_connections=connections)
    async with opening as opened:
        async with opened.unit() as unit:
            unit.run("create_invoices")
            unit.run("insert_invoice", id="old", amount=5)
        yield opened
        async with opened.unit() as unit:
            unit.run("drop_invoices")


async def _store(unit: UnitOfWork, *adds: Callable[[UnitOfWork], object]) -> None:
    async with unit:
        for add in adds:
            add(unit)


async def test_a_query_runs_in_the_unit(provider: SqlPersistenceProvider) -> None:
    async with provider.unit() as unit:
        unit.create_new_workflow(sample_instance(id="w"))
        inserted = unit.run("insert_invoice", id="new", amount=7)
        first, again = unit.run("raise_invoice", id="new", by=1), unit.run("raise_invoice", id="new", by=1)
        nobody = unit.run("raise_invoice", id="nobody", by=1)
        rows, count = unit.run("invoices", at_least=6), unit.run("count_invoices")
        assert rows.value is None
    assert inserted.value == 1
    assert (first.value, again.value, nobody.value) == ({"id": "new", "amount": 8}, {"id": "new", "amount": 9}, None)
    assert rows.value == [{"id": "new", "amount": 9}]
    assert count.value == 2
    assert (await provider.get_workflow_instance("w")).id == "w"
    assert await provider.fetch("invoices", at_least=1) == [{"id": "new", "amount": 9}, {"id": "old", "amount": 5}]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("insert_invoice", {"id": "old", "amount": 1}),
        ("insert_invoice", {"id": "new", "amount": -1}),
        ("insert_invoice", {"id": "new", "amount": None}),
        ("insert_invoice_of", {"id": "new", "customer": "nobody"}),
        ("lists_nothing", {}),
    ],
)
async def test_one_that_fails_half_way_fails_the_unit(
    provider: SqlPersistenceProvider, name: str, params: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreError) as raised:
        await _store(
            provider.unit(),
            lambda unit: unit.create_event(full_event(id="e")),
            lambda unit: unit.run("raise_invoice", id="old", by=1),
            lambda unit: unit.run(name, **params),
            lambda unit: unit.run("insert_invoice", id="last", amount=1),
        )
    assert raised.value.__notes__ == [f"the operation of the unit that failed: run({name!r})"]
    assert raised.value.__cause__ is not None
    assert caplog.records == []
    assert await provider.fetch("invoices", at_least=1) == [{"id": "old", "amount": 5}]
    with pytest.raises(EventNotFoundError):
        await provider.get_event("e")


async def test_where_an_operation_fails_the_query_is_undone(provider: SqlPersistenceProvider) -> None:
    lost = Claim(kind=ClaimKind.Workflow, id="w", token="t", worker_id="me", expires_at=datetime.now(UTC))
    await provider.create_new_workflow(sample_instance(id="w"))
    for unit, error in ((provider.unit(lost), ClaimLostError), (provider.unit(), EventNotFoundError)):
        with pytest.raises(error):
            await _store(
                unit,
                lambda unit: unit.run("raise_invoice", id="old", by=1),
                lambda unit: unit.mark_event_processed("nobody"),
            )
    assert await provider.fetch("invoices", at_least=1) == [{"id": "old", "amount": 5}]


async def test_many_at_once(provider: SqlPersistenceProvider) -> None:
    async def step(number: int) -> None:
        async with provider.unit() as unit:
            unit.create_new_workflow(sample_instance(id=f"w{number % 15}"))
            unit.run("raise_invoice", id="old", by=1)

    ended = await asyncio.gather(*(step(number) for number in range(30)), return_exceptions=True)
    assert sum(error is None for error in ended) == 15
    assert await provider.fetch("invoices", at_least=1) == [{"id": "old", "amount": 20}]


async def test_fetch_does_not_write(provider: SqlPersistenceProvider) -> None:
    with pytest.raises(StoreReadOnlyError):
        await provider.fetch("insert_and_list", id="new")
    for name in ("insert_invoice", "raise_invoice", "count_invoices", "create_invoices"):
        query = {"insert_invoice": {"id": "new", "amount": 1}, "raise_invoice": {"id": "old", "by": 1}}.get(name, {})
        with pytest.raises(QueryFileError, match=r"fetch\(\) returns rows, so its name must not end in"):
            await provider.fetch(name, **query)
    assert await provider.fetch("invoices", at_least=1) == [{"id": "old", "amount": 5}]
    async with provider.unit() as unit:
        added = unit.run("insert_and_list", id="new")
    assert added.value == [{"id": "new"}]


async def test_values(provider: SqlPersistenceProvider) -> None:
    async with provider.unit() as unit:
        unit.run("pay", id="old", at=datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC))
    async with provider.unit() as unit:
        unit.run("insert_invoice", id="it's ✓", amount=1)
    for wrong in ({}, [], object(), datetime(2026, 5, 28), "\ud800", 2**63, float("nan")):
        with pytest.raises(SerializationError, match=r"^at \(of pay\)"):
            provider.unit().run("pay", id="old", at=wrong)
    with pytest.raises(SerializationError, match="is missing the parameter at$"):
        provider.unit().run("pay", id="old")
    with pytest.raises(SerializationError, match=r"has no parameter on; it has \(id, at\)"):
        await provider.fetch("pay", id="old", at=None, on=5)
    with pytest.raises(QueryFileError, match="no query 'payed'; its queries are count_invoices, create_invoices,"):
        provider.unit().run("payed", id="old")


async def test_maintenance_leaves_the_application_s_tables_alone(
    provider: SqlPersistenceProvider, tmp_path: Path
) -> None:
    await provider.create_new_workflow(sample_instance(id="w", next_execution=None))
    assert await provider.check() == []
    lines = [line async for line in provider.dump()]
    assert not any("invoices" in str(line) or "customers" in str(line) for line in lines)
    async with SqlitePersistenceProvider(tmp_path / "copy.db") as target:
        await provider.copy_to(target)
        assert (await target.get_workflow_instance("w")).id == "w"
    await provider.ensure_store_exists()
    assert await provider.fetch("invoices", at_least=1) == [{"id": "old", "amount": 5}]


@pytest.mark.parametrize("url", [":memory:", "postgresql:///x"], ids=["sqlite", "postgres"])
@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (
            "-- name: get_event(id)^\n-- Ours.\nSELECT 1 WHERE :id = 1;",
            "the name is one of the library",
        ),
        ("-- name: one()\nSELECT 1;", "query one: needs a line below its name"),
        ("-- name: one()*!\n-- Many.\nSELECT 1;", "query one: an application's query runs once"),
        ("-- name: one()!\n-- Ends it.\nCOMMIT;", "query one: COMMIT would end the transaction"),
        ("-- name: one()!\n-- Ends it.\n-- Really.\n  rollback;", "query one: ROLLBACK would end the transaction"),
        (
            "-- name: one()#\n-- Ends it.\nSELECT 1;\n\n-- Now.\nEnd;\nSELECT 2;",
            "query one: END would",
        ),
        ("-- name: one()!\n-- Ends it.\nSAVEPOINT mine;", "query one: SAVEPOINT would end"),
        ("-- name: one()!\n-- Ends it.\nRELEASE mine;", "query one: RELEASE would end"),
        ("-- name: one()!\n-- Begins one.\nBEGIN;", "query one: BEGIN would end"),
        (
            "-- name: one()!\n-- Sets.\nSET search_path = public;",
            "SET would end .* or change its",
        ),
        (
            "-- name: one()!\n-- Sets.\nPRAGMA query_only = 1;",
            "PRAGMA would end .* or change its",
        ),
        ("-- name: one()!\n-- Two.\nSELECT 1; COMMIT;", "query one: two statements"),
        ("-- name: one()\n-- One.\nSELECT 1;\n-- name: one()\n-- Again.\nSELECT 1;", "the name is already used"),
        ("SELECT 1;", "would be lost"),
    ],
)
def test_a_file_that_breaks_a_rule(tmp_path: Path, url: str, queries: str, message: str) -> None:
    with pytest.raises(QueryFileError, match=message):
        connect(url, app_sql=_folder(tmp_path, queries))


@pytest.mark.parametrize("url", [":memory:", "postgresql:///x"], ids=["sqlite", "postgres"])
def test_folders(tmp_path: Path, url: str) -> None:
    with pytest.raises(QueryFileError, match="is not a folder"):
        connect(url, app_sql=tmp_path / "none")
    with pytest.raises(QueryFileError, match="holds no queries for (sqlite|postgres)"):
        connect(url, app_sql=tmp_path)
    with pytest.raises(StoreError, match="app_sql must be a str or a path, not int"):
        connect(url, app_sql=5)  # type: ignore[arg-type]


async def test_a_folder_for_each_dialect(tmp_path: Path) -> None:
    _folder(tmp_path, "-- name: both()\n-- In both.\nSELECT 1 AS one;")
    _folder(tmp_path / "sqlite", "-- name: of_sqlite()\n-- In one.\nSELECT sqlite_version() IS NOT NULL AS two;")
    _folder(tmp_path / "postgres", "-- name: of_postgres()\n-- In the other.\nSELECT version();")
    async with SqlitePersistenceProvider(":memory:", app_sql=tmp_path) as provider:
        assert await provider.fetch("both") == [{"one": 1}]
        assert await provider.fetch("of_sqlite") == [{"two": 1}]
        with pytest.raises(QueryFileError, match="no query 'of_postgres'; its queries are both, of_sqlite"):
            await provider.fetch("of_postgres")


@pytest.mark.parametrize(
    "insert",
    [
        "INSERT OR ROLLBACK INTO customers (id) VALUES ('known')",
        "INSERT INTO refused (id) VALUES (1)",
    ],
)
async def test_one_that_ends_the_transaction_as_it_fails_on_sqlite(tmp_path: Path, insert: str) -> None:
    app_sql = _folder(tmp_path / "app")
    _folder(
        app_sql,
        "-- name: create_refused()#\n-- A table that takes nothing.\nCREATE TABLE refused (id INT);\n"
        "CREATE TRIGGER refuse BEFORE INSERT ON refused\nBEGIN\n    SELECT RAISE(ROLLBACK, 'refused');\nEND;\n"
        f"-- name: end_it()!\n-- Ends the transaction.\n{insert};\n",
        "refused.sql",
    )
    async with SqlitePersistenceProvider(tmp_path / "store.db", app_sql=app_sql) as provider:
        await _store(provider.unit(), lambda unit: unit.run("create_invoices"), lambda unit: unit.run("create_refused"))

        async def end_it(number: int) -> None:
            await _store(
                provider.unit(),
                lambda unit: unit.create_event(full_event(id=f"e{number}")),
                lambda unit: unit.run("end_it") if number % 2 else unit.run("insert_invoice", id=f"{number}", amount=1),
                lambda unit: unit.run("insert_invoice", id=f"after {number}", amount=1),
            )

        ended = await asyncio.gather(*(end_it(number) for number in range(6)), return_exceptions=True)
        assert [isinstance(error, StoreError) for error in ended] == [False, True] * 3
        rows = await provider.fetch("invoices", at_least=1)
        assert [row["id"] for row in rows] == ["0", "2", "4", "after 0", "after 2", "after 4"]
        with pytest.raises(EventNotFoundError):
            await provider.get_event("e1")


async def test_one_that_ends_the_transaction_in_a_procedure_on_postgres(
    tmp_path: Path, postgres_url: str, empty_schema: str
) -> None:
    app_sql = _folder(
        tmp_path,
        "-- name: create_procedure()#\n-- A procedure that commits.\n"
        "CREATE PROCEDURE commit_it() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;\n"
        "-- name: drop_procedure()#\n-- Removes it.\nDROP PROCEDURE commit_it;\n"
        "-- name: end_it()#\n-- Ends the transaction.\nCALL commit_it();\n",
    )
    async with PostgresPersistenceProvider(postgres_url, schema=empty_schema, app_sql=app_sql) as provider:
        await _store(provider.unit(), lambda unit: unit.run("create_procedure"))
        with pytest.raises(StoreError, match="invalid transaction termination"):
            await _store(
                provider.unit(),
                lambda unit: unit.create_event(full_event(id="e")),
                lambda unit: unit.run("end_it"),
            )
        with pytest.raises(EventNotFoundError):
            await provider.get_event("e")
        await _store(provider.unit(), lambda unit: unit.run("drop_procedure"))
