r"""Contents of files as chunks: one chunk, or many and one that lists them.

A file of at most `piece_bytes` is one chunk in the namespace ``tree``. A larger one is several of these, and a chunk in the namespace
``tree index``: the 8 bytes ``dstree\0\1``, length of the file and of a piece, the ids of the pieces, all 8 bytes little-endian.
So the id of the one chunk, or of the index, stands for the contents, and tells which it is; contents never change under an id.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from dstorage.controller import Buffer
from dstorage.errors import ClosedError, CorruptData, Deleted, InvalidArgumentError, Lost
from dstorage.namespace import Namespace
from dstorage.record import MAX_CHUNK_BYTES, namespace_of
from dstorage.store import Store

PIECE_BYTES = 2**22
"""Large enough for sequential speed on every controller, small enough that several fit into a modest budget."""
PIECES_IN_BUDGET = 8
"""A piece is never more than this share of the budget: one being read or written, others on their way."""
WAIT_S = 60.0
"""How long a call waits for room in memory or for a controller that is away."""
AHEAD = 2
"""Pieces asked for beyond the one that is used."""

_unfinished: weakref.WeakKeyDictionary[Store, set[int]] = weakref.WeakKeyDictionary()
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"dstree\0\1"


class Pieces:
    """Contents of files on a store; use it on the store's loop.

    Attributes:
        store: Where they are.
        piece_bytes: Length of a piece of what is written from now on.
        unfinished: Chunks of files that are being written to the store, by whomever.
    """

    def __init__(self, store: Store, files: Namespace | None, indexes: Namespace | None, piece_bytes: int) -> None:
        self.store = store
        self.piece_bytes = piece_bytes
        self.unfinished = _unfinished.setdefault(store, set())
        self._files = files
        self._indexes = indexes

    @classmethod
    async def open(cls, store: Store, piece_bytes: int | None) -> Self:
        """See `dstorage.integrations.tree.Tree.open`."""
        budget = store.options.budget
        if piece_bytes is None:
            piece_bytes = max(1, min(PIECE_BYTES, budget // PIECES_IN_BUDGET))
        if not 0 < piece_bytes <= budget:
            raise InvalidArgumentError(f"piece_bytes={piece_bytes}: give 1 to the budget of the store, {budget} bytes")
        if store.options.read_only:
            known = {namespace.name: namespace for namespace in store.namespaces()}
            return cls(store, known.get("tree"), known.get("tree index"), piece_bytes)
        return cls(store, await store.namespace("tree"), await store.namespace("tree index"), piece_bytes)

    def split(self, number: int) -> bool:
        """Whether contents are in pieces."""
        return self._indexes is not None and namespace_of(number) == self._indexes.number

    # -- reading ------------------------------------------------------------------------------------------------------

    async def size(self, number: int) -> int:
        """Length in bytes; an index is read for it.

        Raises:
            Deleted, Lost: There are no such contents.
        """
        if self.split(number):
            return (await self._index(number)).size
        info = self.store.info(number)
        if info is None:
            raise Deleted(f"chunk {number} was deleted", id=number)
        return info.size

    async def read(self, number: int, start: int, stop: int | None) -> Buffer:
        """Bytes from `start` to before `stop`, as Python slices them.

        What lies in one piece is not copied: it shares memory with the store, and counts as stray while held.
        """
        if not self.split(number):
            view = await self._chunk(number)
            begin, end, _ = slice(start, stop).indices(len(view))
            whole = view.obj
            return whole if isinstance(whole, bytes) and end - begin == len(whole) else view[begin:end]
        index = await self._index(number)
        begin, end, _ = slice(start, stop).indices(index.size)
        if end <= begin:
            return b""
        first, last = begin // index.piece, (end - 1) // index.piece
        if first == last:
            self.store.prefetch(index.ids[first + 1 : first + 1 + AHEAD])
            piece = index.checked(await self._chunk(index.ids[first]), first)
            return piece[begin - first * index.piece : end - first * index.piece]
        numbers = {id: place for place, id in enumerate(index.ids[first : last + 1], first)}
        if len(numbers) <= last - first:
            raise CorruptData(f"chunk {number} is no index of a file: it names a piece twice")
        result = bytearray(end - begin)
        async for handle in self.store.resolve_each(numbers, wait=WAIT_S):
            place = numbers[handle.id]
            at = place * index.piece - begin
            part = index.checked(await handle, place)[max(0, -at) : end - begin - at]
            result[max(0, at) : max(0, at) + len(part)] = part
        return result

    async def iterate(self, number: int) -> AsyncIterator[memoryview]:
        """The contents in order, as they lie in memory; the next pieces are asked for ahead."""
        ids = await self._parts(number)
        for at, id in enumerate(ids):
            self.store.prefetch(ids[at + 1 : at + 1 + AHEAD])
            yield await self._chunk(id)

    async def _parts(self, number: int) -> tuple[int, ...]:
        return (await self._index(number)).ids if self.split(number) else (number,)

    async def _chunk(self, id: int) -> memoryview:
        with self.store.handle(id) as handle:
            try:
                return await handle.get(wait=WAIT_S)
            except Lost:
                if self.store.info(id) is not None:
                    raise
                # No record: deleted since it was looked up, and the handle forgotten.
                raise Deleted(f"chunk {id} was deleted", id=id) from None

    async def _index(self, number: int) -> Index:
        return Index.unpack(await self._chunk(number), number)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def put(self, data: Buffer) -> PieceWriter:
        """Write contents that are all there; the result is sealed."""
        view = flat(data)
        writer = PieceWriter(self)
        try:
            for at in range(0, len(view), self.piece_bytes):
                await writer.add(view[at : at + self.piece_bytes])
            await writer.seal()
        except BaseException:
            writer.abort()
            raise
        return writer

    async def create(self, data: Buffer, *, index: bool = False) -> int:
        """A chunk for contents not yet finished (for `PieceWriter`)."""
        namespace = self._indexes if index else self._files
        assert namespace is not None
        with await namespace.create(data, wait=WAIT_S) as handle:
            self.unfinished.add(handle.id)
            return handle.id

    async def chunks(self, number: int) -> list[int]:
        """All chunks of contents; of those whose index is lost only that, the others are left to `garbage`."""
        if self.split(number):
            with suppress(Lost, Deleted, CorruptData):
                return [number, *(await self._index(number)).ids]
        return [number]

    def delete(self, ids: Iterable[int]) -> int:
        """Delete chunks that no file has any more; returns how many of them there were."""
        ids = list(ids)
        self.unfinished.difference_update(ids)
        return self.store.contents.delete_each(ids)

    def ids(self) -> Iterator[int]:
        """All chunks of files that have been written."""
        for space in (self._files, self._indexes):
            if space is not None:
                yield from space.ids()


@dataclass(frozen=True, slots=True)
class Index:
    """The pieces of a large file: all of `piece` bytes, the last one shorter.

    Attributes:
        size: Length of the file.
        piece: Length of a piece.
        ids: Their chunks, in order.
    """

    size: int
    piece: int
    ids: tuple[int, ...]

    def pack(self) -> bytes:
        """As it is stored."""
        return _HEAD.pack(_MAGIC, self.size, self.piece) + struct.pack(f"<{len(self.ids)}Q", *self.ids)

    def checked(self, data: memoryview, place: int) -> memoryview:
        """`data`, if it is as long as the piece at `place` must be.

        Raises:
            CorruptData: It is not.
        """
        if len(data) != min(self.piece, self.size - place * self.piece):
            raise CorruptData(f"chunk {self.ids[place]}, piece {place} of a file, has {len(data)} bytes")
        return data

    @classmethod
    def unpack(cls, data: Buffer, number: int) -> Index:
        """What `pack` gave.

        Raises:
            CorruptData: It is not that.
        """
        view = memoryview(data)
        if len(view) >= _HEAD.size and len(view) % 8 == 0:
            magic, size, piece = _HEAD.unpack_from(view)
            count = (len(view) - _HEAD.size) // 8
            if magic == _MAGIC and 0 < piece <= MAX_CHUNK_BYTES and -(-size // piece) == count:
                return cls(size, piece, struct.unpack_from(f"<{count}Q", view, _HEAD.size))
        raise CorruptData(f"chunk {number} is no index of a file: its length or its first bytes are wrong")


class PieceWriter:
    """Contents being written piece by piece.

    Attributes:
        number: The id that stands for them, once sealed.
        ids: Their chunks so far.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.number = 0
        self.ids: list[int] = []
        self._pieces = pieces
        self._size = 0
        self._rest = bytearray()

    async def append(self, data: Buffer) -> None:
        """Add bytes to the end; whole pieces leave for the store at once.

        Raises:
            StoreFull, MemoryUnavailable: No room.
        """
        piece = self._pieces.piece_bytes
        view = flat(data)
        while len(view):
            if not self._rest and len(view) >= piece:
                await self.add(view[:piece])
                view = view[piece:]
                continue
            taken = piece - len(self._rest)
            self._rest += view[:taken]
            view = view[taken:]
            if len(self._rest) == piece:
                await self._flush()

    async def _flush(self) -> None:
        rest, self._rest = self._rest, bytearray()
        await self.add(rest)

    async def add(self, piece: Buffer) -> None:
        """Add one piece; all but the last one are of full length."""
        self.ids.append(await self._pieces.create(piece))
        self._size += len(memoryview(piece))

    async def seal(self) -> None:
        """Write what is left, and the index if there is need of one."""
        if self._rest or not self.ids:
            await self._flush()
        if len(self.ids) == 1:
            self.number = self.ids[0]
        else:
            index = Index(self._size, self._pieces.piece_bytes, tuple(self.ids)).pack()
            self.number = await self._pieces.create(index, index=True)
            self.ids.append(self.number)

    def published(self) -> None:
        """A file has the contents now."""
        self._pieces.unfinished.difference_update(self.ids)
        self.ids = []

    def abort(self) -> None:
        """Give back what was written and not published."""
        ids, self.ids = self.ids, []
        with suppress(ClosedError):
            self._pieces.delete(ids)


def flat(data: Buffer) -> memoryview:
    """The bytes of a buffer of any shape.

    Raises:
        InvalidArgumentError: They do not lie one after the other.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise InvalidArgumentError("the buffer is not C-contiguous: copy it first")
    return view.cast("B") if view.nbytes else memoryview(b"")
