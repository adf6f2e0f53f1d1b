"""Stores shared with the published Rust crates, through a small Rust program (tests/reference)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from wfe_sql import (
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    PostgresPersistenceProvider,
    ScheduledCommand,
    SubscriptionNotFoundError,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, full_instance, full_pointer, full_subscription, sample_instance

pytestmark = pytest.mark.reference

TESTS = Path(__file__).parent.parent
FAR_FUTURE = datetime(9999, 12, 31, tzinfo=UTC)
Document = dict[str, Any]
Connect = Callable[..., SqlPersistenceProvider]
Catalog = Callable[[str], set[tuple[str, ...]]]

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"])
ON_POSTGRES = pytest.mark.parametrize("backend", ["postgres"])


class Reference:
    """The Rust program on the test's store.

    Attributes:
        program: The executable.
        address: The store, as the program takes it.
        on_sqlite: The crates differ. That of PostgreSQL returns a workflow's pointers in no order, takes a subscription
            that has a token for closed, and deletes one that it terminates.
    """

    def __init__(self, program: Path, address: str, *, on_sqlite: bool) -> None:
        self.program = program
        self.address = address
        self.on_sqlite = on_sqlite

    def write(self, **document: Any) -> Document:
        return self._run("write", json.dumps(msgspec.to_builtins(document)))

    def dump(self) -> Document:
        read = self._run("dump", "")
        self._arrange(read["workflows"])
        return read

    def run(self) -> list[str]:
        """Run the workflows that are due to their end with its engine; return their ids."""
        return [json.loads(line) for line in self._call("run", "").splitlines()]

    def plain(self, value: Any) -> Any:
        """One or more models, in the form of `dump`."""
        built = msgspec.to_builtins(value)
        models = built if isinstance(built, list) else [built]
        for model in models:
            model.pop("_stored", None)  # what the instance remembers
            if model.get("root_workflow_id", "") is None:
                del model["root_workflow_id"]
        self._arrange(models)
        return built

    def _arrange(self, models: list[Document]) -> None:
        for model in models:
            if not self.on_sqlite and "execution_pointers" in model:
                model["execution_pointers"].sort(key=lambda pointer: str(pointer["id"]))

    def _run(self, command: str, stdin: str) -> Document:
        document: Document = json.loads(self._call(command, stdin))
        return document

    def _call(self, command: str, stdin: str) -> str:
        arguments: list[str | Path] = [self.program, command, self.address]
        ended = subprocess.run(arguments, input=stdin, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="session")
def program() -> Path:
    """Build the program; minutes on a new machine, nothing the next time."""
    folder = TESTS / "reference"
    subprocess.run(["cargo", "build", "--quiet"], cwd=folder, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", folder / "target"))
    return target / "debug" / "wfe-sql-reference"


@pytest.fixture
def reference(program: Path, store: Path | str, request: pytest.FixtureRequest) -> Reference:
    """The program on the test's store."""
    is_file = isinstance(store, Path)
    address = str(store) if is_file else f"{request.getfixturevalue('postgres_url')}#{store}"
    return Reference(program, address, on_sqlite=is_file)


