-- The effects of steps, in a table of the application's own.

-- name: create_counters()#
-- Makes the table.
CREATE TABLE IF NOT EXISTS counters (workflow_id TEXT PRIMARY KEY, steps INTEGER NOT NULL);

-- name: count_step(workflow_id)!
-- Counts a step of a workflow: twice, where the step is done twice.
INSERT INTO counters (workflow_id, steps)
VALUES (:workflow_id, 1)
ON CONFLICT (workflow_id) DO UPDATE SET steps = counters.steps + 1;

-- name: list_counters()
-- All counters.
SELECT workflow_id, steps
FROM counters;
