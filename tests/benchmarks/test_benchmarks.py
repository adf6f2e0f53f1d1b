"""The benchmarks run, and all sides end in the same state; how fast they are is not tested."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent


def run(script: Path, folder: Path, *options: str) -> Any:
    command: list[str | Path] = [sys.executable, script, "--json", "--folder", folder, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == []
    return json.loads(ended.stdout)


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


def test_all_sides_in_python_end_in_the_same_state(tmp_path: Path) -> None:
    report = run(BENCHMARKS, tmp_path, "--quick", "--no-reference")
    check_report(report, python_sides(), "big_persist", "big_get", "mixed")


def test_all_sides_in_python_end_in_the_same_state_on_postgresql(tmp_path: Path) -> None:
    report = run(BENCHMARKS, tmp_path, "--postgres", "--quick", "--no-reference")
    check_report(report, {"wfe-sql", "psycopg"})


@pytest.mark.reference
def test_the_reference_ends_in_the_same_state(tmp_path: Path) -> None:
    report = run(BENCHMARKS, tmp_path, "--quick")
    assert not [note for note in report["notes"] if note.startswith("without reference")]
    check_report(report, python_sides() | {"reference"}, "big_persist", "big_get", "mixed")


@pytest.mark.reference
def test_the_reference_ends_in_the_same_state_on_postgresql(tmp_path: Path) -> None:
    report = run(BENCHMARKS, tmp_path, "--postgres", "--quick")
    assert not [note for note in report["notes"] if note.startswith("without reference")]
    check_report(report, {"wfe-sql", "psycopg", "reference"})


def test_a_store_grows(tmp_path: Path) -> None:
    report = run(BENCHMARKS / "scale.py", tmp_path, "--sizes", "20,300", "--calls", "2")
    assert [result["workflows"] for result in report["results"]] == [20, 300]
    for result in report["results"]:
        assert result["ms"].keys() == result["ms ratios"].keys() >= {"get_by_id", "lifecycle", "lifecycles_at_once"}


@pytest.mark.parametrize("where", [[], ["--postgres"]])
def test_hosts_share_a_store(tmp_path: Path, where: list[str]) -> None:
    options = ["--callers", "2", "--repeat", "1", "--seconds", "0.05"]
    report = run(BENCHMARKS / "hosts.py", tmp_path, *options, *where)
    assert [(result["hosts"], result["callers"]) for result in report["results"]] == [(1, 4), (2, 2), (1, 8), (4, 2)]
    assert [result["target"] for result in report["results"]] == [
        None,
        *([1.4] if where else [1.2]),
        None,
        *([None] if where else [1.0]),
    ]


@pytest.mark.parametrize("where", [[], ["--postgres", "--repeat", "1"]])
def test_hosts_wait_for_events(tmp_path: Path, where: list[str]) -> None:
    report = run(BENCHMARKS / "waiting.py", tmp_path, "--hosts", "2", "--events", "3", "--seconds", "0.1", *where)
    figures = report["figures"]
    assert report["hosts"] == 2
    assert 0 < figures["wait, p50, ms"] <= figures["wait, p99, ms"]
    assert ("lifecycle, per second, ratio" in figures) is bool(where)
