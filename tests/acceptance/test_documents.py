"""The documents are true: snippets and commands run as printed, and the files that they name exist."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from printed import DOCUMENTS, ROOT

ELSEWHERE = {
    "sql/README.md": "test_sql_readme.py and test_sql_commands_postgres.py",
    "src/wfe_sql/testing/README.md": "test_testing_kit.py, and for the installation below",
}
"""Documents whose snippets need other tests, and these tests."""


def _blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of a language, without those that have a name: CI runs the README's."""
    if document.relative_to(ROOT).as_posix() in ELSEWHERE:
        return []
    found = re.findall(rf"(<!-- \w+ -->\n)?```{language}\n(.*?)```", document.read_text(), re.DOTALL)
    return [text for name, text in found if not name]


def _prose(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def _params(language: str, *, installs: bool) -> Iterator[Any]:
    """Yield each document's blocks of a language in one piece, because a block may continue another."""
    for document in DOCUMENTS:
        if blocks := [text for text in _blocks(document, language) if ("pip install" in text) is installs]:
            is_quick = installs or document == ROOT / "README.md"
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param("\n".join(blocks), id=document.relative_to(ROOT).as_posix(), marks=marks)


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WFE_SQL", "PYTEST"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("snippets", list(_params("python", installs=False)))
def test_snippets_run(snippets: str, tmp_path: Path) -> None:
    _run([sys.executable, "-W", "error", "-c", snippets], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("commands", list(_params("sh", installs=False)))
def test_commands_run(commands: str, tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    _run(["bash", "-euo", "pipefail", "-c", commands], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("commands", list(_params("sh", installs=True)))
def test_commands_run_in_a_new_checkout(commands: str, tmp_path: Path) -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    _run(["bash", "-euo", "pipefail", "-c", commands], tmp_path)


@pytest.mark.exhaustive
def test_the_extra_for_tests_is_installed_as_printed(tmp_path: Path) -> None:
    readme = ROOT / "src" / "wfe_sql" / "testing" / "README.md"
    (command,) = re.findall(r"```sh\n(.*?)```", readme.read_text(), re.DOTALL)
    _run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path)
    _run([sys.executable, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    as_if_published = f"export PIP_FIND_LINKS={tmp_path} PATH={tmp_path}/venv/bin:$PATH\n"
    shown = _run(
        ["bash", "-euo", "pipefail", "-c", f"{as_if_published}{command}pytest --fixtures || [ $? = 5 ]"], tmp_path
    )
    assert "wfe_provider" in shown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_named_is_there(document: Path) -> None:
    text = _prose(document)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)", _prose(document.parent / link), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
    paths = re.findall(r"`((?:src|sql|tests|\.github|\.ci)/[a-z\d_./-]*)`", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_is_for_the_package_index_too() -> None:
    """There, links to files of this repository do not work."""
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 200
    assert re.findall(r"\]\((?!https://)", _prose(readme)) == []
