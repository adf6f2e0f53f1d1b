"""The commands of `wfe-sql`: each module adds its own to `app`, in the order in which `--help` lists them."""

from wfe_sql.cli.root import app

from wfe_sql.cli import demo, upkeep, lists, show, operator, queries, plans  # isort: skip

__all__ = ["app", "demo", "lists", "operator", "plans", "queries", "show", "upkeep"]
