"""Shares: an eviction order per namespace, so that one group of chunks cannot push out another's.

The budget is not cut in pieces. A namespace may use whatever nobody else needs; when room is needed, the next page to
leave is taken from the namespace that is furthest above its share, by that namespace's own policy. So a share is what a
namespace can always fill, however busy the others are. Chunks of no namespace, and namespaces without a share, have
what is left.

A page's namespace is in its id (see `dstorage.record`), so nothing is looked up. What is counted is what a namespace keeps in memory:
clean pages chosen to leave count no more; those that references hold do, and dirty ones until they are written and have left. Else whoever
has much to write would seem to have little, and the others would have to leave for it.
"""

from __future__ import annotations

from collections.abc import Callable

from dstorage.paging.page import Page
from dstorage.paging.policy import Policy
from dstorage.record import namespace_of


class _Part:
    """One namespace: its order, its share of the capacity, how many bytes it keeps in memory, and how many of these wait to be written and leave."""

    __slots__ = ("leaving", "policy", "share", "used")

    def __init__(self, policy: Policy, share: float) -> None:
        self.policy = policy
        self.share = share
        self.used = 0
        self.leaving = 0


class Shares:
    """A policy made of one policy per namespace; see the module's docstring.

    Args:
        make: Makes a policy for a namespace, given its capacity in bytes.
        capacity: Bytes that may be resident.
        rest: The policy of what is in no namespace, with what it holds already.
        held: Bytes it holds.
    """

    def __init__(self, make: Callable[[int], Policy], capacity: int, rest: Policy, held: int) -> None:
        self._make = make
        self._capacity = capacity
        self._parts = {0: _Part(rest, 1.0)}
        self._parts[0].used = held
        self._out: dict[Page, int] = {}
        """Pages that `victim` gave out and that references hold: still counted, with these sizes."""
        self._leaving: dict[Page, int] = {}
        """Those that have to be written first: still counted as well."""

    @property
    def unclaimed(self) -> float:
        """Share of the capacity that no namespace has."""
        return self._parts[0].share

    def share_of(self, namespace: int) -> float:
        """The share that `set_share` gave to a namespace."""
        return self._of(namespace).share

    def set_share(self, namespace: int, share: float) -> None:
        """Give a namespace a share (0 to 1); the caller sees to it that they do not add up to more than 1."""
        part = self._of(namespace)
        self._parts[0].share += part.share - share
        part.share = share

    def used(self, namespace: int) -> int:
        """Bytes of a namespace in memory that are not about to leave."""
        return self._of(namespace).used

    # -- the policy ---------------------------------------------------------------------------------------------------

    def insert(self, page: Page) -> None:
        """To the order of its namespace."""
        part = self._part(page)
        part.used += page.size
        part.policy.insert(page)

    def victim(self) -> Page | None:
        """The next page of the namespace that is furthest above its share by what will be left to it.

        Where none is, what waits to be written fills memory: then of the one that is furthest above with that, for its sake others
        should not leave.
        """
        parts = [part for part in self._parts.values() if len(part.policy)]
        if not parts:
            return None
        chosen = max(parts, key=self._excess)
        if self._leaving and self._excess(chosen) <= 0:
            chosen = max(parts, key=lambda part: self._excess(part) + part.leaving)
        # What it may keep is at least what it was promised; while others leave room, what it has.
        chosen.policy.resize(max(int(chosen.share * self._capacity), chosen.used))
        page = chosen.policy.victim()
        if page is not None:
            if page.refs:
                self._out[page] = page.size
            elif page.dirty:
                self._leaving[page] = page.size
                chosen.leaving += page.size
            else:
                chosen.used -= page.size
        return page

    def _excess(self, part: _Part) -> float:
        return part.used - part.leaving - part.share * self._capacity

    def restore(self, page: Page) -> None:
        """Back to the order of its namespace."""
        self.dropped(page)
        part = self._part(page)
        part.used += page.size
        part.policy.restore(page)

    def evicted(self, page: Page) -> None:
        """Its namespace may remember it."""
        self.dropped(page)
        self._part(page).policy.evicted(page)

    def dropped(self, page: Page) -> None:
        """Counted no more."""
        held = self._out.pop(page, None)
        if held is not None:
            self._part(page).used -= held
        leaving = self._leaving.pop(page, None)
        if leaving is not None:
            part = self._part(page)
            part.used -= leaving
            part.leaving -= leaving

    def remove(self, page: Page) -> None:
        """Out of the order of its namespace."""
        part = self._part(page)
        part.used -= page.size
        part.policy.remove(page)

    def resize(self, capacity: int) -> None:
        """Shares are of the new capacity; the namespaces' own policies learn of it when they are asked for a victim."""
        self._capacity = capacity

    def _part(self, page: Page) -> _Part:
        return self._of(namespace_of(page.id))

    def _of(self, namespace: int) -> _Part:
        part = self._parts.get(namespace)
        if part is None:
            part = self._parts[namespace] = _Part(self._make(self._capacity), 0.0)
        return part

    def __len__(self) -> int:
        return sum(len(part.policy) for part in self._parts.values())
