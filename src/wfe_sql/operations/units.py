"""Units of work: operations of any kind, and the application's queries, stored together or not at all."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from math import isfinite
from types import TracebackType
from typing import Any, Self

from wfe_sql.arguments import encode_argument, encode_key, listed
from wfe_sql.codecs import INTEGER, TEXT, TIME
from wfe_sql.engines import Engine, Results, Script, Statement, UniqueViolationError, Unit
from wfe_sql.errors import QueryFileError, SerializationError, StoreError, SubscriptionTokenError, WfeError
from wfe_sql.models import (
    Claim,
    ClaimKind,
    Event,
    EventSubscription,
    ExecutionError,
    Held,
    Ran,
    ScheduledCommand,
    Stored,
    Subscribed,
    WorkflowInstance,
)
from wfe_sql.operations.claims import Claims, NothingChangedError, check_claim, check_fields, release_claim
from wfe_sql.operations.commands import schedule_command
from wfe_sql.operations.events import create_event, mark_event_processed, mark_event_unprocessed
from wfe_sql.operations.hosting import HeldClaims
from wfe_sql.operations.persisting import Snapshot, Turn, changes, creation
from wfe_sql.operations.subscriptions import (
    clear_subscription_token,
    create_subscription,
    set_subscription_token,
    terminate_subscription,
)
from wfe_sql.operations.workflows import (
    check_guards,
    find_pointer_of_another_workflow,
    get_guards,
    pointer_of_another_workflow,
)
from wfe_sql.repositories import UnitOfWork, UnitRepository
from wfe_sql.tables import EXECUTION_ERRORS

_EVENTS_BEFORE = 100
"""The most events that `subscribe` returns, the oldest ones."""

_ORDER = (
    *("check_claim", "persist_workflow", "create_event_subscription", "create_new_workflow", "create_event"),
    *("clear_", "set_", "terminate_", "mark_", "persist_errors", "schedule_", "release_claim", "run"),
)
"""Prefixes of operations in the order in which they run; those of one kind run by id, so that units cannot deadlock.
The application's queries are last, in the order in which they were added."""


class _Operation:
    """One operation of a unit.

    Attributes:
        name: Its name, for people.
        order: Where it comes in the unit.
        statements: Its statements.
        at: The index of the first of them in the unit.
    """

    def __init__(self, name: str, order: tuple[int, str], statements: Unit) -> None:
        self.name = name
        self.order = order
        self.statements = statements
        self.at = 0

    def build(self, store_id: str) -> Unit:
        """Return the statements, given what is known to be stored now."""
        return self.statements

    def take(self, result: Any) -> None:
        """Take what the first statement returned."""

    def remember(self, store_id: str) -> None:
        """Make the instance remember what was stored."""


class _Creation(_Operation):
    """The creation of a workflow, which its instance remembers."""

    def __init__(self, name: str, order: tuple[int, str], instance: WorkflowInstance, snapshot: Snapshot) -> None:
        super().__init__(name, order, creation(snapshot, None))
        self.instance = instance
        self.snapshot = snapshot
        self.revision, self.create_time = 0, snapshot.workflow["create_time"]

    def remember(self, store_id: str) -> None:
        self.snapshot.remember(self.instance, store_id, self.create_time, self.revision)


class _Persist(_Creation):
    """A persist, based on what its instance remembers."""

    def __init__(
        self, name: str, order: tuple[int, str], instance: WorkflowInstance, snapshot: Snapshot, more: Unit
    ) -> None:
        _Operation.__init__(self, name, order, ())
        self.instance = instance
        self.snapshot = snapshot
        self.more = more
        self.overwrites = False

    def stored(self, store_id: str) -> Stored | None:
        return None if self.overwrites else self.instance._stored.get(store_id)

    def build(self, store_id: str) -> Unit:
        self.statements = [*changes(self.snapshot, self.stored(store_id), None), *self.more]
        return self.statements

    def take(self, result: Any) -> None:
        self.revision, self.create_time = result


class _Run(_Operation):
    """A query of the application."""

    def __init__(self, name: str, order: tuple[int, str], statement: Statement) -> None:
        super().__init__(name, order, [statement])
        self.ran = Ran()

    def take(self, result: Any) -> None:
        self.ran.value = result


