-- Whole tables, row by row, for dumping, copying and checking a store. `export_` queries return every column except those
-- that differ between equal stores (a row's number comes last, and is only the key for the next page); `import_` queries
-- insert what they return. Each page begins after the last row of the previous one, so that memory holds one page.
-- Times are text, in the form of JSON; JSON is text; booleans are 0 and 1, so that rows can be copied to and from SQLite.
-- Ids are in the order of their bytes, as in SQLite. A time of the reference may come from SQLite with nine decimals;
-- timestamptz would round it, but every reader truncates it to six, so it is truncated here.
-- last_heartbeat_at, which only PostgreSQL has, is left out: it tells when a host wrote to this store.

-- name: export_workflows(after_id, row_limit)
-- Rows of workflows after a row, by id.
-- used by: dump, check, copy_to
-- index: workflows_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id,
    name,
    root_workflow_id,
    definition_id,
    version,
    description,
    reference,
    status,
    cast(data AS TEXT) AS data,
    next_execution,
    to_json(create_time) #>> '{}' AS create_time,
    to_json(complete_time) #>> '{}' AS complete_time,
    claim_token,
    claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at,
    revision
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
    workflow_id,
    id,
    step_id,
    cast(active AS INT) AS active,
    status,
    to_json(sleep_until) #>> '{}' AS sleep_until,
    cast(persistence_data AS TEXT) AS persistence_data,
    to_json(start_time) #>> '{}' AS start_time,
    to_json(end_time) #>> '{}' AS end_time,
    event_name,
    event_key,
    cast(event_published AS INT) AS event_published,
    cast(event_data AS TEXT) AS event_data,
    step_name,
    retry_count,
    cast(children AS TEXT) AS children,
    cast(context_item AS TEXT) AS context_item,
    predecessor_id,
    cast(outcome AS TEXT) AS outcome,
    cast(scope AS TEXT) AS scope,
    cast(extension_attributes AS TEXT) AS extension_attributes,
    position AS place
FROM execution_pointers
WHERE (workflow_id, position) > (:after_workflow_id, :after_place)
ORDER BY workflow_id, position
LIMIT :row_limit;

-- name: export_definition_sequences(after_definition_id, row_limit)
-- Rows of definition_sequences after a row, by definition_id.
-- used by: dump, check, copy_to
-- index: definition_sequences_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT definition_id, next_num
FROM definition_sequences
WHERE definition_id > :after_definition_id
ORDER BY definition_id
LIMIT :row_limit;

-- name: export_events(after_id, row_limit)
-- Rows of events after a row, by id.
-- used by: dump, check, copy_to
-- index: events_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id,
    event_name,
    event_key,
    cast(event_data AS TEXT) AS event_data,
    to_json(event_time) #>> '{}' AS event_time,
    cast(is_processed AS INT) AS is_processed,
    claim_token,
    claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at
FROM events
WHERE id > :after_id
ORDER BY id
LIMIT :row_limit;

-- name: export_event_subscriptions(after_id, row_limit)
-- Rows of event_subscriptions after a row, by id.
-- used by: dump, check, copy_to
-- index: event_subscriptions_pkey
-- keep: the nullif; a copy in SQLite would hold 'wfe-sql:terminated' as somebody's token
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    id,
    workflow_id,
    step_id,
    execution_pointer_id,
    event_name,
    event_key,
    to_json(subscribe_as_of) #>> '{}' AS subscribe_as_of,
    cast(subscription_data AS TEXT) AS subscription_data,
    nullif(external_token, 'wfe-sql:terminated') AS external_token,
    external_worker_id,
    to_json(external_token_expiry) #>> '{}' AS external_token_expiry,
    cast(terminated AS INT) AS terminated
FROM event_subscriptions
WHERE id > :after_id
ORDER BY id
LIMIT :row_limit;

-- name: export_scheduled_commands(after_place, row_limit)
-- Rows of scheduled_commands after a row, in the order in which they were stored.
-- used by: dump, check, copy_to
-- index: scheduled_commands_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    command_name,
    data,
    execute_time,
    claim_token,
    claim_worker_id,
    to_json(claim_expires_at) #>> '{}' AS claim_expires_at,
    rescheduled_time,
    id AS place
FROM scheduled_commands
WHERE id > cast(:after_place AS BIGINT)
ORDER BY id
LIMIT :row_limit;

-- name: export_execution_errors(after_place, row_limit)
-- Rows of execution_errors after a row, in the order in which they were stored.
-- used by: dump, check, copy_to
-- index: execution_errors_pkey
-- keep: ORDER BY and the comparison above it; the next page begins after the last row, and would skip rows
SELECT
    to_json(error_time) #>> '{}' AS error_time,
    workflow_id,
    execution_pointer_id,
    message,
    id AS place
FROM execution_errors
WHERE id > cast(:after_place AS BIGINT)
ORDER BY id
LIMIT :row_limit;

-- name: import_workflows*!
-- Inserts rows as export_workflows returns them.
-- used by: copy_to
-- index: none
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time, claim_token, claim_worker_id, claim_expires_at, revision
)
VALUES (
    :id, :name, :root_workflow_id, :definition_id, :version, :description, :reference, :status, :data,
    :next_execution,
    cast(regexp_replace(:create_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    cast(regexp_replace(:complete_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :claim_token, :claim_worker_id,
    cast(regexp_replace(:claim_expires_at, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :revision
);

-- name: import_execution_pointers*!
-- Inserts rows as export_execution_pointers returns them.
-- used by: copy_to
-- index: none
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO execution_pointers (
    workflow_id, id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes
)
VALUES (
    :workflow_id, :id, :step_id, :active, :status,
    cast(regexp_replace(:sleep_until, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :persistence_data,
    cast(regexp_replace(:start_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    cast(regexp_replace(:end_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
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
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO events (
    id, event_name, event_key, event_data, event_time, is_processed, claim_token, claim_worker_id, claim_expires_at
)
VALUES (
    :id, :event_name, :event_key, :event_data,
    cast(regexp_replace(:event_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :is_processed, :claim_token, :claim_worker_id,
    cast(regexp_replace(:claim_expires_at, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ)
);

-- name: import_event_subscriptions*!
-- Inserts rows as export_event_subscriptions returns them.
-- used by: copy_to
-- index: none
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry, terminated
)
VALUES (
    :id, :workflow_id, :step_id, :execution_pointer_id, :event_name, :event_key,
    cast(regexp_replace(:subscribe_as_of, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :subscription_data,
    CASE WHEN :terminated THEN coalesce(:external_token, 'wfe-sql:terminated') ELSE :external_token END,
    :external_worker_id,
    cast(regexp_replace(:external_token_expiry, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :terminated
);

-- name: import_scheduled_commands*!
-- Inserts rows as export_scheduled_commands returns them.
-- used by: copy_to
-- index: none
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO scheduled_commands (
    command_name, data, execute_time, claim_token, claim_worker_id, claim_expires_at, rescheduled_time
)
VALUES (
    :command_name, :data, :execute_time, :claim_token, :claim_worker_id,
    cast(regexp_replace(:claim_expires_at, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :rescheduled_time
);

-- name: import_execution_errors(error_time, workflow_id, execution_pointer_id, message)*!
-- Inserts rows as export_execution_errors returns them.
-- used by: copy_to
-- index: none
-- keep: that times are truncated to six digits; timestamptz would round them
INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)
VALUES (
    cast(regexp_replace(:error_time, '(\.\d{6})\d+', '\1') AS TIMESTAMPTZ),
    :workflow_id, :execution_pointer_id, :message
);

-- name: empty_store()#
-- Deletes every row except the store's version, after a copy into an empty store failed half way. TRUNCATE needs a
-- privilege that a role with write access may lack.
-- used by: copy_to
-- scan: every row is deleted
DELETE FROM execution_pointers;
DELETE FROM workflows;
DELETE FROM definition_sequences;
DELETE FROM events;
DELETE FROM event_subscriptions;
DELETE FROM scheduled_commands;
DELETE FROM execution_errors;
