"""Making, changing and deleting chunks."""

from __future__ import annotations

import asyncio
import numbers
import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from dstorage.buffers import copied_bytes
from dstorage.controller import Buffer
from dstorage.errors import InvalidArgumentError, Lost
from dstorage.events import Events
from dstorage.handle import Handle, Status
from dstorage.ids import IdAllocator
from dstorage.index import Index
from dstorage.paging.memory import Memory
from dstorage.paging.pagein import PageIn
from dstorage.paging.writeback import WriteBack
from dstorage.record import MAX_CHUNK_BYTES
from dstorage.resolver import Resolver
from dstorage.room import Room
from dstorage.table import HandleTable
from dstorage.waiting import check_wait

if TYPE_CHECKING:
    from dstorage.store import Store


IDLE_AT_A_TIME = 64
"""Chunks written at once to make room for handles."""


class Contents:
    """The calls of `Store` and `Handle` that change chunks."""

    def __init__(
        self,
        store: Store,
        *,
        table: HandleTable,
        resolver: Resolver,
        room: Room,
        memory: Memory,
        index: Index,
        pagein: PageIn,
        writeback: WriteBack,
        ids: IdAllocator,
        events: Events,
    ) -> None:
        self._store = store
        self._table = table
        self._resolver = resolver
        self._room = room
        self._memory = memory
        self._index = index
        self._pagein = pagein
        self._writeback = writeback
        self._ids = ids
        self._events = events

    async def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
        namespace: int = 0,
    ) -> Handle:
        """Make a new chunk.

        A program that creates faster than controllers write is slowed here, once `dirty_share` of the budget is dirty.

        Args:
            data: Its contents (copied), or its size in bytes for zeros.
            durable: False for scratch: may live on volatile controllers, is lost by a crash.
            controller: Name of the controller that is to keep it as long as the store is open: no other takes it, and tiering leaves it
                there. By default the fastest with room.
            wait: Seconds to wait while references hold all of the budget.
            namespace: Number of the namespace it is to belong to.

        Returns:
            Its handle, RESOLVED, with one reference that is the caller's to release.

        Raises:
            MemoryUnavailable: No room.
            InvalidArgumentError: Too large, or no such controller.
            ReadOnlyError, ClosedError: The store takes no changes.
        """
        check_wait(wait)
        # Looked at as long as this waits, a bytearray keeps its size.
        data = _given(data)
        size, index = self._check_create(data, durable, controller)
        if self._table.full:
            await self._write_idle()
        if not self._memory.reserve(size, dirty=True):
            await self._room.reserve(size, 0, wait)
        return self._create(data, size, durable, index, namespace)

    async def _write_idle(self) -> None:
        """Too many handles: have some unreferenced dirty ones written, so that they can leave the table."""
        idle = [page for page in self._memory.dirty if not page.refs][:IDLE_AT_A_TIME]
        await asyncio.gather(*[self.flush(page) for page in idle if isinstance(page, Handle)])

    def create_nowait(
        self, data: Buffer | int, *, durable: bool = True, controller: str | None = None, namespace: int = 0
    ) -> Handle:
        """`create` without waiting.

        Raises:
            MemoryUnavailable: No room at this moment, or too much of the budget is dirty.
        """
        data = _given(data)
        size, index = self._check_create(data, durable, controller)
        self._room.reserve_nowait(size, 0)
        return self._create(data, size, durable, index, namespace)

    def _check_create(self, data: memoryview | int, durable: bool, controller: str | None) -> tuple[int, int | None]:
        self._store.check_writable()
        size = data if isinstance(data, int) else data.nbytes
        if not 0 <= size <= MAX_CHUNK_BYTES:
            raise InvalidArgumentError(f"a chunk of {size} bytes: chunks have 0 to {MAX_CHUNK_BYTES} bytes; split it")
        if controller is None:
            return size, None
        entry = self._store.entry_named(controller)
        if entry.removed:
            raise InvalidArgumentError(f"controller {controller!r} was declared removed: name another")
        if durable and entry.controller is not None and entry.controller.volatile:
            raise InvalidArgumentError(
                f"controller {controller!r} is volatile: it takes only chunks with durable=False"
            )
        # What drains takes nothing: then the chunk goes where it would go anyhow.
        return size, None if entry.draining else entry.index

    def _create(
        self, data: memoryview | int, size: int, durable: bool, controller: int | None, namespace: int
    ) -> Handle:
        buffer = self._copy(data, size)
        return self.adopt(buffer, durable=durable, controller=controller, namespace=namespace)

    def adopt(
        self,
        buffer: bytes | bytearray,
        *,
        durable: bool = True,
        controller: int | None = None,
        namespace: int = 0,
    ) -> Handle:
        """Make `buffer`, whose bytes are reserved as dirty, a new chunk without copying (for parts built on the store).

        Nobody changes it from now on. When this raises, the reservation is given back.
        """
        size = len(buffer)
        try:
            # Room may have come when the store was being closed already.
            self._store.check_writable()
            handle = Handle(self._store)
            handle.id = self._ids.take(namespace)
            self._table.enter(handle)
        except BaseException:
            self._memory.give_back(size, dirty=True)
            raise
        handle.refs = 1
        handle.to(Status.RESOLVED)
        if not durable:
            self._writeback.scratch.add(handle.id)
        if controller is not None:
            self._writeback.pinned[handle.id] = controller
        self._memory.insert(handle, buffer, dirty=True)
        self._memory.settled(handle)
        self._writeback.dirtied()
        if self._events.streams:
            self._events.emit("created", handle.id)
        return handle

    async def replace(self, handle: Handle, data: Buffer, wait: float | None) -> None:
        """Give a chunk other contents (for `Handle.replace`)."""
        check_wait(wait)
        view = memoryview(data)
        size = self._check_replace(handle, view)
        handle.acquire()
        try:
            if not self._memory.reserve(size, dirty=True):
                await self._room.reserve(size, handle.id, wait)
            self.publish(handle, self._copy(view, size))
        finally:
            handle.release()

    def replace_nowait(self, handle: Handle, data: Buffer) -> None:
        """`replace` without waiting (for `Handle.replace_nowait`)."""
        size = self._check_replace(handle, data)
        self._room.reserve_nowait(size, handle.id)
        self.publish(handle, self._copy(memoryview(data), size))

    def _check_replace(self, handle: Handle, data: Buffer) -> int:
        self._store.check_writable()
        size = memoryview(data).nbytes
        if size > MAX_CHUNK_BYTES:
            raise InvalidArgumentError(
                f"{size} bytes for chunk {handle.id}: chunks have at most {MAX_CHUNK_BYTES}; split"
            )
        self._check_exists(handle)
        return size

    def _check_exists(self, handle: Handle) -> None:
        if handle.buffer is not None:
            return
        if handle.status in (Status.DELETED, Status.LOST, Status.UNINITIALISED):
            raise handle.failure()
        if self._index.get(handle.id) is None:
            raise Lost("unknown id", id=handle.id)

    def publish(self, handle: Handle, buffer: bytes | bytearray) -> None:
        """Make `buffer`, reserved as dirty, the contents of `handle`; when this raises, the reservation is given back."""
        try:
            self._store.check_writable()
            if handle.buffer is None:
                if handle.status is Status.DELETED or handle.status is Status.LOST:
                    raise handle.failure()
                if self._table.handles.get(handle.id) is not handle:
                    self._table.enter(handle)
        except BaseException:
            self.drop_reserved(len(buffer))
            raise
        if handle.buffer is not None:
            self._writeback.drop(handle)
            self._memory.replace(handle, buffer)
        else:
            self._pagein.abandon(handle)
            self._memory.insert(handle, buffer, dirty=True)
            handle.to(Status.RESOLVED)
            handle.error = None
            self._resolver.settle(handle)
            self._memory.settled(handle)
        self._writeback.dirtied()

    def leave_first(self, ids: Iterable[int]) -> None:
        """These chunks will not be used for long (see `Memory.leave_first`); nothing happens to those that somebody uses."""
        for id in ids:
            handle = self._table.handles.get(id)
            if handle is not None:
                self._memory.leave_first(handle)

    def _copy(self, data: memoryview | int, size: int) -> bytes:
        """A private copy, for which `size` bytes are reserved."""
        try:
            # `bytes(data)` would be `data` itself where it is bytes, and the program's to keep.
            return bytes(data) if isinstance(data, int) else copied_bytes(data)
        except MemoryError:
            # The machine has less than the budget allows.
            self.drop_reserved(size)
            raise

    def drop_reserved(self, size: int) -> None:
        """Give back what was reserved for contents that will not come."""
        self._memory.give_back(size, dirty=True)

    def delete(self, handle: Handle) -> None:
        """Delete a chunk (for `Handle.delete`)."""
        self._store.check_writable()
        if handle.status is Status.DELETED:
            return
        if handle.status is not Status.LOST or self._index.get(handle.id) is None:
            self._check_exists(handle)
        self._pagein.abandon(handle)
        if handle.buffer is not None:
            self._writeback.drop(handle)
            self._memory.forget(handle)
        self._deleted(handle)

    def delete_each(self, ids: Iterable[int]) -> int:
        """Delete chunks (for parts built on the store); returns how many of them there were.

        Raises:
            ReadOnlyError, ClosedError: The store takes no changes.
            TooManyHandles: One that somebody holds cannot come back to the table; those before it are deleted.
        """
        self._store.check_writable()
        deleted = 0
        for id in ids:
            if self._table.knows(id):
                with self._table.get(id) as handle, suppress(Lost):
                    known = handle.status is not Status.DELETED
                    self.delete(handle)
                    deleted += known
            elif self._index.get(id) is not None:
                # Nobody has to be told: a handle would be made and dropped again.
                self._forget(id)
                deleted += 1
        return deleted

    def take(self, handle: Handle) -> bytes | bytearray:
        """Delete a chunk that is in memory and give its contents away, mostly without a copy (for parts built on the store).

        Raises:
            TemporarilyUnavailable, Deleted, Lost: It is not in memory.
        """
        self._store.check_writable()
        if handle.buffer is None:
            raise handle.failure()
        self._pagein.abandon(handle)
        self._writeback.drop(handle)
        contents = self._memory.hand_over(handle)
        self._deleted(handle)
        return contents

    def _deleted(self, handle: Handle) -> None:
        self._forget(handle.id)
        handle.to(Status.DELETED)
        self._resolver.settle(handle)
        if not handle.refs and self._table.handles.get(handle.id) is handle:
            self._table.drop(handle)

    def _forget(self, id: int) -> None:
        self._index.put(id, None)
        self._writeback.scratch.discard(id)
        self._writeback.pinned.pop(id, None)
        if self._events.streams:
            self._events.emit("deleted", id)

    async def flush(self, handle: Handle) -> None:
        """Have the contents written (for `Handle.flush`)."""
        self._store.check_writable()
        if not handle.dirty or handle.buffer is None:
            return
        written = asyncio.get_running_loop().create_future()

        def done(error: Exception | None) -> None:
            if not written.done():
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)

        self._writeback.submit(handle, handle.buffer, done)
        await written


def _given(data: object) -> memoryview | int:
    """What a chunk is to be made of: its bytes, or how many zeros.

    Raises:
        InvalidArgumentError: A number that is not whole, or a truth value.
        TypeError: Neither bytes nor a number.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return memoryview(data)
    # Whole numbers of numpy, whose bytes could be looked at as well.
    if isinstance(data, numbers.Integral) and not isinstance(data, bool):
        return operator.index(data)
    if not isinstance(data, numbers.Number):
        view = memoryview(data)  # type: ignore[arg-type]  # what is no buffer is refused here
        if view.ndim or view.format != "?":
            return view
    raise InvalidArgumentError(f"{data!r} is no contents of a chunk: give bytes, or a whole number of zeros")
