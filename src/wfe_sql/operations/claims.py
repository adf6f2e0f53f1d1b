"""Claims: taking, renewing and releasing them, and checking them on a write."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from wfe_sql.arguments import Row, encode_argument, encode_limit, wrong_type
from wfe_sql.codecs import ID, TIME
from wfe_sql.durations import time_after
from wfe_sql.engines import Engine, Results, Statement, Unit
from wfe_sql.errors import ClaimLostError, SerializationError, WfeError
from wfe_sql.models import Claim, ClaimKind, new_id
from wfe_sql.repositories import ClaimRepository

_log = logging.getLogger("wfe_sql")

_T = TypeVar("_T")


class NothingChangedError(Exception):
    """A guarded write found no row that it may change."""


class Claims(ClaimRepository):
    """Claims on workflows and events, and what taking them has in common."""

    _engine: Engine
    _clock: Callable[[], datetime]

    async def renew_claim(self, claim: Claim, lease: timedelta) -> Claim:
        expires_at = self._expiry(lease)
        query = "renew_workflow_claim" if _kind(claim) is ClaimKind.Workflow else "renew_event_claim"
        params = {**_id_and_token(claim), "expires_at": TIME.encode(expires_at)}
        await self._engine.write([Statement(query, params, otherwise=claim_lost(claim))])
        return replace(claim, expires_at=expires_at)

    async def release_claim(self, claim: Claim) -> None:
        await self._engine.write([release_claim(claim)])

    async def _claim(self, query: str, look: str, params: Row, release: str) -> Sequence[Any]:
        """Run a query that claims and return its rows; if the caller is cancelled, release what it claimed."""
        (rows,) = await self._claim_and_read([Statement(query, params)], look, params, release)
        return list(rows)

    async def _claim_and_read(self, unit: Unit, look: str, params: Row, release: str) -> Results:
        """Run a unit whose first query claims, and return its results, as `_claim` does.

        A poll that finds nothing takes no lock; see `Engine.may_find`.
        """
        if not await self._engine.may_find(Statement(look, params)):
            return [[] for _ in unit]
        claiming = self._engine.submit(unit)
        try:
            return await settled(claiming)
        except asyncio.CancelledError:
            if not claiming.cancelled() and claiming.exception() is None:
                rows = claiming.result()[0]
                await self._give_back(release, [row[0] for row in rows], params["token"])
            raise

    async def _give_back(self, release: str, ids: Sequence[Any], token: str) -> None:
        """Release claims that the token still holds; those that cannot be released expire."""
        try:
            releasing = [self._engine.submit([Statement(release, {"id": id_, "token": token})]) for id_ in ids]
            await settled(asyncio.gather(*releasing))
        except WfeError as error:
            _log.warning("a claim could not be released and ends with its lease: %s", error)

    def _now(self) -> str:
        return str(TIME.encode(self._clock()))

    def _expiry(self, lease: timedelta) -> datetime:
        return time_after(self._clock(), "lease", lease)

    def _new_claim(self, worker_id: str, lease: timedelta, limit: int) -> Row:
        """Return the parameters of every query that claims: one fresh token for everything it takes."""
        return {
            "now": self._now(),
            "token": new_id(),
            "worker_id": encode_argument("worker_id", ID, worker_id),
            "expires_at": TIME.encode(self._expiry(lease)),
            "row_limit": encode_limit(limit),
        }


def claims_of(kind: ClaimKind, rows: Sequence[Any], params: Row) -> list[Claim]:
    """Return the claims on rows of (id, place in the order of the poll)."""
    held = {"token": params["token"], "worker_id": params["worker_id"], "expires_at": expiry_of(params)}
    return [Claim(kind=kind, id=row[0], **held) for row in sorted(rows, key=lambda row: (row[1], row[0]))]


def claim_lost(claim: Claim) -> ClaimLostError:
    """Return the error for a write whose claim no longer holds."""
    return ClaimLostError(
        f"worker {claim.worker_id!r} no longer holds {claim.kind.lower()} {claim.id!r}: the claim was released, or it "
        "expired and another worker took it; nothing was written",
        claim=claim,
    )


def release_claim(claim: Claim) -> Statement:
    """Return the statement that ends a claim."""
    query = "release_workflow_claim" if _kind(claim) is ClaimKind.Workflow else "release_event_claim"
    return Statement(query, _id_and_token(claim), otherwise=claim_lost(claim))


def check_claim(claim: Claim) -> Statement:
    """Return what fails if a claim was lost, and otherwise keeps it until the transaction ends."""
    query = "check_workflow_claim" if _kind(claim) is ClaimKind.Workflow else "check_event_claim"
    return Statement(query, _id_and_token(claim), otherwise=claim_lost(claim))


def check_fields(claim: Claim) -> None:
    """Check what every write with a claim reads of it.

    Raises:
        SerializationError: It is not a claim, or one of its fields is wrong.
    """
    _kind(claim)
    _id_and_token(claim)


def token_of(claim: Claim | None, kind: ClaimKind, id_: str) -> str | None:
    """Return the token that a write must show; None without a claim.

    Raises:
        SerializationError: The claim is for something other than what is written.
    """
    if claim is None:
        return None
    if (_kind(claim), claim.id) != (kind, id_):
        raise SerializationError(
            f"this claim is for {claim.kind.lower()} {claim.id!r}, but the write is to {kind.lower()} {id_!r}",
            field="claim",
        )
    return str(_id_and_token(claim)["token"])


def _kind(claim: Claim) -> ClaimKind:
    """Return the kind of a claim, which is a plain str if the claim came back from JSON."""
    try:
        return ClaimKind(claim.kind)
    except AttributeError as error:
        raise wrong_type(Claim, claim) from error
    except ValueError as error:
        what = f"Claim.kind must be one of {', '.join(ClaimKind)}, not {claim.kind!r}"
        raise SerializationError(what, field="Claim.kind") from error


def _id_and_token(claim: Claim) -> Row:
    return {
        "id": encode_argument("Claim.id", ID, claim.id),
        "token": encode_argument("Claim.token", ID, claim.token),
    }


def expiry_of(params: Row) -> datetime:
    """Return when the claims expire that a query takes with these parameters."""
    return datetime.fromisoformat(params["expires_at"])


async def settled(future: "asyncio.Future[_T]") -> _T:
    """Wait for work under way; cancelling the caller does not stop it, and takes effect once it is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        raise
