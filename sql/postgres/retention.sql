-- Deletes what is finished, in batches. The ids of a batch are looked up first; the deletion then checks again that
-- each is still finished, because a host may have changed it meanwhile.
-- A workflow's age counts from its complete_time, or from its create_time if it has none (terminated by a host of the
-- reference). The reference's foreign key does not delete pointers with their workflow, so the deletions do. The key is
-- checked at the end of the statement, and fails if a workflow got more pointers while the statement waited for it; the
-- engine then runs the unit again. A workflow is locked before its pointers, and rows of a table in the order of their
-- ids, as hosts do, so that nobody deadlocks: an index scan for an array of ids returns them in the index's order.
-- Rows are counted in the order of an index, with an effectively unlimited LIMIT that hides the row count from the
-- planner: otherwise it might use one of the reference's indexes, and read each row of a status.

-- name: find_finished_workflows(status, older_than, row_limit)
-- Ids of workflows of a status, Complete or Terminated, that ended before :older_than, the oldest first.
-- used by: purge_workflows
-- index: idx_workflows_finished
SELECT id
FROM workflows
WHERE
    status IN ('Complete', 'Terminated') AND status = :status
    AND coalesce(complete_time, create_time) < :older_than
ORDER BY coalesce(complete_time, create_time), id
LIMIT :row_limit;

-- name: count_finished_workflows(status, older_than)$
-- How many workflows find_finished_workflows would find without a limit.
-- used by: purge_workflows
-- index: idx_workflows_finished
SELECT count(*)
FROM (
    SELECT id
    FROM workflows
    WHERE
        status IN ('Complete', 'Terminated') AND status = :status
        AND coalesce(complete_time, create_time) < :older_than
    ORDER BY coalesce(complete_time, create_time), id
    LIMIT (SELECT 9223372036854775807)
) AS finished;

-- name: delete_finished_workflows(ids, status, older_than)!
-- Deletes those of :ids, a JSON array, that still have the status and ended before :older_than, with their pointers.
-- used by: purge_workflows
-- index: workflows_pkey, idx_execution_pointers_workflow_id
-- keep: ORDER BY id FOR UPDATE, and workflows before their pointers, as hosts lock them; they deadlock without it
-- keep: the conditions besides :ids; a host may have changed the row since it was found
WITH finished AS (
    SELECT id
    FROM workflows
    WHERE
        id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
        AND status = :status AND coalesce(complete_time, create_time) < :older_than
    ORDER BY id
    FOR UPDATE
),

deleted AS (
    DELETE FROM execution_pointers
    USING finished
    WHERE execution_pointers.workflow_id = finished.id
)

DELETE FROM workflows
USING finished
WHERE workflows.id = finished.id;

-- name: delete_workflow(id)!
-- Deletes a workflow with its pointers, whatever its status.
-- used by: delete_workflow
-- index: workflows_pkey, idx_execution_pointers_workflow_id
-- keep: FOR UPDATE, and the workflow before its pointers, as hosts lock them; they deadlock without it
WITH locked AS (
    SELECT id
    FROM workflows
    WHERE id = :id
    FOR UPDATE
),

deleted AS (
    DELETE FROM execution_pointers
    USING locked
    WHERE execution_pointers.workflow_id = locked.id
)

DELETE FROM workflows
USING locked
WHERE workflows.id = locked.id;

-- name: delete_event_subscriptions_of_deleted(workflow_ids)!
-- Deletes the subscriptions of those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: idx_subscriptions_workflow, workflows_pkey, event_subscriptions_pkey
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM event_subscriptions
WHERE
    id = any(array(
        SELECT found.id
        FROM event_subscriptions AS found
        WHERE
            found.workflow_id
            = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:workflow_ids) AS wanted (id)))
    ))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = event_subscriptions.workflow_id
    );

-- name: delete_execution_errors_of_deleted(workflow_ids)!
-- Deletes the errors of those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: idx_execution_errors_workflow_id, workflows_pkey, execution_errors_pkey
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM execution_errors
WHERE
    id = any(array(
        SELECT found.id
        FROM execution_errors AS found
        WHERE
            found.workflow_id
            = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:workflow_ids) AS wanted (id)))
    ))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    );

