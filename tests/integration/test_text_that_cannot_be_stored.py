"""Text that a database cannot store, wherever it is used to look something up or to claim it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from wfe_sql import (
    Claim,
    ClaimKind,
    ExecutionError,
    ScheduledCommand,
    SerializationError,
    WfeError,
)
from wfe_sql.provider import SqlPersistenceProvider
from wfe_sql.testing import full_event, full_subscription
from wfe_sql.testing.samples import TIME

LEASE = timedelta(minutes=1)


@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"], ids=["lone surrogate", "NUL"])
async def test_each_call_with_it_fails_alone(
    connect_store: Callable[..., SqlPersistenceProvider], backend: str, text: str
) -> None:
    """It is refused, or not found if it can be stored (ids cannot); other calls at the same time get their answers."""
    async with connect_store() as provider:
        await provider.create_event(full_event(id="e1"))
        await provider.create_event_subscription(full_subscription(id="s1", external_token=None))
        claims = [Claim(kind=kind, id=text, token="t", worker_id="w", expires_at=TIME) for kind in ClaimKind]
        names_and_keys = [
            provider.get_workflow_instance_by_name(text),
            provider.get_events(text, "k1", TIME),
            provider.get_events("paid", text, TIME),
            provider.get_subscriptions(text, "k1", TIME),
            provider.get_first_open_subscription("paid", text, TIME),
        ]
        ids = [
            provider.get_workflow_instance(text),
            provider.get_workflow_instances([text]),
            provider.delete_workflow(text),
            provider.list_workflows(definition_id=text),
            provider.next_definition_sequence(text),
            provider.claim_runnable_instances(TIME, text, lease=LEASE, limit=1),
            provider.claim_runnable_events(TIME, text, lease=LEASE, limit=1),
            *(provider.renew_claim(claim, LEASE) for claim in claims),
            *(provider.release_claim(claim) for claim in claims),
            provider.get_event(text),
            provider.mark_event_processed(text),
            provider.mark_event_unprocessed(text),
            provider.get_subscription(text),
            provider.terminate_subscription(text),
            provider.set_subscription_token(text, "t", "w", TIME),
            provider.set_subscription_token("s1", text, "w", TIME),
            provider.set_subscription_token("s1", "t", text, TIME),
            provider.clear_subscription_token(text, "t"),
            provider.clear_subscription_token("s1", text),
            provider.schedule_command(ScheduledCommand.process_event(text, 0)),
            provider.get_execution_errors(text),
            provider.persist_errors([ExecutionError(workflow_id=text, execution_pointer_id="p", message="m")]),
        ]
        (event, free), outcomes = await asyncio.gather(
            asyncio.gather(provider.get_event("e1"), provider.get_subscription("s1")),
            asyncio.gather(*names_and_keys, *ids, return_exceptions=True),
        )
        assert (event.id, free.external_token) == ("e1", None)
        for number, outcome in enumerate(outcomes):
            if backend == "sqlite" and text == "a\0b" and number < len(names_and_keys):
                assert isinstance(outcome, WfeError) or not getattr(outcome, "items", outcome), (number, outcome)
            else:
                assert isinstance(outcome, SerializationError), (number, outcome)
        assert await provider.get_subscription("s1") == free
