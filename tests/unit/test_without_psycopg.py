"""PostgreSQL is an extra: without its driver everything else works, and an error says what to install."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["psycopg"] = None  # as if it were not installed
import wfe_sql
try:
    wfe_sql.connect("postgresql://localhost/x")
except wfe_sql.StoreError as error:
    print(error)
wfe_sql.connect(":memory:")
"""


def test_without_the_driver() -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert program.stdout.endswith(f"; run: {sys.executable} -m pip install 'psycopg[binary]'\n")
