"""Counters that every thread may count without a lock."""

from __future__ import annotations

import itertools
import threading


class Counter:
    """Counts calls of `add`, exactly, from any thread.

    An iterator of the interpreter's own takes one step as a whole, which ``n += 1`` does not. Reading takes a step too, which is
    subtracted.
    """

    __slots__ = ("_lock", "_reads", "add")

    def __init__(self) -> None:
        self.add = itertools.count().__next__
        """Count one more; what it returns is of no meaning."""
        self._lock = threading.Lock()
        self._reads = 0

    @property
    def value(self) -> int:
        """How many there were."""
        with self._lock:
            number = self.add() - self._reads
            self._reads += 1
            return number
