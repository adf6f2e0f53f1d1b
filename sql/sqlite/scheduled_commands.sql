-- One row for each command that is due at a time (execute_time, epoch milliseconds), at most one for each name and data.
-- A claim is a fresh token, the worker that took it, and when it expires; a command is free when claim_token is null or
-- claim_expires_at is not after :now. The claim columns and rescheduled_time are additions to the reference's table.

-- name: create_scheduled_commands_table()#
-- The table and index of the reference (wfe-sqlite 1.11.4).
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
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
-- Inserts a command (upsert). If it is already scheduled, the earlier time wins; while it is claimed, the new time goes
-- to rescheduled_time, so that completing the claim does not lose it.
-- used by: schedule_command
-- index: none
-- keep: the earlier of two times, and rescheduled_time while there is a claim; a command would run late, or be lost
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
-- One of the commands that claim_commands would take, if any: claiming takes the write lock even if it finds nothing.
-- used by: process_commands
-- index: idx_scheduled_commands_execute_time
-- keep: the conditions for due and free; a host would miss work, or take the lock for nothing
-- keep: the comparison with (:after_time, :after_id); commands that failed in this call would be found again
SELECT id
FROM scheduled_commands
WHERE
    execute_time <= :as_of AND (execute_time, id) > (:after_time, :after_id)
    AND (claim_token IS NULL OR claim_expires_at <= :now)
ORDER BY execute_time, id
LIMIT 1;

-- name: claim_commands
-- Claims free commands that are due at :as_of (epoch ms) and come after (:after_time, :after_id); returns them unordered.
-- used by: process_commands
-- index: idx_scheduled_commands_execute_time, INTEGER PRIMARY KEY
-- keep: the conditions for due and free; two hosts would work on the same row
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
-- Extends the claims on the commands whose ids are in :ids, a JSON array, if the token still holds them, and returns
-- their ids, unordered: any other command now belongs to another host, or is done.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE scheduled_commands
SET claim_expires_at = :expires_at
WHERE id IN (SELECT value FROM json_each(:ids)) AND claim_token = :token
RETURNING id;

-- name: reschedule_command(id, token)!
-- Ends the claim of a command that was rescheduled meanwhile: it is due at the new time. Runs before complete_command.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
-- keep: that rescheduled_time becomes the time; a rescheduled command would be lost
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
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
DELETE FROM scheduled_commands
WHERE id = :id AND claim_token = :token;

-- name: release_command(id, token)!
-- Ends the claim of a command that was not done: it is due again.
-- used by: process_commands
-- index: INTEGER PRIMARY KEY
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
-- keep: the earlier of the two times; a rescheduled command would run late
UPDATE scheduled_commands
SET
    execute_time = min(execute_time, coalesce(rescheduled_time, execute_time)),
    rescheduled_time = NULL,
    claim_token = NULL,
    claim_worker_id = NULL,
    claim_expires_at = NULL
WHERE id = :id AND claim_token = :token;
