from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wfe_sql import PostgresPersistenceProvider, SqlitePersistenceProvider, StoreError, connect

SQLITE = "durability, busy_timeout, max_connections, clock, on_conflict, poll_interval, fallback_interval"
SQLITE += ", sql_dir, app_sql, allow_unfinished_copy, on_unit, slow_unit"
URLS: dict[str, Any] = {"sqlite": ":memory:", "postgres": "postgresql:///x"}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS.keys())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_connections": True}, "max_connections must be an int, not bool"),
        ({"max_connections": "4"}, "max_connections must be an int, not str"),
        ({"max_connections": None}, "max_connections must be an int, not NoneType"),
        ({"max_connections": 0}, "max_connections must be at least 1, not 0"),
        ({"clock": datetime.now(UTC)}, "clock must be a function that returns the time, .* not datetime"),
        ({"clock": None}, "clock must be a function that returns the time, .* not NoneType"),
        ({"on_conflict": True}, "on_conflict must be 'overwrite' or 'raise', not True"),
        ({"on_conflict": ["raise"]}, "on_conflict must be 'overwrite' or 'raise'"),
        ({"sql_dir": 5}, "sql_dir must be a str or a path, not int"),
        ({"allow_unfinished_copy": 1}, "allow_unfinished_copy must be a bool, not int"),
        ({"sql_dir": b"sql"}, "sql_dir must be a str or a path, not bytes"),
        ({"on_unit": "print"}, "on_unit must be a function that takes a UnitStats, not str"),
        ({"slow_unit": 1}, r"slow_unit must be a timedelta, not int: write timedelta\(seconds=1\)"),
        ({"slow_unit": timedelta(seconds=-1)}, "slow_unit must not be negative: -1 day, 23:59:59"),
    ],
)
def test_options_of_every_provider(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=f"^{message}"):
        connect(url, **options)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite", "busy_timeout"),
        ("sqlite", "poll_interval"),
        ("postgres", "fallback_interval"),
        ("postgres", "connect_timeout"),
        ("postgres", "statement_timeout"),
        ("postgres", "wait_for_server"),
    ],
)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, r"must be a timedelta, not int: write timedelta\(seconds=5\)"),
        (0.5, r"must be a timedelta, not float: write timedelta\(seconds=0.5\)"),
        ("5s", r"must be a timedelta, not str: such as timedelta\(seconds=5\)"),
        (True, r"must be a timedelta, not bool: such as timedelta\(seconds=5\)"),
        (timedelta.max, "must be at most 24 days, not 999999999 days"),
        (timedelta(milliseconds=2**31), "must be at most 24 days, not 24 days, 20:31:23.648"),
    ],
)
def test_timeouts(url: str, name: str, value: Any, message: str) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(StoreError, match=f"^{name} {message}"):
        connect(URLS[url], **options)


# mypy finds these mistakes too: if it did not, it would complain about the comments that silence it.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: connect(":memory:", busy_timout=5), f"SqlitePersistenceProvider .* 'busy_timout'; .* are {SQLITE}$"),  # type: ignore[call-arg]
        (lambda: connect(":memory:", schema="wfc"), "SqlitePersistenceProvider has no option 'schema'"),
        (lambda: connect("postgres:///x", durability="full"), "PostgresPersistenceProvider has no option 'durability'"),
        (lambda: SqlitePersistenceProvider(":memory:", retries=5), "SqlitePersistenceProvider has no option 'retries'"),  # type: ignore[arg-type]
        (
            lambda: PostgresPersistenceProvider("postgres:///x", retries=5),  # type: ignore[arg-type]
            "PostgresPersistenceProvider has no option 'retries'; its options are schema, max_connections,",
        ),
        (lambda: connect(":memory:", durability=True), "durability must be 'full' or 'normal', not True"),  # type: ignore[arg-type]
        (lambda: connect("postgres:///x", schema=5), "schema must be a str, not int"),  # type: ignore[arg-type]
        (lambda: connect("postgres:///x", schema=None), "schema must be a str, not NoneType"),  # type: ignore[arg-type]
        (lambda: connect(None), "url must be a str or a path, not NoneType"),  # type: ignore[arg-type]
        (lambda: connect(b"x.db"), "url must be a str or a path, not bytes"),  # type: ignore[arg-type]
        (lambda: PostgresPersistenceProvider(Path("x")), "url must be a str, not PosixPath"),  # type: ignore[arg-type]
        (lambda: connect("postgres:///x", application_name="a\0b"), "application_name contains a NUL character"),
        (lambda: connect("postgres://h/x\0?user=u"), "not a PostgreSQL URL"),
        (lambda: connect("postgres://h/x\ud800"), "not a PostgreSQL URL"),
    ],
)
def test_what_a_provider_does_not_take(make: Any, message: str) -> None:
    with pytest.raises(StoreError, match=f"^{message}"):
        make()


async def test_no_end_is_an_option() -> None:
    connect("postgresql:///x", statement_timeout=None)
    async with connect(":memory:", busy_timeout=timedelta(milliseconds=2**31 - 1), sql_dir=None) as provider:
        assert await provider.next_definition_sequence("order") == 1
