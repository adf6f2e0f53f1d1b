"""What `persist_workflow_with_subscriptions` promises, for a backend with both repositories."""

import asyncio
from copy import deepcopy
from typing import Protocol

import pytest

from wfe_sql.errors import StoreError, WorkflowNotFoundError
from wfe_sql.models import new_id
from wfe_sql.repositories import SubscriptionRepository, WorkflowRepository
from wfe_sql.testing.samples import TIME, full_pointer, full_subscription, sample_instance


class WorkflowsWithSubscriptions(WorkflowRepository, SubscriptionRepository, Protocol):
    """Workflows with their subscriptions."""


@pytest.mark.asyncio
class TestWorkflowsWithSubscriptions:
    """A workflow and its new subscriptions are stored together or not at all."""

    async def test_both_are_stored(self, provider: WorkflowsWithSubscriptions) -> None:
        instance = sample_instance()
        await provider.create_new_workflow(instance)
        instance.data = "waits"
        subscriptions = [full_subscription(id=id_, workflow_id=instance.id) for id_ in "ab"]
        await provider.persist_workflow_with_subscriptions(instance, subscriptions)
        assert await provider.get_workflow_instance(instance.id) == instance
        assert await provider.get_subscriptions("paid", "k1", subscriptions[0].subscribe_as_of) == subscriptions

    async def test_a_subscription_that_exists_stores_nothing(self, provider: WorkflowsWithSubscriptions) -> None:
        instance = sample_instance()
        await provider.create_new_workflow(instance)
        there, new = full_subscription(), full_subscription()
        await provider.create_event_subscription(there)
        changed = sample_instance(id=instance.id, name=instance.name, data="changed")
        with pytest.raises(StoreError, match=there.id):
            await provider.persist_workflow_with_subscriptions(changed, [new, there])
        assert await provider.get_workflow_instance(instance.id) == instance
        assert await provider.get_subscriptions("paid", "k1", there.subscribe_as_of) == [there]

    async def test_one_instance_persisted_by_several_tasks(self, provider: WorkflowsWithSubscriptions) -> None:
        stored = sample_instance(execution_pointers=[])
        await provider.create_new_workflow(stored)
        subscriptions = [full_subscription(workflow_id=stored.id) for _ in range(5)]
        for round_ in range(3):
            tasks = []
            for subscription in subscriptions:
                stored.data = {"round": round_, "subscription": subscription.id}
                stored.execution_pointers.append(full_pointer())
                subscription.id = new_id()
                call = provider.persist_workflow_with_subscriptions(stored, [subscription])
                tasks.append(asyncio.create_task(call))
                await asyncio.sleep(0)
            at_the_last_call = deepcopy(stored)
            stored.data = "later"
            await asyncio.gather(*tasks)
            assert await provider.get_workflow_instance(stored.id) == at_the_last_call
        await asyncio.gather(provider.persist_workflow(stored), provider.persist_workflow(stored))
        assert await provider.get_workflow_instance(stored.id) == stored

    async def test_of_an_unknown_id(self, provider: WorkflowsWithSubscriptions) -> None:
        unknown = sample_instance()
        with pytest.raises(WorkflowNotFoundError, match=unknown.id):
            await provider.persist_workflow_with_subscriptions(unknown, [full_subscription(workflow_id=unknown.id)])
        assert await provider.get_subscriptions("paid", "k1", TIME) == []
