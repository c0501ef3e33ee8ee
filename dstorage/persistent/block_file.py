"""Where metadata blocks lie: anything with positioned reads and writes; and a local file as one.

A file is not locked here; see `dstorage.volumes.lock`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from dstorage.durable import sync_file
from dstorage.persistent import positioned
from dstorage.persistent.validators import Buffer


class BlockDevice(Protocol):
    """What a block manager reads and writes; offsets and lengths are in bytes. Calls block until they are done."""

    @property
    def name(self) -> str:
        """For messages: what and where it is."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def pread(self, length: int, offset: int, /) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the device."""

    def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` at `offset`."""

    def sync(self) -> None:
        """Return when all that was written before is durable; what is written later may not become so earlier."""

    def will_need(self, length: int, offset: int, /) -> None:
        """A hint that these bytes will be read soon; may do nothing."""

    def truncate(self, size: int, /) -> None:
        """Make the device `size` bytes long; what is new reads as zeros."""

    def close(self) -> None:
        """Release it; a second call does nothing."""


class BlockFile:
    """A file of blocks.

    Args:
        path: The file; it must be there.
        read_only: Refuse writing.

    Raises:
        OSError: It cannot be opened, or is neither a file nor a block device.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._fd = positioned.open_file(path, read_only=read_only)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return positioned.size_of(self._fd)

    def pread(self, length: int, offset: int, /) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the file."""
        return positioned.pread(self._fd, length, offset)

    def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` at `offset`."""
        positioned.pwrite(self._fd, data, offset)

    def sync(self) -> None:
        """Return when all that was written before is durable."""
        sync_file(self._fd)

    def will_need(self, length: int, offset: int, /) -> None:
        """Have the kernel read these bytes ahead, where it can be told."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def truncate(self, size: int, /) -> None:
        """Make the file `size` bytes long."""
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
