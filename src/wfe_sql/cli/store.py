"""What commands share: options and arguments, opening a store, confirming, and reading times."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from wfe_sql.backends import StoreOptions, backend_of, connect
from wfe_sql.errors import SerializationError, WorkflowNotFoundError
from wfe_sql.escaping import visible
from wfe_sql.models import WorkflowInstance, utc_now
from wfe_sql.provider import SqlPersistenceProvider

Url = Annotated[str, typer.Argument(help="The store, such as wfe.db or postgresql://wfe@db/wfe?schema=wfc.")]
SqlDir = Annotated[
    Path | None,
    typer.Option(envvar="WFE_SQL_DIR", show_default=False, help="A folder with your own versions of queries."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Go ahead without asking.")]
After = Annotated[str | None, typer.Option(show_default=False, help="Continue after the page that printed this.")]
Name = Annotated[str, typer.Argument(help="The workflow's name or id.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]

_AGE = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_T = TypeVar("_T")


def run(command: Coroutine[Any, Any, _T]) -> _T:
    """Run a command; a value that the library refuses is a usage error."""
    try:
        return asyncio.run(command)
    except SerializationError as error:
        raise typer.BadParameter(visible(str(error))) from error


@asynccontextmanager
async def open_store(
    url: str, sql_dir: Path | None, *, mode: str, allow_unfinished_copy: bool = False
) -> AsyncIterator[SqlPersistenceProvider]:
    """Open a store: "ro" only to read it, "rw" to change one that exists, "rwc" to create it if it does not.

    A mode in the URL takes precedence. No statement times out, because commands read whole tables and build indexes.
    """
    options: StoreOptions = {"sql_dir": sql_dir, "allow_unfinished_copy": allow_unfinished_copy}
    options |= backend_of(url).patient
    if not url.endswith(":memory:") and not re.search(r"[?&]mode=", url):
        url = f"{url}{'&' if '?' in url else '?'}mode={mode}"
    async with connect(url, **options) as provider:
        yield provider


def hide_password(url: str) -> str:
    """Return a URL without its password, so that it can be printed."""
    without = re.sub(r"(?<=://)([^/:@]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"(?<=[?&])((?:ssl)?password=)[^&]*", r"\1***", without)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal, unless the answer was given by --yes.

    Raises:
        typer.Abort: The answer is not yes.
        typer.BadParameter: There is no terminal to ask on.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(visible(f"{question} There is no terminal to answer on; add --yes to go ahead."))
    typer.echo(visible(f"{question} [y/N]: "), err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


async def find_workflow(provider: SqlPersistenceProvider, name_or_id: str) -> WorkflowInstance:
    """Return the workflow with this name, or else with this id.

    Raises:
        WorkflowNotFoundError: No workflow has this name or id.
    """
    try:
        return await provider.get_workflow_instance_by_name(name_or_id)
    except WorkflowNotFoundError:
        try:
            return await provider.get_workflow_instance(name_or_id)
        except WorkflowNotFoundError:
            raise WorkflowNotFoundError(f"no workflow has the name or id {name_or_id!r}") from None


def parse_age(text: str) -> timedelta:
    """Read a duration such as 30d, 12h, 90m, 45s or 2w.

    Raises:
        typer.BadParameter: It is not a duration.
    """
    age = _AGE.fullmatch(text.strip())
    if age is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write 30d, 12h, 90m, 45s or 2w")
    try:
        return timedelta(**{_UNITS[age[2]]: int(age[1])})
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None


def parse_time(text: str) -> datetime:
    """Read a time such as 2026-05-28T20:26:40Z (UTC if it has no time zone), or how long ago it was, such as 30d.

    Raises:
        typer.BadParameter: It is not a time.
    """
    if _AGE.fullmatch(text.strip()):
        try:
            return utc_now() - parse_age(text)
        except OverflowError:
            raise typer.BadParameter(f"{text!r} is too long ago") from None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is not a time; write 2026-05-28, 2026-05-28T20:26:40Z, or 30d for 30 days ago"
        raise typer.BadParameter(message) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
