-- One row for each workflow instance. Times are timestamptz, JSON is jsonb, next_execution is epoch milliseconds.
-- A claim is a fresh token, the worker that took it, and when it expires; a workflow is free when claim_token is null or
-- claim_expires_at is not after :now. The revision is raised by every change. These columns are additions to the
-- reference's table.
-- A query whose name ends in _group takes :units, a JSON array of the waiting units: each has its number as "unit", the
-- parameters of the query that the group is named after (see the same file of SQLite), and the parameters of the unit's
-- other queries as lists under the names of these. JSON is text in it, hence #>> '{}'. The query returns rows for each
-- unit that found its row. A query that changes rows does not wait for locks: it skips a row that somebody else holds,
-- and the unit comes back with null instead of a result. That unit then runs by itself, after a statement that waits
-- for the row (lock_workflows). Some kinds of units have a plain query for a unit that waits alone, because a set of
-- one costs more: it has the name of the one in SQLite, or ends in _alone if SQLite has several.

-- name: create_workflows_table()#
-- The table and indexes of the reference (wfe-postgres 1.11.4), the columns that it lacks, and three more indexes. The
-- index for polls is partial: it holds only Runnable workflows, so a million finished ones cost nothing. The index for
-- purges holds only finished workflows, so that running ones never write to it. The third is for listing; create_time
-- never changes, so only creation writes to it. Ids are sorted by their bytes, here and in the other tables: pages of a
-- dump come in this order, whatever the database's own collation is (collate_ids_bytewise). Hosts of the reference that
-- are running while this changes one of their tables must be restarted: their cached plans of SELECT * then fail
-- ("cached plan must not change result type").
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS workflows (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    root_workflow_id TEXT,
    definition_id TEXT NOT NULL,
    version INT NOT NULL,
    description TEXT,
    reference TEXT,
    status TEXT NOT NULL,
    data JSONB NOT NULL DEFAULT '{}',
    next_execution BIGINT,
    create_time TIMESTAMPTZ NOT NULL,
    complete_time TIMESTAMPTZ,
    last_heartbeat_at TIMESTAMPTZ
);
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS root_workflow_id TEXT;
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS last_heartbeat_at TIMESTAMPTZ;
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS claim_token TEXT;
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS claim_worker_id TEXT;
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS claim_expires_at TIMESTAMPTZ;
ALTER TABLE workflows ADD COLUMN IF NOT EXISTS revision BIGINT NOT NULL DEFAULT 0;
CREATE INDEX IF NOT EXISTS idx_workflows_next_execution ON workflows (next_execution);
CREATE INDEX IF NOT EXISTS idx_workflows_status ON workflows (status);
CREATE INDEX IF NOT EXISTS idx_workflows_runnable ON workflows (next_execution, id)
WHERE status = 'Runnable';
CREATE INDEX IF NOT EXISTS idx_workflows_finished
ON workflows (status, coalesce(complete_time, create_time), id)
WHERE status IN ('Complete', 'Terminated');
CREATE INDEX IF NOT EXISTS idx_workflows_create_time ON workflows (create_time, id);

-- name: create_workflows_root_index()#
-- Finds the workflows that one workflow started. Workflows without a root are not in it, so they cost nothing.
-- used by: ensure_store_exists
-- index: none
-- keep: the index; a missing one shows only in plans and in `wfe-sql check`
CREATE INDEX IF NOT EXISTS idx_workflows_root ON workflows (root_workflow_id, create_time, id)
WHERE root_workflow_id IS NOT NULL;

-- name: name_workflows_without_name()#
-- Upgrades a table from before workflows had names: each gets its id as its name.
-- used by: ensure_store_exists
-- scan: every row is changed
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'workflows'::regclass AND attname = 'name' AND attnotnull
    ) THEN
        ALTER TABLE workflows ADD COLUMN IF NOT EXISTS name TEXT;
        UPDATE workflows SET name = id WHERE name IS NULL;
        ALTER TABLE workflows ALTER COLUMN name SET NOT NULL;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_constraint
        WHERE conrelid = 'workflows'::regclass AND conname = 'workflows_name_key'
    ) THEN
        ALTER TABLE workflows ADD CONSTRAINT workflows_name_key UNIQUE (name);
    END IF;
