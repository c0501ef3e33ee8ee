"""The array for coroutines, and the one implementation of both faces (see `dstorage.array.access`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dstorage.array import naming
from dstorage.array.access import Access, OnLoop
from dstorage.array.elements import Elements
from dstorage.array.layout import Layout
from dstorage.array.reduce import Axes, accumulate, axes_of, extreme_index, finished, mean_over, variance_over
from dstorage.array.selection import Array
from dstorage.array.tiles import Tiles
from dstorage.errors import InvalidArgumentError
from dstorage.store import Store

WAIT_S = 60.0


class AsyncPagedArray(Elements):
    """An n-dimensional array in a store, larger than memory, for coroutines on the store's loop::

        field = await AsyncPagedArray.create(store, "field", (8192, 8192), "f8")
        await field.write(np.s_[:10], 1.0)
        async for band in field.bands():
            ...

    `dstorage.PagedArray` is the same for all other code, with the same names.

    The array is cut into tiles, each a chunk of the store. A call that touches several tiles is atomic for each of them; what
    is durable together is decided by `Store.commit`.

    Attributes:
        name: Its name in the store.
        shape: Elements per axis.
        dtype: Element type.
        tile: Elements per axis of a tile; those at the upper ends may be smaller.
        grid: Tiles per axis.
    """

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

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, written or not."""
        return self.size * self.dtype.itemsize

    @property
    def fill(self) -> Any:
        """The value of what was never written."""
        return self._layout.fill[()]

    # -- reductions ---------------------------------------------------------------------------------------------------

    async def sum(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Any:
        """Sum over one axis, several (a tuple) or all (None), as `numpy.sum`; the result is in memory.

        Args:
            axis: Which; negative ones count from the last.
            dtype: Of the result and of the sums on the way to it.
            out: Array for the result.
            keepdims: Keep the reduced axes, with length 1.
        """
        return await self._accumulate(np.add, axis, dtype, out, keepdims)

    async def min(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Least element, as `numpy.min`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return await self._accumulate(np.minimum, axis, None, out, keepdims)

    async def max(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Greatest element, as `numpy.max`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return await self._accumulate(np.maximum, axis, None, out, keepdims)

    async def any(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Whether an element is true, as `numpy.any`; arguments as for `sum`."""
        return await self._accumulate(np.logical_or, axis, None, out, keepdims)

    async def all(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Whether every element is true, as `numpy.all`; arguments as for `sum`."""
        return await self._accumulate(np.logical_and, axis, None, out, keepdims)

    async def _accumulate(
        self, ufunc: np.ufunc, axis: Axes, dtype: npt.DTypeLike | None, out: Array | None, keepdims: bool
    ) -> Any:
        axes = axes_of(self, axis)
        return finished(await accumulate(self, ufunc, axes, dtype), axes, keepdims, out)

    async def mean(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Any:
        """Arithmetic mean, as `numpy.mean`; arguments as for `sum`. NaN where there is nothing."""
        axes = axes_of(self, axis)
        return finished(await mean_over(self, axes, dtype), axes, keepdims, out)

    async def var(
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
        axes = axes_of(self, axis)
        return finished(await variance_over(self, axes, dtype, ddof), axes, keepdims, out)

    async def std(
        self,
        axis: Axes = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
    ) -> Any:
        """Standard deviation, as `numpy.std`; arguments as for `var`."""
        axes = axes_of(self, axis)
        return finished(np.sqrt(await variance_over(self, axes, dtype, ddof)), axes, keepdims, out)

    async def argmin(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Index of the least element along one axis, or in the array laid out in C order, as `numpy.argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return await extreme_index(self, axis, True, keepdims, out)

    async def argmax(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Any:
        """Index of the greatest element, as `numpy.argmax`; otherwise as `argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return await extreme_index(self, axis, False, keepdims, out)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.shape} of {self.dtype}, tiles {self.tile}>"


def _checked(store: Store) -> Store:
    if not isinstance(store, Store):
        raise InvalidArgumentError(
            f"AsyncPagedArray needs a store opened with dstorage.open, not a {type(store).__module__}.{type(store).__name__}"
            ": for one of dstorage.blocking there is PagedArray"
        )
    return store


def _ignore(result: object) -> None:
    """What was made is there by its name."""
