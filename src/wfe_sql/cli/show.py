"""`wfe-sql show`: one workflow, as a picture."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from wfe_sql.cli.output import (
    Output,
    format_age,
    format_duration,
    format_status,
    format_time,
    join_lines,
    print_json,
    to_json,
)
from wfe_sql.cli.picture import print_steps
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, Name, SqlDir, Url, find_workflow, open_store, run
from wfe_sql.escaping import visible
from wfe_sql.maintenance.models import SubscriptionSummary, WorkflowSummary
from wfe_sql.models import ExecutionError, WorkflowInstance, WorkflowStatus, utc_now

_SHOWN = 20
"""How many errors, subscriptions and children are shown."""


@app.command()
def show(url: Url, workflow: Name, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Show one workflow: its steps, errors, waits and children.

    The steps are a tree, each with a bar for the time it took. The last 20 errors and the newest 20 children are shown;
    `wfe-sql errors --workflow` and `wfe-sql workflows --root` list all.

    Example: wfe-sql show wfe.db order-3
    """

    async def command() -> None:
        async with open_store(url, sql_dir, mode="ro") as provider:
            instance = await find_workflow(provider, workflow)
            errors = (await provider.list_execution_errors(workflow_id=instance.id, limit=_SHOWN)).items
            subscriptions = await provider.list_event_subscriptions(instance.id, limit=_SHOWN)
            children = (await provider.list_workflows(root_workflow_id=instance.id, limit=_SHOWN)).items
        if as_json:
            found = {"workflow": instance, "errors": errors, "subscriptions": subscriptions, "children": children}
            print_json(found)
            return
        output, now = Output(), utc_now()
        _print_workflow(output, instance, errors, subscriptions, now)
        _print_children(output, children, now)

    run(command())


def _print_workflow(
    output: Output,
    instance: WorkflowInstance,
    errors: Sequence[ExecutionError],
    subscriptions: Sequence[SubscriptionSummary],
    now: datetime,
) -> None:
    _print_head(output, instance, now)
    output.line()
    if instance.execution_pointers:
        print_steps(output, instance, now)
    else:
        output.line("It has no steps.")
    if errors:
        steps = {pointer.id: pointer.step_name or f"step {pointer.step_id}" for pointer in instance.execution_pointers}
        output.line()
        output.line("errors, the last first" if len(errors) < _SHOWN else f"the last {_SHOWN} errors")
        for error in errors:
            step = steps.get(error.execution_pointer_id, error.execution_pointer_id)
            output.line(f"  {format_time(error.error_time)}  {step}: {join_lines(error.message)}")
    if subscriptions:
        output.line()
        output.line("waits for events")
        for each in subscriptions:
            output.line(f"  {_format_subscription(each, now)}")


def _print_children(output: Output, children: Sequence[WorkflowSummary], now: datetime) -> None:
    if children:
        output.line()
        output.line("children, the newest first" if len(children) < _SHOWN else f"the newest {_SHOWN} children")
    for each in children:
        line = Text("  ").append(visible(each.name)).append("  ").append_text(format_status(each.status))
        output.line(line.append(f"  {visible(each.workflow_definition_id)}, {format_age(each.create_time, now)}"))


def _print_head(output: Output, instance: WorkflowInstance, now: datetime) -> None:
    head = Text(visible(instance.name), style="bold").append("  ")
    definition = visible(instance.workflow_definition_id)
    head.append_text(format_status(instance.status)).append(f"  {definition} version {instance.version}")
    output.line(head)
    facts: dict[str, Any] = {
        "id": "" if instance.id == instance.name else instance.id,
        "root": instance.root_workflow_id,
        "description": instance.description,
        "reference": instance.reference,
        "created": f"{format_time(instance.create_time)} UTC, {format_age(instance.create_time, now)}",
        "ended": _format_end(instance),
        "due": _format_due(instance, now),
        "data": to_json(instance.data),
    }
    width = output.console.width - 15
    for name, fact in facts.items():
        if fact:
            text = visible(join_lines(str(fact)))
            is_long = len(text) > width and not output.is_plain
            output.line(f"  {name:<11}  {f'{text[: width - 2]}..' if is_long else text}")


def _format_end(instance: WorkflowInstance) -> str:
    if instance.complete_time is None:
        return ""
    took = format_duration(instance.complete_time - instance.create_time)
    return f"{format_time(instance.complete_time)} UTC, after {took}"


def _format_due(instance: WorkflowInstance, now: datetime) -> str:
    if instance.status is not WorkflowStatus.Runnable:
        return ""
    if instance.next_execution is None:
        return "when an event arrives"
    late = now.timestamp() * 1000 - instance.next_execution
    return "now" if late >= 0 else f"{format_time(instance.next_execution)} UTC"


def _format_subscription(each: SubscriptionSummary, now: datetime) -> str:
    wait = each.subscription
    text = f"{wait.event_name} {wait.event_key}, since {format_time(wait.subscribe_as_of)}"
    if each.terminated:
        return f"{text}: ended"
    if wait.external_token is not None:
        return f"{text}: held by {wait.external_worker_id} until {format_age(wait.external_token_expiry, now)}"
    return f"{text}: open"