END
$$;

-- name: create_workflows_revision_trigger()#
-- Raises the revision for programs that do not know it: the reference, or a person at the psql prompt. Claiming is not
-- a change. https://www.postgresql.org/docs/current/sql-createtrigger.html
-- used by: ensure_store_exists
-- index: none
-- keep: that each change raises the revision; a host would overwrite what another program changed
CREATE OR REPLACE FUNCTION raise_workflows_revision() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    new.revision = old.revision + 1;
    RETURN new;
END
$$;
CREATE OR REPLACE TRIGGER raise_workflows_revision
BEFORE UPDATE OF
name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, create_time,
complete_time
ON workflows
FOR EACH ROW WHEN (new.revision = old.revision)
EXECUTE FUNCTION raise_workflows_revision();

-- name: create_workflow_documents_view()#
-- Workflows as JSON documents with the names of the model's fields. An existing view is replaced only if it lacks a
-- key, because the view of a later version has more.
-- used by: ensure_store_exists
-- index: none
CREATE OR REPLACE VIEW workflow_documents AS
SELECT
    id,
    name,
    revision,
    cast(json_build_object(
        'id', id,
        'name', name,
        'root_workflow_id', root_workflow_id,
        'workflow_definition_id', definition_id,
        'version', version,
        'description', description,
        'reference', reference,
        'next_execution', next_execution,
        'status', status,
        'data', data,
        'create_time', create_time,
        'complete_time', complete_time
    ) AS TEXT) AS document,
    create_time
FROM workflows;

-- name: create_new_workflow_group(units)
-- Inserts workflows with their pointers in list order; an empty name becomes the id.
-- used by: create_new_workflow
-- index: none
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: ORDER BY id; two hosts that insert the same ids deadlock without it
-- keep: ORDER BY units.unit, pointer.ordinality; pointers get their positions in this order
WITH units AS (
    SELECT unit.*
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, id TEXT, name TEXT, root_workflow_id TEXT, definition_id TEXT, version INT, description TEXT,
            reference TEXT, status TEXT, data TEXT, next_execution BIGINT, create_time TIMESTAMPTZ,
            complete_time TIMESTAMPTZ, insert_execution_pointers JSONB
        )
),

created AS (
    INSERT INTO workflows (
        id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
        create_time, complete_time
    )
    SELECT
        id, CASE name WHEN '' THEN id ELSE name END, root_workflow_id, definition_id, version, description, reference,
        status, cast(data AS JSONB), next_execution, create_time, complete_time
    FROM units
    ORDER BY id
    RETURNING id
),

