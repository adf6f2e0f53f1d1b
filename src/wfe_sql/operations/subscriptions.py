"""The operations on event subscriptions."""

from datetime import datetime

from wfe_sql.arguments import encode_argument, encode_id, encode_limit, encode_name_key_bound
from wfe_sql.codecs import ID, TIME, TOKEN
from wfe_sql.engines import Statement
from wfe_sql.errors import StoreError, SubscriptionNotFoundError, SubscriptionTokenError
from wfe_sql.models import EventSubscription
from wfe_sql.operations.claims import Claims
from wfe_sql.repositories import SubscriptionRepository
from wfe_sql.tables import EVENT_SUBSCRIPTIONS


class Subscriptions(Claims, SubscriptionRepository):
    """A `SubscriptionRepository`."""

    async def create_event_subscription(self, subscription: EventSubscription) -> str:
        await self._engine.write([create_subscription(subscription)])
        return subscription.id

    async def get_subscriptions(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[EventSubscription]:
        params = {**encode_name_key_bound(event_name, event_key, as_of), "row_limit": encode_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_subscriptions", params)])
        return EVENT_SUBSCRIPTIONS.decode_all([row[0] for row in rows])

    async def terminate_subscription(self, id: str) -> None:
        await self._engine.write([terminate_subscription(id)])

    async def get_subscription(self, id: str) -> EventSubscription:
        params = {"id": encode_id("id", id)}
        (row,) = await self._engine.read([Statement("get_subscription", params, otherwise=_no_subscription(id))])
        return EVENT_SUBSCRIPTIONS.decode(row[0])

    async def get_first_open_subscription(
        self, event_name: str, event_key: str, as_of: datetime
    ) -> EventSubscription | None:
        params = {**encode_name_key_bound(event_name, event_key, as_of), "now": self._now()}
        (row,) = await self._engine.read([Statement("get_first_open_subscription", params)])
        return None if row is None else EVENT_SUBSCRIPTIONS.decode(row[0])

    async def set_subscription_token(self, id: str, token: str, worker_id: str, expiry: datetime) -> bool:
        ((is_taken,),) = await self._engine.write([set_subscription_token(id, token, worker_id, expiry, self._now())])
        return bool(is_taken)

    async def clear_subscription_token(self, id: str, token: str) -> None:
        await self._engine.write(clear_subscription_token(id, token))


def create_subscription(subscription: EventSubscription) -> Statement:
    """Return the statement that inserts a subscription."""
    row = EVENT_SUBSCRIPTIONS.encode(subscription)

    def exists() -> StoreError:
        return StoreError(f"a subscription with id {row['id']!r} already exists; nothing was written")

    return Statement("create_event_subscription", row, conflicts={"event_subscriptions.id": exists})


def terminate_subscription(id_: str) -> Statement:
    """Return the statement that ends a subscription."""
    return Statement("terminate_subscription", {"id": encode_id("id", id_)}, otherwise=_no_subscription(id_))


def set_subscription_token(id_: str, token: str, worker_id: str, expiry: datetime, now: str) -> Statement:
    """Return the statement that acquires a subscription, or extends the hold on it, if it may."""
    params = {
        "id": encode_id("id", id_),
        "token": encode_argument("token", TOKEN, token),
        "worker_id": encode_argument("worker_id", ID, worker_id),
        "expiry": encode_argument("expiry", TIME, expiry),
        "now": now,
    }
    return Statement("set_subscription_token", params, otherwise=_no_subscription(id_))


def clear_subscription_token(id_: str, token: str) -> list[Statement]:
    """Return the statements that release a subscription, if it holds the token."""
    wrong = SubscriptionTokenError(
        f"subscription {id_!r} does not hold token {token!r}; nothing was changed", subscription_id=id_
    )
    return [
        Statement("get_subscription", {"id": encode_id("id", id_)}, otherwise=_no_subscription(id_)),
        Statement("clear_subscription_token", {"id": id_, "token": encode_id("token", token)}, otherwise=wrong),
    ]


def _no_subscription(id_: str) -> SubscriptionNotFoundError:
    return SubscriptionNotFoundError(f"no subscription has id {id_!r}", subscription_id=id_)
