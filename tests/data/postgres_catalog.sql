-- Everything that a schema consists of, as the server writes it down: what, of which table, its name, and how it is
-- defined. Collations are apart, for they are what tables of the reference and of ours differ in until ours is opened.
SELECT
    'column' AS kind,
    pg_class.relname AS of_table,
    pg_attribute.attname AS name,
    concat_ws(
        ' ', format_type(pg_attribute.atttypid, pg_attribute.atttypmod),
        CASE WHEN pg_attribute.attnotnull THEN 'not null' END,
        'identity ' || nullif(cast(pg_attribute.attidentity AS TEXT), ''),
        pg_get_expr(pg_attrdef.adbin, pg_attrdef.adrelid)
    ) AS definition
FROM pg_attribute
INNER JOIN pg_class ON pg_attribute.attrelid = pg_class.oid
LEFT JOIN pg_attrdef
    ON pg_attribute.attrelid = pg_attrdef.adrelid AND pg_attribute.attnum = pg_attrdef.adnum
WHERE
    pg_class.relnamespace = current_schema()::regnamespace AND pg_class.relkind = 'r' AND pg_attribute.attnum > 0
    AND NOT pg_attribute.attisdropped
UNION ALL
SELECT
    'collation' AS kind,
    pg_class.relname AS of_table,
    pg_attribute.attname AS name,
    pg_collation.collname AS definition
FROM pg_attribute
INNER JOIN pg_class ON pg_attribute.attrelid = pg_class.oid
INNER JOIN pg_collation ON pg_attribute.attcollation = pg_collation.oid
WHERE
    pg_class.relnamespace = current_schema()::regnamespace AND pg_class.relkind = 'r' AND pg_attribute.attnum > 0
    AND NOT pg_attribute.attisdropped
UNION ALL
SELECT
    'constraint' AS kind,
    pg_class.relname AS of_table,
    pg_constraint.conname AS name,
    pg_get_constraintdef(pg_constraint.oid) AS definition
FROM pg_constraint
INNER JOIN pg_class ON pg_constraint.conrelid = pg_class.oid
WHERE pg_class.relnamespace = current_schema()::regnamespace
UNION ALL
SELECT
    'index' AS kind,
    tablename AS of_table,
    indexname AS name,
    replace(indexdef, schemaname || '.', '') AS definition
FROM pg_indexes
WHERE schemaname = current_schema()
UNION ALL
SELECT
    'trigger' AS kind,
    pg_class.relname AS of_table,
    pg_trigger.tgname AS name,
    replace(pg_get_triggerdef(pg_trigger.oid), current_schema() || '.', '') AS definition
FROM pg_trigger
INNER JOIN pg_class ON pg_trigger.tgrelid = pg_class.oid
WHERE pg_class.relnamespace = current_schema()::regnamespace AND NOT pg_trigger.tgisinternal
UNION ALL
SELECT
    'view' AS kind,
    '' AS of_table,
    viewname AS name,
    definition
FROM pg_views
WHERE schemaname = current_schema()
UNION ALL
SELECT
    'function' AS kind,
    '' AS of_table,
    proname AS name,
    prosrc AS definition
FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace
UNION ALL
SELECT
    'sequence' AS kind,
    '' AS of_table,
    sequencename AS name,
    cast(data_type AS TEXT) AS definition
FROM pg_sequences
WHERE schemaname = current_schema();
