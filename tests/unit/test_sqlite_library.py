"""A SQLite library that is too old, or a sqlite3 module that is not Python's own, is refused with a clear message."""

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from wfe_sql import StoreError, connect
from wfe_sql.engines.sqlite import library

README = Path(__file__).parents[2] / "README.md"
SWAPPED = """
import sqlite3, sys, types
sys.modules["sqlite3"] = swapped = types.ModuleType("pysqlite3")  # which lacks most codes of errors
vars(swapped).update({name: value for name, value in vars(sqlite3).items() if "CONSTRAINT" not in name})
swapped.__name__ = "pysqlite3"
import wfe_sql
"""


@pytest.mark.parametrize("name", [":memory:", "new.db", "old.db"])
async def test_too_old_a_library(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.db").touch()
    monkeypatch.setattr(library, "LEAST_VERSION", (4, 0, 0))
    url = name if name == ":memory:" else tmp_path / name
    for mode in ("", "?mode=ro") if name == "old.db" else ("",):
        message = f"{name} cannot be opened: .* loads SQLite {sqlite3.sqlite_version}, and wfe-sql needs 4.0.0 or newer"
        with pytest.raises(StoreError, match=message):
            await connect(f"{url}{mode}").open()
    assert {path.name for path in tmp_path.iterdir()} == {"old.db"}


def test_the_least_version_is_what_the_readme_says() -> None:
    assert re.findall(r"SQLite (3\.[\d.]+\d) or newer", README.read_text()) == [
        ".".join(map(str, library.LEAST_VERSION))
    ]


def test_a_module_in_place_of_pythons_own() -> None:
    program = subprocess.run([sys.executable, "-c", SWAPPED], capture_output=True, text=True, check=False)
    assert program.stderr.splitlines()[-1].startswith("ImportError: wfe-sql needs Python's own sqlite3 module")
    assert "pysqlite3 has replaced it" in program.stderr
