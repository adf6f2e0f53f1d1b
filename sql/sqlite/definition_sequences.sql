-- One row for each workflow definition: the last number that was given out.

-- name: create_definition_sequences_table()#
-- The table of the reference (wfe-sqlite 1.11.4).
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS definition_sequences (
    definition_id TEXT PRIMARY KEY,
    next_num INTEGER NOT NULL
);

-- name: next_definition_sequence(definition_id)$
-- Raises the number of a definition by one, from nothing to 1, and returns it; no row where it is the last of 64 bits
-- (SQLite would go on with floats).
-- used by: next_definition_sequence
-- index: none
-- keep: that one statement raises and returns; two callers would get one number
INSERT INTO definition_sequences (definition_id, next_num)
VALUES (:definition_id, 1)
ON CONFLICT (definition_id) DO UPDATE SET next_num = next_num + 1 WHERE next_num < 9223372036854775807
RETURNING next_num;
