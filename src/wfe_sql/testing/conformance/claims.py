"""What claims promise: one holder at a time, and a holder that was too slow is fenced off."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from wfe_sql.errors import ClaimLostError, EventNotFoundError, SerializationError, WorkflowNotFoundError
from wfe_sql.models import Claim, ClaimKind, WorkflowStatus
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_event, full_subscription, sample_instance

LEASE = timedelta(seconds=30)


async def _claim_workflows(provider: PersistenceProvider, worker: str = "one", limit: int = 10) -> list[Claim]:
    return await provider.claim_runnable_instances(TIME, worker, lease=LEASE, limit=limit)


async def _claim_events(provider: PersistenceProvider, worker: str = "one", limit: int = 10) -> list[Claim]:
    return await provider.claim_runnable_events(TIME, worker, lease=LEASE, limit=limit)


async def _store(provider: PersistenceProvider, ids: str) -> None:
    """Store a runnable workflow and an unprocessed event for each letter; the first is the longest due."""
    for place, id_ in enumerate(ids):
        await provider.create_new_workflow(sample_instance(id=id_, name="", next_execution=place))
        time = TIME - timedelta(hours=1) + timedelta(seconds=place)
        await provider.create_event(full_event(id=id_, event_time=time, is_processed=False))


@pytest.mark.asyncio
class TestClaims:
    """Claim, renew and release workflows and events, and write under a claim."""

    @pytest.mark.parametrize(
        ("claim_some", "kind"), [(_claim_workflows, ClaimKind.Workflow), (_claim_events, ClaimKind.Event)]
    )
    async def test_in_the_order_of_the_poll(
        self, provider: PersistenceProvider, clock: ManualClock, claim_some: Any, kind: ClaimKind
    ) -> None:
        await _store(provider, "dbca")
        claims = await claim_some(provider, limit=3)
        assert claims == [
            Claim(kind=kind, id=id_, token=claims[0].token, worker_id="one", expires_at=clock() + LEASE)
            for id_ in "dbc"
        ]
        others = await claim_some(provider, worker="two")
        assert [claim.id for claim in others] == ["a"]
        assert others[0].token != claims[0].token
        assert await claim_some(provider) == []

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
    async def test_an_expired_claim_is_taken(
        self, provider: PersistenceProvider, clock: ManualClock, claim_some: Any
    ) -> None:
        await _store(provider, "ab")
        (first, *_) = await claim_some(provider, limit=1)
        clock.now = first.expires_at - timedelta(microseconds=1)
        assert [claim.id for claim in await claim_some(provider, worker="two")] == ["b"]
        clock.now = first.expires_at
        (taken,) = await claim_some(provider, worker="two")
        assert (taken.id, taken.worker_id, taken.expires_at) == ("a", "two", clock() + LEASE)

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
    async def test_renewed(self, provider: PersistenceProvider, clock: ManualClock, claim_some: Any) -> None:
        await _store(provider, "a")
        (claim,) = await claim_some(provider)
        clock.advance(seconds=29)
        renewed = await provider.renew_claim(claim, LEASE)
        assert (renewed.token, renewed.expires_at) == (claim.token, clock() + LEASE)
        clock.now = renewed.expires_at - timedelta(microseconds=1)
        assert await claim_some(provider, worker="two") == []
        clock.advance(hours=1)
        renewed = await provider.renew_claim(claim, LEASE)
        assert await claim_some(provider, worker="two") == []
        await provider.release_claim(renewed)

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
    async def test_released(self, provider: PersistenceProvider, claim_some: Any) -> None:
        await _store(provider, "a")
        (claim,) = await claim_some(provider)
        await provider.release_claim(claim)
        for lost in (provider.release_claim(claim), provider.renew_claim(claim, LEASE)):
            with pytest.raises(ClaimLostError, match=f"'one' does not hold {claim.kind.lower()} 'a'"):
                await lost
        assert [claim.id for claim in await claim_some(provider, worker="two")] == ["a"]

    async def test_only_what_is_runnable_and_due(self, provider: PersistenceProvider) -> None:
        now = int(TIME.timestamp() * 1000)
        await provider.create_new_workflow(sample_instance(id="due", next_execution=now))
        await provider.create_new_workflow(sample_instance(id="later", next_execution=now + 1))
        await provider.create_new_workflow(sample_instance(id="suspended", status=WorkflowStatus.Suspended))
        await provider.create_event(full_event(id="due", event_time=TIME, is_processed=False))
        await provider.create_event(full_event(id="processed", event_time=TIME))
        await provider.create_event(
            full_event(id="later", event_time=TIME + timedelta(microseconds=1), is_processed=False)
        )
        for claims in (await _claim_workflows(provider), await _claim_events(provider)):
            assert [claim.id for claim in claims] == ["due"]

    async def test_a_claim_hides_nothing_from_who_only_looks(self, provider: PersistenceProvider) -> None:
        await _store(provider, "a")
        await _claim_workflows(provider)
        await _claim_events(provider)
        assert await provider.get_runnable_instances(TIME) == ["a"]
        assert await provider.get_runnable_events(TIME) == ["a"]

    async def test_writes_under_a_claim(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await _store(provider, "a")
        (workflow_claim,), (event_claim,) = await _claim_workflows(provider), await _claim_events(provider)
        clock.advance(hours=1)  # expired, but nobody took it
        instance = await provider.get_workflow_instance("a")
        instance.data = "once"
        await provider.persist_workflow(instance, claim=workflow_claim)
        instance.data = "twice"
        subscription = full_subscription(workflow_id="a")
        await provider.persist_workflow_with_subscriptions(instance, [subscription], claim=workflow_claim)
        assert await provider.get_workflow_instance("a") == instance
        assert await provider.get_subscription(subscription.id) == subscription
        await provider.mark_event_processed("a", claim=event_claim)
        assert (await provider.get_event("a")).is_processed
        await provider.release_claim(workflow_claim)
        await provider.release_claim(event_claim)

    async def test_a_stale_worker_writes_nothing(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await _store(provider, "a")
        stale_workflow, stale_event = (await _claim_workflows(provider))[0], (await _claim_events(provider))[0]
        instance = await provider.get_workflow_instance("a")
        clock.advance(seconds=30)
        (holds_workflow,), (holds_event,) = (
            await _claim_workflows(provider, worker="two"),
            await _claim_events(provider, worker="two"),
        )
        before = await provider.get_workflow_instance("a")
        instance.data, instance.status = "late", WorkflowStatus.Complete
        subscription = full_subscription(workflow_id="a")
        for late in (
            provider.persist_workflow(instance, claim=stale_workflow),
            provider.persist_workflow_with_subscriptions(instance, [subscription], claim=stale_workflow),
            provider.renew_claim(stale_workflow, LEASE),
            provider.release_claim(stale_workflow),
            provider.mark_event_processed("a", claim=stale_event),
            provider.renew_claim(stale_event, LEASE),
            provider.release_claim(stale_event),
        ):
            with pytest.raises(ClaimLostError, match="'one' does not hold .* 'a' any more"):
                await late
        assert await provider.get_workflow_instance("a") == before
        assert await provider.get_subscriptions("paid", "k1", TIME) == []
        assert not (await provider.get_event("a")).is_processed
        await provider.persist_workflow(instance, claim=holds_workflow)
        await provider.mark_event_processed("a", claim=holds_event)

    async def test_a_claim_on_what_is_gone(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        writes: dict[ClaimKind, Callable[[Claim], Awaitable[None]]] = {
            ClaimKind.Workflow: lambda claim: provider.persist_workflow(sample_instance(id="gone"), claim=claim),
            ClaimKind.Event: lambda claim: provider.mark_event_processed("gone", claim=claim),
        }
        for kind, write in writes.items():
            claim = Claim(kind=kind, id="gone", token="never taken", worker_id="one", expires_at=clock() + LEASE)
            with pytest.raises((WorkflowNotFoundError, EventNotFoundError), match="gone"):
                await write(claim)
            with pytest.raises(ClaimLostError, match="gone"):
                await provider.release_claim(claim)

    async def test_a_claim_on_something_else(self, provider: PersistenceProvider) -> None:
        await _store(provider, "ab")
        workflow_claim, event_claim = (await _claim_workflows(provider))[0], (await _claim_events(provider))[0]
        other = await provider.get_workflow_instance("b")
        for write in (
            provider.persist_workflow(other, claim=workflow_claim),
            provider.persist_workflow(other, claim=event_claim),
            provider.mark_event_processed("b", claim=event_claim),
            provider.mark_event_processed("a", claim=workflow_claim),
        ):
            with pytest.raises(SerializationError, match=r"the claim is on .* 'a', which is not what is written"):
                await write

    async def test_bad_input(self, provider: PersistenceProvider) -> None:
        await _store(provider, "a")
        bad: dict[str, dict[str, Any]] = {
            "worker_id is empty": {"worker_id": ""},
            "limit must be": {"limit": 0},
            "lease must be above zero": {"lease": timedelta(0)},
            "as_at is naive": {"as_at": TIME.replace(tzinfo=None)},
        }
        for message, change in bad.items():
            arguments: dict[str, Any] = {"as_at": TIME, "worker_id": "one", "lease": LEASE, "limit": 1} | change
            for claim_some in (provider.claim_runnable_instances, provider.claim_runnable_events):
                with pytest.raises(SerializationError, match=message):
                    await claim_some(**arguments)
        (claim,) = await _claim_workflows(provider)
        with pytest.raises(SerializationError, match="lease must be above zero"):
            await provider.renew_claim(claim, timedelta(0))

    async def test_each_is_claimed_by_one_of_many(self, provider: PersistenceProvider) -> None:
        await _store(provider, "abcdefghijklmnopqrst")
        for claim_some in (_claim_workflows, _claim_events):
            claims = await asyncio.gather(*(claim_some(provider, worker=f"w{n}", limit=3) for n in range(10)))
            assert sorted(claim.id for some in claims for claim in some) == list("abcdefghijklmnopqrst")

    async def test_a_write_without_a_claim_is_not_fenced(self, provider: PersistenceProvider) -> None:
        await _store(provider, "a")
        await _claim_workflows(provider)
        instance = await provider.get_workflow_instance("a")
        instance.data = "unfenced"
        await provider.persist_workflow(instance)
        assert (await provider.get_workflow_instance("a")).data == "unfenced"
