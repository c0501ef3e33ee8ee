"""What can go wrong with persistent data, split by whose doing it is."""

from __future__ import annotations

import errno

from dstorage.errors import DStorageError


class PersistentDataError(DStorageError):
    """Base of the errors of persistent data."""


class MissingKeyError(PersistentDataError, KeyError):
    """There is no entry of that key; nothing was changed."""

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedMetadataError(PersistentDataError, OSError):
    """Metadata that break a rule of their format; nothing of the block is used.

    Attributes:
        block: The metadata block.
    """

    def __init__(self, message: str, *, block: int) -> None:
        super().__init__(errno.EIO, message)
        self.block = block

    def __str__(self) -> str:
        return str(self.args[1])
