"""The long forms in `long.py` work; how long they ran at least once, and what they found, is in README.md."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LONG = Path(__file__).with_name("long.py")


@pytest.mark.parametrize(
    "command",
    ["kills --count 2", "opens --count 10", "logs --count 10", "flips --count 20", "disk", "soak --minutes 0.1"],
)
def test_a_long_form(command: str) -> None:
    program = subprocess.run([sys.executable, LONG, *command.split()], capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (0, ""), program.stdout
    assert program.stdout.splitlines()[-1].endswith("ends well")
