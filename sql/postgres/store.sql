-- The store itself: its schema, and the version of its tables.

-- name: create_wfe_sql_store_table()#
-- One row, with the version. The reference does not know this table and leaves it alone.
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS wfe_sql_store (
    id INT PRIMARY KEY CHECK (id = 1),
    version INT NOT NULL
);

-- name: get_store_version()$
-- The version of the tables.
-- used by: ensure_store_exists, check, copy_to
-- index: wfe_sql_store_pkey
SELECT version
FROM wfe_sql_store
WHERE id = 1;

-- name: record_store_version(version)!
-- Records the version of the tables, unless the store is marked as an unfinished copy.
-- used by: ensure_store_exists
-- index: none
INSERT INTO wfe_sql_store (id, version)
VALUES (1, :version)
ON CONFLICT (id) DO UPDATE SET version = greatest(wfe_sql_store.version, excluded.version);

-- name: set_store_version(version)!
-- Marks a store as an unfinished copy, with a version that no release knows, and removes the mark at the end.
-- used by: copy_to
-- index: wfe_sql_store_pkey
UPDATE wfe_sql_store
SET version = :version
WHERE id = 1;

-- name: list_parts()
-- The parts of the store's schema, to see what it lacks, or that it is not a store, even if the role may not use the
-- schema, which is then not the current one: every column of every table and view, as "table.column"; views and triggers
-- with their text; indexes.
-- used by: ensure_store_exists
-- scan: the catalog, a few rows
WITH listed AS (
    SELECT pg_class.oid, pg_class.relname, pg_class.relkind
    FROM pg_class
    INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
    WHERE pg_namespace.nspname = (parse_ident(current_setting('search_path'), FALSE))[1]
)

SELECT
    (listed.relname || '.' || pg_attribute.attname) COLLATE "C" AS part,
    NULL AS definition
FROM listed
INNER JOIN pg_attribute ON listed.oid = pg_attribute.attrelid
WHERE
    listed.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND pg_attribute.attnum > 0
    AND NOT pg_attribute.attisdropped
UNION ALL
SELECT
    relname AS part,
    CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END AS definition
FROM listed
WHERE relkind IN ('v', 'i', 'I')
UNION ALL
SELECT
    pg_trigger.tgname AS part,
    pg_get_triggerdef(pg_trigger.oid, TRUE) AS definition
FROM listed
INNER JOIN pg_trigger ON listed.oid = pg_trigger.tgrelid
WHERE NOT pg_trigger.tgisinternal
ORDER BY part;

-- name: hold_making_lock()^
-- Lets one host at a time create or upgrade a store; the lock ends with the transaction.
-- https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
-- used by: ensure_store_exists
-- index: none
-- keep: a lock that ends with the transaction; two hosts that start at once would both create the store
SELECT pg_advisory_xact_lock(hashtext('wfe_sql'), hashtext((parse_ident(current_setting('search_path'), FALSE))[1]));

-- name: lift_statement_timeout(is_local)^
-- Lifts the limit on the time of statements until the transaction or the connection ends, to change tables and build
-- indexes. https://www.postgresql.org/docs/current/runtime-config-client.html
-- used by: ensure_store_exists, build_indexes
-- index: none
SELECT set_config('statement_timeout', '0', cast(:is_local AS BOOLEAN)) AS statement_timeout;

-- name: drop_invalid_indexes()#
-- Drops indexes whose build was interrupted: every write maintains them, and no query uses them.
-- https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
-- used by: build_indexes
-- index: none
DO $$
DECLARE
    found RECORD;
BEGIN
    FOR found IN
        SELECT pg_index.indexrelid::regclass AS index_name
        FROM pg_index
        INNER JOIN pg_class ON pg_index.indexrelid = pg_class.oid
        WHERE
            pg_class.relnamespace = current_schema()::regnamespace
            AND NOT pg_index.indisvalid
            AND NOT EXISTS (SELECT FROM pg_constraint WHERE pg_constraint.conindid = pg_index.indexrelid)
    LOOP
        EXECUTE format('DROP INDEX %s', found.index_name);
    END LOOP;
END
$$;

-- name: list_numbers(workflows)
-- Columns whose numbers come from a sequence, each with the last number that was given, the highest that is stored, and
-- the last possible one. Positions have no index, so only those of the latest :workflows workflows are read. Sequences that
-- the role may not see are left out.
-- https://www.postgresql.org/docs/current/catalog-pg-sequence.html
-- used by: mend_numbers, check
-- scan: the catalog, a few rows, and as many workflows as are asked for
WITH numbered AS (
    SELECT
        'execution_pointers' AS table_name,
        'position' AS column_name,
        max(pointer.position) AS highest
    FROM (
        SELECT id
        FROM workflows
        ORDER BY create_time DESC, id DESC
        LIMIT cast(:workflows AS BIGINT)
    ) AS latest
    INNER JOIN execution_pointers AS pointer ON latest.id = pointer.workflow_id
    UNION ALL
    SELECT
        'execution_errors' AS table_name,
        'id' AS column_name,
        max(id) AS highest
    FROM execution_errors
    UNION ALL
    SELECT
        'scheduled_commands' AS table_name,
        'id' AS column_name,
        max(id) AS highest
    FROM scheduled_commands
),

