"""Reading and writing past the page cache: whole pages, through memory that is in one piece.

Direct I/O costs little processor time, and leaves no pages that the kernel would write when it suits it, or that a memory
control group would have to reclaim. It needs memory that begins on a page. And a device takes a request of a few hundred
pieces at most: with pages of 4 KiB from all over, that is less than 1 MiB. Through huge pages (and a copy, for which the interpreter is not
locked) 2 MiB were read three times as fast, and written half as fast again, as from and into the chunks themselves.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import suppress

from dstorage.buffers import HUGE_PAGE, address_of, copy
from dstorage.controller import Buffer
from dstorage_controllers.disk.device import Device
from dstorage_controllers.disk.files import write_all
from dstorage_controllers.disk.layout import PAGE

DIRECT_BYTES = 128 * 2**10
"""Stored bytes from which direct I/O pays: below, one call for each costs more than the copy through the page cache."""

Written = tuple[int, OSError | None]
"""Up to where all is written, and why if that is short of the end."""


def pages(stored: int) -> int:
    """Bytes of the whole pages that hold so many."""
    return -(-stored // PAGE) * PAGE


def one_piece(size: int) -> memoryview:
    """Memory on huge pages, where the system has them; a multiple of their size."""
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size + HUGE_PAGE, **flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Refused by a kernel without them.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    first = -address_of(memory) % HUGE_PAGE
    return memoryview(memory)[first : first + size]


class DirectReader:
    """Reads extents side by side; for one thread.

    Args:
        device: The file system.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory = one_piece(HUGE_PAGE)

    def read(self, fd: int, targets: Iterable[tuple[int, bytearray | memoryview]], offset: int, end: int) -> bool:
        """Blocking: read from `offset` (on a page) to `end`; False if that did not come whole.

        Args:
            fd: Descriptor for direct I/O.
            targets: (offset, what to fill from there on) of each extent.
            offset: Of the first.
            end: Of the last.

        Raises:
            OSError: From the device.
        """
        wanted = [(first, first + len(buffer), memoryview(buffer)) for first, buffer in targets]
        while offset < end:
            memory = self._memory[: pages(end - offset)]
            done = self._device.preadv(fd, [memory], offset)
            if done < min(len(memory), end - offset):
                return False
            for first, last, view in wanted:
                low, high = max(first, offset), min(last, offset + done)
                if low < high:
                    copy(view[low - first : high - first], memory[low - offset : high - offset])
            offset += len(memory)
        return True


class DirectWriter:
    """Writes extents side by side, each from a page on; for one thread.

    Args:
        device: The file system.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: memoryview | None = None

    def write(self, fd: int, extents: Sequence[Buffer], offset: int) -> Written:
        """Blocking: write `extents` from `offset` (on a page) on, each filled up to whole pages with zeros."""
        if self._memory is None:
            self._memory = one_piece(2 * HUGE_PAGE)
        memory = self._memory
        used = 0
        for extent in extents:
            left = memoryview(extent).cast("B")
            while left:
                if used == len(memory):
                    offset, error = write_all(self._device, fd, [memory], offset)
                    if error is not None:
                        return offset, error
                    used = 0
                take = min(len(left), len(memory) - used)
                copy(memory[used : used + take], left[:take])
                filled = used + pages(take)
                memory[used + take : filled] = bytes(filled - used - take)
                used = filled
                left = left[take:]
        return write_all(self._device, fd, [memory[:used]], offset)
