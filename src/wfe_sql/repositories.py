"""The Protocols that a host types against; `PersistenceProvider` is all of them together.

Every method may also raise `ProviderClosedError`, and `StoreError` or one of its kinds when the store as a whole cannot
do what was asked. When a write returns, it is stored completely and durably; if it raises, nothing is stored. Lists
have a documented order. Times must be aware; a naive one is a `SerializationError`. Durations are `timedelta`s; a
number, or an argument of any other wrong type, is a `SerializationError` too. If something is unknown, in use or cannot
be stored, the message and the attributes of the error name it: its id or name, or the field or argument.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from wfe_sql.engines.alarms import WakesOn
from wfe_sql.models import (
    Claim,
    Event,
    EventSubscription,
    ExecutionError,
    Held,
    Ran,
    ScheduledCommand,
    Subscribed,
    WorkflowInstance,
)

Change = Callable[[WorkflowInstance], Sequence[EventSubscription] | None]
"""What `change` calls: it changes a workflow in place, and may return new subscriptions to store with it."""

InstanceHandler = Callable[[Claim, WorkflowInstance], Awaitable[None]]
"""What `process_instances` calls with each workflow that is due."""

CommandHandler = Callable[[ScheduledCommand], Awaitable[None]]
"""What `process_commands` calls with each command that is due."""


class WorkflowRepository(Protocol):
    """Workflow instances with their execution pointers.

    Example:
        steps = [ExecutionPointer(step_id=0, step_name="reserve")]
        order = WorkflowInstance(workflow_definition_id="order", version=1, data={}, execution_pointers=steps)
        await provider.create_new_workflow(order)
        order.data["paid"] = True
        order.status = WorkflowStatus.Complete
        await provider.persist_workflow(order)
        assert await provider.get_workflow_instance(order.id) == order
    """

    async def create_new_workflow(self, instance: WorkflowInstance) -> str:
        """Store a new workflow and return its id. A name of "" is stored as the id.

        Raises:
            WorkflowAlreadyExistsError: Its id or name is already in use; the message says which.
            SerializationError: A value cannot be stored; the message names the field.
            StoreError: One of its pointers has the id of another workflow's pointer.
        """
        ...

    async def persist_workflow(self, instance: WorkflowInstance, *, claim: Claim | None = None) -> None:
        """Replace the stored workflow by this instance, with all its pointers.

        A name of "" keeps the stored name; `create_time` never changes. Changes after the call are not stored. An
        instance that was neither loaded nor stored before overwrites the stored workflow, whatever its state.

        Args:
            instance: The workflow.
            claim: Write only if this claim still holds the workflow.

        Raises:
            WorkflowNotFoundError: No workflow has this id.
            ClaimLostError: The claim no longer holds the workflow; nothing was written.
            WorkflowConflictError: The workflow was changed, or deleted and created again, since this instance was
                loaded or stored; nothing was written. A provider with `on_conflict="overwrite"` overwrites it instead.
            WorkflowAlreadyExistsError: Another workflow has its name.
            SerializationError: A value cannot be stored, and the message names the field; or the claim is for another
                workflow.
            StoreError: One of its pointers has the id of another workflow's pointer.
        """
        ...

    async def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription], *, claim: Claim | None = None
    ) -> None:
        """Store the workflow as `persist_workflow` does and its new subscriptions, all or nothing.

        Raises:
            WorkflowNotFoundError: No workflow has this id.
            ClaimLostError: The claim no longer holds the workflow; nothing was written.
            WorkflowConflictError: As for `persist_workflow`; nothing was written.
            WorkflowAlreadyExistsError: Another workflow has its name.
            SerializationError: A value cannot be stored; the message names the field.
            StoreError: The id of a pointer or a subscription is already in use.
        """
        ...

    async def get_runnable_instances(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        """Return the ids of Runnable workflows due at `as_at` (cut to the millisecond), by (next_execution, id).

        Raises:
            SerializationError: `as_at` is naive, or `limit` is below 1.
        """
        ...

    async def claim_runnable_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        """Claim Runnable workflows that are due at `as_at` and not claimed, and return the claims.

        In the order of `get_runnable_instances`. A claim holds until it is released, or until its lease has ended by
        the provider's clock and somebody else takes the workflow. A cancelled call releases what it claimed.

        Args:
            as_at: Workflows with `next_execution` at or before this, cut to the millisecond, are due.
            worker_id: The worker's name, for people.
            lease: How long they are claimed.
            limit: The most claims.

        Raises:
            SerializationError: `as_at` is naive, `worker_id` is empty, `limit` or `lease` is not above zero, or `lease`
                ends after the year 9999.
        """
        ...

    async def get_workflow_instance(self, id: str) -> WorkflowInstance:
        """Return the workflow with this id, with its pointers in the order in which they were stored.

        Raises:
            WorkflowNotFoundError: No workflow has this id.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def get_workflow_instance_by_name(self, name: str) -> WorkflowInstance:
        """Return the workflow with this name.

        Raises:
            WorkflowNotFoundError: No workflow has this name.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def get_workflow_instances(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        """Return the workflows with these ids, in the order of `ids`; unknown ids are left out.

        Raises:
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def next_definition_sequence(self, definition_id: str) -> int:
        """Return the next number of this definition: 1, 2, 3, ... with no number given twice.

        Raises:
            SerializationError: `definition_id` is empty.
        """
        ...


