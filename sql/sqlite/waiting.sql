-- What an idle host waits for.

-- name: find_next_due(as_at, as_of, now, row_limit)^
-- The first workflow, event and command that are due and free; when the next one of each becomes due, claimed or not: a
-- workflow or command after :as_at (epoch ms), an event after :as_of, which is the same moment; and for each kind of
-- which none is free, when the first lease ends among the :row_limit that are longest due.
-- used by: look
-- index: idx_workflows_runnable, idx_events_unprocessed, idx_scheduled_commands_execute_time
-- keep: the conditions for due and free; a host would sleep while there is work, or wake for nothing
-- keep: CASE; without it, everything due would be read for its leases
-- keep: each ORDER BY; without it, the row found is not the first
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
            WHERE
                is_processed = 0 AND event_time <= :as_of
                AND (claim_token IS NULL OR claim_expires_at <= :now)
            ORDER BY event_time, id
            LIMIT 1
        ) AS event_id,
        (
            SELECT id
            FROM scheduled_commands
            WHERE
                execute_time <= :as_at
                AND (claim_token IS NULL OR claim_expires_at <= :now)
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
        WHERE status = 'Runnable' AND next_execution > :as_at
        ORDER BY next_execution, id
        LIMIT 1
    ) AS next_workflow,
    (
        SELECT execute_time
        FROM scheduled_commands
        WHERE execute_time > :as_at
        ORDER BY execute_time, id
        LIMIT 1
    ) AS next_command,
    (
        SELECT event_time
        FROM events
        WHERE is_processed = 0 AND event_time > :as_of
        ORDER BY event_time, id
        LIMIT 1
    ) AS next_event,
    CASE
        WHEN workflow_id IS NULL
            THEN (
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM workflows
                    WHERE status = 'Runnable' AND next_execution <= :as_at
                    ORDER BY next_execution, id
                    LIMIT :row_limit
                ) AS held
            )
    END AS workflow_lease_end,
    CASE
        WHEN event_id IS NULL
            THEN (
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM events
                    WHERE is_processed = 0 AND event_time <= :as_of
                    ORDER BY event_time, id
                    LIMIT :row_limit
                ) AS held
            )
    END AS event_lease_end,
    CASE
        WHEN command_id IS NULL
            THEN (
                SELECT min(held.claim_expires_at)
                FROM (
                    SELECT claim_expires_at
                    FROM scheduled_commands
                    WHERE execute_time <= :as_at
                    ORDER BY execute_time, id
                    LIMIT :row_limit
                ) AS held
            )
    END AS command_lease_end
FROM free;

-- name: get_data_version()$
-- A number that differs once any other connection, of any process, has changed the file. Leaves no lock and writes
-- nothing. https://sqlite.org/pragma.html#pragma_data_version
-- used by: ask
-- index: none
PRAGMA data_version;
