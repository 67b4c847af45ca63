"""The exceptions of a search that its caller may want to tell apart."""


class SearchMismatchError(ValueError):
    """A study, or a folder, belongs to another search."""


class StorageError(RuntimeError):
    """The database of a search cannot be reached, read or written.

    The message is one line, says what to do, and has no credentials in it.
    """


class StorageUrlError(StorageError, ValueError):
    """The URL of a database is malformed, or there is no driver for it."""


class ConsecutiveFailuresError(RuntimeError):
    """So many trials failed one after another that the search has stopped."""


class SearchWarning(UserWarning):
    """A search has its result, but not all of it went as it should."""
