"""`wfe-sql demo` as a person runs it, and the host that it points to."""

import ast
import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from commands import run_command
from wfe_sql import (
    Claim,
    Event,
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreError,
    WorkflowInstance,
    WorkflowStatus,
    connect,
    utc_now,
)
from wfe_sql.demo import host, steps
from wfe_sql.demo.host import WorkflowHost
from wfe_sql.demo.run import DemoReport, check
from wfe_sql.demo.steps import Definition, Done, Sleep, Step, StepBody, WaitFor
from wfe_sql.engines import Engine, Results, Unit
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import CountingProvider
from wfe_sql.testing.clock import ManualClock

COMMAND = (sys.executable, "-m", "wfe_sql.cli")


@pytest.mark.slow
def test_demo_runs_all_orders_on_two_hosts_across_a_kill(tmp_path: Path) -> None:
    """And leaves a file that the commands read which it prints."""
    file, program = tmp_path / "with space.db", Path(sys.executable).with_name("wfe-sql")
    result = subprocess.run([program, "demo", file], capture_output=True, text=True, timeout=15, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    for number in range(1, 7):
        rows = re.findall(rf"^order-{number} .*$", result.stdout, re.MULTILINE)
        assert [row.split()[1:6] for row in rows] == [["Complete", "7", "of", "7", "2"]]
    assert max(map(len, result.stdout.split("\n\n")[1].splitlines())) <= 80
    started = re.search(r"hosts (\d+) and (\d+) start", result.stdout)
    assert started is not None
    first, second = started.groups()
    replaced = re.search(rf"host (\d+) takes its place, and host {second} continues", result.stdout)
    assert replaced is not None
    assert f"host {first} is killed with SIGKILL" in result.stdout
    assert "No step ran again once it was stored as done" in result.stdout
    counts = re.findall(r"^  host (\d+): (\d+)(, then it was killed)?$", result.stdout, re.MULTILINE)
    assert [(pid, bool(killed)) for pid, _, killed in counts] == [
        (first, True),
        (second, False),
        (replaced[1], False),
    ]
    runs = {pid: int(count) for pid, count, _ in counts}
    assert min(runs[first], runs[second]) > 0
    journal = file.with_name(f"{file.name}.effects.jsonl").read_text()
    assert runs == {pid: journal.count(f'"pid": {pid},') for pid in runs}
    assert sum(runs.values()) == journal.count("\n")

    show, look, search = (line.strip() for line in result.stdout.splitlines()[-3:])
    assert shlex.split(show)[0] == str(program)
    shown = subprocess.run(show, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("order-1  Complete")
    rows = subprocess.run(look, shell=True, capture_output=True, text=True, check=True).stdout.splitlines()
    assert rows == [f"order-{number}|Complete" for number in range(1, 7)]
    assert subprocess.run(search, shell=True, capture_output=True, text=True, check=True).stdout.count("order-1") >= 8


def test_demo_refuses_a_file_that_exists(tmp_path: Path) -> None:
    file = tmp_path / "orders.db"
    file.write_text("mine")
    result = run_command("demo", file)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"wfe-sql: {file} already exists; name a file that does not\n"
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_is_one_line(tmp_path: Path) -> None:
    result = run_command("demo", tmp_path / "missing" / "orders.db")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("wfe-sql: ")
    assert result.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_host_outlives_the_demo(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [*COMMAND, "demo", str(tmp_path / "orders.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert any(" start" in line for line in running.stdout)
        running.send_signal(number)
        _, errors = running.communicate(timeout=15)  # hosts have the same stderr: this returns when all have ended
    assert (running.returncode, errors) == (code, "")


@pytest.mark.slow
@pytest.mark.parametrize("place", [1, 2])
def test_a_host_that_ends_by_itself_is_a_failure(place: int, tmp_path: Path) -> None:
    command = [*COMMAND, "demo", str(tmp_path / "orders.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        says = (re.search(r"hosts (\d+) and (\d+) start", line) for line in running.stdout)
        started = next(filter(None, says))
        os.kill(int(started[place]), signal.SIGKILL)
        output, _ = running.communicate(timeout=15)
    assert running.returncode == 1
    assert f"WRONG: host {started[place]} ended by itself" in output
    assert "WRONG: order-1 is Runnable, not Complete" in output


@pytest.mark.parametrize(
    ("attempts", "stored", "in_flight", "problems"),
    [
        ([1], {1}, set(), []),
        ([1, 1], set(), {1}, []),
        ([1, 1], {1}, set(), ["1 steps were stored as done and were run again"]),
        ([1, 1], set(), set(), ["1 steps were run again without a reason"]),
        ([], set(), set(), ["1 steps are stored as done and were never run"]),
    ],
)
def test_the_check_finds_what_was_run_twice(
    attempts: list[int], stored: set[int], in_flight: set[int], problems: list[str], tmp_path: Path
) -> None:
    done = ExecutionPointer(id="p", step_id=0, status=PointerStatus.Complete)
    order = WorkflowInstance(workflow_definition_id="order", version=1, data={}, status=WorkflowStatus.Complete)
    order.execution_pointers.append(done)
    report = DemoReport(file=tmp_path / "f", journal=tmp_path / "j", orders=[order])
    report.stored, report.in_flight = {("p", n) for n in stored}, {("p", n) for n in in_flight}
    report.journal.write_text("".join(f'{{"pointer": "p", "attempt": {n}, "pid": 1}}\n' for n in attempts))
    check(report)
    assert report.problems == problems
    assert sum(report.runs_by_host.values()) == len(attempts)


def test_help_and_version() -> None:
    assert "wfe-sql demo /tmp/orders.db" in run_command("demo", "--help").out
    assert run_command("--help").out.isascii()
    assert re.fullmatch(r"wfe-sql \d+\.\d+\.\d+\S*\n", run_command("--version").out)


def test_without_its_packages_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['rich'] = None; from wfe_sql.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    what_to_do = f"run: {sys.executable} -m pip install rich typer"
    assert result.stderr == f"wfe-sql needs packages that are not installed; {what_to_do}\n"


def test_the_host_knows_only_protocols_and_models() -> None:
    allowed = {"wfe_sql", "wfe_sql.models", "wfe_sql.repositories", "wfe_sql.errors", "wfe_sql.demo"}
    for module in (host, steps):
        assert module.__file__ is not None
        nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
        imported = {node.module or "": node.names for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {name.name: [] for node in nodes if isinstance(node, ast.Import) for name in node.names}
        assert {name for name in imported if name.partition(".")[0] in ("", "wfe_sql")} <= allowed
        assert not {name.name for name in imported.get("wfe_sql", [])} & {"connect", "SqlitePersistenceProvider"}
        assert not {"sqlite3", "aiosqlite", "aiosql"} & set(imported)


@asynccontextmanager
async def running(*hosts: WorkflowHost) -> AsyncIterator[None]:
    """Run hosts side by side until the block ends."""
    tasks = [asyncio.create_task(host.run()) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, ExceptionGroup):
                await task


def a_host(store: PersistenceProvider, *steps: Step, worker_id: str = "w", **options: Any) -> WorkflowHost:
    """Return a host of the definition "d"."""
    return WorkflowHost(store, [Definition("d", 1, steps)], worker_id=worker_id, **options)


@asynccontextmanager
async def hosting(*steps: Step) -> AsyncIterator[tuple[PersistenceProvider, WorkflowHost]]:
    """Run a host of the definition "d" on a store in memory."""
    async with connect(":memory:") as store:
        host = a_host(store, *steps)
        async with running(host):
            yield store, host


async def until(store: PersistenceProvider, id_: str, reached: Callable[[WorkflowInstance], bool]) -> WorkflowInstance:
    async with asyncio.timeout(5):
        while not reached(instance := await store.get_workflow_instance(id_)):
            await asyncio.sleep(0.005)
    return instance


def is_complete(instance: WorkflowInstance) -> bool:
    return instance.status is WorkflowStatus.Complete


def is_resting(instance: WorkflowInstance) -> bool:
    (pointer,) = instance.execution_pointers
    return not pointer.active or pointer.status is PointerStatus.WaitingForEvent


async def wait_for_news(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
    return Done({"news": pointer.event_data}) if pointer.event_published else WaitFor("news", "key")


async def test_an_event_that_came_before_the_wait_is_not_lost() -> None:
    gate = asyncio.Event()

    async def hold(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        await gate.wait()
        return Done()

    async with hosting(Step(name="hold", body=hold, next="wait"), Step(name="wait", body=wait_for_news)) as (
        store,
        host,
    ):
        id_ = await host.start("d", {})
        event_id = await store.create_event(Event(event_name="news", event_key="key", event_data="early"))
        async with asyncio.timeout(5):
            while not (await store.get_event(event_id)).is_processed:
                await asyncio.sleep(0.005)
        gate.set()
        instance = await until(store, id_, is_complete)
        assert instance.data == {"news": "early"}
        assert (await store.get_subscription(instance.execution_pointers[1].id)).id
        assert await store.get_subscriptions("news", "key", instance.complete_time or instance.create_time) == []


async def test_one_event_goes_to_all_who_wait_and_to_nobody_twice() -> None:
    async with hosting(Step(name="wait", body=wait_for_news)) as (store, host):
        ids = [await host.start("d", {}) for _ in range(3)]
        for id_ in ids:
            await until(store, id_, is_resting)
        for data in ("first", "second"):
            await store.create_event(Event(event_name="news", event_key="key", event_data=data))
        for id_ in ids:
            assert (await until(store, id_, is_complete)).data == {"news": "first"}


async def test_a_step_that_always_fails_suspends_its_workflow_and_all_its_errors_are_stored() -> None:
    async def fail(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        raise ValueError(f"attempt {pointer.retry_count}")

    soon = timedelta(milliseconds=1)
    async with hosting(Step(name="fail", body=fail, max_retries=2, retry_after=soon)) as (store, host):
        id_ = await host.start("d", {})
        instance = await until(store, id_, lambda instance: instance.status is WorkflowStatus.Suspended)
        assert (instance.execution_pointers[0].status, instance.next_execution) == (PointerStatus.Failed, None)
        messages = [error.message for error in await store.get_execution_errors(id_)]
        assert messages == ["ValueError: attempt 0", "ValueError: attempt 1", "ValueError: attempt 2"]


def sleeper(duration: timedelta, *, by_command: bool) -> StepBody:
    async def body(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | Sleep:
        return Done() if pointer.persistence_data else Sleep(duration, remember=True, by_command=by_command)

    return body


@pytest.mark.parametrize("by_command", [False, True])
async def test_a_sleep_ends_at_its_stored_time(by_command: bool) -> None:
    nap = sleeper(timedelta(milliseconds=50), by_command=by_command)
    async with hosting(Step(name="nap", body=nap)) as (store, host):
        instance = await until(store, await host.start("d", {}), is_complete)
        (pointer,) = instance.execution_pointers
        assert pointer.sleep_until is not None
        assert pointer.end_time is not None
        assert pointer.end_time >= pointer.sleep_until


async def test_a_command_that_comes_early_does_not_cut_a_sleep_short() -> None:
    nap = sleeper(timedelta(hours=1), by_command=True)
    async with hosting(Step(name="nap", body=nap)) as (store, host):
        id_ = await host.start("d", {})
        await until(store, id_, is_resting)
        await store.schedule_command(ScheduledCommand.process_workflow(id_, 0))
        instance = await until(store, id_, lambda instance: instance.execution_pointers[0].active)
        assert (instance.status, instance.execution_pointers[0].status) == (
            WorkflowStatus.Runnable,
            PointerStatus.Pending,
        )
        assert instance.next_execution is not None
        assert instance.next_execution > time.time() * 1000


async def test_branches_run_side_by_side_and_join_once() -> None:
    both = asyncio.Barrier(2)

    async def meet(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        async with asyncio.timeout(5):
            await both.wait()
        return Done()

    steps = (
        Step(name="fork", children=("left", "right"), next="end"),
        Step(name="left", body=meet, next="left too"),
        Step(name="right", body=meet),
        Step(name="left too"),
        Step(name="end"),
    )
    async with hosting(*steps) as (store, host):
        instance = await until(store, await host.start("d", {}), is_complete)
        names = [pointer.step_name for pointer in instance.execution_pointers]
        assert names == ["fork", "left", "right", "left too", "end"]
        fork, left, right, left_too, end = instance.execution_pointers
        assert fork.children == [left.id, right.id]
        assert left.scope == right.scope == left_too.scope == [fork.id]
        assert (left_too.predecessor_id, end.predecessor_id, end.scope) == (left.id, fork.id, [])


async def test_one_workflow_that_cannot_be_run_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with hosting(Step(name="only")) as (store, host):
        stray = WorkflowInstance(workflow_definition_id="unknown", version=1, data={}, next_execution=0)
        stray.execution_pointers.append(ExecutionPointer(step_id=0))
        await store.create_new_workflow(stray)
        await until(store, await host.start("d", {}), is_complete)
        assert f"the handler of workflow {stray.id!r} failed" in caplog.text


@pytest.mark.slow
async def test_two_hosts_share_the_work_and_run_each_step_once() -> None:
    runs: Counter[tuple[str, str | None]] = Counter()
    by: Counter[str] = Counter()

    def definition_of(worker_id: str) -> tuple[Step, ...]:
        def note(instance: WorkflowInstance, pointer: ExecutionPointer) -> None:
            runs[instance.id, pointer.step_name] += 1
            by[worker_id] += 1

        async def do(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
            note(instance, pointer)
            await asyncio.sleep(0.001)
            return Done({str(pointer.step_name): True})

        async def hear(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
            if not pointer.event_published:
                return WaitFor("news", "key")
            note(instance, pointer)
            return Done({"hear": pointer.event_data})

        async def nap(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | Sleep:
            if not pointer.persistence_data:
                return Sleep(timedelta(0), remember=True, by_command=True)
            note(instance, pointer)
            return Done({"nap": True})

        return (
            Step(name="begin", body=do, next="fork"),
            Step(name="fork", children=("left", "hear", "nap"), next="end"),
            Step(name="left", body=do, next="left too"),
            Step(name="left too", body=do),
            Step(name="hear", body=hear),
            Step(name="nap", body=nap),
            Step(name="end", body=do),
        )

    async with connect(":memory:") as store:
        hosts = [a_host(store, *definition_of(name), worker_id=name, max_tasks=10) for name in ("one", "two")]
        async with running(*hosts):
            ids = [await hosts[number % 2].start("d", {}) for number in range(50)]
            await store.create_event(Event(event_name="news", event_key="key", event_data="now"))
            instances = [await until(store, id_, is_complete) for id_ in ids]
        names = ("begin", "left", "left too", "hear", "nap", "end")
        assert runs == {(id_, name): 1 for id_ in ids for name in names}
        assert set(by) == {"one", "two"}
        for instance in instances:
            assert instance.data == {"hear": "now"} | {name: True for name in names if name != "hear"}


class CountingRenewals(SqlitePersistenceProvider):
    """A store that counts how often a claim was renewed."""

    renewals = 0

    async def renew_claim(self, claim: Claim, lease: timedelta) -> Claim:
        renewed = await super().renew_claim(claim, lease)
        self.renewals += 1
        return renewed


async def test_a_step_that_takes_longer_than_the_lease_is_run_once() -> None:
    clock, gate, runs = ManualClock(), asyncio.Event(), list[str]()

    async def hold(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        runs.append(instance.id)
        await gate.wait()
        return Done()

    lease = timedelta(milliseconds=60)
    async with CountingRenewals(":memory:", clock=clock) as store:
        hosts = [a_host(store, Step(name="hold", body=hold), worker_id=name, lease=lease) for name in ("one", "two")]
        async with running(*hosts), asyncio.timeout(5):
            id_ = await hosts[0].start("d", {})
            for _ in range(10):
                clock.advance(milliseconds=20)
                seen = store.renewals
                while store.renewals == seen:
                    await asyncio.sleep(0.005)
            gate.set()
            await until(store, id_, is_complete)
        assert runs == [id_]


@pytest.mark.parametrize("outcome", ["cancelled", "done"])
async def test_a_host_that_lost_its_claim_stores_nothing(outcome: str, caplog: pytest.LogCaptureFixture) -> None:
    clock, begun, gate, outcomes = ManualClock(), asyncio.Event(), asyncio.Event(), list[str]()

    async def hold(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        begun.set()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise
        outcomes.append("done")
        return Done()

    # The host hears that its claim is lost when it renews it or, here with the long lease, when it stores the step.
    lease = timedelta(seconds=0.3) if outcome == "cancelled" else timedelta(minutes=1)
    async with connect(":memory:", clock=clock) as store:
        slow = a_host(store, Step(name="hold", body=hold), worker_id="slow", lease=lease)
        id_ = await slow.start("d", {})
        before = await store.get_workflow_instance(id_)
        async with running(slow):
            await begun.wait()
            clock.advance(minutes=2)
            (claim,) = await store.claim_runnable_instances(clock(), "another", lease=timedelta(minutes=1), limit=1)
            if outcome == "done":
                gate.set()
            async with asyncio.timeout(5):
                while f"workflow {id_!r} was lost to another host" not in caplog.text:
                    await asyncio.sleep(0.005)
            assert outcomes == [outcome]
            assert await store.get_workflow_instance(id_) == before
            gate.set()
            await store.release_claim(claim)
            await until(store, id_, is_complete)


class StallingLoad(SqlitePersistenceProvider):
    """A store whose host stands still for longer than its lease, once, when it has claimed a workflow."""

    stalls = 1
    caller_clock: ManualClock
    taken: Claim

    async def claim_and_load_instances(self, *args: Any, **kwargs: Any) -> list[tuple[Claim, WorkflowInstance]]:
        loaded = await super().claim_and_load_instances(*args, **kwargs)
        if loaded and self.stalls:
            self.stalls -= 1
            self.caller_clock.advance(minutes=2)
            now = self.caller_clock()
            (self.taken,) = await self.claim_runnable_instances(now, "another", lease=timedelta(hours=1), limit=1)
        return loaded


async def test_a_host_that_stood_still_begins_no_step_that_another_may_run(caplog: pytest.LogCaptureFixture) -> None:
    clock, begun = ManualClock(), list[str]()

    async def note(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        begun.append(instance.id)
        return Done()

    store = StallingLoad(":memory:", on_conflict="raise", clock=clock)
    store.caller_clock = clock
    async with store:
        host = a_host(store, Step(name="note", body=note), clock=clock)
        id_ = await host.start("d", {})
        async with running(host):
            async with asyncio.timeout(5):
                while "lost" not in caplog.text:
                    await asyncio.sleep(0.005)
            assert begun == []
            await store.release_claim(store.taken)
            await until(store, id_, is_complete)
    assert begun == [id_]


async def test_a_host_that_is_stopped_gives_back_what_it_holds() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    async def hold(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        begun.set()
        await gate.wait()
        return Done()

    async with connect(":memory:") as store:
        first, second = (a_host(store, Step(name="hold", body=hold), worker_id=name) for name in ("one", "two"))
        id_ = await first.start("d", {})
        async with running(first):
            await begun.wait()
        gate.set()
        async with running(second):  # the lease is a minute, which nobody has to wait
            await until(store, id_, is_complete)


async def test_an_event_that_comes_while_another_branch_runs_is_kept_and_so_is_the_branch() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def hold(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        begun.set()
        await gate.wait()
        return Done({"held": True})

    steps = (
        Step(name="fork", children=("wait", "timer"), next="end"),
        Step(name="wait", body=wait_for_news),
        Step(name="timer", body=sleeper(timedelta(milliseconds=50), by_command=False), next="hold"),
        Step(name="hold", body=hold),
        Step(name="end"),
    )
    async with hosting(*steps) as (store, host):
        id_ = await host.start("d", {})
        await begun.wait()
        await store.create_event(Event(event_name="news", event_key="key", event_data="now"))
        await until(store, id_, lambda instance: instance.execution_pointers[1].event_published)
        gate.set()
        assert (await until(store, id_, is_complete)).data == {"news": "now", "held": True}


START = datetime(2026, 1, 1, tzinfo=UTC)


class DyingEngine:
    """An engine as a host has it that is killed: after some writes, nothing is written any more."""

    def __init__(self, engine: Engine, writes: int) -> None:
        self._engine = engine
        self._writes = writes
        self.died = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, unit: Unit) -> "asyncio.Future[Results]":
        if self._writes == 0:
            self.died.set()
            raise StoreError("killed")
        self._writes -= 1
        return self._engine.submit(unit)

    async def write(self, unit: Unit) -> Results:
        return await self.submit(unit)


class RunningClock(ManualClock):
    """A clock that runs, and can be put forward."""

    def __call__(self) -> datetime:
        return utc_now() + (self.now - START)


@pytest.mark.slow
async def test_a_host_killed_between_any_two_writes_leaves_what_another_one_finishes() -> None:
    async def fail_once(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        if pointer.retry_count == 0:
            raise ValueError("once")
        return Done()

    def wait_for(key: str) -> StepBody:
        async def wait(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
            return Done({key: pointer.event_data}) if pointer.event_published else WaitFor("news", key)

        return wait

    steps = (
        Step(name="fail once", body=fail_once, retry_after=timedelta(milliseconds=1), next="nap"),
        Step(name="nap", body=sleeper(timedelta(milliseconds=10), by_command=True), next="wait for early"),
        Step(name="wait for early", body=wait_for("early"), next="wait for late"),
        Step(name="wait for late", body=wait_for("late")),
    )

    def waits_for_late(instance: WorkflowInstance) -> bool:
        pointer = instance.execution_pointers[-1]
        return pointer.event_key == "late" and pointer.status is PointerStatus.WaitingForEvent

    async def watch(store: PersistenceProvider, id_: str) -> WorkflowInstance:
        await until(store, id_, waits_for_late)
        await store.create_event(Event(event_name="news", event_key="late", event_data=2))
        return await until(store, id_, is_complete)

    for writes in range(100):
        clock = RunningClock(START)
        async with connect(":memory:", clock=clock) as store:
            id_ = await a_host(store, *steps, clock=clock).start("d", {})
            await store.create_event(Event(event_name="news", event_key="early", event_data=1))
            engine = DyingEngine(store._engine, writes)
            its_store = SqlPersistenceProvider(
                cast(Engine, engine),
                clock=clock,
                on_conflict="raise",
                poll_interval=timedelta(milliseconds=5),
                fallback_interval=timedelta(seconds=1),
            )
            dying = a_host(its_store, *steps, worker_id="dying", clock=clock)
            watching, death = asyncio.create_task(watch(store, id_)), asyncio.create_task(engine.died.wait())
            async with running(dying):
                await asyncio.wait([death, watching], return_when=asyncio.FIRST_COMPLETED)
            survived = not engine.died.is_set()
            death.cancel()
            clock.advance(minutes=2)  # the lease of the dead host is over
            async with running(a_host(store, *steps, worker_id="next", clock=clock)):
                instance = await watching
            assert instance.data == {"early": 1, "late": 2}
            assert [pointer.status for pointer in instance.execution_pointers] == [PointerStatus.Complete] * len(steps)
            assert len(await store.get_execution_errors(id_)) in (1, 2)
        if survived:
            return
    pytest.fail("the host never came to the end")


@pytest.mark.parametrize(("workflows", "most"), [(1, 1.5), pytest.param(4, 1.0, marks=pytest.mark.slow), (16, 0.5)])
async def test_how_many_commits_a_step_takes(workflows: int, most: float, store_url: str) -> None:
    """Of a host's own: three steps, a wait for an event, which is a step before and one after it, and two steps.

    One workflow alone takes 7, one for the event, and two for claims, which many workflows share.
    """

    async def work(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done:
        return Done()

    names = ["one", "two", "three", "wait", "five", "six"]
    bodies: list[StepBody] = [work, work, work, wait_for_news, work, work]
    then = [*names[1:], None]
    steps = [Step(name=name, body=body, next=next_) for name, body, next_ in zip(names, bodies, then, strict=True)]
    async with connect(store_url) as store:
        host, counting = a_host(store, *steps), CountingProvider(store)
        ids = [await host.start("d", {}) for _ in range(workflows)]
        counting.reset()
        async with running(host):
            for id_ in ids:
                await until(store, id_, lambda instance: instance.execution_pointers[-1].event_name == "news")
            commits = counting.commits
            await store.create_event(Event(event_name="news", event_key="key", event_data=1))
            counting.reset()
            for id_ in ids:
                await until(store, id_, is_complete)
        commits += counting.commits
    print(f"{commits} commits for {workflows} workflows of 7 steps")
    assert commits / (7 * workflows) <= most


async def test_events_that_come_with_the_waits_for_them_are_delivered_once_each(store_url: str) -> None:
    """A step finds its event as the host does; if both delivered it at once, one would get a conflict."""
    waiting: asyncio.Queue[str] = asyncio.Queue()

    async def wait(instance: WorkflowInstance, pointer: ExecutionPointer) -> Done | WaitFor:
        if pointer.event_published:
            return Done()
        waiting.put_nowait(instance.id)
        return WaitFor("news", instance.id)

    outcomes: Counter[str] = Counter()
    async with connect(store_url, on_unit=lambda unit: outcomes.update([unit.outcome])) as store:
        host = a_host(store, Step(name="wait", body=wait))
        ids = [await host.start("d", {}) for _ in range(20)]
        async with running(host):
            for _ in ids:
                await store.create_event(Event(event_name="news", event_key=await waiting.get(), event_data=1))
            for id_ in ids:
                await until(store, id_, is_complete)
    assert set(outcomes) == {"ok"}
