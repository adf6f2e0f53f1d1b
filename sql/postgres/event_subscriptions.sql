-- One row for each step that waits, or waited, for an event.
-- A subscription is free when external_token is null or external_token_expiry is not after :now.
-- The column terminated is an addition: the reference deletes what it terminates. The reference ignores the column and
-- looks only at the token, so a terminated subscription that nobody holds gets the token 'wfe-sql:terminated', which
-- hides it from the reference; event_subscription_documents shows it as null. A bound on a time is cut to microseconds,
-- as explained in events.sql; workflows.sql explains what a query whose name ends in _group takes and returns.

-- name: create_event_subscriptions_table()#
-- The table and indexes of the reference (wfe-postgres 1.11.4), the column that it lacks, and an index that returns the
-- live rows of a name and key in the order of the queries.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS event_subscriptions (
    id TEXT COLLATE "C" PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    subscribe_as_of TIMESTAMPTZ NOT NULL,
    subscription_data JSONB,
    external_token TEXT,
    external_worker_id TEXT,
    external_token_expiry TIMESTAMPTZ
);
ALTER TABLE event_subscriptions ADD COLUMN IF NOT EXISTS terminated BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX IF NOT EXISTS idx_subscriptions_name_key ON event_subscriptions (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_subscriptions_workflow ON event_subscriptions (workflow_id);
CREATE INDEX IF NOT EXISTS idx_subscriptions_live
ON event_subscriptions (event_name, event_key, subscribe_as_of, id)
WHERE NOT terminated;

-- name: create_event_subscription_documents_view()#
-- Subscriptions as JSON documents, as in workflow_documents, with the columns that they are looked up by.
-- used by: ensure_store_exists
-- index: none
-- keep: the nullif; a host would take 'wfe-sql:terminated' for somebody's token
CREATE OR REPLACE VIEW event_subscription_documents AS
SELECT
    id,
    event_name,
    event_key,
    subscribe_as_of,
    external_token,
    external_token_expiry,
    terminated,
    cast(json_build_object(
        'id', id,
        'workflow_id', workflow_id,
        'step_id', step_id,
        'execution_pointer_id', execution_pointer_id,
        'event_name', event_name,
        'event_key', event_key,
        'subscribe_as_of', subscribe_as_of,
        'subscription_data', subscription_data,
        'external_token', nullif(external_token, 'wfe-sql:terminated'),
        'external_worker_id', external_worker_id,
        'external_token_expiry', external_token_expiry
    ) AS TEXT) AS document
FROM event_subscriptions;

-- name: create_event_subscription_group(units)
-- Inserts subscriptions.
-- used by: create_event_subscription
-- index: none
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: ORDER BY id; two hosts that insert the same ids deadlock without it
WITH units AS (
    SELECT unit.*
    FROM jsonb_populate_recordset(cast(NULL AS EVENT_SUBSCRIPTIONS), :units) WITH ORDINALITY AS unit
),

created AS (
    INSERT INTO event_subscriptions (
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
        external_token, external_worker_id, external_token_expiry
    )
    SELECT
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        cast(subscription_data #>> '{}' AS JSONB), external_token, external_worker_id, external_token_expiry
    FROM units
    ORDER BY id
    RETURNING id
)

SELECT units.ordinality - 1 AS unit
FROM created
INNER JOIN units ON created.id = units.id;

-- name: get_subscriptions(event_name, event_key, as_of, row_limit)
-- The live subscriptions of one name and key as of :as_of, the oldest first; no limit if :row_limit is null.
-- used by: get_subscriptions
-- index: idx_subscriptions_live
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT document
FROM event_subscription_documents
WHERE
    event_name = :event_name AND event_key = :event_key
    AND subscribe_as_of <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ)
    AND NOT terminated
ORDER BY subscribe_as_of, id COLLATE "C"
LIMIT cast(:row_limit AS BIGINT);

-- name: get_subscriptions_group(units)
-- The live subscriptions of a name and key as of :as_of, the oldest first; no limit if :row_limit is null.
-- used by: get_subscriptions
-- index: idx_subscriptions_live
-- keep: the column unit; it tells which unit a row is for
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT units.unit, found.document
FROM
    jsonb_to_recordset(:units) AS units (
        unit INT, event_name TEXT, event_key TEXT, as_of TEXT, row_limit BIGINT
    )
CROSS JOIN
    LATERAL (
        SELECT
            subscription.subscribe_as_of,
            subscription.id,
            subscription.document
        FROM event_subscription_documents AS subscription
        WHERE
            subscription.event_name = units.event_name AND subscription.event_key = units.event_key
            AND subscription.subscribe_as_of <= cast(left(units.as_of, 26) || '+00:00' AS TIMESTAMPTZ)
            AND NOT subscription.terminated
        ORDER BY subscription.subscribe_as_of, subscription.id
        LIMIT units.row_limit
    ) AS found
ORDER BY units.unit, found.subscribe_as_of, found.id;

-- name: get_subscription(id)^
-- One subscription by id, terminated or not.
-- used by: get_subscription, clear_subscription_token
-- index: event_subscriptions_pkey
SELECT document
FROM event_subscription_documents
WHERE id = :id;

-- name: get_first_open_subscription(event_name, event_key, as_of, now)^
-- The oldest live subscription of one name and key that nobody holds at :now.
-- used by: get_first_open_subscription
-- index: idx_subscriptions_live
-- keep: the conditions for free; two hosts would work on the same subscription
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT document
FROM event_subscription_documents
WHERE
    event_name = :event_name AND event_key = :event_key
    AND subscribe_as_of <= cast(left(:as_of, 26) || '+00:00' AS TIMESTAMPTZ) AND NOT terminated
    AND (external_token IS NULL OR external_token_expiry <= :now)
ORDER BY subscribe_as_of, id
LIMIT 1;

-- name: set_subscription_token(id, token, worker_id, expiry, now)^
-- Acquires a live subscription that is free at :now, or renews the same token. Returns 1 if it did, 0 if another token
-- holds it or it is terminated, and no row if it does not exist.
-- used by: set_subscription_token
-- index: event_subscriptions_pkey
-- keep: FOR UPDATE; a free subscription must still be free when it is written
-- keep: that one statement checks and sets the token; two hosts would hold the same subscription
WITH locked AS (
    SELECT
        id,
        NOT terminated
        AND (
            external_token IS NULL OR external_token = :token OR external_token_expiry <= :now
        ) AS is_free
    FROM event_subscriptions
    WHERE id = :id
    FOR UPDATE
),

taken AS (
    UPDATE event_subscriptions
    SET external_token = :token, external_worker_id = :worker_id, external_token_expiry = :expiry
    FROM locked
    WHERE event_subscriptions.id = locked.id AND locked.is_free
)

SELECT cast(coalesce(is_free, FALSE) AS INT) AS is_taken
FROM locked;

-- name: clear_subscription_token(id, token)!
-- Releases a subscription; changes no row if it does not hold this token. A terminated one stays hidden.
-- used by: clear_subscription_token
-- index: event_subscriptions_pkey
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE event_subscriptions
SET
    external_token = CASE WHEN terminated THEN 'wfe-sql:terminated' END,
    external_worker_id = NULL,
    external_token_expiry = NULL
WHERE id = :id AND external_token = :token AND external_token <> 'wfe-sql:terminated';

-- name: terminate_subscription_group(units)
-- Ends subscriptions; the rows stay.
-- used by: terminate_subscription
-- index: event_subscriptions_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT)
),

locked AS (
    SELECT id
    FROM event_subscriptions
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE event_subscriptions
    SET terminated = TRUE, external_token = coalesce(event_subscriptions.external_token, 'wfe-sql:terminated')
    FROM units
    INNER JOIN locked ON units.id = locked.id
    WHERE event_subscriptions.id = units.id
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
INNER JOIN event_subscriptions AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: lock_event_subscriptions(ids)
-- Locks the subscriptions whose ids are in :ids, a JSON array, until the transaction ends, as lock_workflows does.
-- used by: terminate_subscription
-- index: event_subscriptions_pkey
-- keep: ORDER BY id FOR UPDATE, before anything is written; two hosts deadlock without it
SELECT id
FROM event_subscriptions
WHERE id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
ORDER BY id
FOR UPDATE;
