-- One row for each external event. A bound on a time is text with nine decimals, as SQLite needs; timestamptz would
-- round it up past the bound, so it is cut to six decimals, the first 26 characters. Only another program can write
-- times before the year 1, such as -infinity, and Python cannot read them: polls skip such events, and check reports
-- them.
-- A claim is a fresh token, the worker that took it, and when it expires; an event is free when claim_token is null or
-- claim_expires_at is not after :now. The claim columns are additions to the reference's table.
-- workflows.sql explains what a query whose name ends in _group takes and returns.

-- name: create_events_table()#
-- The table and indexes of the reference (wfe-postgres 1.11.4), the columns that it lacks, and two indexes that return
-- rows in the order of the queries. The one for polls holds only unprocessed events.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS events (
    id TEXT COLLATE "C" PRIMARY KEY,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    event_data JSONB NOT NULL DEFAULT 'null',
    event_time TIMESTAMPTZ NOT NULL,
    is_processed BOOLEAN DEFAULT FALSE
);
ALTER TABLE events ADD COLUMN IF NOT EXISTS claim_token TEXT;
ALTER TABLE events ADD COLUMN IF NOT EXISTS claim_worker_id TEXT;
ALTER TABLE events ADD COLUMN IF NOT EXISTS claim_expires_at TIMESTAMPTZ;
CREATE INDEX IF NOT EXISTS idx_events_name_key ON events (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_events_is_processed ON events (is_processed);
CREATE INDEX IF NOT EXISTS idx_events_event_time ON events (event_time);
CREATE INDEX IF NOT EXISTS idx_events_name_key_time ON events (event_name, event_key, event_time, id);
CREATE INDEX IF NOT EXISTS idx_events_unprocessed ON events (event_time, id)
WHERE NOT is_processed;

-- name: create_event_documents_view()#
-- Events as JSON documents, as in workflow_documents.
-- used by: ensure_store_exists
-- index: none
CREATE OR REPLACE VIEW event_documents AS
SELECT
    id,
    cast(json_build_object(
        'id', id,
        'event_name', event_name,
        'event_key', event_key,
        'event_data', event_data,
        'event_time', event_time,
        'is_processed', is_processed
    ) AS TEXT) AS document
FROM events;

-- name: create_event(id, event_name, event_key, event_data, event_time, is_processed)!
-- Inserts an event.
-- used by: create_event
-- index: none
INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
VALUES (:id, :event_name, :event_key, :event_data, :event_time, :is_processed);

-- name: create_event_group(units)
-- Inserts events.
-- used by: create_event
-- index: none
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: ORDER BY id; two hosts that insert the same ids deadlock without it
WITH units AS (
    SELECT unit.*
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, id TEXT, event_name TEXT, event_key TEXT, event_data TEXT, event_time TIMESTAMPTZ,
            is_processed BOOLEAN
        )
),

created AS (
    INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
    SELECT id, event_name, event_key, cast(event_data AS JSONB) AS event_data, event_time, is_processed
    FROM units
    ORDER BY id
    RETURNING id
)

SELECT units.unit
FROM created
INNER JOIN units ON created.id = units.id;

-- name: get_event(id)^
-- One event by id.
-- used by: get_event
-- index: events_pkey
SELECT document
FROM event_documents
WHERE id = :id;

-- name: get_event_group(units)
-- Events by id.
-- used by: get_event
-- index: events_pkey
-- keep: the column unit; it tells which unit a row is for
SELECT units.unit, event.document
FROM jsonb_to_recordset(:units) AS units (unit INT, id TEXT)
INNER JOIN event_documents AS event ON units.id = event.id;

-- name: get_runnable_events(as_at, row_limit)
-- Ids of unprocessed events up to :as_at, the oldest first; no limit if :row_limit is null.
-- used by: get_runnable_events
-- index: idx_events_unprocessed
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT id
FROM events
WHERE
    NOT is_processed AND event_time >= '0001-01-01 00:00:00+00'
    AND event_time <= cast(left(:as_at, 26) || '+00:00' AS TIMESTAMPTZ)
ORDER BY event_time, id
LIMIT :row_limit;

-- name: claim_runnable_events_group(units)
-- Claims free unprocessed events up to :as_at (the same for all units), the oldest first, and distributes them over the
-- units in order; the earliest :now of the units decides what is free. Skips rows that another host is writing. Returns
-- them unordered.
-- used by: claim_runnable_events
-- index: idx_events_unprocessed, events_pkey
-- keep: the column unit; it tells which unit a row is for
-- keep: FOR UPDATE SKIP LOCKED, in the statement that writes; two hosts would wait for each other, or claim the same
-- row
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: ORDER BY event_time, id in both places; with a limit, the oldest must come first
WITH units AS (
    SELECT
        unit.*,
        sum(unit.row_limit) OVER (ORDER BY unit.unit) AS last_place
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, as_at TEXT, now TIMESTAMPTZ, token TEXT, worker_id TEXT, expires_at TIMESTAMPTZ, row_limit BIGINT
        )
),

due AS (
    SELECT id, event_time
    FROM events
    WHERE
        NOT is_processed AND event_time >= '0001-01-01 00:00:00+00'
        AND event_time <= (SELECT min(cast(left(units.as_at, 26) || '+00:00' AS TIMESTAMPTZ)) FROM units)
        AND (claim_token IS NULL OR claim_expires_at <= (SELECT min(units.now) FROM units))
    ORDER BY event_time, id
    LIMIT (SELECT sum(units.row_limit) FROM units)
    FOR UPDATE SKIP LOCKED
),

