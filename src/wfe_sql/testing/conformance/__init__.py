"""What every backend must do, as pytest classes; they need a `provider` and a `clock` fixture.

The provider is empty for each test and goes by the clock. Import all of it into a test module of the backend's own, and
override the fixture `capabilities` there if the backend lacks one.
"""

import pytest

from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.conformance.bad_input import TestBadInput
from wfe_sql.testing.conformance.claims import TestClaims
from wfe_sql.testing.conformance.commands import TestExecutionErrors, TestScheduledCommandRepository
from wfe_sql.testing.conformance.events import TestEventRepository
from wfe_sql.testing.conformance.maintenance import TestDeleting, TestDump, TestHealth, TestListing
from wfe_sql.testing.conformance.subscriptions import TestSubscriptionRepository
from wfe_sql.testing.conformance.units import TestBadUnits, TestUnits
from wfe_sql.testing.conformance.workflows import TestWorkflowRepository


@pytest.fixture
def capabilities() -> Capabilities:
    """Return all capabilities."""
    return Capabilities()


__all__ = [
    "TestBadInput",
    "TestBadUnits",
    "TestClaims",
    "TestDeleting",
    "TestDump",
    "TestEventRepository",
    "TestExecutionErrors",
    "TestHealth",
    "TestListing",
    "TestScheduledCommandRepository",
    "TestSubscriptionRepository",
    "TestUnits",
    "TestWorkflowRepository",
    "capabilities",
]
