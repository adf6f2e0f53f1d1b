"""What is published, and what a host gets when it installs it."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

HOST = '''\
"""A host that knows nothing but the Protocols."""

import asyncio
import json
import sysconfig
from datetime import UTC, datetime, timedelta

import wfe_sql
from wfe_sql import (
    Event,
    EventRepository,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceProvider,
    ScheduledCommand,
    ScheduledCommandRepository,
    SqlitePersistenceProvider,
    SubscriptionRepository,
    WorkflowInstance,
    WorkflowRepository,
    WorkflowStatus,
)
from wfe_sql.queries import find_sql


class Host:
    def __init__(self, store: PersistenceProvider) -> None:
        self.store = store
        self.handled: list[str] = []

    async def run(self) -> WorkflowInstance:
        now = datetime.now(UTC)
        number: int = await self.store.next_definition_sequence("order")
        workflow = WorkflowInstance(name=f"order-{number}", workflow_definition_id="order", version=1, data={})
        id_: str = await self.store.create_new_workflow(workflow)
        due: list[str] = await self.store.get_runnable_instances(now, limit=10)
        workflow.execution_pointers.append(ExecutionPointer(step_id=0, step_name="pay"))
        waiting = EventSubscription(
            workflow_id=id_,
            step_id=0,
            execution_pointer_id=workflow.execution_pointers[0].id,
            event_name="paid",
            event_key=workflow.name,
            subscribe_as_of=now,
        )
        await self.store.persist_workflow_with_subscriptions(workflow, [waiting])
        event_id: str = await self.store.create_event(Event(event_name="paid", event_key=workflow.name, event_data=1))
        found: EventSubscription | None = await self.store.get_first_open_subscription("paid", workflow.name, now)
        if found is None or not await self.store.set_subscription_token(found.id, "t", "w", now + timedelta(minutes=1)):
            raise RuntimeError("nobody waits")
        await self.store.terminate_subscription(found.id)
        await self.store.mark_event_processed(event_id)
        if self.store.supports_scheduled_commands:
            await self.store.schedule_command(ScheduledCommand.process_workflow(id_, 0))
            await self.store.process_commands(now, self.handle, lease=timedelta(seconds=30))
        await self.store.persist_errors([ExecutionError(workflow_id=id_, execution_pointer_id="p", message="late")])
        workflow.data["paid"] = due == self.handled
        workflow.status = WorkflowStatus.Complete
        await self.store.persist_workflow(workflow)
        return await self.store.get_workflow_instance_by_name(workflow.name)

    async def handle(self, command: ScheduledCommand) -> None:
        self.handled.append(command.data)


def repositories(
    store: PersistenceProvider,
) -> tuple[WorkflowRepository, SubscriptionRepository, EventRepository, ScheduledCommandRepository]:
    return store, store, store, store


async def main() -> None:
    async with SqlitePersistenceProvider("host.db") as provider:
        stored = await Host(provider).run()
    async with wfe_sql.connect("sqlite://host.db") as store:
        read = await repositories(store)[0].get_workflow_instance(stored.id)
    facts = {
        "read": [read.name, read.status, read.data, [pointer.step_name for pointer in read.execution_pointers]],
        "same": read == stored,
        "sql": str(find_sql()),
        "package": wfe_sql.__file__,
        "site-packages": sysconfig.get_path("purelib"),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    asyncio.run(main())
'''

MISTAKES = """

async def mistakes(store: PersistenceProvider) -> None:
    await store.persist_workflow("an id")
    number: str = await store.next_definition_sequence("order")


class Half:
    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        return ""


