"""Leases of scheduled commands, as they appear in the table."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from wfe_sql import ScheduledCommand, SqlitePersistenceProvider, utc_now
from wfe_sql.testing import ManualClock


async def test_a_handler_that_outlives_its_lease_keeps_it(tmp_path: Path) -> None:
    clock, file, handled = ManualClock(), tmp_path / "store.db", list[str]()

    def expiry() -> str:
        with closing(sqlite3.connect(file)) as by_hand:
            return str(
                by_hand.execute("SELECT claim_expires_at FROM scheduled_commands WHERE data = 'w1'").fetchone()[0]
            )

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command.data)

    async def slow(command: ScheduledCommand) -> None:
        for _ in range(3):
            before = expiry()
            clock.advance(milliseconds=20)
            async with asyncio.timeout(30):
                while expiry() == before:
                    await asyncio.sleep(0)
            await other.process_commands(clock(), handler)

    async with (
        SqlitePersistenceProvider(file, clock=clock) as one,
        SqlitePersistenceProvider(file, clock=clock) as other,
    ):
        for id_ in ("w0", "w1"):
            await one.schedule_command(ScheduledCommand.process_workflow(id_, 0))
        await one.process_commands(clock(), slow, lease=timedelta(milliseconds=30))
        await other.process_commands(clock(), handler)
    assert handled == []


async def test_a_lease_is_renewed_at_every_third_of_it() -> None:
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def handler(command: ScheduledCommand) -> None:
        await asyncio.sleep(0)  # the renewal begins to wait
        timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        waits.extend(timer.when() - loop.time() for timer in timers if not timer.cancelled())

    async with SqlitePersistenceProvider(":memory:") as provider:
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        await provider.process_commands(utc_now(), handler, lease=timedelta(hours=3))
    assert [round(wait / 60) for wait in waits] == [60]


async def test_a_command_of_a_host_that_died_is_due_after_its_lease(tmp_path: Path) -> None:
    clock, file, handled = ManualClock(), tmp_path / "store.db", list[str]()

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command.data)

    async def hangs(command: ScheduledCommand) -> None:
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    dead = await SqlitePersistenceProvider(file, clock=clock).open()
    await dead.schedule_command(ScheduledCommand.process_workflow("w1", 0))
    call = asyncio.create_task(dead.process_commands(clock(), hangs, lease=timedelta(seconds=30)))
    await started.wait()
    await dead.close()
    call.cancel()
    await asyncio.wait([call])
    async with SqlitePersistenceProvider(file, clock=clock) as other:
        clock.advance(seconds=29)
        await other.process_commands(clock(), handler)
        assert handled == []
        clock.advance(seconds=1)
        await other.process_commands(clock(), handler)
        assert handled == ["w1"]
