"""What a DBA and an operator need of a store, written once for every backend, as units of named queries."""

from wfe_sql.maintenance.health import Health
from wfe_sql.maintenance.listing import Listing
from wfe_sql.maintenance.retention import Retention
from wfe_sql.maintenance.transfer import Transfer


class Maintenance(Retention, Listing, Health, Transfer):
    """A `MaintenanceRepository`; what each method does is documented there."""
