import subprocess
import sys

PROGRAM = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import wfe_sql
try:
    import wfe_sql.telemetry
except ImportError as error:
    print(error)
"""


def test_without_opentelemetry_the_rest_works_and_the_error_says_what_to_install() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    message = "wfe_sql.telemetry needs opentelemetry-api, which is not installed: pip install 'wfe-sql[otel]'"
    assert run.stdout.strip() == message
