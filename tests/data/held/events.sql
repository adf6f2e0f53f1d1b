-- name: get_event(id)^
-- A read that takes as long as a test wants: held() is a function of the test, which returns 1 when it is let go.
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
WHERE id = :id AND held() = 1;
