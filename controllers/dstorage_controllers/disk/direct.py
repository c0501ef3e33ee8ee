"""Writing past the page cache: whole pages, from memory that begins on a page.

Direct writes cost next to no processor time, and leave no dirty pages that the kernel would write when it suits it, or that
a memory control group would have to reclaim. What begins on a page is written from where it is; the rest (and the last,
partial page of each extent, filled up with zeros) goes through a few pages of the writer's own.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from dstorage.buffers import PAGE, on_page
from dstorage.controller import Buffer
from dstorage_controllers.disk.device import IOV_MAX, Device
from dstorage_controllers.disk.files import write_all

DIRECT_BYTES = 128 * 2**10
"""Stored bytes from which direct I/O pays: below, one call for each costs more than the copy through the page cache."""
BOUNCE_BYTES = 4 * 2**20


def pages(stored: int) -> int:
    """Bytes of the whole pages that hold so many."""
    return -(-stored // PAGE) * PAGE


class DirectWriter:
    """Writes extents side by side, each from a page on; for one thread.

    Args:
        device: The file system.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._bounce: memoryview | None = None

    def write(self, fd: int, extents: Sequence[Buffer], offset: int) -> tuple[int, OSError | None]:
        """Blocking: write `extents` from `offset` (on a page) on.

        Returns:
            Up to where all is written, and why if that is short of the end of the last extent's pages.
        """
        if self._bounce is None:
            self._bounce = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        gathered: list[Buffer] = []
        used = 0
        for extent in extents:
            left = memoryview(extent).cast("B")
            if on_page(left):
                straight = len(left) // PAGE * PAGE
                if straight:
                    gathered.append(left[:straight])
                    left = left[straight:]
            while left:
                if used == BOUNCE_BYTES or len(gathered) >= IOV_MAX:
                    offset, error = write_all(self._device, fd, gathered, offset)
                    if error is not None:
                        return offset, error
                    gathered, used = [], 0
                take = min(len(left), BOUNCE_BYTES - used)
                piece = self._bounce[used : used + pages(take)]
                piece[:take] = left[:take]
                piece[take:] = bytes(len(piece) - take)
                gathered.append(piece)
                used += len(piece)
                left = left[take:]
        return write_all(self._device, fd, gathered, offset)
