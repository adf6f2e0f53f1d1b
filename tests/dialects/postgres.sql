-- What the tests ask of PostgreSQL beyond the library's own queries.

-- name: update_statistics()!
-- Also marks what all can see, as the server itself does in a table after a while.
-- https://www.postgresql.org/docs/current/sql-vacuum.html
VACUUM (ANALYZE) workflows, execution_pointers, definition_sequences, events, event_subscriptions, scheduled_commands,
execution_errors, wfe_sql_store;

-- name: pack_tables()!
-- How large tables and indexes are depends on which of many hosts came first, and plans depend on that; so they are
-- written anew.
VACUUM (FULL) workflows, execution_pointers, definition_sequences, events, event_subscriptions, scheduled_commands,
execution_errors, wfe_sql_store;

-- name: list_indexes()
SELECT indexname
FROM pg_indexes
WHERE schemaname = current_schema();

-- name: drop_index(index_name)!
-- :index_name stands for a name, which cannot be bound.
DROP INDEX :index_name;

-- name: drop_schema(schema_name)!
-- :schema_name stands for a name, which cannot be bound.
DROP SCHEMA IF EXISTS :schema_name CASCADE;

-- name: restart_sequences()#
-- Numbers are not given back when a transaction is undone; but this is undone with it.
-- https://www.postgresql.org/docs/current/functions-sequence.html
ALTER SEQUENCE execution_errors_id_seq RESTART WITH 100;
ALTER SEQUENCE execution_pointers_position_seq RESTART WITH 100;
ALTER SEQUENCE scheduled_commands_id_seq RESTART WITH 100;

-- name: list_tables()
SELECT relname
FROM pg_class
WHERE relnamespace = to_regnamespace((parse_ident(current_setting('search_path'), FALSE))[1]) AND relkind = 'r'
ORDER BY relname;

-- name: list_rows(table_name)
-- :table_name stands for a name, which cannot be bound. A document begins with the shortest name, the id.
SELECT to_jsonb(stored) AS row
FROM :table_name AS stored
ORDER BY cast(to_jsonb(stored) AS TEXT) COLLATE "C";

-- name: list_definitions()
-- What the schema consists of.
WITH tables AS (
    SELECT
        oid, relname, reltuples
    FROM pg_class
    WHERE relnamespace = to_regnamespace((parse_ident(current_setting('search_path'), FALSE))[1]) AND relkind = 'r'
),

definitions AS (
    SELECT 'schema' AS definition
    FROM pg_namespace
    WHERE nspname = (parse_ident(current_setting('search_path'), FALSE))[1]
    UNION ALL
    SELECT
        'column ' || tables.relname || '.' || attname || ' ' || format_type(atttypid, atttypmod)
        || CASE WHEN attcollation <> 0 AND attcollation <> 100 THEN ' COLLATE ' || cast(cast(attcollation AS REGCOLLATION) AS TEXT) ELSE '' END
        || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
        || CASE attidentity WHEN 'd' THEN ' IDENTITY' ELSE '' END
        || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '')
    FROM tables
    INNER JOIN pg_attribute ON tables.oid = attrelid
    LEFT JOIN pg_attrdef ON attrelid = adrelid AND attnum = adnum
    WHERE attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'constraint ' || tables.relname || '.' || conname || ' ' || pg_get_constraintdef(pg_constraint.oid, TRUE)
    FROM tables
    INNER JOIN pg_constraint ON tables.oid = conrelid
    WHERE contype <> 'n'
    UNION ALL
    SELECT pg_get_indexdef(indexrelid, 0, TRUE)
    FROM tables
    INNER JOIN pg_index ON tables.oid = indrelid
    UNION ALL
    SELECT pg_get_triggerdef(pg_trigger.oid, TRUE)
    FROM tables
    INNER JOIN pg_trigger ON tables.oid = tgrelid
    WHERE NOT tgisinternal
    UNION ALL
    SELECT 'view ' || relname || pg_get_viewdef(oid)
    FROM pg_class
    WHERE relnamespace = to_regnamespace((parse_ident(current_setting('search_path'), FALSE))[1]) AND relkind = 'v'
    UNION ALL
    SELECT 'function ' || proname || prosrc
    FROM pg_proc
    WHERE pronamespace = to_regnamespace((parse_ident(current_setting('search_path'), FALSE))[1])
    UNION ALL
    SELECT 'statistics of ' || relname
    FROM tables
    WHERE reltuples >= 0
)

SELECT definition
FROM definitions
ORDER BY definition COLLATE "C";

-- name: create_workflows_without_name()#
-- A table as it was before workflows had names, with a row.
CREATE TABLE workflows (
    id TEXT PRIMARY KEY,
    definition_id TEXT NOT NULL,
    version INT NOT NULL,
    description TEXT,
    reference TEXT,
    status TEXT NOT NULL,
    data JSONB NOT NULL DEFAULT '{}',
    next_execution BIGINT,
    create_time TIMESTAMPTZ NOT NULL,
    complete_time TIMESTAMPTZ
);
INSERT INTO workflows (id, definition_id, version, status, create_time)
VALUES ('w', 'order', 1, 'Runnable', '2026-05-28 20:00:00+00');

-- name: make_query_statistics()!
-- A view in place of that of pg_stat_statements, which few servers have.
CREATE OR REPLACE TEMPORARY VIEW pg_stat_statements AS
SELECT
    pg_database.oid AS dbid, '/* get_event */ SELECT 1' AS query, cast(4 AS BIGINT) AS calls,
    cast(2 AS DOUBLE PRECISION) AS total_exec_time, cast(3 AS BIGINT) AS rows, cast(5 AS BIGINT) AS shared_blks_hit,
    cast(1 AS BIGINT) AS shared_blks_read
FROM pg_database;

-- name: insert_a_row_of_each()#
-- A row in each table, for a script that deletes them.
INSERT INTO workflows (id, name, definition_id, version, status, create_time)
VALUES ('w', 'w', 'order', 1, 'Runnable', '2026-05-28 20:00:00+00');
INSERT INTO execution_pointers (id, workflow_id, step_id, status)
VALUES ('p', 'w', 0, 'Pending');
INSERT INTO definition_sequences (definition_id, next_num)
VALUES ('order', 1);
INSERT INTO events (id, event_name, event_key, event_time)
VALUES ('e', 'paid', 'k', '2026-05-28 20:00:00+00');
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of
)
VALUES ('s', 'w', 0, 'p', 'paid', 'k', '2026-05-28 20:00:00+00');
INSERT INTO scheduled_commands (command_name, data, execute_time)
VALUES ('ProcessEvent', 'e', 0);
INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)
VALUES ('2026-05-28 20:00:00+00', 'w', 'p', 'no');
