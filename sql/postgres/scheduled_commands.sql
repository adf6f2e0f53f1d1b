-- One row for each command that is due at a time (execute_time, epoch milliseconds), at most one for each name and
-- data. A claim is a fresh token, the worker that took it, and when it expires; a command is free when claim_token is
-- null or claim_expires_at is not after :now. The claim columns and rescheduled_time are additions to the reference's
-- table.

-- name: create_scheduled_commands_table()#
-- The table and index of the reference (wfe-postgres 1.11.4), the columns that it lacks, and an index that returns rows
-- in the order of claim_commands: with the reference's index, each claim would sort everything that is due.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS scheduled_commands (
    id SERIAL PRIMARY KEY,
    command_name TEXT NOT NULL,
    data TEXT NOT NULL,
    execute_time BIGINT NOT NULL,
    UNIQUE (command_name, data)
);
ALTER TABLE scheduled_commands ADD COLUMN IF NOT EXISTS claim_token TEXT;
ALTER TABLE scheduled_commands ADD COLUMN IF NOT EXISTS claim_worker_id TEXT;
ALTER TABLE scheduled_commands ADD COLUMN IF NOT EXISTS claim_expires_at TIMESTAMPTZ;
ALTER TABLE scheduled_commands ADD COLUMN IF NOT EXISTS rescheduled_time BIGINT;
CREATE INDEX IF NOT EXISTS idx_scheduled_commands_execute_time ON scheduled_commands (execute_time);
CREATE INDEX IF NOT EXISTS idx_scheduled_commands_due ON scheduled_commands (execute_time, id);

-- name: schedule_command(command_name, data, execute_time)!
-- Inserts a command (upsert). If it is already scheduled, the earlier time wins; while it is claimed, the new time goes
-- to rescheduled_time, so that completing the claim does not lose it. It looks for the command first, because an insert
-- uses up a 32-bit number even if it conflicts; a conflict is left only if another host inserts the same command
-- meanwhile.
-- used by: schedule_command
-- index: scheduled_commands_command_name_data_key
-- keep: the earlier of two times, and rescheduled_time while there is a claim; a command would run late, or be lost
WITH twin AS (
    UPDATE scheduled_commands
    SET
        execute_time = CASE
            WHEN claim_token IS NULL THEN least(execute_time, cast(:execute_time AS BIGINT))
            ELSE execute_time
        END,
        rescheduled_time = CASE
            WHEN claim_token IS NOT NULL THEN least(rescheduled_time, cast(:execute_time AS BIGINT))
        END
    WHERE command_name = :command_name AND data = :data
    RETURNING id
),

inserted AS (
    INSERT INTO scheduled_commands (command_name, data, execute_time)
    SELECT :command_name, :data, cast(:execute_time AS BIGINT)
    WHERE NOT EXISTS (SELECT 1 FROM twin)
    ON CONFLICT (command_name, data) DO UPDATE
        SET
            execute_time = CASE
                WHEN
                    scheduled_commands.claim_token IS NULL
                    THEN least(scheduled_commands.execute_time, excluded.execute_time)
                ELSE scheduled_commands.execute_time
            END,
            rescheduled_time = CASE
                WHEN scheduled_commands.claim_token IS NOT NULL
                    THEN least(scheduled_commands.rescheduled_time, excluded.execute_time)
            END
    RETURNING id
)

SELECT id
FROM twin
UNION ALL
SELECT id
FROM inserted;

-- name: claim_commands
-- Claims free commands that are due at :as_of (epoch ms) and come after (:after_time, :after_id); returns them
-- unordered. Skips rows that another host is writing. The document is built from the claimed rows, because Citus
-- rejects a function in RETURNING.
-- used by: process_commands
-- index: idx_scheduled_commands_due, scheduled_commands_pkey
-- keep: FOR UPDATE SKIP LOCKED, in the statement that writes; two hosts would wait for each other, or claim the same
-- row
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: the comparison with (:after_time, :after_id); a command that fails would be taken again in the same call
-- keep: MATERIALIZED; a subquery in IN may run once for each row, and each run takes up to :row_limit more
WITH due AS MATERIALIZED (
    SELECT id
    FROM scheduled_commands
    WHERE
        execute_time <= cast(:as_of AS BIGINT)
        AND (execute_time, id) > (cast(:after_time AS BIGINT), cast(:after_id AS BIGINT))
        AND (claim_token IS NULL OR claim_expires_at <= cast(:now AS TIMESTAMPTZ))
    ORDER BY execute_time, id
    LIMIT cast(:row_limit AS BIGINT)
    FOR UPDATE SKIP LOCKED
),

claimed AS (
    UPDATE scheduled_commands
    SET claim_token = :token, claim_worker_id = :worker_id, claim_expires_at = cast(:expires_at AS TIMESTAMPTZ)
    FROM due
    WHERE scheduled_commands.id = due.id
    RETURNING
        scheduled_commands.id, scheduled_commands.execute_time, scheduled_commands.command_name, scheduled_commands.data
)

SELECT
    id,
    execute_time,
    cast(json_build_object(
        'command_name', command_name,
        'data', data,
        'execute_time', execute_time
    ) AS TEXT) AS document
FROM claimed;

-- name: renew_commands(ids, token, expires_at)
-- Extends the claims on the commands whose ids are in :ids, a JSON array, if the token still holds them, and returns
-- their ids, unordered: any other command now belongs to another host, or is done.
-- used by: process_commands
-- index: scheduled_commands_pkey
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE scheduled_commands
SET claim_expires_at = :expires_at
WHERE
    id = any(array(SELECT cast(held.id AS INT) FROM jsonb_array_elements(:ids) AS held (id)))
    AND claim_token = :token
RETURNING id;

-- name: reschedule_command(id, token)!
-- Ends the claim of a command that was rescheduled meanwhile: it is due at the new time. Runs before complete_command.
-- used by: process_commands
-- index: scheduled_commands_pkey
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
-- index: scheduled_commands_pkey
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
DELETE FROM scheduled_commands
WHERE id = :id AND claim_token = :token;

-- name: release_command(id, token)!
-- Ends the claim of a command that was not done: it is due again.
-- used by: process_commands
-- index: scheduled_commands_pkey
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
-- keep: the earlier of the two times; a rescheduled command would run late
UPDATE scheduled_commands
SET
    execute_time = least(execute_time, rescheduled_time),
    rescheduled_time = NULL,
    claim_token = NULL,
    claim_worker_id = NULL,
    claim_expires_at = NULL
WHERE id = :id AND claim_token = :token;
