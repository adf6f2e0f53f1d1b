"""What every host does, built on the Protocols: hold claims, change and number workflows, load what was claimed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from functools import cached_property
from inspect import iscoroutine
from typing import TYPE_CHECKING, cast

from wfe_sql.arguments import encode_count, listed, wrong_type
from wfe_sql.durations import time_after
from wfe_sql.errors import (
    ClaimLostError,
    CorruptRowError,
    SerializationError,
    WfeError,
    WorkflowAlreadyExistsError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from wfe_sql.models import Claim, ClaimKind, EventSubscription, Held, WorkflowInstance, utc_now
from wfe_sql.repositories import Change, HostingRepository, InstanceHandler, PersistenceProvider, UnitOfWork

_log = logging.getLogger("wfe_sql")

_PAUSE = 1.0
"""Seconds that a workflow stays held whose handler failed, so that it does not fail again and again."""

HeldClaims = dict[tuple[ClaimKind, str, str], Held]
"""The claims that are held by `hold`, by kind, id and token."""


if TYPE_CHECKING:
    _Base = PersistenceProvider
else:
    _Base = HostingRepository


class Hosting(_Base):
    """A `HostingRepository` for any backend that has the other Protocols of `PersistenceProvider`: inherit it.

    Set `_clock` if the backend has its own clock; override a method that the backend can do in fewer calls.

    Example:
        class MyProvider(Hosting):
            async def renew_claim(self, claim, lease): ...
    """

    _clock: Callable[[], datetime] = staticmethod(utc_now)

    @cached_property
    def _held_claims(self) -> HeldClaims:
        return {}

    def _unit_that_tells_conflicts(self, claim: Claim | None) -> UnitOfWork:
        return self.unit(claim)

    def hold(self, claim: Claim, lease: timedelta) -> AbstractAsyncContextManager[Held]:
        return _hold(self, claim, lease)

    async def change(self, id: str, function: Change, claim: Claim | None = None) -> WorkflowInstance:
        if not callable(function):
            what = f"function must take a WorkflowInstance, not be {type(function).__name__}"
            raise SerializationError(what, field="function")
        while True:
            instance = await self.get_workflow_instance(id)
            subscriptions = _subscriptions(function(instance))
            if instance.id != id:
                raise SerializationError(f"function must not change the workflow's id {id!r}", field="function")
            try:
                async with self._unit_that_tells_conflicts(claim) as unit:
                    unit.persist_workflow_with_subscriptions(instance, subscriptions)
            except WorkflowConflictError:
                continue
            return instance

    async def create_numbered_workflow(self, instance: WorkflowInstance) -> str:
        if not isinstance(instance, WorkflowInstance):
            raise wrong_type(WorkflowInstance, instance)
        name = instance.name
        while True:
            number = await self.next_definition_sequence(instance.workflow_definition_id)
            instance.name = f"{instance.workflow_definition_id}-{number}"
            try:
                await self.create_new_workflow(instance)
            except WorkflowAlreadyExistsError:
                if await self.get_workflow_instances([instance.id]):
                    instance.name = name
                    raise
            except BaseException:
                instance.name = name
                raise
            else:
                return instance.name

    async def claim_and_load_instances(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[tuple[Claim, WorkflowInstance]]:
        claims = await self.claim_runnable_instances(as_at, worker_id, lease=lease, limit=limit)
        loaded = []
        for claim in claims:
            try:
                loaded.append((claim, await self.get_workflow_instance(claim.id)))
            except (CorruptRowError, WorkflowNotFoundError) as error:
                log_left_out(claim, error)
        return loaded

    async def process_instances(
        self, worker_id: str, handler: InstanceHandler, *, lease: timedelta, max_tasks: int
    ) -> None:
        if not callable(handler):
            what = f"handler must be an async function that takes a Claim and a WorkflowInstance, not {handler!r}"
            raise SerializationError(what, field="handler")
        max_tasks = encode_count("max_tasks", max_tasks)
        busy: set[asyncio.Task[None]] = set()
        try:
            while True:
                limit = max_tasks - len(busy)
                claimed = await self.claim_and_load_instances(self._clock(), worker_id, lease=lease, limit=limit)
                for claim, instance in claimed:
                    busy.add(task := asyncio.create_task(_process(self, claim, instance, handler, lease)))
                    task.add_done_callback(busy.discard)
                if len(busy) == max_tasks:
                    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                elif len(claimed) < limit:  # this was all
                    await self.wait_for_work()
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)


async def _process(
    host: "Hosting", claim: Claim, instance: WorkflowInstance, handler: InstanceHandler, lease: timedelta
) -> None:
    try:
        async with host.hold(claim, lease):
            try:
                await handler(claim, instance)
            except* ClaimLostError:
                raise
            except* Exception:
                _log.exception("the handler of workflow %r failed; it is called again", claim.id)
                await asyncio.sleep(_PAUSE)
    except* ClaimLostError:
        _log.warning("workflow %r was lost to another host while it was handled", claim.id)
    except* WfeError:
        _log.exception("workflow %r could not be held, and is free when its lease is over", claim.id)


@asynccontextmanager
async def _hold(host: "Hosting", claim: Claim, lease: timedelta) -> AsyncIterator[Held]:
    time_after(host._clock(), "lease", lease)
    if not isinstance(claim, Claim):
        raise wrong_type(Claim, claim)
    if claim.expires_at - host._clock() < lease / 3:
        claim = await host.renew_claim(claim, lease)
    held, key = Held(claim), (claim.kind, claim.id, claim.token)
    block = cast(asyncio.Task[object], asyncio.current_task())
    cancelled_before = block.cancelling()
    failure: Exception | None = None

    async def renew() -> None:
        nonlocal failure
        try:
            await _keep(host, held, lease)
        except Exception as error:  # of any kind: the block must stop
            failure = error
            block.cancel()

    renewals: list[asyncio.Task[None]] = []  # stays empty if the block ends soon
    loop = asyncio.get_running_loop()
    timer = loop.call_later(lease.total_seconds() / 3, lambda: renewals.append(loop.create_task(renew())))
    host._held_claims[key] = held
    try:
        yield held
    except BaseException as error:
        is_ours = failure is not None and block.uncancel() <= cancelled_before
        if failure is not None and is_ours and isinstance(error, asyncio.CancelledError):
            raise failure from None
        raise
    else:
        if failure is not None:
            block.uncancel()
            raise failure
    finally:
        timer.cancel()
        for renewal in renewals:
            renewal.cancel()
        host._held_claims.pop(key, None)
        if not (held.is_released or isinstance(failure, ClaimLostError)):
            await _give_back(host, held.claim)


async def _keep(host: "Hosting", held: Held, lease: timedelta) -> None:
    """Renew a claim now and after every third of its lease, as long as possible.

    Raises:
        ClaimLostError: Another worker has it, or the lease has ended by the provider's clock and could not be renewed.
    """
    third = lease.total_seconds() / 3
    while not held.is_released:
        renewing = asyncio.ensure_future(host.renew_claim(held.claim, lease))
        try:
            while not (await asyncio.wait({renewing}, timeout=third))[0]:
                _check_lease(host, held, None)
            held.claim = renewing.result()
        except ClaimLostError:
            if not held.is_released:
                raise
        except WfeError as error:
            _check_lease(host, held, error)
            _log.warning("the claim on %s %r could not be renewed: %s", held.claim.kind.lower(), held.claim.id, error)
        finally:
            renewing.cancel()
        await asyncio.sleep(third)


def _check_lease(host: "Hosting", held: Held, cause: Exception | None) -> None:
    claim = held.claim
    if host._clock() >= claim.expires_at:
        raise ClaimLostError(
            f"the lease of worker {claim.worker_id!r} on {claim.kind.lower()} {claim.id!r} has ended and could not be "
            "renewed; another worker may have claimed it",
            claim=claim,
        ) from cause


async def _give_back(host: "Hosting", claim: Claim) -> None:
    try:
        await host.release_claim(claim)
    except ClaimLostError:  # it was released in the block
        pass
    except WfeError as error:
        _log.warning(
            "%s %r could not be released; it stays claimed until its lease ends: %s",
            claim.kind.lower(),
            claim.id,
            error,
        )


def _subscriptions(returned: object) -> Sequence[EventSubscription]:
    if returned is None:
        return ()
    if iscoroutine(returned):
        returned.close()
        raise SerializationError("function must be a plain function, not an async one", field="function")
    return listed("what function returned", EventSubscription, returned)  # type: ignore[arg-type]  # it checks the type


def log_left_out(claim: Claim, error: WfeError) -> None:
    """Log that a claimed workflow cannot be loaded, and stays claimed."""
    _log.error("workflow %r is left out, and stays claimed until its lease ends: %s", claim.id, error)
