"""Blocks of an array with a border of their neighbours' elements."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dstorage.array.layout import Layout, lengths_of
from dstorage.array.selection import Array, part_of
from dstorage.errors import InvalidArgumentError

CLIP = "clip"
PERIODIC = "periodic"
FILL = "fill"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of an array, in memory.

    Attributes:
        place: Which one it is: its place in the grid of blocks.
        slices: The elements it stands for, without halo, as slices of the array.
        data: Those and the halo; read-only. What lies in one tile is not copied.
        inner: The elements without halo, as slices of `data`.
    """

    place: tuple[int, ...]
    slices: tuple[slice, ...]
    data: Array
    inner: tuple[slice, ...]

    @property
    def core(self) -> Array:
        """The elements without halo; a view of `data`."""
        return part_of(self.data, self.inner)


class Patch(NamedTuple):
    """One box of the array that lies in a block.

    Attributes:
        source: Where in the array.
        target: Where in the block with its halo.
    """

    source: tuple[slice, ...]
    target: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the elements of one block, halo included, come from.

    Attributes:
        place: As of the block.
        slices: As of the block.
        inner: As of the block.
        shape: With halo.
        patches: Boxes of the array; what they leave is outside of it.
        covered: They leave nothing.
    """

    place: tuple[int, ...]
    slices: tuple[slice, ...]
    inner: tuple[slice, ...]
    shape: tuple[int, ...]
    patches: tuple[Patch, ...]
    covered: bool


class Frames:
    """The blocks of an array, one after the other.

    Args:
        layout: Of the array.
        block: Elements per axis of a block; those at the upper ends may be smaller.
        halo: Elements on each side, for all axes or per axis.
        boundary: What is beyond the array, for all axes or (a tuple) per axis: "clip": nothing, the halo ends there;
            "periodic": the other end; "fill" or a number: that value.

    Raises:
        InvalidArgumentError: An argument makes no sense for the array.
    """

    def __init__(self, layout: Layout, block: Sequence[int], halo: int | Sequence[int], boundary: Any) -> None:
        axes = len(layout.shape)
        self._layout = layout
        self._grid = Layout(layout.dtype, layout.shape, lengths_of(block, "blocks of shape"), layout.fill)
        if len(self._grid.tile) != axes or min(self._grid.tile, default=1) < 1:
            raise InvalidArgumentError(f"blocks of shape {block!r}: give at least 1 element per axis of {layout.shape}")
        widths = lengths_of(halo, "halo")
        self._halo = widths if isinstance(halo, Iterable) else widths * axes
        if len(self._halo) != axes:
            raise InvalidArgumentError(f"halo={halo!r}: give 0 or more elements, for all axes or for each of {axes}")
        self._boundary = tuple(boundary) if isinstance(boundary, tuple | list) else (boundary,) * axes
        if len(self._boundary) != axes:
            raise InvalidArgumentError(f"boundary={boundary!r}: give one, or one for each of {axes} axes")
        outside = [self._value(one) for one in self._boundary if not (isinstance(one, str) and one in (CLIP, PERIODIC))]
        if len({value.tobytes() for value in outside}) > 1:
            raise InvalidArgumentError(f"boundary={boundary!r}: give one number for all axes")
        self.outside: Array = outside[0] if outside else layout.fill
        """The value of elements beyond the array (0-d)."""

    def _value(self, boundary: object) -> Array:
        """The value that `boundary` puts beyond the array."""
        if boundary is None or isinstance(boundary, str):
            if boundary == FILL:
                return self._layout.fill
        else:
            with suppress(TypeError, ValueError, OverflowError):
                value = np.array(boundary, self._layout.dtype)
                if value.shape == ():
                    return value
        raise InvalidArgumentError(
            f"boundary={boundary!r}: give 'clip', 'periodic', 'fill' or a number that can be an element of {self._layout.dtype}"
        )

    @property
    def bytes(self) -> int:
        """Of a block, without halo."""
        return self._grid.tile_bytes

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self._grid.tiles):
            place = self._grid.place(number)
            slices = self._grid.extent(place)
            parts = [self._axis(axis, part.start, part.stop) for axis, part in enumerate(slices)]
            patches = tuple(
                Patch(tuple(source for source, _ in boxes), tuple(target for _, target in boxes))
                for boxes in itertools.product(*(pairs for _, _, pairs in parts))
            )
            yield Frame(
                place,
                slices,
                tuple(inner for _, inner, _ in parts),
                tuple(length for length, _, _ in parts),
                patches,
                all(sum(t.stop - t.start for _, t in pairs) == length for length, _, pairs in parts),
            )

    def _axis(self, axis: int, start: int, stop: int) -> tuple[int, slice, list[tuple[slice, slice]]]:
        """Length with halo, the inner part of that, and pairs of (slice of the array, slice of the block)."""
        length, halo, boundary = self._layout.shape[axis], self._halo[axis], self._boundary[axis]
        low, high = start - halo, stop + halo
        first, last = max(low, 0), min(high, length)
        if boundary == CLIP:
            low, high = first, last
        if boundary == PERIODIC:
            pairs = []
            at = low
            while at < high:
                source = at % length
                count = min(length - source, high - at)
                pairs.append((slice(source, source + count), slice(at - low, at - low + count)))
                at += count
        else:
            pairs = [(slice(first, last), slice(first - low, last - low))]
        return high - low, slice(start - low, stop - low), pairs
