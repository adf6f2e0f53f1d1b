"""The other commands in the documents: those that take long run with small numbers, and names and options exist.

The programs of `tests/benchmarks` and `tests/crash` are run by the tests there.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer.main

from commands import run_command
from printed import COMMANDS, ROOT, arguments_of
from property.faults import FAULTS
from servers import with_option
from wfe_sql import WorkflowStatus, connect, epoch_ms
from wfe_sql.cli.root import app
from wfe_sql.testing import full_instance

CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
IN_CI = ["", "-m slow", "--reference -m reference"]
"""The arguments of pytest that only CI runs as they stand."""

SMALL = {
    "-n 0 tests/unit -k times": "",
    "-m exhaustive": "-n 0 tests/acceptance/test_conformance.py -k TestStore",
    "tests/property --operations 200000": "-n 0 --operations 20",
    "-n 0 --durations=10 FILE": "",
}
"""What makes the other runs of pytest small; the last of two equal options counts."""

UPDATE = "-n 0 tests/integration/test_plans.py tests/integration/test_results.py --snapshot-update"
UPDATED = "tests/integration/__snapshots__/test_results.ambr"


def _run(folder: Path, *arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _run_pytest(folder: Path, arguments: str, temporary: Path, **environment: str) -> str:
    options = ("-p", "no:cacheprovider", f"--basetemp={temporary / 'pytest'}")
    return _run(folder, "-m", "pytest", *arguments.split(), *options, **environment)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [each for each in arguments_of("pytest") if each not in (*IN_CI, UPDATE)])
def test_pytest(arguments: str, tmp_path: Path, postgres_url: str) -> None:
    command = f"{arguments} {SMALL[arguments]}".replace("FILE", "tests/unit/test_models.py")
    assert " passed" in _run_pytest(ROOT, command, tmp_path, WFE_SQL_TEST_POSTGRES_URL=postgres_url)


@pytest.mark.slow
def test_snapshots_are_updated(tmp_path: Path) -> None:
    """In a copy, one of whose snapshots is wrong."""
    assert UPDATE in arguments_of("pytest")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "target"))
    snapshots = tmp_path / UPDATED
    right = snapshots.read_text(encoding="utf-8")
    title, title_after = "# name: test_what_a_query_returns_and_changes[sqlite-get_event]\n", "# ---\n"
    wrong = re.sub(f"{re.escape(title)}.*?{title_after}", f"{title}  'wrong'\n{title_after}", right, flags=re.DOTALL)
    assert wrong != right
    snapshots.write_text(wrong, encoding="utf-8")
    _run_pytest(tmp_path, f"{UPDATE} -k test_what_a_query_returns_and_changes[sqlite-get_event]", tmp_path)
    assert snapshots.read_text(encoding="utf-8") == right


@pytest.mark.parametrize("arguments", IN_CI)
def test_what_ci_runs(arguments: str) -> None:
    """Without arguments, CI takes the README's command from there."""
    assert arguments in arguments_of("pytest")
    assert f".venv/bin/pytest {arguments}\n" in CI or not arguments


def test_ci_lints_as_printed() -> None:
    linted = CI.replace('"$venv/bin/', "").replace('"', "")
    commands = [(program, each) for program, each in COMMANDS if program in ("ruff", "mypy", "sqlfluff")]
    assert len(commands) == 4
    for program, arguments in commands:
        assert f"{program} {arguments}".rstrip().replace("sqlite", "$dialect") in linted


def test_other_programs_are_run_elsewhere() -> None:
    elsewhere = ("tests/benchmarks", "tests/crash/long.py", "-m property.faults")
    assert [arguments for arguments in arguments_of("python") if not arguments.startswith(elsewhere)] == []
    assert arguments_of("pip") == []  # they are in `sh` blocks


@pytest.mark.slow
def test_the_faults_of_the_model_s_test() -> None:
    (arguments,) = arguments_of("python", beginning="-m property.faults")
    few = ("--at-most", "50", "--only", "none", "a number is given twice")
    printed = _run(ROOT, *arguments.split(), *few, PYTHONPATH="tests").splitlines()
    assert printed[2] == "| none | not in 50 |"
    assert re.fullmatch(r"\| a number is given twice \| \d+ \|", printed[3])


def test_each_fault_of_the_model_s_test_can_be_put_in() -> None:
    missing = [
        name for name, (file, sound, _) in FAULTS.items() if sound not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


# wfe-sql


def _check_options(words: list[str]) -> None:
    """Check that the command that these words begin with exists, and has the options among them."""
    names = re.match(r"(queries \w+|\w+)", " ".join(words))
    assert names is not None
    helped = run_command(*names[0].split(), "--help", COLUMNS="200")
    assert helped.code == 0, helped.err
    options = [word for word in words if word[0] == "-"]
    assert [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}\b", helped.out)] == []


@pytest.mark.parametrize("arguments", arguments_of("wfe-sql"))
def test_what_is_named_exists(arguments: str) -> None:
    _check_options(arguments.split())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a workflow, order-1, that is due in a hundred years."""

    async def fill() -> None:
        async with connect(tmp_path / "orders.db") as provider:
            later = epoch_ms(datetime(2126, 1, 1, tzinfo=UTC))
            order = full_instance(name="order-1", status=WorkflowStatus.Runnable, next_execution=later)
            await provider.create_new_workflow(order)

    asyncio.run(fill())
    return tmp_path / "orders.db"


def test_the_table_of_commands(store: Path) -> None:
    """Each command runs as printed, with values for the words in capitals, and has the options in brackets."""
    table = (ROOT / "src/wfe_sql/cli/README.md").read_text(encoding="utf-8").partition("|---|---|\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    printed = [command for row in rows for command in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    values = {
        "URL": store,
        "SOURCE": store,
        "DEST": store.with_name("copy.db"),
        "FILE": store.with_name("backup.db"),
        "FOLDER": store.with_name("tuned"),
        "QUERY": "get_event",
        "NAME": "order-1",
        "NAME_OR_ID": "order-1",
        "EVENT": "shipped",
        "KEY": "order-1",
        "JSON": "{}",
    }
    for command in printed:
        required = re.sub(r" \[[^]]*\]", "", command)
        _check_options(re.sub(r"[][]", "", command).split())
        asks = ["--yes"] if command.split()[0] in ("suspend", "resume", "terminate", "publish", "purge") else []
        ran = run_command(*(values.get(word, word) for word in required.split()), *asks)
        assert (ran.code, ran.err) == (0, ""), command
    group = typer.main.get_command(app)
    assert {command.split()[0] for command in printed} == {*group.commands} - {"demo"}  # type: ignore[attr-defined]


def test_moving_to_postgresql(store: Path, postgres_url: str, schema: str) -> None:
    (arguments,) = arguments_of("wfe-sql", beginning="copy ")
    source, destination = arguments.split()[1:]
    assert (source, destination) == (store.name, "postgresql://user@host/database")
    copied = run_command("copy", store, with_option(postgres_url, f"schema={schema}"))
    assert (copied.code, copied.err) == (0, "")
