"""What an array is: element type, shape, how it is cut into tiles, the value of what was never written.

A layout is written once, with the array, as JSON; what is read back is believed only after every field was checked.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dstorage.errors import CorruptData, InvalidArgumentError
from dstorage.record import MAX_CHUNK_BYTES

MAX_DIMENSIONS = 32
"""As many as every release of numpy that is supported takes."""
MAX_BYTES = 2**62
MAX_JSON_BYTES = 2**16
TILE_BYTES = 2**21
"""Large enough for sequential speed, small enough to be computed on in the processor's cache."""
TILES_IN_BUDGET = 32
"""By default a tile is at most this share of the budget: several arrays, read ahead and written behind, fit."""
LEAST_TILES_IN_BUDGET = 4
"""A tile that is read, its changed copy, and what must be written to make room."""

_SIMPLE = re.compile(r"[<>|][?biufcmMSUV]\d{1,9}(\[\d{0,9}[a-zA-Z]{1,2}\])?")
_FIELDS = {"format", "dtype", "shape", "tile", "fill"}
_MAX_FIELDS = 1024
_MAX_DEPTH = 9


@dataclass(frozen=True, slots=True)
class Layout:
    """The unchanging description of an array.

    Attributes:
        dtype: Element type.
        shape: Elements per axis.
        tile: Elements per axis of a tile; those at the upper ends may be smaller.
        fill: One element (0-d, read-only): the value of what was never written.
        grid: Tiles per axis.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    tile: tuple[int, ...]
    fill: npt.NDArray[Any]
    grid: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        grid = tuple(-(-length // max(1, edge)) for length, edge in zip(self.shape, self.tile, strict=False))
        object.__setattr__(self, "grid", grid)

    @classmethod
    def make(
        cls,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike,
        tile: str | int | Sequence[int],
        fill: object,
        budget: int,
    ) -> Self:
        """The layout that a program asked for; see `dstorage.array.AsyncPagedArray.create`.

        Raises:
            InvalidArgumentError: There can be no such array.
        """
        try:
            kind = np.dtype(dtype)
        except TypeError as error:
            raise InvalidArgumentError(f"dtype {dtype!r}: {error}") from None
        if kind.hasobject:
            raise InvalidArgumentError(
                f"dtype {kind}: Python objects cannot be paged; use numbers, bytes or a structure"
            )
        if kind.itemsize == 0:
            raise InvalidArgumentError(f"dtype {kind} has no size: give one, as in 'S8'")
        if kind.subdtype is not None or not _comes_back(kind):
            raise InvalidArgumentError(
                f"dtype {str(kind)[:200]} cannot be written down: use numpy's own types, and structures of at most {_MAX_FIELDS} "
                f"fields, {_MAX_DEPTH} deep, in the order of their offsets and without titles"
            )
        lengths = lengths_of(shape, "shape")
        if tile == "bands":
            edges = _bands(lengths, kind.itemsize, min(TILE_BYTES, budget // TILES_IN_BUDGET))
        elif tile == "blocks":
            edges = _blocks(lengths, kind.itemsize, min(TILE_BYTES, budget // TILES_IN_BUDGET))
        elif isinstance(tile, str):
            raise InvalidArgumentError(f"tile={tile!r}: give 'bands', 'blocks' or the tile's shape")
        else:
            edges = lengths_of(tile, "tile")
            if len(edges) != len(lengths):
                raise InvalidArgumentError(f"tile {edges} for an array of shape {lengths}: one edge per axis")
            edges = tuple(min(edge, max(length, 1)) for edge, length in zip(edges, lengths, strict=True))
        try:
            value = np.zeros((), kind) if fill is None else np.array(fill, kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgumentError(f"fill={fill!r} is no {kind}: {error}") from None
        layout = cls._checked(kind, lengths, edges, value)
        if layout.tile_bytes > budget // LEAST_TILES_IN_BUDGET:
            raise InvalidArgumentError(
                f"tiles of {layout.tile_bytes} bytes in a budget of {budget}: give tile= of at most "
                f"{budget // LEAST_TILES_IN_BUDGET} bytes, or the store a larger budget"
            )
        return layout

    @classmethod
    def _checked(
        cls, dtype: np.dtype[Any], shape: tuple[int, ...], tile: tuple[int, ...], fill: npt.NDArray[Any]
    ) -> Self:
        if len(shape) > MAX_DIMENSIONS:
            raise InvalidArgumentError(f"{len(shape)} axes: an array has at most {MAX_DIMENSIONS}")
        if math.prod(max(length, 1) for length in shape) * dtype.itemsize > MAX_BYTES:
            raise InvalidArgumentError(f"shape {shape} of {dtype}: more than {MAX_BYTES} bytes")
        if len(tile) != len(shape) or min(tile, default=1) < 1:
            raise InvalidArgumentError(f"tile {tile}: give at least 1 element per axis of {shape}")
        if math.prod(tile) * dtype.itemsize > MAX_CHUNK_BYTES:
            raise InvalidArgumentError(f"tile {tile} of {dtype}: more than {MAX_CHUNK_BYTES} bytes")
        if fill.shape != ():
            raise InvalidArgumentError(f"fill of shape {fill.shape}: give one element")
        fill.flags.writeable = False
        return cls(dtype, shape, tile, fill)

    # -- geometry -----------------------------------------------------------------------------------------------------

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return math.prod(self.grid)

    @property
    def tile_bytes(self) -> int:
        """Bytes of a whole tile."""
        return math.prod(self.tile) * self.dtype.itemsize

    def number(self, place: Sequence[int]) -> int:
        """Number of the tile at a place in the grid: C order."""
        number = 0
        for at, count in zip(place, self.grid, strict=True):
            number = number * count + at
        return number

    def place(self, number: int) -> tuple[int, ...]:
        """Where in the grid tile `number` is."""
        place = []
        for count in reversed(self.grid):
            number, at = divmod(number, count)
            place.append(at)
        return tuple(reversed(place))

    def extent(self, place: Sequence[int]) -> tuple[slice, ...]:
        """The elements of the tile at a place in the grid, as slices of the array."""
        return tuple(
            slice(at * edge, min((at + 1) * edge, length))
            for at, edge, length in zip(place, self.tile, self.shape, strict=True)
        )

    def tile_shape(self, place: Sequence[int]) -> tuple[int, ...]:
        """The shape of the tile at a place in the grid."""
        return tuple(part.stop - part.start for part in self.extent(place))

    def blank(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """What was never written: read-only, takes no memory whatever its shape."""
        return np.broadcast_to(self.fill, tuple(shape))

    # -- as stored ----------------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """As JSON."""
        described = {
            "format": 1,
            "dtype": np.lib.format.dtype_to_descr(self.dtype),
            "shape": self.shape,
            "tile": self.tile,
            "fill": self.fill.tobytes().hex(),
        }
        packed = json.dumps(described).encode()
        if len(packed) > MAX_JSON_BYTES:
            raise InvalidArgumentError(f"dtype {self.dtype!r} takes {len(packed)} bytes to describe: use a simpler one")
        return packed

    @classmethod
    def unpack(cls, raw: bytes, name: str, id: int) -> Self:
        """What `pack` gave.

        Raises:
            CorruptData: `raw` cannot have come from there.
        """
        try:
            found = json.loads(raw)
            if not isinstance(found, dict) or found.keys() != _FIELDS or found["format"] != 1:
                raise InvalidArgumentError("it is of no format that this version knows")
            dtype = np.lib.format.descr_to_dtype(_description(found["dtype"], 0))
            if dtype.hasobject or dtype.itemsize == 0:
                raise InvalidArgumentError(f"dtype {dtype}")
            fill = bytes.fromhex(found["fill"])
            if len(fill) != dtype.itemsize:
                raise InvalidArgumentError(f"a fill value of {len(fill)} bytes")
            value = np.frombuffer(fill, dtype)[0:1].reshape(())
            return cls._checked(dtype, _stored(found["shape"]), _stored(found["tile"]), value)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise CorruptData(f"the description of array {name!r} makes no sense: {error}", id=id) from error


def lengths_of(value: Any, what: str) -> tuple[int, ...]:
    """A shape as numpy takes it: a number or several."""
    try:
        lengths = tuple(map(operator.index, value)) if isinstance(value, Iterable) else (operator.index(value),)
    except TypeError:
        raise InvalidArgumentError(f"{what}={value!r}: give whole numbers") from None
    if min(lengths, default=0) < 0:
        raise InvalidArgumentError(f"{what}={value!r}: negative")
    return lengths


def _stored(value: object) -> tuple[int, ...]:
    """A shape as JSON has it."""
    if not isinstance(value, list) or not all(type(length) is int and 0 <= length <= MAX_BYTES for length in value):
        raise InvalidArgumentError(f"lengths {str(value)[:80]}")
    return tuple(value)


def _comes_back(kind: np.dtype[Any]) -> bool:
    """Whether a type is the same when it was written and read."""
    try:
        described = json.loads(json.dumps(np.lib.format.dtype_to_descr(kind)))
        return bool(np.lib.format.descr_to_dtype(_description(described, 0)) == kind)
    except ValueError:
        return False


def _description(value: object, depth: int) -> Any:
    """The description of an element type, as numpy takes it: JSON knows no tuples."""
    if isinstance(value, str):
        if not _SIMPLE.fullmatch(value):
            raise InvalidArgumentError(f"dtype {value[:40]!r}")
        return value
    if depth >= _MAX_DEPTH or not isinstance(value, list) or not 0 < len(value) <= _MAX_FIELDS:
        raise InvalidArgumentError(f"dtype {str(value)[:80]}")
    fields = []
    for entry in value:
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
            raise InvalidArgumentError(f"field {str(entry)[:80]}")
        fields.append((entry[0], _description(entry[1], depth + 1), *(_stored(shape) for shape in entry[2:])))
    return fields


def _bands(shape: tuple[int, ...], itemsize: int, target: int) -> tuple[int, ...]:
    """Whole rows as many as fit: the last axes whole, one cut, ones before it."""
    room = max(1, target // itemsize)
    edges = []
    for length in reversed(shape):
        edge = max(1, min(length, room))
        edges.append(edge)
        room = room // edge if edge == length else 1
    return tuple(reversed(edges))


def _blocks(shape: tuple[int, ...], itemsize: int, target: int) -> tuple[int, ...]:
    """As near to a cube as the shape allows."""
    room = max(1, target // itemsize)
    edges = [1] * len(shape)
    # The shortest axes first: what they leave, the others share.
    axes = sorted(range(len(shape)), key=lambda axis: shape[axis])
    for done, axis in enumerate(axes):
        edges[axis] = max(1, min(shape[axis], int(room ** (1 / (len(axes) - done)) + 1e-9)))
        room //= edges[axis]
    return tuple(edges)
