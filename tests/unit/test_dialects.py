"""The dialects say the same thing: a query that both have has the same name, parameters, operation and users."""

import re
from collections.abc import Mapping

import pytest

from wfe_sql.backends import load_postgres_queries, load_sqlite_queries
from wfe_sql.engines.postgres.grouping import GROUPS
from wfe_sql.queries import Query

SQLITE, POSTGRES = load_sqlite_queries(), load_postgres_queries()

PARTS = frozenset().union(*(group.parts for group in GROUPS.values())) - {"create_event_subscription"}
SETTINGS = (
    *("use_wal", "use_full_durability", "use_normal_durability", "refuse_writes", "enforce_foreign_keys"),
    *("use_rollback_journal", "wait_for_no_lock"),
)
WAKES = (
    *("create_wake_trigger", "listen", "get_reason_not_to_listen", "ask_for_wake", "end_wake", "have_writers_ended"),
)
LOOKS = ("find_free_runnable_instance", "find_free_runnable_event", "find_free_command")
ADDITIONS = (
    *("add_workflows_claim_and_revision", "add_events_claim", "add_scheduled_commands_claim_and_rescheduled_time"),
)

ONLY_IN_SQLITE = {
    **{
        lead: f"PostgreSQL runs it as {lead}_group, even for one unit"
        for lead, group in GROUPS.items()
        if group.alone != lead
    },
    **dict.fromkeys(PARTS, "a part of a group in PostgreSQL"),
    **dict.fromkeys(LOOKS, "in PostgreSQL a claim that finds nothing takes no lock that others wait for"),
    **dict.fromkeys(SETTINGS, "a setting of SQLite's"),
    **dict.fromkeys(ADDITIONS, "PostgreSQL adds these columns in the query that makes the table"),
    "create_workflows_indexes": "PostgreSQL makes these indexes in the query that makes the table",
    "check_copy": "PostgreSQL has tools of its own for backups",
    "limit_log": "the log is the server's",
    "copy_log": "the log is the server's",
    "get_file": "a PostgreSQL database is told by its server and name (get_database)",
    "get_data_version": "PostgreSQL tells those who listen",
    "suspend_foreign_keys": "SQLite replaces an old table, PostgreSQL changes it (name_workflows_without_name)",
    "stand_in_for_columns": "only SQLite opens what the reference wrote for reading, as it is",
}
ONLY_IN_POSTGRES = {
    **{f"{lead}_group": f"runs any number of {lead} as one statement" for lead in GROUPS},
    "get_workflow_instance_alone": "runs the two queries of a get as one statement",
    "set_up_connection": "connections are told the schema, and settings",
    "find_old_snapshots": "SQLite keeps them for readers that are at work on the machine",
    "find_query_statistics": "SQLite does not count what queries cost",
    "list_query_statistics": "as find_query_statistics",
    "get_server_process": "SQLite has no server",
    "get_database": "a SQLite database is told by its file (get_file)",
    "get_settings": "a unit in somebody else's transaction needs none in SQLite",
    "restore_settings": "as get_settings",
    **dict.fromkeys(WAKES, "a SQLite file is looked at (get_data_version)"),
    "prepare_query": "SQLite plans a query with its parameters unbound",
    "forget_query": "as prepare_query",
    **{group.lock: "in SQLite nobody else writes meanwhile" for group in GROUPS.values() if group.lock},
    "hold_rows": "as what waits for rows: in SQLite nobody else writes meanwhile",
    "lift_statement_timeout": "SQLite has none",
    "drop_invalid_indexes": "SQLite makes an index whole or not at all",
    "list_numbers": "SQLite's numbers have 64 bits, and go on after the highest that is stored",
    "mend_number": "as list_numbers",
    "create_schema": "SQLite has no schemas",
    "hold_making_lock": "SQLite's write lock does this",
    "grant_documents": "SQLite has no roles",
    "collate_ids_bytewise": "SQLite has them so",
}


def test_each_difference_has_its_reason() -> None:
    assert set(SQLITE) - set(POSTGRES) == set(ONLY_IN_SQLITE)
    assert set(POSTGRES) - set(SQLITE) == set(ONLY_IN_POSTGRES)


@pytest.mark.parametrize("name", sorted(set(SQLITE) & set(POSTGRES)))
def test_what_both_have_is_called_alike(name: str) -> None:
    one, other = SQLITE[name], POSTGRES[name]
    assert (set(one.params), one.operation) == (set(other.params), other.operation)
    of_their_own = (
        "begin_write",
        "begin_read",
        "begin_unit",
        "commit",
        "commit_unit",
        "rollback",
        "rollback_unit",
        "get_store_version",
        "list_parts",
        "list_indexes",
        "has_statistics",
    )
    if name not in of_their_own:
        assert one.used_by == other.used_by  # engines, stores and planners run queries in methods of other names


@pytest.mark.parametrize("lead", sorted(GROUPS))
def test_a_group_takes_what_its_lead_takes(lead: str) -> None:
    one, group = SQLITE[lead], POSTGRES[f"{lead}_group"]
    assert set(group.used_by) <= set(one.used_by)  # a part of another group is used there
    assert (group.params, group.operation) == (("units",), "")
    for param in one.params:
        assert re.search(rf"\b{param}\b", group.sql), f"{group.place} does not read {param}"
    done_by_the_group = {"get_execution_pointers", "get_execution_pointers_by_name", "get_claimed_execution_pointers"}
    for part in GROUPS[lead].parts - done_by_the_group - {"next_definition_sequence"}:
        assert part in group.sql


def test_both_have_the_same_files() -> None:
    def files(queries: Mapping[str, Query]) -> set[str]:
        return {query.file.rpartition("/")[2] for query in queries.values()}

    assert files(SQLITE) == files(POSTGRES)
