"""What `SubscriptionRepository` promises."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from wfe_sql.errors import StoreError, SubscriptionNotFoundError, SubscriptionTokenError
from wfe_sql.models import EventSubscription
from wfe_sql.repositories import SubscriptionRepository
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import TIME, full_subscription

MICROSECOND = timedelta(microseconds=1)


def _free(id_: str, **fields: object) -> EventSubscription:
    return full_subscription(
        **{"id": id_, "external_token": None, "external_worker_id": None, "external_token_expiry": None, **fields}
    )


@pytest.mark.asyncio
class TestSubscriptionRepository:
    """Create, find, hold and end subscriptions."""

    async def test_every_field_comes_back(self, provider: SubscriptionRepository) -> None:
        stored = full_subscription()
        assert await provider.create_event_subscription(stored) == stored.id
        assert await provider.get_subscription(stored.id) == stored

    async def test_create_with_an_id_in_use(self, provider: SubscriptionRepository) -> None:
        stored = full_subscription()
        await provider.create_event_subscription(stored)
        with pytest.raises(StoreError, match=stored.id):
            await provider.create_event_subscription(_free(stored.id))
        assert await provider.get_subscription(stored.id) == stored

    async def test_found_by_name_and_key_up_to_a_time(self, provider: SubscriptionRepository) -> None:
        for id_, as_of in {"c": TIME, "b": TIME, "a": TIME + MICROSECOND, "d": TIME - MICROSECOND}.items():
            await provider.create_event_subscription(_free(id_, subscribe_as_of=as_of))
        await provider.create_event_subscription(_free("other name", event_name="shipped"))
        await provider.create_event_subscription(_free("other key", event_key="k2"))

        async def found(as_of_offset: timedelta) -> list[str]:
            return [s.id for s in await provider.get_subscriptions("paid", "k1", TIME + as_of_offset)]

        assert await found(timedelta(0)) == ["d", "b", "c"]
        assert await found(MICROSECOND) == ["d", "b", "c", "a"]
        assert await found(-MICROSECOND) == ["d"]
        assert await found(-2 * MICROSECOND) == []

    async def test_terminated_ones_are_not_found_but_stay(self, provider: SubscriptionRepository) -> None:
        stored = _free("s1")
        await provider.create_event_subscription(stored)
        await provider.terminate_subscription("s1")
        await provider.terminate_subscription("s1")
        assert await provider.get_subscriptions("paid", "k1", TIME) == []
        assert await provider.get_first_open_subscription("paid", "k1", TIME) is None
        assert await provider.get_subscription("s1") == stored

    async def test_unknown_ids(self, provider: SubscriptionRepository) -> None:
        for call in (
            provider.get_subscription("nothing"),
            provider.terminate_subscription("nothing"),
            provider.set_subscription_token("nothing", "token", "worker", TIME),
            provider.clear_subscription_token("nothing", "token"),
        ):
            with pytest.raises(SubscriptionNotFoundError, match="nothing"):
                await call

    async def test_a_token_is_compared_and_swapped(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        await provider.create_event_subscription(_free("s1"))
        expiry = clock() + timedelta(seconds=30)
        assert await provider.set_subscription_token("s1", "mine", "worker-1", expiry)
        assert not await provider.set_subscription_token("s1", "theirs", "worker-2", expiry)
        held = await provider.get_subscription("s1")
        assert (held.external_token, held.external_worker_id, held.external_token_expiry) == (
            "mine",
            "worker-1",
            expiry,
        )

    async def test_a_token_is_renewed(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        await provider.create_event_subscription(_free("s1"))
        for seconds in (30, 60, 10):
            expiry = clock() + timedelta(seconds=seconds)
            assert await provider.set_subscription_token("s1", "mine", "worker-1", expiry)
            assert (await provider.get_subscription("s1")).external_token_expiry == expiry

    async def test_an_expired_token_is_taken(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        await provider.create_event_subscription(_free("s1"))
        expiry = clock() + timedelta(seconds=30)
        assert await provider.set_subscription_token("s1", "mine", "worker-1", expiry)
        clock.now = expiry - MICROSECOND
        assert not await provider.set_subscription_token("s1", "theirs", "worker-2", expiry)
        assert await provider.get_first_open_subscription("paid", "k1", TIME) is None
        clock.now = expiry
        opened = await provider.get_first_open_subscription("paid", "k1", TIME)
        assert opened is not None
        assert opened.id == "s1"
        assert await provider.set_subscription_token("s1", "theirs", "worker-2", expiry + timedelta(seconds=30))
        with pytest.raises(SubscriptionTokenError):
            await provider.clear_subscription_token("s1", "mine")

    async def test_a_terminated_one_takes_no_token(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        await provider.create_event_subscription(_free("s1"))
        await provider.terminate_subscription("s1")
        assert not await provider.set_subscription_token("s1", "mine", "worker-1", clock() + timedelta(seconds=30))

    async def test_a_token_is_cleared(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        stored = _free("s1")
        await provider.create_event_subscription(stored)
        assert await provider.set_subscription_token("s1", "mine", "worker-1", clock() + timedelta(seconds=30))
        with pytest.raises(SubscriptionTokenError):
            await provider.clear_subscription_token("s1", "theirs")
        assert (await provider.get_subscription("s1")).external_token == "mine"
        await provider.clear_subscription_token("s1", "mine")
        assert await provider.get_subscription("s1") == stored
        with pytest.raises(SubscriptionTokenError):
            await provider.clear_subscription_token("s1", "mine")

    async def test_the_first_open_one(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        for id_, as_of in {"b": TIME, "a": TIME, "late": TIME + MICROSECOND}.items():
            await provider.create_event_subscription(_free(id_, subscribe_as_of=as_of))
        taken = []
        while opened := await provider.get_first_open_subscription("paid", "k1", TIME):
            taken.append(opened.id)
            assert await provider.set_subscription_token(opened.id, "t", "w", clock() + timedelta(seconds=30))
        assert taken == ["a", "b"]
        assert await provider.get_first_open_subscription("paid", "k2", TIME) is None

    async def test_one_of_many_wins_a_token(self, provider: SubscriptionRepository, clock: ManualClock) -> None:
        await provider.create_event_subscription(_free("s1"))
        expiry = clock() + timedelta(seconds=30)
        won = await asyncio.gather(
            *(provider.set_subscription_token("s1", f"token-{number}", "worker", expiry) for number in range(50))
        )
        assert won.count(True) == 1
        held = await provider.get_subscription("s1")
        assert held.external_token == f"token-{won.index(True)}"

    async def test_one_of_two_providers_wins_a_token(
        self,
        provider: SubscriptionRepository,
        another_provider: Callable[[], Awaitable[SubscriptionRepository]],
        clock: ManualClock,
    ) -> None:
        other = await another_provider()
        await provider.create_event_subscription(_free("s1"))
        expiry = clock() + timedelta(seconds=30)
        assert await other.set_subscription_token("s1", "theirs", "worker-2", expiry)
        assert not await provider.set_subscription_token("s1", "mine", "worker-1", expiry)
        assert await provider.get_first_open_subscription("paid", "k1", TIME) is None
        assert (await provider.get_subscription("s1")).external_token == "theirs"
