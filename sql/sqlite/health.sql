-- Counts what is in the store, and finds what is wrong with it. Hosts at work run none of these.

-- name: get_store_size()^
-- The size of the database in bytes, and how much of it is free for new rows.
-- used by: stats
-- index: none
SELECT
    page_count.page_count * page_size.page_size AS size_bytes,
    freelist_count.freelist_count * page_size.page_size AS free_bytes
FROM pragma_page_count AS page_count
CROSS JOIN pragma_page_size AS page_size
CROSS JOIN pragma_freelist_count AS freelist_count;

-- name: count_workflows()
-- Workflows by definition and status, and when the first and the last of them were created.
-- used by: stats
-- scan: every workflow is counted
SELECT
    definition_id,
    status,
    count(*) AS workflows,
    min(create_time) AS oldest,
    max(create_time) AS newest
FROM workflows
GROUP BY definition_id, status
ORDER BY definition_id, status;

-- name: count_rows()
-- How many rows each table has.
-- used by: stats, check, copy_to, survey
-- scan: every row is counted
SELECT
    'workflows' AS table_name,
    count(*) AS row_count
FROM workflows
UNION ALL
SELECT
    'execution_pointers' AS table_name,
    count(*) AS row_count
FROM execution_pointers
UNION ALL
SELECT
    'events' AS table_name,
    count(*) AS row_count
FROM events
UNION ALL
SELECT
    'event_subscriptions' AS table_name,
    count(*) AS row_count
FROM event_subscriptions
UNION ALL
SELECT
    'scheduled_commands' AS table_name,
    count(*) AS row_count
FROM scheduled_commands
UNION ALL
SELECT
    'execution_errors' AS table_name,
    count(*) AS row_count
FROM execution_errors
UNION ALL
SELECT
    'definition_sequences' AS table_name,
    count(*) AS row_count
FROM definition_sequences;

-- name: count_due_workflows(as_at, free_since)^
-- How many Runnable workflows are due at :as_at (epoch ms), and when the first became due; a new one (due at 0) became due
-- when it was created. If :free_since is given, only those that were created, and whose claim had ended, by then.
-- used by: stats, check
-- index: idx_workflows_runnable
SELECT
    count(*) AS due,
    min(max(next_execution, coalesce(strftime('%s', create_time) * 1000, next_execution))) AS since
FROM workflows
WHERE
    status = 'Runnable' AND next_execution <= :as_at
    AND (:free_since IS NULL OR (create_time <= :free_since AND coalesce(claim_expires_at, '') <= :free_since));

-- name: count_due_events(as_at, free_since)^
-- How many events up to :as_at are not processed, and the time of the oldest. If :free_since is given, only those
-- whose claim had ended by then.
-- used by: stats, check
-- index: idx_events_unprocessed
SELECT
    count(*) AS due,
    min(event_time) AS since
FROM events
WHERE
    is_processed = 0 AND event_time <= :as_at
    AND (:free_since IS NULL OR coalesce(claim_expires_at, '') <= :free_since);

-- name: count_due_commands(as_of, free_since)^
-- How many commands are due at :as_of (epoch ms), and when the first became due. If :free_since is given, only those whose
-- claim had ended by then.
-- used by: stats, check
-- index: idx_scheduled_commands_execute_time
SELECT
    count(*) AS due,
    min(execute_time) AS since
FROM scheduled_commands
WHERE execute_time <= :as_of AND (:free_since IS NULL OR coalesce(claim_expires_at, '') <= :free_since);

