"""What was looked up in the catalog, remembered.

LMDB gives the interpreter's lock away for each look. Where another thread waits for it, that takes longer than all else of a page-in: some
ten microseconds to wake the other, and milliseconds if it computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress

GROUP_BYTES = 1250
"""What remembering a full group takes, with what the dict needs."""
BUDGET_SHARE = 10
LEAST = 2**18 // GROUP_BYTES
MOST = 2**24 // GROUP_BYTES


def worth_knowing(budget: int) -> int:
    """So many groups are worth remembering beside a budget of so many bytes: a tenth of it, but a quarter of a mebibyte at least and 16 at most."""
    return min(max(budget // BUDGET_SHARE // GROUP_BYTES, LEAST), MOST)


class Known:
    """Groups as they are in one commit, as far as they were looked up; never another commit's, however late a thread comes with one.

    Args:
        most: So many; those that came first leave first.

    Attributes:
        get: Number -> group, empty if there is none; None if it was not looked up.
    """

    __slots__ = ("_groups", "_most", "get")

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: OrderedDict[int, bytes] = OrderedDict()
        self.get = self._groups.get

    def put(self, number: int, group: bytes) -> None:
        """Remember a group; from any thread."""
        groups = self._groups
        groups[number] = group
        # Another thread may be doing the same.
        with suppress(KeyError):
            while len(groups) > self._most:
                groups.popitem(last=False)

    def after(self, changed: Mapping[int, bytes | None]) -> Known:
        """What is known in the commit that changed these groups: number -> what it is now, None if nobody has noted that."""
        known = Known(self._most)
        known._groups = self._groups.copy()
        known.get = known._groups.get
        for number in changed:
            known._groups.pop(number, None)
        for number, now in changed.items():
            if now is not None:
                known.put(number, now)
        return known

    def __len__(self) -> int:
        return len(self._groups)
