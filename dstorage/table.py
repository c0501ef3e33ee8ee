"""The table of handles: at most one per id, whoever asks.

In the table are handles that are referenced, resident, waited for, or remembered as unavailable. The others cost nothing: a chunk
that is not in memory has no Python object. A program may still hold the object of a handle that left the table; it is known
weakly, and is the one that comes back when its id is asked for again.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from dstorage.errors import TooManyHandles, UsageError
from dstorage.handle import Handle, HandleAlias, Status
from dstorage.outage import Outages
from dstorage.paging.memory import Memory
from dstorage.paging.page import ABSENT
from dstorage.record import checked_id

if TYPE_CHECKING:
    from dstorage.store import Store


SETTLED = frozenset({Status.NOT_RESOLVED, Status.LOST, Status.DELETED})
"""Without contents, and nothing is under way that would bring them."""
SWEEP = 1024
"""So many weak references to handles out of the table, dead ones included, are always worth keeping."""


class HandleTable:
    """The handles of one store.

    Args:
        store: Given to each handle.
        memory: Gives up clean pages when there are too many handles.
        max_handles: The limit, or None.
        outages: Is told of a handle that leaves the table; one that somebody waits for stays.
    """

    def __init__(self, store: Store, memory: Memory, max_handles: int | None, outages: Outages) -> None:
        self._store = store
        self._memory = memory
        self._max_handles = max_handles
        self._outages = outages
        self.handles: dict[int, Handle] = {}
        self._dropped: dict[int, weakref.ref[Handle]] = {}
        """Handles out of the table that somebody may still hold: without callbacks, which would cost more than all else
        of a page-in; the dead ones are swept out now and then."""
        self._sweep_at = SWEEP

    def unbound(self) -> Handle:
        """A handle that names no chunk yet (UNINITIALISED), with one reference; see `Handle.bind`."""
        self._store.check_open()
        handle = Handle(self._store)
        handle.refs = 1
        return handle

    def get(self, id: int) -> Handle:
        """As `Store.handle`, for the store's own use."""
        handle = self.handles.get(id)
        return self.new(id) if handle is None else handle.acquire()

    def knows(self, id: int) -> bool:
        """Whether there is a handle for an id, in the table or in somebody's hands."""
        if id in self.handles:
            return True
        dropped = self._dropped.get(id)
        return dropped is not None and dropped() is not None

    def new(self, id: int) -> Handle:
        """The handle for an id that is not in the table, with its first reference (for `Store.handle`)."""
        self._store.check_open()
        id = checked_id(id)
        # Somebody may still hold the object of a handle that left the table: it is the one.
        dropped = self._dropped.get(id)
        handle = (dropped() if dropped is not None else None) or Handle(self._store, id)
        self.enter(handle)
        handle.refs = 1
        return handle

    def enter(self, handle: Handle) -> None:
        """Put a handle into the table.

        Raises:
            TooManyHandles: The table is full, and no handle can leave it.
        """
        self._make_room()
        self.handles[handle.id] = handle
        # Only now: one that found no room is still the one of its id.
        self._dropped.pop(handle.id, None)

    @property
    def full(self) -> bool:
        """Whether one more handle would be one too many."""
        return self._max_handles is not None and len(self.handles) >= self._max_handles

    def _make_room(self) -> None:
        limit = self._max_handles
        if limit is not None and len(self.handles) >= limit:
            self._shrink_table(limit - 1)

    def _shrink_table(self, target: int) -> None:
        while len(self.handles) > target:
            if not self._memory.evict_one("limit"):
                idle = next(
                    (h for h in self.handles.values() if not h.refs and h.place == ABSENT and not self._awaited(h)),
                    None,
                )
                if idle is None:
                    raise TooManyHandles(
                        f"{len(self.handles)} handles are in use, all referenced or dirty: release some, commit, or raise "
                        f"max_handles ({self._max_handles})"
                    )
                self.drop(idle)

    def _awaited(self, handle: Handle) -> bool:
        return bool(handle.waiters) or self._outages.awaited(handle)

    def drop(self, handle: Handle) -> None:
        """Take a handle with neither references nor contents out of the table."""
        del self.handles[handle.id]
        self._outages.end(handle)
        if handle.status is Status.TEMPORARILY_UNAVAILABLE:
            handle.to(Status.NOT_RESOLVED)
            handle.error = None
        if handle.status is Status.NOT_RESOLVED:
            self._remember(handle)

    def _remember(self, handle: Handle) -> None:
        self._dropped[handle.id] = weakref.ref(handle)
        if len(self._dropped) >= self._sweep_at:
            self._dropped = {id: dropped for id, dropped in self._dropped.items() if dropped() is not None}
            self._sweep_at = max(SWEEP, 2 * len(self._dropped))

    def revive(self, handle: Handle) -> None:
        """Add the first reference to a handle that has none (for `Handle.acquire`)."""
        self._store.check_open()
        if handle.status is Status.UNINITIALISED:
            raise UsageError("this handle names no chunk yet: bind() it to an id")
        known = self.handles.get(handle.id)
        if known is None:
            self.enter(handle)
        elif known is not handle:
            self._alias(handle, known)
            known.acquire()
            return
        else:
            handle.hot = True
        handle.refs = 1

    def last_release(self, handle: Handle) -> None:
        """The last reference of a handle outside of the eviction order is gone (for `Handle.release`)."""
        if handle.buffer is not None:
            self._memory.released(handle)
        elif handle.status in SETTLED and self.handles.get(handle.id) is handle:
            self.drop(handle)
        # WAITING: its answer decides. TEMPORARILY_UNAVAILABLE: remembered until the next try.

    def bind(self, handle: Handle, id: int) -> Handle:
        """Let `handle` name `id` (for `Handle.bind`)."""
        if handle.status is not Status.UNINITIALISED:
            raise UsageError(f"handle {handle.id} is bound already")
        id = checked_id(id)
        self._store.check_open()
        dropped = self._dropped.get(id)
        known = self.handles.get(id) or (dropped() if dropped is not None else None)
        # What needs room in the table comes first: without it the handle names nothing still.
        if known is None:
            if handle.refs:
                self._make_room()
            handle.id = id
            handle.to(Status.NOT_RESOLVED)
            if handle.refs:
                self.handles[id] = handle
            else:
                self._remember(handle)
            return handle
        for _ in range(handle.refs):
            known.acquire()
        self._alias(handle, known)
        return known

    @staticmethod
    def _alias(handle: Handle, target: Handle) -> None:
        handle.waiters = target  # type: ignore[assignment]  # the slot of an alias holds what it stands for
        handle.__class__ = HandleAlias
