"""The tiles of one array as chunks: where each is, reading one, publishing another.

Which chunk holds a tile is said by a tree of *nodes*: chunks of 1024 ids of 64 bits, little-endian, 0 for a tile (or a whole
branch) that was never written. Its root is in the chunk that the array's name stands for, behind the description::

    "dsarray" 0x01 | u32 length of the description | description, padded to a multiple of 8 | ids of the root

Nodes page in and out as all chunks do, so an array's bookkeeping takes no memory of its own however large it is.

A tile is never changed in place: another buffer is made (`draft`), filled, and published without copying. A tile and its
entry in the tree come into being in one step of the store's loop, so no commit can fall between the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress

from dstorage.array.access import Access
from dstorage.array.layout import MAX_JSON_BYTES, Layout
from dstorage.buffers import fresh_buffer
from dstorage.errors import ClosedError, CorruptData, Deleted, Lost
from dstorage.handle import Edit, Handle

MAGIC = b"dsarray\1"
BITS = 10
FANOUT = 1 << BITS
NODE_BYTES = FANOUT * 8
DELETED = b"array-deleted/"
"""Beginning of the name, followed by its id in decimal, that the root of an array has while the array is being deleted."""

_LENGTH = struct.Struct("<I")
_ID = struct.Struct("<Q")


class Draft:
    """New contents of a tile, not published yet; their room in memory is reserved.

    Attributes:
        number: The tile.
        buffer: To be filled, by one who looks at it no more once it is published.
        handle: The tile's chunk, referenced; None if there was none.
        source: The contents that the draft is to change, None if it replaces whatever there is.
        used: It was given to `Tiles.publish`, and that has begun.
    """

    __slots__ = ("buffer", "handle", "number", "source", "used")

    def __init__(self, number: int, buffer: bytearray, handle: Handle | None, source: bytes | bytearray | None) -> None:
        self.number = number
        self.buffer = buffer
        self.handle = handle
        self.source = source
        self.used = False


class Tiles:
    """The tiles of one array.

    Args:
        access: Way to the store.
        layout: Of the array.
        root: The chunk with the description and the tree's root.
        head: Bytes before the root.
        wait: Seconds to wait for room or for a controller that is away.
    """

    def __init__(self, access: Access, layout: Layout, root: int, head: int, wait: float | None) -> None:
        self.layout = layout
        self.root = root
        self._access = access
        self._head = head
        self._wait = wait
        self._depth = depth_of(layout)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, number: int) -> memoryview | None:
        """The bytes of a tile, read-only; None if it was never written.

        Raises:
            CorruptData: They, or the tree, are not what the array's description says.
            TemporarilyUnavailable, Lost, Deleted, MemoryUnavailable: As for every chunk.
        """
        id = await self.find(number)
        if not id:
            return None
        view = await self._chunk(id)
        self._check(number, id, len(view))
        return view

    async def find(self, number: int) -> int:
        """The chunk of a tile; 0 if it was never written."""
        id, head = self.root, self._head
        for level, slot in enumerate(self._path(number)):
            view = await self._chunk(id)
            if len(view) != head + (root_slots(self.layout) if level == 0 else FANOUT) * 8:
                raise CorruptData(f"chunk {id} with tile numbers of an array has {len(view)} bytes", id=id)
            (id,) = _ID.unpack_from(view, head + slot * 8)
            if not id:
                return 0
            head = 0
        return id

    async def _chunk(self, id: int) -> memoryview:
        try:
            return await self._access.get(id)
        except Lost:
            if await self._access.run(self._exists, lambda exists: None):
                raise
            raise Deleted("this array was deleted", id=self.root) from None

    async def _exists(self) -> bool:
        return self._access.store.info(self.root) is not None

    async def prefetch(self, numbers: Iterable[int], done: Iterable[int] = ()) -> None:
        """A hint that these tiles will be wanted, and others not for long."""
        ids = [id for number in dict.fromkeys(numbers) if (id := await self.find(number))]
        self._access.prefetch(ids, [id for number in done if (id := await self.find(number))])

    def _check(self, number: int, id: int, size: int) -> None:
        expected = tile_bytes(self.layout, number)
        if size != expected:
            raise CorruptData(f"chunk {id} has {size} bytes, tile {number} of the array has {expected}", id=id)

    def _check_present(self, number: int, id: int) -> None:
        """Whether the tile's chunk is one, without looking at its contents (on the loop)."""
        info = self._access.store.info(id)
        if info is not None:
            self._check(number, id, info.size)
        elif self._access.store.info(self.root) is None:
            raise Deleted("this array was deleted", id=self.root)
        else:
            raise Lost("unknown id", id=id)

    def _path(self, number: int) -> Iterator[int]:
        for level in reversed(range(self._depth)):
            yield (number >> BITS * level) % FANOUT

    # -- writing ------------------------------------------------------------------------------------------------------

    async def draft(self, number: int, *, keep: bool) -> Draft:
        """Begin to write a tile.

        Args:
            number: The tile.
            keep: The present contents are wanted: they are `Draft.source`. Otherwise they are not even read.

        Returns:
            A draft whose contents are undefined, all of it to be filled before it is given to `publish`, or to be given to
            `drop`.

        Raises:
            MemoryUnavailable: No room.
        """
        id = await self.find(number)
        size = tile_bytes(self.layout, number)
        store = self._access.store

        async def begin() -> Draft:
            store.check_writable()
            if not id:
                await store.room.reserve(size, 0, self._wait)
                return Draft(number, self._take(size), None, None)
            with store.table.get(id) as handle:
                self._check_present(number, id)
                source = None
                if keep:
                    await handle.get(wait=self._wait)
                    source = handle.buffer
                await store.room.reserve(size, id, self._wait)
                return Draft(number, self._take(size), handle.acquire(), source)

        return await self._access.run(begin, lambda draft: self._drop(size, draft.handle))

    def _take(self, size: int) -> bytearray:
        """Memory for a draft, for which there is room (on the loop: what is read into comes from there too, and an allocator keeps
        for each thread what was freed of its own, so that memory from two of them is held twice).
        """
        try:
            return fresh_buffer(size)
        except BaseException:
            self._access.store.contents.drop_reserved(size)
            raise

    def drop(self, draft: Draft) -> None:
        """Give up a draft."""
        handle, size = draft.handle, len(draft.buffer)
        # Of a closed store nothing is left to give back.
        with suppress(ClosedError):
            self._access.post(lambda: None if draft.used else self._drop(size, handle))

    def _drop(self, size: int, handle: Handle | None) -> None:
        self._access.store.contents.drop_reserved(size)
        if handle is not None:
            handle.release()

    async def publish(self, draft: Draft, *, once: bool = False) -> bool:
        """Make a draft the contents of its tile; it is used up, whatever comes of it.

        Args:
            draft: The draft.
            once: They will not be used for long: written at once, they leave memory first.

        Returns:
            False, and nothing was changed, if the draft was made from contents that others have changed meanwhile.

        Raises:
            MemoryUnavailable: No room for the tile's entry in the tree.
            Deleted, Lost: The array was deleted.
        """

        async def publish() -> bool:
            store, handle, buffer = self._access.store, draft.handle, draft.buffer
            draft.used = True
            if handle is not None:
                try:
                    if draft.source is not None and handle.buffer is not draft.source:
                        store.contents.drop_reserved(len(buffer))
                        return False
                    draft.source = None
                    store.contents.publish(handle, buffer)
                    return True
                finally:
                    handle.release()
                    if once:
                        store.contents.leave_first([handle.id])
            return await self._link(draft.number, buffer, once)

        try:
            return await self._access.run(publish, lambda published: None)
        except BaseException:
            # Interrupted, it may not even have begun.
            self.drop(draft)
            raise

    async def _link(self, number: int, buffer: bytearray, once: bool) -> bool:
        """Publish the contents of a tile that had none (on the loop); False if it has some by now."""
        store = self._access.store
        left: int | None = len(buffer)
        try:
            id, head = self.root, self._head
            *branches, leaf = self._path(number)
            for slot in branches:
                id = await self._branch(id, head + slot * 8)
                head = 0
            with store.table.get(id) as node:
                async with Edit(node, self._wait, discard=False, along=True) as ids:
                    if _ID.unpack_from(ids, head + leaf * 8)[0]:
                        return False
                    self._check_kept()
                    left = None
                    with store.contents.adopt(buffer) as handle:
                        id = handle.id
                        _ID.pack_into(ids, head + leaf * 8, id)
            if once:
                store.contents.leave_first([id])
            return True
        finally:
            if left is not None:
                store.contents.drop_reserved(left)

    async def _branch(self, id: int, at: int) -> int:
        """The node that is named at byte `at` of node `id`, made if there is none (on the loop)."""
        store = self._access.store
        with store.table.get(id) as node:
            child: int = _ID.unpack_from(await node.get(wait=self._wait), at)[0]
            if child:
                return child
            # Behind those who hold room already, it would wait for itself.
            if not store.room.try_reserve_along(NODE_BYTES):
                await store.room.reserve(NODE_BYTES, 0, self._wait)
            left = True
            try:
                async with Edit(node, self._wait, discard=False, along=True) as ids:
                    child = _ID.unpack_from(ids, at)[0]
                    if not child:
                        self._check_kept()
                        left = False
                        with store.contents.adopt(bytes(NODE_BYTES)) as made:
                            child = made.id
                        _ID.pack_into(ids, at, child)
                return child
            finally:
                if left:
                    store.contents.drop_reserved(NODE_BYTES)

    def _check_kept(self) -> None:
        """Whether new chunks may be named in the tree: the deletion under way may have been where they would be (on the loop)."""
        if self._access.store.get_name(deleted_name(self.root)) is not None:
            raise Deleted("this array was deleted", id=self.root)


