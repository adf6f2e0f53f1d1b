"""Files shared with the published Rust crate, which a small Rust program drives (tests/reference)."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription, sample_instance

pytestmark = pytest.mark.reference

TESTS = Path(__file__).parent.parent
FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)
Document = dict[str, Any]


class Reference:
    """The Rust program."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def write(self, file: Path, **document: Any) -> Document:
        return self._run(("write", file), json.dumps(msgspec.to_builtins(document)))

    def dump(self, file: Path) -> Document:
        return self._run(("dump", file), "")

    def _run(self, arguments: tuple[str | Path, ...], stdin: str) -> Document:
        ended = subprocess.run([self.program, *arguments], input=stdin, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        document: Document = json.loads(ended.stdout)
        return document


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Build the program; minutes on a new machine, nothing the next time."""
    folder = TESTS / "reference"
    subprocess.run(["cargo", "build", "--quiet"], cwd=folder, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", folder / "target"))
    return Reference(target / "debug" / "wfe-sql-reference")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def plain(value: Any) -> Any:
    """A model, or many, as the reference prints it."""
    built = msgspec.to_builtins(value)
    for workflow in built if isinstance(built, list) else [built]:
        if workflow.get("root_workflow_id", "") is None:
            del workflow["root_workflow_id"]
    return built


WORKFLOWS = [
    full_instance(
        id="w0",
        name="full",
        status=WorkflowStatus.Runnable,
        data={"text": "żółć ✓ \0 😀", "big": 2**63, "small": -(2**63), "float": 1.5, "deep": [[{"": None}]]},
        execution_pointers=[
            full_pointer(id=f"p{number}", step_id=number, status=status, event_data={"n": number})
            for number, status in enumerate(PointerStatus)
        ],
    ),
    *(
        sample_instance(id=f"w{number}", name=f"{status}", status=status, next_execution=None, execution_pointers=[])
        for number, status in enumerate(WorkflowStatus, start=1)
    ),
]
EVENTS = [full_event(id="e0", event_data={"n": [1, 2.5]}), full_event(id="e1", is_processed=False, event_data=None)]
SUBSCRIPTIONS = [
    full_subscription(id="s0", subscription_data={"n": 1}),
    EventSubscription(
        id="s1",
        workflow_id="w0",
        step_id=0,
        execution_pointer_id="p0",
        event_name="e",
        event_key="",
        subscribe_as_of=FAR_FUTURE,
    ),
]
ERRORS = [
    ExecutionError(workflow_id="w0", execution_pointer_id=f"p{number}", message=f"boom {number}") for number in range(2)
]
COMMANDS = [ScheduledCommand.process_workflow("w0", 7), ScheduledCommand.process_event("e0", -7)]


async def write(provider: PersistenceProvider) -> None:
    for workflow in WORKFLOWS:
        await provider.create_new_workflow(workflow)
    for event in EVENTS:
        await provider.create_event(event)
    for subscription in SUBSCRIPTIONS:
        await provider.create_event_subscription(subscription)
    await provider.persist_errors(ERRORS)
    for command in COMMANDS:
        await provider.schedule_command(command)
    for _ in range(3):
        await provider.next_definition_sequence("order")


async def assert_is_there(provider: PersistenceProvider) -> None:
    assert await provider.get_workflow_instances([workflow.id for workflow in WORKFLOWS]) == WORKFLOWS
    assert [await provider.get_event(event.id) for event in EVENTS] == EVENTS
    assert [await provider.get_subscription(subscription.id) for subscription in SUBSCRIPTIONS] == SUBSCRIPTIONS
    assert await provider.get_execution_errors() == ERRORS
    handled: list[ScheduledCommand] = []

    async def handler(command: ScheduledCommand) -> None:
        handled.append(command)

    await provider.process_commands(FAR_FUTURE, handler)
    assert handled == COMMANDS[::-1]


async def test_what_python_writes_the_reference_reads(reference: Reference, file: Path) -> None:
    async with connect(file) as provider:
        await write(provider)
    read = reference.dump(file)
    assert read["workflows"] == plain(WORKFLOWS)
    assert read["by_name"] == {workflow.name: workflow.id for workflow in WORKFLOWS}
    assert read["events"] == plain(EVENTS)
    assert read["subscriptions"] == plain(SUBSCRIPTIONS)
    assert read["open_subscriptions"] == ["s0", "s1"]
    assert read["errors"] == plain(ERRORS)
    assert read["commands"] == plain(COMMANDS)
    assert read["sequences"] == {"order": 3}
    assert (read["runnable"], read["runnable_events"]) == (["w0"], ["e1"])


async def test_what_python_changes_the_reference_reads(reference: Reference, file: Path) -> None:
    changed = full_instance(id="w0")
    async with connect(file) as provider:
        await write(provider)
        first = changed.execution_pointers
        await provider.persist_workflow(changed)
        changed.execution_pointers = [first[2], full_pointer(), first[0]]
        changed.data = {"changed": True}
        await provider.persist_workflow_with_subscriptions(
            changed, [full_subscription(id="s2", subscription_data=None)]
        )
        await provider.mark_event_processed("e1")
        await provider.terminate_subscription("s0")
        assert await provider.set_subscription_token("s1", "token", "worker", FAR_FUTURE)
    read = reference.dump(file)
    assert read["workflows"][0] == plain(changed)
    assert read["runnable_events"] == []
    assert read["open_subscriptions"] == ["s1", "s2"]
    assert [subscription["external_token"] for subscription in read["subscriptions"]] == ["token", "token", "token"]


async def test_what_the_reference_writes_python_reads(reference: Reference, file: Path) -> None:
    drawn = reference.write(
        file,
        workflows=WORKFLOWS,
        events=EVENTS,
        subscriptions=SUBSCRIPTIONS,
        errors=ERRORS,
        commands=COMMANDS,
        sequences={"order": 3},
    )
    assert drawn == {"order": [1, 2, 3]}
    async with connect(file) as provider:
        await assert_is_there(provider)
        assert await provider.next_definition_sequence("order") == 4


async def test_nanoseconds_are_cut(reference: Reference, file: Path) -> None:
    event = plain(full_event(id="e0", is_processed=False)) | {"event_time": "2026-05-28T20:26:40.123456999Z"}
    reference.write(file, events=[event])
    async with connect(file) as provider:
        time = (await provider.get_event("e0")).event_time
        assert time == datetime(2026, 5, 28, 20, 26, 40, 123456, UTC)
        assert await provider.get_runnable_events(time) == ["e0"]
        assert await provider.get_runnable_events(time - timedelta(microseconds=1)) == []
    assert reference.dump(file)["events"] == [event]


async def test_what_the_reference_changes_in_between(reference: Reference, file: Path) -> None:
    async with connect(file) as provider:
        await write(provider)
        ours = await provider.get_workflow_instance("w0")
        theirs = full_instance(id="w0", name="theirs", execution_pointers=[full_pointer(), ExecutionPointer(step_id=1)])
        reference.write(file, persist=[{"workflow": theirs}], processed_events=["e1"], terminate=["s0"])
        theirs.create_time = ours.create_time
        assert await provider.get_workflow_instance("w0") == theirs
        assert await provider.get_workflow_instance_by_name("theirs") == theirs
        assert await provider.get_runnable_events(FAR_FUTURE) == []
        ours.name = "ours again"
        await provider.persist_workflow(ours)
        assert await provider.get_workflow_instance("w0") == ours
    assert reference.dump(file)["workflows"][0] == plain(ours)


@pytest.mark.parametrize("version", ["1.0.0", "1.11.4"])
async def test_a_file_that_python_brought_up_to_date_opens_in_the_reference(
    reference: Reference, file: Path, version: str
) -> None:
    shutil.copy(TESTS / "data" / f"wfe-sqlite-{version}.db", file)
    async with connect(file) as provider:
        stored = await provider.get_workflow_instances(await provider.get_runnable_instances(FAR_FUTURE))
        added = full_instance(id="added")
        await provider.create_new_workflow(added)
    read = {
        workflow["id"]: msgspec.convert(workflow, WorkflowInstance) for workflow in reference.dump(file)["workflows"]
    }
    assert [read[instance.id] for instance in [*stored, added]] == [*stored, added]
    reference.write(file, workflows=[sample_instance(id="theirs")], sequences={"order": 1})
    async with connect(file) as provider:
        assert (await provider.get_workflow_instance("theirs")).id == "theirs"
        assert await provider.get_workflow_instance("added") == added


async def test_three_processes_in_two_languages_on_one_file(reference: Reference, file: Path) -> None:
    shared = [f"shared-{number}" for number in range(5)]
    async with connect(file) as provider:
        for id_ in shared:
            await provider.create_event_subscription(
                EventSubscription(
                    id=id_,
                    workflow_id="w",
                    step_id=0,
                    execution_pointer_id="p",
                    event_name="shared",
                    event_key="",
                    subscribe_as_of=FAR_FUTURE,
                )
            )
    ids = ",".join(shared)
    rust: list[str | Path] = [
        reference.program,
        "load",
        file,
        "--worker",
        "rust",
        "--operations",
        "150",
        "--shared",
        ids,
    ]
    load = TESTS / "reference" / "load.py"
    python: list[list[str | Path]] = [[sys.executable, load, file, worker, "300", ids] for worker in ("one", "two")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in (rust, *python)]
    lines = [json.loads(line) for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    rounds = [line for line in lines if "sequence" in line]
    assert len(rounds) == 750
    assert sorted(line["sequence"] for line in rounds) == list(range(1, 751))

    async with connect(file) as provider:
        for line in rounds:
            workflow = await provider.get_workflow_instance(line["workflow_id"])
            assert workflow.name == f"load-{line['sequence']}"
            assert workflow.data == {"worker": line["worker"], "round": line["round"], "step": 1}
            assert [pointer.retry_count for pointer in workflow.execution_pointers] == [1, 0]
            event: Event = await provider.get_event(line["event_id"])
            assert event.is_processed
            assert event.event_data == {"worker": line["worker"], "round": line["round"]}
            (subscription,) = await provider.get_subscriptions("load", workflow.id, FAR_FUTURE)
            assert subscription.id == line["subscription_id"]
        winners = {token: f"{line['worker']}-{line['round']}" for line in rounds for token in line["tokens"]}
        assert sum(len(line["tokens"]) for line in rounds) == len(winners) == len(shared)
        for id_ in shared:
            assert (await provider.get_subscription(id_)).external_token == winners[id_]
