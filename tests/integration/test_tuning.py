"""Tuned queries of SQLite: a valid replacement is accepted, any other is refused with file and line."""

import sqlite3
from pathlib import Path

import pytest

from stores import tuned
from wfe_sql import QueryFileError, SqlitePersistenceProvider
from wfe_sql.backends import load_sqlite_queries
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import sample_instance

OWN = load_sqlite_queries()
POLL = "get_runnable_instances"


def _refusal(folder: Path) -> str:
    with pytest.raises(QueryFileError) as caught:
        SqlitePersistenceProvider(":memory:", sql_dir=folder)
    return str(caught.value)


async def test_a_tuned_query_is_the_one_that_runs(tmp_path: Path) -> None:
    folder = tuned(OWN, tmp_path / "sql", (POLL, "ORDER BY next_execution, id", "ORDER BY next_execution DESC, id"))
    async with SqlitePersistenceProvider(":memory:", sql_dir=folder) as provider:
        for number in (1, 2):
            await provider.create_new_workflow(sample_instance(id=f"w{number}", next_execution=number))
        assert await provider.get_runnable_instances(ManualClock().now) == ["w2", "w1"]


def test_a_copy_that_is_not_changed_is_not_tuned(tmp_path: Path) -> None:
    folder = tuned(OWN, tmp_path / "sql", (POLL, "SELECT id", "SELECT id"), ("get_event", "WHERE id", "WHERE  id"))
    assert load_sqlite_queries(folder).tuned == {"get_event"}


def test_every_query_of_the_library_does_for_itself(tmp_path: Path) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    text = "\n".join(query.text.replace(query.sql, f"-- tuned\n{query.sql}") for query in OWN.values())
    (folder / "all.sql").write_text(text, encoding="utf-8")
    assert load_sqlite_queries(folder).tuned == set(OWN)


def test_a_tuned_query_may_need_an_index_of_a_tuned_table(tmp_path: Path) -> None:
    first = "CREATE INDEX IF NOT EXISTS idx_workflows_status"
    index = "CREATE INDEX IF NOT EXISTS idx_mine ON workflows (next_execution, id) WHERE status = 'Runnable';"
    by_index = (POLL, "FROM workflows", "FROM workflows INDEXED BY idx_mine")
    assert "no such index: idx_mine" in _refusal(tuned(OWN, tmp_path / "without", by_index))
    indexes = ("create_workflows_indexes", first, f"{index}\n{first}")
    assert load_sqlite_queries(tuned(OWN, tmp_path / "with", by_index, indexes)).tuned == {
        POLL,
        "create_workflows_indexes",
    }


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        (POLL, "FROM workflows", "FORM workflows", 'SQLite refuses it: near "workflows": syntax error'),
        (POLL, "FROM workflows", "FROM workflow", "SQLite refuses it: no such table: workflow"),
        (POLL, "status =", "state =", "SQLite refuses it: no such column: state"),
        (POLL, "SELECT id", "SELECT name", "must return the columns (id), not (name)"),
        (POLL, "SELECT id", "SELECT id, name", "must return the columns (id), not (id, name)"),
        (
            "get_workflow_guards",
            "SELECT claim_token, revision",
            "SELECT revision, claim_token",
            "must return the columns",
        ),
        ("get_event", "SELECT document", "SELECT document AS event", "must return the columns (document), not (event)"),
        (
            "get_event",
            "SELECT document\nFROM event_documents",
            "SELECT json_object('id', id, 'event_name', event_name) AS document\nFROM events",
            "must read its documents from event_documents: a persist would erase the fields",
        ),
        ("create_event_documents_view", "'event_key', event_key,", "", "event_documents.'event_key' is missing"),
        ("claim_runnable_events", "RETURNING id, event_time", "RETURNING event_time, id", "must return the columns"),
        ("claim_runnable_events", "RETURNING id, event_time", "", "must return the columns (id, event_time), not ()"),
        ("persist_workflow", "RETURNING revision, create_time", "RETURNING id", "(revision, create_time), not (id)"),
        ("create_event", "INSERT INTO events", "INSERT INTO event", "SQLite refuses it: no such table: event"),
        ("create_event", ":is_processed);", ":is_processed) RETURNING id;", "must return the columns (), not (id)"),
        ("persist_errors", "VALUES (", "VALUES (1, ", "SQLite refuses it: 5 values for 4 columns"),
        ("next_definition_sequence", "next_num + 1", "next_nun + 1", "SQLite refuses it: no such column: next_nun"),
        ("use_wal", "PRAGMA", "PRAGMAS", 'SQLite refuses it: near "PRAGMAS": syntax error'),
        ("begin_unit", "SAVEPOINT", "SAFEPOINT", 'SQLite refuses it: near "SAFEPOINT": syntax error'),
        ("create_events_table", "event_key TEXT", "event_key TEXT,,", 'SQLite refuses it: near ",": syntax error'),
        ("create_events_table", "event_key TEXT NOT NULL,\n", "", "SQLite refuses it: no such column: event_key"),
        (
            "create_scheduled_commands_table",
            "id INTEGER PRIMARY KEY AUTOINCREMENT,\n",
            "",
            "scheduled_commands.id is missing",
        ),
        (
            "add_events_claim",
            "ALTER TABLE events ADD COLUMN claim_worker_id TEXT;\n",
            "",
            "events.claim_worker_id is missing",
        ),
        ("create_events_table", "is_processed = 0;", "is_processed =", "SQLite refuses it: incomplete input"),
        ("create_workflows_revision_trigger", "ON workflows", "ON workflow", "SQLite refuses it: no such table"),
        ("add_events_claim", "COLUMN claim_worker_id TEXT", "COLUMN", 'SQLite refuses it: near ";"'),
        ("name_workflows_without_name", "DROP TABLE", "DRIP TABLE", 'SQLite refuses it: near "DRIP"'),
    ],
)
def test_what_does_not_do_for_the_original(tmp_path: Path, name: str, old: str, new: str, why: str) -> None:
    message = _refusal(tuned(OWN, tmp_path / "sql", (name, old, new)))
    assert message.startswith(f"{tmp_path / 'sql' / 'mine.sql'}:3: query {name}: ")
    assert why in message
    assert "\n" not in message


def test_what_sqlite_says_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(QueryFileError) as caught:
        load_sqlite_queries(tuned(OWN, tmp_path / "sql", (POLL, "FROM workflows", "FROM workflow")))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_to_check_a_query_that_writes_a_file_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tuned(OWN, tmp_path / "sql", ("begin_read", "BEGIN", "VACUUM INTO 'copy.db'"))
    assert load_sqlite_queries(folder).tuned == {"begin_read"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["sql"]
