-- What a run has left in a file: the same after the same number of operations, whichever side did them.

-- name: get_journal_mode()$
PRAGMA journal_mode;

-- name: describe_state()
VALUES
('workflows', (SELECT count(*) FROM workflows)),
('complete workflows', (SELECT coalesce(sum(status = 'Complete' AND complete_time IS NOT NULL), 0) FROM workflows)),
('rounds in data', (SELECT coalesce(sum(json_extract(data, '$.round')), 0) FROM workflows)),
('pointers', (SELECT count(*) FROM execution_pointers)),
('retries of pointers', (SELECT coalesce(sum(retry_count), 0) FROM execution_pointers)),
('cursors in pointers', (SELECT coalesce(sum(json_extract(persistence_data, '$.cursor')), 0) FROM execution_pointers)),
('events', (SELECT count(*) FROM events)),
('processed events', (SELECT coalesce(sum(is_processed), 0) FROM events)),
('subscriptions', (SELECT count(*) FROM event_subscriptions)),
('terminated subscriptions', (SELECT coalesce(sum(terminated), 0) FROM event_subscriptions)),
('last number', (SELECT coalesce(sum(next_num), 0) FROM definition_sequences));