inserted AS (
    INSERT INTO execution_pointers (
        id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
        event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id,
        outcome, scope, extension_attributes
    )
    SELECT
        pointer.id, pointer.workflow_id, pointer.step_id, pointer.active, pointer.status, pointer.sleep_until,
        cast(pointer.persistence_data #>> '{}' AS JSONB), pointer.start_time, pointer.end_time, pointer.event_name,
        pointer.event_key, pointer.event_published, cast(pointer.event_data #>> '{}' AS JSONB), pointer.step_name,
        pointer.retry_count, cast(pointer.children #>> '{}' AS JSONB), cast(pointer.context_item #>> '{}' AS JSONB),
        pointer.predecessor_id, cast(pointer.outcome #>> '{}' AS JSONB), cast(pointer.scope #>> '{}' AS JSONB),
        cast(pointer.extension_attributes #>> '{}' AS JSONB)
    FROM units
    CROSS JOIN
        LATERAL jsonb_populate_recordset(
            cast(NULL AS EXECUTION_POINTERS), units.insert_execution_pointers
        ) WITH ORDINALITY AS pointer
    ORDER BY units.unit, pointer.ordinality
)

SELECT units.unit
FROM created
INNER JOIN units ON created.id = units.id;

-- name: create_numbered_workflow_group(units)
-- Inserts workflows with their pointers in list order, draws their numbers as next_definition_sequence_group does, and
-- returns their names: the definition and the number.
-- used by: create_numbered_workflow
-- index: definition_sequences_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: ORDER BY id; two hosts that insert the same ids deadlock without it
-- keep: ORDER BY named.unit, pointer.ordinality; pointers get their positions in this order
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: ORDER BY definition_id where rows are inserted; two hosts deadlock without it
WITH units AS (
    SELECT
        unit.*,
        row_number() OVER (PARTITION BY unit.definition_id ORDER BY unit.unit) AS place
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, id TEXT, root_workflow_id TEXT, definition_id TEXT, version INT, description TEXT,
            reference TEXT, status TEXT, data TEXT, next_execution BIGINT, create_time TIMESTAMPTZ,
            complete_time TIMESTAMPTZ, insert_execution_pointers JSONB
        )
),

wanted AS (
    SELECT
        definition_id,
        count(*) AS numbers
    FROM units
    GROUP BY definition_id
),

locked AS (
    SELECT definition_id
    FROM definition_sequences
    WHERE definition_id = any(array(SELECT wanted.definition_id FROM wanted))
    FOR UPDATE SKIP LOCKED
),

held AS (
    SELECT definition_id
    FROM definition_sequences
    WHERE
        definition_id = any(
            array(
                SELECT wanted.definition_id
                FROM wanted
                WHERE wanted.definition_id NOT IN (SELECT locked.definition_id FROM locked)
            )
        )
),

raised AS (
    INSERT INTO definition_sequences (definition_id, next_num)
    SELECT definition_id, numbers
    FROM wanted
    WHERE definition_id NOT IN (SELECT held.definition_id FROM held)
    ORDER BY definition_id
    ON CONFLICT (definition_id) DO UPDATE
        SET next_num = definition_sequences.next_num + excluded.next_num
        WHERE definition_sequences.next_num <= 9223372036854775807 - excluded.next_num
    RETURNING definition_id, next_num
),

named AS (
    SELECT
        units.*,
        concat(units.definition_id, '-', raised.next_num - wanted.numbers + units.place) AS name
    FROM units
    INNER JOIN wanted ON units.definition_id = wanted.definition_id
    INNER JOIN raised ON wanted.definition_id = raised.definition_id
),

created AS (
    INSERT INTO workflows (
        id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
        create_time, complete_time
    )
    SELECT
        id, name, root_workflow_id, definition_id, version, description, reference,
        status, cast(data AS JSONB), next_execution, create_time, complete_time
    FROM named
    ORDER BY id
    RETURNING id
),

inserted AS (
    INSERT INTO execution_pointers (
        id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
        event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id,
        outcome, scope, extension_attributes
    )
    SELECT
        pointer.id, pointer.workflow_id, pointer.step_id, pointer.active, pointer.status, pointer.sleep_until,
        cast(pointer.persistence_data #>> '{}' AS JSONB), pointer.start_time, pointer.end_time, pointer.event_name,
        pointer.event_key, pointer.event_published, cast(pointer.event_data #>> '{}' AS JSONB), pointer.step_name,
        pointer.retry_count, cast(pointer.children #>> '{}' AS JSONB), cast(pointer.context_item #>> '{}' AS JSONB),
        pointer.predecessor_id, cast(pointer.outcome #>> '{}' AS JSONB), cast(pointer.scope #>> '{}' AS JSONB),
        cast(pointer.extension_attributes #>> '{}' AS JSONB)
    FROM named
    CROSS JOIN
        LATERAL jsonb_populate_recordset(
            cast(NULL AS EXECUTION_POINTERS), named.insert_execution_pointers
        ) WITH ORDINALITY AS pointer
    ORDER BY named.unit, pointer.ordinality
)

SELECT named.unit, named.name
FROM created
INNER JOIN named ON created.id = named.id
UNION ALL
SELECT units.unit, NULL AS name
FROM units
INNER JOIN held ON units.definition_id = held.definition_id;

-- name: persist_workflow_group(units)
-- Overwrites workflows except their create_time, with those of their pointers that changed, and returns the new
-- revision and the create_time of each; an empty name keeps the stored one. Changes no row if :claim_token is given and
-- does not hold it, or :expected_revision is given and differs, as does :expected_create_time if the workflow was
-- deleted and created again. A workflow that somebody else holds, or changed since this statement began, comes back
-- with a null revision and is not written at all, because this statement sees its pointers as they were before.
-- While a transaction is open, the server keeps every version of a row that was updated since it began, each with an
-- entry in the index, and = would visit all of them, beginning with the oldest. So the newest version is looked up from
-- the other end, by a range, and is updated at its place (ctid); the place of a later version is not visible here.
-- Pointers are written by two statements that differ in one column, because Citus rejects a subquery in DO UPDATE SET.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: workflows_pkey, execution_pointers_pkey, idx_execution_pointers_workflow_id
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: the range with ORDER BY id DESC LIMIT 1; with =, each write would take longer the longer a transaction is open
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the conditions on claim_token, revision and create_time; a late host would overwrite the work of another
-- keep: ORDER BY unit, ordinality; pointers get their positions in this order
WITH units AS (
    SELECT unit.*
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, id TEXT, name TEXT, root_workflow_id TEXT, definition_id TEXT, version INT, description TEXT,
            reference TEXT, status TEXT, data TEXT, next_execution BIGINT, complete_time TIMESTAMPTZ, claim_token TEXT,
            expected_revision BIGINT, expected_create_time TIMESTAMPTZ, now TIMESTAMPTZ,
            delete_execution_pointers JSONB, delete_gone_execution_pointers JSONB, upsert_execution_pointers JSONB,
            insert_execution_pointers JSONB, create_event_subscription JSONB
        )
),

locked AS (
    SELECT
        units.*,
        stored.revision,
        stored.place,
        (units.claim_token IS NULL OR units.claim_token = stored.claim_token)
        AND (
            units.expected_revision IS NULL
            OR (units.expected_revision = stored.revision AND units.expected_create_time = stored.create_time)
        ) AS is_expected
    FROM units
    CROSS JOIN LATERAL (
        SELECT revision, create_time, claim_token, ctid AS place
        FROM workflows
        WHERE id >= units.id AND id <= units.id
        ORDER BY id DESC
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS stored
),

updated AS (
    UPDATE workflows
    SET
        name = CASE locked.name WHEN '' THEN workflows.name ELSE locked.name END,
        root_workflow_id = locked.root_workflow_id,
        definition_id = locked.definition_id,
        version = locked.version,
        description = locked.description,
        reference = locked.reference,
        status = locked.status,
        data = cast(locked.data AS JSONB),
        next_execution = locked.next_execution,
        complete_time = locked.complete_time,
        last_heartbeat_at = locked.now,
        revision = locked.revision + 1
    FROM locked
    WHERE workflows.ctid = locked.place AND locked.is_expected
    RETURNING
        locked.unit, workflows.id, workflows.revision, workflows.create_time,
        locked.delete_execution_pointers, locked.delete_gone_execution_pointers, locked.upsert_execution_pointers,
        locked.insert_execution_pointers, locked.create_event_subscription
),

replaced AS (
    SELECT unit, id
    FROM updated
    WHERE delete_execution_pointers IS NOT NULL
),

pointers AS (
    SELECT updated.unit, pointer.*
    FROM updated
    CROSS JOIN
        LATERAL jsonb_populate_recordset(
            cast(NULL AS EXECUTION_POINTERS),
            coalesce(updated.upsert_execution_pointers, '[]') || coalesce(updated.insert_execution_pointers, '[]')
        ) WITH ORDINALITY AS pointer
),

gone AS (
    SELECT stored.id, stored.workflow_id
    FROM replaced
    INNER JOIN execution_pointers AS stored ON replaced.id = stored.workflow_id
    WHERE
        NOT EXISTS (
            SELECT 1
            FROM pointers
            WHERE pointers.unit = replaced.unit AND pointers.id = stored.id
        )
    UNION ALL
    SELECT listed.id, updated.id AS workflow_id
    FROM updated
    CROSS JOIN
        LATERAL jsonb_array_elements_text(
            cast(updated.delete_gone_execution_pointers -> 0 ->> 'ids' AS JSONB)
        ) AS listed (id)
),

deleted AS (
    DELETE FROM execution_pointers
    USING gone
    WHERE execution_pointers.id = gone.id AND execution_pointers.workflow_id = gone.workflow_id
),

-- A statement cannot insert again what it deleted, so pointers that are all rewritten overwrite the existing ones and
-- get new positions. A pointer of another workflow would get no workflow_id, which NOT NULL rejects.
rewritten AS (
    INSERT INTO execution_pointers (
        id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
        event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id,
        outcome, scope, extension_attributes
    )
    SELECT
        id, workflow_id, step_id, active, status, sleep_until, cast(persistence_data #>> '{}' AS JSONB), start_time,
        end_time, event_name, event_key, event_published, cast(event_data #>> '{}' AS JSONB), step_name, retry_count,
        cast(children #>> '{}' AS JSONB), cast(context_item #>> '{}' AS JSONB), predecessor_id,
        cast(outcome #>> '{}' AS JSONB), cast(scope #>> '{}' AS JSONB), cast(extension_attributes #>> '{}' AS JSONB)
    FROM pointers
    WHERE unit IN (SELECT replaced.unit FROM replaced)
    ORDER BY unit, ordinality
    ON CONFLICT (id) DO UPDATE SET
        workflow_id
        = CASE WHEN execution_pointers.workflow_id = excluded.workflow_id THEN excluded.workflow_id END,
        position = excluded.position,
        step_id = excluded.step_id,
        active = excluded.active,
        status = excluded.status,
        sleep_until = excluded.sleep_until,
        persistence_data = excluded.persistence_data,
        start_time = excluded.start_time,
        end_time = excluded.end_time,
        event_name = excluded.event_name,
        event_key = excluded.event_key,
        event_published = excluded.event_published,
        event_data = excluded.event_data,
        step_name = excluded.step_name,
        retry_count = excluded.retry_count,
        children = excluded.children,
        context_item = excluded.context_item,
        predecessor_id = excluded.predecessor_id,
        outcome = excluded.outcome,
        scope = excluded.scope,
        extension_attributes = excluded.extension_attributes
),

written AS (
    INSERT INTO execution_pointers (
        id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
        event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id,
        outcome, scope, extension_attributes
    )
    SELECT
        id, workflow_id, step_id, active, status, sleep_until, cast(persistence_data #>> '{}' AS JSONB), start_time,
        end_time, event_name, event_key, event_published, cast(event_data #>> '{}' AS JSONB), step_name, retry_count,
        cast(children #>> '{}' AS JSONB), cast(context_item #>> '{}' AS JSONB), predecessor_id,
        cast(outcome #>> '{}' AS JSONB), cast(scope #>> '{}' AS JSONB), cast(extension_attributes #>> '{}' AS JSONB)
    FROM pointers
    WHERE unit NOT IN (SELECT replaced.unit FROM replaced)
    ORDER BY unit, ordinality
    ON CONFLICT (id) DO UPDATE SET
        workflow_id
        = CASE WHEN execution_pointers.workflow_id = excluded.workflow_id THEN excluded.workflow_id END,
        step_id = excluded.step_id,
        active = excluded.active,
        status = excluded.status,
        sleep_until = excluded.sleep_until,
        persistence_data = excluded.persistence_data,
        start_time = excluded.start_time,
        end_time = excluded.end_time,
        event_name = excluded.event_name,
        event_key = excluded.event_key,
        event_published = excluded.event_published,
        event_data = excluded.event_data,
        step_name = excluded.step_name,
        retry_count = excluded.retry_count,
        children = excluded.children,
        context_item = excluded.context_item,
        predecessor_id = excluded.predecessor_id,
        outcome = excluded.outcome,
        scope = excluded.scope,
        extension_attributes = excluded.extension_attributes
),

subscribed AS (
    INSERT INTO event_subscriptions (
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
        external_token, external_worker_id, external_token_expiry
    )
    SELECT
        subscription.id, subscription.workflow_id, subscription.step_id, subscription.execution_pointer_id,
        subscription.event_name, subscription.event_key, subscription.subscribe_as_of,
        cast(subscription.subscription_data #>> '{}' AS JSONB), subscription.external_token,
        subscription.external_worker_id, subscription.external_token_expiry
    FROM updated
    CROSS JOIN
        LATERAL jsonb_populate_recordset(
            cast(NULL AS EVENT_SUBSCRIPTIONS), updated.create_event_subscription
        ) AS subscription
    ORDER BY subscription.id
)

SELECT unit, revision, to_json(create_time) #>> '{}' AS create_time
FROM updated
UNION ALL
SELECT unit, NULL AS revision, NULL AS create_time
FROM locked
WHERE is_expected AND unit NOT IN (SELECT updated.unit FROM updated)
UNION ALL
SELECT units.unit, NULL AS revision, NULL AS create_time
FROM units
INNER JOIN workflows ON units.id = workflows.id
WHERE units.unit NOT IN (SELECT locked.unit FROM locked);

-- name: lock_workflows(ids)
-- Locks the workflows whose ids are in :ids, a JSON array, until the transaction ends, so that the next statement sees
-- the changes of others that it waited for.
-- used by: persist_workflow, persist_workflow_with_subscriptions, renew_claim, release_claim
-- index: workflows_pkey
-- keep: ORDER BY id FOR UPDATE, before anything is written; two hosts deadlock without it
SELECT id
FROM workflows
WHERE id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
ORDER BY id
FOR UPDATE;

-- name: get_workflow_guards(id, expected_create_time)^
-- The values that guard a write, to explain why one changed no row. A workflow whose create_time is not
-- :expected_create_time was deleted and created again.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: workflows_pkey
SELECT claim_token, revision, create_time = :expected_create_time AS is_same_life
FROM workflows
WHERE id = :id;

-- name: get_runnable_instances(as_at, row_limit)
-- Ids of workflows that are due at :as_at (epoch ms), the longest due first; no limit if :row_limit is null.
-- used by: get_runnable_instances
-- index: idx_workflows_runnable
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
SELECT id
FROM workflows
WHERE status = 'Runnable' AND next_execution <= :as_at
ORDER BY next_execution, id
LIMIT :row_limit;

-- name: claim_runnable_instances_group(units)
-- Claims free workflows that are due at :as_at (epoch ms, the same for all units), the longest due first, and
-- distributes them over the units in order; the earliest :now of the units decides what is free. Skips rows that
-- another host is writing. Returns them unordered.
-- used by: claim_runnable_instances
-- index: idx_workflows_runnable, workflows_pkey
-- keep: the column unit; it tells which unit a row is for
-- keep: FOR UPDATE SKIP LOCKED, in the statement that writes; two hosts would wait for each other, or claim the same
-- row
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: ORDER BY next_execution, id in both places; with a limit, the longest due must come first
WITH units AS (
    SELECT
        unit.*,
        sum(unit.row_limit) OVER (ORDER BY unit.unit) AS last_place
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, as_at BIGINT, now TIMESTAMPTZ, token TEXT, worker_id TEXT, expires_at TIMESTAMPTZ,
            row_limit BIGINT
        )
),

due AS (
    SELECT id, next_execution
    FROM workflows
    WHERE
        status = 'Runnable' AND next_execution <= (SELECT min(units.as_at) FROM units)
        AND (claim_token IS NULL OR claim_expires_at <= (SELECT min(units.now) FROM units))
    ORDER BY next_execution, id
    LIMIT (SELECT sum(units.row_limit) FROM units)
    FOR UPDATE SKIP LOCKED
),

dealt AS (
    SELECT
        id, next_execution,
        row_number() OVER (ORDER BY next_execution, id) AS place
    FROM due
)

UPDATE workflows
SET claim_token = units.token, claim_worker_id = units.worker_id, claim_expires_at = units.expires_at
FROM dealt
INNER JOIN units ON dealt.place > units.last_place - units.row_limit AND dealt.place <= units.last_place
WHERE workflows.id = dealt.id
RETURNING units.unit, workflows.id, workflows.next_execution;

-- name: claim_and_load_instances_group(units)
-- Claims what claim_runnable_instances_group does, and returns the workflows themselves, unordered, each with its pointers
-- in list order. A workflow that another host changed since the statement began comes without its document, because this
-- statement sees its pointers as they were before.
-- used by: claim_and_load_instances
-- index: idx_workflows_runnable, workflows_pkey, idx_execution_pointers_workflow_id
-- keep: the column unit; it tells which unit a row is for
-- keep: FOR UPDATE SKIP LOCKED, in the statement that writes; two hosts would wait for each other, or claim one row
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: ORDER BY next_execution, id in both places; with a limit, the longest due must come first
-- keep: the comparison of revisions; a step that was stored as done would run again
-- keep: ORDER BY pointer.position; pointers come back in list order
WITH units AS (
    SELECT
        unit.*,
        sum(unit.row_limit) OVER (ORDER BY unit.unit) AS last_place
    FROM
        jsonb_to_recordset(:units) AS unit (
            unit INT, as_at BIGINT, now TIMESTAMPTZ, token TEXT, worker_id TEXT, expires_at TIMESTAMPTZ,
            row_limit BIGINT
        )
),

due AS (
    SELECT id, next_execution
    FROM workflows
    WHERE
        status = 'Runnable' AND next_execution <= (SELECT min(units.as_at) FROM units)
        AND (claim_token IS NULL OR claim_expires_at <= (SELECT min(units.now) FROM units))
    ORDER BY next_execution, id
    LIMIT (SELECT sum(units.row_limit) FROM units)
    FOR UPDATE SKIP LOCKED
),

dealt AS (
    SELECT
        id, next_execution,
        row_number() OVER (ORDER BY next_execution, id) AS place
    FROM due
),

claimed AS (
    UPDATE workflows
    SET claim_token = units.token, claim_worker_id = units.worker_id, claim_expires_at = units.expires_at
    FROM dealt
    INNER JOIN units ON dealt.place > units.last_place - units.row_limit AND dealt.place <= units.last_place
    WHERE workflows.id = dealt.id
    RETURNING units.unit, workflows.id, workflows.next_execution, workflows.revision
)

SELECT
    claimed.unit,
    claimed.id,
    claimed.next_execution,
    stored.document,
    stored.revision,
    to_json(stored.create_time) #>> '{}' AS create_time,
    array(
        SELECT pointer.document
        FROM execution_pointer_documents AS pointer
        WHERE pointer.workflow_id = claimed.id
        ORDER BY pointer.position
    ) AS pointers
FROM claimed
LEFT JOIN workflow_documents AS stored ON claimed.id = stored.id AND claimed.revision = stored.revision;

-- name: renew_workflow_claim_group(units)
-- Extends claims; changes no row if the token does not hold the workflow.
-- used by: renew_claim
-- index: workflows_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT, token TEXT, expires_at TIMESTAMPTZ)
),

locked AS (
    SELECT id, claim_token
    FROM workflows
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE workflows
    SET claim_expires_at = units.expires_at
    FROM units
    INNER JOIN locked ON units.id = locked.id AND units.token = locked.claim_token
    WHERE workflows.id = units.id
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
INNER JOIN workflows AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: release_workflow_claim_group(units)
-- Ends claims; changes no row if the token does not hold the workflow.
-- used by: release_claim, claim_runnable_instances
-- index: workflows_pkey
-- keep: the column unit, and a row only for a unit that found its row; a failed write would count as done
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
WITH units AS (
    SELECT unit.*
    FROM jsonb_to_recordset(:units) AS unit (unit INT, id TEXT, token TEXT)
),

locked AS (
    SELECT id, claim_token
    FROM workflows
    WHERE id = any(array(SELECT units.id FROM units))
    FOR UPDATE SKIP LOCKED
),

changed AS (
    UPDATE workflows
    SET claim_token = NULL, claim_worker_id = NULL, claim_expires_at = NULL
    FROM units
    INNER JOIN locked ON units.id = locked.id AND units.token = locked.claim_token
    WHERE workflows.id = units.id
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
INNER JOIN workflows AS stored ON units.id = stored.id
WHERE units.id NOT IN (SELECT locked.id FROM locked);

-- name: check_workflow_claim(id, token)$
-- Returns 1 if the token holds the workflow; to keep it so until the transaction ends, lock the row first
-- (lock_workflows).
-- used by: unit
-- index: workflows_pkey
-- keep: the condition on the token; a host that lost its claim would overwrite the work of another
SELECT 1 AS is_held
FROM workflows
WHERE id = :id AND claim_token = :token;

-- name: get_workflow_instance_alone(id)^
-- One workflow by id, with its pointers in list order.
-- used by: get_workflow_instance
-- index: workflows_pkey, idx_execution_pointers_workflow_id
-- keep: ORDER BY pointer.position; pointers come back in list order
SELECT
    workflow.document,
    workflow.revision,
    to_json(workflow.create_time) #>> '{}' AS create_time,
    array(
        SELECT pointer.document
        FROM execution_pointer_documents AS pointer
        WHERE pointer.workflow_id = workflow.id
        ORDER BY pointer.position
    ) AS pointers
FROM workflow_documents AS workflow
WHERE workflow.id = :id;

-- name: get_workflow_instance_group(units)
-- Workflows by id, each with its pointers in list order.
-- used by: get_workflow_instance
-- index: workflows_pkey, idx_execution_pointers_workflow_id
-- keep: the column unit; it tells which unit a row is for
-- keep: ORDER BY pointer.position; pointers come back in list order
SELECT
    units.unit,
    workflow.document,
    workflow.revision,
    to_json(workflow.create_time) #>> '{}' AS create_time,
    array(
        SELECT pointer.document
        FROM execution_pointer_documents AS pointer
        WHERE pointer.workflow_id = workflow.id
        ORDER BY pointer.position
    ) AS pointers
FROM jsonb_to_recordset(:units) AS units (unit INT, id TEXT)
INNER JOIN workflow_documents AS workflow ON units.id = workflow.id;

-- name: get_workflow_instance_by_name_group(units)
-- Workflows by their unique names, each with its pointers in list order.
-- used by: get_workflow_instance_by_name
-- index: workflows_name_key, idx_execution_pointers_workflow_id
-- keep: the column unit; it tells which unit a row is for
-- keep: ORDER BY pointer.position; pointers come back in list order
SELECT
    units.unit,
    workflow.document,
    workflow.revision,
    to_json(workflow.create_time) #>> '{}' AS create_time,
    array(
        SELECT pointer.document
        FROM execution_pointer_documents AS pointer
        WHERE pointer.workflow_id = workflow.id
        ORDER BY pointer.position
    ) AS pointers
FROM jsonb_to_recordset(:units) AS units (unit INT, name TEXT)
INNER JOIN workflow_documents AS workflow ON units.name = workflow.name;

-- name: get_workflow_instances(ids)
-- The workflows whose ids are in :ids, a JSON array; unordered, as the caller sorts them.
-- used by: get_workflow_instances
-- index: workflows_pkey
SELECT
    id,
    document,
    revision,
    to_json(create_time) #>> '{}' AS create_time
FROM workflow_documents
WHERE id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)));
