import inspect
import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

import wfe_sql
from wfe_sql import (
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    MaintenanceRepository,
    PersistenceProvider,
    PointerStatus,
    PostgresPersistenceProvider,
    ScheduledCommand,
    SqlitePersistenceProvider,
    StoreError,
    UnitOfWork,
    WfeError,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_sql.operations.units import SqlUnitOfWork

ROOT = Path(__file__).parents[2]
PROVIDERS = (SqlitePersistenceProvider, PostgresPersistenceProvider)


def public_methods(protocol: type) -> list[str]:
    return [name for name in dir(protocol) if not name.startswith("_")]


@pytest.mark.parametrize(
    ("protocol", "kind", "name"),
    [
        (protocol, kind, name)
        for protocol, kinds in (
            (PersistenceProvider, PROVIDERS),
            (MaintenanceRepository, PROVIDERS),
            (UnitOfWork, [SqlUnitOfWork]),
        )
        for kind in kinds
        for name in public_methods(protocol)
    ],
)
def test_signatures_and_help_are_those_of_the_protocols(protocol: type, kind: type, name: str) -> None:
    promised, kept = getattr(protocol, name), getattr(kind, name)
    if isinstance(promised, property):
        assert isinstance(kept, property)
    else:
        assert inspect.signature(kept) == inspect.signature(promised)
    assert promised.__doc__
    assert inspect.getdoc(kept) == inspect.getdoc(promised)  # what help() and an editor show


def test_the_documents_list_each_method_once_with_its_parameters() -> None:
    listed: dict[str, str | None] = {}
    for document in (ROOT / "README.md", ROOT / "src" / "wfe_sql" / "README.md"):
        (block,) = re.findall(r"```text\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
        for name, _, params in re.findall(r"^  (\w+)(\(([^)]*)\))? {2,}\S", block, re.MULTILINE):
            assert name not in listed, f"{name} is listed twice"
            listed[name] = params
    units = set(public_methods(UnitOfWork)) - set(public_methods(PersistenceProvider))
    assert listed.keys() == units | set(public_methods(SqlitePersistenceProvider))
    for name, params in listed.items():
        method = getattr(UnitOfWork if name in units else SqlitePersistenceProvider, name)
        if isinstance(method, property):
            continue
        words = [word.partition("=")[0] for word in (params or "").split(", ") if word not in ("", "...")]
        takes = {
            f"**{each.name}" if each.kind is each.VAR_KEYWORD else each.name: each
            for each in list(inspect.signature(method).parameters.values())[1:]
        }
        needed = [word for word, each in takes.items() if each.default is each.empty]
        assert words == [word for word in takes if word in words], (
            f"{name}({params}) has other parameters: {list(takes)}"
        )
        assert set(needed) <= set(words), f"{name}({params}) also needs {needed}"


def test_every_public_name_is_exported_once() -> None:
    assert sorted(set(wfe_sql.__all__)) == wfe_sql.__all__
    errors = {kind for kind in vars(wfe_sql.errors).values() if inspect.isclass(kind) and issubclass(kind, WfeError)}
    assert {getattr(wfe_sql, name) for name in wfe_sql.__all__ if name.endswith("Error")} - {ExecutionError} == errors
    assert {kind for kind in errors if issubclass(kind, StoreError)} == {
        kind for kind in errors if kind.__name__.startswith("Store")
    }


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            WorkflowInstance,
            "id name root_workflow_id workflow_definition_id version description reference execution_pointers "
            "next_execution status data create_time complete_time",
        ),
        (
            ExecutionPointer,
            "id step_id active status sleep_until persistence_data start_time end_time event_name event_key "
            "event_published event_data step_name retry_count children context_item predecessor_id outcome scope "
            "extension_attributes",
        ),
        (Event, "id event_name event_key event_data event_time is_processed"),
        (
            EventSubscription,
            "id workflow_id step_id execution_pointer_id event_name event_key subscribe_as_of subscription_data "
            "external_token external_worker_id external_token_expiry",
        ),
        (ScheduledCommand, "command_name data execute_time"),
        (ExecutionError, "error_time workflow_id execution_pointer_id message"),
    ],
)
def test_fields_are_in_the_reference_s_order(model: type, names: str) -> None:
    assert [field.name for field in fields(model)] == names.split()
    assert "__slots__" in vars(model)


def test_defaults() -> None:
    before = datetime.now(UTC)
    one, other = (WorkflowInstance(workflow_definition_id="order", version=1, data={}) for _ in range(2))
    assert one.id != other.id
    assert (one.name, one.next_execution, one.status) == ("", 0, WorkflowStatus.Runnable)
    assert before <= one.create_time <= datetime.now(UTC)
    pointer = ExecutionPointer(step_id=0)
    assert (pointer.active, pointer.status, pointer.retry_count) == (True, PointerStatus.Pending, 0)
    with pytest.raises(TypeError):
        WorkflowInstance("id")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        WorkflowInstance(workflow_definition_id="order", version=1)  # type: ignore[call-arg]


def test_commands() -> None:
    assert ScheduledCommand.process_workflow("w1", 5) == ScheduledCommand(
        command_name=CommandName.ProcessWorkflow, data="w1", execute_time=5
    )
    assert ScheduledCommand.process_event("e1", 5).command_name is CommandName.ProcessEvent


def test_the_words_that_are_stored() -> None:
    assert " ".join(WorkflowStatus) == "Runnable Suspended Complete Terminated"
    assert " ".join(PointerStatus) == (
        "Pending Running Complete Skipped Sleeping WaitingForEvent Failed Compensated Cancelled PendingPredecessor"
    )
    assert " ".join(CommandName) == "ProcessWorkflow ProcessEvent"