WORKFLOWS = [
    full_instance(
        id="w0",
        name="full",
        status=WorkflowStatus.Runnable,
        data={"text": "żółć ✓ 😀", "big": 2**63, "small": -(2**63), "float": 1.5, "deep": [[{"": None}]]},
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


async def test_what_python_writes_the_reference_reads(reference: Reference, connect_store: Connect) -> None:
    async with connect_store() as provider:
        await write(provider)
    read = reference.dump()
    assert read["workflows"] == reference.plain(WORKFLOWS)
    assert read["by_name"] == {workflow.name: workflow.id for workflow in WORKFLOWS}
    assert read["events"] == reference.plain(EVENTS)
    assert read["subscriptions"] == reference.plain(SUBSCRIPTIONS)
    assert read["open_subscriptions"] == (["s0", "s1"] if reference.on_sqlite else ["s1"])
    assert read["errors"] == reference.plain(ERRORS)
    assert read["commands"] == reference.plain(COMMANDS)
    assert read["sequences"] == {"order": 3}
    assert (read["runnable"], read["runnable_events"]) == (["w0"], ["e1"])


async def test_what_python_changes_the_reference_reads(reference: Reference, connect_store: Connect) -> None:
    changed = full_instance(id="w0")
    async with connect_store() as provider:
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
    read = reference.dump()
    assert read["workflows"][0] == reference.plain(changed)
    assert read["runnable_events"] == []
    assert read["open_subscriptions"] == (["s1", "s2"] if reference.on_sqlite else [])
    assert [subscription["external_token"] for subscription in read["subscriptions"]] == ["token", "token", "token"]


async def test_what_the_reference_writes_python_reads(reference: Reference, connect_store: Connect) -> None:
    drawn = reference.write(
        workflows=WORKFLOWS,
        events=EVENTS,
        subscriptions=SUBSCRIPTIONS,
        errors=ERRORS,
        commands=COMMANDS,
        sequences={"order": 3},
    )
    assert drawn == {"order": [1, 2, 3]}
    async with connect_store() as provider:
        await assert_is_there(provider)
        assert await provider.next_definition_sequence("order") == 4


async def test_its_engine_runs_workflows_whose_ids_are_the_models_own(
    reference: Reference, connect_store: Connect
) -> None:
    """Ours are UUIDv7, its own UUIDv4."""
    workflows = [
        WorkflowInstance(
            workflow_definition_id="order", version=1, data={}, execution_pointers=[ExecutionPointer(step_id=0)]
        )
        for _ in range(5)
    ]
    ids = [workflow.id for workflow in workflows]
    async with connect_store() as provider:
        for workflow in workflows:
            await provider.create_new_workflow(workflow)
        assert reference.run() == ids
        for ran in await provider.get_workflow_instances(ids):
            assert ran.status == WorkflowStatus.Complete
            first, *others = [pointer.id for pointer in ran.execution_pointers]
            assert [UUID(first).version, *(UUID(id_).version for id_ in others)] == [7, 4, 4]


async def test_pointers_stay_in_the_order_in_which_either_wrote_them(
    reference: Reference, connect_store: Connect
) -> None:
    pointers = [ExecutionPointer(id=f"p{number}", step_id=number) for number in (3, 1, 4, 0, 2)]
    workflow = sample_instance(id="w0", execution_pointers=pointers)
    reference.write(workflows=[workflow])
    async with connect_store() as provider:
        ours = await provider.get_workflow_instance("w0")
        assert ours == workflow
        ours.execution_pointers = [*pointers[3:], ExecutionPointer(id="p5", step_id=5), *pointers[:2]]
        await provider.persist_workflow(ours)
        assert await provider.get_workflow_instance("w0") == ours
        workflow.execution_pointers = pointers[::-1]
        reference.write(persist=[{"workflow": workflow}])
        assert await provider.get_workflow_instance("w0") == workflow


async def test_a_free_subscription_that_python_terminated_is_closed_in_the_reference(
    reference: Reference, connect_store: Connect
) -> None:
    subscription = full_subscription(id="s0", external_token=None, external_worker_id=None, external_token_expiry=None)
    token = {"id": "s0", "token": "theirs", "worker_id": "theirs", "expiry": FAR_FUTURE}
    async with connect_store() as provider:
        await provider.create_event_subscription(subscription)
        assert reference.dump()["open_subscriptions"] == ["s0"]
        await provider.terminate_subscription("s0")
        assert reference.dump()["open_subscriptions"] == []
        if not reference.on_sqlite:
            reference.write(tokens=[token])
        assert await provider.get_subscription("s0") == subscription


async def test_a_subscription_that_the_reference_terminated_is_closed(
    reference: Reference, connect_store: Connect
) -> None:
    """On PostgreSQL it is deleted."""
    reference.write(subscriptions=SUBSCRIPTIONS, terminate=["s1"])
    async with connect_store() as provider:
        assert await provider.get_subscriptions("e", "", FAR_FUTURE) == []
        if reference.on_sqlite:
            assert await provider.get_subscription("s1") == SUBSCRIPTIONS[1]
        else:
            with pytest.raises(SubscriptionNotFoundError):
                await provider.get_subscription("s1")


@ON_SQLITE
async def test_the_character_nul_goes_both_ways(reference: Reference, connect_store: Connect) -> None:
    """PostgreSQL has no such character."""
    ours, theirs = (sample_instance(id=id_, data={"text": "a\0b"}) for id_ in ("ours", "theirs"))
    reference.write(workflows=[theirs])
    async with connect_store() as provider:
        await provider.create_new_workflow(ours)
        assert await provider.get_workflow_instance("theirs") == theirs
    assert reference.dump()["workflows"] == reference.plain([ours, theirs])


@ON_SQLITE
async def test_nanoseconds_are_cut(reference: Reference, connect_store: Connect) -> None:
    event = reference.plain(full_event(id="e0", is_processed=False)) | {"event_time": "2026-05-28T20:26:40.123456999Z"}
    reference.write(events=[event])
    async with connect_store() as provider:
        time = (await provider.get_event("e0")).event_time
        assert time == datetime(2026, 5, 28, 20, 26, 40, 123456, UTC)
        assert await provider.get_runnable_events(time) == ["e0"]
        assert await provider.get_runnable_events(time - timedelta(microseconds=1)) == []
    assert reference.dump()["events"] == [event]


async def test_what_the_reference_changes_in_between(reference: Reference, connect_store: Connect) -> None:
    async with connect_store(on_conflict="overwrite") as provider:
        await write(provider)
        ours = await provider.get_workflow_instance("w0")
        theirs = full_instance(id="w0", name="theirs", execution_pointers=[full_pointer(), ExecutionPointer(step_id=1)])
        reference.write(persist=[{"workflow": theirs}], processed_events=["e1"], terminate=["s0"])
        theirs.create_time = ours.create_time
        assert await provider.get_workflow_instance("w0") == theirs
        assert await provider.get_workflow_instance_by_name("theirs") == theirs
        assert await provider.get_runnable_events(FAR_FUTURE) == []
        ours.name = "ours again"
        await provider.persist_workflow(ours)
        assert await provider.get_workflow_instance("w0") == ours
    assert reference.dump()["workflows"][0] == reference.plain(ours)


@pytest.mark.parametrize(
    ("backend", "data"),
    [("sqlite", "wfe-sqlite-1.0.0.db"), ("sqlite", "wfe-sqlite-1.11.4.db"), ("postgres", "wfe-postgres-1.0.0.sql")],
)
async def test_a_store_that_python_brought_up_to_date_opens_in_the_reference(
    reference: Reference,
    connect_store: Connect,
    store: Path | str,
    data: str,
    by_hand: Callable[[str], object],
) -> None:
    if isinstance(store, Path):
        shutil.copy(TESTS / "data" / data, store)
    else:
        by_hand(f"CREATE SCHEMA {store}")
        by_hand((TESTS / "data" / data).read_text())
    async with connect_store() as provider:
        stored = await provider.get_workflow_instances(await provider.get_runnable_instances(FAR_FUTURE))
        added = full_instance(id="added")
        await provider.create_new_workflow(added)
    assert stored
    read = {workflow["id"]: workflow for workflow in reference.dump()["workflows"]}
    expected = [*stored, added]
    workflow: Any = msgspec.defstruct(
        "Workflow", [(field.name, field.type, None) for field in fields(WorkflowInstance)]
    )
    in_its_order = msgspec.convert(reference.plain(expected), list[workflow])
    assert msgspec.convert([read[instance.id] for instance in expected], list[workflow]) == in_its_order
    reference.write(workflows=[sample_instance(id="theirs")], sequences={"order": 1})
    async with connect_store() as provider:
        assert (await provider.get_workflow_instance("theirs")).id == "theirs"
        assert await provider.get_workflow_instance("added") == added


async def test_three_processes_in_two_languages_on_one_store(reference: Reference, connect_store: Connect) -> None:
    shared = [f"shared-{number}" for number in range(5)]
    async with connect_store() as provider:
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
    options = ["--worker", "rust", "--operations", "150", "--shared", ids]
    rust: list[str | Path] = [reference.program, "load", reference.address, *options]
    load = TESTS / "reference" / "load.py"
    python = [[sys.executable, load, reference.address, worker, "300", ids] for worker in ("one", "two")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in (rust, *python)]
    lines = [json.loads(line) for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    rounds = [line for line in lines if "sequence" in line]
    assert len(rounds) == 750
    assert sorted(line["sequence"] for line in rounds) == list(range(1, 751))

    async with connect_store() as provider:
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


# schemas


def without_migrations(catalog: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """All tables except the one in which the reference notes its migrations."""
    return {entry for entry in catalog if entry[1] != "_sqlx_migrations"}


@ON_POSTGRES
async def test_a_schema_of_the_reference_becomes_that_of_a_fresh_store(
    reference: Reference,
    connect_store: Connect,
    store: str,
    postgres_url: str,
    new_schema: Callable[[], str],
    catalog: Catalog,
) -> None:
    reference.dump()
    theirs = without_migrations(catalog(store))
    async with connect_store():
        ours = without_migrations(catalog(store))
    assert {entry for entry in theirs if entry[0] != "collation"} < ours
    fresh = new_schema()
    async with PostgresPersistenceProvider(postgres_url, schema=fresh):
        pass
    assert ours == catalog(fresh)


@ON_POSTGRES
async def test_the_reference_changes_nothing_in_a_schema_of_ours(
    reference: Reference, connect_store: Connect, store: str, catalog: Catalog
) -> None:
    async with connect_store():
        ours = catalog(store)
    reference.dump()
    assert without_migrations(catalog(store)) == ours
