-- One row for each step of a workflow. The order of a workflow's pointers is the order of their rowids, here as in the
-- reference: rows are inserted in list order, and idx_execution_pointers_workflow_id returns equal keys by rowid.

-- name: create_execution_pointers_table()#
-- The table and index of the reference (wfe-sqlite 1.11.4).
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS execution_pointers (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INTEGER NOT NULL,
    active INTEGER NOT NULL DEFAULT 1,
    status TEXT NOT NULL,
    sleep_until TEXT,
    persistence_data TEXT,
    start_time TEXT,
    end_time TEXT,
    event_name TEXT,
    event_key TEXT,
    event_published INTEGER NOT NULL DEFAULT 0,
    event_data TEXT,
    step_name TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    children TEXT NOT NULL DEFAULT '[]',
    context_item TEXT,
    predecessor_id TEXT,
    outcome TEXT,
    scope TEXT NOT NULL DEFAULT '[]',
    extension_attributes TEXT NOT NULL DEFAULT '{}',
    FOREIGN KEY (workflow_id) REFERENCES workflows (id) ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS idx_execution_pointers_workflow_id ON execution_pointers (workflow_id);

-- name: create_execution_pointer_documents_view()#
-- Pointers as JSON documents, as in workflow_documents; place is their order.
-- used by: ensure_store_exists
-- index: none
-- keep: that times are truncated to microseconds; the decoder would round them
DROP VIEW IF EXISTS execution_pointer_documents;
CREATE VIEW execution_pointer_documents AS
SELECT
    workflow_id,
    rowid AS place,
    json_object(
        'id', id,
        'step_id', step_id,
        'active', CASE active WHEN 0 THEN json('false') WHEN 1 THEN json('true') ELSE active END,
        'status', status,
        'sleep_until',
        iif(length(sleep_until) = 35, substr(sleep_until, 1, 26) || substr(sleep_until, 30), sleep_until),
        'persistence_data', json(persistence_data),
        'start_time', iif(length(start_time) = 35, substr(start_time, 1, 26) || substr(start_time, 30), start_time),
        'end_time', iif(length(end_time) = 35, substr(end_time, 1, 26) || substr(end_time, 30), end_time),
        'event_name', event_name,
        'event_key', event_key,
        'event_published',
        CASE event_published WHEN 0 THEN json('false') WHEN 1 THEN json('true') ELSE event_published END,
        'event_data', json(event_data),
        'step_name', step_name,
        'retry_count', retry_count,
        'children', json(children),
        'context_item', json(context_item),
        'predecessor_id', predecessor_id,
        'outcome', json(outcome),
        'scope', json(scope),
        'extension_attributes', json(extension_attributes)
    ) AS document
FROM execution_pointers;

-- name: insert_execution_pointers*!
-- Inserts pointers in list order.
-- used by: create_new_workflow, persist_workflow, persist_workflow_with_subscriptions
-- index: none
-- keep: a plain INSERT; a pointer of another workflow must be an error, and rowids must count up
INSERT INTO execution_pointers (
    id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes
)
VALUES (
    :id, :workflow_id, :step_id, :active, :status, :sleep_until, :persistence_data, :start_time, :end_time,
    :event_name, :event_key, :event_published, :event_data, :step_name, :retry_count, :children, :context_item,
    :predecessor_id, :outcome, :scope, :extension_attributes
);

-- name: upsert_execution_pointers*!
-- Overwrites pointers of the same workflow that changed; one that somebody removed meanwhile is inserted again.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: none
-- keep: the condition on workflow_id; a pointer of another workflow would be overwritten
-- keep: DO UPDATE; OR REPLACE would give the pointer a new rowid, and so another place in the list
INSERT INTO execution_pointers (
    id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes
)
VALUES (
    :id, :workflow_id, :step_id, :active, :status, :sleep_until, :persistence_data, :start_time, :end_time,
    :event_name, :event_key, :event_published, :event_data, :step_name, :retry_count, :children, :context_item,
    :predecessor_id, :outcome, :scope, :extension_attributes
)
ON CONFLICT (id) DO UPDATE SET
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
WHERE workflow_id = excluded.workflow_id;

-- name: delete_execution_pointers(workflow_id)!
-- Removes all pointers of a workflow, before its current ones are inserted.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: idx_execution_pointers_workflow_id
DELETE FROM execution_pointers
WHERE workflow_id = :workflow_id;

-- name: delete_gone_execution_pointers(ids, workflow_id)!
-- Removes those pointers of a workflow whose ids are in :ids, a JSON array.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: idx_execution_pointers_workflow_id
-- keep: the condition on workflow_id; a pointer of another workflow would be deleted
DELETE FROM execution_pointers
WHERE workflow_id = :workflow_id AND id IN (SELECT value FROM json_each(:ids));

-- name: get_execution_pointers(workflow_id)
-- The pointers of one workflow in list order.
-- used by: get_workflow_instance
-- index: idx_execution_pointers_workflow_id
-- keep: ORDER BY place; pointers come back in list order
SELECT document
FROM execution_pointer_documents
WHERE workflow_id = :workflow_id
ORDER BY place;

-- name: get_execution_pointers_by_name(name)
-- The pointers of the workflow with this name in list order.
-- used by: get_workflow_instance_by_name
-- index: sqlite_autoindex_workflows_2, idx_execution_pointers_workflow_id
-- keep: ORDER BY place; pointers come back in list order
SELECT document
FROM execution_pointer_documents
WHERE
    workflow_id = (
        SELECT workflows.id
        FROM workflows
        WHERE workflows.name = :name
    )
ORDER BY place;

-- name: get_execution_pointers_of_instances(ids)
-- The pointers of the workflows whose ids are in :ids, a JSON array; those of one workflow come in list order.
-- used by: get_workflow_instances
-- index: idx_execution_pointers_workflow_id
-- keep: ORDER BY place; pointers come back in list order
SELECT workflow_id, document
FROM execution_pointer_documents
WHERE workflow_id IN (SELECT value FROM json_each(:ids))
ORDER BY workflow_id, place;

-- name: get_claimed_execution_pointers(as_at, token, row_limit)
-- The pointers of the workflows that claim_and_load_instances has just taken with :token; those of one workflow come in list
-- order.
-- used by: claim_and_load_instances
-- index: idx_workflows_runnable, idx_execution_pointers_workflow_id
-- keep: the condition on claim_token; a host would get the pointers of workflows that another host took
-- keep: ORDER BY place; pointers come back in list order
SELECT workflow_id, document
FROM execution_pointer_documents
WHERE
    workflow_id IN (
        SELECT id
        FROM workflows
        WHERE status = 'Runnable' AND next_execution <= :as_at AND claim_token = :token
        ORDER BY next_execution, id
        LIMIT :row_limit
    )
ORDER BY workflow_id, place;

-- name: find_execution_pointer_of_another_workflow(ids, workflow_id)^
-- One of the pointers in :ids, a JSON array, that belongs to a workflow other than :workflow_id: tells why an insert failed.
-- used by: create_new_workflow, persist_workflow, persist_workflow_with_subscriptions
-- index: sqlite_autoindex_execution_pointers_1
SELECT id, workflow_id
FROM execution_pointers
WHERE id IN (SELECT value FROM json_each(:ids)) AND workflow_id <> :workflow_id
ORDER BY id
LIMIT 1;
