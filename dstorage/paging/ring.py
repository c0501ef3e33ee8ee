"""A queue of pages linked through the pages themselves: two slots a page, O(1) removal from the middle."""

from __future__ import annotations

from dstorage.paging.page import Page


class Ring:
    """First in, first out; knows its bytes."""

    __slots__ = ("count", "number", "root", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.root = Page(0)
        self.root.before = self.root.after = self.root
        self.count = 0
        self.size = 0

    def push(self, page: Page) -> None:
        """Append at the end."""
        root = self.root
        last = root.before
        assert last is not None
        page.before = last
        page.after = root
        last.after = root.before = page
        page.queue = self.number
        self.count += 1
        self.size += page.size

    def remove(self, page: Page) -> None:
        """Take out from wherever it is."""
        before, after = page.before, page.after
        assert before is not None
        assert after is not None
        before.after = after
        after.before = before
        page.before = page.after = None
        self.count -= 1
        self.size -= page.size

    def first(self) -> Page | None:
        """The head, or None."""
        return self.root.after if self.count else None
