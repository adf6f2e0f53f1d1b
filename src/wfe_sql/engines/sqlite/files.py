"""The file of a SQLite store, what lies beside it, and whether it is still the one that was opened.

SQLite goes on with a file that was deleted or moved as if nothing had happened, and what it writes there is lost.
"""

import logging
import os
import time
from pathlib import Path

from wfe_sql.errors import StoreCorruptError, StoreError, StoreUnavailableError
from wfe_sql.urls import SqliteTarget

_log = logging.getLogger("wfe_sql")

LONG_LOG = 32 * 2**20
"""Bytes beyond which a write-ahead log is worth a word: eight times what it usually has when it is started anew."""

_LONGEST_SUFFIX = "-journal"
"""Of the names of files that SQLite makes beside a database."""

_LONGEST_PATH = 512
"""What SQLite has room for. https://sqlite.org/src/file/src/os_unix.c (MAX_PATHNAME)"""

_LOOK_AT_LOG_EVERY = 1.0
"""Seconds between two looks at how long the log is."""


class StoreFile:
    """The file that a path names, and the log and its index beside it.

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
        """Where the write-ahead log lies: links are followed, as SQLite does."""
        return self._sibling("-wal")

    @property
    def log_size(self) -> int | None:
        """How many bytes the log has; None where there is none."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return None

    @property
    def is_sealed(self) -> bool:
        """Whether there is no log or journal, and this user can make none."""
        has_journal = self._sibling("-journal").exists()
        return not has_journal and not self.log_size and not may(self.log.parent, os.W_OK | os.X_OK)

    def opened(self) -> None:
        """Remember which file it is, when it is opened first; later it must be the same.

        Raises:
            StoreError: It is not.
        """
        if self._opened is None:
            found = self._stat()
            self._opened = found.st_dev, found.st_ino
        else:
            self.check_in_place()

    def opened_sealed(self) -> None:
        """Remember how the file is, for it is read without locks: nobody may write to it meanwhile."""
        if self._unchanged is None:
            found = self._stat()
            self._unchanged = found.st_mtime_ns, found.st_size

    def has_store(self, *, writes: bool) -> None:
        """Note that the file is a store, and so never empty; where it is written to, a log and its index lie beside."""
        self._has_store = True
        if writes:
            self._beside = str(self.log), str(self._sibling("-shm"))

    def check_in_place(self) -> None:
        """Check that the file is there and the one that was opened, and the log beside it; a few microseconds.

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
                f"{self.path} was read without locks, for this user may not write in its folder, and now somebody "
                "writes to it; open it again"
            )
        for beside in self._beside:
            if not os.access(beside, os.F_OK):
                raise self._changed(f"lost {beside}, which was deleted or moved")
        self._is_out_of_place = False

    def check_before_write(self) -> None:
        """Once the file was not in place, check it before anything more is written to it.

        Raises:
            StoreError: It is still not in place.
        """
        if self._is_out_of_place:
            self.check_in_place()

    def warn_of_long_log(self) -> None:
        """Log a warning when the log has grown too long, and again whenever it has doubled."""
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
                "the log of %s has grown to %d MB: it cannot start anew as long as a connection reads an old moment; "
                "look for one that reads for long, most likely in another process",
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
            raise self._changed(f"cannot be reached any more ({error.strerror})") from error

    def _changed(self, what: str) -> StoreError:
        return StoreUnavailableError(
            f"{self.path} {what} while it was open; nothing is acknowledged any more. Close this provider, see that "
            "the right file is there, and open a new one"
        )


def check_path(target: SqliteTarget) -> None:
    """Say in plain words what SQLite would only call "unable to open database file"."""
    if target.path is None:
        return
    try:
        _check_path(target.path, target.mode)
    except PermissionError as error:
        folder = target.path.parent
        raise StoreUnavailableError(f"{target} cannot be opened: this user may not look into {folder}") from error
    except OSError as error:
        raise StoreUnavailableError(f"{target} cannot be opened: {error.strerror}") from error


def _check_path(path: Path, mode: str) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise StoreUnavailableError(f"{path} cannot be opened: the folder {folder} does not exist; make it first")
    found = Path(os.path.realpath(path))
    longest = f"{found}{_LONGEST_SUFFIX}"
    room = os.pathconf(found.parent, "PC_NAME_MAX") if found.parent.is_dir() else 255
    if len(os.fsencode(longest)) >= _LONGEST_PATH or len(os.fsencode(Path(longest).name)) > room:
        raise StoreUnavailableError(
            f"{path} cannot be opened: its name is too long; with {_LONGEST_SUFFIX} it may have {room} bytes, and "
            f"{_LONGEST_PATH - 1} with its folder"
        )
    if path.is_dir():
        raise StoreUnavailableError(f"{path} cannot be opened: it is a folder; name a file in it")
    if mode != "rwc" and not path.exists():
        raise StoreUnavailableError(f"{path} cannot be opened: it does not exist (mode={mode})")
    if mode != "ro" and not may(found.parent, os.W_OK | os.X_OK):
        raise StoreUnavailableError(
            f"{path} cannot be opened: this user may not write in {found.parent}, where its log lies"
        )
    wanted = os.R_OK if mode == "ro" else os.R_OK | os.W_OK
    if path.exists() and not may(path, wanted):
        verb = "read" if mode == "ro" else "read and write"
        raise StoreUnavailableError(f"{path} cannot be opened: this user may not {verb} it")


def may(path: Path, mode: int) -> bool:
    """Ask without opening: to close a file drops the locks that this process has on it.

    https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
