"""Which chunks were paged in lately: when for the catalog's access times, how often for tiering.

A page-in only appends its id to a list; the list is counted in one go when it is long, or when somebody asks.
"""

from __future__ import annotations

import time
from collections import Counter

FOLD = 4096
"""Ids noted before they are counted; within one such stretch all have the same time."""
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
        self._counts: Counter[int] = Counter()

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
        """Chunk -> time of its last page-in (ns since the epoch), since this was last called."""
        self.fold()
        times, self._times = self._times, {}
        return times

    def counts(self) -> Counter[int]:
        """Chunk -> number of page-ins lately; take out what is dealt with."""
        self.fold()
        return self._counts
