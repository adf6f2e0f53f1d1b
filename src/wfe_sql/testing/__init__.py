"""For the tests of hosts and of other backends: a clock that is moved by hand, samples, and the conformance suite.

A backend is tested by a module of its own that has a `provider` and a `clock` fixture (`wfe_sql.testing.fixtures` has
ready ones) and the suite's classes:

    from wfe_sql.testing.conformance import *
"""

from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.clock import ManualClock
from wfe_sql.testing.samples import full_event, full_instance, full_pointer, full_subscription, sample_instance

__all__ = [
    "Capabilities",
    "ManualClock",
    "full_event",
    "full_instance",
    "full_pointer",
    "full_subscription",
    "sample_instance",
]
