-- What tests do to a PostgreSQL server that is not theirs.

-- name: make_drop_schema#
-- Makes the function that drop_schema calls, for this session: DDL takes no parameters.
-- used by: new_schema
CREATE FUNCTION pg_temp.drop_schema(name TEXT) RETURNS VOID LANGUAGE PLPGSQL AS $$
BEGIN
    EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', name);
END
$$;

-- name: drop_schema(schema)
-- Drops a schema that a test made, with its store.
-- used by: new_schema
SELECT pg_temp.drop_schema(:schema);
