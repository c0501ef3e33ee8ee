"""Ids: 64-bit numbers, never handed out twice; those of one namespace in ascending order.

The catalog is told ahead, a million at a time, below which number all ids may have been used. So no id costs a commit; a
crash skips what is left of the promise, and an orderly close gives it back.
"""

from __future__ import annotations

from collections.abc import Callable

from dstorage.catalog import Catalog
from dstorage.commit import Committer
from dstorage.record import NAMESPACE_SHIFT

RESERVED_IDS = 2**20


class IdAllocator:
    """Hands out the ids of one store.

    Args:
        catalog: Keeps the promise.
        committer: Runs what writes to the catalog.
        spawn: Starts a task that the store owns.
    """

    def __init__(self, catalog: Catalog, committer: Committer, spawn: Callable[..., object]) -> None:
        self._catalog = catalog
        self._committer = committer
        self._spawn = spawn
        self._next = self._reserved_to = catalog.next_id()
        self._reserving = False

    def take(self, namespace: int = 0) -> int:
        """The next id, of the namespace with this number."""
        id = self._next
        left = self._reserved_to - id
        if left <= RESERVED_IDS // 2 and not self._reserving:
            self._reserving = True
            self._spawn(self.reserve())
        if left <= 0:
            # Half a million ids were taken before the writer thread got its turn: wait for the disk here.
            self._promise(id + RESERVED_IDS)
        self._next = id + 1
        return namespace << NAMESPACE_SHIFT | id

    async def reserve(self) -> None:
        """Promise more ids ahead, in the writer thread."""
        try:
            target = self._next + 2 * RESERVED_IDS
            await self._committer.exclusively(lambda: self._promise(target))
        finally:
            self._reserving = False

    def _promise(self, next_id: int) -> None:
        self._catalog.reserve_ids(next_id)
        self._reserved_to = next_id

    def give_back(self) -> None:
        """At an orderly close: the ids not handed out are free again."""
        self._catalog.reserve_ids(self._next)