half: PersistenceProvider = Half()
wfe_sql.connect(":memory:", busy_timout=timedelta(seconds=5))
wfe_sql.connect(":memory:", busy_timeout=5)
SqlitePersistenceProvider(":memory:", retries=5)
"""


def _run(*command: str | Path, cwd: Path, exit_code: int = 0) -> str:
    """Run a command that sees nothing of this process's Python, and return what it printed."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == exit_code, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it, and `direct/` with the wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "direct", ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment in which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("venv")
    _run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    _run(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return python


def _wheel(folder: Path) -> dict[str, bytes]:
    (path,) = folder.glob("wfe_sql-*.whl")
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def _sdist(folder: Path) -> dict[str, bytes]:
    (path,) = folder.glob("wfe_sql-*.tar.gz")
    with tarfile.open(path) as sdist:
        members = {member.name.partition("/")[2]: sdist.extractfile(member) for member in sdist if member.isfile()}
        return {name: file.read() for name, file in members.items() if file is not None}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def _within(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    return {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}


def test_the_sql_is_published_whole(dist: Path) -> None:
    sql = {path.relative_to(ROOT / "sql").as_posix(): path.read_bytes() for path in _files(ROOT / "sql")}
    assert sum(name.endswith(".sql") for name in sql) >= 8
    assert _within(_sdist(dist), "sql/") == sql
    assert _within(_wheel(dist), "wfe_sql/sql/") == sql


def test_the_sdist_has_what_it_takes_to_build_and_test(dist: Path) -> None:
    names = set(_sdist(dist))
    tree = {path.relative_to(ROOT).as_posix() for folder in ("src", "sql", "tests") for path in _files(ROOT / folder)}
    others = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", "PKG-INFO"}
    assert others <= names <= tree | others
    assert {name for name in tree if name.endswith((".py", ".typed", ".sql"))} <= names
    assert "tests/data/wfe-sqlite-1.11.4.db" in names


def test_the_wheel_has_the_package_and_nothing_else(dist: Path) -> None:
    wheel = _wheel(dist)
    package = {path.relative_to(ROOT / "src").as_posix() for path in _files(ROOT / "src")}
    assert "wfe_sql/py.typed" in package
    others = {name for name in wheel if not name.startswith("wfe_sql/sql/")} - package
    assert {PurePosixPath(name).name for name in others} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }
    assert package <= set(wheel)
    assert (ROOT / "LICENSE").read_bytes() in [wheel[name] for name in others if name.endswith("/licenses/LICENSE")]


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_checkout(dist: Path) -> None:
    assert _wheel(dist) == _wheel(dist / "direct")


def test_a_host_runs_on_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(HOST)
    facts = json.loads(_run(python, "-I", "-W", "error", "host.py", cwd=tmp_path))
    assert facts["read"] == ["order-1", "Complete", {"paid": True}, ["pay"]]
    assert facts["same"]
    installed = Path(facts["site-packages"]) / "wfe_sql"
    assert installed.is_relative_to(python.parents[1])
    assert (Path(facts["package"]), Path(facts["sql"])) == (installed / "__init__.py", installed / "sql")
    assert (tmp_path / "host.db").exists()


def test_the_core_installs_only_what_it_declares(dist: Path, python: Path) -> None:
    (metadata,) = (content.decode() for name, content in _wheel(dist).items() if name.endswith("/METADATA"))
    declared = set(re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE))
    assert declared == {"aiosql", "aiosqlite", "msgspec"}
    pip = (python, "-m", "pip", "--disable-pip-version-check")  # it would add a notice to the JSON
    installed = json.loads(_run(*pip, "list", "--format", "json", cwd=python.parent))
    assert {package["name"] for package in installed} - {"pip", "setuptools"} == declared | {"wfe-sql"}


@pytest.mark.parametrize("arguments", [["demo"], ["--help"], []])
def test_the_command_says_what_it_lacks(python: Path, tmp_path: Path, arguments: list[str]) -> None:
    printed = _run(python.with_name("wfe-sql"), *arguments, cwd=tmp_path, exit_code=1)
    assert len(printed.splitlines()) == 1
    assert printed.endswith(f"; run: {python} -m pip install rich typer\n")
    assert list(tmp_path.iterdir()) == []


def test_a_host_is_type_checked_against_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed; it is in the dependency group 'lint'")
    (tmp_path / "host.py").write_text(HOST)
    (tmp_path / "mistaken.py").write_text(HOST + MISTAKES)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python)
    _run(*mypy, "host.py", cwd=tmp_path)
    complaints = _run(*mypy, "mistaken.py", cwd=tmp_path, exit_code=1)
    assert re.findall(r"error: .*\[([\w-]+)\]$", complaints, re.MULTILINE) == [
        *("arg-type", "assignment", "assignment", "call-arg", "arg-type", "arg-type"),
    ]
