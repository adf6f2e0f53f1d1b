"""Tools for the tests of hosts and of other backends; the `README.md` beside this file shows how to use it.

Fixtures come from the pytest plugin `wfe_sql_pytest`, which pytest finds by itself.
"""

from wfe_sql.testing.capabilities import Capabilities
from wfe_sql.testing.clock import ManualClock, default_times
from wfe_sql.testing.ids import seeded_ids
from wfe_sql.testing.samples import full_event, full_instance, full_pointer, full_subscription, sample_instance
from wfe_sql.testing.snapshots import take_snapshot
from wfe_sql.testing.wrappers import CountingProvider, FailingProvider

__all__ = [
    "Capabilities",
    "CountingProvider",
    "FailingProvider",
    "ManualClock",
    "default_times",
    "full_event",
    "full_instance",
    "full_pointer",
    "full_subscription",
    "sample_instance",
    "seeded_ids",
    "take_snapshot",
]
