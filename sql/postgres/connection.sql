-- The settings of a connection, and the beginning and end of a unit of work.
-- sqlfluff:ignore:parsing

-- name: set_up_connection(schema, statement_timeout, read_only, is_local)!
-- Makes names refer to the store's tables before temporary ones, shows times in UTC, and limits the time of statements
-- (in ms; 0: no limit): for the connection, or with :is_local for the transaction, because a pooler may lend a
-- connection for no longer. A null :read_only leaves it to the role whether it may write. Read committed, because the
-- queries lock what must not change, and continue with what others have committed by then. Scans and hash joins are off
-- because plans are cached: one made while a table was small would go on scanning when it has grown, and every query
-- here has an index. A generic plan serves all values; it is the one that explain_query shows and tests check, and the
-- server uses it also for statements that are not prepared. Only Citus needs a plan for each value. Values stay out of
-- the server's log when a statement fails. The schema is the first in search_path; scripts also look there for its
-- name, because a setting of our own would remain, empty, behind a pooler. transaction_read_only is for the transaction
-- that begins with this.
-- https://www.postgresql.org/docs/current/runtime-config-query.html
-- used by: open_connection, begin, execute, run
-- scan: the catalog, a row where there is Citus
-- keep: read committed; queries that lock must continue with what others have committed by then
-- keep: the schema, with only pg_temp after it, and the time zone; names, scripts and times depend on them
-- keep: the plans that are off; sql/README.md says which queries need which, under "disabled plans"
SELECT
    set_config('search_path', quote_ident(:schema) || ', pg_temp', :is_local) AS search_path,
    set_config('default_transaction_isolation', 'read committed', :is_local) AS isolation,
    set_config('TimeZone', 'UTC', :is_local) AS time_zone,
    set_config('statement_timeout', :statement_timeout, :is_local) AS statement_timeout,
    set_config(
        'default_transaction_read_only',
        coalesce(:read_only, current_setting('default_transaction_read_only')),
        :is_local
    ) AS read_only,
    set_config(
        'transaction_read_only',
        coalesce(:read_only, current_setting('transaction_read_only')),
        TRUE
    ) AS is_read_only,
    set_config('log_parameter_max_length_on_error', '0', :is_local) AS logged,
    set_config('enable_seqscan', 'off', :is_local) AS seqscan,
    set_config('enable_bitmapscan', 'off', :is_local) AS bitmapscan,
    set_config('enable_incremental_sort', 'off', :is_local) AS incremental_sort,
    set_config('enable_hashjoin', 'off', :is_local) AS hashjoin,
    set_config('enable_mergejoin', 'off', :is_local) AS mergejoin,
    set_config(
        'plan_cache_mode',
        coalesce((
            SELECT 'auto'
            FROM pg_extension
            WHERE extname = 'citus'
        ), 'force_generic_plan'),
        :is_local
    ) AS plan_cache_mode,
    set_config('jit', 'off', :is_local) AS jit;

-- name: get_server_process()$
-- The process that serves the connection, which a pooler in between does not report. Also a cheap statement that makes
-- SQLAlchemy, or a driver, begin its transaction.
-- used by: open_connection, run_in, run_in_sync
-- index: none
SELECT pg_backend_pid();

-- name: get_settings()$
-- The current values of what set_up_connection sets, as a JSON object of texts by name. Whether the transaction may
-- write is not among them, because set_up_connection leaves that alone for a unit in somebody else's transaction.
-- used by: run
-- index: none
SELECT
    cast(json_build_object(
        'search_path', current_setting('search_path'),
        'default_transaction_isolation', current_setting('default_transaction_isolation'),
        'TimeZone', current_setting('TimeZone'),
        'statement_timeout', current_setting('statement_timeout'),
        'default_transaction_read_only', current_setting('default_transaction_read_only'),
        'log_parameter_max_length_on_error', current_setting('log_parameter_max_length_on_error'),
        'enable_seqscan', current_setting('enable_seqscan'),
        'enable_bitmapscan', current_setting('enable_bitmapscan'),
        'enable_incremental_sort', current_setting('enable_incremental_sort'),
        'enable_hashjoin', current_setting('enable_hashjoin'),
        'enable_mergejoin', current_setting('enable_mergejoin'),
        'plan_cache_mode', current_setting('plan_cache_mode'),
        'jit', current_setting('jit')
    ) AS TEXT) AS settings;

-- name: restore_settings(settings)!
-- Restores, for the transaction, what get_settings returned, because releasing a savepoint does not.
-- https://www.postgresql.org/docs/current/sql-set.html
-- used by: commit_unit
-- index: none
SELECT set_config(setting.key, setting.value, TRUE)
FROM json_each_text(:settings) AS setting;

-- name: get_database()$
-- Identifies a database among those of all servers, which may have the same name and address behind a pooler or proxy.
-- used by: find_database, run
-- scan: the server's control file, one row
SELECT system_identifier || '/' || current_database() AS place
FROM pg_control_system();

