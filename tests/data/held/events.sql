-- name: get_event(id)^
-- A read that takes as long as a test wants: it puts a function of its own in place of sqlite_version().
-- used by: get_event
-- index: sqlite_autoindex_events_1
SELECT document
FROM event_documents
WHERE id = :id AND sqlite_version() <> '';
