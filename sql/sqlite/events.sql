-- One row for each event from outside.
-- A bound on a time is text with nine decimals, so that it takes in rows of the reference with nanoseconds.

-- name: create_events_table()#
-- The table and indexes of the reference (wfe-sqlite 1.11.4), and two that return rows in the order of the queries: the
-- poll's holds only unprocessed events (and has is_processed first, as idx_workflows_runnable has status).
-- used by: ensure_store_exists
-- index: none
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

-- name: create_event(id, event_name, event_key, event_data, event_time, is_processed)!
-- Inserts an event.
-- used by: create_event
-- index: none
INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
VALUES (:id, :event_name, :event_key, :event_data, :event_time, :is_processed);

-- name: get_event(id)^
-- One event by id.
-- used by: get_event
-- index: sqlite_autoindex_events_1
SELECT id, event_name, event_key, event_data, event_time, is_processed
FROM events
WHERE id = :id;

-- name: get_runnable_events(as_at, row_limit)
-- Ids of unprocessed events up to :as_at, the oldest first; a null :row_limit is no limit.
-- used by: get_runnable_events
-- index: idx_events_unprocessed
SELECT id
FROM events
WHERE is_processed = 0 AND event_time <= :as_at
ORDER BY event_time, id
LIMIT coalesce(:row_limit, -1);

-- name: get_events(event_name, event_key, as_of)
-- Ids of the events of one name and key up to :as_of, the oldest first.
-- used by: get_events
-- index: idx_events_name_key_time
SELECT id
FROM events
WHERE event_name = :event_name AND event_key = :event_key AND event_time <= :as_of
ORDER BY event_time, id;

-- name: mark_event_processed(id)!
-- Takes an event out of the poll.
-- used by: mark_event_processed
-- index: sqlite_autoindex_events_1
UPDATE events
SET is_processed = 1
WHERE id = :id;

-- name: mark_event_unprocessed(id)!
-- Puts an event back into the poll.
-- used by: mark_event_unprocessed
-- index: sqlite_autoindex_events_1
UPDATE events
SET is_processed = 0
WHERE id = :id;
