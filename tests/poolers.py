"""PgBouncer, if it is installed, in front of the PostgreSQL server of the tests."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

TRACKS_SINCE = (1, 21)
"""The first version that tracks the prepared statements of its clients."""

_USERS = ("pgserver", "postgres", "nobody")
"""The user it runs as if the tests run as root, which it refuses."""


def version() -> tuple[int, ...]:
    """Return the version that is installed, or skip the test."""
    if _program() is None:
        pytest.skip("needs pgbouncer, which is not installed (Debian: apt-get install pgbouncer)")
    said = subprocess.run([str(_program()), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    assert found is not None
    return int(found[1]), int(found[2])


@contextmanager
def pooler(
    server_url: str, mode: str, *, prepared: int = 0, size: int = 20, options: Sequence[str] = ()
) -> Iterator[str]:
    """Run one for the block, in a pool_mode, with a number of prepared statements for each client; yield its URL."""
    if prepared and version() < TRACKS_SINCE:
        pytest.skip(f"needs pgbouncer 1.21, which tracks prepared statements; this is {version()}")
    version()
    server = conninfo_to_dict(server_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory(prefix="wfe-sql-pooler-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        user = str(server.get("user") or "postgres")
        (folder / "users").write_text(f'"{user}" "{server.get("password") or ""}"\n')
        place = " ".join(f"{key}={server[key]}" for key in ("host", "port") if server.get(key))
        settings = [
            *("[databases]", f"* = {place}", "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}"),
            *("unix_socket_dir =", "auth_type = trust", f"auth_file = {folder / 'users'}"),
            *(f"pool_mode = {mode}", f"default_pool_size = {size}", "max_client_conn = 500"),
            *([f"max_prepared_statements = {prepared}"] if version() >= TRACKS_SINCE else []),
            *options,
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(settings) + "\n")
        log = folder / "log"
        with log.open("w") as written:
            running = subprocess.Popen(
                [str(_program()), "-q", folder / "pgbouncer.ini"], stderr=written, stdout=written, user=_user()
            )
        url = make_conninfo(server_url, host="127.0.0.1", port=port, sslmode="disable")
        try:
            _wait_until_it_listens(url, running, log)
            yield url
            assert running.poll() is None, f"PgBouncer ended with {running.returncode}: {log.read_text()[-2000:]}"
        finally:
            running.terminate()
            running.wait(timeout=30)


def _wait_until_it_listens(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(1000):
        with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=5):
            return
        assert running.poll() is None, log.read_text()
        time.sleep(0.01)
    raise AssertionError(log.read_text())


def _program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _user() -> str | None:
    """Return the user it runs as: the one who runs the tests, unless that is root, which it refuses."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in _USERS if user in names)