-- name: find_expired_claims(now, row_limit)
-- Unfinished work whose claim or token had expired at :now, and that nobody took over: table, id, worker, expiry.
-- used by: check
-- scan: claims have no index, because every write would have to maintain it
SELECT table_name, row_id, worker_id, expired_at
FROM (
    SELECT
        'workflows' AS table_name, workflows.id AS row_id, workflows.claim_worker_id AS worker_id,
        workflows.claim_expires_at AS expired_at
    FROM workflows
    WHERE workflows.status = 'Runnable' AND workflows.claim_expires_at <= :now
    UNION ALL
    SELECT
        'events' AS table_name, events.id AS row_id, events.claim_worker_id AS worker_id,
        events.claim_expires_at AS expired_at
    FROM events
    WHERE events.is_processed = 0 AND events.claim_expires_at <= :now
    UNION ALL
    SELECT
        'scheduled_commands' AS table_name, cast(scheduled_commands.id AS TEXT) AS row_id,
        scheduled_commands.claim_worker_id AS worker_id, scheduled_commands.claim_expires_at AS expired_at
    FROM scheduled_commands
    WHERE scheduled_commands.claim_expires_at <= :now
    UNION ALL
    SELECT
        'event_subscriptions' AS table_name, event_subscriptions.id AS row_id,
        event_subscriptions.external_worker_id AS worker_id, event_subscriptions.external_token_expiry AS expired_at
    FROM event_subscriptions
    WHERE event_subscriptions.terminated = 0 AND event_subscriptions.external_token_expiry <= :now
) AS expired
ORDER BY expired_at, table_name, row_id
LIMIT :row_limit;

-- name: find_rows_without_id()
-- Tables with rows whose id is null or empty, which are in no page, and the column.
-- used by: check, dump, copy_to
-- index: sqlite_autoindex_workflows_1, sqlite_autoindex_events_1, sqlite_autoindex_event_subscriptions_1, sqlite_autoindex_definition_sequences_1
SELECT
    'workflows' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM workflows
        WHERE id IS NULL OR id = ''
    )
UNION ALL
SELECT
    'events' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM events
        WHERE id IS NULL OR id = ''
    )
UNION ALL
SELECT
    'event_subscriptions' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM event_subscriptions
        WHERE id IS NULL OR id = ''
    )
UNION ALL
SELECT
    'definition_sequences' AS table_name,
    'definition_id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM definition_sequences
        WHERE definition_id IS NULL
    )
    OR EXISTS (
        SELECT 1
        FROM definition_sequences
        WHERE definition_id = ''
    );

-- name: find_orphans(row_limit)
-- Rows that refer to a missing workflow or event: table, id, the column and its value. Pointers are left out, because
-- check_foreign_keys finds theirs.
-- used by: check
-- scan: every row is read
SELECT
    'event_subscriptions' AS table_name, event_subscriptions.id AS row_id, 'workflow_id' AS column_name,
    event_subscriptions.workflow_id AS missing
FROM event_subscriptions
WHERE
    NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = event_subscriptions.workflow_id
    )
UNION ALL
SELECT
    'execution_errors' AS table_name, cast(execution_errors.id AS TEXT) AS row_id, 'workflow_id' AS column_name,
    execution_errors.workflow_id AS missing
FROM execution_errors
WHERE
    NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    )
UNION ALL
SELECT
    'scheduled_commands' AS table_name, cast(scheduled_commands.id AS TEXT) AS row_id, 'data' AS column_name,
    scheduled_commands.data AS missing
FROM scheduled_commands
WHERE
    scheduled_commands.command_name = 'ProcessWorkflow'
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = scheduled_commands.data
    )
UNION ALL
SELECT
    'scheduled_commands' AS table_name, cast(scheduled_commands.id AS TEXT) AS row_id, 'data' AS column_name,
    scheduled_commands.data AS missing
FROM scheduled_commands
WHERE
    scheduled_commands.command_name = 'ProcessEvent'
    AND NOT EXISTS (
        SELECT 1
        FROM events
        WHERE events.id = scheduled_commands.data
    )
LIMIT :row_limit;

-- name: find_missing_pointers(row_limit)
-- What waits for a pointer that its workflow, which is unfinished, does not have: table, id, the column and its value, and
-- the workflow. Other references to pointers do not count: hosts may remove pointers that are done.
-- used by: check
-- scan: open subscriptions, and all pointers
-- keep: each +; without it, SQLite 3.35 reads the workflows first
SELECT
    'event_subscriptions' AS table_name, event_subscriptions.id AS row_id, 'execution_pointer_id' AS column_name,
    event_subscriptions.execution_pointer_id AS missing, event_subscriptions.workflow_id
