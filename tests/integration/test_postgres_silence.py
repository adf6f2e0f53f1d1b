"""A server that is silent, has moved, or no longer accepts writes, and the encodings of databases."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from conftest import Relay
from servers import OwnServer
from wfe_sql import PostgresPersistenceProvider, StoreReadOnlyError, StoreUnavailableError, WfeError, WorkflowInstance
from wfe_sql.engines.postgres.target import PostgresTarget
from wfe_sql.testing import full_event, full_instance
from wfe_sql.testing.samples import TIME

PassTime = Callable[[float], None]
SILENT = 0


async def ends(call: Coroutine[Any, Any, Any], pass_time: PassTime, *, within: float) -> Any:
    """Pass the time that a call waits for, and return its outcome."""
    task = asyncio.create_task(call)
    for _ in range(int(within)):
        for _ in range(500):  # a server that answers after a moment must not seem silent for seconds
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        pass_time(1)
    task.cancel()
    await asyncio.wait([task])
    raise AssertionError(f"it goes on after {within} s")


@pytest.fixture
async def host(relay: Relay, schema: str) -> AsyncIterator[PostgresPersistenceProvider]:
    """A host whose server can fall silent."""
    async with PostgresPersistenceProvider(relay.url, schema=schema, max_connections=2) as opened:
        yield opened
        relay.answers = 2**30
        relay.cut()  # otherwise closing would wait for what was asked meanwhile


# connecting


async def test_each_host_of_a_url_has_its_time(relay: Relay, pass_time: PassTime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = f"{silent.getsockname()[1]},{conninfo_to_dict(relay.url)['port']}"
        url = make_conninfo(relay.url, host="127.0.0.1,127.0.0.1", port=ports)
        connection = await ends(PostgresTarget(url, timedelta(seconds=10)).connect(), pass_time, within=18)
        assert connection.info.port == int(conninfo_to_dict(relay.url)["port"] or 0)
        await connection.close()


async def test_no_host_of_a_url_answers(pass_time: PassTime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.2", 0)) as other:
        ports = f"{silent.getsockname()[1]},{other.getsockname()[1]}"
        target = PostgresTarget(f"host=127.0.0.1,127.0.0.2 port={ports} dbname=d", timedelta(seconds=10))
        both = "127.0.0.1: cannot be reached: no connection within 0:00:10; 127.0.0.2: cannot be reached"
        with pytest.raises(StoreUnavailableError, match=both):
            await ends(target.connect(), pass_time, within=25)


async def test_the_network_is_watched(relay: Relay) -> None:
    async def options(url: str) -> tuple[int, ...]:
        connection = await PostgresTarget(url, timedelta(seconds=10)).connect()
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            found = tuple(
                line.getsockopt(level, option)
                for level, option in (
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                )
            )
        await connection.close()
        return found

    assert await options(relay.url) == (1, 30, 10, 3, 10_000)
    own = make_conninfo(relay.url, keepalives_idle=7, tcp_user_timeout=1234)
    assert await options(own) == (1, 7, 10, 3, 1234)


async def test_a_server_that_falls_silent_once_it_is_connected_to(
    host: PostgresPersistenceProvider, relay: Relay, pass_time: PassTime
) -> None:
    """As a pooler does without its server; reads of the whole store open their own connection."""
    relay.answers = 1
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await ends(host.check(), pass_time, within=15)


# silence


async def test_a_call_ends_a_little_after_the_statement_timeout(
    host: PostgresPersistenceProvider, relay: Relay, pass_time: PassTime
) -> None:
    relay.answers = SILENT
    with pytest.raises(
        StoreUnavailableError, match="the connection was lost; nothing was written: no answer within 35 s"
    ):
        await ends(host.get_event("e1"), pass_time, within=40)
    with pytest.raises(StoreUnavailableError):
        await ends(host.get_event("e1"), pass_time, within=15)
    relay.answers = 2**30
    assert await host.next_definition_sequence("order") == 1


async def test_all_connections_wait_for_a_silent_server(
    host: PostgresPersistenceProvider, relay: Relay, pass_time: PassTime
) -> None:
    await asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(2)))
    relay.answers = SILENT
    waiting: list[asyncio.Task[Any]] = [
        asyncio.create_task(host.get_event("e1")),
        asyncio.create_task(host.next_definition_sequence("order")),
    ]
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="cannot be reached: no connection within"):
        await ends(host.get_runnable_events(TIME), pass_time, within=25)
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("statement_timeout", [None, timedelta(seconds=30)])
async def test_closing_while_the_server_is_silent(
    relay: Relay, schema: str, pass_time: PassTime, statement_timeout: timedelta | None
) -> None:
    host = PostgresPersistenceProvider(relay.url, schema=schema, statement_timeout=statement_timeout, max_connections=1)
    await host.open()
    relay.answers = SILENT
    calls: list[asyncio.Task[Any]] = [
        asyncio.create_task(host.create_event(full_event(id=f"e{number}"))) for number in range(100)
    ]
    calls += [asyncio.create_task(host.get_execution_errors()) for _ in range(10)]
    await asyncio.sleep(0)
    await ends(host.close(), pass_time, within=60)
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(failure) for failure in failures} == {StoreUnavailableError}


# failover


async def test_a_server_that_takes_no_writes_any_more(
    postgres_url: str, schema: str, make_role: Callable[..., str], admin: Callable[..., Any]
) -> None:
    """A balancer led to a primary that is now a standby: the next call connects again, and finds the new primary."""
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        url = make_role()
        role = conninfo_to_dict(url)["user"]
        admin("grant_use", role=role)
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            administrator.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
            async with PostgresPersistenceProvider(url, schema=schema) as host:
                await asyncio.gather(*(host.get_runnable_instances(TIME) for _ in range(5)))
                administrator.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
                with pytest.raises(StoreReadOnlyError):
                    await host.next_definition_sequence("order")
                assert await host.next_definition_sequence("order") == 1


# encodings


async def test_the_environments_encoding_does_not_count(
    postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    async with PostgresPersistenceProvider(
        make_conninfo(postgres_url, client_encoding="LATIN2"), schema=schema
    ) as host:
        await asyncio.gather(*(host.create_new_workflow(full_instance(id=f"w{n}", data="ż漢")) for n in range(20)))
        assert (await host.get_workflow_instance("w7")).data == "ż漢"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_of_another_encoding(own_server: OwnServer, encoding: str) -> None:
    """Text that the database's encoding lacks is refused, but not other units of the same batch."""
    own_server.start()
    name = f"test_{uuid4().hex}"
    own_server.run(f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    url = make_conninfo(own_server.url, dbname=name)
    async with PostgresPersistenceProvider(url) as host:
        instances = [
            WorkflowInstance(id=f"w{n}", workflow_definition_id="d", version=1, data="ż" if n == 7 else "é")
            for n in range(20)
        ]
        results = await asyncio.gather(*map(host.create_new_workflow, instances), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(failure, WfeError) for failure in failures)
        assert len(failures) == (encoding == "LATIN1")
        assert [(await host.get_workflow_instance(f"w{n}")).data for n in (1, 19)] == ["é", "é"]
        if failures:
            assert "w7" not in await host.get_runnable_instances(TIME + timedelta(days=9999))
        else:
            assert (await host.get_workflow_instance("w7")).data == "ż"
