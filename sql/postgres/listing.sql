-- Pages for people. The next page begins after the last row of the one before (keyset), so that no page costs more than
-- the first. https://use-the-index-luke.com/no-offset
-- A null :after_... is the first page. Times come as text, in the form of JSON, and JSON as text.

-- name: list_workflows(status, definition_id, since, after_time, after_id, row_limit)
-- Workflows without their data, the newest first: of one status or definition if these are given, and created at or
-- after :since. Rows that do not pass the filters are read and skipped, so a selective filter may read them all.
-- used by: list_workflows
-- index: idx_workflows_create_time
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, name, definition_id, version, status, next_execution,
    to_json(create_time) #>> '{}' AS create_time,
    to_json(complete_time) #>> '{}' AS complete_time,
    claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at
FROM workflows
WHERE
    workflows.create_time >= coalesce(cast(:since AS TIMESTAMPTZ), '-infinity')
    AND (workflows.create_time, id) < (coalesce(cast(:after_time AS TIMESTAMPTZ), 'infinity'), coalesce(:after_id, ''))
    AND (cast(:status AS TEXT) IS NULL OR status = :status)
    AND (cast(:definition_id AS TEXT) IS NULL OR definition_id = :definition_id)
ORDER BY workflows.create_time DESC, id DESC
LIMIT :row_limit;

-- name: list_workflows_of_root(root_workflow_id, status, definition_id, since, after_time, after_id, row_limit)
-- The workflows that have one workflow as their root, otherwise as list_workflows.
-- used by: list_workflows
-- index: idx_workflows_root
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, name, definition_id, version, status, next_execution,
    to_json(create_time) #>> '{}' AS create_time,
    to_json(complete_time) #>> '{}' AS complete_time,
    claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at
FROM workflows
WHERE
    root_workflow_id = :root_workflow_id
    AND workflows.create_time >= coalesce(cast(:since AS TIMESTAMPTZ), '-infinity')
    AND (workflows.create_time, id) < (coalesce(cast(:after_time AS TIMESTAMPTZ), 'infinity'), coalesce(:after_id, ''))
    AND (cast(:status AS TEXT) IS NULL OR status = :status)
    AND (cast(:definition_id AS TEXT) IS NULL OR definition_id = :definition_id)
ORDER BY workflows.create_time DESC, id DESC
LIMIT :row_limit;

-- name: list_events(is_processed, after_time, after_id, row_limit)
-- Events, the newest first: only processed (1) or unprocessed (0) ones if :is_processed is given. The index is the
-- reference's and has no id, so a page is taken with all events of its last time, and then sorted.
-- used by: list_events
-- index: idx_events_event_time
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, event_name, event_key,
    cast(event_data AS TEXT) AS event_data,
    to_json(event_time) #>> '{}' AS event_time,
    cast(is_processed AS INT) AS is_processed
FROM (
    SELECT *
    FROM events
    WHERE
        event_time <= coalesce(cast(:after_time AS TIMESTAMPTZ), 'infinity')
        AND (event_time, id) < (coalesce(:after_time, 'infinity'), coalesce(:after_id, ''))
        AND (cast(:is_processed AS INT) IS NULL OR cast(is_processed AS INT) = :is_processed)
    ORDER BY event_time DESC
    FETCH FIRST (:row_limit) ROWS WITH TIES
) AS page
ORDER BY page.event_time DESC, id DESC
LIMIT :row_limit;

-- name: list_scheduled_commands(after_time, after_id, row_limit)
-- Commands in the order they are due.
-- used by: list_scheduled_commands
-- index: idx_scheduled_commands_due
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, command_name, data, execute_time, claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at,
    rescheduled_time
FROM scheduled_commands
WHERE
    (execute_time, id)
    > (coalesce(:after_time, cast('-9223372036854775808' AS BIGINT)), coalesce(cast(:after_id AS BIGINT), 0))
ORDER BY execute_time, id
LIMIT :row_limit;

-- name: list_execution_errors(workflow_id, after_id, row_limit)
-- Errors, of one workflow if it is given, the last stored first, with the names of the workflow and the step while these
-- exist. Skips the errors of other workflows one by one.
-- used by: list_execution_errors, list_error_summaries
-- index: execution_errors_pkey, workflows_pkey, execution_pointers_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    execution_errors.id,
    to_json(execution_errors.error_time) #>> '{}' AS error_time,
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
    AND (cast(:workflow_id AS TEXT) IS NULL OR execution_errors.workflow_id = :workflow_id)
ORDER BY execution_errors.id DESC
LIMIT :row_limit;

-- name: list_event_subscriptions(workflow_id, row_limit)
-- The subscriptions of one workflow, terminated or not, the oldest first.
-- used by: list_event_subscriptions
-- scan: those of the workflow come from the reference's idx_subscriptions_workflow, and are sorted
SELECT
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key,
    to_json(subscribe_as_of) #>> '{}' AS subscribe_as_of,
    cast(subscription_data AS TEXT) AS subscription_data,
    nullif(external_token, 'wfe-sql:terminated') AS external_token,
    external_worker_id,
    to_json(external_token_expiry) #>> '{}' AS external_token_expiry,
    cast(terminated AS INT) AS terminated
FROM event_subscriptions
WHERE workflow_id = :workflow_id
ORDER BY event_subscriptions.subscribe_as_of, id
LIMIT :row_limit;