-- name: begin_unit()!
-- A unit that joins somebody else's transaction runs in a savepoint, so that it fails alone.
-- used by: begin_unit
-- index: none
-- keep: the savepoint's name, which the next two queries name too
SAVEPOINT wfe_sql_unit;

-- name: commit_unit()!
-- The unit's changes become part of the transaction.
-- used by: commit_unit, abandon_unit
-- index: none
-- keep: the savepoint's name
RELEASE SAVEPOINT wfe_sql_unit;

-- name: rollback_unit()!
-- The unit's changes and settings are undone; its savepoint stays until commit_unit.
-- used by: rollback_unit, abandon_unit
-- index: none
-- keep: the savepoint's name
ROLLBACK TO SAVEPOINT wfe_sql_unit;

-- name: begin_write()!
-- Begins a unit of several statements, or of one if a pooler lends a connection for one transaction at a time.
-- used by: run_alone, ensure_store_exists, execute, settled
-- index: none
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: begin_read()!
-- One snapshot for all reads until commit.
-- used by: run_alone, snapshot
-- index: none
-- keep: REPEATABLE READ; a dump or a copy would mix several moments
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: hold_rows(wanted)
-- Locks the rows that units of work change until the transaction ends, and fails if one is not as the units need it:
-- gone, locked by somebody else, at another revision, or claimed with another token. The units and the commit follow in
-- the same round trip, and nobody looks at results in between, so this must be an error. :wanted is a JSON array of
-- objects with the query that locks such a row, its id, and the values it must have; null means any.
-- used by: run_units
-- index: workflows_pkey, events_pkey, event_subscriptions_pkey
-- keep: FOR UPDATE SKIP LOCKED; a row must not change before it is written, and one locked row would block others
-- keep: the cast, which raises the error; a failed unit would be stored in part
-- keep: the conditions on token, revision and create_time; a late host would overwrite the work of another
WITH wanted AS (
    SELECT row_wanted.*
    FROM
        jsonb_to_recordset(:wanted) AS row_wanted (
            lock TEXT, id TEXT, token TEXT, revision BIGINT, create_time TIMESTAMPTZ
        )
),

held_workflows AS (
    SELECT id, claim_token, revision, create_time
    FROM workflows
    WHERE id = any(array(SELECT wanted.id FROM wanted WHERE wanted.lock = 'lock_workflows'))
    FOR UPDATE SKIP LOCKED
),

held_events AS (
    SELECT id, claim_token
    FROM events
    WHERE id = any(array(SELECT wanted.id FROM wanted WHERE wanted.lock = 'lock_events'))
    FOR UPDATE SKIP LOCKED
),

held_subscriptions AS (
    SELECT id
    FROM event_subscriptions
    WHERE id = any(array(SELECT wanted.id FROM wanted WHERE wanted.lock = 'lock_event_subscriptions'))
    FOR UPDATE SKIP LOCKED
),

held AS (
    SELECT 'lock_workflows' AS lock, id, claim_token, revision, create_time
    FROM held_workflows
    UNION ALL
    SELECT 'lock_events' AS lock, id, claim_token, NULL AS revision, NULL AS create_time
    FROM held_events
    UNION ALL
    SELECT 'lock_event_subscriptions' AS lock, id, NULL AS claim_token, NULL AS revision, NULL AS create_time
    FROM held_subscriptions
)

SELECT cast('not as it must be: ' || wanted.id AS INT) AS missing
FROM wanted
WHERE
    NOT EXISTS (
        SELECT 1
        FROM held
        WHERE
            held.lock = wanted.lock AND held.id = wanted.id
            AND (wanted.token IS NULL OR wanted.token = held.claim_token)
            AND (
                wanted.revision IS NULL
                OR (wanted.revision = held.revision AND wanted.create_time = held.create_time)
            )
    );

-- name: commit()!
-- Makes everything since begin_write durable.
-- used by: run_alone, run_units, ensure_store_exists, execute
-- index: none
COMMIT;

-- name: rollback()!
-- Undoes everything since begin_write.
-- used by: run_alone, ensure_store_exists, execute, settled
-- index: none
ROLLBACK;

-- name: prepare_query(query)!
-- Prepares a query under a name, for explain_query; :query is replaced by the name, AS and the query, which cannot be
-- bound.
-- used by: explain
-- index: none
PREPARE :query;

-- name: forget_query(query)!
-- Drops what prepare_query prepared under the name that replaces :query.
-- used by: explain
-- index: none
DEALLOCATE :query;

-- name: explain_query(query)!
-- The generic plan of a query, which serves all values, without costs, which change with each row. GENERIC_PLAN would
-- show the same, but only from PostgreSQL 16 on, so the query is prepared first. It cannot be bound: its prepared name,
-- with a null for each parameter, replaces :query before this runs.
-- https://www.postgresql.org/docs/current/sql-explain.html
-- used by: explain
-- index: none
-- keep: EXPLAIN; the query itself must not run
EXPLAIN (COSTS OFF) EXECUTE :query;
