"""How often each data block is mapped, counted outside of memory: a sparse temporary file of 32-bit counts."""

from __future__ import annotations

import mmap
import tempfile
from array import array
from types import TracebackType
from typing import Self

COUNT_BYTES = 4


class DataCounts:
    """A context manager; all counts are 0 at first.

    Args:
        nr_blocks: Number of data blocks. It costs address space only, until blocks are counted.

    Attributes:
        used: Blocks with a count above 0.
    """

    def __init__(self, nr_blocks: int) -> None:
        self.nr_blocks = nr_blocks
        self.used = 0
        size = max(1, nr_blocks) * COUNT_BYTES
        # The mapping keeps the file's space alive, and closes it with itself.
        with tempfile.TemporaryFile(prefix="dstorage-counts-") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._counts = memoryview(self._map).cast("I")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._counts.release()
        self._map.close()

    def add(self, first: int, length: int = 1) -> None:
        """Count each of some blocks once more."""
        counts = self._counts
        for block in range(first, first + length):
            before = counts[block]
            counts[block] = before + 1
            self.used += not before

    def part(self, first: int, length: int) -> array[int]:
        """The counts of some blocks."""
        return array("I", self._counts[first : first + length].tobytes())