class SqlUnitOfWork(UnitOfWork):
    """A `UnitOfWork` on an engine."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], str],
        claim: Claim | None,
        *,
        release: bool,
        raises_on_conflict: bool,
        held: Held | None,
    ) -> None:
        """Begin empty; see `UnitRepository.unit`."""
        self._engine = engine
        self._now = now
        self._claim = claim
        self._releases = release
        self._is_fenced = False
        self._raises_on_conflict = raises_on_conflict
        self._held = held
        self._operations: list[_Operation] = []
        self._persists: list[_Persist] = []
        self._rows: set[tuple[str, str]] = set()
        self._looks: list[tuple[Subscribed, Statement]] = []
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self._commit()
        else:
            self._is_over = True

    def create_new_workflow(self, instance: WorkflowInstance) -> None:
        snapshot = Snapshot(instance, None)
        id_ = snapshot.workflow["id"]
        self._add(_Creation(*_named("create_new_workflow", id_), instance, snapshot), ("workflow", id_))

    def persist_workflow(self, instance: WorkflowInstance) -> None:
        self._persist("persist_workflow", instance, ())

    def persist_workflow_with_subscriptions(
        self, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]
    ) -> None:
        self._persist(
            "persist_workflow_with_subscriptions",
            instance,
            listed("subscriptions", EventSubscription, subscriptions),
        )

    def _persist(self, name: str, instance: WorkflowInstance, subscriptions: Sequence[EventSubscription]) -> None:
        more = [create_subscription(subscription) for subscription in subscriptions]
        snapshot = Snapshot.of_changes(instance, self._engine.store_id, self._now())
        id_ = snapshot.workflow["id"]
        claim = self._claim_on(ClaimKind.Workflow, id_)
        snapshot.workflow["claim_token"] = None if claim is None else claim.token
        if any(persist.instance is instance for persist in self._persists):
            raise StoreError(f"the unit already persists the instance of workflow {id_!r}; once is enough")
        rows = [("subscription", subscription.id) for subscription in subscriptions]
        persist = _Persist(*_named(name, id_), instance, snapshot, more)
        self._add(persist, ("workflow", id_), *rows)
        self._persists.append(persist)
        self._is_fenced |= claim is not None

    def create_event(self, event: Event) -> None:
        statement = create_event(event)
        self._add_plain("create_event", event.id, [statement], "event")

    def mark_event_processed(self, id: str) -> None:
        claim = self._claim_on(ClaimKind.Event, id)
        self._add_plain("mark_event_processed", id, [mark_event_processed(id, claim)], "event")
        self._is_fenced |= claim is not None

    def mark_event_unprocessed(self, id: str) -> None:
        self._add_plain("mark_event_unprocessed", id, [mark_event_unprocessed(id)], "event")

    def create_event_subscription(self, subscription: EventSubscription) -> None:
        statement = create_subscription(subscription)
        self._add_plain("create_event_subscription", subscription.id, [statement], "subscription")

    def subscribe(self, subscription: EventSubscription) -> Subscribed:
        self.create_event_subscription(subscription)
        subscribed = Subscribed()
        params = {
            "event_name": subscription.event_name,
            "event_key": subscription.event_key,
            "since": TIME.encode(subscription.subscribe_as_of),
            "row_limit": _EVENTS_BEFORE,
        }
        self._looks.append((subscribed, Statement("get_events_since", params)))
        return subscribed

    def terminate_subscription(self, id: str) -> None:
        self._add_plain("terminate_subscription", id, [terminate_subscription(id)], "subscription")

    def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> None:
        statement = set_subscription_token(id, token, worker_id, expiry, self._now())
        statement.refused = SubscriptionTokenError(
            f"subscription {id!r} is held with another token, or terminated; nothing was written", subscription_id=id
        )
        self._add_plain("set_subscription_token", id, [statement], "subscription")

    def clear_subscription_token(self, id: str, token: str) -> None:
        self._add_plain("clear_subscription_token", id, clear_subscription_token(id, token), "subscription")

    def persist_errors(self, errors: Sequence[ExecutionError]) -> None:
        if statements := persist_errors(errors):
            self._add(_Operation(*_named("persist_errors", ""), statements))

    def schedule_command(self, command: ScheduledCommand) -> None:
        statement = schedule_command(command)
        self._add_plain("schedule_command", f"{command.command_name} {command.data}", [statement], "command")

    def run(self, name: str, /, **params: Any) -> Ran:
        operation = _Run(*_named("run", name), run_query(self._engine, name, params))
        operation.order = (len(_ORDER), "")
        self._add(operation)
        return operation.ran

    async def run_in(self, connection: object) -> None:
        self._begin()
        await self._engine.run_in(connection, self._script())

    def run_in_sync(self, connection: object) -> None:
        self._begin()
        self._engine.run_in_sync(connection, self._script())

    def _script(self) -> Script:
        """Yield the statements to run, receive their outcome, and take the results; instances remember nothing."""
        results: Results = []
        while unit := self._statements():
            try:
                results = yield unit
                break
            except (NothingChangedError, UniqueViolationError) as error:
                questions = self._questions(error)
                self._answer(error, (yield questions) if questions else [])
        if look := self._look_back():
            self._found((yield look))
        self._ran(results)

    def _claim_on(self, kind: ClaimKind, id_: str) -> Claim | None:
        """Return the unit's claim if it is on this row."""
        claim = self._claim
        return claim if claim is not None and (claim.kind, claim.id) == (kind, id_) else None

    def _add_plain(self, name: str, id_: str, statements: Unit, kind: str) -> None:
        self._add(_Operation(*_named(name, id_), statements), (kind, id_))

    def _add(self, operation: _Operation, *rows: tuple[str, str]) -> None:
        self._check_open()
        for at, (kind, id_) in enumerate(rows):
            if (kind, id_) in self._rows or (kind, id_) in rows[:at]:
                raise StoreError(f"the unit already has an operation on {kind} {id_!r}; it takes one for each")
        self._rows.update(rows)
        self._operations.append(operation)

    def _check_open(self) -> None:
        if self._is_over:
            raise StoreError("the unit is over: it was stored, or it failed; create a new one with provider.unit()")

    def _begin(self) -> None:
        """Accept no more operations, and sort those added; a unit runs once.

        Raises:
            StoreError: It already ran.
        """
        self._check_open()
        self._is_over = True
        if self._claim is not None and (self._releases or not self._is_fenced):
            fence = release_claim if self._releases else check_claim  # releasing checks it too
            self._operations.append(_Operation(*_named(fence.__name__, self._claim.id), [fence(self._claim)]))
        self._operations.sort(key=lambda operation: operation.order)

    def _statements(self) -> list[Statement]:
        """Return the statements to run, in order; running them again needs new ones."""
        unit: list[Statement] = []
        for operation in self._operations:
            operation.at = len(unit)
            unit += operation.build(self._engine.store_id)
            for statement in unit[operation.at :]:
                statement.operation = operation.name
        return unit

    def _questions(self, error: Exception) -> list[Statement]:
        """Return the reads that explain an error of the statements; none if the error explains itself."""
        store_id = self._engine.store_id
        if isinstance(error, NothingChangedError):
            persist = self._unchanged(error)
            return [get_guards(persist.snapshot.workflow["id"], persist.stored(store_id))]
        if isinstance(error, UniqueViolationError):
            return [find_pointer_of_another_workflow(operation.snapshot) for operation in self._stores()]
        return []

    def _answer(self, error: Exception, answers: Results) -> None:
        """Raise what an error means, given the answers to the questions; return if the unit must run again."""
        if isinstance(error, NothingChangedError):
            persist = self._unchanged(error)
            id_, stored = persist.snapshot.workflow["id"], persist.stored(self._engine.store_id)
            claim = self._claim_on(ClaimKind.Workflow, id_)
            try:
                check_guards(id_, stored, claim, answers[0], raises_on_conflict=self._raises_on_conflict)
            except WfeError as meant:
                persist.statements[0].name_in(meant)
                raise
            persist.overwrites = not self._raises_on_conflict
            return
        for operation, found in zip(self._stores(), answers, strict=False):
            if found is not None:
                refusal = pointer_of_another_workflow(operation.snapshot, found)
                operation.statements[0].name_in(refusal)
                raise refusal from error.__cause__
        raise error

    def _unchanged(self, error: Exception) -> _Persist:
        return next(persist for persist in self._persists if persist.statements[0].otherwise is error)

    def _stores(self) -> list[_Creation]:
        return [operation for operation in self._operations if isinstance(operation, _Creation)]

    def _ran(self, results: Results) -> None:
        """Take what the statements returned."""
        for operation in self._operations:
            operation.take(results[operation.at])

    def _remember(self) -> None:
        """Make the instances remember that they were stored."""
        for operation in self._operations:
            operation.remember(self._engine.store_id)

    def _look_back(self) -> list[Statement]:
        """Return the reads of the events stored before the unit's subscriptions; they run after the unit."""
        return [look for _, look in self._looks]

    def _found(self, results: Results) -> None:
        """Take the results of `_look_back`."""
        for (subscribed, _), rows in zip(self._looks, results, strict=True):
            subscribed.event_ids = [row[0] for row in rows]

    async def _commit(self) -> None:
        """Store everything, or raise why nothing was stored."""
        self._begin()
        async with Turn([persist.instance for persist in self._persists], self._engine.store_id) as turn:
            while error := await self._try_write(self._statements(), turn):
                questions = self._questions(error)
                self._answer(error, await self._engine.read(questions) if questions else [])
        if look := self._look_back():
            self._found(await self._engine.read(look))

    async def _try_write(self, unit: list[Statement], turn: Turn) -> Exception | None:
        """Write everything; return an error that needs `_questions` to explain it."""
        if not unit:
            return None
        unit[0].ended = partial(self._end, turn)
        turn.begin_write()
        if self._held is not None:  # from now on a renewal may find the claim released
            self._held.is_released = True
        try:
            await self._engine.write(unit)
        except (NothingChangedError, UniqueViolationError) as error:
            return error
        return None

    def _end(self, turn: Turn, outcome: Results | Exception | None) -> None:
        """Note how the write has ended, even if the caller was cancelled."""
        if isinstance(outcome, list):
            self._ran(outcome)
            self._remember()
        elif self._held is not None:
            self._held.is_released = False
        turn.end_write()


