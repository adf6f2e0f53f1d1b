-- Pages for people. The next page begins after the last row of the one before (keyset), so that no page costs more than
-- the first. https://use-the-index-luke.com/no-offset
-- A null :after_... is the first page; '~' comes after every time, as all begin with a digit.

-- name: list_workflows(status, definition_id, since, after_time, after_id, row_limit)
-- Workflows without their data, the newest first: of one status or definition if these are given, and created at or
-- after :since. Rows that do not pass the filters are read and skipped, so a selective filter may read them all.
-- used by: list_workflows
-- index: idx_workflows_create_time
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, name, definition_id, version, status, next_execution, create_time, complete_time, claim_worker_id,
    claim_expires_at
FROM workflows
WHERE
    create_time >= coalesce(:since, '')
    AND (create_time, id) < (coalesce(:after_time, '~'), coalesce(:after_id, ''))
    AND (:status IS NULL OR status = :status)
    AND (:definition_id IS NULL OR definition_id = :definition_id)
ORDER BY create_time DESC, id DESC
LIMIT :row_limit;

-- name: list_workflows_of_root(root_workflow_id, status, definition_id, since, after_time, after_id, row_limit)
-- The workflows that have one workflow as their root, otherwise as list_workflows.
-- used by: list_workflows
-- index: idx_workflows_root
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, name, definition_id, version, status, next_execution, create_time, complete_time, claim_worker_id,
    claim_expires_at
FROM workflows
WHERE
    root_workflow_id = :root_workflow_id
    AND create_time >= coalesce(:since, '')
    AND (create_time, id) < (coalesce(:after_time, '~'), coalesce(:after_id, ''))
    AND (:status IS NULL OR status = :status)
    AND (:definition_id IS NULL OR definition_id = :definition_id)
ORDER BY create_time DESC, id DESC
LIMIT :row_limit;

-- name: list_events(is_processed, after_time, after_id, row_limit)
-- Events, the newest first: only processed (1) or unprocessed (0) ones if :is_processed is given.
-- used by: list_events
-- scan: the reference's idx_events_event_time has no id, so events of one time are sorted
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT id, event_name, event_key, event_data, event_time, is_processed
FROM events
WHERE
    event_time <= coalesce(:after_time, '~')
    AND (event_time, id) < (coalesce(:after_time, '~'), coalesce(:after_id, ''))
    AND (:is_processed IS NULL OR is_processed = :is_processed)
ORDER BY event_time DESC, id DESC
LIMIT :row_limit;

-- name: list_scheduled_commands(after_time, after_id, row_limit)
-- Commands in the order they are due.
-- used by: list_scheduled_commands
-- index: idx_scheduled_commands_execute_time
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT id, command_name, data, execute_time, claim_worker_id, claim_expires_at, rescheduled_time
FROM scheduled_commands
WHERE (execute_time, id) > (coalesce(:after_time, -9223372036854775808), coalesce(:after_id, 0))
ORDER BY execute_time, id
LIMIT :row_limit;

-- name: list_execution_errors(workflow_id, after_id, row_limit)
-- Errors, of one workflow if it is given, the last stored first, with the names of the workflow and the step while these
-- exist. Skips the errors of other workflows one by one.
-- used by: list_execution_errors, list_error_summaries
-- index: INTEGER PRIMARY KEY, sqlite_autoindex_workflows_1, sqlite_autoindex_execution_pointers_1
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    execution_errors.id,
    execution_errors.error_time,
    execution_errors.workflow_id,
    execution_errors.execution_pointer_id,
    execution_errors.message,
    workflows.name AS workflow_name,
    execution_pointers.step_id,
    execution_pointers.step_name
FROM execution_errors
LEFT JOIN workflows ON execution_errors.workflow_id = workflows.id
LEFT JOIN execution_pointers ON execution_errors.execution_pointer_id = execution_pointers.id
WHERE
    execution_errors.id < coalesce(:after_id, 9223372036854775807)
    AND (:workflow_id IS NULL OR execution_errors.workflow_id = :workflow_id)
ORDER BY execution_errors.id DESC
LIMIT :row_limit;

-- name: list_event_subscriptions(workflow_id, row_limit)
-- The subscriptions of one workflow, terminated or not, the oldest first.
-- used by: list_event_subscriptions
-- scan: those of the workflow come from the reference's idx_event_subscriptions_workflow_id, and are sorted
SELECT
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry, terminated
FROM event_subscriptions
WHERE workflow_id = :workflow_id
ORDER BY subscribe_as_of, id
LIMIT :row_limit;
