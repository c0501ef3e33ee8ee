"""Basic indexing as numpy defines it, cut at the borders of tiles.

Three arrays are in play: what the program sees (the *result*: axes dropped by integers, added by ``None``, reversed by negative
steps), the same elements with one axis per axis of the array in ascending order (*raw*), and the tiles. `Selection.pieces` says
which part of raw is which part of which tile; `result` and `raw` turn the one into the other without copying.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dstorage.array.layout import Layout
from dstorage.errors import InvalidArgumentError

Index = int | slice | EllipsisType | None
Key = Index | tuple[Index, ...]
"""What may stand in ``array[...]``."""

Array = npt.NDArray[Any]


class Piece(NamedTuple):
    """What a selection has of one tile.

    Attributes:
        place: The tile's place in the grid.
        inside: The elements, as slices of the tile.
        raw: The same, as slices of raw.
    """

    place: tuple[int, ...]
    inside: tuple[slice, ...]
    raw: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    """The elements ``start, start + step, ...`` of one axis, `count` of them; `step` is positive."""

    start: int
    step: int
    count: int
    dropped: bool = False
    reversed: bool = False

    def parts(self, edge: int) -> Iterator[tuple[int, slice, slice]]:
        """(tile, slice of the tile, slice of raw) for each tile of length `edge` that it touches."""
        done = 0
        while done < self.count:
            first = self.start + done * self.step
            tile, offset = divmod(first, edge)
            count = min(self.count - done, -(-(edge - offset) // self.step))
            yield tile, slice(offset, offset + (count - 1) * self.step + 1, self.step), slice(done, done + count)
            done += count


class Selection:
    """The elements that a key selects.

    Args:
        key: Integers, slices, ``...`` and ``None``, as in ``array[key]``.
        layout: Of the array.

    Attributes:
        raw_shape: One length per axis of the array.
        shape: Of the result.

    Raises:
        InvalidArgumentError: `key` holds something else (numpy's advanced indexing).
        IndexError: An integer is out of range, or there are too many.
    """

    def __init__(self, key: Key, layout: Layout) -> None:
        self._layout = layout
        self._axes: list[_Axis] = []
        self._to_result: list[Index] = []
        self._to_raw: list[Index] = []
        shape: list[int] = []
        for index in _full(key, len(layout.shape)):
            if index is None:
                self._to_result.append(None)
                self._to_raw.append(0)
                shape.append(1)
                continue
            axis = _axis(index, len(self._axes), layout.shape[len(self._axes)])
            self._axes.append(axis)
            if not axis.dropped:
                shape.append(axis.count)
            turn = slice(None, None, -1 if axis.reversed else 1)
            self._to_result.append(0 if axis.dropped else turn)
            self._to_raw.append(None if axis.dropped else turn)
        self.raw_shape = tuple(axis.count for axis in self._axes)
        self.shape = tuple(shape)

    @property
    def plain(self) -> bool:
        """Whether result and raw are the same: no axis dropped, added or reversed."""
        return self.shape == self.raw_shape and not any(axis.dropped or axis.reversed for axis in self._axes)

    def result(self, raw: Array) -> Array:
        """Raw as the program sees it; a view, also of a single element."""
        view: Array = raw[(*self._to_result, ...)]
        return view

    def raw(self, result: Array) -> Array:
        """What the program gave, as raw; a view.

        Args:
            result: Of any shape that broadcasts to `shape`, as numpy assigns.

        Raises:
            ValueError: It does not.
        """
        spare = result.ndim - len(self.shape)
        if spare > 0 and result.shape[:spare] == (1,) * spare:
            result = result.reshape(result.shape[spare:])
        view: Array = np.broadcast_to(result, self.shape)[(*self._to_raw, ...)]
        return view

    def pieces(self) -> Iterator[Piece]:
        """All tiles touched, in order of tile number."""
        return self._pieces(0, (), (), ())

    def _pieces(
        self, axis: int, place: tuple[int, ...], inside: tuple[slice, ...], raw: tuple[slice, ...]
    ) -> Iterator[Piece]:
        # Not itertools.product, which keeps all of every axis.
        if axis == len(self._axes):
            yield Piece(place, inside, raw)
            return
        for tile, in_tile, in_raw in self._axes[axis].parts(self._layout.tile[axis]):
            yield from self._pieces(axis + 1, (*place, tile), (*inside, in_tile), (*raw, in_raw))

    def single(self) -> Piece | None:
        """The one piece, if there is just one."""
        pieces = self.pieces()
        first = next(pieces, None)
        return first if first is not None and next(pieces, None) is None else None

    def whole(self, piece: Piece) -> bool:
        """Whether a piece is all of its tile."""
        lengths = self._layout.tile_shape(piece.place)
        return all(
            part.start == 0 and part.step == 1 and part.stop == length
            for part, length in zip(piece.inside, lengths, strict=True)
        )


def _full(key: Key, dimensions: int) -> list[int | slice | None]:
    """The key with ``...`` and what is left out spelt as slices."""
    parts = list(key) if isinstance(key, tuple) else [key]
    given = sum(part is not None and part is not Ellipsis for part in parts)
    if given > dimensions:
        raise IndexError(f"{given} indices for an array of {dimensions} axes")
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError("an index can have only one '...'")
    rest = [slice(None)] * (dimensions - given)
    full: list[int | slice | None] = []
    for part in parts:
        if isinstance(part, EllipsisType):
            full += rest
            rest = []
        else:
            full.append(part)
    return full + rest


def _axis(index: int | slice, number: int, length: int) -> _Axis:
    if isinstance(index, slice):
        try:
            start, stop, step = index.indices(length)
        except TypeError as error:
            raise InvalidArgumentError(f"slice {index} on axis {number}: {error}") from None
        count = len(range(start, stop, step))
        if step < 0:
            return _Axis(start + (count - 1) * step if count else 0, -step, count, reversed=True)
        return _Axis(start, step, count)
    if isinstance(index, bool | np.bool_):
        raise _advanced(index, number)
    try:
        at = operator.index(index)
    except TypeError:
        raise _advanced(index, number) from None
    if not -length <= at < length:
        raise IndexError(f"index {at} is out of range for axis {number} of length {length}")
    return _Axis(at % length, 1, 1, dropped=True)


def _advanced(index: object, number: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"an index of type {type(index).__name__} on axis {number}: give integers, slices, ... and None; for numpy's "
        "advanced indexing take a part into memory first, as in array[lo:hi][mask]"
    )


def part_of(array: Array, slices: Sequence[slice]) -> Array:
    """A view, also of an array without axes (of which plain indexing makes a scalar)."""
    view: Array = array[(*slices, ...)]  # type: ignore[arg-type]  # numpy's types know no tuple of unknown length
    return view
