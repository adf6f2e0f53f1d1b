-- What an administrator, or another program, does to a PostgreSQL server and to a store on it while hosts use it.

-- name: end_connections(application)
-- Ends a host's connections, and returns when they have ended.
SELECT pg_terminate_backend(pid, 10000)
FROM pg_stat_activity
WHERE application_name = :application;

-- name: count_waiting(application)$
-- How many statements of a host wait for locks.
SELECT count(*)
FROM pg_stat_activity
WHERE application_name = :application AND wait_event_type = 'Lock';

-- name: count_connections(application)$
-- How many connections a host has.
SELECT count(*)
FROM pg_stat_activity
WHERE application_name = :application;

-- name: list_connections(application)
-- A host's connections: the server's process of each, and whether it is idle, at work, or in a transaction.
SELECT pid, state
FROM pg_stat_activity
WHERE application_name = :application
ORDER BY backend_start;

-- name: count_schemas(pattern)$
-- How many schemas have names like this.
SELECT count(*)
FROM pg_namespace
WHERE nspname LIKE :pattern;

-- name: has_store()$
-- Whether somebody has made a store.
SELECT to_regclass('wfe_sql_store') IS NOT NULL;

-- name: refuse_events#
-- Has each new event fail with the code that test_refusal holds, and counts how often that happened.
CREATE TABLE test_refusal (code TEXT);

CREATE SEQUENCE test_refused;

CREATE FUNCTION test_refuse() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('test_refused');
    RAISE EXCEPTION 'refused by a test' USING ERRCODE = (SELECT code FROM test_refusal);
END
$$;

CREATE TRIGGER test_refuse BEFORE INSERT ON events
FOR EACH ROW EXECUTE FUNCTION test_refuse();

-- name: set_refusal(code)!
-- Which code new events fail with.
INSERT INTO test_refusal (code) VALUES (:code);

-- name: count_refused()$
-- How often new events failed.
SELECT last_value FROM test_refused;

-- name: make_role_functions#
-- CREATE ROLE and its like take no parameters, so they go through functions, which are gone with the session.
CREATE FUNCTION pg_temp.make_role(role TEXT, secret TEXT, connections INT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L CONNECTION LIMIT %s', role, secret, connections);
END
$$;

CREATE FUNCTION pg_temp.drop_role(role TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP OWNED BY %I CASCADE', role);
    EXECUTE format('DROP ROLE %I', role);
END
$$;

CREATE FUNCTION pg_temp.set_for_role(role TEXT, setting TEXT, value TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER ROLE %I SET %I = %L', role, setting, value);
END
$$;

CREATE FUNCTION pg_temp.limit_role(role TEXT, connections INT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', role, connections);
END
$$;

CREATE FUNCTION pg_temp.grant_use(role TEXT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', current_schema(), role);
    EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA %I TO %I', current_schema(), role);
END
$$;

-- name: make_role(role, secret, connections)$
-- A role that may connect, so often at once (-1: no limit).
SELECT pg_temp.make_role(:role, :secret, :connections);

-- name: drop_role(role)$
-- Drops a role with all that it owns and may do here.
SELECT pg_temp.drop_role(:role);

-- name: set_for_role(role, setting, value)$
-- Has new connections of a role begin with a setting.
SELECT pg_temp.set_for_role(:role, :setting, :value);

-- name: limit_role(role, connections)$
-- Has a role connect at most so often at once (-1: no limit).
SELECT pg_temp.limit_role(:role, :connections);

-- name: grant_use(role)$
-- Lets a role use the store that is there, and no more.
SELECT pg_temp.grant_use(:role);

-- name: has_citus()$
-- Whether the database has Citus.
SELECT count(*) > 0 AS has_citus
FROM pg_extension
WHERE extname = 'citus';

-- name: allow_triggers()^
-- Lets a connection distribute tables that have triggers.
SELECT set_config('citus.enable_unsafe_triggers', 'on', FALSE) AS unsafe_triggers;

-- name: distribute_schema(schema)^
-- Has Citus keep a schema on one of its workers.
SELECT citus_schema_distribute(cast(:schema AS REGNAMESPACE)) AS distributed;
