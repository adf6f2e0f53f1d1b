-- One row for each workflow definition: the last number that was given out.

-- name: create_definition_sequences_table()#
-- The table of the reference (wfe-postgres 1.11.4).
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS definition_sequences (
    definition_id TEXT COLLATE "C" PRIMARY KEY,
    next_num BIGINT NOT NULL
);

-- name: next_definition_sequence_group(units)
-- Raises the number of each definition by as many as the units that ask for it, from nothing to 1, and hands the numbers
-- out in the order of the units; no row for those of a definition with fewer numbers of 64 bits left than they ask for.
-- used by: next_definition_sequence
-- index: none
-- keep: the column unit; what comes back is dealt to the units by it
-- keep: ORDER BY definition_id; two hosts deadlock without it
WITH units AS (
    SELECT
        unit.unit, unit.definition_id,
        row_number() OVER (PARTITION BY unit.definition_id ORDER BY unit.unit) AS place
    FROM jsonb_to_recordset(cast(:units AS JSONB)) AS unit (unit INT, definition_id TEXT)
),

wanted AS (
    SELECT
        definition_id,
        count(*) AS numbers
    FROM units
    GROUP BY definition_id
),

raised AS (
    INSERT INTO definition_sequences (definition_id, next_num)
    SELECT definition_id, numbers
    FROM wanted
    ORDER BY definition_id
    ON CONFLICT (definition_id) DO UPDATE
        SET next_num = definition_sequences.next_num + excluded.next_num
        WHERE definition_sequences.next_num <= 9223372036854775807 - excluded.next_num
    RETURNING definition_id, next_num
)

SELECT units.unit, raised.next_num - wanted.numbers + units.place AS number
FROM units
INNER JOIN wanted ON units.definition_id = wanted.definition_id
INNER JOIN raised ON wanted.definition_id = raised.definition_id;
