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
-- used by: next_definition_sequence
-- index: none
-- keep: that one statement increments and returns; two callers would get the same number
INSERT INTO definition_sequences (definition_id, next_num)
VALUES (:definition_id, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = next_num + 1 WHERE next_num < 9223372036854775807
RETURNING next_num;
