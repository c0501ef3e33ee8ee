"""Reading and writing parts of an array, and going through it part by part with the next ones on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Generic, Self, TypeVar

import numpy as np

from dstorage.array.access import Access
from dstorage.array.halo import CLIP, Block, Frame, Frames
from dstorage.array.layout import Layout
from dstorage.array.selection import Array, Key, Piece, Selection, part_of
from dstorage.array.tiles import Draft, Tiles
from dstorage.errors import InvalidArgumentError

T = TypeVar("T")

AHEAD_SHARE = 3 / 16
"""Of the budget: as much is asked for ahead of what is computed on; with that it stays below what hints may bring in."""
AHEAD_BYTES = 64 * 2**20
MAX_AHEAD = 64


class Elements:
    """The elements of `dstorage.array.core.AsyncPagedArray`, which documents the attributes."""

    def __init__(self, name: str, access: Access, layout: Layout, tiles: Tiles) -> None:
        self.name = name
        self._layout = layout
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.tile = layout.tile
        self.grid = layout.grid
        self._access = access
        self._tiles = tiles

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, key: Key = ...) -> Any:
        """A part of the array, in memory of the program's own (not of the budget).

        Args:
            key: Integers, slices (also with steps, also negative), ``...`` and ``None``, as in ``array[key]``.

        Returns:
            An array, or a scalar where `key` names one element.

        Raises:
            IndexError, InvalidArgumentError: `key` is out of range, or advanced indexing.
            TemporarilyUnavailable, Lost, CorruptData, MemoryUnavailable: A tile cannot be had.
            Deleted: The array was deleted.
        """
        selection = Selection(key, self._layout)
        raw = np.empty(selection.raw_shape, self.dtype)
        await self._read_into(raw, selection)
        return selection.result(raw)[()]

    async def view(self, key: Key = ...) -> Array:
        """A part of the array, read-only; not copied if it lies in one tile.

        It is as the array was at the call, whatever is written later. What is not copied shares memory with the store, and
        counts in its budget as long as the view is held.

        Args:
            key: As for `read`.
        """
        selection = Selection(key, self._layout)
        piece = selection.single()
        if piece is not None:
            tile = await self._read_tile(piece.place)
            return selection.result(part_of(tile, piece.inside))
        raw = np.empty(selection.raw_shape, self.dtype)
        await self._read_into(raw, selection)
        raw.flags.writeable = False
        return selection.result(raw)

    async def _read_into(self, raw: Array, selection: Selection, *, asked: bool = False) -> None:
        if asked:
            # All of it is on its way already.
            for piece in selection.pieces():
                raw[piece.raw] = (await self._read_tile(piece.place))[piece.inside]
            return
        async for piece in self._ahead(selection.pieces(), self._number_of, self._layout.tile_bytes):
            raw[piece.raw] = (await self._read_tile(piece.place))[piece.inside]

    async def _read_tile(self, place: Sequence[int]) -> Array:
        shape = self._layout.tile_shape(place)
        view = await self._tiles.get(self._layout.number(place))
        return self._layout.blank(shape) if view is None else np.frombuffer(view, self.dtype).reshape(shape)

    def _number_of(self, piece: Piece) -> Iterable[int]:
        return (self._layout.number(piece.place),)

    @property
    def _window(self) -> int:
        """Bytes to ask for ahead."""
        return min(AHEAD_BYTES, int(self._access.store.room.budget * AHEAD_SHARE))

    def _ahead(
        self, items: Iterable[T], numbers: Callable[[T], Iterable[int]], item_bytes: int, *, once: bool = False
    ) -> Ahead[T]:
        depth = max(1, min(MAX_AHEAD, self._window // max(1, item_bytes)))
        return Ahead(items, numbers, depth, self._access, self._tiles, once=once)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, key: Key, value: object) -> None:
        """Assign to a part of the array, as ``array[key] = value``.

        Args:
            key: As for `read`.
            value: What numpy broadcasts to that part; or another paged array of just its shape, copied tile by tile.

        Raises:
            ValueError: `value` does not broadcast.
            ReadOnlyError, ClosedError: The store takes no changes.
            MemoryUnavailable: No room. Tiles before the one that failed are written.
        """
        selection = Selection(key, self._layout)
        if isinstance(value, Elements):
            await self._copy(selection, value)
            return
        values = value if isinstance(value, np.ndarray) else np.asarray(value, self.dtype)
        raw = selection.raw(values)
        async for piece in self._ahead(
            selection.pieces(), lambda p: () if selection.whole(p) else self._number_of(p), self._layout.tile_bytes
        ):
            await self._write_piece(piece, selection.whole(piece), raw[piece.raw])

    async def _copy(self, selection: Selection, other: Elements) -> None:
        if other._tiles.root == self._tiles.root and other._access.store is self._access.store:
            raise InvalidArgumentError(f"array {self.name!r} to itself: read() the part to be moved first")
        if other.shape != selection.shape or not selection.plain:
            raise InvalidArgumentError(
                f"array {other.name!r} of shape {other.shape} where {selection.shape} is selected: to be copied tile by tile, "
                "shapes must be the same, with no axis dropped, added or reversed; read() it"
            )
        async for piece in self._ahead(selection.pieces(), lambda p: (), self._layout.tile_bytes):
            await self._write_piece(piece, selection.whole(piece), await other.view(piece.raw))

    async def _write_piece(self, piece: Piece, whole: bool, value: Array) -> None:
        number, shape = self._layout.number(piece.place), self._layout.tile_shape(piece.place)
        while True:
            draft = await self._tiles.draft(number, keep=not whole)
            try:
                self._begun(draft, shape, keep=not whole)[piece.inside] = value
            except BaseException:
                self._tiles.drop(draft)
                raise
            if await self._tiles.publish(draft):
                return

    @asynccontextmanager
    async def edit(self, key: Key = ..., *, discard: bool = False, once: bool = False) -> AsyncIterator[Array]:
        """Change a part of the array in place::

            async with field.edit(np.s_[10:20]) as part:
                part *= 2

        `part` is an array of the program's own. It becomes the contents when the block ends normally; an exception discards
        it. Whoever ends last wins.

        Args:
            key: As for `read`.
            discard: The present contents are not wanted: `part` starts as zeros.
            once: It will not be used again for long: of one whole tile, the new contents are written at once, and leave memory
                before all else.

        One whole tile (or a band that is one) is published without being copied.
        """
        selection = Selection(key, self._layout)
        piece = selection.single()
        if piece is None or not selection.whole(piece):
            raw = np.zeros(selection.raw_shape, self.dtype)
            if not discard:
                await self._read_into(raw, selection)
            part = selection.result(raw)
            yield part
            await self.write(key, part)
            return
        draft = await self._tiles.draft(self._layout.number(piece.place), keep=not discard)
        try:
            tile = self._begun(draft, selection.raw_shape, keep=not discard)
            if discard:
                np.frombuffer(draft.buffer, np.uint8)[...] = 0
            part = selection.result(tile)
            yield part
            # It belongs to the store from now on.
            part.flags.writeable = tile.flags.writeable = False
        except BaseException:
            self._tiles.drop(draft)
            raise
        if not await self._tiles.publish(draft, once=once):
            await self.write(key, part)

    def _begun(self, draft: Draft, shape: Sequence[int], *, keep: bool) -> Array:
        """A draft as an array, with the present contents or the fill value in it if they are to be kept."""
        tile = np.frombuffer(draft.buffer, self.dtype).reshape(shape)
        if draft.source is not None:
            tile[...] = np.frombuffer(draft.source, self.dtype).reshape(shape)
        elif keep:
            tile[...] = self._layout.fill
        return tile

    # -- part by part -------------------------------------------------------------------------------------------------

    def tiles(self, *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False) -> AsyncIterator[Block]:
        """All tiles, in C order, the next ones brought into memory while the program works on one (``async for``).

        Args:
            halo: How many elements of the neighbours to add on each side, for all axes or per axis.
            boundary: What is beyond the array, for all axes or (a tuple) per axis: "clip": nothing, the halo ends there;
                "periodic": the other end; "fill": the fill value; a number: that.
            once: Whatever is given is not used again for long, and leaves memory before all else when the next one is asked
                for, the last one first. Of what is gone through again and again and does not fit in the budget, a part then
                stays in memory; without, all of it leaves just before it is wanted.
        """
        return self.blocks(self.tile, halo=halo, boundary=boundary, once=once)

    def bands(
        self, rows: int | None = None, *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False
    ) -> AsyncIterator[Block]:
        """The array in bands across all axes but the first, else as `tiles`.

        Args:
            rows: Length along the first axis; by default that of a tile.
            halo: As for `tiles`, but a single number is for the first axis only.
            boundary: As for `tiles`.
            once: As for `tiles`.

        Raises:
            InvalidArgumentError: The array has no axes, or `rows` is less than 1.
        """
        if not self.shape:
            raise InvalidArgumentError("an array without axes has no bands: use read()")
        shape = (self.tile[0] if rows is None else rows, *(max(1, length) for length in self.shape[1:]))
        around = halo if isinstance(halo, Iterable) else (halo, *[0] * (len(self.shape) - 1))
        return self.blocks(shape, halo=around, boundary=boundary, once=once)

    def blocks(
        self, shape: Sequence[int], *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False
    ) -> AsyncIterator[Block]:
        """The array in blocks of any shape, else as `tiles`.

        Args:
            shape: Elements per axis of a block; those at the upper ends may be smaller.
            halo: As for `tiles`.
            boundary: As for `tiles`.
            once: As for `tiles`.
        """
        return self._blocks(Frames(self._layout, shape, halo, boundary), once)

    async def _blocks(self, frames: Frames, once: bool) -> AsyncIterator[Block]:
        def numbers(frame: Frame) -> Iterable[int]:
            for patch in frame.patches:
                for piece in Selection(patch.source, self._layout).pieces():
                    yield self._layout.number(piece.place)

        async for frame in self._ahead(frames, numbers, frames.bytes, once=once):
            selections = [Selection(patch.source, self._layout) for patch in frame.patches]
            if frame.covered and len(selections) == 1 and selections[0].single() is not None:
                data = await self.view(frame.patches[0].source)
            else:
                data = np.empty(frame.shape, self.dtype)
                if not frame.covered:
                    data[...] = frames.outside
                for patch, selection in zip(frame.patches, selections, strict=True):
                    await self._read_into(part_of(data, patch.target), selection, asked=frames.bytes <= self._window)
                data.flags.writeable = False
            yield Block(frame.place, frame.slices, data, frame.inner)


class Ahead(Generic[T]):
    """Gives items one by one; the tiles of the next ones are brought in while one is worked on (``async for``).

    Args:
        items: What to give.
        numbers: The tiles that an item needs.
        depth: How many items ahead.
        access: Way to the store.
        tiles: The tiles.
        once: Tiles that an item needed, and none of those ahead, may leave memory first.
    """

    def __init__(
        self,
        items: Iterable[T],
        numbers: Callable[[T], Iterable[int]],
        depth: int,
        access: Access,
        tiles: Tiles,
        *,
        once: bool,
    ) -> None:
        self._items = iter(items)
        self._numbers = numbers
        self._depth = depth
        self._access = access
        self._tiles = tiles
        self._once = once
        self._coming: deque[tuple[T, tuple[int, ...]]] = deque()
        self._given: tuple[int, ...] | None = None
        self._done: list[int] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        coming = self._coming
        if self._once and self._given:
            needed = {number for _, numbers in coming for number in numbers}
            self._done += [number for number in self._given if number not in needed]
        # Not one by one: each time costs a trip to the loop.
        if len(coming) <= self._depth * 3 // 4:
            coming += [
                (item, tuple(self._numbers(item))) for item in islice(self._items, self._depth + 1 - len(coming))
            ]
            if len(coming) > 1 or self._done:
                # All of them: for some there may have been no room when they were named first.
                await self._tiles.prefetch((number for _, numbers in coming for number in numbers), self._done)
                self._done.clear()
        if not coming:
            raise StopAsyncIteration
        if self._given is not None:
            await self._access.breathe()
        item, self._given = coming.popleft()
        return item
