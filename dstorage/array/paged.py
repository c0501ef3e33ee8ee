"""The array for everything that is no coroutine: `AsyncPagedArray` run in the calling thread, and numpy's habits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

import dstorage.blocking
from dstorage.array import naming
from dstorage.array.access import FromThread, complete
from dstorage.array.core import WAIT_S, AsyncPagedArray
from dstorage.array.halo import CLIP, Block
from dstorage.array.reduce import Axes
from dstorage.array.selection import Array, Key
from dstorage.errors import InvalidArgumentError

T = TypeVar("T")


class PagedArray:
    """An n-dimensional array in a store, larger than memory::

        with dstorage.blocking.open("data", budget="256M") as store:
            field = PagedArray.create(store, "field", (100_000, 8192), "f8")
            field[:10] = 1.0
            for band in field.bands(halo=1):
                ...
            store.commit()

    It is cut into tiles, each a chunk of the store. A call that touches several tiles is atomic for each of them; what is
    durable together is decided by `dstorage.blocking.Store.commit`. For any thread; `AsyncPagedArray` is the same for coroutines.

    Attributes:
        store: The store, opened with `dstorage.blocking.open`.
        name: Its name in the store.
        shape: Elements per axis.
        dtype: Element type.
        tile: Elements per axis of a tile; those at the upper ends may be smaller.
        grid: Tiles per axis.
    """

    def __init__(self, store: dstorage.blocking.Store, array: AsyncPagedArray) -> None:
        self.store = store
        self.name = array.name
        self.shape = array.shape
        self.dtype = array.dtype
        self.tile = array.tile
        self.grid = array.grid
        self._array = array

    # -- by name ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        store: dstorage.blocking.Store,
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
            store: The store, opened with `dstorage.blocking.open`.
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
        access = FromThread(_checked(store), wait)
        return cls(store, complete(AsyncPagedArray._create(access, name, shape, dtype, tile, fill, wait)))

    @classmethod
    def open(cls, store: dstorage.blocking.Store, name: str, *, wait: float | None = WAIT_S) -> Self:
        """The array of that name.

        Raises:
            InvalidArgumentError: There is none.
            CorruptData: Its description makes no sense.
        """
        return cls(store, complete(AsyncPagedArray._open(FromThread(_checked(store), wait), name, wait)))

    @staticmethod
    def delete(store: dstorage.blocking.Store, name: str, *, wait: float | None = WAIT_S) -> None:
        """Delete an array: its name is free at once, its space with the next commit.

        Raises:
            InvalidArgumentError: There is none of that name.
            TemporarilyUnavailable, MemoryUnavailable: What says where its tiles are cannot be had. Its name is free all the same;
                its space follows when the next array is made or deleted.
        """
        _checked(store).call(naming.delete, store.inner, name, wait)

    @staticmethod
    def names(store: dstorage.blocking.Store) -> list[str]:
        """Names of all arrays of a store."""
        return _checked(store).loop.call_sync(naming.names, store.inner)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """How many axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """How many elements."""
        return self._array.size

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, written or not."""
        return self._array.nbytes

    @property
    def fill(self) -> Any:
        """The value of what was never written."""
        return self._array.fill

    # -- reading and writing ------------------------------------------------------------------------------------------

    def read(self, key: Key = ...) -> Any:
        """A part of the array, in memory of the program's own; the same as ``array[key]``.

        Args:
            key: Integers, slices (also with steps, also negative), ``...`` and ``None``.

        Returns:
            An array, or a scalar where `key` names one element.

        Raises:
            IndexError, InvalidArgumentError: `key` is out of range, or advanced indexing.
            TemporarilyUnavailable, Lost, CorruptData, MemoryUnavailable: A tile cannot be had.
            Deleted: The array was deleted.
        """
        return complete(self._array.read(key))

    def view(self, key: Key = ...) -> Array:
        """A part of the array, read-only; not copied if it lies in one tile.

        It is as the array was at the call, whatever is written later. What is not copied shares memory with the store, and
        counts in its budget as long as the view is held.

        Args:
            key: As for `read`.
        """
        return complete(self._array.view(key))

    def write(self, key: Key, value: object) -> None:
        """Assign to a part of the array; the same as ``array[key] = value``.

        Args:
            key: As for `read`.
            value: What numpy broadcasts to that part; or another paged array of just its shape, copied tile by tile.

        Raises:
            ValueError: `value` does not broadcast.
            ReadOnlyError, ClosedError: The store takes no changes.
            MemoryUnavailable: No room. Tiles before the one that failed are written.
        """
        complete(self._array.write(key, value._array if isinstance(value, PagedArray) else value))

    @contextmanager
    def edit(self, key: Key = ..., *, discard: bool = False, once: bool = False) -> Iterator[Array]:
        """Change a part of the array in place::

            with field.edit(np.s_[10:20]) as part:
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
        editing = self._array.edit(key, discard=discard, once=once)
        part = complete(editing.__aenter__())
        try:
            yield part
        except BaseException as error:
            del part
            if not complete(editing.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            del part
            complete(editing.__aexit__(None, None, None))

    def __getitem__(self, key: Key) -> Any:
        return self.read(key)

    def __setitem__(self, key: Key, value: object) -> None:
        self.write(key, value)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Along the first axis, as numpy's; each item is the program's own."""
        if not self.shape:
            raise TypeError("iteration over an array without axes")
        for band in self.bands():
            for row in band.data:
                yield row.copy()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """All of it, in memory of the program's own."""
        if copy is False:
            raise ValueError("a paged array cannot be an array in memory without being copied: leave out copy=False")
        return np.asarray(self.read(), dtype)

    # -- part by part -------------------------------------------------------------------------------------------------

    def tiles(self, *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False) -> Iterator[Block]:
        """All tiles, in C order, the next ones brought into memory while the program works on one.

        Args:
            halo: How many elements of the neighbours to add on each side, for all axes or per axis.
            boundary: What is beyond the array, for all axes or (a tuple) per axis: "clip": nothing, the halo ends there;
                "periodic": the other end; "fill": the fill value; a number: that.
            once: Whatever is given is not used again for long, and leaves memory before all else when the next one is asked
                for, the last one first. Of what is gone through again and again and does not fit in the budget, a part then
                stays in memory; without, all of it leaves just before it is wanted.
        """
        return _each(self._array.tiles(halo=halo, boundary=boundary, once=once))

    def bands(
        self, rows: int | None = None, *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False
    ) -> Iterator[Block]:
        """The array in bands across all axes but the first, else as `tiles`.

        Args:
            rows: Length along the first axis; by default that of a tile.
            halo: As for `tiles`, but a single number is for the first axis only.
            boundary: As for `tiles`.
            once: As for `tiles`.

        Raises:
            InvalidArgumentError: The array has no axes, or `rows` is less than 1.
        """
        return _each(self._array.bands(rows, halo=halo, boundary=boundary, once=once))

    def blocks(
        self, shape: Sequence[int], *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False
    ) -> Iterator[Block]:
        """The array in blocks of any shape, else as `tiles`.

        Args:
            shape: Elements per axis of a block; those at the upper ends may be smaller.
            halo: As for `tiles`.
            boundary: As for `tiles`.
            once: As for `tiles`.
        """
        return _each(self._array.blocks(shape, halo=halo, boundary=boundary, once=once))

    # -- reductions ---------------------------------------------------------------------------------------------------

    def sum(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Any:
        """Sum over one axis, several (a tuple) or all (None), as `numpy.sum`; the result is in memory.

        Args:
            axis: Which; negative ones count from the last.
            dtype: Of the result and of the sums on the way to it.
            out: Array for the result.
            keepdims: Keep the reduced axes, with length 1.
        """
        return complete(self._array.sum(axis, dtype, out, keepdims=keepdims))

    def min(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Least element, as `numpy.min`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return complete(self._array.min(axis, out, keepdims=keepdims))

    def max(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Greatest element, as `numpy.max`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return complete(self._array.max(axis, out, keepdims=keepdims))

    def any(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Whether an element is true, as `numpy.any`; arguments as for `sum`."""
        return complete(self._array.any(axis, out, keepdims=keepdims))

    def all(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Whether every element is true, as `numpy.all`; arguments as for `sum`."""
        return complete(self._array.all(axis, out, keepdims=keepdims))

    def mean(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Any:
        """Arithmetic mean, as `numpy.mean`; arguments as for `sum`. NaN where there is nothing."""
        return complete(self._array.mean(axis, dtype, out, keepdims=keepdims))

    def var(
        self,
        axis: Axes = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
    ) -> Any:
        """Variance, as `numpy.var`; arguments as for `sum`. NaN where there is nothing.

        Args:
            axis: As for `sum`.
            dtype: As for `sum`.
            out: As for `sum`.
            ddof: The sum of squares is divided by the number of elements less this.
            keepdims: As for `sum`.
        """
        return complete(self._array.var(axis, dtype, out, ddof=ddof, keepdims=keepdims))

    def std(
        self,
        axis: Axes = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
    ) -> Any:
        """Standard deviation, as `numpy.std`; arguments as for `var`."""
        return complete(self._array.std(axis, dtype, out, ddof=ddof, keepdims=keepdims))

    def argmin(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Index of the least element along one axis, or in the array laid out in C order, as `numpy.argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return complete(self._array.argmin(axis, out, keepdims=keepdims))

    def argmax(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Index of the greatest element, as `numpy.argmax`; otherwise as `argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return complete(self._array.argmax(axis, out, keepdims=keepdims))

    def __repr__(self) -> str:
        return f"<PagedArray {self.name!r}, {self.shape} of {self.dtype}, tiles {self.tile}>"


def _each(parts: AsyncIterator[T]) -> Iterator[T]:
    """What an asynchronous iterator gives, which never suspends."""

    async def following() -> T | None:
        return await anext(parts, None)

    try:
        while (part := complete(following())) is not None:
            yield part
            # While the next one is read, nobody holds this one.
            del part
    finally:
        complete(parts.aclose())  # type: ignore[attr-defined]  # it is an asynchronous generator


def _checked(store: dstorage.blocking.Store) -> dstorage.blocking.Store:
    if not isinstance(store, dstorage.blocking.Store):
        raise InvalidArgumentError(
            f"PagedArray needs a store opened with dstorage.blocking.open, not a {type(store).__module__}."
            f"{type(store).__name__}: for one of dstorage.open there is AsyncPagedArray"
        )
    return store
