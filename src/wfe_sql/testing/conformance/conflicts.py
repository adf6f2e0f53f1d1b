"""What a provider that raises on conflicts promises: nobody overwrites somebody else's change."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Protocol

import pytest

from wfe_sql.errors import WorkflowConflictError, WorkflowNotFoundError
from wfe_sql.repositories import WorkflowRepository
from wfe_sql.testing.conformance.workflows_with_subscriptions import WorkflowsWithSubscriptions
from wfe_sql.testing.samples import TIME, full_instance, full_pointer, full_subscription, sample_instance


class DeletedWorkflows(WorkflowRepository, Protocol):
    """Workflows that can be deleted."""

    async def delete_workflow(self, id: str) -> None:
        """Delete a workflow."""
        ...


@pytest.mark.asyncio
class TestWorkflowConflicts:
    """No update is lost silently."""

    async def test_the_second_of_two_writers_hears_of_it(self, provider: WorkflowRepository) -> None:
        stored = full_instance()
        await provider.create_new_workflow(stored)
        one, other = [await provider.get_workflow_instance(stored.id) for _ in range(2)]
        one.data, other.data = "one", "other"
        other.execution_pointers.append(full_pointer())
        await provider.persist_workflow(one)
        for late in (provider.persist_workflow(other), provider.persist_workflow(stored)):
            with pytest.raises(WorkflowConflictError, match=stored.id):
                await late
        assert await provider.get_workflow_instance(stored.id) == one

    async def test_an_instance_whose_id_was_changed(self, provider: WorkflowRepository) -> None:
        one, other = sample_instance(execution_pointers=[]), full_instance()
        for stored in (one, other):
            await provider.create_new_workflow(stored)
        loaded = await provider.get_workflow_instance(one.id)
        for changed in (one, loaded):
            changed.id, changed.name = other.id, other.name
            with pytest.raises(WorkflowConflictError, match=other.id):
                await provider.persist_workflow(changed)
            changed.id = "unknown"
            with pytest.raises(WorkflowNotFoundError, match="unknown"):
                await provider.persist_workflow(changed)
        assert await provider.get_workflow_instance(other.id) == other

    async def test_a_writer_of_another_provider_hears_of_it(
        self, provider: WorkflowRepository, another_provider: Callable[[], Awaitable[WorkflowRepository]]
    ) -> None:
        stored, other = sample_instance(), await another_provider()
        await provider.create_new_workflow(stored)
        theirs = await other.get_workflow_instance(stored.id)
        stored.data = "ours"
        await provider.persist_workflow(stored)
        theirs.data = "theirs"
        with pytest.raises(WorkflowConflictError, match=stored.id):
            await other.persist_workflow(theirs)
        assert await other.get_workflow_instance(stored.id) == stored


@pytest.mark.asyncio
class TestWorkflowConflictsWithSubscriptions:
    """If an update comes too late, its subscriptions are not stored either."""

    async def test_the_second_of_two_writers_hears_of_it(self, provider: WorkflowsWithSubscriptions) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        late = await provider.get_workflow_instance(stored.id)
        await provider.persist_workflow(stored)
        with pytest.raises(WorkflowConflictError, match=stored.id):
            await provider.persist_workflow_with_subscriptions(late, [full_subscription(workflow_id=stored.id)])
        assert await provider.get_subscriptions("paid", "k1", TIME) == []


@pytest.mark.asyncio
class TestWorkflowConflictsWithDeleted:
    """A deleted workflow does not overwrite a new one with its id."""

    @pytest.mark.parametrize("persists", [0, 3])
    async def test_a_late_persist_of_a_deleted_life(self, provider: DeletedWorkflows, persists: int) -> None:
        """A workflow is deleted and created again with the same id, and has the same revision."""
        lives = [full_instance(id="nightly", create_time=TIME + timedelta(microseconds=life)) for life in range(2)]
        for life in lives:
            await provider.create_new_workflow(life)
            for _ in range(persists):
                await provider.persist_workflow(life)
            if life is lives[0]:
                loaded = await provider.get_workflow_instance("nightly")
                await provider.delete_workflow("nightly")
        for late in (lives[0], loaded):
            late.create_time = lives[1].create_time
            late.execution_pointers[0].outcome = "late"
            with pytest.raises(WorkflowConflictError, match="nightly"):
                await provider.persist_workflow(late)
        assert await provider.get_workflow_instance("nightly") == lives[1]
