"""Random operations: the calls of a host, with few ids and few moments, so that they collide.

Moments are relative to the clock, and instances and claims are numbers among those of the run so far; they become
arguments when the operation runs. Hypothesis draws one number for each operation, which determines it: this takes a
tenth of the time of drawing all arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from wfe_sql import CommandName, PointerStatus, WorkflowStatus

LEASES = [timedelta(seconds=10), timedelta(minutes=1)]
BEYOND_LEASES = timedelta(minutes=2)
OPERATIONS_OF_A_RUN = 60
NOTHING = 0
"""The number of no operation, which hypothesis tries first when it shortens a failing run."""

Pick = Callable[[Random], Any]


@dataclass(frozen=True)
class Operation:
    """A call of one of the providers, or what its name says."""

    name: str
    host: int
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.host}.{self.name}({arguments})"


def one(*values: Any) -> Pick:
    return lambda random: random.choice(values)


def one_of(*picks: Pick) -> Pick:
    return lambda random: random.choice(picks)(random)


def both(*picks: Pick) -> Pick:
    return lambda random: tuple(pick(random) for pick in picks)


def fields(picks: dict[str, Pick]) -> Pick:
    return lambda random: {name: pick(random) for name, pick in picks.items()}


def up_to(most: int, pick: Pick, *, least: int = 0) -> Pick:
    return lambda random: [pick(random) for _ in range(random.randint(least, most))]


workflow_ids, event_ids, subscription_ids = one(*"aaabbc"), one(*"eeefg"), one(*"sstuv")
numbers = one(0, 0, 0, 1, 2, 3, 4, 5, 6, 7)
moments = one(*(timedelta(seconds=seconds) for seconds in (0, -5, 5, -60)), timedelta(microseconds=1))
as_at = one(timedelta(0), timedelta(hours=1), timedelta(seconds=-5))
limits, few = one(None, 1, 2, 5), one(5, 1, 2)
leases, workers, tokens = one(*LEASES), one("one", "two"), one("t", "u")
names, keys, flags = one("paid", "paid", "sent"), one("k"), one(True, False)
values = one(1, 2, None, "żółć", {"k": [1.5, None, {}]}, 1, 2, None, float("nan"))
statuses = one(*WorkflowStatus)
ages = one(timedelta(0), timedelta(seconds=10), timedelta(seconds=100))

change = one_of(
    both(one("data"), values),
    both(one("status"), statuses),
    both(one("status"), statuses),
    both(one("next_execution"), one_of(one(None), moments)),
    both(one("name"), one("", "n", "a", "b")),
    both(one("complete_time"), one_of(one(None), moments)),
    both(one("add pointer"), one("p", "r", "s", "of all")),
    both(one("add pointer"), one("p", "r", "s", "of all")),
    both(one("drop pointer"), one(1, 1, 0, 2)),
    both(one("change pointer"), both(numbers, one(*PointerStatus), values)),
    both(one("turn pointers round"), one(None)),
)
changes = up_to(3, change)
subscriptions = fields(
    {
        "id": subscription_ids,
        "workflow_id": workflow_ids,
        "event_name": names,
        "event_key": keys,
        "subscribe_as_of": moments,
        "external_token": one_of(one(None), tokens),
        "external_token_expiry": moments,
    }
)
events = fields({"id": event_ids, "event_name": names, "event_key": keys, "event_time": moments, "is_processed": flags})
commands = one_of(
    both(one(CommandName.ProcessWorkflow), workflow_ids, moments),
    both(one(CommandName.ProcessEvent), event_ids, moments),
)
errors = up_to(2, both(workflow_ids, one("boom", "bang")))
name_key_bound = {"event_name": names, "event_key": keys, "as_of": as_at}
claiming = {"as_at": as_at, "worker_id": workers, "lease": leases, "limit": few}
claims = numbers
maybe_claim = one_of(one(None), claims)
batches = {"batch_size": few, "dry_run": flags}
pages = {"limit": few}

CALLS: dict[str, dict[str, Pick]] = {
    "create_new_workflow": {"id": workflow_ids, "changes": changes},
    "persist_workflow": {"instance": numbers, "changes": changes, "claim": maybe_claim},
    "persist_workflow_with_subscriptions": {
        "instance": numbers,
        "changes": changes,
        "subscriptions": up_to(2, subscriptions),
        "claim": maybe_claim,
    },
    "get_workflow_instance": {"id": workflow_ids},
    "get_workflow_instance_by_name": {"name": one("n", "a", "b", "c")},
    "get_workflow_instances": {"ids": one(["a"], ["b", "a"], ["a", "c", "b"], [])},
    "get_runnable_instances": {"as_at": as_at, "limit": limits},
    "claim_runnable_instances": claiming,
    "claim_runnable_events": claiming,
    "renew_claim": {"claim": claims, "lease": leases},
    "release_claim": {"claim": claims},
    "next_definition_sequence": {"definition_id": one("d", "e")},
    "create_event_subscription": {"subscription": subscriptions},
    "get_subscriptions": {**name_key_bound, "limit": limits},
    "get_first_open_subscription": name_key_bound,
    "get_subscription": {"id": subscription_ids},
    "terminate_subscription": {"id": subscription_ids},
    "set_subscription_token": {"id": subscription_ids, "token": tokens, "worker_id": workers, "expiry": moments},
    "clear_subscription_token": {"id": subscription_ids, "token": tokens},
    "create_event": {"event": events},
    "get_event": {"id": event_ids},
    "get_runnable_events": {"as_at": as_at, "limit": limits},
    "get_events": {**name_key_bound, "limit": limits},
    "mark_event_processed": {"id": event_ids, "claim": maybe_claim},
    "mark_event_unprocessed": {"id": event_ids},
    "schedule_command": {"command": commands},
    "persist_errors": {"errors": errors},
    "get_execution_errors": {"workflow_id": one_of(one(None), workflow_ids), "limit": limits},
    "delete_workflow": {"id": workflow_ids},
}
"""Calls that are one unit of work each, which may run at the same time."""

LONGER_CALLS: dict[str, dict[str, Pick]] = {
    "purge_workflows": {
        "status": one(WorkflowStatus.Complete, WorkflowStatus.Terminated),
        "older_than": ages,
        **batches,
    },
    "purge_events": {"older_than": ages, **batches},
    "list_workflows": {"status": one_of(one(None), statuses), "since": one_of(one(None), moments), **pages},
    "list_events": {"is_processed": one(None, True, False), **pages},
    "list_scheduled_commands": pages,
    "list_execution_errors": {"workflow_id": one_of(one(None), workflow_ids), **pages},
    "advance": {"by": one(timedelta(milliseconds=1), timedelta(seconds=5), *LEASES, BEYOND_LEASES)},
}


def _operation(name: str, arguments: dict[str, Pick]) -> Pick:
    pick = fields(arguments)
    return lambda random: Operation(name, random.randrange(3), pick(random))


def _processing(during: Pick) -> Pick:
    """Process commands with handlers that may fail, each after another operation."""
    handlers = up_to(4, both(flags, up_to(2, during)))
    return _operation("process_commands", {"as_of": as_at, "limit": limits, "lease": leases, "handlers": handlers})


_calls = {name: _operation(name, arguments) for name, arguments in (CALLS | LONGER_CALLS).items()}
_often = (
    *("create_new_workflow", "persist_workflow", "get_workflow_instance", "schedule_command", "advance", "advance"),
    *("create_event", "claim_runnable_events", "claim_runnable_instances", "mark_event_processed"),
    *("create_event_subscription", "create_event_subscription", "get_subscriptions", "set_subscription_token"),
)
_meeting = ("persist_workflow", "next_definition_sequence", "claim_runnable_instances", "set_subscription_token")
_beside = one_of(*(_calls[name] for name in CALLS), *(_calls[name] for name in _meeting * 4))
_gather = _operation("gather", {"operations": up_to(4, _beside, least=2)})
_during = one_of(_calls["schedule_command"], _operation("advance", {"by": one(BEYOND_LEASES)}))
_nested = _processing(one_of(_during, _processing(_during)))
_any = one_of(*_calls.values(), *(_calls[name] for name in _often), *[_gather] * 6, *[_nested] * 4)


def operations_of(numbers: list[int]) -> list[Operation]:
    """Return the operations of some numbers."""
    return [_any(Random(number)) for number in numbers if number != NOTHING]
