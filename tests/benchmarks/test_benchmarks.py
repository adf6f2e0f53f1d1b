"""The README's commands run, with small numbers, and all sides end in the same state; how fast is not tested."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import poolers
from printed import ROOT, arguments_of
from servers import folder_in_memory

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent
IN_DOCUMENTS = arguments_of("python", beginning="tests/benchmarks")
SMALL = {
    "benchmarks": "--quick --no-reference --repeat 1 --json",
    "hosts.py": "--callers 2 --repeat 1 --seconds 0.05 --json",
    "scale.py": "--sizes 20,300 --calls 2 --json",
    "waiting.py": "--hosts 2 --events 3 --seconds 0.1 --repeat 1 --json",
    "steps.py": "--callers 1 2 --seconds 0.05",
    "locked_row.py": "--callers 3 --seconds 0.02",
    "pooled.py": "--calls 16 --rounds 1",
}
"""Options of each program that make it small; the last of two equal options counts."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that no other run of pytest closes to the user of a server (see `OwnServer.started`)."""
    with TemporaryDirectory(prefix="wfe-sql-", dir=folder_in_memory()) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def run(folder: Path, command: str, small: str) -> str:
    arguments = [*command.split(), *small.split(), "--folder", str(folder)]
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == []
    return ended.stdout


@pytest.mark.parametrize("command", IN_DOCUMENTS)
def test_a_command_of_the_documents(folder: Path, command: str) -> None:
    program = Path(command.split()[0]).name
    if program == "pooled.py":
        poolers.version()  # skips the test where none is installed
    printed = run(folder, command, SMALL[program])
    CHECKS[program](printed, "--postgres" in command)


def test_the_documents_print_a_command_for_each_program() -> None:
    programs = {script.name for script in BENCHMARKS.glob("*.py") if "\n    main()\n" in script.read_text()}
    assert {Path(command.split()[0]).name for command in IN_DOCUMENTS} == programs | {"benchmarks"} == CHECKS.keys()


def check_report(report: Any, sides: set[str], *workloads: str) -> None:
    assert set(report["sides"]) == sides
    assert {line["workload"] for line in report["results"]} == {
        "lifecycle",
        "persist",
        "step",
        "get",
        "sequence",
        *workloads,
    }
    for line in report["results"]:
        if line["finished"]:
            assert set(line["values"]) == sides & {"wfe-sql", "reference"}
        elif line["workload"] == "step":
            assert set(line["values"]) == {"wfe-sql"}
        elif line["workload"] == "mixed":
            assert set(line["values"]) == sides - {"sqlite3", "reference"}
        else:
            assert set(line["values"]) == sides
    figures = {line["figure"] for line in report["results"] if line["workload"] == "lifecycle"}
    assert figures == {"per second", "µs of CPU"} | ({"KiB written"} if Path("/proc/self/io").exists() else set())
    assert all(
        line["medians"][side] > 0
        for line in report["results"]
        if line["workload"] == "lifecycle"
        and line["figure"] != "KiB written"  # nothing is written if files are in memory
        for side in line["values"]
    )


def python_sides() -> set[str]:
    return {"wfe-sql", "sqlite3", "aiosql"} | ({"sqlalchemy"} if find_spec("greenlet") else set())


def check_sides(printed: str, on_postgres: bool) -> None:
    if on_postgres:
        check_report(json.loads(printed), {"wfe-sql", "psycopg"})
    else:
        check_report(json.loads(printed), python_sides(), "big_persist", "big_get", "mixed")


@pytest.mark.reference
def test_the_reference_ends_in_the_same_state(folder: Path) -> None:
    report = json.loads(run(folder, "tests/benchmarks", "--quick --json"))
    assert not [note for note in report["notes"] if note.startswith("without reference")]
    check_report(report, python_sides() | {"reference"}, "big_persist", "big_get", "mixed")


@pytest.mark.reference
def test_the_reference_ends_in_the_same_state_on_postgresql(folder: Path) -> None:
    report = json.loads(run(folder, "tests/benchmarks --postgres", "--quick --json"))
    assert not [note for note in report["notes"] if note.startswith("without reference")]
    check_report(report, {"wfe-sql", "psycopg", "reference"})


def check_scale(printed: str, on_postgres: bool) -> None:
    results = json.loads(printed)["results"]
    assert [result["workflows"] for result in results] == [20, 300]
    for result in results:
        assert result["ms"].keys() == result["ms ratios"].keys() >= {"get_by_id", "lifecycle", "lifecycles_at_once"}


def check_hosts(printed: str, on_postgres: bool) -> None:
    results = json.loads(printed)["results"]
    assert [(result["hosts"], result["callers"]) for result in results] == [(1, 4), (2, 2), (1, 8), (4, 2)]
    targets = [None, 1.4, None, None] if on_postgres else [None, 1.2, None, 1.0]
    assert [result["target"] for result in results] == targets


def check_waiting(printed: str, on_postgres: bool) -> None:
    report = json.loads(printed)
    figures = report["figures"]
    assert report["hosts"] == 2
    assert 0 < figures["wait, p50, ms"] <= figures["wait, p99, ms"]
    assert ("lifecycle, per second, ratio" in figures) is on_postgres


def check_steps(printed: str, on_postgres: bool) -> None:
    assert [line.partition(":")[0].strip() for line in printed.splitlines()] == ["1 at once", "2 at once"]


def check_locked_row(printed: str, on_postgres: bool) -> None:
    locked = [line.split(": ")[0] for line in printed.splitlines()]
    assert locked == [f"2 others, {who} locked" for who in ("nobody", "unwanted", "w000")]


def check_pooled(printed: str, on_postgres: bool) -> None:
    title, _, *lines = printed.splitlines()
    assert title.startswith("| µs a call, callers | direct | session | transaction |")
    assert [line.split("|")[1].strip() for line in lines] == [
        f"{call}, {callers}" for call in ("get", "persist", "sequence", "poll") for callers in (1, 16)
    ]


CHECKS = {
    "benchmarks": check_sides,
    "hosts.py": check_hosts,
    "scale.py": check_scale,
    "waiting.py": check_waiting,
    "steps.py": check_steps,
    "locked_row.py": check_locked_row,
    "pooled.py": check_pooled,
}
"""What each program must print; each is told whether it ran on PostgreSQL."""
