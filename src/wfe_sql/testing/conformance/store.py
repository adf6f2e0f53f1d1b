"""What `ensure_store_exists` promises."""

from typing import Protocol

import pytest

from wfe_sql.repositories import WorkflowRepository
from wfe_sql.testing.samples import sample_instance


class Store(WorkflowRepository, Protocol):
    """Workflows, and the store that they are in."""

    async def ensure_store_exists(self) -> None:
        """Create what is missing."""
        ...


@pytest.mark.asyncio
class TestStore:
    """A missing store is created."""

    async def test_making_the_store_twice_is_fine(self, provider: Store) -> None:
        stored = sample_instance()
        await provider.create_new_workflow(stored)
        for _ in range(2):
            await provider.ensure_store_exists()
        assert await provider.get_workflow_instance(stored.id) == stored