# -- the tree as a whole ----------------------------------------------------------------------------------------------


def deleted_name(root: int) -> bytes:
    """See `DELETED`."""
    return DELETED + b"%d" % root


def tile_bytes(layout: Layout, number: int) -> int:
    """Bytes of one tile; less than `Layout.tile_bytes` at the upper ends."""
    size = layout.dtype.itemsize
    for length in layout.tile_shape(layout.place(number)):
        size *= length
    return size


def depth_of(layout: Layout) -> int:
    """Levels of nodes."""
    depth, covered = 1, FANOUT
    while covered < layout.tiles:
        depth, covered = depth + 1, covered * FANOUT
    return depth


def span_of(layout: Layout, level: int) -> int:
    """Tiles below one entry of a node; level 0 is the root."""
    return 1 << BITS * (depth_of(layout) - 1 - level)


def root_slots(layout: Layout) -> int:
    """Entries of the root."""
    return -(-layout.tiles // span_of(layout, 0))


def pack_root(layout: Layout) -> bytes:
    """The chunk for an array's name, with nothing written yet."""
    described = layout.pack()
    head = MAGIC + _LENGTH.pack(len(described)) + described
    return head + bytes(-len(head) % 8) + bytes(root_slots(layout) * 8)


def unpack_root(view: memoryview, name: str, id: int) -> tuple[Layout, int]:
    """The layout, and the bytes before the root.

    Raises:
        CorruptData: This is no array's description.
    """
    if len(view) < 12 or view[:8] != MAGIC:
        raise CorruptData(f"chunk {id} does not describe an array, as the name {name!r} says", id=id)
    (length,) = _LENGTH.unpack_from(view, 8)
    if length > MAX_JSON_BYTES or length > len(view) - 12:
        raise CorruptData(f"the description of array {name!r} is cut off", id=id)
    layout = Layout.unpack(bytes(view[12 : 12 + length]), name, id)
    head = 12 + length + -(12 + length) % 8
    if len(view) != head + root_slots(layout) * 8:
        raise CorruptData(
            f"the description of array {name!r} does not fit its table of {len(view) - head} bytes", id=id
        )
    return layout, head
