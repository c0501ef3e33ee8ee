"""The part of a handle that paging sees: one chunk's bytes in memory and what may be done with them.

`Page.place` says in which container of `dstorage.paging.memory.Memory` a page is; a page is in exactly one. It doubles
as the one test a release has to make: only in the eviction order (`IN_ORDER`, zero) is there nothing to do.

Contents are immutable once published: changing a chunk publishes another buffer. So whoever reads, writes back or commits
a buffer needs no lock and no copy; a view that outlives its page is stale but never shows other bytes.
"""

from __future__ import annotations

import sys
from typing import Final

IN_ORDER: Final = 0
"""Resident, in the policy's eviction order (referenced or not)."""
ABSENT: Final = 1
"""No buffer."""
PARKED: Final = 2
"""Resident and referenced: met by the eviction hand and put aside until the last release."""
LAUNDRY: Final = 3
"""Resident, chosen to leave, dirty: to be written first."""
READY: Final = 4
"""Resident, chosen to leave, clean."""


class Page:
    """Base of `Handle`; see the module's docstring.

    Attributes:
        id: The chunk's id.
        size: Length of the contents in bytes; valid while resident.
        hot: Used since the eviction policy last looked; a hit is nothing but setting it.
        dirty: The contents are newer than what any controller keeps.
        place: The container it is in.
        refs: References held.
        buffer: The contents (never changed, also where it is a `bytearray`), or None.
        queue: The eviction policy's own: in which of its queues the page is.
        before: The policy's own: neighbour in that queue.
        after: The policy's own: neighbour in that queue.
    """

    __slots__ = ("__weakref__", "after", "before", "buffer", "dirty", "hot", "id", "place", "queue", "refs", "size")

    def __init__(self, id: int) -> None:
        self.id = id
        self.size = 0
        self.hot = False
        self.dirty = False
        self.place = ABSENT
        self.queue = 0
        self.before: Page | None = None
        self.after: Page | None = None
        self.refs = 0
        self.buffer: bytes | bytearray | None = None


def swap(page: Page, buffer: bytes | bytearray | None) -> object:
    """Give `page` another buffer; returns the former one."""
    old = page.buffer
    page.buffer = buffer
    return old


def holders(owner: object) -> int:
    """How many know `owner`, in the unit of `ALONE`."""
    return sys.getrefcount(owner)


def _alone() -> int:
    owner = bytearray(1)
    return holders(owner)


ALONE: Final = _alone()
"""What `holders(x)` says when a local variable of the caller is the only one to know `x`; measured, because interpreters
differ in how many references a call itself takes."""

SHARED_BYTES: Final = 1
"""Contents of so few bytes are objects of the interpreter's own, the same for all who have equal ones: who looks at them cannot be told."""
