-- Whole tables, row by row, for dumping, copying and checking a store. `export_` queries return every column except those
-- that differ between equal stores (a row's number comes last, and is only the key for the next page); `import_` queries
-- insert what they return. Each page begins after the last row of the previous one, so that memory holds one page.

-- name: export_workflows(after_id, row_limit)
-- Rows of workflows after a row, by id.
-- used by: dump, check, copy_to
-- index: sqlite_autoindex_workflows_1
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time, claim_token, claim_worker_id, claim_expires_at, revision
FROM workflows
WHERE id > :after_id
ORDER BY id
LIMIT :row_limit;

-- name: export_execution_pointers(after_workflow_id, after_place, row_limit)
-- Pointers after a row, by workflow; those of one workflow in list order.
-- used by: dump, check, copy_to
-- index: idx_execution_pointers_workflow_id
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    workflow_id, id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes, rowid AS place
FROM execution_pointers
WHERE (workflow_id, rowid) > (:after_workflow_id, :after_place)
ORDER BY workflow_id, rowid
LIMIT :row_limit;

-- name: export_definition_sequences(after_definition_id, row_limit)
-- Rows of definition_sequences after a row, by definition_id.
-- used by: dump, check, copy_to
-- index: sqlite_autoindex_definition_sequences_1
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT definition_id, next_num
FROM definition_sequences
WHERE definition_id > :after_definition_id
ORDER BY definition_id
LIMIT :row_limit;

-- name: export_events(after_id, row_limit)
-- Rows of events after a row, by id.
-- used by: dump, check, copy_to
-- index: sqlite_autoindex_events_1
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, event_name, event_key, event_data, event_time, is_processed, claim_token, claim_worker_id, claim_expires_at
FROM events
WHERE id > :after_id
ORDER BY id
LIMIT :row_limit;

-- name: export_event_subscriptions(after_id, row_limit)
-- Rows of event_subscriptions after a row, by id.
-- used by: dump, check, copy_to
-- index: sqlite_autoindex_event_subscriptions_1
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry, terminated
FROM event_subscriptions
WHERE id > :after_id
ORDER BY id
LIMIT :row_limit;

-- name: export_scheduled_commands(after_place, row_limit)
-- Rows of scheduled_commands after a row, in the order in which they were stored.
-- used by: dump, check, copy_to
-- index: INTEGER PRIMARY KEY
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    command_name, data, execute_time, claim_token, claim_worker_id, claim_expires_at, rescheduled_time,
    id AS place
FROM scheduled_commands
WHERE id > :after_place
ORDER BY id
LIMIT :row_limit;

-- name: export_execution_errors(after_place, row_limit)
-- Rows of execution_errors after a row, in the order in which they were stored.
-- used by: dump, check, copy_to
-- index: INTEGER PRIMARY KEY
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    error_time, workflow_id, execution_pointer_id, message, id AS place
FROM execution_errors
WHERE id > :after_place
ORDER BY id
LIMIT :row_limit;

-- name: import_workflows*!
-- Inserts rows as export_workflows returns them.
-- used by: copy_to
-- index: none
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time, claim_token, claim_worker_id, claim_expires_at, revision
)
VALUES (
    :id, :name, :root_workflow_id, :definition_id, :version, :description, :reference, :status, :data,
    :next_execution, :create_time, :complete_time, :claim_token, :claim_worker_id, :claim_expires_at, :revision
);

-- name: import_execution_pointers*!
-- Inserts rows as export_execution_pointers returns them.
-- used by: copy_to
-- index: none
INSERT INTO execution_pointers (
    workflow_id, id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes
)
VALUES (
    :workflow_id, :id, :step_id, :active, :status, :sleep_until, :persistence_data, :start_time, :end_time,
    :event_name, :event_key, :event_published, :event_data, :step_name, :retry_count, :children, :context_item,
    :predecessor_id, :outcome, :scope, :extension_attributes
);

-- name: import_definition_sequences(definition_id, next_num)*!
-- Inserts rows as export_definition_sequences returns them.
-- used by: copy_to
-- index: none
INSERT INTO definition_sequences (definition_id, next_num)
VALUES (:definition_id, :next_num);

-- name: import_events*!
-- Inserts rows as export_events returns them.
-- used by: copy_to
-- index: none
INSERT INTO events (
    id, event_name, event_key, event_data, event_time, is_processed, claim_token, claim_worker_id, claim_expires_at
)
VALUES (
    :id, :event_name, :event_key, :event_data, :event_time, :is_processed, :claim_token, :claim_worker_id,
    :claim_expires_at
);

-- name: import_event_subscriptions*!
-- Inserts rows as export_event_subscriptions returns them.
-- used by: copy_to
-- index: none
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry, terminated
)
VALUES (
    :id, :workflow_id, :step_id, :execution_pointer_id, :event_name, :event_key, :subscribe_as_of,
    :subscription_data, :external_token, :external_worker_id, :external_token_expiry, :terminated
);

-- name: import_scheduled_commands*!
-- Inserts rows as export_scheduled_commands returns them.
-- used by: copy_to
-- index: none
INSERT INTO scheduled_commands (
    command_name, data, execute_time, claim_token, claim_worker_id, claim_expires_at, rescheduled_time
)
VALUES (:command_name, :data, :execute_time, :claim_token, :claim_worker_id, :claim_expires_at, :rescheduled_time);

-- name: import_execution_errors(error_time, workflow_id, execution_pointer_id, message)*!
-- Inserts rows as export_execution_errors returns them.
-- used by: copy_to
-- index: none
INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)
VALUES (:error_time, :workflow_id, :execution_pointer_id, :message);

-- name: empty_store()#
-- Deletes every row except the store's version, after a copy into an empty store failed half way.
-- used by: copy_to
-- scan: every row is deleted
DELETE FROM execution_pointers;
DELETE FROM workflows;
DELETE FROM definition_sequences;
DELETE FROM events;
DELETE FROM event_subscriptions;
DELETE FROM scheduled_commands;
DELETE FROM execution_errors;
