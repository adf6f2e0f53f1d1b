"""The operations on events."""

from datetime import datetime, timedelta

from wfe_sql.arguments import encode_bound, encode_key, encode_limit, encode_name_key_bound
from wfe_sql.engines import Statement
from wfe_sql.errors import EventAlreadyExistsError, EventNotFoundError
from wfe_sql.models import Claim, ClaimKind, Event
from wfe_sql.operations.claims import Claims, NothingChangedError, claim_lost, claims_of, token_of
from wfe_sql.repositories import EventRepository
from wfe_sql.tables import EVENTS


class Events(Claims, EventRepository):
    """An `EventRepository`."""

    async def create_event(self, event: Event) -> str:
        row = EVENTS.encode(event)
        exists = EventAlreadyExistsError(f"an event with id {event.id!r} exists already")
        await self._engine.write([Statement("create_event", row, conflicts={"events.id": exists})])
        return event.id

    async def get_event(self, id: str) -> Event:
        (row,) = await self._engine.read(
            [Statement("get_event", {"id": encode_key("id", id)}, otherwise=_no_event(id))]
        )
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
        params = {"id": encode_key("id", id), "claim_token": token_of(claim, ClaimKind.Event, id)}
        try:
            await self._engine.write([Statement("mark_event_processed", params, otherwise=NothingChangedError())])
        except NothingChangedError:
            await self.get_event(id)
            raise (_no_event(id) if claim is None else claim_lost(claim)) from None

    async def mark_event_unprocessed(self, id: str) -> None:
        params = {"id": encode_key("id", id)}
        await self._engine.write([Statement("mark_event_unprocessed", params, otherwise=_no_event(id))])


def _no_event(id_: str) -> EventNotFoundError:
    return EventNotFoundError(f"no event has id {id_!r}")
