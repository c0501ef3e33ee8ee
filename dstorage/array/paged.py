"""The array for everything that is no coroutine: `AsyncPagedArray` run in the calling thread, and numpy's habits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt

import dstorage.blocking
from dstorage.array import naming
from dstorage.array.access import FromThread, complete
from dstorage.array.core import WAIT_S, AsyncPagedArray
from dstorage.array.face import Face
from dstorage.array.halo import Block, Frames
from dstorage.array.selection import Array, Key
from dstorage.errors import InvalidArgumentError

P = ParamSpec("P")
T = TypeVar("T")


class PagedArray(Face[Iterator[Block], Any]):
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
        super().__init__(array.name, array._layout)
        self.store = store
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
        counts in its budget as long as the view is held; what was read straight from the system's page cache is the
        program's own.

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

        One whole tile (or a band that is one) is published without being copied. `part` is read-only from then on; do not write
        to other views of it that were kept.

        Raises:
            ReadOnlyError, ClosedError: The store takes no changes.
            MemoryUnavailable: No room.
            TemporarilyUnavailable, Lost, Deleted: As for `read`.
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

    # -- what `Face` asks for ------------------------------------------------------------------------------------------

    def _parts(self, frames: Frames, once: bool) -> Iterator[Block]:
        return _each(self._array._parts(frames, once))

    def _reduced(
        self,
        work: Callable[Concatenate[AsyncPagedArray, P], Coroutine[Any, Any, Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Any:
        return complete(work(self._array, *args, **kwargs))


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
