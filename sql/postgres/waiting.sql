-- What a host waits for that has nothing to do.

-- name: find_next_due(as_at, as_of, now, row_limit)^
-- The first free workflow, event and command that are due; when the next one of each becomes due after that, held or not: a
-- workflow or a command after :as_at (epoch ms), an event after :as_of, which are the same moment; and of each, where none
-- is free, when the first lease ends, of the :row_limit that are longest due.
-- used by: look
-- index: idx_workflows_runnable, idx_events_unprocessed, idx_scheduled_commands_due
-- keep: the conditions that say what is due and free; a host would sleep beside work, or be woken for nothing
-- keep: CASE; without it, all that is due would be read for the leases on it
-- keep: each ORDER BY; the index for it holds only what can be due, others may hold all that is done
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
