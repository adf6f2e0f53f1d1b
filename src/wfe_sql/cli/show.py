"""`wfe-sql show`: one workflow, as a picture."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from wfe_sql.cli.output import Output, ago, as_text, moment, one_line, print_json, span, status
from wfe_sql.cli.picture import print_steps
from wfe_sql.cli.root import app
from wfe_sql.cli.store import AsJson, SqlDir, Url, find_workflow, opened, run
from wfe_sql.escaping import visible
from wfe_sql.maintenance.models import SubscriptionSummary
from wfe_sql.models import ExecutionError, WorkflowInstance, WorkflowStatus, utc_now

_SHOWN = 20
"""Errors and subscriptions that are shown; `wfe-sql errors` has all."""


@app.command()
def show(url: Url, workflow: str, as_json: AsJson = False, sql_dir: SqlDir = None) -> None:
    """Show one workflow, by its name or id: its steps as a tree, with the time that each took, errors and waits.

    Example: wfe-sql show wfe.db order-3
    """

    async def command() -> None:
        async with opened(url, sql_dir, mode="ro") as provider:
            instance = await find_workflow(provider, workflow)
            errors = (await provider.list_execution_errors(workflow_id=instance.id, limit=_SHOWN)).items
            subscriptions = await provider.list_event_subscriptions(instance.id, limit=_SHOWN)
        if as_json:
            print_json({"workflow": instance, "errors": errors, "subscriptions": subscriptions})
            return
        _print_workflow(Output(), instance, errors, subscriptions, utc_now())

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
            output.line(f"  {moment(error.error_time)}  {step}: {one_line(error.message)}")
    if subscriptions:
        output.line()
        output.line("waits for events")
        for each in subscriptions:
            output.line(f"  {_subscription(each, now)}")


def _print_head(output: Output, instance: WorkflowInstance, now: datetime) -> None:
    head = Text(visible(instance.name), style="bold").append("  ")
    definition = visible(instance.workflow_definition_id)
    head.append_text(status(instance.status)).append(f"  {definition} version {instance.version}")
    output.line(head)
    facts: dict[str, Any] = {
        "id": "" if instance.id == instance.name else instance.id,
        "root": instance.root_workflow_id,
        "description": instance.description,
        "reference": instance.reference,
        "created": f"{moment(instance.create_time)} UTC, {ago(instance.create_time, now)}",
        "ended": _ended(instance),
        "due": _due(instance, now),
        "data": as_text(instance.data),
    }
    width = output.console.width - 15
    for name, fact in facts.items():
        if fact:
            text = visible(one_line(str(fact)))
            is_long = len(text) > width and not output.is_plain
            output.line(f"  {name:<11}  {f'{text[: width - 2]}..' if is_long else text}")


def _ended(instance: WorkflowInstance) -> str:
    if instance.complete_time is None:
        return ""
    return f"{moment(instance.complete_time)} UTC, after {span(instance.complete_time - instance.create_time)}"


def _due(instance: WorkflowInstance, now: datetime) -> str:
    if instance.status is not WorkflowStatus.Runnable:
        return ""
    if instance.next_execution is None:
        return "when an event comes"
    late = now.timestamp() * 1000 - instance.next_execution
    return "now" if late >= 0 else f"{moment(instance.next_execution)} UTC"


def _subscription(each: SubscriptionSummary, now: datetime) -> str:
    wait = each.subscription
    text = f"{wait.event_name} {wait.event_key}, since {moment(wait.subscribe_as_of)}"
    if each.terminated:
        return f"{text}: ended"
    if wait.external_token is not None:
        return f"{text}: held by {wait.external_worker_id} until {ago(wait.external_token_expiry, now)}"
    return f"{text}: open"
