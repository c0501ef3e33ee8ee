"""CLOCK: first in, first out, with a second chance for what was used meanwhile. Simple, and near to LRU."""

from __future__ import annotations

from dstorage.paging.page import Page
from dstorage.paging.ring import Ring


class Clock:
    """See the module's docstring; no memory of what has left.

    Args:
        capacity: Bytes that may be resident; not used.
    """

    def __init__(self, capacity: int) -> None:
        self._ring = Ring(1)

    def insert(self, page: Page) -> None:
        """Append."""
        page.hot = False
        self._ring.push(page)

    restore = insert

    def victim(self) -> Page | None:
        """The oldest page not used since the hand last passed."""
        ring = self._ring
        while (page := ring.first()) is not None:
            ring.remove(page)
            if not page.hot:
                return page
            page.hot = False
            ring.push(page)
        return None

    def evicted(self, page: Page) -> None:
        """Nothing to remember."""

    def dropped(self, page: Page) -> None:
        """Nothing is known of it."""

    def remove(self, page: Page) -> None:
        """Take out."""
        self._ring.remove(page)

    def resize(self, capacity: int) -> None:
        """Nothing depends on it."""

    def __len__(self) -> int:
        return self._ring.count
