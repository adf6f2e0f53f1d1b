-- One row for each workflow instance. Times are RFC 3339 text in UTC, JSON is text, next_execution is epoch milliseconds.
-- A claim is a fresh token, the worker that took it, and when it expires; a workflow is free when claim_token is null or
-- claim_expires_at is not after :now. The revision is raised by every change. These columns are additions to the
-- reference's table.

-- name: create_workflows_table()#
-- The table of the reference (wfe-sqlite 1.11.4).
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

-- name: name_workflows_without_name()#
-- Upgrades a table of the reference's first release (1.0.0), which has neither name nor root_workflow_id: the id becomes
-- the name. The rows are moved aside and the table is rebuilt, because SQLite cannot add a unique column; rows keep their
-- order. The pointers' foreign key refers to the table by name, so it still holds.
-- https://sqlite.org/lang_altertable.html#making_other_kinds_of_table_schema_changes
-- used by: ensure_store_exists
-- scan: every row is copied
-- keep: ORDER BY rowid; rows would change their order
ALTER TABLE workflows ADD COLUMN name TEXT;
ALTER TABLE workflows ADD COLUMN root_workflow_id TEXT;
CREATE TEMP TABLE workflows_without_name AS
SELECT
    id, id AS name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
FROM main.workflows
ORDER BY rowid;
DROP TABLE main.workflows;
CREATE TABLE main.workflows (
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
INSERT INTO main.workflows
SELECT
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
FROM workflows_without_name
ORDER BY rowid;
DROP TABLE workflows_without_name;

-- name: add_workflows_claim_and_revision()#
-- Adds columns that the reference's table lacks.
-- used by: ensure_store_exists
-- index: none
ALTER TABLE workflows ADD COLUMN claim_token TEXT;
ALTER TABLE workflows ADD COLUMN claim_worker_id TEXT;
ALTER TABLE workflows ADD COLUMN claim_expires_at TEXT;
ALTER TABLE workflows ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

-- name: create_workflows_indexes()#
-- The indexes of the reference, and three more. The index for polls is partial: it holds only Runnable workflows, so a
-- million finished ones cost nothing. Its first column is always 'Runnable'; it is there because SQLite, without
-- statistics, prefers an index with an equality, and sorts. The index for purges holds only finished workflows, so that
-- running ones never write to it. The third is for listing; create_time never changes, so only creation writes to it.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE INDEX IF NOT EXISTS idx_workflows_next_execution ON workflows (next_execution);
CREATE INDEX IF NOT EXISTS idx_workflows_status ON workflows (status);
CREATE INDEX IF NOT EXISTS idx_workflows_runnable ON workflows (status, next_execution, id)
WHERE status = 'Runnable';
CREATE INDEX IF NOT EXISTS idx_workflows_finished ON workflows (status, coalesce(complete_time, create_time), id)
WHERE status IN ('Complete', 'Terminated');
CREATE INDEX IF NOT EXISTS idx_workflows_create_time ON workflows (create_time, id);

-- name: create_workflows_root_index()#
-- Finds the workflows that one workflow started. Workflows without a root are not in it, so they cost nothing.
-- used by: ensure_store_exists
-- index: none
-- keep: the index; a missing one shows only in plans and in `wfe-sql check`
CREATE INDEX IF NOT EXISTS idx_workflows_root ON workflows (root_workflow_id, create_time, id)
WHERE root_workflow_id IS NOT NULL;

-- name: create_workflows_revision_trigger()#
-- Raises the revision for programs that do not know it: the reference, or a person at the sqlite3 prompt. Claiming is
-- not a change. https://sqlite.org/lang_createtrigger.html
-- used by: ensure_store_exists
-- index: none
-- keep: that each change raises the revision; a host would overwrite what another program changed
DROP TRIGGER IF EXISTS raise_workflows_revision;
CREATE TRIGGER raise_workflows_revision
AFTER UPDATE OF
name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, create_time,
complete_time
ON workflows
WHEN new.revision = old.revision
BEGIN
    UPDATE workflows SET revision = old.revision + 1
    WHERE id = new.id;
END;

-- name: create_workflow_documents_view()#
-- Workflows as JSON documents with the names of the model's fields. Nanoseconds of the reference are cut to
-- microseconds.
-- used by: ensure_store_exists
-- index: none
-- keep: that times are truncated to microseconds; the decoder would round them
DROP VIEW IF EXISTS workflow_documents;
CREATE VIEW workflow_documents AS
SELECT
    id,
    name,
    revision,
    json_object(
        'id', id,
        'name', name,
        'root_workflow_id', root_workflow_id,
        'workflow_definition_id', definition_id,
        'version', version,
        'description', description,
        'reference', reference,
        'next_execution', next_execution,
        'status', status,
        'data', json(data),
        'create_time',
        iif(length(create_time) = 35, substr(create_time, 1, 26) || substr(create_time, 30), create_time),
        'complete_time',
        iif(length(complete_time) = 35, substr(complete_time, 1, 26) || substr(complete_time, 30), complete_time)
    ) AS document,
    create_time
FROM workflows;

-- name: create_new_workflow!
-- Inserts a workflow; an empty name becomes the id.
-- used by: create_new_workflow
-- index: none
-- keep: a plain INSERT; an id or a name in use must be an error
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
)
VALUES (
    :id, CASE :name WHEN '' THEN :id ELSE :name END, :root_workflow_id, :definition_id, :version, :description,
    :reference, :status, :data, :next_execution, :create_time, :complete_time
);

