"""The commands that the documents print beside their `sh` blocks, for the tests that run them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

DOCUMENTS = [
    path
    for folder, pattern in (
        ("", "*.md"),
        (".github", "*.md"),
        ("src", "**/*.md"),
        ("sql", "**/*.md"),
        ("tests", "**/*.md"),
    )
    for path in sorted((ROOT / folder).glob(pattern))
]

_COMMAND = re.compile(
    r"(?:PYTHONPATH=tests )?(?P<folder>\.venv/bin/)?(?P<program>python|pytest|pip|wfe-sql|ruff|mypy|sqlfluff)"
    r"(?: (?P<arguments>[^\s#].*?))?(?: +#.*)?"
)


def _commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if document.name == "CHANGELOG.md":
            text = text.split("\n## ")[1]  # what earlier releases had may be gone
        text = re.sub(r"```(sh|python)\n.*?```", "", text, flags=re.DOTALL)
        blocks = "".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).splitlines()
        inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*blocks, *(" ".join(each.split()) for each in inline)]:
            for command in line.removeprefix("$ ").split(" && "):
                found = _COMMAND.fullmatch(command.strip())
                if found and (found["folder"] or found["arguments"]):  # otherwise it is a name
                    yield found["program"], found["arguments"] or ""


COMMANDS = list(dict.fromkeys(_commands()))
"""The program and the arguments of each; what `sh` blocks print is not among them, because it runs as it stands."""


def arguments_of(program: str, *, beginning: str = "") -> list[str]:
    """Return the arguments that documents print for a program, as one text each, if they begin so."""
    return [arguments for name, arguments in COMMANDS if name == program and arguments.startswith(beginning)]