class Units(Claims, UnitRepository):
    """Makes units of work, and reads with the application's queries."""

    _raises_on_conflict: bool
    _held_claims: HeldClaims

    def unit(self, claim: Claim | None = None, *, release: bool = False) -> UnitOfWork:
        if release and claim is None:
            raise SerializationError("release=True needs a claim to release: unit(claim, release=True)", field="claim")
        return self._unit(claim, release=release, raises_on_conflict=self._raises_on_conflict)

    def _unit_that_tells_conflicts(self, claim: Claim | None) -> UnitOfWork:
        return self._unit(claim, release=False, raises_on_conflict=True)

    def _unit(self, claim: Claim | None, *, release: bool, raises_on_conflict: bool) -> UnitOfWork:
        held = None
        if claim is not None:
            check_fields(claim)
            held = self._held_claims.get((claim.kind, claim.id, claim.token)) if release else None
        return SqlUnitOfWork(
            self._engine, self._now, claim, release=release, raises_on_conflict=raises_on_conflict, held=held
        )

    async def fetch(self, name: str, /, **params: Any) -> list[dict[str, Any]]:
        statement = run_query(self._engine, name, params)
        query = self._engine.queries.application[name]
        if query.operation:
            raise QueryFileError(f"{query.place}: fetch() returns rows, so its name must not end in {query.operation}")
        (rows,) = await self._engine.read([statement])
        return list(rows)


