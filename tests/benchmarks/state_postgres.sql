-- What state.sql says, of a schema of PostgreSQL, and what the benchmark asks a server for.

-- name: get_settings()
-- What figures depend on.
SELECT name, setting
FROM pg_settings
WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'shared_buffers')
ORDER BY name;

-- name: choose_schema(schema)^
SELECT set_config('search_path', :schema, FALSE) AS search_path;

-- name: drop_schema()#
DO $$
BEGIN
    SET LOCAL client_min_messages = warning;
    EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', current_setting('search_path'));
END
$$;

-- name: write_all_pages()#
CHECKPOINT;

-- name: get_bytes_logged()$
SELECT (pg_current_wal_lsn() - '0/0'::PG_LSN)::BIGINT AS bytes_logged;

-- name: remove_dead_rows()#
VACUUM workflows, execution_pointers;

-- name: lock_workflow(id)$
-- Until the transaction ends.
SELECT id FROM workflows WHERE id = :id FOR UPDATE;

-- name: describe_state()
-- The reference has no column `terminated`.
VALUES
('workflows', (SELECT count(*) FROM workflows)),
('complete workflows', (SELECT count(*) FROM workflows WHERE status = 'Complete' AND complete_time IS NOT NULL)),
('rounds in data', (SELECT coalesce(sum((data ->> 'round')::INT), 0)::INT FROM workflows)),
('pointers', (SELECT count(*) FROM execution_pointers)),
('retries of pointers', (SELECT coalesce(sum(retry_count), 0)::INT FROM execution_pointers)),
(
    'cursors in pointers',
    (SELECT coalesce(sum((persistence_data ->> 'cursor')::INT), 0)::INT FROM execution_pointers)
),
('events', (SELECT count(*) FROM events)),
('processed events', (SELECT count(*) FROM events WHERE is_processed)),
('subscriptions', (SELECT count(*) FROM event_subscriptions)),
(
    'terminated subscriptions',
    (
        SELECT count(*)
        FROM event_subscriptions AS subscription
        WHERE (to_jsonb(subscription) ->> 'terminated')::BOOLEAN
    )
),
('last number', (SELECT coalesce(sum(next_num), 0)::INT FROM definition_sequences));

-- name: list_active_sessions(seconds)
-- What sessions of hosts have done last, of those that did anything within so many seconds.
SELECT query
FROM pg_stat_activity
WHERE application_name = 'wfe-sql' AND state_change > clock_timestamp() - make_interval(secs => :seconds);

-- name: disable_wake_triggers()#
ALTER TABLE workflows DISABLE TRIGGER wake_for_workflows;
ALTER TABLE events DISABLE TRIGGER wake_for_events;
ALTER TABLE scheduled_commands DISABLE TRIGGER wake_for_scheduled_commands;

-- name: get_server_start()$
-- The process of the server that starts all others.
SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)::INT AS pid;
