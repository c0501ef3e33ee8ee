"""What can go wrong with a thin pool, split by whose doing it is; damage to its metadata is `dstorage.persistent.errors`' part."""

from __future__ import annotations

import errno

from dstorage.errors import ClosedError, DStorageError, InvalidArgumentError
from dstorage.persistent.errors import DamagedMetadataError

__all__ = [
    "ClosedError",
    "DamagedMetadataError",
    "DeviceBusyError",
    "DeviceExistsError",
    "InvalidArgumentError",
    "NoSuchDeviceError",
    "NotAPoolError",
    "PoolFullError",
    "PoolReadOnlyError",
    "VolumeError",
    "XmlError",
]


class VolumeError(DStorageError):
    """Base of the errors of pools and volumes."""

    def __str__(self) -> str:
        # The message alone, also where an error number or a key belongs to the error.
        return str(self.args[-1])


class NotAPoolError(VolumeError, OSError):
    """The file holds no thin-pool metadata, or one that this version must not touch; it was left as it was."""


class NoSuchDeviceError(VolumeError, LookupError):
    """The pool has no device of that id."""


class DeviceExistsError(VolumeError, FileExistsError):
    """The pool has a device of that id already."""


class DeviceBusyError(VolumeError, OSError):
    """The device is open as a volume, or there is a metadata snapshot already."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBUSY, message)


class PoolFullError(VolumeError, OSError):
    """Nothing is left to allocate.

    Attributes:
        kind: What is full: "data" or "metadata".
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(errno.ENOSPC, message)
        self.kind = kind


class PoolReadOnlyError(VolumeError, PermissionError):
    """The pool takes no changes: opened read-only, marked as needing a check, or fallen back after a failed commit."""


class XmlError(VolumeError, ValueError):
    """The text is not the thin tools' XML.

    Attributes:
        line: Line of the text, from 1.
    """

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
