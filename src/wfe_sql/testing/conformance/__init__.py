"""What every backend must do, as pytest classes: one for each Protocol and capability.

They need a `provider` and a `clock` fixture: the provider is empty for each test and uses the clock. Import the classes
for what the backend supports into a test module, or all of them with `*`; no test calls anything outside its class's
Protocol. The `README.md` of `wfe_sql.testing` says which class needs what. The suite checks messages only for what the
Protocols promise: that they name what is unknown, in use or cannot be stored.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.conformance.bad_input import (
    TestBadCommands,
    TestBadEvents,
    TestBadExecutionErrors,
    TestBadSubscriptions,
    TestBadWorkflows,
    TestBadWorkflowsWithSubscriptions,
)
from wfe_sql.testing.conformance.claims import (
    TestClaimsOfWorkflowsWithSubscriptions,
    TestEventClaims,
    TestWorkflowClaims,
)
from wfe_sql.testing.conformance.commands import TestScheduledCommandRepository
from wfe_sql.testing.conformance.conflicts import (
    TestWorkflowConflicts,
    TestWorkflowConflictsWithDeleted,
    TestWorkflowConflictsWithSubscriptions,
)
from wfe_sql.testing.conformance.errors import TestExecutionErrors
from wfe_sql.testing.conformance.events import TestEventRepository
from wfe_sql.testing.conformance.hosting import (
    TestChange,
    TestHold,
    TestLoadedClaims,
    TestNumberedWorkflows,
    TestProcess,
)
from wfe_sql.testing.conformance.maintenance import (
    TestDeleting,
    TestDump,
    TestHealth,
    TestListing,
    TestMaintenanceOfCommands,
)
from wfe_sql.testing.conformance.store import TestStore
from wfe_sql.testing.conformance.subscriptions import TestSubscriptionRepository
from wfe_sql.testing.conformance.units import TestBadUnits, TestUnits
from wfe_sql.testing.conformance.waiting import TestWaiting, TestWakingUp
from wfe_sql.testing.conformance.workflows import TestWorkflowRepository
from wfe_sql.testing.conformance.workflows_with_subscriptions import TestWorkflowsWithSubscriptions


@pytest.fixture
def capabilities() -> Capabilities:
    """Return all capabilities; override it in the backend's module if the backend lacks one."""
    return Capabilities()


@pytest.fixture
def another_provider() -> Callable[[], Awaitable[Any]]:
    """Skip the tests of two providers of one store; a backend that can have them overrides this.

    It then returns an async function, which opens another provider of the store that `provider` has.
    """
    pytest.skip("needs two providers of one store: override the fixture another_provider if the backend can have them")


__all__ = [
    "TestBadCommands",
    "TestBadEvents",
    "TestBadExecutionErrors",
    "TestBadSubscriptions",
    "TestBadUnits",
    "TestBadWorkflows",
    "TestBadWorkflowsWithSubscriptions",
    "TestChange",
    "TestClaimsOfWorkflowsWithSubscriptions",
    "TestDeleting",
    "TestDump",
    "TestEventClaims",
    "TestEventRepository",
    "TestExecutionErrors",
    "TestHealth",
    "TestHold",
    "TestListing",
    "TestLoadedClaims",
    "TestMaintenanceOfCommands",
    "TestNumberedWorkflows",
    "TestProcess",
    "TestScheduledCommandRepository",
    "TestStore",
    "TestSubscriptionRepository",
    "TestUnits",
    "TestWaiting",
    "TestWakingUp",
    "TestWorkflowClaims",
    "TestWorkflowConflicts",
    "TestWorkflowConflictsWithDeleted",
    "TestWorkflowConflictsWithSubscriptions",
    "TestWorkflowRepository",
    "TestWorkflowsWithSubscriptions",
    "another_provider",
    "capabilities",
]
