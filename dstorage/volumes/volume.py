"""A volume: one thin device as a file. Asynchronous here; `Volume.file()` is the blocking form, for any thread.

What was never written reads as zeros and takes no space. A block is mapped on its first write; a block that a snapshot shares is
copied on the first write after the snapshot. Either becomes visible only when its bytes are where they belong, so no reader
and no crash ever meets another volume's old bytes.

Source of the mapping rules: Linux `drivers/md/dm-thin.c`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Iterable
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dstorage.errors import ClosedError, InvalidArgumentError
from dstorage.persistent.errors import WouldBlockError
from dstorage.volumes.device import Buffer, check_range
from dstorage.volumes.errors import PoolFullError
from dstorage.volumes.file import VolumeFile
from dstorage.volumes.finish import in_thread
from dstorage.volumes.plan import HOLE, Piece, Transfer, pieces, transfers
from dstorage.volumes.records import MAX_VIRTUAL_BLOCK, pack_mapping, unpack_mapping

if TYPE_CHECKING:
    from dstorage.volumes.core import PoolCore

CACHED_MAPPINGS = 65536
"""Per volume, about 100 bytes each; when there are more, all are forgotten and read again as needed."""
READ_AHEAD = 256
"""Mappings taken from the tree at once: about a leaf."""
BATCH_BLOCKS = 256
"""Blocks that one step of a write maps at most, so that its need of metadata is bounded."""
FETCHES = 64
"""Metadata blocks that one request waits for, one after the other, before it looks mappings up."""
LARGE_DISCARD = 4096
"""Blocks; unmapping more is done in a thread, while nothing else uses the pool."""
PARALLEL = 8
"""Operations of one request on the data device at a time."""


class Volume:
    """A thin device, opened by `ThinPool.volume`; to be used on the pool's loop.

    Reads and writes may overlap in time and need no alignment; a write that returned is seen by every later read. It survives a
    crash when `flush` (or the pool's commit) has returned.

    Attributes:
        id: The device's id.
        size: Length in bytes; where reading ends and writing is refused. It is the program's choice at every opening, the
            pool does not store it.
    """

    def __init__(self, pool: PoolCore, id: int, size: int) -> None:
        self.id = id
        self.size = size
        self._pool = pool
        self._metadata = pool.metadata
        self._block = pool.block_bytes
        self._mappings: dict[int, int] = {}
        self._provisioning: dict[int, asyncio.Future[None]] = {}
        self._closed = False

    @property
    def is_writable(self) -> bool:
        """Whether the pool was opened to be written."""
        return not self._metadata.read_only

    # -- reading ------------------------------------------------------------------------------------------------------

    async def pread(self, length: int, offset: int, /) -> Buffer:
        """`length` bytes from `offset`; fewer only at the end of the volume.

        Raises:
            ClosedError: The volume or its pool was closed.
            InvalidArgumentError: A negative offset or length.
            OSError: The data device failed.
        """
        if offset < 0 or length < 0:
            raise InvalidArgumentError(f"offset {offset}, length {length}: neither may be negative")
        length = max(0, min(length, self.size - offset))
        async with self._pool.gate:
            self._check_open()
            if length:
                await self._fetch(offset // self._block, (offset + length - 1) // self._block)
            parts = list(pieces(self._mapping, self._block, offset, length))
            data = self._pool.data
            if len(parts) == 1 and parts[0].data != HOLE:
                return _whole(await data.pread(length, parts[0].data), length)
            result = bytearray(length)

            async def fill(piece: Piece) -> None:
                found = await data.pread(piece.length, piece.data)
                result[piece.start : piece.start + piece.length] = _whole(found, piece.length)

            await _all(fill(piece) for piece in parts if piece.data != HOLE)
            return result

    async def _fetch(self, first: int, last: int) -> None:
        """Have what leads to the mappings of these blocks in memory, so that looking them up does not hold up the loop.

        A hint: what has left the memory again when they are looked up is read then.
        """
        if first in self._mappings and last in self._mappings:
            return
        for _ in range(FETCHES):
            try:
                self._metadata.touch(self.id, first, min(last + READ_AHEAD, MAX_VIRTUAL_BLOCK))
            except WouldBlockError:
                await in_thread(self._metadata.fetch_missed)
                self._check_open()
            else:
                return

    def _mapping(self, block: int) -> int:
        """The mapping's value, or HOLE."""
        found = self._mappings.get(block)
        if found is None:
            if len(self._mappings) > CACHED_MAPPINGS:
                self._mappings.clear()
            end = min(block + READ_AHEAD, MAX_VIRTUAL_BLOCK)
            fresh = dict.fromkeys(range(block, end), HOLE)
            fresh.update(self._metadata.mappings(self.id, block, end))
            self._mappings.update(fresh)
            found = fresh[block]
        return found

    # -- writing ------------------------------------------------------------------------------------------------------

    async def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` at `offset`; the buffer is the caller's again when this returns.

        If it raises or is cancelled, any part of the range may have been written, as with a disk; blocks outside are untouched.

        Raises:
            ClosedError: The volume or its pool was closed.
            InvalidArgumentError: The range is not within the volume.
            PoolFullError: No data block, or no metadata, is free.
            PoolReadOnlyError: The pool takes no changes.
            OSError: The data device failed.
        """
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        check_range(offset, len(view), self.size)
        step = BATCH_BLOCKS * self._block
        at = 0
        while at < len(view):
            # Steps end at the boundary of a block.
            part = view[at : at + step - (offset + at) % self._block]
            while True:
                try:
                    await self._write(part, offset + at)
                    break
                except PoolFullError:
                    # What this transaction freed can be had again behind its commit.
                    if not await self._pool.reclaim():
                        raise
            at += len(part)

    async def _write(self, view: memoryview, offset: int) -> None:
        async with self._pool.gate:
            self._check_open()
            self._pool.check_changeable()
            first, last = offset // self._block, (offset + len(view) - 1) // self._block
            await self._fetch(first, last)
            await self._settled(first, last)
            snapshotted = self._metadata.snapshotted_time(self.id)
            fresh: dict[int, int] = {}
            for block in range(first, last + 1):
                mapping = self._mapping(block)
                if mapping == HOLE or unpack_mapping(mapping)[1] < snapshotted:
                    fresh[block] = mapping
            if not fresh:
                await _all(
                    self._pool.data.pwrite(view[piece.start : piece.start + piece.length], piece.data)
                    for piece in pieces(self._mapping, self._block, offset, len(view))
                )
                return
            await self._provision(view, offset, fresh)

    async def _provision(self, view: memoryview, offset: int, fresh: dict[int, int]) -> None:
        """Write where some blocks need a new place: first all bytes, then all mappings."""
        pool = self._pool
        places = pool.allocate(len(fresh))
        done = asyncio.get_running_loop().create_future()
        self._provisioning.update(dict.fromkeys(fresh, done))
        written = False
        try:
            new = dict(zip(fresh, places, strict=True))
            await _all(
                self._transfer(view, offset, part)
                for part in transfers(self._mapping, self._block, offset, len(view), new)
            )
            written = True
            pool.map(self.id, new)
            self._mappings.update((block, pack_mapping(place, pool.metadata.time)) for block, place in new.items())
        finally:
            if not written:
                pool.release(places)
            for block in fresh:
                del self._provisioning[block]
            done.set_result(None)

    async def _transfer(self, view: memoryview, offset: int, part: Transfer) -> None:
        data = self._pool.data
        given = view[part.data_start - offset : max(part.data_stop, part.data_start) - offset]
        if part.direct:
            await data.pwrite(given, part.place)
            return
        length = part.stop - part.start
        buffer = (
            bytearray(length) if part.old == HOLE else bytearray(_whole(await data.pread(length, part.old), length))
        )
        if given:
            buffer[part.data_start - part.start : part.data_stop - part.start] = given
        await data.pwrite(buffer, part.place)

    async def _settled(self, first: int, last: int) -> None:
        """Wait until nobody else is mapping one of these blocks."""
        while self._provisioning:
            under_way = {future for block, future in self._provisioning.items() if first <= block <= last}
            if not under_way:
                return
            await asyncio.wait(under_way)

    # -- the rest -----------------------------------------------------------------------------------------------------
    async def discard(self, offset: int, length: int, /) -> None:
        """Unmap the whole blocks in the range: they read as zeros, and their space is free at the next commit.

        Parts of blocks at either end stay as they are.

        Raises:
            ClosedError: The volume or its pool was closed.
            InvalidArgumentError: The range is not within the volume.
            PoolFullError: There is no metadata left even for this.
            PoolReadOnlyError: The pool takes no changes.
        """
        check_range(offset, length, self.size)
        # Up to the end of the volume the last block counts as whole.
        end = offset + length
        first = -(-offset // self._block)
        last = -(-end // self._block) if end == self.size else end // self._block
        while True:
            try:
                await self._unmap(first, last)
                return
            except PoolFullError:
                if not await self._pool.reclaim():
                    raise

    async def _unmap(self, first: int, last: int) -> None:
        large = last - first > LARGE_DISCARD
        async with self._pool.gate.alone if large else self._pool.gate:
            self._check_open()
            self._pool.check_changeable()
            if large:
                await self._pool.in_thread(lambda: self._pool.unmap(self.id, first, last))
            elif first < last:
                await self._fetch(first, last - 1)
                await self._settled(first, last - 1)
                self._pool.unmap(self.id, first, last)
            self.forget(first, last)

    async def flush(self) -> None:
        """Make durable what was written so far, here and in the whole pool.

        Raises:
            ClosedError: The volume or its pool was closed.
            OSError: It cannot be made durable; the pool is read-only from now on.
        """
        self._check_open()
        await self._pool.commit()

    def file(self) -> VolumeFile:
        """The volume as a blocking, seekable, unbuffered binary file, for threads other than the loop's; from any thread."""
        self._check_open()
        return VolumeFile(self, self._pool.loop)

    def close(self) -> None:
        """Let the device be opened again, or deleted; a second call does nothing. What was written stays."""
        if not self._closed:
            self._closed = True
            self._mappings.clear()
            self._pool.closed(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Volume {self.id} of {str(self._pool.path)!r}: {self.size} bytes, {state}>"

    def forget(self, first: int = 0, last: int | None = None) -> None:
        """Drop remembered mappings of blocks from `first` to `last` (exclusive): the pool changed them."""
        if last is None or last - first > len(self._mappings):
            self._mappings.clear()
        else:
            for block in range(first, last):
                self._mappings.pop(block, None)

    def _check_open(self) -> None:
        if self._closed or self._pool.is_closed:
            raise ClosedError(f"volume {self.id} or its pool {self._pool.path} was closed: open it again")


def _whole(data: Buffer, length: int) -> Buffer:
    if len(data) != length:
        raise OSError(errno.EIO, f"the data device gave {len(data)} bytes instead of {length}: was it cut short?")
    return data


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all, a bounded number at a time, to their ends, whatever happens; then raise the first error."""
    tasks = iter(work)
    while part := list(islice(tasks, PARALLEL)):
        if len(part) == 1:
            await part[0]
            continue
        for result in await asyncio.gather(*part, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
