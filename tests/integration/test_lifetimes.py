"""How a provider is opened, used from its event loop, cancelled and closed, on both databases."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

from stores import no_thread_left
from wfe_sql import ProviderClosedError, StoreError
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_instance, full_pointer
from wfe_sql.testing.samples import TIME

Connect = Callable[..., SqlPersistenceProvider]


async def test_a_cancelled_write_happened_whole_or_not_at_all(connect_store: Connect) -> None:
    async with connect_store() as provider:
        instances = [full_instance(id=f"w{number}", data=0) for number in range(50)]
        await asyncio.gather(*(provider.create_new_workflow(instance) for instance in instances))
        for instance in instances:
            instance.data = 1
            instance.execution_pointers = [full_pointer(retry_count=1)]
        tasks = [asyncio.create_task(provider.persist_workflow(instance)) for instance in instances]
        for number, task in enumerate(tasks):
            if number % 10 == 5:
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, asyncio.CancelledError) for result in results)
        for instance, result in zip(instances, results, strict=True):
            loaded = await provider.get_workflow_instance(instance.id)
            assert (loaded.data == 1) == (loaded.execution_pointers == instance.execution_pointers)
            if result is None:
                assert loaded == instance
        assert await provider.next_definition_sequence("order") == 1


async def test_calls_before_open_and_after_close(connect_store: Connect) -> None:
    provider = connect_store()
    with pytest.raises(ProviderClosedError, match=r"is not open; await open\(\) first"):
        await provider.next_definition_sequence("order")
    await provider.open()
    await asyncio.gather(provider.close(), provider.close())
    await provider.close()
    for call in (
        provider.next_definition_sequence("order"),
        provider.get_runnable_instances(TIME),
        provider.ensure_store_exists(),
        provider.check(),
    ):
        with pytest.raises(ProviderClosedError, match="is closed"):
            await call
    with pytest.raises(ProviderClosedError, match="already opened"):
        await provider.open()
    never_opened = connect_store()
    await never_opened.close()
    await never_opened.close()


async def test_a_cancelled_close_closes_all_the_same(connect_store: Connect) -> None:
    with no_thread_left():
        provider = await connect_store().open()
        closing = asyncio.create_task(provider.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await provider.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_leaving_on_an_exception_closes(connect_store: Connect) -> None:
    with pytest.raises(RuntimeError, match="of the host"):
        async with connect_store() as provider:
            raise RuntimeError("of the host")
    with pytest.raises(ProviderClosedError):
        await provider.next_definition_sequence("order")


def test_another_event_loop(connect_store: Connect) -> None:
    provider = connect_store()

    async def call() -> None:
        await provider.next_definition_sequence("order")

    with asyncio.Runner() as own:
        own.run(provider.open())
        for elsewhere in (call(), provider.close()):
            with pytest.raises(StoreError, match="belongs to another event loop; use and close it there"):
                asyncio.run(elsewhere)
        own.run(call())
        own.run(provider.close())


@pytest.mark.slow
def test_a_host_that_forgets_to_close_does_not_hang(store_url: str) -> None:
    program = (
        "import asyncio, sys, wfe_sql\n"
        "kept = wfe_sql.connect(sys.argv[1])\n"
        "async def main():\n"
        "    await kept.open()\n"
        "    print(await kept.next_definition_sequence('order'), flush=True)\n"
        "    raise RuntimeError('of the host')\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, store_url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stdout == "1\n"
    assert "RuntimeError: of the host\n" in ended.stderr
