-- One row for each workflow instance. Times are RFC 3339 text in UTC, JSON is text, next_execution is epoch milliseconds.

-- name: create_workflows_table()#
-- The table and indexes of the reference (wfe-sqlite 1.11.4), and one partial index for the poll: it holds only what
-- can be polled, so a million finished workflows cost it nothing. Its first column is always 'Runnable'; it is there
-- because SQLite, without statistics, would rather use an index with an equality and sort.
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS workflows (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    root_workflow_id TEXT,
    definition_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    description TEXT,
    reference TEXT,
    status TEXT NOT NULL,
    data TEXT NOT NULL,
    next_execution INTEGER,
    create_time TEXT NOT NULL,
    complete_time TEXT
);
CREATE INDEX IF NOT EXISTS idx_workflows_next_execution ON workflows (next_execution);
CREATE INDEX IF NOT EXISTS idx_workflows_status ON workflows (status);
CREATE INDEX IF NOT EXISTS idx_workflows_runnable ON workflows (status, next_execution, id)
WHERE status = 'Runnable';

-- name: set_aside_workflows_without_name()#
-- Takes the workflows out of a table of the reference's first release (1.0.0), which had neither name nor
-- root_workflow_id, so that create_workflows_table can make it as it is now. The pointers' foreign key goes by the
-- table's name, and stays.
-- used by: ensure_store_exists
-- scan: every row is copied
CREATE TEMP TABLE workflows_without_name AS
SELECT
    id, definition_id, version, description, reference, status, data, next_execution, create_time, complete_time
FROM main.workflows
ORDER BY rowid;
DROP TABLE main.workflows;

-- name: restore_workflows_without_name()#
-- Puts the workflows back; each is named by its id.
-- used by: ensure_store_exists
-- scan: every row is copied
INSERT INTO main.workflows (
    id, name, definition_id, version, description, reference, status, data, next_execution, create_time, complete_time
)
SELECT
    id, id AS name, definition_id, version, description, reference, status, data, next_execution, create_time,
    complete_time
FROM workflows_without_name
ORDER BY rowid;
DROP TABLE workflows_without_name;

-- name: create_new_workflow(id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, create_time, complete_time)!
-- Inserts a workflow; an empty name becomes the id.
-- used by: create_new_workflow
-- index: none
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
)
VALUES (
    :id, CASE :name WHEN '' THEN :id ELSE :name END, :root_workflow_id, :definition_id, :version, :description,
    :reference, :status, :data, :next_execution, :create_time, :complete_time
);

-- name: persist_workflow(id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, complete_time)!
-- Overwrites a workflow, all but its create_time; an empty name leaves the stored one.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: sqlite_autoindex_workflows_1
UPDATE workflows
SET
    name = CASE :name WHEN '' THEN name ELSE :name END,
    root_workflow_id = :root_workflow_id,
    definition_id = :definition_id,
    version = :version,
    description = :description,
    reference = :reference,
    status = :status,
    data = :data,
    next_execution = :next_execution,
    complete_time = :complete_time
WHERE id = :id;

-- name: get_runnable_instances(as_at, row_limit)
-- Ids of workflows that are due at :as_at (epoch ms), the longest due first; a null :row_limit is no limit.
-- used by: get_runnable_instances
-- index: idx_workflows_runnable
SELECT id
FROM workflows
WHERE status = 'Runnable' AND next_execution <= :as_at
ORDER BY next_execution, id
LIMIT coalesce(:row_limit, -1);

-- name: get_workflow_instance(id)^
-- One workflow by id.
-- used by: get_workflow_instance
-- index: sqlite_autoindex_workflows_1
SELECT
    id, name, root_workflow_id, definition_id, version, description, reference, next_execution, status, data,
    create_time, complete_time
FROM workflows
WHERE id = :id;

-- name: get_workflow_instance_by_name(name)^
-- One workflow by its unique name.
-- used by: get_workflow_instance_by_name
-- index: sqlite_autoindex_workflows_2
SELECT
    id, name, root_workflow_id, definition_id, version, description, reference, next_execution, status, data,
    create_time, complete_time
FROM workflows
WHERE name = :name;

-- name: get_workflow_instances(ids)
-- The workflows whose ids are in :ids, a JSON array; in no order, the caller has the order. CROSS JOIN keeps SQLite from
-- scanning the table, which it may prefer with statistics from when the store was small.
-- used by: get_workflow_instances
-- index: sqlite_autoindex_workflows_1
SELECT
    workflows.id, workflows.name, workflows.root_workflow_id, workflows.definition_id, workflows.version,
    workflows.description, workflows.reference, workflows.next_execution, workflows.status, workflows.data,
    workflows.create_time, workflows.complete_time
FROM json_each(:ids) AS wanted
CROSS JOIN workflows
WHERE workflows.id = wanted.value;
