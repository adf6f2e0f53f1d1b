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
