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
    """Somebody else changed the workflow since it was loaded; nothing was written."""


class ClaimLostError(WfeError):
    """The claim was released, or it expired and another worker took it; nothing was written."""


class SerializationError(WfeError, ValueError):
    """A value cannot be stored as it is; raised before anything is written."""


class CorruptRowError(WfeError):
    """A stored row cannot be read; the message names table, column and id."""


class ProviderClosedError(WfeError):
    """The provider is closed, or was never opened."""


class QueryFileError(WfeError):
    """A `.sql` file breaks a rule of `sql/README.md`; the message names file, line and query."""


class StoreError(WfeError):
    """An error of the store as a whole."""


class StoreBusyError(StoreError):
    """Another connection held the store for longer than the busy timeout."""


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
