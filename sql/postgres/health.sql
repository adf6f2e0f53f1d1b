-- Counts what is in the store, and finds what is wrong with it. Hosts at work run none of these.
-- Times come as text, in the form of JSON: to_json gives it, and #>> takes off its quotes.
-- Due work is counted in the order of its claim, with an effectively unlimited LIMIT that hides the row count from the
-- planner: otherwise it might use one of the reference's indexes, and read each row of a status.

-- name: get_store_size()^
-- The size of the store's tables and indexes in bytes. PostgreSQL does not tell how much of it is free for new rows
-- without an extension (pgstattuple).
-- used by: stats
-- scan: the catalog, a few rows
SELECT
    cast(coalesce(sum(pg_total_relation_size(pg_class.oid)), 0) AS BIGINT) AS size_bytes,
    cast(NULL AS BIGINT) AS free_bytes
FROM pg_class
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
WHERE pg_namespace.nspname = current_schema() AND pg_class.relkind = 'r';

-- name: count_workflows()
-- Workflows by definition and status, and when the first and the last of them were created.
-- used by: stats
-- scan: every workflow is counted
SELECT
    definition_id,
    status,
    count(*) AS workflows,
    to_json(min(create_time)) #>> '{}' AS oldest,
    to_json(max(create_time)) #>> '{}' AS newest
FROM workflows
GROUP BY definition_id, status
ORDER BY definition_id COLLATE "C", status COLLATE "C";

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
    min(
        CASE
            WHEN isfinite(create_time)
                THEN greatest(next_execution, cast(floor(extract(EPOCH FROM create_time)) AS BIGINT) * 1000)
            ELSE next_execution
        END
    ) AS since
FROM (
    SELECT
        next_execution,
        create_time
    FROM workflows
    WHERE
        status = 'Runnable' AND next_execution <= :as_at
        AND (
            cast(:free_since AS TIMESTAMPTZ) IS NULL
            OR (
                create_time <= :free_since
                AND coalesce(claim_expires_at, '-infinity') <= :free_since
            )
        )
    ORDER BY next_execution, id
    LIMIT (SELECT 9223372036854775807)
) AS due_workflows;

-- name: count_due_events(as_at, free_since)^
-- How many events up to :as_at are not processed, and the time of the oldest. If :free_since is given, only those
-- whose claim had ended by then.
-- used by: stats, check
-- index: idx_events_unprocessed
SELECT
    count(*) AS due,
    to_json(min(event_time)) #>> '{}' AS since
FROM (
    SELECT event_time
    FROM events
    WHERE
        NOT is_processed AND event_time <= cast(left(:as_at, 26) || '+00:00' AS TIMESTAMPTZ)
        AND (
            cast(:free_since AS TIMESTAMPTZ) IS NULL
            OR coalesce(claim_expires_at, '-infinity') <= :free_since
        )
    ORDER BY event_time, id
    LIMIT (SELECT 9223372036854775807)
) AS due_events;

-- name: count_due_commands(as_of, free_since)^
-- How many commands are due at :as_of (epoch ms), and when the first became due. If :free_since is given, only those whose
-- claim had ended by then.
-- used by: stats, check
-- index: idx_scheduled_commands_due
SELECT
    count(*) AS due,
    min(execute_time) AS since
FROM (
    SELECT execute_time
    FROM scheduled_commands
    WHERE
        execute_time <= :as_of
        AND (
            cast(:free_since AS TIMESTAMPTZ) IS NULL
            OR coalesce(claim_expires_at, '-infinity') <= :free_since
        )
    ORDER BY execute_time, id
    LIMIT (SELECT 9223372036854775807)
) AS due_commands;

-- name: find_expired_claims(now, row_limit)
-- Unfinished work whose claim or token had expired at :now, and that nobody took over: table, id, worker, expiry.
-- used by: check
-- scan: claims have no index, because every write would have to maintain it
SELECT table_name, row_id, worker_id, to_json(expired_at) #>> '{}' AS expired_at
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
    WHERE NOT events.is_processed AND events.claim_expires_at <= :now
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
    WHERE NOT event_subscriptions.terminated AND event_subscriptions.external_token_expiry <= :now
) AS expired
ORDER BY expired.expired_at, table_name, row_id COLLATE "C"
LIMIT :row_limit;

