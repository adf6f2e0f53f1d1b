"""What `ExecutionErrorRepository` promises."""

from datetime import timedelta

import pytest

from wfe_sql.models import ExecutionError
from wfe_sql.repositories import ExecutionErrorRepository
from wfe_sql.testing.samples import TIME


@pytest.mark.asyncio
class TestExecutionErrors:
    """Store and list errors of steps."""

    async def test_they_come_back_in_the_order_stored(self, provider: ExecutionErrorRepository) -> None:
        errors = [
            ExecutionError(
                error_time=TIME - timedelta(seconds=number),
                workflow_id=f"w{number % 2}",
                execution_pointer_id=f"p{number}",
                message=f"boom {number}\n'again'",
            )
            for number in range(6)
        ]
        await provider.persist_errors(errors[:4])
        await provider.persist_errors([])
        await provider.persist_errors(errors[4:])
        assert await provider.get_execution_errors() == errors
        assert await provider.get_execution_errors(limit=2) == errors[:2]
        assert await provider.get_execution_errors("w1") == errors[1::2]
        assert await provider.get_execution_errors("w1", limit=1) == errors[1:2]
        assert await provider.get_execution_errors("unknown") == []
