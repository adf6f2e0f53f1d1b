"""The commands of `wfe-sql`: each module adds its own to `app`, in the order that `--help` lists them."""

from importlib import import_module

from wfe_sql.cli.root import app as app

for _module in ("demo", "upkeep", "lists", "show", "operator", "queries", "plans"):
    import_module(f"wfe_sql.cli.{_module}")
