"""What `ScheduledCommandRepository` promises."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.models import ScheduledCommand
from wfe_sql.repositories import ScheduledCommandRepository
from wfe_sql.testing.clock import ManualClock


class Handled(list[ScheduledCommand]):
    """A handler that records its commands."""

    async def __call__(self, command: ScheduledCommand) -> None:
        self.append(command)

    @property
    def ids(self) -> list[str]:
        """The data of the commands, in the order of their calls."""
        return [command.data for command in self]


def _ms(clock: ManualClock) -> int:
    return int(clock().timestamp() * 1000)


@pytest.mark.asyncio
class TestScheduledCommandRepository:
    """Schedule commands and process those that are due."""

    async def test_it_is_supported(self, provider: ScheduledCommandRepository) -> None:
        assert provider.supports_scheduled_commands is True

    async def test_due_commands_are_handled_in_order_and_gone(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        now, handled = _ms(clock), Handled()
        commands = [
            ScheduledCommand.process_workflow("w2", now),
            ScheduledCommand.process_event("e1", now),
            ScheduledCommand.process_workflow("w1", now - 1),
            ScheduledCommand.process_workflow("later", now + 1),
        ]
        for command in commands:
            await provider.schedule_command(command)
        await provider.process_commands(clock(), handled)
        assert handled == [commands[2], commands[0], commands[1]]
        await provider.process_commands(clock(), handled)
        assert len(handled) == 3
        await provider.process_commands(clock() + timedelta(milliseconds=1), handled)
        assert handled[3:] == [commands[3]]

    async def test_of_twins_the_earliest_wins(self, provider: ScheduledCommandRepository, clock: ManualClock) -> None:
        now, handled = _ms(clock), Handled()
        for time in (now + 5, now, now + 9):
            await provider.schedule_command(ScheduledCommand.process_workflow("w1", time))
        await provider.schedule_command(ScheduledCommand.process_event("w1", now + 1))
        await provider.process_commands(clock() + timedelta(seconds=1), handled)
        assert handled == [ScheduledCommand.process_workflow("w1", now), ScheduledCommand.process_event("w1", now + 1)]

    async def test_a_limit(self, provider: ScheduledCommandRepository, clock: ManualClock) -> None:
        handled = Handled()
        commands = [ScheduledCommand.process_workflow(f"w{number:03}", number) for number in range(250)]
        await asyncio.gather(*map(provider.schedule_command, commands))
        await provider.process_commands(clock(), handled, limit=120)
        assert handled.ids == [f"w{number:03}" for number in range(120)]
        await provider.process_commands(clock(), handled)
        assert handled.ids == [f"w{number:03}" for number in range(250)]

    async def test_a_handler_that_raises(self, provider: ScheduledCommandRepository, clock: ManualClock) -> None:
        handled = Handled()
        for number in range(5):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))

        async def fails_for_some(command: ScheduledCommand) -> None:
            await handled(command)
            if command.data in ("w1", "w3"):
                raise RuntimeError(f"cannot handle {command.data}")

        with pytest.raises(ExceptionGroup) as raised:
            await provider.process_commands(clock(), fails_for_some)
        assert [str(error) for error in raised.value.exceptions] == ["cannot handle w1", "cannot handle w3"]
        assert handled.ids == ["w0", "w1", "w2", "w3", "w4"]
        again = Handled()
        await provider.process_commands(clock(), again)
        assert again == [ScheduledCommand.process_workflow("w1", 1), ScheduledCommand.process_workflow("w3", 3)]

    async def test_scheduled_again_while_it_is_handled(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        now, handled = _ms(clock), Handled()
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", now))

        async def schedules_again(command: ScheduledCommand) -> None:
            await handled(command)
            for delay in (20, 10, 30):
                await provider.schedule_command(ScheduledCommand.process_workflow("w1", now + delay))

        await provider.process_commands(clock(), schedules_again)
        assert len(handled) == 1
        await provider.process_commands(clock() + timedelta(milliseconds=9), handled)
        assert len(handled) == 1
        await provider.process_commands(clock() + timedelta(milliseconds=10), handled)
        assert handled == [
            ScheduledCommand.process_workflow("w1", now),
            ScheduledCommand.process_workflow("w1", now + 10),
        ]
        await provider.process_commands(clock() + timedelta(seconds=1), handled)
        assert len(handled) == 2

    @pytest.mark.parametrize("delay", [-5, 5])
    async def test_scheduled_again_by_a_handler_that_raises(
        self, provider: ScheduledCommandRepository, clock: ManualClock, delay: int
    ) -> None:
        now, handled = _ms(clock), Handled()
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", now))

        async def schedules_and_fails(command: ScheduledCommand) -> None:
            await provider.schedule_command(ScheduledCommand.process_workflow("w1", now + delay))
            raise RuntimeError("after scheduling")

        with pytest.raises(ExceptionGroup):
            await provider.process_commands(clock(), schedules_and_fails)
        await provider.process_commands(clock(), handled)
        assert handled == [ScheduledCommand.process_workflow("w1", now + min(delay, 0))]

    async def test_no_two_handle_one_inside_a_lease(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))
        handled, started, go_on = Handled(), asyncio.Event(), asyncio.Event()

        async def slow(command: ScheduledCommand) -> None:
            started.set()
            await go_on.wait()

        slowly = asyncio.create_task(provider.process_commands(clock(), slow, lease=timedelta(seconds=30)))
        await started.wait()
        clock.advance(seconds=29)
        await provider.process_commands(clock(), handled)
        assert handled == []
        go_on.set()
        await slowly
        await provider.process_commands(clock(), handled)
        assert handled == []

    async def test_a_cancelled_call_gives_back_what_it_held(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        for number in range(3):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))
        handled, started = Handled(), asyncio.Event()

        async def hangs_on_the_second(command: ScheduledCommand) -> None:
            if command.data == "w1":
                started.set()
                await asyncio.Event().wait()

        call = asyncio.create_task(provider.process_commands(clock(), hangs_on_the_second))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await provider.process_commands(clock(), handled)
        assert handled.ids == ["w1", "w2"]

    async def test_a_host_that_stood_still_leaves_what_another_took(
        self, provider: ScheduledCommandRepository, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(3):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))
        begun, others, lease = Handled(), Handled(), timedelta(seconds=60)
        other_is_at_w1, other_may_go_on, other = asyncio.Event(), asyncio.Event(), set[asyncio.Task[None]]()

        async def handle_as_other(command: ScheduledCommand) -> None:
            await others(command)
            if command.data == "w1":
                other_is_at_w1.set()
                await other_may_go_on.wait()

        async def stand_still_in_the_first(command: ScheduledCommand) -> None:
            await begun(command)
            clock.advance(seconds=61)
            other.add(asyncio.create_task(provider.process_commands(clock(), handle_as_other, lease=lease)))
            await other_is_at_w1.wait()

        await provider.process_commands(clock(), stand_still_in_the_first, lease=lease)
        assert begun.ids == ["w0"], "the other handles w1 now, and holds w2"
        assert any(record.name == "wfe_sql" and record.levelname == "WARNING" for record in caplog.records)
        other_may_go_on.set()
        await asyncio.gather(*other)
        assert others.ids == ["w0", "w1", "w2"]

    async def test_a_host_that_stood_still_goes_on_with_what_nobody_took(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        for number in range(3):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))
        begun, others, lease = Handled(), Handled(), timedelta(seconds=60)

        async def stand_still_in_the_first(command: ScheduledCommand) -> None:
            await begun(command)
            if command.data == "w0":
                clock.advance(seconds=61)
            else:
                await provider.process_commands(clock(), others, lease=lease)

        await provider.process_commands(clock(), stand_still_in_the_first, lease=lease)
        assert begun.ids == ["w0", "w1", "w2"]
        assert others == [], "its lease was renewed before it went on"

    @pytest.mark.parametrize("turns", range(8))
    async def test_cancelled_while_it_claims_it_gives_back_what_it_took(
        self, provider: ScheduledCommandRepository, clock: ManualClock, turns: int
    ) -> None:
        for number in range(25):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number:02}", number))
        handled = Handled()

        async def never_ends(command: ScheduledCommand) -> None:
            await asyncio.Event().wait()

        call = asyncio.create_task(provider.process_commands(clock(), never_ends))
        for _ in range(turns):  # turns of the event loop: the statement is waiting, sent, or answered
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await provider.process_commands(clock(), handled)
        assert handled.ids == [f"w{number:02}" for number in range(25)]

    async def test_cancelled_while_it_notes_that_a_command_is_done(
        self, provider: ScheduledCommandRepository, clock: ManualClock
    ) -> None:
        for number in range(2):
            await provider.schedule_command(ScheduledCommand.process_workflow(f"w{number}", number))
        handled, again = Handled(), Handled()

        async def cancels(command: ScheduledCommand) -> None:
            await handled(command)
            asyncio.get_running_loop().call_soon(call.cancel)

        call = asyncio.create_task(provider.process_commands(clock(), cancels))
        with pytest.raises(asyncio.CancelledError):
            await call
        assert handled.ids == ["w0"]
        await provider.process_commands(clock(), again)
        assert again.ids == ["w1"]

    async def test_in_the_hour_that_comes_twice(self, provider: ScheduledCommandRepository, clock: ManualClock) -> None:
        clock.now = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
        await provider.schedule_command(ScheduledCommand.process_event("e1", 0))
        begun, others = Handled(), Handled()

        async def another_comes(command: ScheduledCommand) -> None:
            await begun(command)
            await provider.process_commands(clock(), others)

        await provider.process_commands(clock(), another_comes)
        assert begun.ids == ["e1"]
        assert others == []

    async def test_no_two_providers_handle_one(
        self,
        provider: ScheduledCommandRepository,
        another_provider: Callable[[], Awaitable[ScheduledCommandRepository]],
        clock: ManualClock,
    ) -> None:
        other, begun, others = await another_provider(), Handled(), Handled()
        await provider.schedule_command(ScheduledCommand.process_workflow("w1", 0))

        async def another_comes(command: ScheduledCommand) -> None:
            await begun(command)
            await other.process_commands(clock(), others)

        await provider.process_commands(clock(), another_comes)
        assert (begun.ids, others.ids) == (["w1"], [])
