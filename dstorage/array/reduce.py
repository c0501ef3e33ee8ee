"""Reductions: one pass over the tiles, the next ones on their way; results are numpy's but for rounding.

Floats are added up in another order than numpy does: pairwise within a tile, tile by tile after that. Variances of tiles are
merged by the formula of Chan, Golub and LeVeque (1979), which needs one pass and cancels nothing.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dstorage.array.halo import Block
from dstorage.array.selection import Array
from dstorage.errors import InvalidArgumentError

if TYPE_CHECKING:
    from dstorage.array.core import AsyncPagedArray

Axes = int | tuple[int, ...] | None


async def accumulated(
    array: AsyncPagedArray, ufunc: np.ufunc, axis: Axes, dtype: npt.DTypeLike | None, out: Array | None, keepdims: bool
) -> Any:
    """``ufunc.reduce`` over the axes."""
    axes = _axes_of(array, axis)
    return _finished(await _accumulate(array, ufunc, axes, dtype), axes, keepdims, out)


async def mean(
    array: AsyncPagedArray, axis: Axes, dtype: npt.DTypeLike | None, out: Array | None, keepdims: bool
) -> Any:
    """Means over the axes; NaN where there is nothing."""
    axes = _axes_of(array, axis)
    total = await _accumulate(array, np.add, axes, _mean_dtype(array.dtype, dtype))
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = total / _count_over(array.shape, axes)
    kind = array.dtype.newbyteorder("=") if dtype is None and array.dtype.kind in "fc" else total.dtype
    return _finished(result.astype(kind), axes, keepdims, out)


async def variance(
    array: AsyncPagedArray,
    axis: Axes,
    dtype: npt.DTypeLike | None,
    out: Array | None,
    ddof: float,
    keepdims: bool,
    *,
    root: bool,
) -> Any:
    """Variances over the axes, or their square roots; NaN where there is nothing."""
    axes = _axes_of(array, axis)
    kind = _mean_dtype(array.dtype, dtype)
    kept = _kept(array, axes)
    means = np.zeros(kept, kind)
    squares = np.zeros(kept, kind.type(0).real.dtype)
    counts = np.zeros(kept, np.int64)
    async for block in array.tiles():
        region = _region(block, axes)
        count = _count_over(block.data.shape, axes)
        part = block.data.mean(axis=axes, keepdims=True, dtype=kind)
        square = (np.abs(np.subtract(block.data, part, dtype=kind)) ** 2).sum(axis=axes, keepdims=True)
        before = counts[region]
        total = before + count
        delta = part - means[region]
        means[region] += delta * (count / total)
        squares[region] += square + np.abs(delta) ** 2 * (before * count / total)
        counts[region] = total
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = squares / max(_count_over(array.shape, axes) - ddof, 0)
    result = result.astype(
        array.dtype.type(0).real.dtype if dtype is None and array.dtype.kind in "fc" else squares.dtype
    )
    return _finished(np.sqrt(result) if root else result, axes, keepdims, out)


async def extreme_index(
    array: AsyncPagedArray, axis: int | None, out: Array | None, keepdims: bool, *, lowest: bool
) -> Any:
    """Where the least element is, or the greatest; the first one where there are several, and a NaN before all others."""
    better, find = (operator.lt, np.argmin) if lowest else (operator.gt, np.argmax)
    axes = _axes_of(array, axis)
    if 0 in array.shape:
        return find(np.empty(array.shape, array.dtype), axis=axis, out=out, keepdims=keepdims)
    best: Any = np.empty(_kept(array, axes), array.dtype)
    where = np.zeros(best.shape, np.intp)
    async for block in array.tiles():
        if axis is None:
            inside = np.unravel_index(int(find(block.data)), block.data.shape)
            value = block.data[inside].reshape(best.shape)
            place = [int(at) + part.start for at, part in zip(inside, block.slices, strict=True)]
            index = np.full(best.shape, np.ravel_multi_index(place, array.shape) if place else 0, np.intp)
        else:
            local = find(block.data, axis=axes[0], keepdims=True)
            value = np.take_along_axis(block.data, local, axes[0])
            index = local + block.slices[axes[0]].start
        region = _region(block, axes)
        if _first(block, axes):
            best[region], where[region] = value, index
            continue
        known = best[region]
        same = (value == known) | ((value != value) & (known != known))
        with np.errstate(invalid="ignore"):
            wins = better(value, known) | ((value != value) & (known == known)) | (same & (index < where[region]))
        np.copyto(best[region], value, where=wins)
        np.copyto(where[region], index, where=wins)
    return _finished(where, axes, keepdims, out)


async def _accumulate(
    array: AsyncPagedArray, ufunc: np.ufunc, axes: tuple[int, ...], dtype: npt.DTypeLike | None
) -> Array:
    """``ufunc.reduce`` over `axes`, which are kept with length 1."""
    options: dict[str, Any] = {"axis": axes, "keepdims": True, **({} if dtype is None else {"dtype": dtype})}
    if 0 in array.shape:
        empty: Array = ufunc.reduce(np.empty(array.shape, array.dtype), **options)
        return empty
    result: Array | None = None
    async for block in array.tiles():
        part = ufunc.reduce(block.data, **options)
        if result is None:
            result = np.empty(_kept(array, axes), part.dtype)
        target = result[_region(block, axes)]
        if _first(block, axes):
            target[...] = part
        else:
            ufunc(target, part, out=target)
    assert result is not None
    return result


def _axes_of(array: AsyncPagedArray, axis: Axes) -> tuple[int, ...]:
    """The axes that `axis` names, counted from the first.

    Raises:
        numpy.exceptions.AxisError: There is no such axis.
        InvalidArgumentError: One is named twice.
    """
    count = len(array.shape)
    if axis is None:
        return tuple(range(count))
    given = tuple(map(operator.index, axis if isinstance(axis, tuple) else (axis,)))
    for one in given:
        if not -count <= one < count:
            raise np.exceptions.AxisError(one, count)
    axes = tuple(one % count for one in given)
    if len(set(axes)) < len(axes):
        raise InvalidArgumentError(f"axis={axis}: names an axis twice")
    return axes


def _kept(array: AsyncPagedArray, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else length for axis, length in enumerate(array.shape))


def _region(block: Block, axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Where in the result (reduced axes kept with length 1) a tile's part belongs; an index of a view, also without axes."""
    return (*(slice(0, 1) if axis in axes else part for axis, part in enumerate(block.slices)), ...)


def _first(block: Block, axes: tuple[int, ...]) -> bool:
    """Whether this is the first tile for its part of the result."""
    return not any(block.place[axis] for axis in axes)


def _finished(result: Array, axes: tuple[int, ...], keepdims: bool, out: Array | None) -> Any:
    """The result as numpy gives it: reduced axes dropped unless `keepdims`, a scalar where none is left, or `out`."""
    if not keepdims:
        result = result.reshape([length for axis, length in enumerate(result.shape) if axis not in axes])
    if out is None:
        return result[()]
    if np.shape(out) != result.shape:
        # Not broadcast, which numpy does not do here either.
        raise InvalidArgumentError(f"out of shape {np.shape(out)} for a result of shape {result.shape}")
    np.copyto(out, result, casting="same_kind")
    return out


def _count_over(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many elements go into one result."""
    return math.prod(shape[axis] for axis in axes)


def _mean_dtype(own: np.dtype[Any], asked: npt.DTypeLike | None) -> np.dtype[Any]:
    """What means are computed in, as numpy chooses, but never less than single precision."""
    if asked is not None:
        return np.dtype(asked)
    if own.kind not in "fc":
        return np.dtype(np.float64)
    return np.dtype(np.float32) if own == np.float16 else own.newbyteorder("=")
