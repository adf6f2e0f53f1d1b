"""The server is stopped or killed under load, and comes back."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from servers import OwnServer
from wfe_sql import (
    ExecutionPointer,
    PostgresPersistenceProvider,
    StoreUnavailableError,
    WorkflowAlreadyExistsError,
    WorkflowInstance,
)
from wfe_sql.testing import full_event
from wfe_sql.testing.samples import TIME

WRITERS = 8
UNKNOWN = "it is not known whether the write was committed"


class Load:
    """Writers that continue whatever happens; in the state of step n, data is n, and n + 1 pointers have n too.

    Attributes:
        acknowledged: The last step of each workflow that was acknowledged.
        failures: What calls failed with.
    """

    def __init__(self, provider: PostgresPersistenceProvider) -> None:
        self._provider = provider
        self._begun: list[str] = []
        self.acknowledged: dict[str, int] = {}
        self.failures: list[str] = []

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Write during the block."""
        writers = [asyncio.create_task(self._write(writer)) for writer in range(WRITERS)]
        try:
            await self.goes_on()
            yield
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        assert all(writer.cancelled() for writer in writers)

    async def goes_on(self) -> None:
        """Wait until many more writes are acknowledged."""
        enough = len(self.acknowledged) + 10 * WRITERS
        while len(self.acknowledged) < enough:
            await asyncio.sleep(0)

    async def assert_nothing_is_lost_or_half_written(self) -> None:
        found = {instance.id: instance for instance in await self._provider.get_workflow_instances(list(self._begun))}
        for instance in found.values():
            assert [p.retry_count for p in instance.execution_pointers] == [instance.data] * (instance.data + 1)
        for id_, step in self.acknowledged.items():
            assert found[id_].data >= step

    async def _write(self, writer: int) -> None:
        number = 0
        while True:
            number += 1
            instance = WorkflowInstance(id=f"{writer}-{number}", workflow_definition_id="load", version=1, data=None)
            self._begun.append(instance.id)
            for step in range(4):
                instance.data = step
                instance.execution_pointers = [ExecutionPointer(step_id=at, retry_count=step) for at in range(step + 1)]
                while not await self._is_stored(instance):
                    pass
                self.acknowledged[instance.id] = step

    async def _is_stored(self, instance: WorkflowInstance) -> bool:
        try:
            if instance.data == 0:
                await self._provider.create_new_workflow(instance)
            else:
                await self._provider.persist_workflow(instance)
        except StoreUnavailableError as error:
            self.failures.append(str(error))
            return False
        except WorkflowAlreadyExistsError:
            assert any(UNKNOWN in failure for failure in self.failures)
        return True


@pytest.fixture
def server(own_server: OwnServer) -> OwnServer:
    own_server.start()
    return own_server


def open_(server: OwnServer, **options: Any) -> PostgresPersistenceProvider:
    return PostgresPersistenceProvider(server.url, schema=f"test_{uuid4().hex}", **options)


@pytest.fixture(params=[pytest.param("stopped", marks=pytest.mark.slow), "killed"])
def end(request: pytest.FixtureRequest, server: OwnServer) -> Callable[[], None]:
    return server.stop if request.param == "stopped" else server.kill


@pytest.mark.slow
async def test_calls_fail_while_the_server_is_away(server: OwnServer, end: Callable[[], None]) -> None:
    async with asyncio.timeout(60), open_(server) as provider:
        load = Load(provider)
        async with load.under_way():
            await asyncio.to_thread(end)
            heard = len(load.failures)
            while len(load.failures) < heard + 20 * WRITERS:
                await asyncio.sleep(0)
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await provider.get_event("e1")
            await asyncio.to_thread(server.start)
            await load.goes_on()
        assert all("cannot be reached" in failure for failure in load.failures)
        await load.assert_nothing_is_lost_or_half_written()
    print(f"\n{len(load.acknowledged)} workflows, {len(load.failures)} calls failed")


async def test_calls_wait_for_the_server(server: OwnServer, end: Callable[[], None]) -> None:
    async with asyncio.timeout(60), open_(server, wait_for_server=timedelta(minutes=1)) as provider:
        await provider.create_event(full_event(id="e1"))
        load = Load(provider)
        async with load.under_way():
            await asyncio.to_thread(end)
            reading = asyncio.create_task(provider.get_event("e1"))
            number = asyncio.create_task(provider.next_definition_sequence("order"))
            before = len(load.acknowledged)
            await was_tried(server)
            assert not reading.done()
            assert not number.done()
            assert len(load.acknowledged) == before
            await asyncio.to_thread(server.start)
            assert (await reading).id == "e1"
            assert await number == 1
            await load.goes_on()
        assert all(UNKNOWN in failure for failure in load.failures)
        await load.assert_nothing_is_lost_or_half_written()
    print(f"\n{len(load.acknowledged)} workflows, {len(load.failures)} calls failed")


async def test_waiting_for_the_server_ends(server: OwnServer) -> None:
    async with open_(server, wait_for_server=timedelta(milliseconds=200)) as provider:
        server.stop()
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await provider.get_event("e1")
        server.start()
        assert await provider.next_definition_sequence("order") == 1


async def test_a_server_that_was_started_again_while_nobody_called(server: OwnServer) -> None:
    """Its connections are dead and unused since; no call notices."""
    async with open_(server) as provider:
        await asyncio.gather(*(provider.get_runnable_instances(TIME) for _ in range(10)))
        server.stop()
        server.start()
        numbers = await asyncio.gather(*(provider.next_definition_sequence("order") for _ in range(20)))
        assert sorted(numbers) == list(range(1, 21))
        assert await asyncio.gather(*(provider.get_runnable_instances(TIME) for _ in range(10))) == [[]] * 10


async def test_opening_waits_for_the_server(server: OwnServer) -> None:
    server.stop()
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await open_(server).open()
    opening = asyncio.create_task(open_(server, wait_for_server=timedelta(minutes=1)).open())
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(30):
        provider = await opening
        assert await provider.next_definition_sequence("order") == 1
        await provider.close()


async def test_closing_while_the_server_is_away(server: OwnServer) -> None:
    provider = await open_(server).open()
    await provider.next_definition_sequence("order")
    server.stop()
    async with asyncio.timeout(5):
        await provider.close()


async def was_tried(server: OwnServer) -> None:
    """Stand in for a server that is down until somebody has tried to connect a few more times."""
    info = conninfo_to_dict(server.url)
    path = Path(str(info["host"])) / f".s.PGSQL.{info.get('port') or 5432}"
    path.unlink(missing_ok=True)  # of the server that was stopped
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        for _ in range(5):
            client, _ = await asyncio.get_running_loop().sock_accept(listening)
            client.close()
    path.unlink(missing_ok=True)
