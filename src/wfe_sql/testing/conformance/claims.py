"""What claims promise: one holder at a time, and a holder that was too slow is fenced off."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from wfe_sql.errors import ClaimLostError, EventNotFoundError, SerializationError, WorkflowNotFoundError
from wfe_sql.models import Claim, ClaimKind, ScheduledCommand, WorkflowStatus
from wfe_sql.repositories import PersistenceProvider
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_event, full_subscription, sample_instance

LEASE = timedelta(seconds=30)
BERLIN = ZoneInfo("Europe/Berlin")


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
            "worker_id must not be empty": {"worker_id": ""},
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

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
    @pytest.mark.parametrize("turns", range(6))
    async def test_cancelled_while_it_claims_it_gives_back_what_it_took(
        self, provider: PersistenceProvider, claim_some: Any, turns: int
    ) -> None:
        await _store(provider, "abc")
        call = asyncio.create_task(claim_some(provider))
        for _ in range(turns):  # of the event loop: the statement is waiting, sent, or answered
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [claim.id for claim in await claim_some(provider, worker="two")] == ["a", "b", "c"]

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
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
        self, provider: PersistenceProvider, clock: ManualClock, claim_some: Any, now: datetime, lease: timedelta
    ) -> None:
        clock.now = now
        await _store(provider, "a")
        claim_runnable = (
            provider.claim_runnable_instances if claim_some is _claim_workflows else provider.claim_runnable_events
        )
        (claim,) = await claim_runnable(TIME, "one", lease=lease, limit=1)
        renewed = await provider.renew_claim(claim, lease)
        assert claim.expires_at == renewed.expires_at == now.astimezone(UTC) + lease
        assert claim.expires_at.tzinfo is renewed.expires_at.tzinfo is UTC
        assert await claim_runnable(TIME, "two", lease=lease, limit=1) == []

    @pytest.mark.parametrize("claim_some", [_claim_workflows, _claim_events])
    async def test_a_claim_that_came_back_from_json(self, provider: PersistenceProvider, claim_some: Any) -> None:
        await _store(provider, "a")
        (claim,) = await claim_some(provider)
        text: Any = claim.kind.value
        back = replace(claim, kind=text)
        if claim_some is _claim_workflows:
            await provider.persist_workflow(await provider.get_workflow_instance("a"), claim=back)
        else:
            await provider.mark_event_processed("a", claim=back)
            await provider.mark_event_unprocessed("a")
        assert (await provider.renew_claim(back, LEASE)).token == claim.token
        await provider.release_claim(back)
        assert [claim.id for claim in await claim_some(provider, worker="two")] == ["a"]

    async def test_what_is_not_a_claim(self, provider: PersistenceProvider) -> None:
        await _store(provider, "a")
        (claim,) = await _claim_workflows(provider)
        instance = await provider.get_workflow_instance("a")
        bad: dict[str, Any] = {
            "Claim.kind must be one of Workflow, Event, not 'Order'": replace(claim, kind="Order"),  # type: ignore[arg-type]
            "Claim.kind must be one of Workflow, Event, not None": replace(claim, kind=None),  # type: ignore[arg-type]
            "Claim.token must be a str, not NoneType": replace(claim, token=None),  # type: ignore[arg-type]
            "expected Claim, not dict": {"kind": "Workflow", "id": "a", "token": claim.token},
        }
        for message, wrong in bad.items():
            for call in (
                provider.persist_workflow(instance, claim=wrong),
                provider.renew_claim(wrong, LEASE),
                provider.release_claim(wrong),
            ):
                with pytest.raises(SerializationError, match=message):
                    await call

    @pytest.mark.parametrize(
        ("lease", "message"),
        [
            (timedelta.max, "lease is too long: it would end after the year 9999"),
            (timedelta(days=3_650_000), "lease is too long: it would end after the year 9999"),
            (30, r"lease must be a timedelta, not int: write timedelta\(seconds=30\)"),
            (1.5, r"lease must be a timedelta, not float: write timedelta\(seconds=1.5\)"),
            (None, "lease must be a timedelta, not NoneType"),
        ],
        ids=str,
    )
    async def test_leases_that_cannot_be(self, provider: PersistenceProvider, lease: Any, message: str) -> None:
        async def handler(command: ScheduledCommand) -> None:
            raise AssertionError(command)

        await _store(provider, "a")
        await provider.schedule_command(ScheduledCommand.process_workflow("a", 0))
        (claim,) = await _claim_events(provider)
        for call in (
            provider.claim_runnable_instances(TIME, "one", lease=lease, limit=1),
            provider.claim_runnable_events(TIME, "one", lease=lease, limit=1),
            provider.renew_claim(claim, lease),
            provider.process_commands(TIME, handler, lease=lease),
        ):
            with pytest.raises(SerializationError, match=message):
                await call
        assert len(await _claim_workflows(provider)) == 1

    async def test_the_longest_lease(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await _store(provider, "a")
        lease = datetime.max.replace(tzinfo=UTC) - clock()
        (claim,) = await provider.claim_runnable_instances(TIME, "one", lease=lease, limit=1)
        assert claim.expires_at == datetime.max.replace(tzinfo=UTC)
        assert await _claim_workflows(provider) == []

    @pytest.mark.parametrize("now", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
    async def test_clocks_at_the_ends_of_the_calendar(
        self, provider: PersistenceProvider, clock: ManualClock, now: datetime
    ) -> None:
        await _store(provider, "a")
        await provider.persist_workflow(await provider.get_workflow_instance("a"))
        clock.now = now
        await provider.persist_workflow(await provider.get_workflow_instance("a"))
        if now.year == 1:
            (claim,) = await _claim_workflows(provider)
            assert claim.expires_at == now + LEASE
            assert await _claim_workflows(provider) == []
        else:
            with pytest.raises(SerializationError, match="lease is too long"):
                await _claim_workflows(provider)

    async def test_a_clock_that_is_wrong(self, provider: PersistenceProvider, clock: ManualClock) -> None:
        await _store(provider, "a")
        (claim,) = await _claim_workflows(provider)
        instance = await provider.get_workflow_instance("a")
        wrong: dict[str, Any] = {
            "the clock's time is naive": TIME.replace(tzinfo=None),
            "the clock's time must be a datetime, not float": 1.5,
            "the clock's time is out of range in UTC": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        }
        for message, now in wrong.items():
            clock.now = now
            for call in (
                _claim_workflows(provider),
                _claim_events(provider),
                provider.renew_claim(claim, LEASE),
                provider.persist_workflow(instance),
                provider.get_first_open_subscription("paid", "k1", TIME),
            ):
                with pytest.raises(SerializationError, match=message):
                    await call

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