-- name: delete_scheduled_commands_of_deleted_workflows(workflow_ids)!
-- Deletes the commands for those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: scheduled_commands_command_name_data_key, workflows_pkey, scheduled_commands_pkey
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM scheduled_commands
WHERE
    id = any(array(
        SELECT found.id
        FROM scheduled_commands AS found
        WHERE
            found.command_name = 'ProcessWorkflow'
            AND found.data
            = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:workflow_ids) AS wanted (id)))
    ))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = scheduled_commands.data
    );

-- name: find_processed_events(older_than, after_time, row_limit)
-- Ids and times of processed events before :older_than, the oldest first, from :after_time on where it is given. The cast
-- keeps PostgreSQL from idx_events_is_processed, with which it would have to sort all of them.
-- used by: purge_events
-- index: idx_events_event_time
-- keep: ORDER BY event_time; the next batch begins at the last time, and would skip events
SELECT
    id,
    to_json(event_time) #>> '{}' AS event_time
FROM events
WHERE
    cast(is_processed AS INT) = 1
    AND events.event_time >= coalesce(cast(:after_time AS TIMESTAMPTZ), '-infinity')
    AND events.event_time < :older_than
ORDER BY events.event_time
LIMIT :row_limit;

-- name: count_processed_events(older_than)$
-- How many events find_processed_events would find without a limit.
-- used by: purge_events
-- index: idx_events_event_time
SELECT count(*)
FROM (
    SELECT id
    FROM events
    WHERE is_processed AND event_time < :older_than
    ORDER BY event_time
    LIMIT (SELECT 9223372036854775807)
) AS processed;

-- name: delete_processed_events(ids)!
-- Deletes those of :ids, a JSON array, that are still processed.
-- used by: purge_events
-- index: events_pkey
-- keep: the conditions besides :ids; a host may have changed the row since it was found
DELETE FROM events
WHERE
    id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
    AND is_processed;

-- name: delete_scheduled_commands_of_deleted_events(event_ids)!
-- Deletes the commands for those of :event_ids, a JSON array, that are gone.
-- used by: purge_events
-- index: scheduled_commands_command_name_data_key, events_pkey, scheduled_commands_pkey
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM scheduled_commands
WHERE
    id = any(array(
        SELECT found.id
        FROM scheduled_commands AS found
        WHERE
            found.command_name = 'ProcessEvent'
            AND found.data
            = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:event_ids) AS wanted (id)))
    ))
    AND NOT EXISTS (
        SELECT 1
        FROM events
        WHERE events.id = scheduled_commands.data
    );

-- name: find_orphaned_errors(older_than, from_id, row_limit)
-- Numbers of errors from before :older_than whose workflow is gone, the first stored first, from :from_id on. Skips
-- errors that belong to a workflow one by one.
-- used by: purge_orphaned_errors
-- index: execution_errors_pkey, workflows_pkey
-- keep: ORDER BY id; the next batch begins after the last one, and would skip errors
SELECT id
FROM execution_errors
WHERE
    id >= cast(:from_id AS BIGINT) AND error_time < :older_than
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    )
ORDER BY id
LIMIT :row_limit;

-- name: count_orphaned_errors(older_than)$
-- How many errors find_orphaned_errors would find without a limit.
-- used by: purge_orphaned_errors
-- scan: every error is read
SELECT count(*)
FROM execution_errors
WHERE
    error_time < :older_than
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    );

-- name: delete_orphaned_errors(ids)!
-- Deletes those of :ids, a JSON array, whose workflow is still gone.
-- used by: purge_orphaned_errors
-- index: execution_errors_pkey, workflows_pkey
-- keep: the conditions besides :ids; a host may have changed the row since it was found
DELETE FROM execution_errors
WHERE
    id = any(array(SELECT cast(wanted.id AS INT) FROM jsonb_array_elements_text(:ids) AS wanted (id)))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    );
