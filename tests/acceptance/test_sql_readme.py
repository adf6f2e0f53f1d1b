"""What `sql/README.md` says is true: its lists match the files, and its commands do what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wfe_sql.backends import BACKENDS, load_sqlite_queries

README = Path(__file__).parents[2] / "sql" / "README.md"
QUERIES = load_sqlite_queries()


def test_every_query_that_needs_a_switch_is_there() -> None:
    table = README.read_text(encoding="utf-8").partition("\n| switched off")[2].partition("\n\n")[0]
    words = re.findall(r"`([a-z_.]+)`", table)
    switches = {"jit", "plan_cache_mode", "force_generic_plan", *(word for word in words if word.startswith("enable_"))}
    patterns = {word.replace("...", r"\w+") for word in words} - switches
    queries = BACKENDS["postgres"].load(None)
    assert "lock_workflows" in patterns
    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in queries)] == []


def test_every_index_is_explained() -> None:
    made = {
        (index, name)
        for name, dialect in BACKENDS.items()
        for query in dialect.load(None).values()
        for index in re.findall(r"INDEX IF NOT EXISTS (\w+)", query.sql)
    }
    rows = re.findall(r"^\| `(idx_\w+)` \| (.*) \| (.*) \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    measured = {
        (index, name) for index, _, *sizes in rows for name, size in zip(BACKENDS, sizes, strict=True) if size != "-"
    }
    used = {index for dialect in BACKENDS.values() for query in dialect.load(None).values() for index in query.index}
    assert measured == made
    assert {index for index, what, *_ in rows if not what.startswith("none of our queries")} == used & {
        i for i, _ in made
    }


def test_every_table_is_in_the_picture() -> None:
    picture = README.read_text(encoding="utf-8").partition("```\n")[2].partition("```")[0]
    made = [
        name.removeprefix("create_").removesuffix("_table") for name in QUERIES if re.match("create_.*_table$", name)
    ]
    assert "workflows" in made
    assert [table for table in made if not re.search(rf"^[├└─< ]*{table}\b", picture, re.MULTILINE)] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs sqlite3")
def test_the_commands_do_as_they_are_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"<!-- try -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("WFE_SQL_DIR", None)
    out = {}
    for command in commands:
        ran = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (int("queries diff" in command), ""), command
        out[command] = ran.stdout
    shown = list(out.values())
    assert len(commands) == 10
    assert "SEARCH workflows USING COVERING INDEX idx_workflows_runnable" in shown[1]
    assert "+FROM workflows INDEXED BY idx_workflows_runnable" in shown[4]
    assert shown[5] == shown[1]
    assert '"name":"order-1"' in shown[7].replace('\\"', '"')
    assert "SCAN execution_errors" in shown[8]
    assert shown[9] == "0\n"
