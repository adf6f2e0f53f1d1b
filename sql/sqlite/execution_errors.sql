-- One row for each error of a step, in the order in which they were stored.

-- name: create_execution_errors_table()#
-- The table of the reference (wfe-sqlite 1.11.4), and an index for the errors of one workflow.
-- used by: ensure_store_exists
-- index: none
-- keep: each index; a missing one shows only in plans and in `wfe-sql check`
CREATE TABLE IF NOT EXISTS execution_errors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    error_time TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_execution_errors_workflow_id ON execution_errors (workflow_id);

-- name: create_execution_error_documents_view()#
-- Errors as JSON documents, as in workflow_documents.
-- used by: ensure_store_exists
-- index: none
-- keep: that times are truncated to microseconds; the decoder would round them
DROP VIEW IF EXISTS execution_error_documents;
CREATE VIEW execution_error_documents AS
SELECT
    id,
    workflow_id,
    json_object(
        'error_time', iif(length(error_time) = 35, substr(error_time, 1, 26) || substr(error_time, 30), error_time),
        'workflow_id', workflow_id,
        'execution_pointer_id', execution_pointer_id,
        'message', message
    ) AS document
FROM execution_errors;

-- name: persist_errors(error_time, workflow_id, execution_pointer_id, message)*!
-- Inserts errors.
-- used by: persist_errors
-- index: none
INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)
VALUES (:error_time, :workflow_id, :execution_pointer_id, :message);

-- name: get_execution_errors(row_limit)
-- Errors of all workflows, the first stored first; no limit if :row_limit is null.
-- used by: get_execution_errors
-- scan: all rows are asked for, in the order of the table
-- keep: ORDER BY id; errors are in the order in which they were stored
SELECT document, id
FROM execution_error_documents
ORDER BY id
LIMIT coalesce(:row_limit, -1);

-- name: get_execution_errors_of_workflow(workflow_id, row_limit)
-- Errors of one workflow, the first stored first; no limit if :row_limit is null.
-- used by: get_execution_errors
-- index: idx_execution_errors_workflow_id
-- keep: ORDER BY id; errors are in the order in which they were stored
SELECT document, id
FROM execution_error_documents
WHERE workflow_id = :workflow_id
ORDER BY id
LIMIT coalesce(:row_limit, -1);
