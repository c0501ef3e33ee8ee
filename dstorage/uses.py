"""Which chunks were paged in lately: when for the catalog's access times, how often for tiering.

A page-in only appends its id to a list; the list is counted in one go when it is long, or when somebody asks.

A time of access is written where the one in the catalog is older than `FINENESS_NS`, as file systems do it: a hot chunk that comes and goes
would else have its record written with every commit.
"""

from __future__ import annotations

import time
from collections import Counter

FOLD = 4096
"""Ids noted before they are counted; within one such stretch all have the same time."""
FINENESS_NS = 60 * 10**9
"""Times of access in the catalog are behind by so much at most."""
REMEMBERED = 2**16
"""Chunks remembered; both are a help to tiering, not worth more memory."""


class Uses:
    """The recent page-ins of one store.

    Attributes:
        recent: Ids to be counted; call `fold` when it holds `FOLD` of them.
    """

    def __init__(self) -> None:
        self.recent: list[int] = []
        self._times: dict[int, int] = {}
        self._outdated: set[int] = set()
        """Those whose time in the catalog is too old."""
        self._counts: Counter[int] = Counter()

    def note(self, id: int, last_access: int) -> None:
        """A chunk was paged in, of which the catalog says that it was last used at `last_access` (ns since the epoch). For any thread."""
        self.recent.append(id)
        if last_access < time.time_ns() - FINENESS_NS and len(self._outdated) < REMEMBERED:
            self._outdated.add(id)

    def fold(self) -> None:
        """Count what was noted."""
        recent = self.recent
        if len(self._times) < REMEMBERED:
            self._times.update(dict.fromkeys(recent, time.time_ns()))
        self._counts.update(recent)
        if len(self._counts) > REMEMBERED:
            # Who was read once makes way, and the others have to show that they are still read.
            self._counts = Counter({id: count // 2 for id, count in self._counts.items() if count > 1})
        recent.clear()

    def last(self, id: int, before: int) -> int:
        """When a chunk was last paged in (ns since the epoch); `before` if that is not remembered."""
        return self._times.get(id, before)

    def take_times(self) -> dict[int, int]:
        """Chunk -> time of its last page-in (ns since the epoch), since this was last called, where the catalog's is to be replaced."""
        self.fold()
        times, self._times = self._times, {}
        outdated, self._outdated = self._outdated, set()
        # A copy, for a thread that is noting something may have got hold of the set still.
        return {id: times[id] for id in outdated.copy() if id in times}

    def counts(self) -> Counter[int]:
        """Chunk -> number of page-ins lately; take out what is dealt with."""
        self.fold()
        return self._counts
