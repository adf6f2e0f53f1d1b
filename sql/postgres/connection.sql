-- What a connection is set to, and how a unit of several statements begins and ends.
-- sqlfluff:ignore:parsing

-- name: set_up_connection(schema, statement_timeout, read_only)^
-- Has names mean the store's tables, times be shown in UTC, and statements end after a time (in ms; 0: never). A null
-- :read_only leaves it to the role whether it may write. The queries lock what must not change meanwhile, and go on with
-- what others have committed by then: read committed. Scans and hash joins are off since plans are kept: one made while a
-- table was small would go on scanning when it has grown, and every query here has an index. A plan serves all values, so
-- it is the one that explain_query shows, and tests look at. wfe_sql.schema is what create_schema and hold_making_lock go
-- by.
-- https://www.postgresql.org/docs/current/runtime-config-query.html
-- used by: open_connection
-- index: none
-- keep: read committed; the queries that lock must go on with what others have committed by then
-- keep: the schema, the time zone and wfe_sql.schema; names, times and scripts go by them
-- keep: the switches of plans; sql/README.md says which queries need which, under "To tune a query"
SELECT
    set_config('search_path', quote_ident(:schema), FALSE) AS search_path,
    set_config('wfe_sql.schema', :schema, FALSE) AS schema_name,
    set_config('default_transaction_isolation', 'read committed', FALSE) AS isolation,
    set_config('TimeZone', 'UTC', FALSE) AS time_zone,
    set_config('statement_timeout', :statement_timeout, FALSE) AS statement_timeout,
    set_config(
        'default_transaction_read_only',
        coalesce(:read_only, current_setting('default_transaction_read_only')),
        FALSE
    ) AS read_only,
    set_config('enable_seqscan', 'off', FALSE) AS seqscan,
    set_config('enable_bitmapscan', 'off', FALSE) AS bitmapscan,
    set_config('enable_incremental_sort', 'off', FALSE) AS incremental_sort,
    set_config('enable_hashjoin', 'off', FALSE) AS hashjoin,
    set_config('enable_mergejoin', 'off', FALSE) AS mergejoin,
    set_config('plan_cache_mode', 'force_generic_plan', FALSE) AS plan_cache_mode,
    set_config('jit', 'off', FALSE) AS jit;

-- name: begin_write()!
-- Begins a unit of several statements.
-- used by: run_alone, ensure_store_exists
-- index: none
BEGIN;

-- name: begin_read()!
-- One snapshot for all that is read until commit.
-- used by: run_alone, snapshot
-- index: none
-- keep: REPEATABLE READ; a dump and a copy would be of several moments
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: commit()!
-- Makes all since begin_write durable.
-- used by: run_alone, ensure_store_exists
-- index: none
COMMIT;

-- name: rollback()!
-- Undoes everything since begin_write.
-- used by: run_alone, ensure_store_exists
-- index: none
ROLLBACK;

-- name: explain_query(query)!
-- The plan of a query, the one that serves all values, without costs, which change with each row. GENERIC_PLAN would say
-- the same, but not before PostgreSQL 16; so the query is prepared first. What is explained cannot be bound: the name
-- that it was prepared under comes here in place of :query, with a null for each parameter, and only then does this run.
-- https://www.postgresql.org/docs/current/sql-explain.html
-- used by: explain
-- index: none
-- keep: EXPLAIN; what comes in place of :query must not run
EXPLAIN (COSTS OFF) EXECUTE :query;