dealt AS (
    SELECT
        id, event_time,
        row_number() OVER (ORDER BY event_time, id) AS place
    FROM due
)

UPDATE events
SET claim_token = units.token, claim_worker_id = units.worker_id, claim_expires_at = units.expires_at
FROM dealt
INNER JOIN units ON dealt.place > units.last_place - units.row_limit AND dealt.place <= units.last_place
WHERE events.id = dealt.id
RETURNING units.unit, events.id, events.event_time;

-- name: renew_event_claim_group(units)
-- Extends claims; changes no row if the token does not hold the event.
-- used by: renew_claim
-- index: events_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT, token TEXT, expires_at TIMESTAMPTZ)
),

locked AS (
    SELECT id, claim_token
    FROM events
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE events
    SET claim_expires_at = units.expires_at
    FROM units
    INNER JOIN locked ON units.id = locked.id AND units.token = locked.claim_token
    WHERE events.id = units.id
    RETURNING units.unit
)

SELECT
    unit,
    1 AS changed
FROM changed
UNION ALL
SELECT
    units.unit,
    NULL AS changed
FROM units
INNER JOIN events AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: release_event_claim_group(units)
-- Ends claims; changes no row if the token does not hold the event.
-- used by: release_claim, claim_runnable_events
-- index: events_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT, token TEXT)
),

locked AS (
    SELECT id, claim_token
    FROM events
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE events
    SET claim_token = NULL, claim_worker_id = NULL, claim_expires_at = NULL
    FROM units
    INNER JOIN locked ON units.id = locked.id AND units.token = locked.claim_token
    WHERE events.id = units.id
    RETURNING units.unit
)

SELECT
    unit,
    1 AS changed
FROM changed
UNION ALL
SELECT
    units.unit,
    NULL AS changed
FROM units
INNER JOIN events AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: check_event_claim(id, token)$
-- Returns 1 if the token holds the event; to keep it so until the transaction ends, lock the row first (lock_events).
-- used by: unit
-- index: events_pkey
-- keep: the condition on the token; a host that lost its claim would overwrite the work of another
SELECT 1 AS is_held
FROM events
WHERE id = :id AND claim_token = :token;

-- name: get_events(event_name, event_key, as_of, row_limit)
-- Ids of the events of one name and key up to :as_of, the oldest first; no limit if :row_limit is null.
-- used by: get_events
-- index: idx_events_name_key_time
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT id
FROM events
WHERE
    event_name = :event_name AND event_key = :event_key
    AND event_time <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
ORDER BY event_time, id
LIMIT :row_limit;

-- name: get_events_since(event_name, event_key, since, row_limit)
-- Ids of the events of one name and key from :since on, the oldest first.
-- used by: subscribe
-- index: idx_events_name_key_time
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT id
FROM events
WHERE event_name = :event_name AND event_key = :event_key AND event_time >= :since
ORDER BY event_time, id
LIMIT :row_limit;

-- name: get_events_since_group(units)
-- Ids of the events of one name and key from :since on, the oldest first.
-- used by: subscribe
-- index: idx_events_name_key_time
-- keep: the column unit; it tells which unit a row is for
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT units.unit, found.id
FROM
    jsonb_to_recordset(:units) AS units (
        unit INT, event_name TEXT, event_key TEXT, since TIMESTAMPTZ, row_limit BIGINT
    )
CROSS JOIN
    LATERAL (
        SELECT event.event_time, event.id
        FROM events AS event
        WHERE
            event.event_name = units.event_name AND event.event_key = units.event_key
            AND event.event_time >= units.since
        ORDER BY event.event_time, event.id
        LIMIT units.row_limit
    ) AS found
ORDER BY units.unit, found.event_time, found.id;

-- name: mark_event_processed_group(units)
-- Removes events from the poll; changes no row if :claim_token is given and does not hold the event.
-- used by: mark_event_processed
-- index: events_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT, claim_token TEXT)
),

locked AS (
    SELECT id, claim_token
    FROM events
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE events
    SET is_processed = TRUE
    FROM units
    INNER JOIN locked ON units.id = locked.id AND (units.claim_token IS NULL OR units.claim_token = locked.claim_token)
    WHERE events.id = units.id
    RETURNING units.unit
)

SELECT
    unit,
    1 AS changed
FROM changed
UNION ALL
SELECT
    units.unit,
    NULL AS changed
FROM units
INNER JOIN events AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: mark_event_unprocessed_group(units)
-- Returns events to the poll.
-- used by: mark_event_unprocessed
-- index: events_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT)
),

locked AS (
    SELECT id
    FROM events
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE events
    SET is_processed = FALSE
    FROM units
    INNER JOIN locked ON units.id = locked.id
    WHERE events.id = units.id
    RETURNING units.unit
)

SELECT
    unit,
    1 AS changed
FROM changed
UNION ALL
SELECT
    units.unit,
    NULL AS changed
FROM units
INNER JOIN events AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: lock_events(ids)
-- Locks the events whose ids are in :ids, a JSON array, until the transaction ends, as lock_workflows does.
-- used by: renew_claim, release_claim, mark_event_processed, mark_event_unprocessed
-- index: events_pkey
-- keep: ORDER BY id FOR UPDATE, before anything is written; two hosts deadlock without it
SELECT id
FROM events
WHERE id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
ORDER BY id
FOR UPDATE;
