"""The operations on events."""

from datetime import datetime, timedelta

from wfe_sql.arguments import encode_bound, encode_id, encode_limit, encode_name_key_bound
from wfe_sql.engines import Statement
from wfe_sql.errors import ClaimLostError, EventAlreadyExistsError, EventNotFoundError
from wfe_sql.models import Claim, ClaimKind, Event
from wfe_sql.operations.claims import Claims, claim_lost, claims_of, token_of
from wfe_sql.repositories import EventRepository
from wfe_sql.tables import EVENTS


class Events(Claims, EventRepository):
    """An `EventRepository`."""

    async def create_event(self, event: Event) -> str:
        await self._engine.write([create_event(event)])
        return event.id

    async def get_event(self, id: str) -> Event:
        (row,) = await self._engine.read([Statement("get_event", {"id": encode_id("id", id)}, otherwise=_no_event(id))])
        return EVENTS.decode(row[0])

    async def get_runnable_events(self, as_at: datetime, *, limit: int | None = None) -> list[str]:
        params = {"as_at": encode_bound("as_at", as_at), "row_limit": encode_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_runnable_events", params)])
        return [row[0] for row in rows]

    async def claim_runnable_events(
        self, as_at: datetime, worker_id: str, *, lease: timedelta, limit: int
    ) -> list[Claim]:
        params = {"as_at": encode_bound("as_at", as_at), **self._new_claim(worker_id, lease, limit)}
        rows = await self._claim("claim_runnable_events", "find_free_runnable_event", params, "release_event_claim")
        return claims_of(ClaimKind.Event, rows, params)

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime, *, limit: int | None = None
    ) -> list[str]:
        params = {**encode_name_key_bound(event_name, event_key, as_of), "row_limit": encode_limit(limit)}
        (rows,) = await self._engine.read([Statement("get_events", params)])
        return [row[0] for row in rows]

    async def mark_event_processed(self, id: str, *, claim: Claim | None = None) -> None:
        try:
            await self._engine.write([mark_event_processed(id, claim)])
        except ClaimLostError:
            await self.get_event(id)
            raise

    async def mark_event_unprocessed(self, id: str) -> None:
        await self._engine.write([mark_event_unprocessed(id)])


def create_event(event: Event) -> Statement:
    """Return the statement that inserts an event."""
    row = EVENTS.encode(event)

    def exists() -> EventAlreadyExistsError:
        return EventAlreadyExistsError(f"an event with id {row['id']!r} already exists", event_id=row["id"])

    return Statement("create_event", row, conflicts={"events.id": exists})


def mark_event_processed(id_: str, claim: Claim | None) -> Statement:
    """Return the statement that removes an event from the poll; with a claim, only if it still holds the event."""
    params = {"id": encode_id("id", id_), "claim_token": token_of(claim, ClaimKind.Event, id_)}
    return Statement("mark_event_processed", params, otherwise=_no_event(id_) if claim is None else claim_lost(claim))


def mark_event_unprocessed(id_: str) -> Statement:
    """Return the statement that returns an event to the poll."""
    return Statement("mark_event_unprocessed", {"id": encode_id("id", id_)}, otherwise=_no_event(id_))


def _no_event(id_: str) -> EventNotFoundError:
    return EventNotFoundError(f"no event has id {id_!r}", event_id=id_)
