"""Runs operations on a store and on the model, and compares what both return, raise and store."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

from property.model import Model, RefusedError
from property.operations import Operation
from wfe_sql import (
    Claim,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    ScheduledCommand,
    WorkflowInstance,
)
from wfe_sql.engines import Statement
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import ManualClock

OVERWRITES = 2
"""The host whose provider has `on_conflict="overwrite"`."""

RETURN_CLAIMS = ("claim_runnable_instances", "claim_runnable_events")
RETURN_INSTANCES = ("get_workflow_instance", "get_workflow_instance_by_name", "get_workflow_instances")
MOMENTS = ("as_at", "as_of", "expiry", "since")


@dataclass
class Call:
    """One call with its arguments, and its outcome on the store."""

    method: str
    host: int
    arguments: dict[str, Any]
    outcome: Any = None

    async def run(self, provider: SqlPersistenceProvider) -> None:
        method = getattr(provider, self.method)
        try:
            if self.method.startswith("list_"):
                self.outcome = await _all_pages(method, self.arguments)
            else:
                self.outcome = await method(**self.arguments)
        except Exception as error:
            self.outcome = error

    def agrees(self, model: Model, busy: Sequence[str] = ()) -> bool:
        """Whether the model has the same outcome; it continues from there."""
        hints: dict[str, Any] = {}
        if self.method in RETURN_CLAIMS + RETURN_INSTANCES:
            hints["got"] = None if isinstance(self.outcome, Exception) else self.outcome
        if self.method in RETURN_CLAIMS:
            hints["busy"] = busy
        if self.method.startswith("persist_workflow"):
            hints["overwrite"] = self.host == OVERWRITES
        self.expected: Any = None
        try:
            self.expected = plain(getattr(model, self.method)(**self.arguments, **hints))
        except RefusedError as refused:
            self.expected = refused.errors
            return type(self.outcome) in refused.errors
        return bool(plain(self.outcome) == self.expected)

    def __str__(self) -> str:
        return f"{self.host}.{self.method}({self.arguments}) gave {self.outcome!r}, not {self.expected!r}"


class Run:
    """One run of operations, which starts with an empty store."""

    def __init__(self, providers: Sequence[SqlPersistenceProvider], clock: ManualClock) -> None:
        self.providers = providers
        self.clock = clock
        self.model = Model(clock)
        self.instances: list[WorkflowInstance] = []
        self.claims: list[Claim] = []
        self.count = 0

    async def explore(self, operations: Sequence[Operation]) -> None:
        await empty(self.providers[0])
        for operation in operations:
            await self.do(operation)
        assert await self.dumped() == list(self.rows(self.model))

    async def do(self, operation: Operation) -> None:
        """Run one operation on both, and compare the outcomes."""
        self.count += 1
        match operation.name:
            case "advance":
                self.clock.now += operation.arguments["by"]
            case "gather":
                calls = [call for call in map(self.call, operation.arguments["operations"]) if call]
                await self.gather([call for call in calls if call.host == self.host_of(call, calls)])
            case "process_commands":
                await self.process_commands(operation)
            case _:
                if call := self.call(operation):
                    await call.run(self.provider(call))
                    assert call.agrees(self.model), str(call)
                    self.keep(call)

    async def gather(self, calls: list[Call]) -> None:
        """Make calls at the same time: some order of them must have the same outcome in the model."""
        self.count += max(0, len(calls) - 1)
        await asyncio.gather(*(call.run(self.provider(call)) for call in calls))
        stored = await self.dumped()
        for order in permutations(calls):
            model = self.model.copy()
            if all(call.agrees(model, self.busy(call, calls)) for call in order) and list(self.rows(model)) == stored:
                self.model = model
                break
        else:
            raise AssertionError("no order gives this:\n" + "\n".join(map(str, calls)) + f"\nand then {stored}")
        for call in calls:
            self.keep(call)

    def host_of(self, call: Call, calls: list[Call]) -> int:
        """The host of each instance while calls run at once: hosts do not share objects."""
        instance = call.arguments.get("instance", call)
        return next((other.host for other in calls if other.arguments.get("instance") is instance), call.host)

    def busy(self, call: Call, calls: list[Call]) -> list[str]:
        """The ids that the other calls write: on PostgreSQL, claims skip locked rows."""
        others = [other.arguments for other in calls if other is not call]
        ids = [arguments[name] for arguments in others for name in ("id",) if name in arguments]
        ids += [arguments[name].id for arguments in others for name in ("instance", "claim") if arguments.get(name)]
        return ids + [claim.id for other in calls if other is not call for claim in claims_of(other)]

    async def process_commands(self, operation: Operation) -> None:
        """Process commands; handlers run other operations meanwhile, and the model follows from handler to handler."""
        arguments = self.resolved(operation.arguments)
        script = iter(arguments.pop("handlers"))
        predicted = self.model.process_commands(**arguments)
        failed: bool | None = None  # the first value sent to a new generator must be None
        handled, expected, broken, failures = [], [], list[Exception](), 0

        def predict() -> Any:
            try:
                return predicted.send(failed)  # type: ignore[arg-type]
            except StopIteration:
                return None

        async def handler(command: ScheduledCommand) -> None:
            nonlocal failed, failures
            handled.append(asdict(command))
            expected.append(predict())
            failed, during = next(script, (False, []))
            failures += failed
            try:
                for inner in during:
                    await self.do(inner)
            except Exception as error:
                broken.append(error)
            if failed:
                raise ValueError("the handler failed")

        raised = 0
        try:
            await self.provider(operation).process_commands(handler=handler, **arguments)
        except* ValueError as group:
            raised = len(group.exceptions)
        if broken:
            raise broken[0]
        end = predict()
        assert (handled, end, raised) == (expected, None, failures), f"{operation}"

    def provider(self, of: Call | Operation) -> SqlPersistenceProvider:
        return self.providers[of.host % len(self.providers)]

    def keep(self, call: Call) -> None:
        """Let later operations use what a call created."""
        if call.method in RETURN_INSTANCES and not isinstance(call.outcome, Exception):
            self.instances += call.outcome if isinstance(call.outcome, list) else [call.outcome]
        if call.method == "create_new_workflow":
            self.instances.append(call.arguments["instance"])
        self.claims += claims_of(call)

    def call(self, operation: Operation) -> Call | None:
        """Return the call that an operation means now; None if its objects do not exist yet."""
        arguments = self.resolved(operation.arguments)
        if operation.name == "create_new_workflow":
            self.clock.now += timedelta(microseconds=1)  # so that no two lives of one id begin at the same time
            id_ = arguments.pop("id")
            pointers = [ExecutionPointer(id=f"{id_}{name}", step_id=0) for name in "pq"]
            arguments["instance"] = WorkflowInstance(
                id=id_,
                workflow_definition_id="d",
                version=1,
                data=1,
                create_time=self.clock(),
                execution_pointers=pointers,
            )
        elif "instance" in arguments:
            if not self.instances:
                return None
            arguments["instance"] = self.instances[-1 - arguments["instance"] % len(self.instances)]
        if arguments.get("claim") is not None:
            of = arguments["instance"].id if "instance" in arguments else arguments.get("id")
            claims = [claim for claim in self.claims if claim.id == of] or self.claims
            if not claims:
                return None
            arguments["claim"] = claims[-1 - arguments["claim"] % len(claims)]
        if "changes" in arguments:
            for what, value in arguments.pop("changes"):
                self.change(arguments["instance"], what, value)
        return Call(operation.name, operation.host % len(self.providers), arguments)

    def resolved(self, arguments: dict[str, Any]) -> dict[str, Any]:
        resolved = {
            name: self.clock() + value if name in MOMENTS and value is not None else value
            for name, value in arguments.items()
        }
        if "event" in resolved:
            event = resolved["event"]
            resolved["event"] = Event(event_data=1, **event | {"event_time": self.clock() + event["event_time"]})
        if "subscription" in resolved:
            resolved["subscription"] = self.subscription(resolved["subscription"])
        if "subscriptions" in resolved:
            resolved["subscriptions"] = [self.subscription(fields) for fields in resolved["subscriptions"]]
        if "command" in resolved:
            name, data, moment = resolved["command"]
            resolved["command"] = ScheduledCommand(command_name=name, data=data, execute_time=self.ms(moment))
        if "errors" in resolved:
            resolved["errors"] = [
                ExecutionError(error_time=self.clock(), workflow_id=id_, execution_pointer_id="p", message=message)
                for id_, message in resolved["errors"]
            ]
        return resolved

    def subscription(self, fields: dict[str, Any]) -> EventSubscription:
        moments = {
            "subscribe_as_of": self.clock() + fields["subscribe_as_of"],
            "external_token_expiry": fields["external_token"] and self.clock() + fields["external_token_expiry"],
        }
        return EventSubscription(step_id=0, execution_pointer_id="p", **fields | moments)

    def ms(self, moment: timedelta) -> int:
        return int((self.clock() + moment).timestamp() * 1000)

    def change(self, instance: WorkflowInstance, what: str, value: Any) -> None:
        pointers = instance.execution_pointers
        match what:
            case "add pointer":
                id_ = value if value == "of all" else f"{instance.id}{value}"
                pointers.append(ExecutionPointer(id=id_, step_id=len(pointers)))
            case "drop pointer":
                del pointers[value:]
            case "turn pointers round":
                pointers.reverse()
            case "change pointer":
                number, status, outcome = value
                for pointer in pointers[number : number + 1]:
                    pointer.status, pointer.outcome = status, outcome
                    pointer.sleep_until = self.clock()
            case "next_execution":
                instance.next_execution = None if value is None else self.ms(value)
            case "complete_time":
                instance.complete_time = None if value is None else self.clock() + value
            case _:
                setattr(instance, what, value)

    async def dumped(self) -> list[Any]:
        return [tuple(json.loads(line).values())[::-1] for line in [line async for line in self.providers[0].dump()]]

    def rows(self, model: Model) -> Iterator[Any]:
        """The model's rows as the dump has them."""
        for table, columns in model.dump():
            yield (
                table,
                {name: text(value) if isinstance(value, datetime) else value for name, value in columns.items()},
            )