class SubscriptionRepository(Protocol):
    """Subscriptions to events, and the tokens with which an external worker holds one.

    A waiting step stores a subscription with its workflow, from `subscribe_as_of` on: events with an earlier
    `event_time` are not for it. An event is then handed to each subscription of its name and key:

        for waiting in await provider.get_subscriptions(event.event_name, event.event_key, event.event_time):
            ...  # store what the event means for waiting.workflow_id
            await provider.terminate_subscription(waiting.id)

    A token is for work that an external worker does: the worker that sets it holds the subscription until the token
    expires, and publishes its result as an event.

        first = await provider.get_first_open_subscription("assess", "claim-7", now)
        if first and await provider.set_subscription_token(first.id, token, "worker-1", now + timedelta(minutes=5)):
            ...  # ours until then; set it again with the same token to hold it for longer
            await provider.clear_subscription_token(first.id, token)
    """

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        """Store a new subscription and return its id.

        Raises:
            SerializationError: A value cannot be stored; the message names the field.
            StoreError: Its id is already in use.
        """
        ...

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[EventSubscription]:
        """Return the subscriptions that are not terminated, with `subscribe_as_of <= as_of`.

        In the order of (subscribe_as_of, id).

        Raises:
            SerializationError: `as_of` is naive.
            CorruptRowError: A stored row cannot be read.
        """
        ...

    async def terminate_subscription(self, id: str) -> None:
        """End the subscription: it receives no more events. Ending it twice is fine.

        Raises:
            SubscriptionNotFoundError: No subscription has this id.
        """
        ...

    async def get_subscription(self, id: str) -> EventSubscription:
        """Return the subscription with this id, terminated or not.

        Raises:
            SubscriptionNotFoundError: No subscription has this id.
            CorruptRowError: The stored row cannot be read.
        """
        ...

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime
    ) -> EventSubscription | None:
        """Return the first subscription, by (subscribe_as_of, id), that nobody holds, or None.

        It is not terminated, `subscribe_as_of <= as_of`, and it has no token or an expired one.

        Raises:
            SerializationError: `as_of` is naive.
            CorruptRowError: The stored row cannot be read.
        """
        ...

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        """Acquire the subscription, or extend your hold on it, until `expiry` (compare-and-swap).

        Returns True if it was free, its token had expired, or it already has this token; False if another token holds
        it or it is terminated.

        Raises:
            SubscriptionNotFoundError: No subscription has this id.
            SerializationError: `token` or `worker_id` is empty, or `expiry` is naive.
        """
        ...

    async def clear_subscription_token(self, id: str, token: str) -> None:
        """Release the subscription.

        Raises:
            SubscriptionNotFoundError: No subscription has this id.
            SubscriptionTokenError: It does not hold this token; nothing changes.
        """
        ...


