"""Random operations: the calls of a host, with few ids and few moments, so that they meet.

Moments are given from the clock's time, instances and claims by their number among those that the run has so far; all of
it becomes arguments when the operation's turn comes.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from wfe_sql import CommandName, PointerStatus, WorkflowStatus

WORKFLOW_IDS, EVENT_IDS, SUBSCRIPTION_IDS = ("a", "b", "c"), ("e", "f", "g"), ("s", "t", "u", "v")
LEASES = [timedelta(seconds=10), timedelta(minutes=1)]
BEYOND_LEASES = timedelta(minutes=2)


@dataclass(frozen=True)
class Operation:
    """A call of one of the providers, or what its name says."""

    name: str
    host: int
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.host}.{self.name}({arguments})"


workflow_ids, event_ids, subscription_ids = map(st.sampled_from, (WORKFLOW_IDS, EVENT_IDS, SUBSCRIPTION_IDS))
numbers = st.integers(0, 7)
moments = st.sampled_from([timedelta(seconds=seconds) for seconds in (0, -5, 5, -60)] + [timedelta(microseconds=1)])
as_at = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(seconds=-5)])
limits = st.sampled_from([None, 1, 2, 5])
few = st.sampled_from([5, 1, 2])
leases, workers, tokens = st.sampled_from(LEASES), st.sampled_from(["one", "two"]), st.sampled_from(["t", "u"])
names, keys = st.sampled_from(["paid", "sent"]), st.just("k")
values = st.sampled_from([1, None, "żółć", {"k": [1.5, None, {}]}, float("nan")])
ages = st.sampled_from([timedelta(0), timedelta(seconds=10), timedelta(seconds=100)])

CHANGES: list[SearchStrategy[tuple[str, Any]]] = [
    st.tuples(st.just("data"), values),
    st.tuples(st.just("status"), st.sampled_from(WorkflowStatus)),
    st.tuples(st.just("status"), st.sampled_from(WorkflowStatus)),
    st.tuples(st.just("next_execution"), st.none() | moments),
    st.tuples(st.just("name"), st.sampled_from(["", "n", *WORKFLOW_IDS])),
    st.tuples(st.just("complete_time"), st.none() | moments),
    st.tuples(st.just("add pointer"), st.sampled_from(["p", "q", "r", "of all"])),
    st.tuples(st.just("add pointer"), st.sampled_from(["p", "q", "r", "of all"])),
    st.tuples(st.just("drop pointer"), numbers),
    st.tuples(st.just("change pointer"), st.tuples(numbers, st.sampled_from(PointerStatus), values)),
    st.tuples(st.just("turn pointers round"), st.none()),
]
changes = st.lists(st.one_of(CHANGES), max_size=3)
subscriptions = st.fixed_dictionaries(
    {
        "id": subscription_ids,
        "workflow_id": workflow_ids,
        "event_name": names,
        "event_key": keys,
        "subscribe_as_of": moments,
        "external_token": st.none() | tokens,
        "external_token_expiry": moments,
    }
)
events = st.fixed_dictionaries(
    {"id": event_ids, "event_name": names, "event_key": keys, "event_time": moments, "is_processed": st.booleans()}
)
commands = st.one_of(
    st.tuples(st.just(CommandName.ProcessWorkflow), workflow_ids, moments),
    st.tuples(st.just(CommandName.ProcessEvent), event_ids, moments),
)
errors = st.lists(st.tuples(workflow_ids, st.sampled_from(["boom", "bang"])), max_size=2)
name_key_bound = {"event_name": names, "event_key": keys, "as_of": as_at}
claiming = {"as_at": as_at, "worker_id": workers, "lease": leases, "limit": few}
claims = numbers
maybe_claim = st.none() | claims
batches = {"batch_size": few, "dry_run": st.booleans()}
pages = {"limit": few}

CALLS: dict[str, dict[str, SearchStrategy[Any]]] = {
    "create_new_workflow": {"id": workflow_ids, "changes": changes},
    "persist_workflow": {"instance": numbers, "changes": changes, "claim": maybe_claim},
    "persist_workflow_with_subscriptions": {
        "instance": numbers,
        "changes": changes,
        "subscriptions": st.lists(subscriptions, max_size=2),
        "claim": maybe_claim,
    },
    "get_workflow_instance": {"id": workflow_ids},
    "get_workflow_instance_by_name": {"name": st.sampled_from(["n", *WORKFLOW_IDS])},
    "get_workflow_instances": {"ids": st.lists(workflow_ids, max_size=3, unique=True)},
    "get_runnable_instances": {"as_at": as_at, "limit": limits},
    "claim_runnable_instances": claiming,
    "claim_runnable_events": claiming,
    "renew_claim": {"claim": claims, "lease": leases},
    "release_claim": {"claim": claims},
    "next_definition_sequence": {"definition_id": st.sampled_from(["d", "e"])},
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
    "get_execution_errors": {"workflow_id": st.none() | workflow_ids, "limit": limits},
    "delete_workflow": {"id": workflow_ids},
}
"""Calls that are one unit of work each, which may go side by side."""

LONGER_CALLS: dict[str, dict[str, SearchStrategy[Any]]] = {
    "purge_workflows": {
        "status": st.sampled_from([WorkflowStatus.Complete, WorkflowStatus.Terminated]),
        "older_than": ages,
        **batches,
    },
    "purge_events": {"older_than": ages, **batches},
    "list_workflows": {"status": st.none() | st.sampled_from(WorkflowStatus), "since": st.none() | moments, **pages},
    "list_events": {"is_processed": st.none() | st.booleans(), **pages},
    "list_scheduled_commands": pages,
    "list_execution_errors": {"workflow_id": st.none() | workflow_ids, **pages},
    "advance": {"by": st.sampled_from([timedelta(milliseconds=1), timedelta(seconds=5), *LEASES, BEYOND_LEASES])},
}
OFTEN = ["create_new_workflow", "persist_workflow", "get_workflow_instance", "schedule_command", "advance"]


def _operation(name: str, arguments: dict[str, SearchStrategy[Any]]) -> SearchStrategy[Operation]:
    return st.builds(partial(Operation, name), st.integers(0, 2), st.fixed_dictionaries(arguments))


def _processing(during: SearchStrategy[Operation]) -> SearchStrategy[Operation]:
    """Process commands by handlers that may fail, each after it did something else."""
    handlers = st.lists(st.tuples(st.booleans(), st.lists(during, max_size=2)), max_size=4)
    return _operation("process_commands", {"as_of": as_at, "limit": limits, "lease": leases, "handlers": handlers})


_calls = {name: _operation(name, arguments) for name, arguments in (CALLS | LONGER_CALLS).items()}
_beyond = _operation("advance", {"by": st.just(BEYOND_LEASES)})
_during = st.one_of(_calls["schedule_command"], _beyond)
_gather = _operation("gather", {"operations": st.lists(st.one_of([_calls[name] for name in CALLS]), min_size=2, max_size=4)})
_nothing = st.just(Operation("nothing", 0, {}))

runs = st.lists(
    st.one_of(
        [
            _nothing,  # what hypothesis tries first when it makes a failing run smaller
            *_calls.values(),
            *(_calls[name] for name in OFTEN),
            *(_gather for _ in range(6)),
            *(_processing(st.one_of(_during, _processing(_during))) for _ in range(4)),
        ]
    ),
    min_size=40,
    max_size=40,
)
"""Runs of forty operations."""
