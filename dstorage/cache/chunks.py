"""Values in chunks: one, or as many as it takes.

A chunk that belongs to no entry yet is `pending`: it has a name that says so, from the step of the loop in which it came to be, so
that what a crash leaves of half-written values is found and deleted at the next opening.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Sequence

from dstorage.cache.records import Entry, Names
from dstorage.cache.values import BYTES
from dstorage.controller import Buffer
from dstorage.errors import CorruptData, Deleted, Lost, MemoryUnavailable
from dstorage.handle import Handle
from dstorage.paging.page import swap
from dstorage.store import Store

MAX_PART_BYTES = 16 * 2**20
MIN_PART_BYTES = 64 * 2**10
BUDGET_PARTS = 16
"""A value has parts of at most this share of the budget, so that it passes through memory without driving all else out."""
ADOPTED_BYTES = 4096
"""Smaller payloads are copied in any case: it costs nothing, and the interpreter shares some of them."""
READ_AHEAD = 4
"""Parts asked for ahead of the one being copied."""


class Chunks:
    """The chunks of one cache, on the store's loop.

    Args:
        store: Keeps them.
        names: Tells what is pending.
        wait: Seconds to wait for room, or for a controller that is away.
    """

    def __init__(self, store: Store, names: Names, wait: float | None) -> None:
        self._store = store
        self._names = names
        self._wait = wait

    @property
    def part_bytes(self) -> int:
        """The largest value that is kept in one chunk."""
        return min(MAX_PART_BYTES, max(MIN_PART_BYTES, self._store.options.budget // BUDGET_PARTS))

    async def write(self, payload: Buffer, *, own: bool = False) -> int:
        """Keep a payload of at most `part_bytes` in one chunk.

        Args:
            payload: Is copied, unless it is `own`.
            own: It is bytes that nobody else holds.

        Returns:
            Its id, in the very step of the loop in which the chunk came to be: what the caller does before it waits is
            in the same commit.
        """
        id = self.write_now(payload, own=own)
        if id is None:
            with await self._store.contents.create(payload, wait=self._wait) as handle:
                id = handle.id
        return id

    def write_now(self, payload: Buffer, *, own: bool = False) -> int | None:
        """`write` without waiting; None if it would have to."""
        store = self._store
        size = memoryview(payload).nbytes
        # With a limit on handles, room for one may have to be waited for as well.
        if store.options.max_handles is not None or not store.room.try_reserve(size):
            return None
        if own and size >= ADOPTED_BYTES and type(payload) is bytes:
            buffer = payload
        else:
            try:
                buffer = bytes(memoryview(payload))
            except BaseException:
                store.contents.drop_reserved(size)
                raise
        with store.contents.adopt(buffer) as handle:
            return handle.id

    def ample(self, size: int) -> bool:
        """Whether there is room for so many bytes in small values, as far as any thread can tell."""
        return self._store.options.max_handles is None and self._store.room.ample(size)

    async def write_pending(self, payload: Buffer) -> list[int]:
        """Keep a payload of any size in chunks that are pending.

        Returns:
            Their ids, in order. If it fails, nothing is left.
        """
        view = memoryview(payload)
        # What has a zero in its shape cannot be cast.
        view = view.cast("B") if view.nbytes else memoryview(b"")
        step = self.part_bytes
        ids: list[int] = []
        try:
            for start in range(0, max(len(view), 1), step):
                id = await self.write(view[start : start + step])
                self._store.set_name(self._names.of_pending(id), id)
                ids.append(id)
                await asyncio.sleep(0)  # A part is as much as the others on the loop should have to wait for.
        except BaseException:
            self.discard(ids)
            raise
        return ids

    def settle(self, ids: Iterable[int]) -> None:
        """From the next commit on these chunks are pending no more."""
        for id in ids:
            self._store.set_name(self._names.of_pending(id), None)

    def discard(self, ids: Iterable[int]) -> None:
        """Delete pending chunks."""
        for id in ids:
            self._store.set_name(self._names.of_pending(id), None)
            self.delete(id)

    def delete(self, id: int) -> None:
        """Delete one chunk; nothing happens if there is none."""
        try:
            handle = self._store.table.get(id)
        except MemoryUnavailable:
            # No handle is free to delete it with: at the next opening there will be.
            self._store.set_name(self._names.of_pending(id), id)
            return
        try:
            handle.delete()
        except (Lost, Deleted):
            return
        finally:
            handle.release()

    def read_soon(self, entry: Entry, done: Callable[[bytes | bytearray | None], object]) -> None:
        """Read the payload of an entry in one chunk without a task; `done` gets None if that does not work: try `read`."""
        handle = self._store.table.get(entry.id)

        def answer(handle: Handle) -> None:
            buffer = _payload(handle, entry)
            handle.release()
            done(buffer if buffer is not None and len(buffer) == entry.size else None)

        if handle.buffer is not None:
            answer(handle)
            return
        try:
            handle.resolve(answer)
        except BaseException:
            handle.release()
            raise

    async def read(self, entry: Entry) -> bytes | bytearray:
        """The payload of an entry.

        Raises:
            Lost, Deleted: It is gone.
            CorruptData: It is not as long as the entry says.
            TemporarilyUnavailable, MemoryUnavailable: It cannot be had now.
        """
        if entry.parts:
            return await self._join(entry)
        handle = self._store.table.get(entry.id)
        try:
            if handle.buffer is None:
                await handle.get(wait=self._wait)
            buffer = _payload(handle, entry)
            assert buffer is not None
        finally:
            handle.release()
        if len(buffer) != entry.size:
            raise CorruptData(f"chunk {entry.id} has {len(buffer)} bytes, its entry says {entry.size}", id=entry.id)
        return buffer

    async def _join(self, entry: Entry) -> bytes:
        ids: Sequence[int] = list(entry.ids())
        joined = io.BytesIO()
        for position, id in enumerate(ids):
            self._store.prefetch(ids[position + 1 : position + 1 + READ_AHEAD])
            handle = self._store.table.get(id)
            try:
                view = await handle.get(wait=self._wait)
                if joined.tell() + len(view) > entry.size:
                    break
                joined.write(view)
                view.release()
            finally:
                handle.release()
            await asyncio.sleep(0)
        if joined.tell() != entry.size:
            raise CorruptData(
                f"the parts of the value of {entry.key!r} do not add up to {entry.size} bytes", id=entry.id
            )
        return joined.getvalue()


def _payload(handle: Handle, entry: Entry) -> bytes | bytearray | None:
    """The contents, if they are in memory: bytes are bytes from now on, which can be given out without a copy (on the loop)."""
    buffer = handle.buffer
    if buffer.__class__ is bytearray and entry.kind is BYTES and not handle.dirty:
        assert buffer is not None
        buffer = bytes(buffer)
        swap(handle, buffer)
    return buffer


def runs(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ids in order as (first, count) of those that follow each other; empty for one."""
    if len(ids) == 1:
        return ()
    found: list[list[int]] = []
    for id in ids:
        if found and found[-1][0] + found[-1][1] == id:
            found[-1][1] += 1
        else:
            found.append([id, 1])
    return tuple((first, count) for first, count in found)
