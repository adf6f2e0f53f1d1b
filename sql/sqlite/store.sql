-- What the store itself is: which version of the tables it has.

-- name: create_wfe_sql_store_table()#
-- One row, with the version. The reference does not know this table and leaves it alone.
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS wfe_sql_store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
);

-- name: get_store_version()$
-- The version of the tables.
-- used by: open_writer, open_reader, ensure_store_exists
-- index: INTEGER PRIMARY KEY
SELECT version
FROM wfe_sql_store
WHERE id = 1;

-- name: record_store_version(version)!
-- Writes the version of the tables once they have it.
-- used by: ensure_store_exists
-- index: none
INSERT INTO wfe_sql_store (id, version)
VALUES (1, :version)
ON CONFLICT (id) DO UPDATE SET version = excluded.version
WHERE version <> excluded.version;

-- name: list_columns()
-- Every column of every table and view, to see what a store lacks, or that it is none.
-- used by: open_writer, open_reader, ensure_store_exists
-- scan: the schema's own table, a few rows
SELECT
    listed.name AS table_name,
    listed_column.name AS column_name
FROM sqlite_master AS listed
CROSS JOIN pragma_table_info(listed.name) AS listed_column
WHERE listed.type IN ('table', 'view')
ORDER BY table_name, listed_column.cid;
