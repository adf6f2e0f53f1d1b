-- A store as wfe-postgres 1.0.0 made it: its statements, without the schema's name before each table, and some rows.

CREATE TABLE IF NOT EXISTS workflows (
    id TEXT PRIMARY KEY,
    definition_id TEXT NOT NULL,
    version INT NOT NULL,
    description TEXT,
    reference TEXT,
    status TEXT NOT NULL,
    data JSONB NOT NULL DEFAULT '{}',
    next_execution BIGINT,
    create_time TIMESTAMPTZ NOT NULL,
    complete_time TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS execution_pointers (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL REFERENCES workflows (id),
    step_id INT NOT NULL,
    active BOOLEAN NOT NULL DEFAULT TRUE,
    status TEXT NOT NULL,
    sleep_until TIMESTAMPTZ,
    persistence_data JSONB,
    start_time TIMESTAMPTZ,
    end_time TIMESTAMPTZ,
    event_name TEXT,
    event_key TEXT,
    event_published BOOLEAN DEFAULT FALSE,
    event_data JSONB,
    step_name TEXT,
    retry_count INT DEFAULT 0,
    children JSONB DEFAULT '[]',
    context_item JSONB,
    predecessor_id TEXT,
    outcome JSONB,
    scope JSONB DEFAULT '[]',
    extension_attributes JSONB DEFAULT '{}'
);

CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    event_data JSONB NOT NULL DEFAULT 'null',
    event_time TIMESTAMPTZ NOT NULL,
    is_processed BOOLEAN DEFAULT FALSE
);

CREATE TABLE IF NOT EXISTS event_subscriptions (
    id TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    step_id INT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    event_name TEXT NOT NULL,
    event_key TEXT NOT NULL,
    subscribe_as_of TIMESTAMPTZ NOT NULL,
    subscription_data JSONB,
    external_token TEXT,
    external_worker_id TEXT,
    external_token_expiry TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS execution_errors (
    id SERIAL PRIMARY KEY,
    error_time TIMESTAMPTZ NOT NULL,
    workflow_id TEXT NOT NULL,
    execution_pointer_id TEXT NOT NULL,
    message TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS scheduled_commands (
    id SERIAL PRIMARY KEY,
    command_name TEXT NOT NULL,
    data TEXT NOT NULL,
    execute_time BIGINT NOT NULL,
    UNIQUE (command_name, data)
);

CREATE INDEX IF NOT EXISTS idx_workflows_next_execution ON workflows (next_execution);
CREATE INDEX IF NOT EXISTS idx_workflows_status ON workflows (status);
CREATE INDEX IF NOT EXISTS idx_events_name_key ON events (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_events_is_processed ON events (is_processed);
CREATE INDEX IF NOT EXISTS idx_events_event_time ON events (event_time);
CREATE INDEX IF NOT EXISTS idx_subscriptions_name_key ON event_subscriptions (event_name, event_key);
CREATE INDEX IF NOT EXISTS idx_subscriptions_workflow ON event_subscriptions (workflow_id);
CREATE INDEX IF NOT EXISTS idx_scheduled_commands_execute_time ON scheduled_commands (execute_time);

INSERT INTO workflows (id, definition_id, version, status, data, next_execution, create_time)
VALUES
('old-2', 'order', 1, 'Runnable', '{"amount": 2}', 0, '2026-05-28T20:26:40.123456Z'),
('old-1', 'order', 1, 'Runnable', '{"amount": 1}', 0, '2026-05-28T20:26:40.123456Z');

INSERT INTO execution_pointers (id, workflow_id, step_id, active, status, children, scope, extension_attributes)
VALUES
('old-1-b', 'old-1', 0, FALSE, 'Complete', '["old-1-a"]', '[]', '{}'),
('old-1-a', 'old-1', 1, TRUE, 'WaitingForEvent', '[]', '["old-1-b"]', '{"owner": "alice"}');

INSERT INTO events (id, event_name, event_key, event_data, event_time)
VALUES ('old-event', 'paid', 'old-1', '{"amount": 1}', '2026-05-28T20:26:40.123456Z');

INSERT INTO event_subscriptions (
    id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of
)
VALUES ('old-subscription', 'old-1', 1, 'old-1-a', 'paid', 'old-1', '2026-05-28T20:26:40.123456Z');

INSERT INTO execution_errors (error_time, workflow_id, execution_pointer_id, message)
VALUES ('2026-05-28T20:26:40.123456Z', 'old-1', 'old-1-b', 'boom');

INSERT INTO scheduled_commands (command_name, data, execute_time)
VALUES ('ProcessWorkflow', 'old-1', 7);
