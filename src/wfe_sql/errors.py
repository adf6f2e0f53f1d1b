"""Every error that this library raises on purpose.

The driver's own error, where there is one, is the `__cause__`. An error says in its attributes what it is about, as far
as that is known, so that nobody has to parse its message; attributes that are unknown or do not apply are None.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wfe_sql.models import Claim


class WfeError(Exception):
    """Base of every error of this library."""


class WorkflowNotFoundError(WfeError):
    """No workflow has this id or name.

    Attributes:
        workflow_id: The id that no workflow has.
        name: The name that no workflow has.
    """

    def __init__(self, *args: object, workflow_id: str | None = None, name: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.workflow_id = workflow_id
        self.name = name


class EventNotFoundError(WfeError):
    """No event has this id.

    Attributes:
        event_id: The id that no event has.
    """

    def __init__(self, *args: object, event_id: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.event_id = event_id


class SubscriptionNotFoundError(WfeError):
    """No subscription has this id.

    Attributes:
        subscription_id: The id that no subscription has.
    """

    def __init__(self, *args: object, subscription_id: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.subscription_id = subscription_id


class WorkflowAlreadyExistsError(WfeError):
    """Another workflow has this id or name; nothing was written.

    Attributes:
        workflow_id: The id that another workflow has.
        name: The name that another workflow has.
    """

    def __init__(self, *args: object, workflow_id: str | None = None, name: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.workflow_id = workflow_id
        self.name = name


class EventAlreadyExistsError(WfeError):
    """Another event has this id; nothing was written.

    Attributes:
        event_id: The id that another event has.
    """

    def __init__(self, *args: object, event_id: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.event_id = event_id


class SubscriptionTokenError(WfeError):
    """The subscription does not hold this token; nothing was changed.

    Attributes:
        subscription_id: The subscription.
    """

    def __init__(self, *args: object, subscription_id: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.subscription_id = subscription_id


class WorkflowConflictError(WfeError):
    """Somebody else changed the workflow since it was loaded; nothing was written.

    Attributes:
        workflow_id: The workflow.
    """

    def __init__(self, *args: object, workflow_id: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.workflow_id = workflow_id


class ClaimLostError(WfeError):
    """The claim was released, or it expired and another worker took it; nothing was written.

    Attributes:
        claim: The claim that no longer holds.
    """

    def __init__(self, *args: object, claim: "Claim | None" = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.claim = claim


class SerializationError(WfeError, ValueError):
    """A value cannot be stored; raised before anything is written.

    Attributes:
        field: The argument, or the field of a model, such as "limit" or "WorkflowInstance.data".
    """

    def __init__(self, *args: object, field: str | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.field = field


class CorruptRowError(WfeError):
    """A stored row cannot be read; the message names table, column and id.

    Attributes:
        table: The table.
        column: The column that cannot be read.
        row_id: The id of the row; a number where the table has no other.
    """

    def __init__(self, *args: object, table: str | None = None, column: str | None = None, row_id: Any = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.table = table
        self.column = column
        self.row_id = row_id


class ProviderClosedError(WfeError):
    """The provider is closed, or was never opened."""


class QueryFileError(WfeError):
    """A `.sql` file breaks a rule of `sql/README.md`; the message names file, line and query."""


class StoreError(WfeError):
    """An error of the store as a whole."""


class StoreBusyError(StoreError):
    """Another connection held the store for longer than the busy timeout.

    Attributes:
        timeout: How long the call waited, by the timeout that ended the wait.
    """

    def __init__(self, *args: object, timeout: timedelta | None = None) -> None:
        """Take the message, and the attributes as keywords."""
        super().__init__(*args)
        self.timeout = timeout


class StoreCorruptError(StoreError):
    """The file is damaged, or is not a database."""


class StoreVersionError(StoreError):
    """This version of the library does not support the tables."""


class StoreFullError(StoreError):
    """The disk is full; nothing was written."""


class StoreNotEmptyError(StoreError):
    """The store to copy into already has rows; nothing was copied."""


class StoreReadOnlyError(StoreError):
    """A write to a store that is open read-only, or that cannot be written."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or opened."""
