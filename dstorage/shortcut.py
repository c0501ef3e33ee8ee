"""Reading in the program's own threads what is in the system's page cache, without a trip to the store's loop.

A trip there and back costs some ten times what such a read does. Whatever stands in the way of an answer (the chunk is being changed, read
or moved, its segment freed, the store closed) is no error here: the answer is None, and the loop is asked.

It keeps these rules:

* The handle is looked at first. Contents that are in memory, or on their way, are the loop's to give; otherwise the newest contents have a
  record, and what the index says *after* that is what the chunk was at some moment of the call.
* The place that the record names is never written again, so its bytes are those or, freed meanwhile, fail their checksum.
* What is read belongs to who asked for it, and is in no budget. So what is asked for a second time, before as much else as the budget was, is
  left to the loop, which keeps it in memory.
"""

from __future__ import annotations

from dstorage.handle import Handle, Status
from dstorage.index import Index
from dstorage.paging.memory import Memory
from dstorage.registry import Registry
from dstorage.uses import FOLD, Uses

REMEMBERED = 2**14
"""Chunks remembered as read once, at least, and twice as many at most; some 2 MiB."""


class Shortcut:
    """Reads for any thread.

    Args:
        handles: The store's.
        index: Says where a chunk is.
        registry: Says who has it.
        memory: Says how much may be in memory.
        uses: Is told what was read.
        open: Whether it may read at all.

    Attributes:
        open: From now on.
    """

    def __init__(
        self,
        handles: dict[int, Handle],
        index: Index,
        registry: Registry,
        memory: Memory,
        uses: Uses,
        *,
        open: bool,
    ) -> None:
        self.open = open
        self._handles = handles
        self._index = index
        self._registry = registry
        self._memory = memory
        self._uses = uses
        self._once: set[int] = set()
        """What was read here lately; no harm is done if threads that do so at the same time forget one."""
        self._before: set[int] = set()
        self._once_bytes = 0
        self.chunks_read = 0
        self.bytes_read = 0

    def read(self, id: int) -> bytes | None:
        """The contents of chunk `id`, if they are in the page cache and not in memory; None: ask the loop."""
        if id in self._once or id in self._before:
            return None
        data = self._read(id, writable=False)
        if data is not None:
            once = self._once
            once.add(id)
            self._once_bytes += len(data)
            if self._once_bytes > self._memory.limit // 2 or len(once) > REMEMBERED:
                self._once, self._before, self._once_bytes = set(), once, 0
        return data  # type: ignore[return-value]  # not writable

    def read_writable(self, id: int) -> bytearray | None:
        """`read` of what will not be asked for again: it does not come into memory however often it is, and is the caller's to change."""
        return self._read(id, writable=True)  # type: ignore[return-value]  # writable

    def _read(self, id: int, *, writable: bool) -> bytes | bytearray | None:
        if not self.open:
            return None
        handle = self._handles.get(id)
        if handle is not None and (handle.refs or handle.status is not Status.NOT_RESOLVED):
            return None
        record = self._index.look_up(id)
        if record is None:
            return None
        entry = self._registry[record.controller]
        if entry is None or entry.removed or (controller := entry.controller) is None:
            return None
        locator = record.locator
        size = locator.size
        if size > self._memory.limit:
            return None
        data = controller.read_in_thread(id, locator, writable=writable)
        if data is None or len(data) != size:
            return None
        uses = self._uses
        if len(uses.recent) < FOLD:
            uses.note(id, record.last_access)
        self.chunks_read += 1
        self.bytes_read += size
        return data