-- name: create_numbered_workflow$
-- Inserts a workflow whose name is its definition and the number after the last one that was given out, and returns the
-- name. next_definition_sequence follows in the same transaction and gives the number out.
-- used by: create_numbered_workflow
-- index: sqlite_autoindex_definition_sequences_1, idx_execution_pointers_workflow_id
-- keep: a plain INSERT; an id or a name in use must be an error
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
)
VALUES (
    :id,
    :definition_id || '-' || (
        1 + coalesce((
            SELECT next_num
            FROM definition_sequences
            WHERE definition_id = :definition_id
        ), 0)
    ),
    :root_workflow_id, :definition_id, :version, :description, :reference, :status, :data, :next_execution,
    :create_time, :complete_time
)
RETURNING name;

-- name: persist_workflow^
-- Overwrites a workflow except its create_time, and returns its new revision and create_time; an empty name keeps the
-- stored one.
-- Changes no row if :claim_token is given and does not hold it, or :expected_revision is given and differs, as does
-- :expected_create_time if the workflow was deleted and created again.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: sqlite_autoindex_workflows_1
-- keep: the conditions on claim_token, revision and create_time; a late host would overwrite the work of another
-- keep: that the revision is raised, and returned; the next write of this host is compared with it
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
    complete_time = :complete_time,
    revision = revision + 1
WHERE
    id = :id
    AND (:claim_token IS NULL OR claim_token = :claim_token)
    AND (:expected_revision IS NULL OR (revision = :expected_revision AND create_time = :expected_create_time))
RETURNING revision, create_time;

-- name: get_workflow_guards(id, expected_create_time)^
-- The values that guard a write, to explain why one changed no row. A workflow whose create_time is not
-- :expected_create_time was deleted and created again.
-- used by: persist_workflow, persist_workflow_with_subscriptions
-- index: sqlite_autoindex_workflows_1
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
LIMIT coalesce(:row_limit, -1);

-- name: find_free_runnable_instance(as_at, now)$
-- One of the workflows that claim_runnable_instances would take, if any: claiming takes the write lock even if it finds
-- nothing.
-- used by: claim_runnable_instances
-- index: idx_workflows_runnable
-- keep: the conditions for due and free; a host would miss work, or take the lock for nothing
SELECT id
FROM workflows
WHERE
    status = 'Runnable' AND next_execution <= :as_at
    AND (claim_token IS NULL OR claim_expires_at <= :now)
ORDER BY next_execution, id
LIMIT 1;

