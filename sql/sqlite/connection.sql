-- The settings of a connection, and the beginning and end of a unit of work.
-- sqlfluff:ignore:parsing

-- name: use_wal()$
-- Readers and the writer do not block each other; the file keeps this mode. Returns the mode in force.
-- https://sqlite.org/wal.html
-- used by: open_writer
-- index: none
PRAGMA journal_mode = WAL;

-- name: use_rollback_journal()$
-- A backup has no log, so that it can be read from a read-only disk. Returns the mode in force.
-- https://sqlite.org/wal.html#read_only_databases
-- used by: backup
-- index: none
PRAGMA journal_mode = DELETE;

-- name: limit_log()$
-- Truncates a log that grew during a long read to this many bytes when it is reset. Usually it has 4 MB, at which SQLite
-- copies it into the file. Returns the limit. https://sqlite.org/pragma.html#pragma_journal_size_limit
-- used by: open_writer
-- index: none
PRAGMA journal_size_limit = 16777216;

-- name: copy_log()^
-- Copies the log into the file, as far as no reader needs it. Returns 0, how many pages the log holds, and how many of
-- these are copied by now. https://sqlite.org/pragma.html#pragma_wal_checkpoint
-- used by: is_log_held
-- index: none
PRAGMA wal_checkpoint (PASSIVE);

-- name: enforce_foreign_keys()!
-- SQLite checks foreign keys only if each connection asks for it.
-- used by: ensure_store_exists, open_reader
-- index: none
-- keep: ON; pointers would stay when their workflow is deleted
PRAGMA foreign_keys = ON;

-- name: suspend_foreign_keys()!
-- Stops checking while old tables are replaced; it has no effect inside a transaction, so it comes before begin_write.
-- https://sqlite.org/lang_altertable.html#making_other_kinds_of_table_schema_changes
-- used by: ensure_store_exists
-- index: none
PRAGMA foreign_keys = OFF;

-- name: use_full_durability()!
-- Each commit is on disk before it is acknowledged.
-- https://sqlite.org/pragma.html#pragma_synchronous
-- used by: open_writer
-- index: none
-- keep: FULL; hosts are promised that what is acknowledged is on disk
PRAGMA synchronous = FULL;

-- name: use_normal_durability()!
-- A commit survives the death of the process, but the last ones may be lost when the power fails.
-- used by: open_writer
-- index: none
PRAGMA synchronous = NORMAL;

-- name: refuse_writes()!
-- Keeps a reader's connection from writing, whatever a tuned query says.
-- used by: open_reader
-- index: none
-- keep: ON; a reader would write beside the one writer
PRAGMA query_only = ON;

-- name: wait_for_no_lock()$
-- A connection on the event loop must not sleep there until another one releases a lock; and on a thread, the timeout
-- starts when the call was made, which SQLite does not know. Returns the timeout.
-- https://sqlite.org/pragma.html#pragma_busy_timeout
-- used by: open_reader
-- index: none
-- keep: 0; the event loop would sleep while another connection has the lock
PRAGMA busy_timeout = 0;

-- name: begin_write()!
-- Takes the write lock at once, so that a unit never fails half way because another connection wrote.
-- used by: begin_write, begin_unit
-- index: none
-- keep: IMMEDIATE; a unit that has read could no longer write if another connection wrote meanwhile
BEGIN IMMEDIATE;

-- name: begin_read()!
-- One snapshot for all reads until commit.
-- used by: run_reads, snapshot
-- index: none
BEGIN;

-- name: commit()!
-- Makes all units since begin_write durable together.
-- used by: run_writes, run_reads, ensure_store_exists
-- index: none
COMMIT;

-- name: rollback()!
-- Undoes everything since begin_write.
-- used by: run_writes, run_reads, ensure_store_exists, abandon_unit
-- index: none
ROLLBACK;

-- name: begin_unit()!
-- Units of work share a transaction; if one fails half way, they run again, each in its own savepoint. So does a unit that
-- joins somebody else's transaction.
-- used by: run_writes, begin_unit
-- index: none
-- keep: the savepoint's name, which the next two queries name too
SAVEPOINT unit_of_work;

-- name: commit_unit()!
-- The unit's changes become part of the transaction.
-- used by: run_writes, commit_unit, abandon_unit
-- index: none
-- keep: the savepoint's name
RELEASE unit_of_work;

-- name: rollback_unit()!
-- The unit's changes are undone; its savepoint stays until commit_unit.
-- used by: run_writes, rollback_unit, abandon_unit
-- index: none
-- keep: the savepoint's name
ROLLBACK TO unit_of_work;

-- name: get_file()$
-- The path of the file that a connection is on; empty in memory. Also something that has SQLAlchemy begin its transaction.
-- https://sqlite.org/pragma.html#pragma_database_list
-- used by: run_in, run_in_sync, begin_unit
-- index: none
SELECT file
FROM pragma_database_list
WHERE name = 'main';

-- name: explain_query(query)!
-- The plan of a query. A query cannot be bound, so its text replaces :query before this runs. https://sqlite.org/eqp.html
-- used by: explain
-- index: none
-- keep: EXPLAIN; the query itself must not run
EXPLAIN QUERY PLAN :query;
