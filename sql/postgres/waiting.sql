-- What a host waits for that has nothing to do.

-- name: find_next_due(as_at, as_of, now)^
-- The first free workflow, event and command that are due, and when the next thing becomes due after that, to wait until
-- then: a workflow or a command after :as_at (epoch ms), an event after :as_of, the same moment, and, where nothing is
-- free, the first end of a lease on what is due. A row that is due later and held counts as if it were free.
-- used by: look
-- index: idx_workflows_runnable, idx_events_unprocessed, idx_scheduled_commands_due, idx_scheduled_commands_execute_time
-- keep: the conditions that say what is due and free; a host would sleep beside work, or be woken for nothing
-- keep: CASE; it looks for leases only where all that is due is held, or it would read through all that is due
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
                NOT is_processed AND event_time >= '0001-01-01 00:00:00+00'
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
    least(
        (
            SELECT min(next_execution)
            FROM workflows
            WHERE status = 'Runnable' AND next_execution > cast(:as_at AS BIGINT)
        ),
        (
            SELECT min(execute_time)
            FROM scheduled_commands
            WHERE execute_time > cast(:as_at AS BIGINT)
        )
    ) AS next_ms,
    to_char((
        SELECT min(event_time)
        FROM events
        WHERE NOT is_processed AND event_time > cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
    ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS next_event_time,
    CASE
        WHEN workflow_id IS NULL AND event_id IS NULL AND command_id IS NULL
            THEN to_char(least(
                (
                    SELECT min(claim_expires_at)
                    FROM workflows
                    WHERE status = 'Runnable' AND next_execution <= cast(:as_at AS BIGINT)
                ),
                (
                    SELECT min(claim_expires_at)
                    FROM events
                    WHERE
                        NOT is_processed AND event_time >= '0001-01-01 00:00:00+00'
                        AND event_time <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
                ),
                (
                    SELECT min(claim_expires_at)
                    FROM scheduled_commands
                    WHERE execute_time <= cast(:as_at AS BIGINT)
                )
            ), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
    END AS next_lease_end
FROM free;
