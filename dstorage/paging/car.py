"""CAR: clock with adaptive replacement (Bansal and Modha, "CAR: Clock with Adaptive Replacement", FAST 2004), by bytes.

Two clocks: pages used once since they came (recent), and pages used again (frequent). Ids of pages that left either are
remembered for a while; when one of them comes back, the share of memory for its clock grows. So a one-pass scan passes
through the recent clock and leaves the frequent one alone, while a sweep that comes round again is learnt. It decides as
ARC does, but a hit only sets a mark.

Differences from the paper: sizes are bytes; pages in use may be taken out and put back (`restore`); and one return moves the
shares by at most `MAX_STEP` times the size of what returned. In the paper a return from a list of few ids, while the other is long,
moves them by the whole ratio of the two, so that where popularity drifts the shares swing from end to end (shifting zipf of
`benchmarks/miss_ratio.py` at 40 % of the footprint: 0.013 above the better of LRU and ARC, 0.005 with the bound).

Memory: what has left is remembered by id only, at most as many bytes' worth as are resident; empty chunks are not remembered.
"""

from __future__ import annotations

from collections import OrderedDict

from dstorage.paging.page import Page
from dstorage.paging.ring import Ring

RECENT = 1
FREQUENT = 2
MAX_STEP = 4.0
"""From 3 to 6 the misses are about the same; without a bound they are more under drift, with 1 they are more on skewed traffic."""


class _Ghosts:
    """Ids that left one clock, oldest first, with their sizes."""

    __slots__ = ("ids", "size")

    def __init__(self) -> None:
        self.ids: OrderedDict[int, int] = OrderedDict()
        self.size = 0

    def add(self, id: int, size: int) -> None:
        self.ids[id] = size
        self.size += size

    def drop(self, id: int) -> None:
        self.size -= self.ids.pop(id)

    def trim(self, size: int) -> None:
        """Forget the oldest until at most `size` bytes' worth are left."""
        while self.ids and self.size > size:
            _, dropped = self.ids.popitem(last=False)
            self.size -= dropped


def _step(returned: _Ghosts, other: _Ghosts) -> float:
    """How far a return moves the shares: further where fewer are remembered, for then it says more."""
    return min(MAX_STEP, max(1.0, other.size / returned.size))


class Car:
    """See the module's docstring.

    Args:
        capacity: Bytes that may be resident.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._target = 0.0
        self._recent = Ring(RECENT)
        self._frequent = Ring(FREQUENT)
        self._left_recent = _Ghosts()
        self._left_frequent = _Ghosts()

    def insert(self, page: Page) -> None:
        """To the recent clock, or, if its id is remembered, to the frequent one; a return adapts the shares."""
        page.hot = False
        id, size = page.id, page.size
        recent, frequent = self._left_recent, self._left_frequent
        if id in recent.ids:
            self._target = min(self._capacity, self._target + size * _step(recent, frequent))
            recent.drop(id)
            self._frequent.push(page)
        elif id in frequent.ids:
            self._target = max(0.0, self._target - size * _step(frequent, recent))
            frequent.drop(id)
            self._frequent.push(page)
        else:
            self._recent.push(page)

    def victim(self) -> Page | None:
        """The first page not used since the hand last passed, from the clock that has more than its share."""
        recent, frequent = self._recent, self._frequent
        while True:
            if recent.count and (recent.size >= max(1.0, self._target) or not frequent.count):
                page = recent.first()
                assert page is not None
                recent.remove(page)
                if not page.hot:
                    return page
                page.hot = False
                frequent.push(page)
            elif frequent.count:
                page = frequent.first()
                assert page is not None
                frequent.remove(page)
                if not page.hot:
                    return page
                page.hot = False
                frequent.push(page)
            else:
                return None

    def restore(self, page: Page) -> None:
        """Back to the end of the clock it came from; used again since: to the frequent one."""
        if page.hot or page.queue == FREQUENT:
            page.hot = False
            self._frequent.push(page)
        else:
            self._recent.push(page)

    def evicted(self, page: Page) -> None:
        """Remember its id."""
        if not page.size:
            return
        left = self._left_recent if page.queue == RECENT else self._left_frequent
        if page.id in left.ids:
            left.drop(page.id)
        left.add(page.id, page.size)
        self._left_recent.trim(max(0, self._capacity - self._recent.size))
        self._left_frequent.trim(
            max(0, 2 * self._capacity - self._recent.size - self._frequent.size - self._left_recent.size)
        )

    def dropped(self, page: Page) -> None:
        """Nothing is known of it."""

    def remove(self, page: Page) -> None:
        """Take out, unremembered."""
        (self._recent if page.queue == RECENT else self._frequent).remove(page)

    def resize(self, capacity: int) -> None:
        """Other shares from now on."""
        self._capacity = capacity
        self._target = min(self._target, capacity)

    def __len__(self) -> int:
        return self._recent.count + self._frequent.count
