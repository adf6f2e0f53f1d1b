"""`python -m wfe_sql.cli` is `wfe-sql`."""

from wfe_sql.cli import main

main()