FROM event_subscriptions
WHERE
    event_subscriptions.terminated = 0
    AND NOT EXISTS (
        SELECT 1
        FROM execution_pointers
        WHERE
            execution_pointers.id = event_subscriptions.execution_pointer_id
            AND execution_pointers.workflow_id = event_subscriptions.workflow_id
    )
    AND EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = +event_subscriptions.workflow_id AND workflows.status IN ('Runnable', 'Suspended')
    )
UNION ALL
SELECT
    'execution_pointers' AS table_name, execution_pointers.id AS row_id, 'predecessor_id' AS column_name,
    execution_pointers.predecessor_id AS missing, execution_pointers.workflow_id
FROM execution_pointers
WHERE
    execution_pointers.status = 'PendingPredecessor' AND execution_pointers.predecessor_id IS NOT NULL
    AND NOT EXISTS (
        SELECT 1
        FROM execution_pointers AS predecessors
        WHERE
            predecessors.id = execution_pointers.predecessor_id
            AND predecessors.workflow_id = execution_pointers.workflow_id
    )
    AND EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = +execution_pointers.workflow_id AND workflows.status IN ('Runnable', 'Suspended')
    )
LIMIT :row_limit;

-- name: check_integrity(row_limit)
-- The problems that SQLite finds in the file: damaged pages, indexes that do not match their table.
-- https://sqlite.org/pragma.html#pragma_integrity_check
-- used by: check
-- scan: the whole file is read
SELECT integrity_check AS problem
FROM pragma_integrity_check
WHERE integrity_check <> 'ok'
ORDER BY integrity_check
LIMIT :row_limit;

-- name: check_copy()
-- The first problem that SQLite finds in the pages of a file, if any. It does not compare indexes with tables.
-- https://sqlite.org/pragma.html#pragma_quick_check
-- used by: backup
-- scan: the whole file is read
SELECT quick_check AS problem
FROM pragma_quick_check
WHERE quick_check <> 'ok'
ORDER BY quick_check
LIMIT 1;

-- name: check_foreign_keys(row_limit)
-- Rows whose foreign key refers to a missing row: the table, the row's number in it, and the table that it refers to.
-- used by: check
-- scan: every row is read
SELECT
    found."table" AS table_name,
    found.rowid AS row_number,
    found.parent AS parent_table
FROM pragma_foreign_key_check AS found
ORDER BY table_name, row_number
LIMIT :row_limit;

-- name: list_indexes()
-- The names of all indexes.
-- used by: check, survey
-- scan: the schema's own table, a few rows
SELECT name
FROM sqlite_master
WHERE type = 'index'
ORDER BY name;

-- name: has_statistics()$
-- 1 if the planner has statistics, which it keeps in sqlite_stat1; else 0.
-- https://sqlite.org/lang_analyze.html
-- used by: check, survey
-- scan: the schema's own table, a few rows
SELECT count(*)
FROM sqlite_master
WHERE name = 'sqlite_stat1';

-- name: list_statistics()
-- How many rows the planner thinks each table has: the first number in the statistics of any of its indexes. Fails
-- unless has_statistics is 1.
-- used by: check, survey
-- scan: a row for each index
SELECT
    tbl AS table_name,
    max(cast(stat AS INTEGER)) AS row_count
FROM sqlite_stat1
GROUP BY tbl
ORDER BY tbl;

-- name: update_statistics()#
-- Updates the planner's statistics from a sample, so that it takes milliseconds on any store.
-- https://sqlite.org/pragma.html#pragma_analysis_limit
-- used by: update_statistics
-- scan: a thousand rows of each index
PRAGMA analysis_limit = 1000;
ANALYZE;
