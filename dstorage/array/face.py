"""What the two faces of an array have alike: what it is, going through it part by part, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from dstorage.array import reduce
from dstorage.array.halo import CLIP, Frames
from dstorage.array.layout import Layout
from dstorage.array.reduce import Axes
from dstorage.array.selection import Array
from dstorage.errors import InvalidArgumentError

if TYPE_CHECKING:
    from dstorage.array.core import AsyncPagedArray

P = ParamSpec("P")
Parts = TypeVar("Parts")
Result = TypeVar("Result")


class Face(Generic[Parts, Result]):
    """A face of an array; `AsyncPagedArray`, which documents the attributes, and `PagedArray` are the two.

    What going through an array gives (`Parts`) is ``AsyncIterator[Block]`` in coroutines, elsewhere ``Iterator[Block]``; a reduction
    gives (`Result`) something to be awaited, or numpy's result.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self._layout = layout
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.tile = layout.tile
        self.grid = layout.grid

    def _parts(self, frames: Frames, once: bool) -> Parts:
        raise NotImplementedError

    def _reduced(
        self,
        work: Callable[Concatenate[AsyncPagedArray, P], Coroutine[Any, Any, Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        raise NotImplementedError

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, written or not."""
        return self.size * self.dtype.itemsize

    @property
    def fill(self) -> Any:
        """The value of what was never written."""
        return self._layout.fill[()]

    # -- part by part -------------------------------------------------------------------------------------------------

    def tiles(self, *, halo: int | Sequence[int] = 0, boundary: Any = CLIP, once: bool = False) -> Parts:
        """All tiles, in C order, the next ones brought into memory while the program works on one.

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
    ) -> Parts:
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
    ) -> Parts:
        """The array in blocks of any shape, else as `tiles`.

        Args:
            shape: Elements per axis of a block; those at the upper ends may be smaller.
            halo: As for `tiles`.
            boundary: As for `tiles`.
            once: As for `tiles`.
        """
        return self._parts(Frames(self._layout, shape, halo, boundary), once)

    # -- reductions ---------------------------------------------------------------------------------------------------

    def sum(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Result:
        """Sum over one axis, several (a tuple) or all (None), as `numpy.sum`; the result is in memory.

        Args:
            axis: Which; negative ones count from the last.
            dtype: Of the result and of the sums on the way to it.
            out: Array for the result.
            keepdims: Keep the reduced axes, with length 1.
        """
        return self._reduced(reduce.accumulated, np.add, axis, dtype, out, keepdims)

    def min(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Least element, as `numpy.min`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return self._reduced(reduce.accumulated, np.minimum, axis, None, out, keepdims)

    def max(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Greatest element, as `numpy.max`; arguments as for `sum`.

        Raises:
            ValueError: There are no elements.
        """
        return self._reduced(reduce.accumulated, np.maximum, axis, None, out, keepdims)

    def any(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Whether an element is true, as `numpy.any`; arguments as for `sum`."""
        return self._reduced(reduce.accumulated, np.logical_or, axis, None, out, keepdims)

    def all(self, axis: Axes = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Whether every element is true, as `numpy.all`; arguments as for `sum`."""
        return self._reduced(reduce.accumulated, np.logical_and, axis, None, out, keepdims)

    def mean(
        self, axis: Axes = None, dtype: npt.DTypeLike | None = None, out: Array | None = None, *, keepdims: bool = False
    ) -> Result:
        """Arithmetic mean, as `numpy.mean`; arguments as for `sum`. NaN where there is nothing."""
        return self._reduced(reduce.mean, axis, dtype, out, keepdims)

    def var(
        self,
        axis: Axes = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
    ) -> Result:
        """Variance, as `numpy.var`; arguments as for `sum`. NaN where there is nothing.

        Args:
            axis: As for `sum`.
            dtype: As for `sum`.
            out: As for `sum`.
            ddof: The sum of squares is divided by the number of elements less this.
            keepdims: As for `sum`.
        """
        return self._reduced(reduce.variance, axis, dtype, out, ddof, keepdims, root=False)

    def std(
        self,
        axis: Axes = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        *,
        ddof: float = 0,
        keepdims: bool = False,
    ) -> Result:
        """Standard deviation, as `numpy.std`; arguments as for `var`."""
        return self._reduced(reduce.variance, axis, dtype, out, ddof, keepdims, root=True)

    def argmin(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Index of the least element along one axis, or in the array laid out in C order, as `numpy.argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return self._reduced(reduce.extreme_index, axis, out, keepdims, lowest=True)

    def argmax(self, axis: int | None = None, out: Array | None = None, *, keepdims: bool = False) -> Result:
        """Index of the greatest element, as `numpy.argmax`; otherwise as `argmin`.

        Raises:
            ValueError: There are no elements.
        """
        return self._reduced(reduce.extreme_index, axis, out, keepdims, lowest=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.shape} of {self.dtype}, tiles {self.tile}>"
