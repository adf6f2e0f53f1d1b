"""One of many hosts on a store, in a process of its own: `python host.py JOB URL NAME`. Stops when it is killed.

Jobs: `work` finishes workflows, events and commands; `wait` waits for events and handles them; `draw` draws numbers of
a sequence, and `open` opens the store and draws one, both when stdin ends, so that all hosts start together; `race`
races for the tokens of the subscriptions that stdin names; `handle` handles commands, and `stall` does so and stops
itself in every third.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from wfe_sql import (
    ClaimLostError,
    EventSubscription,
    PersistenceProvider,
    ScheduledCommand,
    StoreBusyError,
    WorkflowStatus,
    connect,
)

LEASE = timedelta(seconds=1)
FALLBACK = timedelta(seconds=10)
SHORT_LEASE = timedelta(seconds=0.6)
TASKS = {"work": 8, "wait": 1, "draw": 16, "open": 1, "race": 1, "handle": 1, "stall": 1}
DRAWS = 2_500
RACERS = 4


def say(**what: Any) -> None:
    os.write(1, f"{json.dumps(what)}\n".encode())


async def retried(call: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await call()
        except StoreBusyError:
            say(busy=True)


async def finish_workflows(provider: PersistenceProvider, name: str) -> int:
    """Each workflow's effect is a subscription, stored with its completion: two effects would be two rows."""
    claims = await retried(lambda: provider.claim_runnable_instances(datetime.now(UTC), name, lease=LEASE, limit=8))
    for claim in claims:
        instance = await provider.get_workflow_instance(claim.id)
        instance.status, instance.next_execution = WorkflowStatus.Complete, None
        effect = EventSubscription(
            workflow_id=claim.id,
            step_id=0,
            execution_pointer_id=name,
            event_name="effect",
            event_key=claim.id,
            subscribe_as_of=datetime.now(UTC),
        )
        try:
            await retried(partial(provider.persist_workflow_with_subscriptions, instance, [effect], claim=claim))
        except ClaimLostError:
            say(lost=claim.id)
        else:
            say(finished=claim.id)
    return len(claims)


async def finish_events(provider: PersistenceProvider, name: str) -> int:
    claims = await retried(lambda: provider.claim_runnable_events(datetime.now(UTC), name, lease=LEASE, limit=8))
    for claim in claims:
        try:
            await retried(partial(provider.mark_event_processed, claim.id, claim=claim))
        except ClaimLostError:
            say(lost=claim.id)
    return len(claims)


async def finish_commands(provider: PersistenceProvider, name: str) -> int:
    handled = 0

    async def handler(command: ScheduledCommand) -> None:
        nonlocal handled
        handled += 1
        say(command=command.data, began=time.time())
        await asyncio.sleep(0)
        say(command=command.data, ended=time.time())

    await retried(lambda: provider.process_commands(datetime.now(UTC), handler, limit=8, lease=LEASE))
    return handled


async def work(provider: PersistenceProvider, name: str) -> None:
    while True:
        done = 0
        for finish in (finish_workflows, finish_events, finish_commands):
            done += await finish(provider, name)
        if not done:
            await asyncio.sleep(0.05)


async def wait(provider: PersistenceProvider, name: str) -> None:
    """Handle events as they come; each has in it when it was stored."""
    say(waits=name)
    while True:
        await provider.wait_for_work()
        claims = await retried(lambda: provider.claim_runnable_events(datetime.now(UTC), name, lease=LEASE, limit=20))
        for claim in claims:
            event = await provider.get_event(claim.id)
            say(event=claim.id, waited=time.monotonic() - event.event_data)
            try:
                await retried(partial(provider.mark_event_processed, claim.id, claim=claim))
            except ClaimLostError:
                say(lost=claim.id)


async def draw_one(provider: PersistenceProvider, name: str) -> None:
    say(number=await retried(lambda: provider.next_definition_sequence("order")))


async def draw(provider: PersistenceProvider, name: str) -> None:
    for _ in range(DRAWS // TASKS["draw"] + 1):
        await draw_one(provider, name)


async def race(provider: PersistenceProvider, name: str) -> None:
    """For each subscription that comes on stdin, have all tasks race for it, and say which tokens were set."""
    expiry = datetime.now(UTC) + timedelta(hours=1)
    for line in sys.stdin:
        id_, tokens = line.strip(), [f"{name}-{task}" for task in range(RACERS)]
        calls = [partial(provider.set_subscription_token, id_, token, name, expiry) for token in tokens]
        won = await asyncio.gather(*(retried(call) for call in calls))
        say(won=[token for token, mine in zip(tokens, won, strict=True) if mine])


class SaysWhatIsLost(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(lost=record.getMessage())


async def handle(provider: PersistenceProvider, name: str, *, stalls: bool = False) -> None:
    handled = 0
    logging.getLogger("wfe_sql").addHandler(SaysWhatIsLost())

    async def handler(command: ScheduledCommand) -> None:
        nonlocal handled
        handled += 1
        say(host=name, command=command.data, began=time.time())
        if stalls and handled % 3 == 0:
            say(host=name, stopped=command.data)
            os.kill(os.getpid(), signal.SIGSTOP)
        await asyncio.sleep(0.015)

    while True:
        await retried(lambda: provider.process_commands(datetime.now(UTC), handler, limit=20, lease=SHORT_LEASE))
        await asyncio.sleep(0.02)


def wait_for_others() -> None:
    say(ready=True)
    sys.stdin.read()


async def main(job: str, url: str, name: str) -> None:
    jobs: dict[str, Callable[[PersistenceProvider, str], Awaitable[None]]] = {
        "work": work,
        "wait": wait,
        "draw": draw,
        "open": draw_one,
        "race": race,
        "handle": handle,
        "stall": partial(handle, stalls=True),
    }
    provider = connect(url, fallback_interval=FALLBACK)
    if job == "open":
        wait_for_others()
    async with provider:
        if job == "draw":
            wait_for_others()
        await asyncio.gather(*(jobs[job](provider, name) for _ in range(TASKS[job])))


asyncio.run(main(*sys.argv[1:]))