def run_query(engine: Engine, name: str, params: Mapping[str, Any]) -> Statement:
    """Return the statement that runs a query of the application.

    Raises:
        QueryFileError: No query has this name.
        SerializationError: A parameter is missing or unknown, or a value cannot be stored.
    """
    application = engine.queries.application
    query = application.get(encode_key("name", name))
    if query is None:
        there = ", ".join(sorted(application)) or "none: give its folder as app_sql="
        raise QueryFileError(f"app_sql has no query {name!r}; its queries are {there}")
    if missing := [param for param in query.params if param not in params]:
        raise SerializationError(f"{query.place}: is missing the parameter {missing[0]}", field=missing[0])
    if unknown := [param for param in params if param not in query.params]:
        raise SerializationError(
            f"{query.place}: has no parameter {unknown[0]}; it has ({', '.join(query.params)})", field=unknown[0]
        )
    return Statement(name, {param: _encode_value(query.name, param, value) for param, value in params.items()})


def _encode_value(query: str, param: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | bytes) or (isinstance(value, float) and isfinite(value)):
        return value
    for kind, codec in ((int, INTEGER), (str, TEXT), (datetime, TIME)):
        if isinstance(value, kind):
            return encode_argument(f"{param} (of {query})", codec, value)
    raise SerializationError(
        f"{param} (of {query}) must be None, a bool, int, finite float, str, bytes or datetime, not "
        f"{value if isinstance(value, float) else type(value).__name__}",
        field=param,
    )


def _named(name: str, id_: str) -> tuple[str, tuple[int, str]]:
    """Return the name of an operation, and its place in the order."""
    return f"{name}({id_!r})" if id_ else name, (_place(name), id_)


@cache
def _place(name: str) -> int:
    return next(place for place, start in enumerate(_ORDER) if name.startswith(start))


def persist_errors(errors: Sequence[ExecutionError]) -> list[Statement]:
    """Return the statements that store errors; none if there are no errors."""
    rows = [EXECUTION_ERRORS.encode(error) for error in listed("errors", ExecutionError, errors)]
    return [Statement("persist_errors", rows)] if rows else []
