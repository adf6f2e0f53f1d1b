-- What the store itself is: which version of the tables it has.
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
-- Writes the version of the tables once they have it, unless the store is marked as half a copy.
-- used by: ensure_store_exists
-- index: none
INSERT INTO wfe_sql_store (id, version)
VALUES (1, :version)
ON CONFLICT (id) DO UPDATE SET version = excluded.version
WHERE version < excluded.version;

-- name: set_store_version(version)!
-- Marks a store as half a copy, by a version that no release knows, and takes the mark away at the end.
-- used by: copy_to
-- index: INTEGER PRIMARY KEY
UPDATE wfe_sql_store
SET version = :version
WHERE id = 1;

-- name: list_parts()
-- What the database consists of, to see what a store lacks, or that it is none: every column of every table and view, as
-- "table.column", with what stands in for it where it is lacking; views and triggers with their text; indexes.
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
-- Lets a table that lacks columns be only read as if it had them: in this connection, a view. What a view consists of
-- cannot be bound: the table's name, and what list_parts says of the columns in a complete store, come here in place of
-- the parameters, and only then does this run.
-- used by: open_reader
-- index: none
CREATE TEMP VIEW :table_name AS
SELECT
    *,
    rowid,
    :columns
FROM main.:table_name;
