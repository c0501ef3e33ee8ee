"""Every error dstorage raises on purpose, split by whose doing it is.

Each class also inherits the builtin a program would catch anyway (`MemoryUnavailable` is a `MemoryError`, `StoreLocked` an
`OSError`), carries what it is about in fields (`id`, `controller`, `retry_at`), and ends its message with the way out.
"""

from __future__ import annotations


class DStorageError(Exception):
    """Base of all errors of this package."""


# -- misuse: the program's own doing ----------------------------------------------------------------------------------


class UsageError(DStorageError, RuntimeError):
    """A call that the state of the store or handle does not allow; nothing was changed."""


class OverReleaseError(UsageError):
    """A handle was released more often than it was acquired."""


class IllegalTransitionError(UsageError):
    """A handle was asked to go to a status that cannot follow its present one."""


class NotResolvedError(UsageError, AttributeError):
    """`handle.data` was read while the bytes are not in memory; `await` or `resolve` the handle first."""


class ClosedError(UsageError):
    """The store was closed; open it again."""


class ReadOnlyError(UsageError, PermissionError):
    """The store was opened with `read_only=True`."""


class InvalidArgumentError(DStorageError, ValueError):
    """An argument has a value that can never work; the message names it and what is allowed."""


# -- the chunk --------------------------------------------------------------------------------------------------------


class ChunkError(DStorageError):
    """Base of what can be wrong with one chunk.

    Attributes:
        id: The chunk's id.
        controller: Name of the controller concerned, or None.
    """

    def __init__(self, message: str, *, id: int = 0, controller: str | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.controller = controller


class TemporarilyUnavailable(ChunkError, OSError):
    """The bytes cannot be had now and may be had later.

    Attributes:
        retry_at: Event-loop time (seconds) before which asking again is answered from memory; None when unknown.
    """

    def __init__(
        self, message: str, *, id: int = 0, controller: str | None = None, retry_at: float | None = None
    ) -> None:
        super().__init__(message, id=id, controller=controller)
        self.retry_at = retry_at


class Lost(ChunkError, LookupError):
    """The bytes are gone for ever: unknown id, removed controller, or damaged with no other copy.

    Attributes:
        reason: Why, in a few words.
    """

    def __init__(self, reason: str, *, id: int = 0, controller: str | None = None) -> None:
        super().__init__(f"chunk {id} is lost: {reason}", id=id, controller=controller)
        self.reason = reason


class Deleted(ChunkError, LookupError):
    """The program deleted the chunk."""


class CorruptData(ChunkError, OSError):
    """Bytes read do not match their checksum (or a header makes no sense); they are never returned."""


# -- no room ----------------------------------------------------------------------------------------------------------


class MemoryUnavailable(DStorageError, MemoryError):
    """The memory budget is held by references (or waiting for write-back); free some or pass `wait=seconds`.

    Attributes:
        never: Waiting does not help: what is asked for is larger than the whole budget.
    """

    never = False


class TooManyHandles(MemoryUnavailable):
    """The limit on the number of handles is reached and all are referenced."""


class StoreFull(DStorageError, OSError):
    """No controller that may take the chunk has room; add one, raise a capacity, or delete chunks that no commit has yet.

    Deleting what a commit has gives its room back with the next commit, which has to write what is dirty first.
    """


# -- the store as a whole ---------------------------------------------------------------------------------------------


class StoreLocked(DStorageError, OSError):
    """Another process writes this store.

    Attributes:
        pid: The process that holds it, or None if it could not be read.
    """

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class VersionError(DStorageError, OSError):
    """The store was written in a format this version does not know; it was left untouched.

    Attributes:
        found: Format version in the store.
        supported: Newest format version this package reads.
    """

    def __init__(self, message: str, *, found: int, supported: int) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class NotAStoreError(DStorageError, FileNotFoundError):
    """The path holds no store."""


class ControllerError(DStorageError, OSError):
    """A controller could not be opened or did something its contract forbids."""


class ControllerFull(ControllerError):
    """Raised by a controller's `write` when it has no room; the store takes the next in rank."""


class ControllerUnavailable(ControllerError):
    """Raised by a controller when a failure may pass (EIO once, time-outs, connection lost).

    Attributes:
        retry_after: Seconds after which asking again makes sense, or None to let the store back off.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
