-- One row for each workflow definition, with the last number given.

-- name: create_definition_sequences_table()#
-- The table of the reference (wfe-sqlite 1.11.4).
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS definition_sequences (
    definition_id TEXT PRIMARY KEY,
    next_num INTEGER NOT NULL
);

-- name: next_definition_sequence(definition_id)$
-- Increments the number of a definition, starting at 1, and returns it; returns no row after the last 64-bit number
-- (SQLite would continue with floats).
-- used by: next_definition_sequence, create_numbered_workflow
-- index: none
-- keep: that one statement increments and returns; two callers would get the same number
INSERT INTO definition_sequences (definition_id, next_num)
VALUES (:definition_id, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = next_num + 1 WHERE next_num < 9223372036854775807
RETURNING next_num;

-- name: pass_over_taken_numbers(definition_id)!
-- Raises the number of a definition to the last of the next ones whose names workflows already have, up to the first that
-- is free; does nothing if the next one is free, because GROUP BY then gives no row (before 3.39, HAVING needs GROUP BY).
-- used by: create_numbered_workflow
-- index: sqlite_autoindex_definition_sequences_1, sqlite_autoindex_workflows_2
INSERT INTO definition_sequences (definition_id, next_num)
WITH RECURSIVE taken (number) AS (
    SELECT coalesce(max(next_num), 0)
    FROM definition_sequences
    WHERE definition_id = :definition_id
    UNION ALL
    SELECT taken.number + 1
    FROM taken
    WHERE
        EXISTS (
            SELECT 1
            FROM workflows
            WHERE name = :definition_id || '-' || (taken.number + 1)
        )
)

SELECT
    :definition_id AS numbered,
    max(number) AS next_num
FROM taken
WHERE number > 0
GROUP BY numbered
ON CONFLICT (definition_id) DO UPDATE SET next_num = excluded.next_num WHERE excluded.next_num > next_num;
