-- What a host waits for that has nothing to do.

-- name: find_next_due(as_at, as_of, now)^
-- The first free workflow, event and command that are due, and when the next thing becomes due after that, to wait until
-- then: a workflow or a command after :as_at (epoch ms), an event after :as_of, the same moment, and, where nothing is
-- free, the first end of a lease on what is due. A row that is due later and held counts as if it were free.
-- used by: look
-- index: idx_workflows_runnable, idx_events_unprocessed, idx_scheduled_commands_execute_time
-- keep: the conditions that say what is due and free; a host would sleep beside work, or be woken for nothing
-- keep: CASE; it looks for leases only where all that is due is held, or it would read through all that is due
WITH free AS MATERIALIZED (
    SELECT
        (
            SELECT id
            FROM workflows
            WHERE
                status = 'Runnable' AND next_execution <= :as_at
                AND (claim_token IS NULL OR claim_expires_at <= :now)
            ORDER BY next_execution, id
            LIMIT 1
        ) AS workflow_id,
        (
            SELECT id
            FROM events
            WHERE is_processed = 0 AND event_time <= :as_of AND (claim_token IS NULL OR claim_expires_at <= :now)
            ORDER BY event_time, id
            LIMIT 1
        ) AS event_id,
        (
            SELECT id
            FROM scheduled_commands
            WHERE execute_time <= :as_at AND (claim_token IS NULL OR claim_expires_at <= :now)
            ORDER BY execute_time, id
            LIMIT 1
        ) AS command_id
)

SELECT
    workflow_id,
    event_id,
    command_id,
    (
        SELECT min(due)
        FROM (
            SELECT min(next_execution) AS due
            FROM workflows
            WHERE status = 'Runnable' AND next_execution > :as_at
            UNION ALL
            SELECT min(execute_time) AS due
            FROM scheduled_commands
            WHERE execute_time > :as_at
        )
    ) AS next_ms,
    (
        SELECT min(event_time)
        FROM events
        WHERE is_processed = 0 AND event_time > :as_of
    ) AS next_event_time,
    CASE WHEN workflow_id IS NULL AND event_id IS NULL AND command_id IS NULL
        THEN (
            SELECT min(ends)
            FROM (
                SELECT min(claim_expires_at) AS ends
                FROM workflows
                WHERE status = 'Runnable' AND next_execution <= :as_at
                UNION ALL
                SELECT min(claim_expires_at) AS ends
                FROM events
                WHERE is_processed = 0 AND event_time <= :as_of
                UNION ALL
                SELECT min(claim_expires_at) AS ends
                FROM scheduled_commands
                WHERE execute_time <= :as_at
            )
        )
    END AS next_lease_end
FROM free;

-- name: get_data_version()$
-- A number that is another one once any other connection, of any process, has changed the file; no lock is left, and
-- nothing is written. https://sqlite.org/pragma.html#pragma_data_version
-- used by: ask
-- index: none
PRAGMA data_version;
