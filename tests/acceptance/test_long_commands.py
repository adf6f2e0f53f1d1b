"""Commands in the documents that take too long to be run by a test: their files, options and markers exist."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from commands import run_command
from property.faults import FAULTS

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(
    r"(?:PYTHONPATH=tests )?(?:\.venv/bin/)?(?P<program>pytest|python|wfe-sql)(?P<rest>(?: [^\s#]+)+)(?:\s+#.*)?"
)


def _commands() -> Iterator[tuple[str, str, str]]:
    """Yield document, program and arguments of each command in the text, and in the blocks that are not run."""
    for path in sorted(
        path for folder in (".", ".github", "src", "sql", "tests") for path in ROOT.glob(f"{folder}/**/*.md")
    ):
        if ".venv" in path.parts or path.name == "CHANGELOG.md":
            continue
        text = re.sub(r"```(sh|python)\n.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        blocks = "".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).splitlines()
        inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for command in [*blocks, *(" ".join(each.split()) for each in inline)]:
            if found := COMMAND.fullmatch(command.strip().removeprefix("$ ")):
                yield path.relative_to(ROOT).as_posix(), found["program"], found["rest"].strip()


COMMANDS = list(dict.fromkeys(_commands()))


def _of(program: str) -> list[object]:
    return [pytest.param(rest, id=f"{name}: {rest}") for name, wanted, rest in COMMANDS if wanted == program]


@cache
def _output(*command: str) -> str:
    environment = {"PYTHONPATH": "tests", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def _check_options(words: list[str], text: str) -> None:
    unknown = [
        word
        for word in words
        if word[0] == "-" and not re.search(rf"(?<![\w-]){re.escape(word.partition('=')[0])}\b", text)
    ]
    assert unknown == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", _of("pytest"))
def test_pytest(arguments: str) -> None:
    words = arguments.split()
    _check_options(words, _output("-m", "pytest", "--help"))
    for option, word in pairwise(words):
        if option == "-m":
            assert f"@pytest.mark.{word}:" in _output("-m", "pytest", "--markers")
    assert [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", _of("python"))
def test_programs(arguments: str) -> None:
    program, *words = arguments.split()
    if program == "-m":
        assert words == ["property.faults"]
        return
    assert (ROOT / program).exists()
    if words:
        helps = [_output(program, "--help"), *(_output(program, word, "--help") for word in words if word.isalpha())]
        assert helps[0]
        _check_options(words, "".join(helps))


@pytest.mark.parametrize("arguments", _of("wfe-sql"))
def test_wfe_sql(arguments: str) -> None:
    words = arguments.split()
    names = re.match(r"(queries \w+|\w+)", arguments)
    assert names is not None
    helped = run_command(*names[0].split(), "--help", COLUMNS="200")
    assert helped.code == 0, helped.err
    _check_options(words, helped.out)


def test_each_fault_of_the_model_s_test_can_be_put_in() -> None:
    missing = [
        name for name, (file, sound, _) in FAULTS.items() if sound not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
