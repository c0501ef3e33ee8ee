"""Writing past the page cache: whole pages, from memory that begins on a page.

Direct writes cost next to no processor time, and leave no dirty pages that the kernel would write when it suits it, or that
a memory control group would have to reclaim. What begins on a page is written from where it is; the rest (and the last,
partial page of each extent, filled up with zeros) goes through a few pages of the writer's own.

A device serves whoever has more requests out, and the page cache of others has many. So much is written as a few parts side by
side: with two, the heat benchmark wrote a tenth faster; with more, no faster.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dstorage.buffers import PAGE, on_page
from dstorage.controller import Buffer
from dstorage_controllers.disk.device import IOV_MAX, Device
from dstorage_controllers.disk.files import write_all

DIRECT_BYTES = 128 * 2**10
"""Stored bytes from which direct I/O pays: below, one call for each costs more than the copy through the page cache."""
BOUNCE_BYTES = 4 * 2**20
PART_BYTES = 2**20
PARTS = 2
"""Written side by side at most, of at least so many bytes each."""

Written = tuple[int, OSError | None]
"""Up to where all is written, and why if that is short of the end."""


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
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads, which are idle."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def write(self, fd: int, extents: Sequence[Buffer], offset: int) -> Written:
        """Blocking: write `extents` from `offset` (on a page) on, each filled up to whole pages."""
        if self._bounce is None:
            self._bounce = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        gathered: list[memoryview] = []
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
                    offset, error = self._write(fd, gathered, offset)
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
        return self._write(fd, gathered, offset)

    def _write(self, fd: int, gathered: list[memoryview], offset: int) -> Written:
        total = sum(len(piece) for piece in gathered)
        share = pages(-(-total // max(1, min(PARTS, total // PART_BYTES))))
        first, *others = _parts(gathered, share) or [gathered]
        if others and self._pool is None:
            self._pool = ThreadPoolExecutor(PARTS - 1, thread_name_prefix="dstorage-direct")
        running = [
            self._pool.submit(write_all, self._device, fd, part, offset + number * share)
            for number, part in enumerate(others, 1)
            if self._pool is not None
        ]
        answers = [write_all(self._device, fd, first, offset), *(part.result() for part in running)]
        return next((answer for answer in answers if answer[1] is not None), answers[-1])


def _parts(gathered: list[memoryview], share: int) -> list[list[memoryview]]:
    """The same bytes in parts of `share` bytes; the last one may have less."""
    parts: list[list[memoryview]] = []
    room = 0
    for piece in gathered:
        left = piece
        while left:
            if not room:
                parts.append([])
                room = share
            parts[-1].append(left[:room])
            room -= len(parts[-1][-1])
            left = left[len(parts[-1][-1]) :]
    return parts
