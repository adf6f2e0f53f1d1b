"""The file of a SQLite store, the files next to it, and the check that it is still the one that was opened.

SQLite keeps using a file that was deleted or moved as if nothing had happened, and whatever it writes there is lost.
"""

import logging
import os
import time
from pathlib import Path

from wfe_sql.errors import StoreCorruptError, StoreError, StoreUnavailableError
from wfe_sql.urls import SqliteTarget

_log = logging.getLogger("wfe_sql")

LONG_LOG = 32 * 2**20
"""Bytes beyond which a write-ahead log is worth a warning: eight times its usual size when it is reset."""

_LONGEST_SUFFIX = "-journal"
"""The longest suffix of the files that SQLite makes next to a database."""

_LONGEST_PATH = 512
"""The longest path that SQLite supports. https://sqlite.org/src/file/src/os_unix.c (MAX_PATHNAME)"""

_LOOK_AT_LOG_EVERY = 1.0
"""Seconds between two checks of the size of the log."""


class StoreFile:
    """The file at a path, with its write-ahead log and the index of the log.

    Args:
        path: An absolute path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = os.fspath(path)
        self._opened: tuple[int, int] | None = None
        self._unchanged: tuple[int, int] | None = None
        self._beside: tuple[str, ...] = ()
        self._has_store = False
        self._is_out_of_place = False
        self._looked_at_log = 0.0
        self._warned_of = LONG_LOG

    @property
    def log(self) -> Path:
        """The path of the write-ahead log; links are followed, as SQLite does."""
        return self._sibling("-wal")

    @property
    def log_size(self) -> int | None:
        """The size of the log in bytes; None if there is none."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return None

    @property
    def is_sealed(self) -> bool:
        """Whether there is no log or journal, and this user cannot create one."""
        has_journal = self._sibling("-journal").exists()
        return not has_journal and not self.log_size and not is_permitted(self.log.parent, os.W_OK | os.X_OK)

    def remember_identity(self) -> None:
        """Remember which file it is when it is first opened; later, check that it is the same.

        Raises:
            StoreError: It is not.
        """
        if self._opened is None:
            found = self._stat()
            self._opened = found.st_dev, found.st_ino
        else:
            self.check_in_place()

    def remember_contents(self) -> None:
        """Remember the time and size of the file: it is read without locks, so nobody may write to it meanwhile."""
        if self._unchanged is None:
            found = self._stat()
            self._unchanged = found.st_mtime_ns, found.st_size

    def mark_as_store(self, *, writes: bool) -> None:
        """Remember that the file is a store, so never empty; if it is written to, that it has a log with an index."""
        self._has_store = True
        if writes:
            self._beside = str(self.log), str(self._sibling("-shm"))

    def check_in_place(self) -> None:
        """Check that the file is the one that was opened, and that its log exists; takes a few microseconds.

        Raises:
            StoreUnavailableError: It is not.
            StoreCorruptError: It was emptied.
        """
        self._is_out_of_place = True
        found = self._stat()
        if (found.st_dev, found.st_ino) != self._opened:
            raise self._changed("was replaced by another file")
        if self._has_store and not found.st_size:
            raise StoreCorruptError(
                f"{self.path} was emptied while it was open; close this provider, and restore the file from a backup"
            )
        if self._unchanged is not None and (
            self._unchanged != (found.st_mtime_ns, found.st_size) or os.access(self.log, os.F_OK)
        ):
            raise StoreUnavailableError(
                f"{self.path} was read without locks, because this user may not write in its folder, and somebody has "
                "written to it since; open it again"
            )
        for beside in self._beside:
            if not os.access(beside, os.F_OK):
                raise self._changed(f"lost {beside}, which was deleted or moved")
        self._is_out_of_place = False

    def check_before_write(self) -> None:
        """Check the file before the next write once it was found out of place.

        Raises:
            StoreError: It is still not in place.
        """
        if self._is_out_of_place:
            self.check_in_place()

    def warn_of_long_log(self) -> None:
        """Log a warning when the write-ahead log has grown too long, and whenever it doubles."""
        now = time.monotonic()
        if now < self._looked_at_log + _LOOK_AT_LOG_EVERY:
            return
        self._looked_at_log = now
        size = self.log_size or 0
        if size <= LONG_LOG:
            self._warned_of = LONG_LOG
        elif size > self._warned_of:
            self._warned_of = 2 * size
            _log.warning(
                "the write-ahead log of %s has grown to %d MB: it cannot be reset while a connection reads an old "
                "snapshot; look for a long-running reader, most likely in another process",
                self.path,
                size // 10**6,
            )

    def _sibling(self, suffix: str) -> Path:
        return Path(os.path.realpath(self._name) + suffix)

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self._name)  # noqa: PTH116 (the way through Path takes twice as long)
        except FileNotFoundError as error:
            raise self._changed("was deleted or moved") from error
        except OSError as error:
            raise self._changed(f"could no longer be reached ({error.strerror})") from error

    def _changed(self, what: str) -> StoreError:
        return StoreUnavailableError(
            f"{self.path} {what} while it was open; it no longer accepts writes. Close this provider, make sure "
            "that the right file is there, and open a new one"
        )


def check_path(target: SqliteTarget) -> None:
    """Explain what SQLite would only call "unable to open database file".

    Raises:
        StoreUnavailableError: The file cannot be opened.
    """
    if target.path is None:
        return
    try:
        _check_path(target.path, target.mode)
    except PermissionError as error:
        folder = target.path.parent
        raise StoreUnavailableError(f"{target} cannot be opened: no permission to look into {folder}") from error
    except OSError as error:
        raise StoreUnavailableError(f"{target} cannot be opened: {error.strerror}") from error


def _check_path(path: Path, mode: str) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise StoreUnavailableError(f"{path} cannot be opened: the folder {folder} does not exist; create it first")
    found = Path(os.path.realpath(path))
    longest = f"{found}{_LONGEST_SUFFIX}"
    room = os.pathconf(found.parent, "PC_NAME_MAX") if found.parent.is_dir() else 255
    if len(os.fsencode(longest)) >= _LONGEST_PATH or len(os.fsencode(Path(longest).name)) > room:
        raise StoreUnavailableError(
            f"{path} cannot be opened: its name is too long: with {_LONGEST_SUFFIX} it can have {room} bytes, and "
            f"{_LONGEST_PATH - 1} with its folder"
        )
    if path.is_dir():
        raise StoreUnavailableError(f"{path} cannot be opened: it is a folder; name a file in it")
    if mode != "rwc" and not path.exists():
        raise StoreUnavailableError(f"{path} cannot be opened: it does not exist (mode={mode})")
    if mode != "ro" and not is_permitted(found.parent, os.W_OK | os.X_OK):
        raise StoreUnavailableError(
            f"{path} cannot be opened: no permission to write in {found.parent}, where SQLite keeps its log"
        )
    wanted = os.R_OK if mode == "ro" else os.R_OK | os.W_OK
    if path.exists() and not is_permitted(path, wanted):
        verb = "read" if mode == "ro" else "read and write"
        raise StoreUnavailableError(f"{path} cannot be opened: no permission to {verb} it")


def is_permitted(path: Path, mode: int) -> bool:
    """Check permissions without opening the file: closing it would drop the locks of this process on it.

    https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