-- name: find_rows_without_id()
-- Tables with rows whose id is empty, which are in no page, and the column.
-- used by: check, dump, copy_to
-- index: workflows_pkey, events_pkey, event_subscriptions_pkey, definition_sequences_pkey
SELECT
    'workflows' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM workflows
        WHERE id = ''
    )
UNION ALL
SELECT
    'events' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM events
        WHERE id = ''
    )
UNION ALL
SELECT
    'event_subscriptions' AS table_name,
    'id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM event_subscriptions
        WHERE id = ''
    )
UNION ALL
SELECT
    'definition_sequences' AS table_name,
    'definition_id' AS column_name
WHERE
    EXISTS (
        SELECT 1
        FROM definition_sequences
        WHERE definition_id = ''
    );

-- name: find_orphans(row_limit)
-- Rows that refer to a missing workflow or event: table, id, the column and its value. Pointers are left out, because
-- check_foreign_keys finds theirs.
-- used by: check
-- scan: every row is read
SELECT table_name, row_id, column_name, missing
FROM (
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
) AS orphan
ORDER BY table_name, row_id COLLATE "C"
LIMIT :row_limit;

-- name: find_missing_pointers(row_limit)
-- What waits for a pointer that its workflow, which is unfinished, does not have: table, id, the column and its value, and
-- the workflow. Other references to pointers do not count: hosts may remove pointers that are done.
-- used by: check
-- scan: open subscriptions, and the pointers of unfinished workflows
WITH unfinished AS MATERIALIZED (
    SELECT id
    FROM workflows
    WHERE status IN ('Runnable', 'Suspended')
)

SELECT table_name, row_id, column_name, missing, workflow_id
FROM (
    SELECT
        'event_subscriptions' AS table_name, event_subscriptions.id AS row_id, 'execution_pointer_id' AS column_name,
        event_subscriptions.execution_pointer_id AS missing, event_subscriptions.workflow_id
    FROM event_subscriptions
    WHERE
        NOT event_subscriptions.terminated
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
            WHERE workflows.id = event_subscriptions.workflow_id AND workflows.status IN ('Runnable', 'Suspended')
        )
    UNION ALL
    SELECT
        'execution_pointers' AS table_name, execution_pointers.id AS row_id, 'predecessor_id' AS column_name,
        execution_pointers.predecessor_id AS missing, execution_pointers.workflow_id
    FROM unfinished
    INNER JOIN execution_pointers ON unfinished.id = execution_pointers.workflow_id
    WHERE
        execution_pointers.status = 'PendingPredecessor' AND execution_pointers.predecessor_id IS NOT NULL
        AND NOT EXISTS (
            SELECT 1
            FROM execution_pointers AS predecessors
            WHERE
                predecessors.id = execution_pointers.predecessor_id
                AND predecessors.workflow_id = execution_pointers.workflow_id
        )
) AS waiting
ORDER BY table_name, row_id COLLATE "C"
LIMIT :row_limit;

-- name: check_integrity(row_limit)
-- The problems that PostgreSQL knows of: indexes that it does not use, because building them failed.
-- https://www.postgresql.org/docs/current/catalog-pg-index.html
-- used by: check
-- scan: the catalog, a few rows
SELECT 'index ' || pg_class.relname || ' is invalid; REINDEX it' AS problem
FROM pg_index
INNER JOIN pg_class ON pg_index.indexrelid = pg_class.oid
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
WHERE pg_namespace.nspname = current_schema() AND NOT pg_index.indisvalid
ORDER BY pg_class.relname
LIMIT :row_limit;

-- name: find_old_snapshots(older_than, transactions, row_limit)
-- What keeps dead row versions from being vacuumed, so that polls must skip them: sessions and prepared transactions
-- that began at or before :older_than, and replication slots that are :transactions behind; and since when. A role
-- without pg_read_all_stats sees only its own sessions.
-- https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-SPACE-RECOVERY
-- used by: check
-- scan: the catalog, and the server's own views, a few rows
SELECT holder, to_json(since) #>> '{}' AS since
FROM (
    SELECT
        'session ' || pid || ' of ' || coalesce(usename, 'nobody') || ' (' || application_name || ')' AS holder,
        xact_start AS since
    FROM pg_stat_activity
    WHERE
        datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
        AND coalesce(backend_xmin, backend_xid) IS NOT NULL AND xact_start <= cast(:older_than AS TIMESTAMPTZ)
    UNION ALL
    SELECT
        'prepared transaction ' || gid || ' of ' || owner AS holder,
        prepared AS since
    FROM pg_prepared_xacts
    WHERE database = current_database() AND prepared <= cast(:older_than AS TIMESTAMPTZ)
    UNION ALL
    SELECT
        'replication slot ' || slot_name AS holder,
        cast(NULL AS TIMESTAMPTZ) AS since
    FROM pg_replication_slots
    WHERE age(xmin) > cast(:transactions AS INTEGER)
) AS holders
ORDER BY since, holder
LIMIT cast(:row_limit AS BIGINT);

