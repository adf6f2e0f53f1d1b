-- One row for each workflow definition, with the last number given.

-- name: create_definition_sequences_table()#
-- The table of the reference (wfe-postgres 1.11.4).
-- used by: ensure_store_exists
-- index: none
CREATE TABLE IF NOT EXISTS definition_sequences (
    definition_id TEXT COLLATE "C" PRIMARY KEY,
    next_num BIGINT NOT NULL
);

-- name: next_definition_sequence_group(units)
-- Increments the number of each definition once for each of its units, starting at 1, and returns the numbers in the
-- order of the units; no row for the units of a definition with too few 64-bit numbers left. Units of a definition
-- whose row somebody else holds come back with null, as explained in workflows.sql.
-- used by: next_definition_sequence
-- index: definition_sequences_pkey
-- keep: the column unit; it tells which unit a row is for
-- keep: FOR UPDATE SKIP LOCKED, and the null for a row that it skips; one locked row would block all others
-- keep: ORDER BY definition_id where rows are inserted; two hosts deadlock without it
WITH units AS (
    SELECT
        unit.unit, unit.definition_id,
        row_number() OVER (PARTITION BY unit.definition_id ORDER BY unit.unit) AS place
    FROM jsonb_to_recordset(:units) AS unit (unit INT, definition_id TEXT)
),

wanted AS (
    SELECT
        definition_id,
        count(*) AS numbers
    FROM units
    GROUP BY definition_id
),

locked AS (
    SELECT definition_id
    FROM definition_sequences
    WHERE definition_id = any(array(SELECT wanted.definition_id FROM wanted))
    FOR UPDATE SKIP LOCKED
),

held AS (
    SELECT definition_id
    FROM definition_sequences
    WHERE
        definition_id = any(
            array(
                SELECT wanted.definition_id
                FROM wanted
                WHERE wanted.definition_id NOT IN (SELECT locked.definition_id FROM locked)
            )
        )
),

raised AS (
    INSERT INTO definition_sequences (definition_id, next_num)
    SELECT definition_id, numbers
    FROM wanted
    WHERE definition_id NOT IN (SELECT held.definition_id FROM held)
    ORDER BY definition_id
    ON CONFLICT (definition_id) DO UPDATE
        SET next_num = definition_sequences.next_num + excluded.next_num
        WHERE definition_sequences.next_num <= 9223372036854775807 - excluded.next_num
    RETURNING definition_id, next_num
)

SELECT units.unit, raised.next_num - wanted.numbers + units.place AS number
FROM units
INNER JOIN wanted ON units.definition_id = wanted.definition_id
INNER JOIN raised ON wanted.definition_id = raised.definition_id
UNION ALL
SELECT units.unit, NULL AS number
FROM units
INNER JOIN held ON units.definition_id = held.definition_id;

-- name: lock_definition_sequences(ids)
-- Waits for the numbers of the definitions in :ids, a JSON array, and holds them until the transaction ends, as
-- lock_workflows.
-- used by: next_definition_sequence, create_numbered_workflow
-- index: definition_sequences_pkey
-- keep: ORDER BY definition_id FOR UPDATE, before anything is written; two hosts deadlock without it
SELECT definition_id
FROM definition_sequences
WHERE
    definition_id = any(array(SELECT wanted.id FROM jsonb_array_elements_text(:ids) AS wanted (id)))
ORDER BY definition_id
FOR UPDATE;

-- name: pass_over_taken_numbers(definition_id)!
-- Raises the number of a definition to the last of the next ones whose names workflows already have, up to the first that
-- is free; does nothing if the next one is free.
-- used by: create_numbered_workflow
-- index: definition_sequences_pkey, workflows_name_key
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
            WHERE name = concat(cast(:definition_id AS TEXT), '-', taken.number + 1)
        )
)

INSERT INTO definition_sequences (definition_id, next_num)
SELECT
    :definition_id AS numbered,
    max(number) AS next_num
FROM taken
WHERE number > 0
HAVING count(*) > 0
ON CONFLICT (definition_id) DO UPDATE
    SET next_num = excluded.next_num
    WHERE excluded.next_num > definition_sequences.next_num;
