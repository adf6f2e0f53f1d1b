"""The commands in README.md that run `long.py`, with small numbers; what they found with theirs is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crash.long import COMMANDS
from printed import ROOT, arguments_of

pytestmark = pytest.mark.slow

IN_README = arguments_of("python", beginning="tests/crash/long.py")
SMALL = {
    "kills": "--count 2",
    "opens": "--count 10",
    "logs": "--count 10",
    "flips": "--count 20",
    "disk": "--megabytes 2",
    "soak": "--minutes 0.1",
}
"""An option of each form that makes it small; the last of two equal options counts."""


@pytest.mark.parametrize("command", IN_README)
def test_a_long_form(command: str, tmp_path: Path) -> None:
    name = next(form for form in COMMANDS if form in command.split())
    small = f"{command.replace('/tmp/small', str(tmp_path))} {SMALL[name]}"
    program = subprocess.run([sys.executable, *small.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (0, ""), program.stdout
    assert program.stdout.splitlines()[-1].endswith("ends well")


def _may_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("unshare") or not _may_mount(), reason="needs to be root and allowed to mount")
def test_a_real_disk_is_filled(tmp_path: Path) -> None:
    """In a mount namespace of its own, which ends with it."""
    (commands,) = re.findall(r"as root:\n\n```text\n(.*?)```", (ROOT / "tests/crash/README.md").read_text(), re.DOTALL)
    here = commands.replace("/tmp/small", str(tmp_path / "small")).replace(".venv/bin/python", sys.executable)
    filled = subprocess.run(
        ["unshare", "--mount", "bash", "-euc", here], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (filled.returncode, filled.stderr) == (0, ""), filled.stdout
    assert "StoreFullError" in filled.stdout
    assert filled.stdout.splitlines()[-1].endswith("ends well")


def test_every_long_form_is_in_the_readme() -> None:
    assert {form for form in COMMANDS for command in IN_README if form in command.split()} == COMMANDS.keys()