-- name: claim_runnable_instances(as_at, now, token, worker_id, expires_at, row_limit)
-- Claims free workflows that are due at :as_at (epoch ms), the longest due first; returns them unordered.
-- used by: claim_runnable_instances
-- index: idx_workflows_runnable, sqlite_autoindex_workflows_1
-- keep: the conditions for due and free; two hosts would work on the same row
-- keep: ORDER BY; with a limit, the oldest must come first, or they starve
UPDATE workflows
SET claim_token = :token, claim_worker_id = :worker_id, claim_expires_at = :expires_at
WHERE
    id IN (
        SELECT id
        FROM workflows
        WHERE
            status = 'Runnable' AND next_execution <= :as_at
            AND (claim_token IS NULL OR claim_expires_at <= :now)
        ORDER BY next_execution, id
        LIMIT :row_limit
    )
RETURNING id, next_execution;

-- name: claim_and_load_instances(as_at, now, token, worker_id, expires_at, row_limit)
-- Claims what claim_runnable_instances does, and returns the workflows themselves, unordered.
-- used by: claim_and_load_instances
-- index: idx_workflows_runnable, sqlite_autoindex_workflows_1
-- keep: the conditions that say what is due and free; two hosts would work on one row
-- keep: ORDER BY; with a limit, what is oldest must come first, or it never comes
UPDATE workflows
SET claim_token = :token, claim_worker_id = :worker_id, claim_expires_at = :expires_at
WHERE
    id IN (
        SELECT id
        FROM workflows
        WHERE
            status = 'Runnable' AND next_execution <= :as_at
            AND (claim_token IS NULL OR claim_expires_at <= :now)
        ORDER BY next_execution, id
        LIMIT :row_limit
    )
RETURNING
    id,
    next_execution,
    (
        SELECT stored.document
        FROM workflow_documents AS stored
        WHERE stored.id = workflows.id
    ) AS document,
    revision,
    create_time;

-- name: renew_workflow_claim(id, token, expires_at)!
-- Extends a claim; changes no row if the token does not hold the workflow.
-- used by: renew_claim
-- index: sqlite_autoindex_workflows_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE workflows
SET claim_expires_at = :expires_at
WHERE id = :id AND claim_token = :token;

-- name: release_workflow_claim(id, token)!
-- Ends a claim; changes no row if the token does not hold the workflow.
-- used by: release_claim, claim_runnable_instances
-- index: sqlite_autoindex_workflows_1
-- keep: the condition on the token; a host that lost its claim would undo the work of the next one
UPDATE workflows
SET claim_token = NULL, claim_worker_id = NULL, claim_expires_at = NULL
WHERE id = :id AND claim_token = :token;

-- name: check_workflow_claim(id, token)$
-- Returns 1 where the token holds the workflow, which stays so until the transaction ends: no other connection writes.
-- used by: unit
-- index: sqlite_autoindex_workflows_1
-- keep: the condition on the token; a host that lost its claim would overwrite the work of another
SELECT 1 AS is_held
FROM workflows
WHERE id = :id AND claim_token = :token;

-- name: get_workflow_instance(id)^
-- One workflow by id.
-- used by: get_workflow_instance
-- index: sqlite_autoindex_workflows_1
SELECT document, revision, create_time
FROM workflow_documents
WHERE id = :id;

-- name: get_workflow_instance_by_name(name)^
-- One workflow by its unique name.
-- used by: get_workflow_instance_by_name
-- index: sqlite_autoindex_workflows_2
SELECT document, revision, create_time
FROM workflow_documents
WHERE name = :name;

-- name: get_workflow_instances(ids)
-- The workflows whose ids are in :ids, a JSON array; unordered, as the caller sorts them. CROSS JOIN keeps
-- SQLite from scanning the table, which it may prefer with statistics from when the store was small.
-- used by: get_workflow_instances
-- index: sqlite_autoindex_workflows_1
SELECT stored.id, stored.document, stored.revision, stored.create_time
FROM json_each(:ids) AS wanted
CROSS JOIN workflow_documents AS stored
WHERE stored.id = wanted.value;
