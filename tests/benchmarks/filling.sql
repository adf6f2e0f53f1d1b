-- Fills a store of wfe-sql with workflows that are finished, or due. Its tables are there already.

-- name: journal_nothing()$
-- A store that is being filled is thrown away if that fails.
PRAGMA journal_mode = OFF;

-- name: flush_nothing()!
PRAGMA synchronous = OFF;

-- name: cache_much()!
PRAGMA cache_size = -1000000;

-- name: insert_workflows(id, name, status, data, next_execution, time, done)*!
INSERT INTO workflows (id, name, definition_id, version, status, data, next_execution, create_time, complete_time)
VALUES (:id, :name, 'order', 1, :status, :data, :next_execution, :time, CASE WHEN :done THEN :time END);

-- name: insert_pointers(id, workflow_id, step, time)*!
INSERT INTO execution_pointers (
    id, workflow_id, step_id, active, status, start_time, end_time, step_name, persistence_data, outcome
)
VALUES (:id, :workflow_id, :step, 0, 'Complete', :time, :time, 'step ' || :step, '{"cursor":1}', 'true');

-- name: insert_events(id, event_key, time, done)*!
INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
VALUES (:id, 'paid', :event_key, '{"amount":1250,"currency":"EUR"}', :time, :done);

-- name: insert_subscriptions(id, workflow_id, pointer_id, event_key, time, done)*!
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, terminated
)
VALUES (:id, :workflow_id, 1, :pointer_id, 'paid', :event_key, :time, :done);