named AS MATERIALIZED (
    SELECT
        table_name,
        column_name,
        highest,
        cast(pg_get_serial_sequence(table_name, column_name) AS REGCLASS) AS sequence_name
    FROM numbered
)

SELECT
    named.table_name,
    named.column_name,
    coalesce(pg_sequence_last_value(named.sequence_name), 0) AS given,
    coalesce(named.highest, 0) AS highest,
    pg_sequence.seqmax AS last_one
FROM named
INNER JOIN pg_sequence ON named.sequence_name = pg_sequence.seqrelid
WHERE has_sequence_privilege(named.sequence_name, 'SELECT, USAGE')
ORDER BY named.table_name;

-- name: mend_number(table_name, column_name, highest)$
-- Lets the sequence of a column continue after the highest stored number.
-- https://www.postgresql.org/docs/current/functions-sequence.html
-- used by: mend_numbers
-- index: none
SELECT setval(pg_get_serial_sequence(:table_name, :column_name), cast(:highest AS BIGINT)) AS given;

-- name: create_schema()#
-- Creates the store's schema. CREATE SCHEMA IF NOT EXISTS needs the privilege to create one even if it exists. Names skip
-- a schema that the role may not use, and tables would become temporary ones.
-- used by: ensure_store_exists
-- index: none
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = (parse_ident(current_setting('search_path'), FALSE))[1]) THEN
        EXECUTE format('CREATE SCHEMA %I', (parse_ident(current_setting('search_path'), FALSE))[1]);
    END IF;
    IF current_schema() IS DISTINCT FROM (parse_ident(current_setting('search_path'), FALSE))[1] THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema ' || (parse_ident(current_setting('search_path'), FALSE))[1];
    END IF;
END
$$;

-- name: collate_ids_bytewise()#
-- Gives the ids of the reference's tables the order of ours, so that a dump can find its pages by an index. The rows do
-- not change; the indexes on these columns are rebuilt, and meanwhile nobody else can use the table.
-- https://www.postgresql.org/docs/current/sql-altertable.html
-- used by: ensure_store_exists
-- index: none
DO $$
DECLARE
    found RECORD;
BEGIN
    FOR found IN
        SELECT attrelid::regclass AS table_name, attname AS column_name
        FROM pg_attribute
        WHERE
            (attrelid, attname) IN (
                (to_regclass('workflows'), 'id'),
                (to_regclass('execution_pointers'), 'workflow_id'),
                (to_regclass('definition_sequences'), 'definition_id'),
                (to_regclass('events'), 'id'),
                (to_regclass('event_subscriptions'), 'id')
            )
            AND attcollation <> '"C"'::regcollation
    LOOP
        EXECUTE format(
            'ALTER TABLE %s ALTER COLUMN %I TYPE TEXT COLLATE "C"', found.table_name, found.column_name
        );
    END LOOP;
END
$$;

-- name: grant_documents()#
-- Grants whoever may read a table its documents too, so that roles with few privileges keep working after the store's
-- owner has upgraded it. https://www.postgresql.org/docs/current/ddl-priv.html
-- used by: ensure_store_exists
-- scan: the catalog, a few rows
DO $$
DECLARE
    found RECORD;
BEGIN
    FOR found IN
        SELECT documents.view_name, granted.grantee
        FROM (
            VALUES
            ('workflows'::regclass, 'workflow_documents'::regclass),
            ('execution_pointers'::regclass, 'execution_pointer_documents'::regclass),
            ('events'::regclass, 'event_documents'::regclass),
            ('event_subscriptions'::regclass, 'event_subscription_documents'::regclass),
            ('execution_errors'::regclass, 'execution_error_documents'::regclass)
        ) AS documents (table_name, view_name)
        INNER JOIN pg_class ON documents.table_name = pg_class.oid
        CROSS JOIN LATERAL aclexplode(pg_class.relacl) AS granted
        WHERE granted.privilege_type = 'SELECT' AND granted.grantee <> pg_class.relowner
    LOOP
        EXECUTE format(
            'GRANT SELECT ON %s TO %s',
            found.view_name, CASE found.grantee WHEN 0 THEN 'PUBLIC' ELSE found.grantee::regrole::TEXT END
        );
    END LOOP;
END
$$;
