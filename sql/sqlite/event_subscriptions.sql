-- One row for each step that waits, or waited, for an event.
-- A subscription is free when external_token is null or external_token_expiry is not after :now.

-- name: create_event_subscriptions_table()#
-- The table and indexes of the reference (wfe-sqlite 1.11.4), and one that returns the live rows of a name and key in
-- the order of the queries.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS event_subscriptions (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INTEGER NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    subscribe_as_of TEXT NOT NULL,
    subscription_data TEXT,
    external_token TEXT,
    external_worker_id TEXT,
    external_token_expiry TEXT,
    terminated INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS idx_event_subscriptions_name_key ON event_subscriptions (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_event_subscriptions_workflow_id ON event_subscriptions (workflow_id);
CREATE INDEX IF NOT EXISTS idx_event_subscriptions_live
ON event_subscriptions (event_name, event_key, subscribe_as_of, id)
WHERE terminated = 0;

-- name: create_event_subscription_documents_view()#
-- Subscriptions as JSON documents, as in workflow_documents, with the columns that they are looked up by.
-- used by: ensure_store_exists
-- index: none
-- keep: that times are truncated to microseconds; the decoder would round them
DROP VIEW IF EXISTS event_subscription_documents;
CREATE VIEW event_subscription_documents AS
SELECT
    id,
    event_name,
    event_key,
    subscribe_as_of,
    external_token,
    external_token_expiry,
    terminated,
    json_object(
        'id', id,
        'workflow_id', workflow_id,
        'step_id', step_id,
        'execution_pointer_id', execution_pointer_id,
        'event_name', event_name,
        'event_key', event_key,
        'subscribe_as_of',
        iif(
            length(subscribe_as_of) = 35,
            substr(subscribe_as_of, 1, 26) || substr(subscribe_as_of, 30),
            subscribe_as_of
        ),
        'subscription_data', json(subscription_data),
        'external_token', external_token,
        'external_worker_id', external_worker_id,
        'external_token_expiry',
        iif(
            length(external_token_expiry) = 35,
            substr(external_token_expiry, 1, 26) || substr(external_token_expiry, 30),
            external_token_expiry
        )
    ) AS document
FROM event_subscriptions;

-- name: create_event_subscription!
-- Inserts a subscription.
-- used by: create_event_subscription, persist_workflow_with_subscriptions
-- index: none
-- keep: a plain INSERT; an id in use must be an error
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry
)
VALUES (
    :id, :workflow_id, :step_id, :execution_pointer_id, :event_name, :event_key, :subscribe_as_of,
    :subscription_data, :external_token, :external_worker_id, :external_token_expiry
);

-- name: get_subscriptions(event_name, event_key, as_of, row_limit)
-- The live subscriptions of one name and key as of :as_of, the oldest first; no limit if :row_limit is null.
-- used by: get_subscriptions
-- index: idx_event_subscriptions_live
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT document
FROM event_subscription_documents
WHERE event_name = :event_name AND event_key = :event_key AND subscribe_as_of <= :as_of AND terminated = 0
ORDER BY subscribe_as_of, id
LIMIT coalesce(:row_limit, -1);

-- name: get_subscription(id)^
-- One subscription by id, terminated or not.
-- used by: get_subscription, clear_subscription_token
-- index: sqlite_autoindex_event_subscriptions_1
SELECT document
FROM event_subscription_documents
WHERE id = :id;

-- name: get_first_open_subscription(event_name, event_key, as_of, now)^
-- The oldest live subscription of one name and key that nobody holds at :now.
-- used by: get_first_open_subscription
-- index: idx_event_subscriptions_live
-- keep: the conditions for free; two hosts would work on the same subscription
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT document
FROM event_subscription_documents
WHERE
    event_name = :event_name AND event_key = :event_key AND subscribe_as_of <= :as_of AND terminated = 0
    AND (external_token IS NULL OR external_token_expiry <= :now)
ORDER BY subscribe_as_of, id
LIMIT 1;

-- name: set_subscription_token(id, token, worker_id, expiry, now)^
-- Acquires a live subscription that is free at :now, or renews the same token. Returns 1 if it did, 0 if another token
-- holds it or it is terminated, and no row if it does not exist. (If it returns 0, the row is written unchanged;
-- PostgreSQL locks it instead, which SQLite does not need.)
-- used by: set_subscription_token
-- index: sqlite_autoindex_event_subscriptions_1
-- keep: that one statement checks and sets the token; two hosts would hold the same subscription
UPDATE event_subscriptions
SET
    (external_token, external_worker_id, external_token_expiry) = (
        SELECT
            iif(free.is_free, :token, external_token),
            iif(free.is_free, :worker_id, external_worker_id),
            iif(free.is_free, :expiry, external_token_expiry)
        FROM
            (
                SELECT
                    terminated = 0
                    AND (external_token IS NULL OR external_token = :token OR external_token_expiry <= :now) AS is_free
            ) AS free
    )
WHERE id = :id
RETURNING terminated = 0 AND external_token = :token AS is_taken;

-- name: clear_subscription_token(id, token)!
-- Releases a subscription; changes no row if it does not hold this token.
-- used by: clear_subscription_token
-- index: sqlite_autoindex_event_subscriptions_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE event_subscriptions
SET external_token = NULL, external_worker_id = NULL, external_token_expiry = NULL
WHERE id = :id AND external_token = :token;

-- name: terminate_subscription(id)!
-- Ends a subscription; the row stays.
-- used by: terminate_subscription
-- index: sqlite_autoindex_event_subscriptions_1
UPDATE event_subscriptions
SET terminated = 1
WHERE id = :id;