class EventRepository(Protocol):
    """External events.

    Example:
        event = Event(event_name="paid", event_key="order-3", event_data={"amount": 12})
        await provider.create_event(event)
        for claim in await provider.claim_runnable_events(now, "host-1", lease=lease, limit=10):
            ...  # hand it to its subscriptions
            await provider.mark_event_processed(claim.id, claim=claim)
    """

    async def create_event(self, event: Event) -> str:
        """Store a new event and return its id.

        Raises:
            EventAlreadyExistsError: Its id is already in use.
            SerializationError: A value cannot be stored; the message names the field.
        """
        ...

    async def get_event(self, id: str) -> Event:
        """Return the event with this id.

        Raises:
            EventNotFoundError: No event has this id.
            CorruptRowError: The stored row cannot be read.
        """
        ...

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        """Return the ids of unprocessed events with `event_time <= as_at`, by (event_time, id).

        Raises:
            SerializationError: `as_at` is naive, or `limit` is below 1.
        """
        ...

    async def claim_runnable_events(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        """Claim unprocessed events with `event_time <= as_at` that are not claimed, and return the claims.

        In the order of `get_runnable_events`; otherwise like `claim_runnable_instances`. `renew_claim` and
        `release_claim` accept these claims too.

        Raises:
            SerializationError: `as_at` is naive, `worker_id` is empty, `limit` or `lease` is not above zero, or `lease`
                ends after the year 9999.
        """
        ...

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[str]:
        """Return the ids of events with this name and key and `event_time <= as_of`, by (event_time, id).

        Raises:
            SerializationError: `as_of` is naive, or `limit` is below 1.
        """
        ...

    async def mark_event_processed(self, id: str, *, claim: Claim | None = None) -> None:
        """Remove the event from what `get_runnable_events` returns; with a claim, only if it still holds the event.

        Raises:
            EventNotFoundError: No event has this id.
            ClaimLostError: The claim no longer holds the event; nothing was changed.
            SerializationError: The claim is for another event.
        """
        ...

    async def mark_event_unprocessed(self, id: str) -> None:
        """Return the event to what `get_runnable_events` returns.

        Raises:
            EventNotFoundError: No event has this id.
        """
        ...


class ScheduledCommandRepository(Protocol):
    """Commands to run at a given time, at least once.

    `next_execution` of a workflow already says when the engine looks at it next. A command is for anything else that
    must happen at a certain time: waking a workflow, or handing on an event, from outside its own steps, without
    loading and storing it.

        await provider.schedule_command(ScheduledCommand.process_workflow(order.id, epoch_ms(tomorrow)))
        await provider.process_commands(now, handle)  # handle: an async function of one ScheduledCommand
    """

    @property
    def supports_scheduled_commands(self) -> bool:
        """Whether this backend stores scheduled commands."""
        ...

    async def schedule_command(self, command: ScheduledCommand) -> None:
        """Store a command; if this (command_name, data) is already scheduled, the earlier `execute_time` wins.

        A command that is being handled now runs again afterwards, at the time given here.

        Raises:
            SerializationError: A value cannot be stored; the message names the field.
        """
        ...

    async def process_commands(
        self,
        as_of: datetime,
        handler: CommandHandler,
        *,
        limit: int | None = None,
        lease: timedelta = timedelta(minutes=1),
    ) -> None:
        """Hand each command that is due at `as_of` to `handler`, one after the other, by (execute_time, id).

        At-least-once: a command is claimed with a lease, so that no other host handles it meanwhile, and is deleted
        when its handler returns. If its handler raises, or its host dies (after the lease), it is due again. The others
        still run. While a handler runs, the lease is renewed at every third of it. No handler begins on a command whose
        lease may have ended, for example because this host was suspended: commands that another host took are left to
        it, with a warning in the log `wfe_sql`. A cancelled call releases the commands that it has not handled.

        Args:
            as_of: Commands with `execute_time` at or before this are due.
            handler: An async callable that takes one `ScheduledCommand`.
            limit: Handle at most this many.
            lease: How long this call claims a command, by the provider's clock.

        Raises:
            ExceptionGroup: The errors of the handlers, after all have run.
            SerializationError: `as_of` is naive, `limit` is below 1, `lease` is not above zero or ends after the year
                9999, or `handler` cannot be called.
            CorruptRowError: A stored row cannot be read.
            StoreError: Also if a lease has ended and cannot be renewed; commands that were not handled are due again.
        """
        ...


class ClaimRepository(Protocol):
    """Renewing and releasing claims on workflows and events.

    `claim_runnable_instances` and `claim_runnable_events` return claims, and each write with a claim checks it:

        for claim in await provider.claim_runnable_instances(now, "host-1", lease=lease, limit=10):
            order = await provider.get_workflow_instance(claim.id)
            ...  # run what is due; renew_claim when it takes longer than a third of the lease
            await provider.persist_workflow(order, claim=claim)  # ClaimLostError: too late, nothing was written
            await provider.release_claim(claim)
    """

    async def renew_claim(self, claim: Claim, lease: timedelta) -> Claim:
        """Keep a workflow or event claimed until `lease` from now, by the provider's clock; return the renewed claim.

        An expired claim is renewed too, unless somebody else took the workflow or event.

        Raises:
            ClaimLostError: The claim no longer holds it.
            SerializationError: `lease` is not above zero or ends after the year 9999, or `claim` is not a `Claim`.
        """
        ...

    async def release_claim(self, claim: Claim) -> None:
        """Release a workflow or event, so that anybody can claim it at once.

        Raises:
            ClaimLostError: The claim no longer holds it; nothing was changed.
        """
        ...


class ExecutionErrorRepository(Protocol):
    """Errors of steps, for people to read.

    Example:
        error = ExecutionError(workflow_id=order.id, execution_pointer_id=step.id, message="card declined")
        await provider.persist_errors([error])
        for error in await provider.get_execution_errors(order.id):
            print(error.error_time, error.message)
    """

    async def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        """Store errors, all or nothing.

        Raises:
            SerializationError: A value cannot be stored; the message names the field.
        """
        ...

    async def get_execution_errors(
        self, workflow_id: str | None = None, *, limit: int | None = None
    ) -> list[ExecutionError]:
        """Return stored errors, of one workflow or of all, in the order in which they were stored.

        Raises:
            SerializationError: `limit` is below 1.
            CorruptRowError: A stored row cannot be read.
        """
        ...


class UnitOfWork(Protocol):
    """Operations that are stored in one commit, all or nothing; create one with `UnitRepository.unit`.

    The methods are those of the repositories, with the same arguments except `claim`, which belongs to the whole unit.
    They are not awaited. Nothing is sent before the `async with` block ends, and nothing at all if the block raises. A
    unit is for one block, or one `run_in`: it cannot be used again.

    Example:
        async with provider.unit(claim, release=True) as unit:
            unit.persist_workflow(order)
            unit.create_event(event)

    An object is stored in the state it has when its operation is added. Instances remember that they were stored once
    the unit is stored, even if the caller is cancelled meanwhile. The unit runs its operations in its own order, by
    kind and id, and then the application's queries, in the order in which they were added.

    Every method raises `SerializationError` if a value cannot be stored, and `StoreError` if the unit is over or
    already has an operation on the same workflow, event, subscription or command. The end of the block raises the
    errors of the single calls, with a note (`__notes__`) that names the operation, and `ClaimLostError` if the unit's
    claim is lost; nothing of the unit was written then.
    """

    async def __aenter__(self) -> Self:
        """Return the unit.

        Raises:
            StoreError: It was already used.
        """
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Store everything, or nothing if the block raised. An empty unit with a claim checks the claim."""
        ...

    def create_new_workflow(self, instance: WorkflowInstance) -> None:
        """Add what `WorkflowRepository.create_new_workflow` does."""
        ...

    def persist_workflow(self, instance: WorkflowInstance) -> None:
        """Add what `WorkflowRepository.persist_workflow` does."""
        ...

    def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        """Add what `WorkflowRepository.persist_workflow_with_subscriptions` does."""
        ...

    def create_event_subscription(self, subscription: EventSubscription) -> None:
        """Add what `SubscriptionRepository.create_event_subscription` does."""
        ...

    def subscribe(self, subscription: EventSubscription) -> Subscribed:
        """Add what `create_event_subscription` does; the returned object lists the events stored before it.

        They are read once the unit is stored, so that none is missed: whoever handles an event that is stored later
        finds the subscription. If that read fails, the block raises although the unit is stored.
        """
        ...

    def terminate_subscription(self, id: str) -> None:
        """Add what `SubscriptionRepository.terminate_subscription` does."""
        ...

    def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> None:
        """Add what `SubscriptionRepository.set_subscription_token` does.

        If that would return False, the unit fails with `SubscriptionTokenError`.
        """
        ...

    def clear_subscription_token(self, id: str, token: str) -> None:
        """Add what `SubscriptionRepository.clear_subscription_token` does."""
        ...

    def create_event(self, event: Event) -> None:
        """Add what `EventRepository.create_event` does."""
        ...

    def mark_event_processed(self, id: str) -> None:
        """Add what `EventRepository.mark_event_processed` does."""
        ...

    def mark_event_unprocessed(self, id: str) -> None:
        """Add what `EventRepository.mark_event_unprocessed` does."""
        ...

    def schedule_command(self, command: ScheduledCommand) -> None:
        """Add what `ScheduledCommandRepository.schedule_command` does."""
        ...

    def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        """Add what `ExecutionErrorRepository.persist_errors` does."""
        ...

    def run(self, name: str, /, **params: Any) -> Ran:
        """Add a query of the application; the returned object gets its result.

        Args:
            name: The query's name.
            params: Its parameters: None, a bool, int, float, str, bytes, or an aware `datetime`, which becomes text
                in the form of stored times. The caller encodes JSON.

        Raises:
            QueryFileError: No query has this name.
            SerializationError: A parameter is missing or unknown, or a value cannot be stored.
        """
        ...

    async def run_in(self, connection: object) -> None:
        """Add the unit to the open transaction of the caller's connection; the caller commits or rolls back.

        This replaces the `async with` block. The unit runs in a savepoint: if it fails, nothing of it is left, and the
        caller may continue; a caller that is cancelled meanwhile should roll back. The connection keeps its settings.

        Instances cannot learn whether the caller commits, so they do not remember the unit. Load them again after the
        commit: persisting one without that is a `WorkflowConflictError`, or with "overwrite" writes it completely; so
        two units in one transaction cannot persist the same instance. What the unit changes stays locked until the
        transaction ends: its rows, or on SQLite the file for all writers.

        Args:
            connection: A connection to the store's database, in a transaction, or not in autocommit mode, so that the
                driver begins one. It must be asynchronous: aiosqlite's `Connection`; psycopg's `AsyncConnection`;
                asyncpg's `Connection`; SQLAlchemy's `AsyncConnection` or `AsyncSession` over these. On PostgreSQL its
                isolation level should be read committed; with a stricter one, a row that somebody else has changed
                meanwhile is a `StoreBusyError`.

        Raises:
            StoreError: The connection is closed, of another kind, to another database, not in a transaction, or in a
                failed one; or the store is in memory. Nothing was written.
            StoreBusyError: Somebody else holds the file, or a row, for longer than the connection waits.
            StoreReadOnlyError: The provider, or the transaction, is read-only.
            ProviderClosedError: The provider is not open.
            WfeError: As for the end of the block. Nothing was written.
        """
        ...

    def run_in_sync(self, connection: object) -> None:
        """Like `run_in`, on a synchronous connection and any thread, which blocks.

        Args:
            connection: sqlite3's or psycopg's `Connection`; SQLAlchemy's `Connection` or `Session` over these.
        """
        ...


class UnitRepository(Protocol):
    """Units of work, and reads with the application's queries.

    Example:
        async with provider.unit(claim, release=True) as unit:
            unit.persist_workflow(order)
            unit.schedule_command(command)
            unit.run("insert_invoice", order_id=order.id, amount=12)  # a query in the folder app_sql
        rows = await provider.fetch("unpaid_invoices", before=now)
    """

    def unit(self, claim: Claim | None = None, *, release: bool = False) -> UnitOfWork:
        """Return a new unit of work, for `async with`.

        Args:
            claim: Store the unit only if this claim still holds, even if the unit does not touch what it claims.
            release: Release the claim in the same commit.

        Raises:
            SerializationError: `claim` is not a `Claim`, or `release` is set without one.
        """
        ...

    async def fetch(self, name: str, /, **params: Any) -> list[dict[str, Any]]:
        """Read with a query of the application, on one snapshot, and return its rows as dicts by column.

        Args:
            name: The query's name.
            params: As for `UnitOfWork.run`.

        Raises:
            QueryFileError: No query has this name, or it does not return rows.
            SerializationError: A parameter is missing or unknown, or a value cannot be stored.
            StoreReadOnlyError: It writes.
        """
        ...


class HostingRepository(Protocol):
    """What every host does, in one call each."""

    def hold(self, claim: Claim, lease: timedelta) -> AbstractAsyncContextManager[Held]:
        """Return a context manager that holds a claim while its block runs, and releases it at the end.

        The claim is renewed after every third of the lease, and before the block begins if less than a third is left,
        for example because this host was suspended. If a renewal fails, but the claim is not lost, it is retried until
        the lease has ended by the provider's clock. If the claim is lost, the block is cancelled and the caller gets
        `ClaimLostError`; cancelling the caller works as usual. Within the block, release the claim only with a unit
        that has `release=True`: it is then no longer renewed, and not released again.

        Example:
            async with provider.hold(claim, lease) as held:
                await work(order)
                async with provider.unit(held.claim, release=True) as unit:
                    unit.persist_workflow(order)

        Args:
            claim: The claim to hold.
            lease: How long it is claimed from each renewal on.

        Raises:
            ClaimLostError: The claim is no longer held.
            SerializationError: `lease` is not above zero or ends after the year 9999, or `claim` is not a `Claim`.
        """
        ...

    async def change(self, id: str, function: Change, claim: Claim | None = None) -> WorkflowInstance:
        """Load a workflow, change it and store it; start over if somebody else stored it in between.

        So nothing is overwritten, even with `on_conflict="overwrite"`, and `function` may be called several times.

        Example:
            def pay(order: WorkflowInstance) -> None:
                order.data["paid"] = True

            order = await provider.change(id, pay)

        Args:
            id: The workflow's id.
            function: A plain function, not async, that changes the instance in place. It may return subscriptions,
                which are stored with the workflow. If it raises, nothing is stored, and its error is raised here.
            claim: Store it only if this claim still holds the workflow.

        Returns:
            The instance as stored.

        Raises:
            WorkflowNotFoundError: No workflow has this id.
            ClaimLostError: The claim no longer holds the workflow; nothing was stored.
            SerializationError: A value cannot be stored, `function` is not a plain function or changes the id, or the
                claim is not a `Claim`.
            CorruptRowError: The stored row cannot be read.
        """
        ...

    async def create_numbered_workflow(self, instance: WorkflowInstance) -> str:
        """Store a new workflow under the next number of its definition, and return its name, such as "order-3".

        It shares its numbers with `next_definition_sequence`, and skips a number if a workflow already has that name.
        The instance's `name` is set.

        Example:
            name = await provider.create_numbered_workflow(order)

        Raises:
            WorkflowAlreadyExistsError: Its id is in use.
            SerializationError: A value cannot be stored; the message names the field.
            StoreError: One of its pointers has the id of another workflow's pointer, or no number is left.
        """
        ...

    async def claim_and_load_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[tuple[Claim, WorkflowInstance]]:
        """Claim workflows as `claim_runnable_instances` does, and return the claims with the workflows.

        A workflow that cannot be read does not block the others: it is left out and stays claimed until its lease ends,
        and an error that names it is logged to `wfe_sql`.

        Example:
            for claim, order in await provider.claim_and_load_instances(now, worker, lease=lease, limit=10):
                ...

        Raises:
            SerializationError: `as_at` is naive, `worker_id` is empty, `limit` or `lease` is not above zero, or `lease`
                ends after the year 9999.
        """
        ...

    async def process_instances(
        self, worker_id: str, handler: InstanceHandler, *, lease: timedelta, max_tasks: int
    ) -> None:
        """Call a handler with each workflow that is due and its claim, until cancelled; meanwhile wait for work.

        Each call is a task of its own and holds the claim, as `hold` does; its end gives back what no unit released.
        A handler that raises stops no others: it is logged, and its workflow stays held for a second before it is due
        again.
        When this ends, by being cancelled or an error of the store, the calls are cancelled, and end before it.

        Example:
            async def run_step(claim: Claim, order: WorkflowInstance) -> None:
                order.next_execution = None
                async with provider.unit(claim, release=True) as unit:
                    unit.persist_workflow(order)

            await provider.process_instances("host-1", run_step, lease=timedelta(seconds=30), max_tasks=100)

        Args:
            worker_id: Who holds them, for people.
            handler: An async callable that takes a claim and its workflow. A lost claim cancels it.
            lease: Until when, from each renewal.
            max_tasks: The most calls at the same time.

        Raises:
            SerializationError: `worker_id` is empty, `lease` or `max_tasks` is not above zero, `lease` ends after the
                year 9999, or `handler` is not callable.
        """
        ...


class WaitingRepository(Protocol):
    """Waiting for work.

    A host waits between two polls:

        while True:
            await provider.wait_for_work()
            for claim in await provider.claim_runnable_events(utc_now(), "host-1", lease=lease, limit=10):
                ...  # do the work, and release the claim
    """

    @property
    def wakes_on(self) -> WakesOn:
        """Whose writes end a wait for work at once.

        Those of every user of the store ("store"), those of this process ("process"), or nobody's ("none"): then a
        wait is only a pause between polls.
        """
        ...

    async def wait_for_work(self, until: datetime | None = None) -> None:
        """Return when a Runnable workflow, an unprocessed event or a command may be due and free.

        It returns at once if something is due now, or as soon as it is stored by a writer that `wakes_on` covers;
        otherwise when the next thing becomes due, or a lease on something due ends, by the provider's clock. It may
        return too early, so poll for work after it, and wait again. Any number of tasks may wait at the same time, and
        all of them are woken; a wait can be cancelled.

        Due work that nobody takes ends the next wait too, but does not make a host spin: while nothing changes, a wait
        then lasts a millisecond, and twice as long each time, up to the poll interval.

        Args:
            until: The latest time to return.

        Raises:
            SerializationError: `until` is naive or not a time.
        """
        ...


class PersistenceProvider(
    ClaimRepository,
    WorkflowRepository,
    SubscriptionRepository,
    EventRepository,
    ScheduledCommandRepository,
    ExecutionErrorRepository,
    UnitRepository,
    HostingRepository,
    WaitingRepository,
    Protocol,
):
    """Everything that a workflow host needs from a store."""

    async def ensure_store_exists(self) -> None:
        """Create missing tables and indexes. Opening a provider already does this."""
        ...
