"""Turns of callers that persist one instance."""

import asyncio
import gc
import weakref

from wfe_sql import WorkflowInstance
from wfe_sql.operations.persisting import Turn
from wfe_sql.testing import full_instance


async def test_a_turn_that_comes_as_its_caller_is_cancelled_goes_on_to_the_next() -> None:
    instance, had_turns = full_instance(), []

    async def take_turn(number: int) -> None:
        async with Turn([instance], "store"):
            had_turns.append(number)

    async with Turn([instance], "store"):
        waiting = [asyncio.create_task(take_turn(number)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.wait(waiting, timeout=5)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    assert had_turns == [2]


async def test_turns_with_several_instances_follow_each_other_in_any_order() -> None:
    first, second, had_turns = full_instance(), full_instance(), []

    async def take_turn(number: int, *instances: WorkflowInstance) -> None:
        async with Turn(instances, "store"):
            had_turns.append(number)
            await asyncio.sleep(0)

    async with Turn([second], "store"):
        waiting = [
            asyncio.create_task(take_turn(number, *instances))
            for number, instances in enumerate([(first, second), (second, first), (first,)])
        ]
        await asyncio.sleep(0)
        waiting[0].cancel()  # what it took while it waited for the rest goes to the next
    await asyncio.wait(waiting, timeout=5)
    assert [task.cancelled() for task in waiting] == [True, False, False]
    assert sorted(had_turns) == [1, 2]
    async with asyncio.timeout(5), Turn([first, second], "store"):
        pass


def test_a_turn_that_never_ends_does_not_keep_its_event_loop() -> None:
    async def begin_write() -> None:
        turn = Turn([full_instance()], "store")
        await turn.__aenter__()
        turn.begin_write()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin_write())
    loop.close()
    is_there = weakref.ref(loop)
    del loop
    gc.collect()
    assert is_there() is None
