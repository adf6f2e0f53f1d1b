-- What the plain baselines run: the tables and indexes of the reference (wfe-sqlite 1.11.4), and a query for each thing
-- that the workloads do. The SQLAlchemy side uses the tables only.

-- name: use_wal()$
PRAGMA journal_mode = WAL;

-- name: use_full_durability()!
PRAGMA synchronous = FULL;

-- name: enforce_foreign_keys()!
PRAGMA foreign_keys = ON;

-- name: create_tables()#
CREATE TABLE workflows (
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
CREATE INDEX idx_workflows_next_execution ON workflows (next_execution);
CREATE INDEX idx_workflows_status ON workflows (status);
CREATE TABLE execution_pointers (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INTEGER NOT NULL,
    active INTEGER NOT NULL DEFAULT 1,
    status TEXT NOT NULL,
    sleep_until TEXT,
    persistence_data TEXT,
    start_time TEXT,
    end_time TEXT,
    event_name TEXT,
    event_key TEXT,
    event_published INTEGER NOT NULL DEFAULT 0,
    event_data TEXT,
    step_name TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    children TEXT NOT NULL DEFAULT '[]',
    context_item TEXT,
    predecessor_id TEXT,
    outcome TEXT,
    scope TEXT NOT NULL DEFAULT '[]',
    extension_attributes TEXT NOT NULL DEFAULT '{}',
    FOREIGN KEY (workflow_id) REFERENCES workflows (id) ON DELETE CASCADE
);
CREATE INDEX idx_execution_pointers_workflow_id ON execution_pointers (workflow_id);
CREATE TABLE definition_sequences (
    definition_id TEXT PRIMARY KEY,
    next_num INTEGER NOT NULL
);
CREATE TABLE events (
    id TEXT PRIMARY KEY,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    event_data TEXT NOT NULL,
    event_time TEXT NOT NULL,
    is_processed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX idx_events_name_key ON events (event_name, event_key);
CREATE INDEX idx_events_is_processed ON events (is_processed);
CREATE INDEX idx_events_event_time ON events (event_time);
CREATE TABLE event_subscriptions (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INTEGER NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    subscribe_as_of TEXT NOT NULL,
    subscription_data TEXT,
    external_token TEXT,
    external_worker_id TEXT,
    external_token_expiry TEXT,
    terminated INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX idx_event_subscriptions_name_key ON event_subscriptions (event_name, event_key);
CREATE INDEX idx_event_subscriptions_workflow_id ON event_subscriptions (workflow_id);

-- name: next_definition_sequence(definition_id)$
INSERT INTO definition_sequences (definition_id, next_num)
VALUES (:definition_id, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = next_num + 1
RETURNING next_num;

-- name: create_new_workflow(id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, create_time, complete_time)!
INSERT INTO workflows (
    id, name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution,
    create_time, complete_time
)
VALUES (
    :id, :name, :root_workflow_id, :definition_id, :version, :description, :reference, :status, :data,
    :next_execution, :create_time, :complete_time
);

-- name: persist_workflow(name, root_workflow_id, definition_id, version, description, reference, status, data, next_execution, complete_time, id)!
UPDATE workflows
SET
    name = :name,
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

-- name: get_workflow_instance(id)^
SELECT
    id, name, root_workflow_id, definition_id, version, description, reference, next_execution, status, data,
    create_time, complete_time
FROM workflows
WHERE id = :id;

-- name: insert_execution_pointers(id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name, event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome, scope, extension_attributes)*!
INSERT INTO execution_pointers (
    id, workflow_id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name,
    event_key, event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome,
    scope, extension_attributes
)
VALUES (
    :id, :workflow_id, :step_id, :active, :status, :sleep_until, :persistence_data, :start_time, :end_time,
    :event_name, :event_key, :event_published, :event_data, :step_name, :retry_count, :children, :context_item,
    :predecessor_id, :outcome, :scope, :extension_attributes
);

-- name: delete_execution_pointers(workflow_id)!
DELETE FROM execution_pointers
WHERE workflow_id = :workflow_id;

-- name: get_execution_pointers(workflow_id)
SELECT
    id, step_id, active, status, sleep_until, persistence_data, start_time, end_time, event_name, event_key,
    event_published, event_data, step_name, retry_count, children, context_item, predecessor_id, outcome, scope,
    extension_attributes
FROM execution_pointers
WHERE workflow_id = :workflow_id
ORDER BY rowid;

-- name: create_event(id, event_name, event_key, event_data, event_time, is_processed)!
INSERT INTO events (id, event_name, event_key, event_data, event_time, is_processed)
VALUES (:id, :event_name, :event_key, :event_data, :event_time, :is_processed);

-- name: mark_event_processed(id)!
UPDATE events
SET is_processed = 1
WHERE id = :id;

-- name: create_event_subscriptions(id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data, external_token, external_worker_id, external_token_expiry)*!
INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry
)
VALUES (
    :id, :workflow_id, :step_id, :execution_pointer_id, :event_name, :event_key, :subscribe_as_of,
    :subscription_data, :external_token, :external_worker_id, :external_token_expiry
);

-- name: get_subscriptions(event_name, event_key, as_of)
SELECT
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of, subscription_data,
    external_token, external_worker_id, external_token_expiry
FROM event_subscriptions
WHERE event_name = :event_name AND event_key = :event_key AND subscribe_as_of <= :as_of AND terminated = 0
ORDER BY subscribe_as_of, id;

-- name: terminate_subscription(id)!
UPDATE event_subscriptions
SET terminated = 1
WHERE id = :id;
