"""Chunks as the server uses them: made and deleted in one step of the loop, or not at all.

What would have to wait raises `Absent` or `NoRoom` before anything was changed; whoever called waits and calls again. So a
command that touches several chunks is atomic without a lock.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Self

from dstorage.errors import Deleted, DStorageError, Lost, MemoryUnavailable, TemporarilyUnavailable
from dstorage.handle import Handle, Status
from dstorage.store import Store

ROOT = b"redis\0"
"""What all names of the server begin with."""
_LATER = ROOT + b"d"
_ID = struct.Struct(">Q")


class Absent(Exception):
    """The contents of chunk `id` have to be in memory first."""

    def __init__(self, id: int) -> None:
        super().__init__(id)
        self.id = id


class NoRoom(Exception):
    """`size` bytes of the budget have to become free first."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Chunks:
    """The chunks of one store.

    A chunk that no key refers to yet, or none any more, can be marked: it is deleted at the next start unless that was undone.
    The mark is a name, and so as durable as the chunk.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._credit = 0

    def resident(self, id: int) -> Handle:
        """The handle of a chunk whose contents are in memory; not referenced, good until the next step of the loop.

        Raises:
            Absent: They are not.
        """
        with self.store.table.get(id) as handle:
            if handle.buffer is None:
                raise Absent(id)
        return handle

    def bring(self, id: int) -> bool:
        """Ask for the contents of a chunk; True if they came at once."""
        with self.store.table.get(id) as handle:
            handle.resolve()
            return handle.buffer is not None

    def failure(self, id: int) -> DStorageError:
        """Why there are no contents of a chunk in memory."""
        with self.store.table.get(id) as handle:
            return handle.failure()

    def lost(self, id: int) -> bool:
        """Whether it is known that the contents are gone for ever."""
        with self.store.table.get(id) as handle:
            return handle.status in (Status.LOST, Status.DELETED)

    # -- room ---------------------------------------------------------------------------------------------------------

    def take(self, size: int) -> None:
        """Reserve room for new contents.

        Raises:
            NoRoom: There is none.
        """
        missing = size - self._credit
        if missing > 0 and not self.store.room.try_reserve(missing):
            raise NoRoom(size)
        self._credit = max(-missing, 0)

    def lend(self, size: int) -> None:
        """Let what is taken next, in this step of the loop, have room that was reserved already; `settle` ends it."""
        self._credit += size

    def settle(self) -> None:
        """Give back what was lent and not taken."""
        if self._credit:
            credit, self._credit = self._credit, 0
            self.store.contents.drop_reserved(credit)

    # -- making and deleting ------------------------------------------------------------------------------------------

    def make(self, contents: bytes | bytearray) -> int:
        """A new chunk of a buffer that nobody changes any more, and whose room was taken; returns its id."""
        with self.store.contents.adopt(contents) as handle:
            return handle.id

    def delete(self, id: int) -> None:
        """Delete a chunk, also one that is lost."""
        with self.store.table.get(id) as handle, contextlib.suppress(Lost):
            handle.delete()

    def mark(self, id: int) -> None:
        """Delete it at the next start."""
        self.store.set_name(_LATER + _ID.pack(id), id)

    def unmark(self, id: int) -> None:
        """Undo `mark`."""
        self.store.set_name(_LATER + _ID.pack(id), None)

    def delete_marked(self) -> None:
        """At the start: delete what a former run had no time for."""
        for _, id in list(self.store.names(_LATER)):
            self.unmark(id)
            self.delete(id)


async def fetch(handle: Handle, seconds: float) -> memoryview:
    """The contents of a chunk, waiting `seconds` for a controller or for room; cheaper than `Handle.get` when they come at once.

    Raises:
        TemporarilyUnavailable, Lost, MemoryUnavailable: They cannot be had.
    """
    try:
        return await handle
    except (TemporarilyUnavailable, MemoryUnavailable):
        return await handle.get(wait=seconds)


class Patience:
    """Overcomes what kept one piece of work from being done; use it with ``with``: what was waited for stays until the end.

    Args:
        chunks: The chunks.
        seconds: How long each obstacle is waited for.
    """

    def __init__(self, chunks: Chunks, seconds: float) -> None:
        self._chunks = chunks
        self._seconds = seconds
        self._held: list[Handle] = []
        self._gone: dict[int, Lost | Deleted] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._chunks.settle()
        for handle in self._held:
            handle.release()

    async def overcome(self, obstacle: Absent | NoRoom) -> None:
        """Return when the work may be tried again, which has to happen in the same step of the loop.

        Raises:
            TemporarilyUnavailable, Lost, MemoryUnavailable: It cannot be done now, or never.
        """
        store = self._chunks.store
        if isinstance(obstacle, NoRoom):
            self._chunks.settle()
            await store.room.reserve(obstacle.size, 0, self._seconds)
            self._chunks.lend(obstacle.size)
        elif obstacle.id in self._gone:
            raise self._gone[obstacle.id]
        else:
            handle = store.table.get(obstacle.id)
            self._held.append(handle)
            try:
                await fetch(handle, self._seconds)
            except (Lost, Deleted) as failure:
                # Lost: now that this is known, what only removes it can be done. Deleted: its key has another value by now, or none.
                self._gone[obstacle.id] = failure
