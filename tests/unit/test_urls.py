from pathlib import Path

import pytest

from wfe_sql import SqlitePersistenceProvider, StoreError, connect
from wfe_sql.urls import SqliteTarget, parse_sqlite_url


@pytest.mark.parametrize(
    ("url", "path", "mode"),
    [
        (":memory:", None, "rwc"),
        ("sqlite::memory:", None, "rwc"),
        ("sqlite://:memory:", None, "rwc"),
        ("sqlite:///:memory:", None, "rwc"),
        ("sqlite:///:memory:?mode=rw", None, "rw"),
        ("sqlite:///tmp/x.db", "/tmp/x.db", "rwc"),
        ("sqlite:////tmp/x.db", "//tmp/x.db", "rwc"),
        ("sqlite://x.db", "x.db", "rwc"),
        ("sqlite:x.db", "x.db", "rwc"),
        ("sqlite://folder/x.db", "folder/x.db", "rwc"),
        ("x.db", "x.db", "rwc"),
        ("/tmp/x.db", "/tmp/x.db", "rwc"),
        ("./fol der/x%20.db", "./fol der/x%20.db", "rwc"),
        ("sqlite:///tmp/a%20b%3F.db", "/tmp/a b?.db", "rwc"),
        ("C:\\x.db", "C:\\x.db", "rwc"),
        ("sqlite:///tmp/x.db?mode=ro", "/tmp/x.db", "ro"),
        ("sqlite:///tmp/x.db?mode=rw", "/tmp/x.db", "rw"),
        ("x.db?mode=rwc", "x.db", "rwc"),
    ],
)
def test_each_form(url: str, path: str | None, mode: str) -> None:
    assert parse_sqlite_url(url) == SqliteTarget(None if path is None else Path(path), mode)


def test_a_path_is_taken_as_it_is() -> None:
    assert parse_sqlite_url(Path("odd:name?mode=x.db")) == SqliteTarget(Path("odd:name?mode=x.db"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/x", "unknown URL scheme 'mysql'"),
        ("sqlite+aiosqlite:///x.db", r"unknown URL scheme 'sqlite\+aiosqlite'"),
        ("file:x.db", "unknown URL scheme 'file'"),
        ("x.db?cache=shared", "unknown option 'cache'"),
        ("x.db?mode=ro&timeout=5", "unknown option 'timeout'"),
        ("x.db?mode", "mode= is unknown"),
        ("x.db?mode=memory", "mode=memory is unknown"),
        (
            "host=db dbname=wfe password=secret",
            r"a URL, not host=\.\.\. pairs: write postgresql://user:password@host:port",
        ),
        ("dbname = wfe", "a URL, not dbname="),
        ("", "does not name a file"),
        ("sqlite:", "does not name a file"),
        ("sqlite://?mode=ro", "does not name a file"),
    ],
)
def test_what_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        connect(url)


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/x\0.db",
        "sqlite:///tmp/x\0.db?mode=ro",
        "sqlite:///tmp/x%00.db",
        Path("/tmp/x\0.db"),
        "/tmp/x\ud800.db",
        Path("/tmp/x\ud800.db"),
    ],
)
def test_a_path_that_no_file_can_have(path: str | Path) -> None:
    with pytest.raises(StoreError, match=r"^'/tmp/x\\(x00|ud800)\.db' cannot be .* a (NUL|lone surrogate)"):
        connect(path)


def test_pairs_of_postgresql_are_no_path_of_sqlite_either() -> None:
    with pytest.raises(StoreError, match="a URL, not host="):
        SqlitePersistenceProvider("host=db dbname=wfe")
    assert parse_sqlite_url(Path("dbname=wfe")).path == Path("dbname=wfe")
