"""The array for coroutines, and the one implementation of both faces (see `dstorage.array.access`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt

from dstorage.array import naming
from dstorage.array.access import Access, OnLoop
from dstorage.array.ahead import Ahead
from dstorage.array.face import Face
from dstorage.array.halo import Block, Frame, Frames
from dstorage.array.layout import Layout
from dstorage.array.selection import Array, Key, Piece, Selection, part_of
from dstorage.array.tiles import Draft, Tiles
from dstorage.errors import InvalidArgumentError
from dstorage.store import Store

P = ParamSpec("P")
T = TypeVar("T")

WAIT_S = 60.0
AHEAD_SHARE = 3 / 16
"""Of the budget: as much is asked for ahead of what is computed on; with that it stays below what hints may bring in."""
AHEAD_BYTES = 64 * 2**20
MAX_AHEAD = 64


class AsyncPagedArray(Face[AsyncIterator[Block], Coroutine[Any, Any, Any]]):
    """An n-dimensional array in a store, larger than memory, for coroutines on the store's loop::

        field = await AsyncPagedArray.create(store, "field", (8192, 8192), "f8")
        await field.write(np.s_[:10], 1.0)
        async for band in field.bands():
            ...

    Reductions are awaited as well. `dstorage.PagedArray` is the same for all other code, with the same names.

    The array is cut into tiles, each a chunk of the store. A call that touches several tiles is atomic for each of them; what
    is durable together is decided by `Store.commit`.

    Attributes:
        name: Its name in the store.
        shape: Elements per axis.
        dtype: Element type.
        tile: Elements per axis of a tile; those at the upper ends may be smaller.
        grid: Tiles per axis.
    """

    def __init__(self, name: str, access: Access, layout: Layout, tiles: Tiles) -> None:
        super().__init__(name, layout)
        self._access = access
        self._tiles = tiles

    # -- by name ------------------------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        store: Store,
        name: str,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = "f8",
        *,
        tile: str | int | Sequence[int] = "bands",
        fill: object = None,
        wait: float | None = WAIT_S,
    ) -> Self:
        """Make an array; it and its name are durable with the next commit.

        Args:
            store: The store.
            name: Its name there, 1 to 505 bytes of UTF-8.
            shape: Elements per axis.
            dtype: Element type: everything of numpy's but Python objects.
            tile: "bands": whole rows, up to 2 MiB; "blocks": as near to cubes as the shape allows, of that size; or
                elements per axis. A small budget makes the first two smaller.
            fill: The value of what was never written, which takes no storage; zeros by default.
            wait: Seconds that calls wait for room in memory, or for a controller that is away; None: not at all.

        Raises:
            InvalidArgumentError: There can be no such array.
            UsageError: There is one of that name.
        """
        return await cls._create(OnLoop(_checked(store), wait), name, shape, dtype, tile, fill, wait)

    @classmethod
    async def _create(
        cls,
        access: Access,
        name: str,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike,
        tile: str | int | Sequence[int],
        fill: object,
        wait: float | None,
    ) -> Self:
        layout = Layout.make(shape, dtype, tile, fill, access.store.room.budget)
        root, head = await access.run(lambda: naming.create(access.store, name, layout, wait), _ignore)
        return cls(name, access, layout, Tiles(access, layout, root, head, wait))

    @classmethod
    async def open(cls, store: Store, name: str, *, wait: float | None = WAIT_S) -> Self:
        """The array of that name.

        Raises:
            InvalidArgumentError: There is none.
            CorruptData: Its description makes no sense.
        """
        return await cls._open(OnLoop(_checked(store), wait), name, wait)

    @classmethod
    async def _open(cls, access: Access, name: str, wait: float | None) -> Self:
        layout, root, head = await access.run(lambda: naming.find(access.store, name, wait), _ignore)
        return cls(name, access, layout, Tiles(access, layout, root, head, wait))

    @staticmethod
    async def delete(store: Store, name: str, *, wait: float | None = WAIT_S) -> None:
        """Delete an array: its name is free at once, its space with the next commit.

        Raises:
            InvalidArgumentError: There is none of that name.
            TemporarilyUnavailable, MemoryUnavailable: What says where its tiles are cannot be had. Its name is free all the same;
                its space follows when the next array is made or deleted.
        """
        await naming.delete(_checked(store), name, wait)

    @staticmethod
    def names(store: Store) -> list[str]:
        """Names of all arrays of a store."""
        return naming.names(_checked(store))

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

    def _numbers_in(self, box: tuple[slice, ...]) -> Iterator[int]:
        for piece in Selection(box, self._layout).pieces():
            yield self._layout.number(piece.place)

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
        if isinstance(value, AsyncPagedArray):
            await self._copy(selection, value)
            return
        values = value if isinstance(value, np.ndarray) else np.asarray(value, self.dtype)
        raw = selection.raw(values)
        async for piece in self._ahead(
            selection.pieces(), lambda p: () if selection.whole(p) else self._number_of(p), self._layout.tile_bytes
        ):
            await self._write_piece(piece, selection.whole(piece), raw[piece.raw])

    async def _copy(self, selection: Selection, other: AsyncPagedArray) -> None:
        if other._tiles.root == self._tiles.root and other._access.store is self._access.store:
            raise InvalidArgumentError(f"array {self.name!r} to itself: read() the part to be moved first")
        if type(other._access) is not type(self._access):
            raise InvalidArgumentError(
                f"array {other.name!r} is an AsyncPagedArray, for coroutines on its store's loop: read() it there"
            )
        if other.shape != selection.shape or not selection.plain:
            raise InvalidArgumentError(
                f"array {other.name!r} of shape {other.shape} where {selection.shape} is selected: to be copied tile by tile, "
                "shapes must be the same, with no axis dropped, added or reversed; read() it"
            )
        async for piece in other._ahead(
            selection.pieces(), lambda p: other._numbers_in(p.raw), self._layout.tile_bytes
        ):
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

        Arguments, errors and what becomes of `part` are as for `PagedArray.edit`.
        """
        selection = Selection(key, self._layout)
        piece = selection.single()
        if piece is None or not selection.whole(piece):
            self._access.store.check_changeable()
            raw = (np.zeros if discard else np.empty)(selection.raw_shape, self.dtype)
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

    # -- what `Face` asks for ------------------------------------------------------------------------------------------

    async def _parts(self, frames: Frames, once: bool) -> AsyncIterator[Block]:
        def numbers(frame: Frame) -> Iterable[int]:
            for patch in frame.patches:
                yield from self._numbers_in(patch.source)

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

    def _reduced(
        self,
        work: Callable[Concatenate[AsyncPagedArray, P], Coroutine[Any, Any, Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, Any]:
        return work(self, *args, **kwargs)


def _checked(store: Store) -> Store:
    if not isinstance(store, Store):
        raise InvalidArgumentError(
            f"AsyncPagedArray needs a store opened with dstorage.open, not a {type(store).__module__}.{type(store).__name__}"
            ": for one of dstorage.blocking there is PagedArray"
        )
    return store


def _ignore(result: object) -> None:
    """What was made is there by its name."""
