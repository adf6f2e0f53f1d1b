"""The operations on scheduled commands, which are handled under claims that are renewed meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from wfe_sql.arguments import encode_ids, encode_limit, encode_ms_bound
from wfe_sql.codecs import TIME
from wfe_sql.engines import Statement
from wfe_sql.errors import SerializationError, StoreError, WfeError
from wfe_sql.models import ScheduledCommand
from wfe_sql.operations.claims import Claims, expiry_of, settled
from wfe_sql.repositories import CommandHandler, ScheduledCommandRepository
from wfe_sql.tables import SCHEDULED_COMMANDS

_log = logging.getLogger("wfe_sql")

_BATCH = 20
"""Commands that `process_commands` claims at a time."""

_BEFORE_ALL = (-(2**63), 0)
"""An (execute_time, id) that comes before every command."""


@dataclass(slots=True)
class _HeldCommands:
    """Commands held by one claim: the one being handled, and those not handled yet.

    Attributes:
        ids: Their ids. A command whose claim is found lost is removed.
        lease: How long each renewal holds them.
        token: The claim's token.
        expires_at: When the claim expires, as far as is known.
        renewing: Held during a renewal, so that renewals reach the store in order.
    """

    ids: list[int]
    lease: timedelta
    token: str
    expires_at: datetime
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Commands(Claims, ScheduledCommandRepository):
    """A `ScheduledCommandRepository`."""

    _worker_id: str

    @property
    def supports_scheduled_commands(self) -> bool:
        return True

    async def schedule_command(self, command: ScheduledCommand) -> None:
        await self._engine.write([schedule_command(command)])

    async def process_commands(
        self,
        as_of: datetime,
        handler: CommandHandler,
        *,
        limit: int | None = None,
        lease: timedelta = timedelta(minutes=1),
    ) -> None:
        if not callable(handler):
            kind = type(handler).__name__
            what = f"handler must be an async function that takes a ScheduledCommand, not {kind}"
            raise SerializationError(what, field="handler")
        due, left, after = encode_ms_bound("as_of", as_of), encode_limit(limit), _BEFORE_ALL
        failures: list[Exception] = []
        while left is None or left > 0:
            claim = self._new_claim(self._worker_id, lease, min(left or _BATCH, _BATCH))
            params = {"as_of": due, "after_time": after[0], "after_id": after[1], **claim}
            rows = await self._claim("claim_commands", "find_free_command", params, "release_command")
            if not rows:
                break
            rows = sorted(rows, key=lambda row: (row[1], row[0]))
            after = (rows[-1][1], rows[-1][0])
            left = None if left is None else left - len(rows)
            held = _HeldCommands([row[0] for row in rows], lease, claim["token"], expiry_of(claim))
            failures += await self._handle_commands(rows, held, handler)
        if failures:
            raise ExceptionGroup(f"{len(failures)} scheduled commands failed and are due again", failures)

    async def _handle_commands(
        self, rows: Sequence[Any], held: _HeldCommands, handler: CommandHandler
    ) -> list[Exception]:
        """Handle those claimed commands that are still held, in order; return what handlers raised."""
        failures: list[Exception] = []
        async with self._renewing(held):
            for id_, _, document in rows:
                await self._ensure_held(held)
                if id_ not in held.ids:
                    continue
                claim = {"id": id_, "token": held.token}
                try:
                    await handler(SCHEDULED_COMMANDS.decode(document, row_id=id_))
                except Exception as error:  # the others still run; they are raised together
                    failures.append(error)
                    unit = [Statement("release_command", claim)]
                else:
                    unit = [Statement("reschedule_command", claim), Statement("complete_command", claim)]
                if id_ in held.ids:  # otherwise a renewal found it lost while it was handled
                    held.ids.remove(id_)
                    changed = await settled(self._engine.submit(unit))
                    if not any(changed):
                        _log_lost(id_)
        return failures

    @asynccontextmanager
    async def _renewing(self, held: _HeldCommands) -> AsyncIterator[None]:
        """Renew the claims on the held commands while the block runs; release those left at its end."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(held.lease.total_seconds() / 3)
                try:
                    await self._renew_commands(held)
                except WfeError as error:  # the next round tries again, well before the lease ends
                    _log_not_renewed(held, error)

        renewal = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewal.cancel()
            if held.ids:
                await self._give_back("release_command", held.ids, held.token)

    async def _ensure_held(self, held: _HeldCommands) -> None:
        """Make sure, by the clock, that the commands are held now; remove those that are not.

        The claims are renewed at every third of the lease. If less than a third is left, this host was suspended, or
        the store did not answer, and another host may have taken the commands.
        """
        if held.expires_at - self._clock() >= held.lease / 3:
            return
        try:
            await self._renew_commands(held)
        except StoreError as error:
            if self._clock() >= held.expires_at:
                raise
            _log_not_renewed(held, error)
        if held.ids and self._clock() >= held.expires_at:
            _log.warning(
                "%d scheduled commands are released because renewing them takes longer than their lease", len(held.ids)
            )
            given_back, held.ids = held.ids, []
            await self._give_back("release_command", given_back, held.token)

    async def _renew_commands(self, held: _HeldCommands) -> None:
        """Extend the claims on commands, and remove commands that the token no longer holds."""
        async with held.renewing:
            ids, expires_at = list(held.ids), self._expiry(held.lease)
            params = {"ids": encode_ids(ids), "token": held.token, "expires_at": TIME.encode(expires_at)}
            (rows,) = await self._engine.write([Statement("renew_commands", params)])
            held.expires_at = expires_at
            renewed = {row[0] for row in rows}
            for id_ in ids:
                if id_ in held.ids and id_ not in renewed:
                    held.ids.remove(id_)
                    _log_lost(id_)


def schedule_command(command: ScheduledCommand) -> Statement:
    """Return the statement that stores a command; if it is already scheduled, the earlier time wins."""
    return Statement("schedule_command", SCHEDULED_COMMANDS.encode(command))


def _log_lost(command_id: int) -> None:
    _log.warning("scheduled command %d is no longer held: its lease ended, and another host took it", command_id)


def _log_not_renewed(held: _HeldCommands, error: WfeError) -> None:
    _log.warning("the claims on scheduled commands %s could not be renewed: %s", held.ids, error)
