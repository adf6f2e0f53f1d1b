"""What an operator does to single workflows at night."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from wfe_sql.arguments import encode_ms_bound
from wfe_sql.cli.output import print_json, say
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, Name, SqlDir, Url, Yes, confirm, find_workflow, open_store, run
from wfe_sql.errors import WfeError, WorkflowConflictError
from wfe_sql.models import Event, WorkflowInstance, WorkflowStatus, utc_now

_TRIES = 20
"""How often a change is tried again because somebody else changed the workflow meanwhile."""


@app.command()
def suspend(url: Url, workflow: Name, yes: Yes = False, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Keep a Runnable workflow from being polled.

    It stays suspended until it is resumed. Its steps and its due time do not change. A step that a host is running
    runs to its end. A host with on_conflict="overwrite" then overwrites the change, so check again.

    Example: wfe-sql suspend wfe.db order-3
    """

    def change(instance: WorkflowInstance) -> None:
        instance.status = WorkflowStatus.Suspended

    run(_change(url, sql_dir, workflow, change, {WorkflowStatus.Runnable}, "suspend", yes=yes, as_json=as_json))


@app.command()
def resume(url: Url, workflow: Name, yes: Yes = False, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Make a Suspended workflow Runnable again.

    Its due time does not change; if it has none, it is due now, so that a host picks it up.

    Example: wfe-sql resume wfe.db order-3
    """

    def change(instance: WorkflowInstance) -> None:
        instance.status = WorkflowStatus.Runnable
        if instance.next_execution is None:
            instance.next_execution = encode_ms_bound("now", utc_now())

    run(_change(url, sql_dir, workflow, change, {WorkflowStatus.Suspended}, "resume", yes=yes, as_json=as_json))


@app.command()
def terminate(url: Url, workflow: Name, yes: Yes = False, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """End a workflow for good.

    Its complete_time is set to now. Its steps and its due time do not change. A step that a host is running runs to its
    end. A host with on_conflict="overwrite" then overwrites the change, so check again.

    Example: wfe-sql terminate wfe.db order-3 --yes
    """

    def change(instance: WorkflowInstance) -> None:
        instance.status = WorkflowStatus.Terminated
        instance.complete_time = utc_now()

    ends = {WorkflowStatus.Runnable, WorkflowStatus.Suspended}
    run(_change(url, sql_dir, workflow, change, ends, "terminate", yes=yes, as_json=as_json))


async def _change(
    url: str,
    sql_dir: Path | None,
    workflow: str,
    change: Callable[[WorkflowInstance], None],
    allowed: set[WorkflowStatus],
    verb: str,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Load a workflow, ask, change it and store it; try again, without asking, if it was changed meanwhile.

    The reference's host does the same (wfe 1.11.4), and leaves the due time alone too.
    """
    async with open_store(url, sql_dir, mode="rw") as provider:
        instance = await find_workflow(provider, workflow)
        for attempt in range(_TRIES):
            if instance.status not in allowed:
                words = " or ".join(sorted(allowed))
                raise WfeError(f"{instance.name} is {instance.status}; to {verb} it, it must be {words}")
            if attempt == 0:
                confirm(f"{verb.capitalize()} {instance.name}, which is {instance.status}?", yes=yes)
            before = instance.status
            change(instance)
            try:
                await provider.persist_workflow(instance)
            except WorkflowConflictError:
                instance = await provider.get_workflow_instance(instance.id)
                continue
            _print_change(instance, before, as_json=as_json)
            return
    what = f"somebody else changed {workflow} {_TRIES} times in a row; try again"
    raise WorkflowConflictError(what, workflow_id=instance.id)


def _print_change(instance: WorkflowInstance, before: WorkflowStatus, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": instance.id, "name": instance.name, "status": instance.status, "before": before})
    else:
        say(f"{instance.name} is {instance.status}; it was {before}")


@app.command()
def publish(
    url: Url,
    event: Annotated[str, typer.Argument(help="The event's name.")],
    key: Annotated[str, typer.Argument(help="The event's key.")],
    data: Annotated[str, typer.Option(help="The event's data, as JSON.")] = "null",
    yes: Yes = False,
    as_json: AsJson = False,
    sql_dir: SqlDir = None,
) -> None:
    """Publish an event to the workflows that wait for it.

    The event is stored, and hosts that poll hand it to the workflows.

    Example: wfe-sql publish wfe.db shipped order-3 --data '{"parcel": 7}'
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="rw") as provider:
            confirm(f"Publish {event} {key} with {data}?", yes=yes)
            id_ = await provider.create_event(Event(event_name=event, event_key=key, event_data=_parse_json(data)))
        if as_json:
            print_json({"id": id_})
        else:
            say(f"event {id_} is stored")

    run(command())


def _parse_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"--data is not valid JSON: {error}") from error
