"""Values longer than a piece: a manifest chunk that lists the chunks of their pieces.

Neither manifests nor pieces ever change: a change makes new ones in place of those concerned. So a reader sees one value from its
first byte to its last, whatever happens meanwhile; pieces that were replaced while somebody reads them are deleted after him.

The manifest, little-endian: ``dsv1``, length of a piece (u32), length of the value (u64), then the id of each piece (u64; 0: all
zeros). A piece may be shorter than its share: the rest is zeros.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from dstorage.errors import CorruptData, DStorageError
from dstorage.server.chunks import Chunks, fetch

_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"dsv1"
PATIENCE_S = 30.0
"""How long a piece of an upload waits for room."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a value lies in chunks.

    Attributes:
        piece: Length of each piece but the last, bytes.
        size: Length of the value, bytes.
        ids: Chunk of each piece, 0 for zeros.
    """

    piece: int
    size: int
    ids: tuple[int, ...]

    def pack(self) -> bytes:
        """The contents of its chunk."""
        return _HEAD.pack(_MAGIC, self.piece, self.size) + struct.pack(f"<{len(self.ids)}Q", *self.ids)

    @classmethod
    def unpack(cls, raw: bytes | bytearray, id: int) -> Manifest:
        """The manifest in chunk `id`.

        Raises:
            CorruptData: It is none.
        """
        if len(raw) >= _HEAD.size:
            magic, piece, size = _HEAD.unpack_from(raw)
            count = -(-size // piece) if piece else -1
            if magic == _MAGIC and len(raw) == _HEAD.size + 8 * count:
                return cls(piece, size, struct.unpack_from(f"<{count}Q", raw, _HEAD.size))
        raise CorruptData(f"chunk {id} is no manifest of a long value", id=id)


class LargeValues:
    """The long values of one store.

    Args:
        chunks: Where they are.
        piece: Length of the pieces of new values, bytes.
    """

    def __init__(self, chunks: Chunks, piece: int) -> None:
        self._chunks = chunks
        self.piece = piece
        self._open: Counter[int] = Counter()
        self._readers: Counter[int] = Counter()
        self._replaced: set[int] = set()

    def manifest(self, id: int) -> Manifest:
        """The manifest in a chunk.

        Raises:
            Absent: It is not in memory.
            CorruptData: It is none.
        """
        buffer = self._chunks.resident(id).buffer
        assert buffer is not None
        return Manifest.unpack(buffer, id)

    def drop(self, id: int) -> None:
        """Delete a value, given its manifest's chunk.

        Raises:
            Absent: The manifest is not in memory; nothing was done.
        """
        if not self._chunks.lost(id):
            for piece in self.manifest(id).ids:
                self._drop_piece(piece)
        self._chunks.delete(id)

    def _drop_piece(self, id: int) -> None:
        if id in self._readers:
            self._replaced.add(id)
            self._chunks.mark(id)
        elif id:
            self._chunks.delete(id)

    # -- reading ------------------------------------------------------------------------------------------------------

    def open(self, id: int) -> Reading:
        """Keep a value readable as it is, whatever happens to its key, until `Reading.close`.

        Args:
            id: Chunk of its manifest.

        Raises:
            Absent: The manifest is not in memory.
        """
        manifest = self.manifest(id)
        self._open[id] += 1
        if self._open[id] == 1:
            # However many read one value, its pieces are counted once.
            self._readers.update(filter(None, manifest.ids))
        return Reading(self, self._chunks, id, manifest)

    def close(self, id: int, manifest: Manifest) -> None:
        """One reader less (for `Reading.close`)."""
        self._open[id] -= 1
        if self._open[id]:
            return
        del self._open[id]
        for id in filter(None, manifest.ids):
            self._readers[id] -= 1
            if not self._readers[id]:
                del self._readers[id]
                if id in self._replaced:
                    self._replaced.discard(id)
                    self._chunks.unmark(id)
                    self._chunks.delete(id)

    # -- changing -----------------------------------------------------------------------------------------------------

    def splice(self, manifest: Manifest, offset: int, data: bytes | bytearray, plain: bytes | bytearray = b"") -> int:
        """Write `data` (not empty) at `offset`; zeros fill a gap behind the end.

        Args:
            manifest: The value.
            offset: Bytes.
            data: What to write, at most a piece.
            plain: The value so far where it was a plain one; `manifest` is `empty()` then.

        Returns:
            The chunk of the new manifest; the pieces replaced are deleted, the old manifest's chunk is the caller's.

        Raises:
            Absent, NoRoom: Nothing was done.
        """
        piece, end = manifest.piece, offset + len(data)
        size = max(manifest.size, end, len(plain))
        ids = [*manifest.ids, *[0] * (-(-size // piece) - len(manifest.ids))]
        touched = {*range(-(-len(plain) // piece)), *range(offset // piece, (end - 1) // piece + 1)}
        made: list[tuple[int, bytes]] = []
        for number in sorted(touched):
            base = number * piece
            begin = max(offset - base, 0)
            part = data[max(base - offset, 0) : max(base + piece - offset, 0)]
            old = plain[base : base + piece]
            if ids[number] and len(part) < piece:
                buffer = self._chunks.resident(ids[number]).buffer
                assert buffer is not None
                old = buffer
            if part:
                old = b"".join((old[:begin].ljust(begin, b"\0"), part, old[begin + len(part) :]))
            made.append((number, bytes(old)))
        self._chunks.take(sum(len(contents) for _, contents in made) + _HEAD.size + 8 * len(ids))
        for number, contents in made:
            former, ids[number] = ids[number], self._chunks.make(contents)
            self._drop_piece(former)
        return self._chunks.make(Manifest(piece, size, tuple(ids)).pack())

    def empty(self) -> Manifest:
        """A value without bytes."""
        return Manifest(self.piece, 0, ())

    def keep(self, upload: Upload) -> int:
        """Make an upload that is complete a value; returns the chunk of its manifest.

        Raises:
            NoRoom: Nothing was done.
        """
        contents = Manifest(self.piece, upload.size, tuple(upload.ids)).pack()
        self._chunks.take(len(contents))
        for id in upload.ids:
            self._chunks.unmark(id)
        upload.ids.clear()
        return self._chunks.make(contents)


class Reading:
    """Somebody reads a long value (see `LargeValues.open`)."""

    def __init__(self, values: LargeValues, chunks: Chunks, id: int, manifest: Manifest) -> None:
        self.manifest = manifest
        self._id = id
        self._values = values
        self._chunks = chunks

    def close(self) -> None:
        """What was replaced meanwhile can go."""
        self._values.close(self._id, self.manifest)

    async def parts(self, start: int, stop: int) -> AsyncIterator[memoryview]:
        """The bytes from `start` to `stop` (exclusive), each part valid until the next is asked for.

        Raises:
            Lost, TemporarilyUnavailable, MemoryUnavailable: A piece cannot be had.
        """
        store, piece, ids = self._chunks.store, self.manifest.piece, self.manifest.ids
        last = (stop - 1) // piece
        for number in range(start // piece, last + 1):
            begin = max(start - number * piece, 0)
            end = min(stop - number * piece, piece)
            if number < last and ids[number + 1]:
                store.prefetch([ids[number + 1]])
            if ids[number]:
                handle = store.table.get(ids[number])
                try:
                    data = await fetch(handle, PATIENCE_S)
                    have = min(len(data), end)
                    if begin < have:
                        yield data[begin:have]
                        begin = have
                finally:
                    handle.release()
            if begin < end:
                yield memoryview(bytes(end - begin))


class Upload:
    """A long argument on its way into chunks; a sink (see `dstorage.server.protocol.Sink`).

    Args:
        size: Its length.
        chunks: Where the pieces go.
        piece: Length of a piece.
        hold: Called when nothing more should be read for now.
        go_on: Called when reading may go on.

    Attributes:
        kept: Whether a transaction has taken it over, and will see to its end.
    """

    def __init__(
        self, size: int, chunks: Chunks, piece: int, *, hold: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        self.size = size
        self.kept = False
        self.ids: list[int] = []
        self._chunks = chunks
        self._piece = piece
        self._hold = hold
        self._go_on = go_on
        self._received = 0
        self._filled = 0
        self._buffer = bytearray(min(piece, size))
        self._storing: asyncio.Task[None] | None = None
        self._failure: DStorageError | None = None

    def window(self) -> memoryview:
        """Where the next bytes belong."""
        return memoryview(self._buffer)[self._filled :]

    def advance(self, count: int) -> bool:
        """`count` bytes more are there."""
        self._filled += count
        self._received += count
        if self._filled == len(self._buffer):
            self._hold()
            self._storing = asyncio.create_task(self._store(self._buffer, self._storing))
            self._buffer = bytearray(min(self._piece, self.size - self._received))
            self._filled = 0
        return self._received == self.size

    def value(self) -> Upload:
        """The argument: the upload itself."""
        return self

    async def _store(self, contents: bytearray, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            if self._failure is None:
                await self._chunks.store.room.reserve(len(contents), 0, PATIENCE_S)
                id = self._chunks.make(contents)
                self._chunks.mark(id)
                self.ids.append(id)
        except DStorageError as error:
            # What is still to come is read and thrown away, so that the client gets an answer.
            self._failure = error
            self.discard()
        self._go_on()

    async def finish(self) -> None:
        """Return when all of it is in chunks.

        Raises:
            DStorageError: There was no room; nothing is left of it.
        """
        if self._storing is not None:
            await self._storing
        if self._failure is not None:
            raise self._failure

    def discard(self) -> None:
        """Delete what has not become a value."""
        for id in self.ids:
            self._chunks.unmark(id)
            self._chunks.delete(id)
        self.ids.clear()

    async def abort(self) -> None:
        """The client has gone: nothing is left of it."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)
        self.discard()
