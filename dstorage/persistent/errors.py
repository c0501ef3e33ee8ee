"""What can go wrong with persistent data, split by whose doing it is."""

from __future__ import annotations

import errno

from dstorage.errors import DStorageError


class PersistentDataError(DStorageError):
    """Base of the errors of persistent data."""

    def __str__(self) -> str:
        # The message alone, also where an error number or a key belongs to the error.
        return str(self.args[-1])


class MissingKeyError(PersistentDataError, KeyError):
    """There is no entry of that key; nothing was changed."""


class DamagedMetadataError(PersistentDataError, OSError):
    """Metadata that break a rule of their format; nothing of the block is used.

    Attributes:
        block: The metadata block.
    """

    def __init__(self, message: str, *, block: int) -> None:
        super().__init__(errno.EIO, message)
        self.block = block


class BlockLockError(PersistentDataError, RuntimeError):
    """A block was locked, released or written in a way its locks forbid: a mistake of the program; nothing was changed.

    Attributes:
        block: The metadata block.
    """

    def __init__(self, message: str, *, block: int) -> None:
        super().__init__(message)
        self.block = block


class DeadlockError(BlockLockError):
    """Waiting for the lock would never end: its holders wait, one for the other, for locks of this thread."""


class WouldBlockError(PersistentDataError, BlockingIOError):
    """A view that never waits was asked for a block that is not in memory, or is being written.

    Attributes:
        block: The metadata block; `Clone.fetch_missed` fetches it.
    """

    def __init__(self, message: str, *, block: int) -> None:
        super().__init__(errno.EWOULDBLOCK, message)
        self.block = block


class SpaceMapFullError(PersistentDataError, OSError):
    """Nothing is left to allocate; what was freed in this transaction is to be had after its commit.

    Attributes:
        kind: What is full: "data" or "metadata".
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(errno.ENOSPC, message)
        self.kind = kind


class ReadOnlyMetadataError(PersistentDataError, PermissionError):
    """The metadata were opened only to be read, or a change that failed half way must be taken back by `abort` first."""
