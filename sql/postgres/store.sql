-- What the store itself is: its schema, and which version of the tables it has.

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
-- used by: ensure_store_exists
-- index: wfe_sql_store_pkey
SELECT version
FROM wfe_sql_store
WHERE id = 1;

-- name: record_store_version(version)!
-- Writes the version of the tables once they have it.
-- used by: ensure_store_exists
-- index: none
INSERT INTO wfe_sql_store (id, version)
VALUES (1, cast(:version AS INT))
ON CONFLICT (id) DO UPDATE SET version = excluded.version;

-- name: list_columns()
-- Every column of every table and view of the store's schema, to see what it lacks, or that it is no store; also where
-- the role may not use the schema, so that it is not the current one.
-- used by: ensure_store_exists
-- scan: the catalog, a few rows
SELECT
    pg_class.relname AS table_name,
    pg_attribute.attname AS column_name
FROM pg_class
INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
INNER JOIN pg_attribute ON pg_class.oid = pg_attribute.attrelid
WHERE
    pg_namespace.nspname = current_setting('wfe_sql.schema')
    AND pg_class.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND pg_attribute.attnum > 0
    AND NOT pg_attribute.attisdropped
ORDER BY table_name, pg_attribute.attnum;

-- name: hold_making_lock()^
-- Lets one host at a time make a store or bring it up to date; the lock ends with the transaction.
-- https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
-- used by: ensure_store_exists
-- index: none
SELECT pg_advisory_xact_lock(hashtext('wfe_sql'), hashtext(current_setting('wfe_sql.schema')));

-- name: create_schema()#
-- Makes the store's schema. CREATE SCHEMA IF NOT EXISTS would want the right to make one even where it exists. A schema
-- that the role may not use is passed over by names, and tables would become temporary ones.
-- used by: ensure_store_exists
-- index: none
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = current_setting('wfe_sql.schema')) THEN
        EXECUTE format('CREATE SCHEMA %I', current_setting('wfe_sql.schema'));
    END IF;
    IF current_schema() IS DISTINCT FROM current_setting('wfe_sql.schema') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for schema ' || current_setting('wfe_sql.schema');
    END IF;
END
$$;

-- name: order_ids_by_bytes()#
-- Gives the ids of tables that the reference made the order of ours, so that a dump finds its pages by an index. The rows
-- stay as they are; the indexes on these columns are built anew, while nobody else may use the table.
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