def claims_of(call: Call) -> list[Claim]:
    return call.outcome if call.method in RETURN_CLAIMS and isinstance(call.outcome, list) else []


def plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [plain(item) for item in value] if isinstance(value, list) else value


def text(time: datetime) -> str:
    """RFC 3339 with the fewest of 0, 3 or 6 decimals that lose nothing."""
    decimals = "microseconds" if time.microsecond % 1000 else "milliseconds" if time.microsecond else "seconds"
    return time.isoformat(timespec=decimals)


async def _all_pages(method: Callable[..., Awaitable[Any]], arguments: dict[str, Any]) -> list[Any]:
    """Return the keys of a list's items, page by page."""
    items: list[Any] = []
    page = await method(**arguments)
    items += page.items
    while page.after is not None:
        page = await method(**arguments, after=page.after)
        items += page.items
    return [getattr(item, name) for item in items for name in ("id", "message", "data") if hasattr(item, name)]


async def open_hosts(
    stack: AsyncExitStack, host: Callable[..., SqlPersistenceProvider], *, count: int = 3
) -> list[SqlPersistenceProvider]:
    """Open the providers of one store, until the stack ends."""
    how = ["overwrite" if number == OVERWRITES else "raise" for number in range(count)]
    return [await stack.enter_async_context(host(on_conflict=on_conflict)) for on_conflict in how]


async def empty(provider: SqlPersistenceProvider) -> None:
    """Delete all rows, as after a failed copy: faster than a new store for each run."""
    await provider._engine.write([Statement("empty_store", {})])
