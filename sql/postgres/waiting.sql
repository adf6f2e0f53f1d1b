-- What an idle host waits for.

-- name: find_next_due(as_at, as_of, now, row_limit)^
-- The first workflow, event and command that are due and free; when the next one of each becomes due, claimed or not: a
-- workflow or command after :as_at (epoch ms), an event after :as_of, which is the same moment; and for each kind of
-- which none is free, when the first lease ends among the :row_limit that are longest due.
-- used by: look
-- index: idx_workflows_runnable, idx_events_unprocessed, idx_scheduled_commands_due
-- keep: the conditions for due and free; a host would sleep while there is work, or wake for nothing
-- keep: CASE; without it, everything due would be read for its leases
-- keep: each ORDER BY; its index holds only what can be due, others may hold everything that is done
WITH free AS MATERIALIZED (
    SELECT
        (
            SELECT id
            FROM workflows
            WHERE
                status = 'Runnable' AND next_execution <= cast(:as_at AS BIGINT)
                AND (claim_token IS NULL OR claim_expires_at <= cast(:now AS TIMESTAMPTZ))
            ORDER BY next_execution, id
            LIMIT 1
        ) AS workflow_id,
        (
            SELECT id
            FROM events
            WHERE
                NOT is_processed
                AND event_time >= '0001-01-01 00:00:00+00'
                AND event_time <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
                AND (claim_token IS NULL OR claim_expires_at <= cast(:now AS TIMESTAMPTZ))
            ORDER BY event_time, id
            LIMIT 1
        ) AS event_id,
        (
            SELECT id
            FROM scheduled_commands
            WHERE
                execute_time <= cast(:as_at AS BIGINT)
                AND (claim_token IS NULL OR claim_expires_at <= cast(:now AS TIMESTAMPTZ))
            ORDER BY execute_time, id
            LIMIT 1
        ) AS command_id
)

