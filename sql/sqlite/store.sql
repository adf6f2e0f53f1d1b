-- The store itself: the version of its tables.
-- sqlfluff:exclude_rules:AM04

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
-- used by: open_writer, open_reader, ensure_store_exists, check, copy_to
-- index: INTEGER PRIMARY KEY
SELECT version
FROM wfe_sql_store
WHERE id = 1;

-- name: record_store_version(version)!
-- Records the version of the tables, unless the store is marked as an unfinished copy.
-- used by: ensure_store_exists
-- index: none
INSERT INTO wfe_sql_store (id, version)
VALUES (1, :version)
ON CONFLICT (id) DO UPDATE SET version = excluded.version
WHERE version < excluded.version;

-- name: set_store_version(version)!
-- Marks a store as an unfinished copy, with a version that no release knows, and removes the mark at the end.
-- used by: copy_to
-- index: INTEGER PRIMARY KEY
UPDATE wfe_sql_store
SET version = :version
WHERE id = 1;

-- name: list_parts()
-- The parts of the database, to see what a store lacks, or that it is not a store: every column of every table and view,
-- as "table.column", with what replaces it if it is missing; views and triggers with their text; indexes.
-- used by: open_writer, open_reader, ensure_store_exists
-- scan: the schema's own table, a few rows
SELECT
    listed.name || '.' || listed_column.name AS part,
    coalesce(listed_column.dflt_value, 'NULL') || ' AS ' || listed_column.name AS definition
FROM sqlite_master AS listed
CROSS JOIN pragma_table_info(listed.name) AS listed_column
WHERE listed.type IN ('table', 'view')
UNION ALL
SELECT
    name AS part,
    iif(type = 'index', NULL, sql) AS definition
FROM sqlite_master
WHERE type <> 'table'
ORDER BY part;

-- name: stand_in_for_columns(table_name, columns)!
-- Lets this connection read a table as if it had the columns that it lacks, through a view. A view's definition cannot
-- be bound, so the parameters are replaced as text before this runs: by the table's name, and by what list_parts returns
-- for the columns in a complete store.
-- used by: open_reader
-- index: none
CREATE TEMP VIEW :table_name AS
SELECT
    *,
    rowid,
    :columns
FROM main.:table_name;
