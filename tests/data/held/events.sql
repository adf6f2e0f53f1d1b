-- name: get_event(id)^
-- A read that takes as long as a test wants: it puts a function of its own in place of sqlite_version().
-- used by: get_event
-- index: sqlite_autoindex_events_1
SELECT
    json_object(
        'id', id,
        'event_name', event_name,
        'event_key', event_key,
        'event_data', json(event_data),
        'event_time', event_time,
        'is_processed', json('false')
    ) AS document
FROM events
WHERE id = :id AND sqlite_version() <> '';