SELECT
    workflow_id,
    event_id,
    command_id,
    (
        SELECT next_execution
        FROM workflows
        WHERE status = 'Runnable' AND next_execution > cast(:as_at AS BIGINT)
        ORDER BY next_execution, id
        LIMIT 1
    ) AS next_workflow,
    (
        SELECT execute_time
        FROM scheduled_commands
        WHERE execute_time > cast(:as_at AS BIGINT)
        ORDER BY execute_time, id
        LIMIT 1
    ) AS next_command,
    to_char((
        SELECT event_time
        FROM events
        WHERE NOT is_processed AND event_time > cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
        ORDER BY event_time, id
        LIMIT 1
    ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS next_event,
    CASE
        WHEN workflow_id IS NULL
            THEN to_char((
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM workflows
                    WHERE status = 'Runnable' AND next_execution <= cast(:as_at AS BIGINT)
                    ORDER BY next_execution, id
                    LIMIT cast(:row_limit AS BIGINT)
                ) AS held
            ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
    END AS workflow_lease_end,
    CASE
        WHEN event_id IS NULL
            THEN to_char((
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM events
                    WHERE
                        NOT is_processed
                        AND event_time >= '0001-01-01 00:00:00+00'
                        AND event_time <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
                    ORDER BY event_time, id
                    LIMIT cast(:row_limit AS BIGINT)
                ) AS held
            ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
    END AS event_lease_end,
    CASE
        WHEN command_id IS NULL
            THEN to_char((
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM scheduled_commands
                    WHERE execute_time <= cast(:as_at AS BIGINT)
                    ORDER BY execute_time, id
                    LIMIT cast(:row_limit AS BIGINT)
                ) AS held
            ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
    END AS command_lease_end
FROM free;

-- name: create_wake_trigger()#
-- Whoever makes something due notifies the waiting hosts in the same transaction; this includes the reference, and a
-- person at the psql prompt. It notifies only if a host has asked for it with the lock of ask_for_wake, because commits
-- that notify wait for each other. The lock is tried and released at once: if two try at the same moment, they notify
-- although nobody asked, which does no harm. A claimed row wakes nobody.
-- https://www.postgresql.org/docs/current/sql-notify.html
-- used by: ensure_store_exists
-- index: none
-- keep: CASE; the lock would be kept if another statement of the function failed, and nobody would release it
-- keep: the channel, its payload, and the two numbers of the lock; the listener uses the same
CREATE OR REPLACE FUNCTION wake_waiting_hosts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (
        CASE WHEN pg_try_advisory_lock(hashtext('wfe_sql waits'), hashtext(tg_table_schema))
            THEN pg_advisory_unlock(hashtext('wfe_sql waits'), hashtext(tg_table_schema))
            ELSE FALSE
        END
    ) THEN
        PERFORM pg_notify('wfe_sql', tg_table_schema);
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER wake_for_workflows
AFTER INSERT OR UPDATE OF next_execution, status, claim_token ON workflows
FOR EACH ROW WHEN (new.status = 'Runnable' AND new.next_execution IS NOT NULL AND new.claim_token IS NULL)
EXECUTE FUNCTION wake_waiting_hosts();
CREATE OR REPLACE TRIGGER wake_for_events
AFTER INSERT OR UPDATE OF event_time, is_processed, claim_token ON events
FOR EACH ROW WHEN (NOT new.is_processed AND new.claim_token IS NULL)
EXECUTE FUNCTION wake_waiting_hosts();
CREATE OR REPLACE TRIGGER wake_for_scheduled_commands
AFTER INSERT OR UPDATE OF execute_time, claim_token ON scheduled_commands
FOR EACH ROW WHEN (new.claim_token IS NULL)
EXECUTE FUNCTION wake_waiting_hosts();

-- name: listen()!
-- Subscribes this connection to notifications from every store of the database; their payload is the store's schema.
-- https://www.postgresql.org/docs/current/sql-listen.html
-- used by: ask
-- index: none
LISTEN wfe_sql;

-- name: get_reason_not_to_listen()$
-- Why no notification would arrive here, or null. With Citus, triggers run on workers, whose notifications do not
-- arrive.
-- used by: ask
-- scan: the catalog, a few rows
SELECT
    CASE
        WHEN
            EXISTS (
                SELECT 1
                FROM pg_extension
                WHERE extname = 'citus'
            )
            THEN 'Citus passes no notifications on'
        WHEN
            (
                SELECT count(*)
                FROM pg_trigger
                INNER JOIN pg_class ON pg_trigger.tgrelid = pg_class.oid
                INNER JOIN pg_namespace ON pg_class.relnamespace = pg_namespace.oid
                WHERE
                    pg_namespace.nspname = (parse_ident(current_setting('search_path'), FALSE))[1]
                    AND pg_trigger.tgname IN ('wake_for_workflows', 'wake_for_events', 'wake_for_scheduled_commands')
                    AND pg_trigger.tgenabled <> 'D'
            ) < 3
            THEN 'the store lacks triggers; as its owner, run wfe-sql init'
    END AS reason;

-- name: ask_for_wake()^
-- Asks the triggers to notify, until end_wake or the end of the connection; any number of hosts may ask. Returns the id
-- of this transaction: a transaction that may have tried the lock before it was taken has a lower one.
-- https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
-- used by: ask
-- index: none
-- keep: the two numbers of the lock; the trigger uses the same
-- keep: the lock before the id; a transaction that begins to write in between would neither notify nor be waited for
SELECT
    pg_advisory_lock_shared(
        hashtext('wfe_sql waits'), hashtext((parse_ident(current_setting('search_path'), FALSE))[1])
    ) AS asked,
    cast(pg_current_xact_id() AS TEXT) AS horizon;

-- name: end_wake()$
-- Withdraws the request of ask_for_wake.
-- used by: rest
-- index: none
-- keep: the two numbers of the lock; ask_for_wake uses the same
SELECT
    pg_advisory_unlock_shared(
        hashtext('wfe_sql waits'), hashtext((parse_ident(current_setting('search_path'), FALSE))[1])
    ) AS ended;

-- name: have_writers_ended(horizon)$
-- Whether all transactions with an id below :horizon have ended.
-- https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
-- used by: ask
-- index: none
SELECT pg_snapshot_xmin(pg_current_snapshot()) >= cast(cast(:horizon AS TEXT) AS XID8) AS have_ended;
