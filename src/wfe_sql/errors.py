"""Every error that this library raises on purpose.

The driver's own error, where there is one, is the `__cause__`.
"""


class WfeError(Exception):
    """Base of every error of this library."""


class WorkflowNotFoundError(WfeError):
    """No workflow has this id or name."""


class EventNotFoundError(WfeError):
    """No event has this id."""


class SubscriptionNotFoundError(WfeError):
    """No subscription has this id."""


class WorkflowAlreadyExistsError(WfeError):
    """Another workflow has this id or name; nothing was written."""


class EventAlreadyExistsError(WfeError):
    """Another event has this id; nothing was written."""


class SubscriptionTokenError(WfeError):
    """The subscription does not hold this token; nothing was changed."""


class WorkflowConflictError(WfeError):
    """The workflow was changed by somebody else since it was loaded; nothing was written."""


class ClaimLostError(WfeError):
    """The claim expired and was taken by somebody else, or was released; nothing was written."""


class SerializationError(WfeError, ValueError):
    """A value cannot be stored as it is; raised before anything is written."""


class CorruptRowError(WfeError):
    """A stored row cannot be read; the message names table, column and id."""


class ProviderClosedError(WfeError):
    """The provider is closed, or was never opened."""


class QueryFileError(WfeError):
    """A `.sql` file breaks the contract; the message names file, line and query."""


class StoreError(WfeError):
    """The store as a whole could not do what was asked."""


class StoreBusyError(StoreError):
    """Another connection held the store for longer than the busy timeout."""


class StoreCorruptError(StoreError):
    """The file is damaged, or is no database."""


class StoreVersionError(StoreError):
    """The tables are not ones that this version of the library can work with."""


class StoreFullError(StoreError):
    """There is no room left for the write; nothing of it was stored."""


class StoreNotEmptyError(StoreError):
    """The store to copy into has rows already; nothing was copied."""


class StoreReadOnlyError(StoreError):
    """A write was asked of a store that is open for reading only, or may not be written."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or opened."""
