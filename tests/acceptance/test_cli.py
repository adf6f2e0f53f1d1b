"""The `wfe-sql` command for a DBA and an operator, on a pipe and on terminals."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from commands import Result, run_command
from wfe_sql import (
    ExecutionError,
    ExecutionPointer,
    PointerStatus,
    ScheduledCommand,
    SqlitePersistenceProvider,
    WorkflowInstance,
    WorkflowStatus,
    utc_now,
)
from wfe_sql.cli.app import app
from wfe_sql.cli.lists import print_rates
from wfe_sql.cli.output import Output
from wfe_sql.cli.store import hide_password
from wfe_sql.testing import ManualClock, full_event, full_subscription, sample_instance

NAMES = [command.callback.__name__ for command in app.registered_commands if command.callback]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LONG_AGO = utc_now() - timedelta(days=90)


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return run_command


def _do(file: Path, work: Callable[[SqlitePersistenceProvider], Awaitable[Any]]) -> Any:
    async def command() -> Any:
        async with SqlitePersistenceProvider(file, max_connections=1) as provider:
            return await work(provider)

    return asyncio.run(command())


def _order() -> WorkflowInstance:
    """Return a workflow in the middle of its steps."""
    begin = utc_now() - timedelta(minutes=10)

    def at(minutes: float) -> Any:
        return begin + timedelta(minutes=minutes)

    done = PointerStatus.Complete
    pointers = [
        ExecutionPointer(id="p0", step_id=0, step_name="reserve", status=done, start_time=at(0), end_time=at(1)),
        ExecutionPointer(id="p1", step_id=1, step_name="prepare", status=PointerStatus.Running, start_time=at(1)),
        ExecutionPointer(
            id="p2", step_id=2, step_name="pay", status=done, start_time=at(1), end_time=at(4), scope=["p1"]
        ),
        ExecutionPointer(
            id="p3",
            step_id=3,
            step_name="ship",
            status=PointerStatus.WaitingForEvent,
            start_time=at(4),
            event_name="shipped",
            event_key="order-1",
            scope=["p1"],
            retry_count=2,
        ),
        ExecutionPointer(id="p4", step_id=4, step_name="close", status=PointerStatus.Pending),
    ]
    return sample_instance(id="w1", name="order-1", execution_pointers=pointers, create_time=begin, next_execution=None)


async def _fill(provider: SqlitePersistenceProvider) -> None:
    await provider.create_new_workflow(_order())
    await provider.create_new_workflow(
        sample_instance(
            id="w2",
            name="order-2",
            status=WorkflowStatus.Complete,
            create_time=LONG_AGO - timedelta(hours=1),
            complete_time=LONG_AGO,
            next_execution=None,
        )
    )
    await provider.create_new_workflow(
        sample_instance(
            id="w3",
            name="refund-1",
            workflow_definition_id="refund",
            status=WorkflowStatus.Suspended,
            create_time=LONG_AGO - timedelta(days=1),
            next_execution=None,
        )
    )
    await provider.persist_errors(
        [ExecutionError(workflow_id="w1", execution_pointer_id="p3", message="no\n  carrier", error_time=LONG_AGO)]
    )
    waits = full_subscription(
        workflow_id="w1",
        event_name="shipped",
        event_key="order-1",
        external_worker_id="host-7",
        execution_pointer_id="p3",
    )
    waits.external_token_expiry = utc_now() + timedelta(hours=3)
    await provider.create_event_subscription(waits)
    await provider.create_event(full_event(id="e1", event_time=LONG_AGO, event_data={"parcel": 7}))
    await provider.schedule_command(ScheduledCommand.process_workflow("w1", 4_000_000_000_000))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    file = tmp_path / "wfe.db"  # filled for each test, because tests look at how many minutes ago something was
    _do(file, _fill)
    return file


# every command


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    assert f"Example: wfe-sql {name}" in re.sub(r"\s+", " ", result.out)
    assert result.out.isascii()


@pytest.mark.parametrize("group", [[], ["queries"]])
def test_no_summary_of_a_command_is_cut(run: Run, group: list[str]) -> None:
    listed = run(*group, "--help", COLUMNS="80").out.partition("Commands:\n")[2].splitlines()
    assert len(listed) == (4 if group else len(NAMES) + 1)
    assert [line for line in listed if not re.match(r"  [a-z]+ +[A-Z].*\.$", line) or line.endswith("..")] == []


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"demo", "init", "copy", "schema"}))
def test_a_store_that_is_not_there(run: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / "nothing.db"
    more: dict[str, list[str]] = {
        "show": ["x"],
        **{verb: ["x", "--yes"] for verb in ("suspend", "resume", "terminate")},
        "publish": ["a", "b", "--yes"],
        "purge": ["--status", "Complete", "--older-than", "1d"],
        "backup": [str(tmp_path / "copy.db")],
    }
    result = run(name, file, *more.get(name, []))
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"wfe-sql: \S+nothing.db cannot be opened: it does not exist .*\n", result.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["workflows", "{}", "--status", "Finished"],
        ["workflows", "{}", "--since", "yesterday"],
        ["workflows", "{}", "--since", "999999999w"],
        ["workflows", "{}", "--limit", "0"],
        ["workflows", "{}", "--after", "x"],
        ["purge", "{}", "--status", "Runnable", "--older-than", "1d"],
        ["purge", "{}", "--status", "Complete", "--older-than", "soon"],
        ["check", "{}", "--overdue-after", "1"],
        ["check", "{}", "--overdue-after", "200000w"],
        ["publish", "{}", "paid", "k", "--yes", "--data", "{"],
        ["show", "{}"],
        ["unknown"],
    ],
)
def test_what_is_asked_wrongly(run: Run, store: Path, arguments: list[str]) -> None:
    result = run(*(argument.replace("{}", str(store)) if argument == "{}" else argument for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


# looking


def test_stats(run: Run, store: Path) -> None:
    out = run("stats", store).out
    assert re.search(r"^order +1 +0 +1 +0 +2 +90 d +10 min$", out, re.MULTILINE)
    assert re.search(r"^refund +0 +1 +0 +0 +1 ", out, re.MULTILINE)
    assert re.search(r"^execution_pointers +7$", out, re.MULTILINE)
    found = run("stats", store, "--json").json
    assert {(each["workflow_definition_id"], each["status"], each["workflows"]) for each in found["workflows"]} == {
        ("order", "Runnable", 1),
        ("order", "Complete", 1),
        ("refund", "Suspended", 1),
    }
    assert found["due_events"] == {"due": 0, "since": None}


@pytest.mark.parametrize("option", [[], ["--json"], ["--watch"]], ids=str)
def test_what_queries_cost_is_not_counted(run: Run, store: Path, option: list[str]) -> None:
    result = run("stats", store, "--queries", *option)
    assert (result.code, result.out) == (1, "")
    assert result.err == ("wfe-sql: this database does not measure queries; PostgreSQL does, with pg_stat_statements\n")


@pytest.mark.slow
def test_stats_go_on_until_they_are_stopped(store: Path) -> None:
    command = [sys.executable, "-m", "wfe_sql.cli", "stats", str(store), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        process.send_signal(2)
        assert process.wait(10) == 0
    assert json.loads(first)["taken_at"] < json.loads(second)["taken_at"]


@pytest.mark.slow
def test_stats_that_go_on_show_rates(store: Path) -> None:
    command = [sys.executable, "-m", "wfe_sql.cli", "stats", str(store), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(50)]
        process.send_signal(2)
        process.wait(10)
    at = lines.index(["growth", "per", "second"])
    assert lines[at + 1 : at + 5] == [
        ["workflows", "created", "+0.0"],
        ["workflows", "completed", "+0.0"],
        ["events", "+0.0"],
        ["errors", "+0.0"],
    ]
    assert ["growth", "per", "second"] not in lines[: lines.index(["table", "rows"])]


async def test_rates_go_by_the_times_of_the_looks(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock(utc_now())
    async with SqlitePersistenceProvider(":memory:", clock=clock) as provider:
        await provider.create_event(full_event(id="e0"))
        before = await provider.stats()
        for number in range(5):
            await provider.create_new_workflow(
                sample_instance(id=f"w{number}", name="", status=WorkflowStatus.Complete, execution_pointers=[])
            )
        await provider.persist_errors([ExecutionError(workflow_id="w1", execution_pointer_id="p1", message="no")])
        clock.advance(seconds=2)
        now = await provider.stats()
    print_rates(Output(), before, before)
    assert capsys.readouterr().out == ""
    print_rates(Output(), before, now)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]] == ["+2.5", "+2.5", "+0.0", "+0.5"]


def test_workflows(run: Run, store: Path) -> None:
    lines = run("workflows", store).out.splitlines()
    assert lines[0].split() == ["name", "definition", "status", "created", "due,", "or", "took", "held", "by,", "until"]
    assert [line.split()[0] for line in lines[1:]] == ["order-1", "order-2", "refund-1"]
    assert run("workflows", store, "--status", "Suspended", "--json").json["items"][0]["name"] == "refund-1"
    assert len(run("workflows", store, "--definition", "order", "--json").json["items"]) == 2
    assert [item["name"] for item in run("workflows", store, "--since", "1d", "--json").json["items"]] == ["order-1"]


def test_pages(run: Run, store: Path) -> None:
    names: list[str] = []
    after: list[str] = []
    for _ in range(3):
        result = run("workflows", store, "--limit", "1", "--json", *after)
        names += [item["name"] for item in result.json["items"]]
        after = ["--after", result.json["after"]]
    assert names == ["order-1", "order-2", "refund-1"]
    assert run("workflows", store, "--json", *after).json == {"items": [], "after": None}
    result = run("workflows", store, "--limit", "1")
    assert len(result.out.splitlines()) == 2
    assert re.fullmatch(r"wfe-sql: there may be more: --after \S+,w1\n", result.err)


def test_lists(run: Run, store: Path) -> None:
    out = run("errors", store, "--workflow", "order-1").out
    assert re.search(r"^\d{4}-\d\d-\d\d \S+  order-1   ship  no carrier$", out, re.MULTILINE)
    (error,) = run("errors", store, "--json").json["items"]
    assert (error["workflow_name"], error["step_name"], error["message"]) == ("order-1", "ship", "no\n  carrier")
    assert run("errors", store, "--workflow", "order-2", "--json").json["items"] == []
    assert run("errors", store, "--workflow", "nothing").code == 1
    assert '  yes        {"parcel":7}' in run("events", store).out
    assert run("events", store, "--unprocessed", "--json").json["items"] == []
    assert run("commands", store).out.splitlines()[1].split() == ["2096-10-02", "07:06:40", "ProcessWorkflow", "w1"]
    assert run("commands", store, "--json").json["items"][0]["data"] == "w1"


def test_check(run: Run, store: Path) -> None:
    assert run("check", store).out == f"nothing is wrong with {store}\n"
    assert run("check", store, "--json").json == []
    with closing(sqlite3.connect(store)) as by_hand, by_hand:
        by_hand.execute("UPDATE workflows SET status = 'Finished' WHERE id = 'w1'")
    result = run("check", store)
    assert (result.code, result.err) == (1, "")
    assert "unreadable: workflows.status of id 'w1' cannot be read: 'Finished' is not a valid" in result.out
    result = run("check", store, "--json")
    assert (result.code, [finding["kind"] for finding in result.json]) == (1, ["unreadable"])
    result = run("show", store, "order-1")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("wfe-sql: workflows.status of id 'w1' cannot be read")


HOSTILE = "x\x1b]0;mine\x07\x1b[2J\x9b1mA\rB\nC\u202eD\u2066E\u200fF\u2028G\x7f[red]H[/] :smile:"
HARMLESS = r"x\x1b]0;mine\x07\x1b[2J\x9b1mA\rB\nC\u202eD\u2066E\u200fF\u2028G\x7f[red]H[/] :smile:"


def _hostile_order() -> WorkflowInstance:
    begin = utc_now() - timedelta(minutes=10)
    names: dict[str, Any] = {"event_name": HOSTILE, "event_key": HOSTILE, "step_name": HOSTILE}
    pointers = [
        ExecutionPointer(id=HOSTILE, step_id=0, status=PointerStatus.WaitingForEvent, start_time=begin, **names),
        ExecutionPointer(id="p2", step_id=1, scope=[HOSTILE]),
    ]
    return sample_instance(
        id=f"id {HOSTILE}",
        name=HOSTILE,
        workflow_definition_id=HOSTILE,
        root_workflow_id=HOSTILE,
        description=HOSTILE,
        reference=HOSTILE,
        data={HOSTILE: HOSTILE},
        execution_pointers=pointers,
        create_time=begin,
        next_execution=0,
    )


@pytest.fixture(scope="module")
def filled_with_hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hostile") / "hostile.db"
    order = _hostile_order()

    async def fill(provider: SqlitePersistenceProvider) -> None:
        await provider.create_new_workflow(order)
        await provider.claim_runnable_instances(utc_now(), HOSTILE, lease=timedelta(days=1), limit=1)
        error = ExecutionError(workflow_id=order.id, execution_pointer_id=HOSTILE, message=HOSTILE)
        orphan = ExecutionError(workflow_id=HOSTILE, execution_pointer_id=HOSTILE, message=HOSTILE)
        await provider.persist_errors([error, orphan])
        names = {"event_name": HOSTILE, "event_key": HOSTILE}
        held = {"external_worker_id": HOSTILE, "external_token": HOSTILE}
        await provider.create_event_subscription(
            full_subscription(id=HOSTILE, workflow_id=order.id, execution_pointer_id=HOSTILE, **names, **held)
        )
        await provider.create_event(full_event(id=HOSTILE, event_data={HOSTILE: HOSTILE}, **names))
        await provider.schedule_command(ScheduledCommand.process_workflow(HOSTILE, 5))

    _do(file, fill)
    with closing(sqlite3.connect(file)) as by_hand, by_hand:
        by_hand.execute("UPDATE scheduled_commands SET claim_worker_id = ?, claim_expires_at = '2026-01-01'", [HOSTILE])
    return file


@pytest.fixture
def hostile(filled_with_hostile: Path, tmp_path: Path) -> Path:
    """A store in which every free text has characters that a terminal would obey."""
    return Path(shutil.copy(filled_with_hostile, tmp_path))


@pytest.mark.parametrize(
    "terminal", [{}, {"FORCE_COLOR": "1", "COLUMNS": "900", "TERM": "xterm-256color"}], ids=["pipe", "terminal"]
)
@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["show", "{}", HOSTILE],
            ["show", "{}", HOSTILE + "?"],
            ["workflows", "{}"],
            ["workflows", "{}", "--limit", "1"],
        ),
        *(["errors", "{}"], ["errors", "{}", "--limit", "1"], ["events", "{}"], ["commands", "{}"], ["stats", "{}"]),
        *(["check", "{}"], ["suspend", "{}", HOSTILE], ["suspend", "{}", HOSTILE, "--yes"]),
        *(["resume", "{}", HOSTILE, "--yes"], ["workflows", "{}", "--after", HOSTILE], ["explain", "{}"]),
        *(["purge", "{}", "--status", "Complete", "--older-than", HOSTILE], ["copy", "{}", f"{HOSTILE}/copy.db"]),
    ],
    ids=lambda arguments: " ".join(arguments).replace(HOSTILE, "x"),
)
def test_what_is_stored_is_shown_and_never_obeyed(
    run: Run, hostile: Path, arguments: list[str], terminal: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile.parent)
    result = run(*(hostile.name if part == "{}" else part for part in arguments), **terminal)
    shown = ANSI.sub("", result.out + result.err)
    assert not [part for part in shown if not part.isprintable() and part != "\n"]
    if arguments[0] not in ("commands", "explain", "purge", "copy") and "--after" not in arguments:
        assert HARMLESS.partition("]0")[0] in shown
        assert "[red]H[/] :smile:" in shown


def test_what_machines_read_stays_exact(run: Run, hostile: Path) -> None:
    order = run("show", hostile, HOSTILE, "--json").json["workflow"]
    assert (order["name"], order["data"]) == (HOSTILE, {HOSTILE: HOSTILE})
    assert run("workflows", hostile, "--json").json["items"][0]["name"] == HOSTILE
    assert run("stats", hostile, "--json").json["workflows"][0]["workflow_definition_id"] == HOSTILE
    rows = [json.loads(line)["row"] for line in run("dump", hostile).out.split("\n") if line]
    assert [row["name"] for row in rows if "name" in row] == [HOSTILE]


# show


def test_show_on_a_pipe(run: Run, store: Path) -> None:
    result = run("show", store, "order-1")
    assert result.code == 0
    assert result.out.isascii()
    lines = result.out.splitlines()
    assert lines[0] == "order-1  Runnable  order version 1"
    steps = [line for line in lines if re.match(r"[|`]", line)]
    assert [re.split(r"  +(?=[A-Z])", step)[0] for step in steps] == [
        "|- 0 reserve",
        "|- 1 prepare",
        "|  |- 2 pay",
        "|  `- 3 ship",
        "`- 4 close",
    ]
    bars = [match[0] for step in steps if (match := re.search(r"[#.-]{8,}", step))]
    assert len({len(bar) for bar in bars}) == 1
    tenth = len(bars[0]) / 10
    for bar, mark, begin, end in zip(bars, "###-.", (0, 1, 1, 4, 0), (1, 10, 4, 10, 10), strict=True):
        assert abs(bar.index(mark) - begin * tenth) <= 1
        assert abs(bar.rindex(mark) + 1 - end * tenth) <= 1
    assert steps[3].endswith("6 min  2 retries, for shipped order-1")
    assert any(line.endswith("  ship: no carrier") for line in lines)
    assert re.search(r"shipped order-1, since .*: held by host-7 until in 3 h", result.out)
    assert run("show", store, "w1").out.splitlines()[0] == lines[0]


@pytest.mark.parametrize("width", [80, pytest.param(160, marks=pytest.mark.slow)])
@pytest.mark.parametrize("colour", [{"NO_COLOR": "1"}, {}])
@pytest.mark.parametrize("arguments", [["show", "order-1"], ["stats"], ["workflows"], ["errors"], ["events"]])
def test_on_a_terminal(run: Run, store: Path, width: int, colour: dict[str, str], arguments: list[str]) -> None:
    name, *rest = arguments
    environment = {"FORCE_COLOR": "1", "COLUMNS": str(width), "TERM": "xterm-256color", **colour}
    out = run(name, store, *rest, **environment).out
    plain = ANSI.sub("", out)
    assert max(map(len, plain.splitlines())) <= width
    if name != "stats":
        assert len(plain.splitlines()) == len(run(name, store, *rest).out.splitlines())  # cut, not wrapped
    else:
        assert re.search(r"^refund +0 +1 +0 +0 +1 +91 d +91 d$", plain, re.MULTILINE)
    assert ("\x1b[3" in out) == (not colour and name in ("show", "workflows"))
    if name == "show":
        bars = [match for line in plain.splitlines() if (match := re.search(r"[█░·]{8,}", line))]
        assert len(bars) == 5
        assert all(len(bar[0]) >= width / 5 for bar in bars)
        assert "├─ 1 prepare" in plain
        assert "│  └─ 3 ship" in plain


def test_a_long_message_is_not_cut(run: Run, store: Path) -> None:
    message = " ".join(f"word{number}" for number in range(100))
    error = ExecutionError(workflow_id="w1", execution_pointer_id="p3", message=message)
    _do(store, lambda provider: provider.persist_errors([error]))
    out = ANSI.sub("", run("errors", store, FORCE_COLOR="1", COLUMNS="80", TERM="xterm-256color").out)
    assert max(map(len, out.splitlines())) <= 80
    assert message in " ".join(out.split())
    assert message in run("errors", store).out


def test_show_lists_children(run: Run, store: Path) -> None:
    async def add(provider: SqlitePersistenceProvider) -> None:
        for number in range(21):
            at = LONG_AGO + timedelta(seconds=number)
            child = sample_instance(id=f"c{number}", name=f"child-{number}", root_workflow_id="w3", create_time=at)
            await provider.create_new_workflow(child)

    _do(store, add)
    out = run("show", store, "refund-1").out
    assert "\nthe newest 20 children\n  child-20  Runnable  order, 90 d ago\n  child-19  " in out
    assert "child-0 " not in out
    shown = run("show", store, "refund-1", "--json").json["children"]
    listed = run("workflows", store, "--root", "refund-1", "--json").json["items"]
    assert (len(listed), listed[:20]) == (21, shown)
    assert "children" not in run("show", store, "order-1").out


def test_show_as_json(run: Run, store: Path) -> None:
    found = run("show", store, "order-1", "--json").json
    assert found["workflow"]["execution_pointers"][3]["event_name"] == "shipped"
    assert [error["message"] for error in found["errors"]] == ["no\n  carrier"]
    assert found["subscriptions"][0]["terminated"] is False


def test_show_of_nothing(run: Run, store: Path) -> None:
    result = run("show", store, "order-9")
    assert (result.code, result.out) == (1, "")
    assert result.err == "wfe-sql: no workflow has the name or id 'order-9'\n"


def test_scopes_that_go_round_in_a_circle_are_shown(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "wfe.db"
    pointers = [
        ExecutionPointer(id="a", step_id=0, scope=["b"]),
        ExecutionPointer(id="b", step_id=1, scope=["a"]),
        ExecutionPointer(id="c", step_id=2, scope=["gone", "c"]),
    ]
    _do(file, lambda provider: provider.create_new_workflow(sample_instance(name="odd", execution_pointers=pointers)))
    out = run("show", file, "odd").out
    assert [out.count(f"step {number} ") for number in range(3)] == [1, 1, 1]


# changing


def test_suspend_resume_terminate(run: Run, store: Path) -> None:
    def load() -> WorkflowInstance:
        found: WorkflowInstance = _do(store, lambda provider: provider.get_workflow_instance("w1"))
        return found

    assert run("suspend", store, "order-1", "--yes").out == "order-1 is Suspended; it was Runnable\n"
    assert (load().status, load().next_execution) == (WorkflowStatus.Suspended, None)
    before = int(utc_now().timestamp() * 1000)
    assert run("resume", store, "w1", "--yes", "--json").json == {
        "id": "w1",
        "name": "order-1",
        "status": "Runnable",
        "before": "Suspended",
    }
    assert load().status is WorkflowStatus.Runnable
    assert before <= (load().next_execution or 0) <= before + 60_000
    assert run("terminate", store, "order-1", "--yes").code == 0
    ended = load()
    assert ended.status is WorkflowStatus.Terminated
    assert ended.complete_time is not None
    assert timedelta(0) <= utc_now() - ended.complete_time < timedelta(minutes=1)
    assert [pointer.status for pointer in ended.execution_pointers] == [p.status for p in _order().execution_pointers]
    for verb, what in (("suspend", "Runnable"), ("resume", "Suspended"), ("terminate", "Runnable or Suspended")):
        result = run(verb, store, "order-1", "--yes")
        assert (result.code, result.out) == (1, "")
        assert result.err == f"wfe-sql: order-1 is Terminated; to {verb} it, it must be {what}\n"
    assert load() == ended


def test_a_due_time_stays(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "wfe.db"
    _do(file, lambda provider: provider.create_new_workflow(sample_instance(id="w", next_execution=7)))
    for verb in ("suspend", "resume", "suspend", "terminate"):
        assert run(verb, file, "w", "--yes").code == 0
        assert _do(file, lambda provider: provider.get_workflow_instance("w")).next_execution == 7


def test_it_asks(run: Run, store: Path) -> None:
    result = run("suspend", store, "order-1", typed="n\n")
    assert (result.code, result.out) == (1, "")
    assert "Suspend order-1, which is Runnable? [y/N]" in result.err
    assert run("suspend", store, "order-1", typed="").code == 1
    assert run("workflows", store, "--status", "Suspended", "--json").json["items"][0]["name"] == "refund-1"
    assert run("suspend", store, "order-1", typed="y\n").code == 0


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["publish", "{}", "paid", "k1"], "Publish paid k1 with null?"),
        (["suspend", "{}", "order-1"], "Suspend order-1, which is Runnable?"),
        (["resume", "{}", "refund-1"], "Resume refund-1, which is Suspended?"),
        (["terminate", "{}", "order-1"], "Terminate order-1, which is Runnable?"),
        (["purge", "{}", "--status", "Complete", "--older-than", "1d"], "Delete 1 workflows, Complete before "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_without_a_terminal_it_wants_yes(run: Run, store: Path, arguments: list[str], question: str) -> None:
    before = run("dump", store).out
    result = run(*(argument.replace("{}", str(store)) for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert question in " ".join(result.err.split())
    assert "There is no terminal to answer on; add --yes to go ahead." in " ".join(result.err.split())
    assert run("dump", store).out == before


def test_a_change_by_somebody_else_is_not_written_over(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = SqlitePersistenceProvider.get_workflow_instance_by_name

    async def load_just_before_a_host_stores(self: SqlitePersistenceProvider, name: str) -> WorkflowInstance:
        found = await load(self, name)
        with closing(sqlite3.connect(store)) as by_hand, by_hand:
            by_hand.execute("UPDATE workflows SET data = '\"theirs\"' WHERE name = ?", [name])
        return found

    monkeypatch.setattr(SqlitePersistenceProvider, "get_workflow_instance_by_name", load_just_before_a_host_stores)
    assert run("suspend", store, "order-1", "--yes").code == 0
    stored = _do(store, lambda provider: provider.get_workflow_instance("w1"))
    assert (stored.status, stored.data) == (WorkflowStatus.Suspended, "theirs")


def test_publish(run: Run, store: Path) -> None:
    id_ = run("publish", store, "shipped", "order-1", "--data", '{"parcel": [7]}', "--yes", "--json").json["id"]
    event = _do(store, lambda provider: provider.get_event(id_))
    assert (event.event_name, event.event_key, event.event_data) == ("shipped", "order-1", {"parcel": [7]})
    assert not event.is_processed
    assert run("publish", store, "shipped", "order-1", typed="y\n").out.endswith(" is stored\n")


# the store as a whole


def test_init(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "wfe.db"
    assert run("init", file).out == f"{file} is ready\n"
    with closing(sqlite3.connect(file)) as by_hand, by_hand:
        by_hand.execute("DROP INDEX idx_workflows_finished")
    assert run("check", file).code == 1
    assert run("init", file, "--json").json == {"url": str(file)}
    assert run("check", file).code == 0


def test_purge(run: Run, store: Path) -> None:
    purge = ("purge", store, "--status", "Complete", "--older-than")
    assert run(*purge, "89d", "--dry-run").out == "1 workflows would be deleted\n"
    assert run(*purge, "91d", "--yes").out == "0 workflows deleted\n"
    result = run(*purge, "89d", typed="n\n")
    assert (result.code, result.out) == (1, "")
    assert "Delete 1 workflows, Complete before " in result.err
    result = run(*purge, "89d", "--events", "--yes", "--json")
    assert result.json == {"workflows": 1, "events": 1, "dry_run": False}
    assert result.err == ""
    assert [item["name"] for item in run("workflows", store, "--json").json["items"]] == ["order-1", "refund-1"]


def test_purge_of_orphaned_errors(run: Run, store: Path) -> None:
    orphan = ExecutionError(workflow_id="gone", execution_pointer_id="p", message="left", error_time=LONG_AGO)
    _do(store, lambda provider: provider.persist_errors([orphan]))
    assert "orphan: execution_errors.workflow_id" in run("check", store).out
    purge = ("purge", store, "--status", "Terminated", "--older-than", "1d", "--orphaned-errors")
    assert run(*purge, "--dry-run").out == "0 workflows and 1 orphaned errors would be deleted\n"
    assert run(*purge, "--yes", "--json").json == {"workflows": 0, "orphaned_errors": 1, "dry_run": False}
    assert [item["message"] for item in run("errors", store, "--json").json["items"]] == ["no\n  carrier"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "umask", "expected"),
    [(0o600, 0, 0o600), (0o400, 0o022, 0o600), (0o640, 0o022, 0o640)],
)
def test_a_copy_is_for_the_same_people(store: Path, tmp_path: Path, mode: int, umask: int, expected: int) -> None:
    """From the moment the file appears, with the files next to it."""
    store.chmod(mode)
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    seen: Counter[int] = Counter()
    command = [sys.executable, "-m", "wfe_sql.cli", "copy", str(store), str(copy)]
    with subprocess.Popen(command, umask=umask, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for file in copy.parent.iterdir():
                with suppress(FileNotFoundError):
                    seen[stat.S_IMODE(file.stat().st_mode)] += 1
    assert process.returncode == 0
    assert set(seen) == {stat.S_IMODE(copy.stat().st_mode)} == {expected}


def test_a_copy_into_a_file_that_is_there_leaves_its_permissions(run: Run, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert run("init", copy).code == 0
    copy.chmod(0o660)
    store.chmod(0o600)
    assert run("copy", store, copy).code == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o660
    assert run("copy", store, tmp_path / "no folder" / "copy.db").code == 1
    assert run("copy", tmp_path / "nothing.db", tmp_path / "new.db").code == 1
    assert not (tmp_path / "new.db").exists()


def test_dump_backup_copy(run: Run, store: Path, tmp_path: Path) -> None:
    lines = run("dump", store).out.splitlines()
    assert sum(json.loads(line)["table"] == "execution_pointers" for line in lines) == 7
    digest = run("dump", store, "--digest").out
    backup, copy = tmp_path / "backup.db", tmp_path / "copy.db"
    assert run("backup", store, backup, "--json").json == {"file": str(backup), "size_bytes": backup.stat().st_size}
    assert run("backup", store, backup).code == 1
    assert run("copy", store, copy, "--json").json["digest"] == digest.strip()
    for other in (backup, copy):
        assert run("dump", other, "--digest").out == digest
    result = run("copy", store, copy)
    assert (result.code, result.out) == (1, "")
    assert "the destination is not empty (3 workflows" in result.err
    assert run("copy", store, tmp_path / "another.db").out.endswith(f"SHA-256 {digest}")


def test_a_copy_that_was_killed(run: Run, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert run("copy", store, copy).code == 0
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE wfe_sql_store SET version = 2147483647")
    assert "unfinished copy: a copy into it was started but not finished" in run("check", copy).out
    result = run("stats", copy)
    assert (result.code, result.out) == (1, "")
    assert "copy into it again, which starts over (wfe-sql copy), or delete it" in result.err
    assert run("copy", store, copy).code == 0
    assert run("dump", copy, "--digest").out == run("dump", store, "--digest").out


def test_how_to_restore_a_backup(run: Run, store: Path, tmp_path: Path) -> None:
    backup, digest = tmp_path / "backup.db", run("dump", store, "--digest").out
    assert run("backup", store, backup).code == 0
    assert "move wfe.db, wfe.db-wal and wfe.db-shm away" in " ".join(run("backup", "--help").out.split())
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DELETE FROM workflows")
        connection.commit()
        (tmp_path / "aside").mkdir()
        for file in store.parent.glob(f"{store.name}*"):
            file.rename(tmp_path / "aside" / file.name)
        shutil.copy(backup, store)
    assert run("dump", store, "--digest").out == digest


@pytest.mark.slow
def test_a_reader_of_a_pipe_may_leave(store: Path) -> None:
    dump = f"{sys.executable} -m wfe_sql.cli dump {store} | head -n 1"
    result = subprocess.run(["bash", "-c", dump], capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


@pytest.mark.parametrize("by", ["option", "environment"])
def test_tuned_queries_are_used(run: Run, store: Path, tmp_path: Path, by: str) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "mine.sql").write_text(
        "-- name: count_rows()\n-- Only one.\n-- used by: stats\n-- scan: all\n"
        "SELECT 'tuned' AS table_name, count(*) AS row_count FROM workflows;\n"
    )
    more: dict[str, str] = {"WFE_SQL_DIR": str(tuned)} if by == "environment" else {}
    options = ["--sql-dir", str(tuned)] if by == "option" else []
    assert run("stats", store, "--json", *options, **more).json["rows"] == {"tuned": 3}


def test_what_only_reads_changes_nothing(run: Run, store: Path) -> None:
    before = store.read_bytes()
    for name in ("stats", "workflows", "errors", "events", "commands", "check", "dump"):
        assert run(name, store).code == 0
    assert run("purge", store, "--status", "Complete", "--older-than", "1d", "--dry-run").code == 0
    assert store.read_bytes() == before
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("postgresql://wfe:s3cr@t@db/wfe", "postgresql://wfe:***@db/wfe"),
        ("postgresql://:s3cret@db/wfe?a=1", "postgresql://:***@db/wfe?a=1"),
        ("postgresql://db/wfe?user=w&password=s3cret&a=1", "postgresql://db/wfe?user=w&password=***&a=1"),
        ("postgresql://wfe@db:5432/wfe", "postgresql://wfe@db:5432/wfe"),
        ("sqlite:///tmp/a:b@c.db", "sqlite:///tmp/a:b@c.db"),
        ("/tmp/wfe.db", "/tmp/wfe.db"),
    ],
)
def test_a_password_is_not_printed(url: str, printed: str) -> None:
    assert hide_password(url) == printed


PRINTS = [["dump"], ["stats"], ["workflows", "--json"], ["check"]]


@pytest.mark.slow
@pytest.mark.parametrize("command", PRINTS, ids=" ".join)
def test_output_that_cannot_be_written(tmp_path: Path, command: list[str]) -> None:
    """A full disk is one line; a reader who has left before anything was written is not an error."""
    file = tmp_path / "store.db"
    _do(file, lambda provider: provider.create_new_workflow(_order()))
    wfe_sql = [sys.executable, "-m", "wfe_sql.cli", *command, str(file)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for environment in (buffered, {**buffered, "PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                wfe_sql, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
            )
        assert (ended.returncode, ended.stderr) == (
            1,
            "wfe-sql: the output cannot be written: No space left on device\n",
        )
        read, write = os.pipe()
        os.close(read)
        ended = subprocess.run(wfe_sql, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        os.close(write)
        assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.slow
def test_output_that_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    _do(file, lambda provider: provider.create_new_workflow(_order()))
    command = f"exec {sys.executable} -m wfe_sql.cli stats {file} >&-"
    ended = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
