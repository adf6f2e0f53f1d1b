-- Deletes what is finished, in batches. The ids of a batch are looked up first; the deletion then checks again that
-- each is still finished, because a host may have changed it meanwhile.
-- A workflow's age counts from its complete_time, or from its create_time if it has none (terminated by a host of the
-- reference). The foreign key deletes pointers with their workflow.

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
FROM workflows
WHERE
    status IN ('Complete', 'Terminated') AND status = :status
    AND coalesce(complete_time, create_time) < :older_than;

-- name: delete_finished_workflows(ids, status, older_than)!
-- Deletes those of :ids, a JSON array, that still have the status and ended before :older_than, with their pointers.
-- used by: purge_workflows
-- index: sqlite_autoindex_workflows_1, idx_execution_pointers_workflow_id
-- keep: the conditions besides :ids; a host may have changed the row since it was found
DELETE FROM workflows
WHERE
    id IN (SELECT value FROM json_each(:ids))
    AND +status = :status AND coalesce(complete_time, create_time) < :older_than;

-- name: delete_workflow(id)!
-- Deletes a workflow with its pointers, whatever its status.
-- used by: delete_workflow
-- index: sqlite_autoindex_workflows_1, idx_execution_pointers_workflow_id
DELETE FROM workflows
WHERE id = :id;

-- name: delete_event_subscriptions_of_deleted(workflow_ids)!
-- Deletes the subscriptions of those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: idx_event_subscriptions_workflow_id, sqlite_autoindex_workflows_1
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM event_subscriptions
WHERE
    workflow_id IN (SELECT value FROM json_each(:workflow_ids))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = event_subscriptions.workflow_id
    );

-- name: delete_execution_errors_of_deleted(workflow_ids)!
-- Deletes the errors of those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: idx_execution_errors_workflow_id, sqlite_autoindex_workflows_1
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM execution_errors
WHERE
    workflow_id IN (SELECT value FROM json_each(:workflow_ids))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    );

-- name: delete_scheduled_commands_of_deleted_workflows(workflow_ids)!
-- Deletes the commands for those of :workflow_ids, a JSON array, that are gone.
-- used by: delete_workflow, purge_workflows
-- index: sqlite_autoindex_scheduled_commands_1, sqlite_autoindex_workflows_1
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM scheduled_commands
WHERE
    command_name = 'ProcessWorkflow' AND data IN (SELECT value FROM json_each(:workflow_ids))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = scheduled_commands.data
    );

-- name: find_processed_events(older_than, after_time, row_limit)
-- Ids and times of processed events before :older_than, the oldest first, from :after_time on where it is given. The +
-- keeps SQLite from idx_events_is_processed, with which it would have to sort all of them.
-- used by: purge_events
-- index: idx_events_event_time
-- keep: ORDER BY event_time; the next batch begins at the last time, and would skip events
SELECT
    id,
    event_time
FROM events
WHERE +is_processed = 1 AND event_time >= coalesce(:after_time, '') AND event_time < :older_than
ORDER BY event_time
LIMIT :row_limit;

-- name: count_processed_events(older_than)$
-- How many events find_processed_events would find without a limit.
-- used by: purge_events
-- index: idx_events_event_time
SELECT count(*)
FROM events
WHERE +is_processed = 1 AND event_time < :older_than;

-- name: delete_processed_events(ids)!
-- Deletes those of :ids, a JSON array, that are still processed.
-- used by: purge_events
-- index: sqlite_autoindex_events_1
-- keep: the conditions besides :ids; a host may have changed the row since it was found
DELETE FROM events
WHERE id IN (SELECT value FROM json_each(:ids)) AND +is_processed = 1;

-- name: delete_scheduled_commands_of_deleted_events(event_ids)!
-- Deletes the commands for those of :event_ids, a JSON array, that are gone.
-- used by: purge_events
-- index: sqlite_autoindex_scheduled_commands_1, sqlite_autoindex_events_1
-- keep: NOT EXISTS; the row may have been created again by then
DELETE FROM scheduled_commands
WHERE
    command_name = 'ProcessEvent' AND data IN (SELECT value FROM json_each(:event_ids))
    AND NOT EXISTS (
        SELECT 1
        FROM events
        WHERE events.id = scheduled_commands.data
    );

-- name: find_orphaned_errors(older_than, from_id, row_limit)
-- Numbers of errors from before :older_than whose workflow is gone, the first stored first, from :from_id on. Skips
-- errors that belong to a workflow one by one.
-- used by: purge_orphaned_errors
-- index: INTEGER PRIMARY KEY, sqlite_autoindex_workflows_1
-- keep: ORDER BY id; the next batch begins after the last one, and would skip errors
SELECT id
FROM execution_errors
WHERE
    id >= :from_id AND error_time < :older_than
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
-- index: INTEGER PRIMARY KEY, sqlite_autoindex_workflows_1
-- keep: the conditions besides :ids; a host may have changed the row since it was found
DELETE FROM execution_errors
WHERE
    id IN (SELECT value FROM json_each(:ids))
    AND NOT EXISTS (
        SELECT 1
        FROM workflows
        WHERE workflows.id = execution_errors.workflow_id
    );
