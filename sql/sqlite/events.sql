-- One row for each external event.
-- A bound on a time is text with nine decimals, so that it includes rows of the reference with nanoseconds.
-- A claim is a fresh token, the worker that took it, and when it expires; an event is free when claim_token is null or
-- claim_expires_at is not after :now. The claim columns are additions to the reference's table.

-- name: create_events_table()#
-- The table and indexes of the reference (wfe-sqlite 1.11.4), and two indexes that return rows in the order of the
-- queries. The one for polls holds only unprocessed events (is_processed comes first for the same reason as status in
-- idx_workflows_runnable).
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    event_data TEXT NOT NULL,
    event_time TEXT NOT NULL,
    is_processed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS idx_events_name_key ON events (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_events_is_processed ON events (is_processed);
CREATE INDEX IF NOT EXISTS idx_events_event_time ON events (event_time);
CREATE INDEX IF NOT EXISTS idx_events_name_key_time ON events (event_name, event_key, event_time, id);
CREATE INDEX IF NOT EXISTS idx_events_unprocessed ON events (is_processed, event_time, id)
WHERE is_processed = 0;

-- name: add_events_claim()#
-- Adds columns that the reference's table lacks.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE events ADD COLUMN claim_token TEXT;
ALTER TABLE events ADD COLUMN claim_worker_id TEXT;
ALTER TABLE events ADD COLUMN claim_expires_at TEXT;

-- name: create_event_documents_view()#
-- Events as JSON documents, as in workflow_documents.
-- used by: ensure_store_exists
-- index: none
-- keep: that times are truncated to microseconds; the decoder would round them
DROP VIEW IF EXISTS event_documents;
CREATE VIEW event_documents AS
SELECT
    id,
    json_object(
        'id', id,
        'event_name', event_name,
        'event_key', event_key,
        'event_data', json(event_data),
        'event_time', iif(length(event_time) = 35, substr(event_time, 1, 26) || substr(event_time, 30), event_time),
        'is_processed', CASE is_processed WHEN 0 THEN json('false') WHEN 1 THEN json('true') ELSE is_processed END
    ) AS document
FROM events;

-- name: create_event(id, event_name, event_key, event_data, event_time, is_processed)!
-- Inserts an event.
-- used by: create_event
-- index: none
-- keep: a plain INSERT; an id in use must be an error
INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
VALUES (:id, :event_name, :event_key, :event_data, :event_time, :is_processed);

-- name: get_event(id)^
-- One event by id.
-- used by: get_event
-- index: sqlite_autoindex_events_1
SELECT document
FROM event_documents
WHERE id = :id;

-- name: get_runnable_events(as_at, row_limit)
-- Ids of unprocessed events up to :as_at, the oldest first; no limit if :row_limit is null.
-- used by: get_runnable_events
-- index: idx_events_unprocessed
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT id
FROM events
WHERE is_processed = 0 AND event_time <= :as_at
ORDER BY event_time, id
LIMIT coalesce(:row_limit, -1);

-- name: find_free_runnable_event(as_at, now)$
-- One of the events that claim_runnable_events would take, if any: claiming takes the write lock even if it finds
-- nothing.
-- used by: claim_runnable_events
-- index: idx_events_unprocessed
-- keep: the conditions for due and free; a host would miss work, or take the lock for nothing
SELECT id
FROM events
WHERE is_processed = 0 AND event_time <= :as_at AND (claim_token IS NULL OR claim_expires_at <= :now)
ORDER BY event_time, id
LIMIT 1;

-- name: claim_runnable_events(as_at, now, token, worker_id, expires_at, row_limit)
-- Claims free unprocessed events up to :as_at, the oldest first; returns them unordered.
-- used by: claim_runnable_events
-- index: idx_events_unprocessed, sqlite_autoindex_events_1
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
UPDATE events
SET claim_token = :token, claim_worker_id = :worker_id, claim_expires_at = :expires_at
WHERE
    id IN (
        SELECT id
        FROM events
        WHERE is_processed = 0 AND event_time <= :as_at AND (claim_token IS NULL OR claim_expires_at <= :now)
        ORDER BY event_time, id
        LIMIT :row_limit
    )
RETURNING id, event_time;

-- name: renew_event_claim(id, token, expires_at)!
-- Extends a claim; changes no row if the token does not hold the event.
-- used by: renew_claim
-- index: sqlite_autoindex_events_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE events
SET claim_expires_at = :expires_at
WHERE id = :id AND claim_token = :token;

-- name: release_event_claim(id, token)!
-- Ends a claim; changes no row if the token does not hold the event.
-- used by: release_claim, claim_runnable_events
-- index: sqlite_autoindex_events_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE events
SET claim_token = NULL, claim_worker_id = NULL, claim_expires_at = NULL
WHERE id = :id AND claim_token = :token;

-- name: check_event_claim(id, token)$
-- Returns 1 where the token holds the event, which stays so until the transaction ends: no other connection writes.
-- used by: unit
-- index: sqlite_autoindex_events_1
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
WHERE event_name = :event_name AND event_key = :event_key AND event_time <= :as_of
ORDER BY event_time, id
LIMIT coalesce(:row_limit, -1);

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

-- name: mark_event_processed(id, claim_token)!
-- Removes an event from the poll; changes no row if :claim_token is given and does not hold it.
-- used by: mark_event_processed
-- index: sqlite_autoindex_events_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE events
SET is_processed = 1
WHERE id = :id AND (:claim_token IS NULL OR claim_token = :claim_token);

-- name: mark_event_unprocessed(id)!
-- Returns an event to the poll.
-- used by: mark_event_unprocessed
-- index: sqlite_autoindex_events_1
UPDATE events
SET is_processed = 0
WHERE id = :id;
