-- What a connection is set to, and how a unit of work begins and ends.
-- sqlfluff:ignore:parsing

-- name: use_wal()$
-- Readers and the writer do not block each other; the file keeps this mode. Returns the mode that is in force.
-- https://sqlite.org/wal.html
-- used by: open
-- index: none
PRAGMA journal_mode = WAL;

-- name: enforce_foreign_keys()!
-- SQLite leaves foreign keys unchecked unless each connection asks for them.
-- used by: open
-- index: none
PRAGMA foreign_keys = ON;

-- name: use_full_durability()!
-- Each commit is on the disk before it is acknowledged.
-- https://sqlite.org/pragma.html#pragma_synchronous
-- used by: open
-- index: none
PRAGMA synchronous = FULL;

-- name: use_normal_durability()!
-- A commit survives the death of the process, but the last ones may be lost when the power fails.
-- used by: open
-- index: none
PRAGMA synchronous = NORMAL;

-- name: refuse_writes()!
-- A reader's connection cannot write, whatever a tuned query says.
-- used by: open
-- index: none
PRAGMA query_only = ON;

-- name: begin_write()!
-- Takes the write lock at once, so that a unit never has to be started again half way.
-- used by: run_writes, ensure_store_exists
-- index: none
BEGIN IMMEDIATE;

-- name: begin_read()!
-- One snapshot for all that is read until commit.
-- used by: run_reads
-- index: none
BEGIN;

-- name: commit()!
-- Makes all units since begin_write durable together.
-- used by: run_writes, run_reads, ensure_store_exists
-- index: none
COMMIT;

-- name: rollback()!
-- Undoes everything since begin_write.
-- used by: run_writes, run_reads, ensure_store_exists
-- index: none
ROLLBACK;

-- name: begin_unit()!
-- Each unit of work has its own savepoint, so that it can fail alone.
-- used by: run_writes
-- index: none
SAVEPOINT unit_of_work;

-- name: commit_unit()!
-- The unit's changes become part of the transaction.
-- used by: run_writes
-- index: none
RELEASE unit_of_work;

-- name: rollback_unit()!
-- The unit's changes are undone; its savepoint stays until commit_unit.
-- used by: run_writes
-- index: none
ROLLBACK TO unit_of_work;

-- name: list_columns()
-- Every column of every table, to see what an older store lacks.
-- used by: ensure_store_exists
-- scan: the schema's own table, a few rows
SELECT
    schema_table.name AS table_name,
    table_column.name AS column_name
FROM sqlite_master AS schema_table
INNER JOIN pragma_table_info(schema_table.name) AS table_column
WHERE schema_table.type = 'table'
ORDER BY table_name, table_column.cid;
