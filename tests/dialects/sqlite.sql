-- What the tests ask of SQLite beyond the library's own queries.

-- name: update_statistics()!
-- https://sqlite.org/lang_analyze.html
ANALYZE;

-- name: list_indexes()
SELECT name
FROM sqlite_master
WHERE type = 'index';

-- name: drop_index(index_name)!
-- :index_name stands for a name, which cannot be bound.
DROP INDEX :index_name;

-- name: list_definitions()
-- What the database consists of.
SELECT sql || ';'
FROM sqlite_master
WHERE sql IS NOT NULL
ORDER BY rowid;

-- name: list_tables()
SELECT name
FROM sqlite_master
WHERE type = 'table' AND name <> 'sqlite_sequence'
ORDER BY name;

-- name: list_rows(table_name)
-- :table_name stands for a name, which cannot be bound.
SELECT *
FROM :table_name
ORDER BY rowid;
