"""What was looked up in the catalog, remembered.

LMDB gives the interpreter's lock away for each look. Where another thread waits for it, that takes longer than all else of a page-in: some
ten microseconds to wake the other, and milliseconds if it computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

COST_BYTES = 200
"""Of remembering a group, beside its bytes."""
BUDGET_SHARE = 10
LEAST_BYTES = 2**18
MOST_BYTES = 16 * 2**20


def known_bytes(budget: int) -> int:
    """What remembering is worth beside a budget for contents: half of what may come on top of it, between a quarter of a mebibyte and sixteen."""
    return min(max(budget // BUDGET_SHARE, LEAST_BYTES), MOST_BYTES)


class Known:
    """Groups as they are in one commit, as far as they were looked up; never another commit's, however late a thread comes with one.

    Args:
        most_bytes: They may take, about; those that came first leave first.

    Attributes:
        get: Number -> group, empty if there is none; None if it was not looked up.
    """

    __slots__ = ("_bytes", "_groups", "_most_bytes", "get")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._groups: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self.get = self._groups.get

    def put(self, number: int, group: bytes) -> None:
        """Remember a group; from any thread, for which the sum need not be exact."""
        groups = self._groups
        groups[number] = group
        self._bytes += len(group) + COST_BYTES
        while self._bytes > self._most_bytes and groups:
            self._bytes -= len(groups.popitem(last=False)[1]) + COST_BYTES

    def after(self, changed: Mapping[int, bytes | None]) -> Known:
        """What is known in the commit that changed these groups: number -> what it is now, None if nobody has noted that."""
        known = Known(self._most_bytes)
        for number, group in self._groups.copy().items():
            if number not in changed:
                known.put(number, group)
        for number, now in changed.items():
            if now is not None:
                known.put(number, now)
        return known

    def __len__(self) -> int:
        return len(self._groups)
