"""What claims promise: one holder at a time, and a slow holder is fenced off."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.errors import ClaimLostError, EventNotFoundError, SerializationError, WorkflowNotFoundError
from wfe_sql.models import Claim, ClaimKind, WorkflowStatus
from wfe_sql.repositories import ClaimRepository, EventRepository, WorkflowRepository
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.conformance.bad_input import OwnTime, refused, refused_types
from wfe_sql.testing.conformance.workflows_with_subscriptions import WorkflowsWithSubscriptions
from wfe_sql.testing.samples import TIME, full_event, full_subscription, sample_instance

LEASE = timedelta(seconds=30)
BERLIN = ZoneInfo("Europe/Berlin")


class ClaimedWorkflows(WorkflowRepository, ClaimRepository, Protocol):
    """Workflows, and claims on them."""


class ClaimedEvents(EventRepository, ClaimRepository, Protocol):
    """Events, and claims on them."""


class ClaimedWorkflowsWithSubscriptions(WorkflowsWithSubscriptions, ClaimRepository, Protocol):
    """Workflows with their subscriptions, and claims on them."""


class _Claims(ABC):
    """What claims of both kinds promise; a subclass says what is claimed, and how it is written to."""

    kind: ClaimKind

    @abstractmethod
    async def store(self, provider: Any, ids: str) -> None:
        """Store something due for each letter; the first is due longest."""

    @abstractmethod
    async def look(self, provider: Any) -> list[str]:
        """Return what is due, claimed or not."""

    @abstractmethod
    async def write(self, provider: Any, id_: str, claim: Any) -> None:
        """Write with a claim so that it stays due."""

    async def claim(
        self, provider: Any, worker: str = "one", *, as_at: Any = TIME, lease: Any = LEASE, limit: Any = 10
    ) -> list[Claim]:
        """Claim what is due."""
        call = provider.claim_runnable_instances if self.kind is ClaimKind.Workflow else provider.claim_runnable_events
        claims: list[Claim] = await call(as_at, worker, lease=lease, limit=limit)
        return claims

    async def test_in_the_order_of_the_poll(self, provider: ClaimRepository, clock: ManualClock) -> None:
        await self.store(provider, "dbca")
        claims = await self.claim(provider, limit=3)
        assert claims == [
            Claim(kind=self.kind, id=id_, token=claims[0].token, worker_id="one", expires_at=clock() + LEASE)
            for id_ in "dbc"
        ]
        others = await self.claim(provider, "two")
        assert [claim.id for claim in others] == ["a"]
        assert others[0].token != claims[0].token
        assert await self.claim(provider) == []

    async def test_an_expired_claim_is_taken(self, provider: ClaimRepository, clock: ManualClock) -> None:
        await self.store(provider, "ab")
        (first,) = await self.claim(provider, limit=1)
        clock.now = first.expires_at - timedelta(microseconds=1)
        assert [claim.id for claim in await self.claim(provider, "two")] == ["b"]
        clock.now = first.expires_at
        (taken,) = await self.claim(provider, "two")
        assert (taken.id, taken.worker_id, taken.expires_at) == ("a", "two", clock() + LEASE)

    async def test_renewed(self, provider: ClaimRepository, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        clock.advance(seconds=29)
        renewed = await provider.renew_claim(claim, LEASE)
        assert (renewed.token, renewed.expires_at) == (claim.token, clock() + LEASE)
        clock.now = renewed.expires_at - timedelta(microseconds=1)
        assert await self.claim(provider, "two") == []
        clock.advance(hours=1)
        renewed = await provider.renew_claim(claim, LEASE)
        assert await self.claim(provider, "two") == []
        await provider.release_claim(renewed)

    async def test_released(self, provider: ClaimRepository) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        await provider.release_claim(claim)
        for lost in (provider.release_claim(claim), provider.renew_claim(claim, LEASE)):
            with pytest.raises(ClaimLostError):
                await lost
        assert [claim.id for claim in await self.claim(provider, "two")] == ["a"]

    async def test_a_claim_hides_nothing_from_who_only_looks(self, provider: ClaimRepository) -> None:
        await self.store(provider, "a")
        await self.claim(provider)
        assert await self.look(provider) == ["a"]

    async def test_a_claim_on_what_is_gone(self, provider: ClaimRepository, clock: ManualClock) -> None:
        claim = Claim(kind=self.kind, id="gone", token="never taken", worker_id="one", expires_at=clock() + LEASE)
        with pytest.raises((WorkflowNotFoundError, EventNotFoundError), match="gone"):
            await self.write(provider, "gone", claim)
        with pytest.raises(ClaimLostError):
            await provider.release_claim(claim)

    async def test_a_claim_on_something_else(self, provider: ClaimRepository) -> None:
        await self.store(provider, "ab")
        claim = (await self.claim(provider))[0]
        (other,) = set(ClaimKind) - {self.kind}
        await refused_types([self.write(provider, "b", claim), self.write(provider, "a", replace(claim, kind=other))])

    async def test_a_claim_that_came_back_from_json(self, provider: ClaimRepository) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        text: Any = claim.kind.value
        back = replace(claim, kind=text)
        await self.write(provider, "a", back)
        assert (await provider.renew_claim(back, LEASE)).token == claim.token
        await provider.release_claim(back)
        assert [claim.id for claim in await self.claim(provider, "two")] == ["a"]

    async def test_what_is_not_a_claim(self, provider: ClaimRepository) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        bad: tuple[Any, ...] = (
            replace(claim, kind="Order"),  # type: ignore[arg-type]
            replace(claim, kind=None),  # type: ignore[arg-type]
            replace(claim, token=None),  # type: ignore[arg-type]
            {"kind": "Workflow", "id": "a", "token": claim.token},
        )
        for wrong in bad:
            await refused_types(
                [self.write(provider, "a", wrong), provider.renew_claim(wrong, LEASE), provider.release_claim(wrong)]
            )

    async def test_what_cannot_be_claimed(self, provider: ClaimRepository) -> None:
        await self.store(provider, "a")
        leases: tuple[Any, ...] = (timedelta(0), timedelta.max, timedelta(days=3_650_000), 30, 1.5, None)
        await refused(
            ("worker_id", self.claim(provider, "")),
            ("limit", self.claim(provider, limit=0)),
            ("as_at", self.claim(provider, as_at=TIME.replace(tzinfo=None))),
            *(("lease", self.claim(provider, lease=lease)) for lease in leases),
        )
        (claim,) = await self.claim(provider)
        await refused(*(("lease", provider.renew_claim(claim, lease)) for lease in leases))

    @pytest.mark.parametrize("turns", range(6))
    async def test_cancelled_while_it_claims_it_gives_back_what_it_took(
        self, provider: ClaimRepository, turns: int
    ) -> None:
        await self.store(provider, "abc")
        call = asyncio.create_task(self.claim(provider))
        for _ in range(turns):  # turns of the event loop: the statement is waiting, sent, or answered
            await asyncio.sleep(0)
        if not call.cancel():
            return  # it had ended
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [claim.id for claim in await self.claim(provider, "two")] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("now", "lease"),
        [
            (datetime(2026, 10, 25, 2, 59, 45, tzinfo=BERLIN), timedelta(seconds=30)),
            (datetime(2026, 3, 29, 1, 30, tzinfo=BERLIN), timedelta(hours=2)),
            (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), timedelta(seconds=30)),
        ],
        ids=["before the clocks go back", "before they go forward", "the second time"],
    )
    async def test_a_lease_on_a_clock_with_summer_time(
        self, provider: ClaimRepository, clock: ManualClock, now: datetime, lease: timedelta
    ) -> None:
        clock.now = now
        await self.store(provider, "a")
        (claim,) = await self.claim(provider, lease=lease)
        renewed = await provider.renew_claim(claim, lease)
        assert claim.expires_at == renewed.expires_at == now.astimezone(UTC) + lease
        assert claim.expires_at.tzinfo is renewed.expires_at.tzinfo is UTC
        assert await self.claim(provider, "two", lease=lease) == []

    async def test_on_a_clock_with_times_of_a_subclass(self, provider: ClaimRepository, clock: ManualClock) -> None:
        time: Any = OwnTime(2026, 5, 28, 22, 26, 40, 123456, tzinfo=BERLIN)
        clock.now = time
        await self.store(provider, "a")
        (claim,) = await self.claim(provider, as_at=time)
        assert claim.expires_at == TIME + LEASE
        assert type(claim.expires_at) is type((await provider.renew_claim(claim, LEASE)).expires_at) is datetime

    async def test_the_longest_lease(self, provider: ClaimRepository, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider, lease=datetime.max.replace(tzinfo=UTC) - clock())
        assert claim.expires_at == datetime.max.replace(tzinfo=UTC)
        assert await self.claim(provider) == []

    async def test_each_is_claimed_by_one_of_many(self, provider: ClaimRepository) -> None:
        await self.store(provider, "abcdefghijklmnopqrst")
        claims = await asyncio.gather(*(self.claim(provider, f"w{n}", limit=3) for n in range(10)))
        assert sorted(claim.id for some in claims for claim in some) == list("abcdefghijklmnopqrst")

    async def test_each_is_claimed_by_one_of_two_providers(
        self, provider: ClaimRepository, another_provider: Callable[[], Awaitable[ClaimRepository]], clock: ManualClock
    ) -> None:
        other = await another_provider()
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        assert await self.claim(other, "two") == []
        clock.now = claim.expires_at
        (taken,) = await self.claim(other, "two")
        with pytest.raises(ClaimLostError):
            await self.write(provider, "a", claim)
        await self.write(other, "a", taken)


@pytest.mark.asyncio
class TestWorkflowClaims(_Claims):
    """Claim, renew and release workflows, and write with a claim."""

    kind = ClaimKind.Workflow

    async def store(self, provider: ClaimedWorkflows, ids: str) -> None:
        """Store a runnable workflow for each letter."""
        for place, id_ in enumerate(ids):
            await provider.create_new_workflow(sample_instance(id=id_, name="", next_execution=place))

    async def look(self, provider: ClaimedWorkflows) -> list[str]:
        """Return what is due, claimed or not."""
        return await provider.get_runnable_instances(TIME)

    async def write(self, provider: ClaimedWorkflows, id_: str, claim: Any) -> None:
        """Persist the workflow, or one that does not exist."""
        found = await provider.get_workflow_instances([id_])
        await provider.persist_workflow(found[0] if found else sample_instance(id=id_), claim=claim)

    async def test_only_what_is_runnable_and_due(self, provider: ClaimedWorkflows) -> None:
        now = int(TIME.timestamp() * 1000)
        await provider.create_new_workflow(sample_instance(id="due", next_execution=now))
        await provider.create_new_workflow(sample_instance(id="later", next_execution=now + 1))
        await provider.create_new_workflow(sample_instance(id="suspended", status=WorkflowStatus.Suspended))
        assert [claim.id for claim in await self.claim(provider)] == ["due"]

    async def test_writes_under_a_claim(self, provider: ClaimedWorkflows, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        clock.advance(hours=1)  # expired, but nobody took it
        instance = await provider.get_workflow_instance("a")
        for data in ("once", "twice"):
            instance.data = data
            await provider.persist_workflow(instance, claim=claim)
        assert await provider.get_workflow_instance("a") == instance
        await provider.release_claim(claim)

    async def test_a_stale_worker_writes_nothing(self, provider: ClaimedWorkflows, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (stale,) = await self.claim(provider)
        instance = await provider.get_workflow_instance("a")
        clock.advance(seconds=30)
        (holds,) = await self.claim(provider, "two")
        before = await provider.get_workflow_instance("a")
        instance.data, instance.status = "late", WorkflowStatus.Complete
        for late in (
            provider.persist_workflow(instance, claim=stale),
            provider.renew_claim(stale, LEASE),
            provider.release_claim(stale),
        ):
            with pytest.raises(ClaimLostError):
                await late
        assert await provider.get_workflow_instance("a") == before
        await provider.persist_workflow(instance, claim=holds)

    async def test_a_write_without_a_claim_is_not_fenced(self, provider: ClaimedWorkflows) -> None:
        await self.store(provider, "a")
        await self.claim(provider)
        instance = await provider.get_workflow_instance("a")
        instance.data = "unfenced"
        await provider.persist_workflow(instance)
        assert (await provider.get_workflow_instance("a")).data == "unfenced"

    @pytest.mark.parametrize("now", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
    async def test_clocks_at_the_ends_of_the_calendar(
        self, provider: ClaimedWorkflows, clock: ManualClock, now: datetime
    ) -> None:
        await self.store(provider, "a")
        await provider.persist_workflow(await provider.get_workflow_instance("a"))
        clock.now = now
        await provider.persist_workflow(await provider.get_workflow_instance("a"))
        if now.year == 1:
            (claim,) = await self.claim(provider)
            assert claim.expires_at == now + LEASE
            assert await self.claim(provider) == []
        else:
            with pytest.raises(SerializationError, match=r"\blease\b"):
                await self.claim(provider)


@pytest.mark.asyncio
class TestEventClaims(_Claims):
    """Claim, renew and release events, and mark them with a claim."""

    kind = ClaimKind.Event

    async def store(self, provider: ClaimedEvents, ids: str) -> None:
        """Store an unprocessed event for each letter."""
        for place, id_ in enumerate(ids):
            time = TIME - timedelta(hours=1) + timedelta(seconds=place)
            await provider.create_event(full_event(id=id_, event_time=time, is_processed=False))

    async def look(self, provider: ClaimedEvents) -> list[str]:
        """Return what is due, claimed or not."""
        return await provider.get_runnable_events(TIME)

    async def write(self, provider: ClaimedEvents, id_: str, claim: Any) -> None:
        """Mark the event as processed, and then as unprocessed."""
        await provider.mark_event_processed(id_, claim=claim)
        await provider.mark_event_unprocessed(id_)

    async def test_only_what_is_not_processed_and_due(self, provider: ClaimedEvents) -> None:
        await provider.create_event(full_event(id="due", event_time=TIME, is_processed=False))
        await provider.create_event(full_event(id="processed", event_time=TIME))
        later = TIME + timedelta(microseconds=1)
        await provider.create_event(full_event(id="later", event_time=later, is_processed=False))
        assert [claim.id for claim in await self.claim(provider)] == ["due"]

    async def test_marks_under_a_claim(self, provider: ClaimedEvents, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (claim,) = await self.claim(provider)
        clock.advance(hours=1)  # expired, but nobody took it
        await provider.mark_event_processed("a", claim=claim)
        assert (await provider.get_event("a")).is_processed
        await provider.release_claim(claim)

    async def test_a_stale_worker_marks_nothing(self, provider: ClaimedEvents, clock: ManualClock) -> None:
        await self.store(provider, "a")
        (stale,) = await self.claim(provider)
        clock.advance(seconds=30)
        (holds,) = await self.claim(provider, "two")
        for late in (
            provider.mark_event_processed("a", claim=stale),
            provider.renew_claim(stale, LEASE),
            provider.release_claim(stale),
        ):
            with pytest.raises(ClaimLostError):
                await late
        assert not (await provider.get_event("a")).is_processed
        await provider.mark_event_processed("a", claim=holds)


@pytest.mark.asyncio
class TestClaimsOfWorkflowsWithSubscriptions:
    """A claim fences the subscriptions that are stored with a workflow."""

    async def test_subscriptions_under_a_claim(
        self, provider: ClaimedWorkflowsWithSubscriptions, clock: ManualClock
    ) -> None:
        await provider.create_new_workflow(sample_instance(id="a"))
        (stale,) = await provider.claim_runnable_instances(TIME, "one", lease=LEASE, limit=1)
        clock.advance(seconds=30)
        (holds,) = await provider.claim_runnable_instances(TIME, "two", lease=LEASE, limit=1)
        instance = await provider.get_workflow_instance("a")
        instance.data = "waits"
        subscription = full_subscription(workflow_id="a")
        with pytest.raises(ClaimLostError):
            await provider.persist_workflow_with_subscriptions(instance, [subscription], claim=stale)
        assert await provider.get_subscriptions("paid", "k1", TIME) == []
        await provider.persist_workflow_with_subscriptions(instance, [subscription], claim=holds)
        assert await provider.get_workflow_instance("a") == instance
        assert await provider.get_subscription(subscription.id) == subscription