-- name: find_query_statistics()$
-- Whether there is a view pg_stat_statements that the role may read. If so, its schema is added to the search path until
-- the transaction ends.
-- https://www.postgresql.org/docs/current/pgstatstatements.html
-- used by: query_stats
-- scan: the catalog, a few rows
SELECT
    set_config('search_path', current_setting('search_path') || ', ' || quote_ident(pg_namespace.nspname), TRUE)
    IS NOT NULL AS is_there
FROM pg_class
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
WHERE
    pg_class.relname = 'pg_stat_statements' AND pg_class.relkind = 'v'
    AND has_table_privilege(pg_class.oid, 'SELECT') AND has_schema_privilege(pg_namespace.oid, 'USAGE')
ORDER BY pg_namespace.nspname
LIMIT 1;

-- name: list_query_statistics()
-- What the server measured for each query of this library in this database, the most expensive first: its name, which
-- the statement begins with, calls, mean ms, rows, and buffers read from memory or disk. It is in parentheses so that it
-- does not count as a query with a plan: most servers do not have this view.
-- used by: query_stats
-- scan: the server's own view, some thousand rows
(
    SELECT
        substring(query FROM '^/[*] ([a-z0-9_]+) [*]/') AS query_name,
        cast(sum(calls) AS BIGINT) AS calls,
        cast(sum(total_exec_time) / greatest(sum(calls), 1) AS DOUBLE PRECISION) AS mean_ms,
        cast(sum(rows) AS BIGINT) AS row_count,
        cast(sum(shared_blks_hit + shared_blks_read) AS BIGINT) AS buffers
    FROM pg_stat_statements
    WHERE
        query ~ '^/[*] [a-z0-9_]+ [*]/'
        AND dbid = (
            SELECT oid
            FROM pg_database
            WHERE datname = current_database()
        )
    GROUP BY query_name
    ORDER BY sum(total_exec_time) DESC, query_name
);

-- name: check_foreign_keys(row_limit)
-- Rows whose foreign key refers to a missing row: the table, the row's number in it, and the table that it refers to. They
-- exist only if somebody wrote with the check off (session_replication_role).
-- used by: check
-- scan: every row is read
SELECT
    'execution_pointers' AS table_name,
    execution_pointers.position AS row_number,
    'workflows' AS parent_table
FROM execution_pointers
WHERE
    NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_pointers.workflow_id
    )
ORDER BY row_number
LIMIT :row_limit;

-- name: list_indexes()
-- The names of all indexes.
-- used by: check, survey
-- scan: the catalog, a few rows
SELECT indexname AS name
FROM pg_indexes
WHERE schemaname = current_schema()
ORDER BY indexname;

-- name: has_statistics()$
-- 1 if the planner has statistics of one of the tables; else 0.
-- used by: check
-- scan: the catalog, a few rows
SELECT cast(count(*) > 0 AS INT) AS has_statistics
FROM pg_class
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
WHERE pg_namespace.nspname = current_schema() AND pg_class.relkind = 'r' AND pg_class.reltuples >= 0;

-- name: list_statistics()
-- How many rows the planner thinks each table has.
-- https://www.postgresql.org/docs/current/catalog-pg-class.html
-- used by: check, survey
-- scan: the catalog, a few rows
SELECT
    pg_class.relname AS table_name,
    cast(pg_class.reltuples AS BIGINT) AS row_count
FROM pg_class
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
WHERE pg_namespace.nspname = current_schema() AND pg_class.relkind = 'r' AND pg_class.reltuples >= 0
ORDER BY pg_class.relname;

-- name: update_statistics()#
-- Updates the planner's statistics from a sample.
-- https://www.postgresql.org/docs/current/sql-analyze.html
-- used by: update_statistics
-- scan: a sample of each table
ANALYZE workflows;
ANALYZE execution_pointers;
ANALYZE definition_sequences;
ANALYZE events;
ANALYZE event_subscriptions;
ANALYZE scheduled_commands;
ANALYZE execution_errors;
