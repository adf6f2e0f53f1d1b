"""Units of work on PostgreSQL; needs `wfe-sql[postgres]`."""
