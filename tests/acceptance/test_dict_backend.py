import pytest

from dict_backend import DictProvider
from wfe_sql.testing import ManualClock
from wfe_sql.testing.conformance import (
    TestEventRepository,
    TestSubscriptionRepository,
    TestWorkflowRepository,
    another_provider,
    capabilities,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def provider(clock: ManualClock) -> DictProvider:
    return DictProvider(clock)
