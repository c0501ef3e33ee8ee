"""Dead ranges of segments that have not been given back to the file system yet.

Punching one page out of a file costs a journalled change of its extents, during which others who use the
file wait: more than writing the page did. Left alone for a while, dead extents become neighbours, which one call punches out
together, or their whole segment dies, whose file is deleted. So they wait here, up to a bound.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import merge

from dstorage_controllers.disk.files import Segment
from dstorage_controllers.disk.layout import PAGE

_MASK32 = 2**32 - 1
_SORTED_AT_ONCE = 8192
"""Sorting keeps the interpreter, and the loop with it, from everybody else: a millisecond for so many, 25 for those of a segment."""

Range = tuple[int, int]
"""Offset in a file, and length."""


class Holes:
    """What is dead and still takes space, by segment. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[Segment, array[int]] = {}
        """Ranges, each in eight bytes: the offset, then the length. There may be a hundred thousand."""
        self._bytes: dict[Segment, int] = {}
        self._total = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, segment: Segment, first: int, length: int) -> None:
        """An extent is dead."""
        waiting = self._waiting.get(segment)
        if waiting is None:
            waiting = self._waiting[segment] = array("Q")
            self._bytes[segment] = 0
        waiting.append(first << 32 | length)
        self._bytes[segment] += length
        self._total += length

    def forget(self, segment: Segment) -> None:
        """The segment is dead as a whole."""
        if self._waiting.pop(segment, None) is not None:
            self._total -= self._bytes.pop(segment)

    def take_due(self, limit: int) -> dict[Segment, array[int]]:
        """What is more than the `limit` bytes that may wait: those segments in which most is dead, for there most of it is neighbours."""
        due = {}
        while self._total > limit:
            segment = max(self._bytes, key=self._bytes.__getitem__)
            due[segment] = self._waiting[segment]
            self.forget(segment)
        return due

    def take_all(self) -> dict[Segment, array[int]]:
        """Everything."""
        taken, self._waiting, self._bytes, self._total = self._waiting, {}, {}, 0
        return taken


def whole_pages(extents: Sequence[int], most: int) -> tuple[list[Range], list[Range]]:
    """The whole pages inside extents as `Holes` gives them, neighbours joined.

    Returns:
        The `most` longest ranges, in the order of the file, and the others.
    """
    joined = list(_joined(extents))
    joined.sort(key=_length)
    others = max(0, len(joined) - most)
    return sorted(joined[others:]), joined[:others]


def _joined(extents: Sequence[int]) -> Iterator[Range]:
    start = end = 0
    parts = (extents[at : at + _SORTED_AT_ONCE] for at in range(0, len(extents), _SORTED_AT_ONCE))
    for packed in merge(*map(sorted, parts)):
        first = packed >> 32
        if first != end:
            if pages := _inside(start, end):
                yield pages
            start = first
        end = first + (packed & _MASK32)
    if pages := _inside(start, end):
        yield pages


def _inside(start: int, end: int) -> Range | None:
    first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    return (first, last - first) if first < last else None


def _length(range: Range) -> int:
    return range[1]
