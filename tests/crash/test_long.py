"""The commands in README.md that run `long.py`, with small numbers; what they found with theirs is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crash.long import COMMANDS

pytestmark = pytest.mark.slow

LONG = Path(__file__).with_name("long.py")
README = LONG.with_name("README.md").read_text()
IN_README = re.findall(r"^\.venv/bin/python tests/crash/long\.py (.*?) +# ", README, re.MULTILINE)
SHORT = {
    "kills": "--count 2",
    "opens": "--count 10",
    "logs": "--count 10",
    "flips": "--count 20",
    "soak": "--minutes 0.1",
}


@pytest.mark.parametrize("command", IN_README)
def test_a_long_form(command: str) -> None:
    name = next(form for form in COMMANDS if form in command.split())
    short = re.sub(r"--(count|minutes) \d+", SHORT.get(name, ""), command)
    program = subprocess.run([sys.executable, LONG, *short.split()], capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (0, ""), program.stdout
    assert program.stdout.splitlines()[-1].endswith("ends well")


def test_every_long_form_is_in_the_readme() -> None:
    assert {form for form in COMMANDS for command in IN_README if form in command.split()} == COMMANDS.keys()
