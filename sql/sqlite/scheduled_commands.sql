-- One row for each command that is due at a time (execute_time, epoch milliseconds), at most one for a name and data.
-- A claim is a fresh token, the worker that took it, and when it expires; a command is free when claim_token is null or
-- claim_expires_at is not after :now. The claim columns and rescheduled_time are additions to the reference's table.

-- name: create_scheduled_commands_table()#
-- The table and index of the reference (wfe-sqlite 1.11.4).
-- used by: ensure_store_exists
-- index: none
-- keep: each index; that one is missing shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS scheduled_commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    command_name TEXT NOT NULL,
    data TEXT NOT NULL,
    execute_time INTEGER NOT NULL,
    UNIQUE (command_name, data)
);
CREATE INDEX IF NOT EXISTS idx_scheduled_commands_execute_time ON scheduled_commands (execute_time);

-- name: add_scheduled_commands_claim_and_rescheduled_time()#
-- Adds columns that the reference's table lacks.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE scheduled_commands ADD COLUMN claim_token TEXT;
ALTER TABLE scheduled_commands ADD COLUMN claim_worker_id TEXT;
ALTER TABLE scheduled_commands ADD COLUMN claim_expires_at TEXT;
ALTER TABLE scheduled_commands ADD COLUMN rescheduled_time INTEGER;

-- name: schedule_command(command_name, data, execute_time)!
-- Inserts a command. Of twins the earliest time wins; while its twin is claimed the time is kept apart, in
-- rescheduled_time, so that the completion of the claim does not lose it.
-- used by: schedule_command
-- index: none
-- keep: the earlier of two times, and rescheduled_time while there is a claim; a command would come late, or be lost
INSERT INTO scheduled_commands (command_name, data, execute_time)
VALUES (:command_name, :data, :execute_time)
ON CONFLICT (command_name, data) DO UPDATE SET
    execute_time = CASE
        WHEN claim_token IS NULL THEN min(execute_time, excluded.execute_time)
        ELSE execute_time
    END,
    rescheduled_time = CASE
        WHEN claim_token IS NULL THEN NULL
        ELSE min(coalesce(rescheduled_time, excluded.execute_time), excluded.execute_time)
    END;

-- name: find_free_command(as_of, now, after_time, after_id)$
-- One of the commands that claim_commands would take, if there is any: whoever claims takes the lock of all writers, also
-- to find nothing.
-- used by: process_commands
-- index: idx_scheduled_commands_execute_time
-- keep: the conditions that say what is due and free; a host would pass over work, or take the lock for nothing
-- keep: the comparison with (:after_time, :after_id); those that failed in this call would be found again
SELECT id
FROM scheduled_commands
WHERE
    execute_time <= :as_of AND (execute_time, id) > (:after_time, :after_id)
    AND (claim_token IS NULL OR claim_expires_at <= :now)
ORDER BY execute_time, id
LIMIT 1;

-- name: claim_commands
-- Takes free commands that are due at :as_of (epoch ms) and come after (:after_time, :after_id); returned in no order.
-- used by: process_commands
-- index: idx_scheduled_commands_execute_time, INTEGER PRIMARY KEY
-- keep: the conditions that say what is due and free; two hosts would work on one row
-- keep: the comparison with (:after_time, :after_id); a command that fails would be taken again in the same call
UPDATE scheduled_commands
SET claim_token = :token, claim_worker_id = :worker_id, claim_expires_at = :expires_at
WHERE
    id IN (
        SELECT id
        FROM scheduled_commands
        WHERE
            execute_time <= :as_of AND (execute_time, id) > (:after_time, :after_id)
            AND (claim_token IS NULL OR claim_expires_at <= :now)
        ORDER BY execute_time, id
        LIMIT :row_limit
    )
RETURNING
    id,
    execute_time,
    json_object(
        'command_name', command_name,
        'data', data,
        'execute_time', execute_time
    ) AS document;

-- name: renew_commands(ids, token, expires_at)
-- Moves on the end of the claims on the commands whose ids are in :ids, a JSON array, where the token still holds them,
-- and returns the ids of these, in no order: what is missing is another host's by now, or done.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host whose claim was lost would undo what the next one does
UPDATE scheduled_commands
SET claim_expires_at = :expires_at
WHERE id IN (SELECT value FROM json_each(:ids)) AND claim_token = :token
RETURNING id;

-- name: reschedule_command(id, token)!
-- Ends the claim of a command that was scheduled again meanwhile: it is due at that time. Runs before complete_command.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host whose claim was lost would undo what the next one does
-- keep: that rescheduled_time becomes the time; a command that was scheduled again would be lost
UPDATE scheduled_commands
SET
    execute_time = rescheduled_time,
    rescheduled_time = NULL,
    claim_token = NULL,
    claim_worker_id = NULL,
    claim_expires_at = NULL
WHERE id = :id AND claim_token = :token AND rescheduled_time IS NOT NULL;

-- name: complete_command(id, token)!
-- Deletes a command that is done, if the claim still holds it.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host whose claim was lost would undo what the next one does
DELETE FROM scheduled_commands
WHERE id = :id AND claim_token = :token;

-- name: release_command(id, token)!
-- Ends the claim of a command that was not done: it is due again.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host whose claim was lost would undo what the next one does
-- keep: the earlier of the two times; a command that was scheduled again would come late
UPDATE scheduled_commands
SET
    execute_time = min(execute_time, coalesce(rescheduled_time, execute_time)),
    rescheduled_time = NULL,
    claim_token = NULL,
    claim_worker_id = NULL,
    claim_expires_at = NULL
WHERE id = :id AND claim_token = :token;
