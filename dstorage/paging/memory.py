"""What is in memory: exact accounting, the choice of what leaves, and the queue of those who wait for room.

`Memory.used` counts every byte of chunk contents: resident, reserved for reads under way, private copies of edits, and
*stray* buffers (contents that left or were replaced while somebody still holds a view on them; noticed through the reference
count of the object that owns the memory, because `memoryview.release` does not notice slices). It never exceeds `limit`
but for what a shrinking limit finds referenced.

Everything here is synchronous and belongs to the store's event loop. A resident page is in exactly one of: the policy's
order, `parked`, `laundry`, `ready`; see `dstorage.paging.page`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from dstorage.buffers import copied
from dstorage.paging.page import ABSENT, ALONE, IN_ORDER, LAUNDRY, PARKED, READY, SHARED_BYTES, Page, holders, swap
from dstorage.paging.policy import Policy
from dstorage.paging.shares import Shares

AHEAD_SHARE = 1 / 16
"""Clean victims kept ahead of the eviction hand while there are dirty pages, as a share of the limit."""


class RoomRequest:
    """Somebody waiting for room.

    Attributes:
        size: Bytes.
        dirty: They are for dirty contents.
        grant: Called when they are reserved.
        stuck: Writing does not help it, only a release can: others need not stand behind it (see `Memory.stand_aside`).
    """

    __slots__ = ("dirty", "grant", "size", "stuck")

    def __init__(self, size: int, dirty: bool, grant: Callable[[], None]) -> None:
        self.size = size
        self.dirty = dirty
        self.grant = grant
        self.stuck = False


class Memory:
    """The memory of one store.

    Args:
        limit: Bytes of chunk contents allowed: the budget.
        dirty_share: Share of `limit` that may be dirty.
        policy: The eviction order.
        max_cached: How many unreferenced pages may stay resident, or None.
        on_evicted: Called with each page that left and why ("room": for other contents; "limit": the
            budget or a limit on handles; "critical": the machine is out of memory).
        on_laundry: Called when there is something to write before room can be made.
    """

    def __init__(
        self,
        limit: int,
        *,
        dirty_share: float,
        policy: Policy,
        max_cached: int | None,
        on_evicted: Callable[[Page, str], None],
        on_laundry: Callable[[], None],
    ) -> None:
        self.budget = limit
        """What the program allows; `limit`, what is allowed now, is less while the machine is short of memory."""
        self.limit = limit
        self.dirty_share = dirty_share
        self.dirty_limit = int(limit * dirty_share)
        self.critical = False
        self.used = 0
        self.dirty_bytes = 0
        self.stray_bytes = 0
        self.evictions = 0
        self.dirty: dict[Page, None] = {}
        self.laundry: dict[Page, bool] = {}
        """Pages to be written before they leave, and whether they are then the first to do so (see `leave_first`)."""
        self._laundry_bytes = 0
        self._ready: OrderedDict[Page, None] = OrderedDict()
        self._spent: OrderedDict[Page, None] = OrderedDict()
        """Ready too, and to leave before all others, the last one first."""
        self._ready_bytes = 0
        """Of both."""
        self._parked = 0
        self._unswept = 0
        """How often room was made since strays were last looked at."""
        self._strays: list[tuple[object, int, int]] = []
        """Contents, their size, and of which chunk they were."""
        self._waiting: deque[RoomRequest] = deque()
        self._stuck: dict[RoomRequest, None] = {}
        """Those that stood aside, the oldest first."""
        self._policy = policy
        self._max_cached = max_cached
        self._on_evicted = on_evicted
        self._on_laundry = on_laundry
        policy.resize(limit)

    # -- room ---------------------------------------------------------------------------------------------------------

    def reserve(self, size: int, *, dirty: bool = False, overtake: bool = False) -> bool:
        """Set aside `size` bytes if that is possible now, letting clean victims leave.

        Args:
            size: Bytes.
            dirty: The contents will be dirty: they count against the dirty limit as well, and stand behind those who
                wait for what is being written; small ones would take it bit by bit from a large one.
            overtake: Go before those who wait all the same.
        """
        if dirty and self._waiting and self.hopeful and not overtake:
            self._on_laundry()
            return False
        if dirty and self.dirty_bytes + size > self.dirty_limit and self.dirty_bytes:
            self._on_laundry()
            return False
        if self.used + size > self.limit and not self._evict_to(self.limit - size, "room"):
            return False
        self.used += size
        if dirty:
            self.dirty_bytes += size
        return True

    def reserve_along(self, size: int) -> bool:
        """Set aside `size` bytes of dirty contents, whatever else is dirty."""
        if not self.reserve(size, overtake=True):
            return False
        self.dirty_bytes += size
        return True

    def give_back(self, size: int, *, dirty: bool = False) -> None:
        """Undo a reservation."""
        self.used -= size
        if dirty:
            self.dirty_bytes -= size
        self.poke()

    def wait(self, request: RoomRequest) -> None:
        """Queue a request; requests are granted in order. Now all that is dirty is to be written, not only a share of it."""
        self._waiting.append(request)
        self._on_laundry()

    def abandon(self, request: RoomRequest) -> None:
        """Take a request back that was not granted."""
        if request.stuck:
            del self._stuck[request]
        else:
            self._waiting.remove(request)

    def stand_aside(self, request: RoomRequest) -> None:
        """Only a release can help a request: until it is to `stand_again`, nobody stands behind it."""
        self._waiting.remove(request)
        self._stuck[request] = None
        request.stuck = True

    def stand_again(self, request: RoomRequest) -> bool:
        """Let a request that stood aside, if it is the oldest of these, be the first in the queue."""
        if next(iter(self._stuck)) is not request:
            return False
        del self._stuck[request]
        request.stuck = False
        self._waiting.appendleft(request)
        return True

    def poke(self) -> None:
        """Grant what can be granted, in order; to be called after anything was freed or written."""
        waiting, stuck = self._waiting, self._stuck
        while waiting and self.reserve(waiting[0].size, dirty=waiting[0].dirty, overtake=True):
            waiting.popleft().grant()
        while stuck and self.reserve((oldest := next(iter(stuck))).size, dirty=oldest.dirty, overtake=True):
            del stuck[oldest]
            oldest.grant()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiting or self._stuck)

    # -- pages --------------------------------------------------------------------------------------------------------

    def insert(self, page: Page, buffer: bytes | bytearray, *, dirty: bool = False) -> None:
        """Make `buffer` the contents of a page that has none; its bytes are reserved already."""
        page.buffer = buffer
        page.size = len(buffer)
        page.place = IN_ORDER
        if dirty:
            page.dirty = True
            self.dirty[page] = None
        self._policy.insert(page)

    def settled(self, page: Page) -> None:
        """Everybody knows that an inserted page is resident: now limits may make it leave again."""
        if page.place != IN_ORDER:
            return
        if self.critical:
            self._policy.remove(page)
            self._retire(page)
        elif self.used > self.limit:
            # The limit fell while it was on its way.
            self._evict_to(self.limit, "limit")
        else:
            self._trim_cached()

    def replace(self, page: Page, buffer: bytes | bytearray) -> None:
        """Make `buffer` the new, dirty contents of a resident page; its bytes are reserved as dirty already."""
        size = page.size
        resized = size != len(buffer)
        # Changed is used: what was chosen to leave goes back into the order; and there a size is changed.
        if page.place in (LAUNDRY, READY) or (resized and page.place == PARKED):
            self._restore(page)
        if resized:
            self._policy.remove(page)
        self._let_go(swap(page, buffer), size, page.id)
        page.size = len(buffer)
        if resized:
            self._policy.insert(page)
        page.hot = True
        if page.dirty:
            self.dirty_bytes -= size
        else:
            page.dirty = True
            self.dirty[page] = None

    def clean(self, page: Page) -> None:
        """The contents of a dirty page have been written."""
        page.dirty = False
        del self.dirty[page]
        self.dirty_bytes -= page.size
        if page.place == LAUNDRY:
            if self.over:
                self._unlaundry(page)
                self._retire(page)
            elif page.refs or page.hot:
                self._restore(page)
            else:
                first = self.laundry[page]
                self._unlaundry(page)
                self._to_ready(page, first=first)
                self._trim_cached()

    def leave_first(self, page: Page) -> None:
        """The contents of a page that nobody holds will not be used for long: they leave before all others, the last one told first;
        dirty ones are written now, and leave after what was only looked at.

        So in a sweep over more than fits, what leaves is what was met last, and what stays is there when the sweep comes round
        again; in the order of use, everything would leave just before it is met.
        """
        if page.refs or page.place in (ABSENT, PARKED):
            return
        page.hot = False
        if page.place == LAUNDRY:
            self.laundry[page] = True
            return
        self._take_out(page)
        if page.dirty:
            self._to_laundry(page, first=True)
            self._on_laundry()
        else:
            page.place = READY
            self._spent[page] = None
            self._ready_bytes += page.size
            self.poke()

    def unwashable(self, page: Page) -> None:
        """The contents of a page in the laundry could not be written: it stays."""
        if page.place == LAUNDRY:
            self._restore(page)

    def forget(self, page: Page) -> None:
        """Free the contents of a page that was deleted or lost (not an eviction)."""
        self._remove(page)
        self._let_go(swap(page, None), page.size, page.id)
        self.poke()

    def hand_over(self, page: Page) -> bytes | bytearray:
        """`forget`, but for the contents, which are the caller's now and count no more; a copy if others look at them."""
        self._remove(page)
        owner = page.buffer
        assert owner is not None
        page.buffer = None
        if page.size > SHARED_BYTES and holders(owner) > ALONE:
            self._strays.append((owner, page.size, page.id))
            self.stray_bytes += page.size
            owner = copied(owner)
        else:
            self.used -= page.size
        self.poke()
        return owner

    def _remove(self, page: Page) -> None:
        if page.place != IN_ORDER:
            self._policy.dropped(page)
        self._take_out(page)
        if page.dirty:
            page.dirty = False
            del self.dirty[page]
            self.dirty_bytes -= page.size
        page.place = ABSENT

    def released(self, page: Page) -> None:
        """The last reference on a resident page outside of the order is gone."""
        if page.place == PARKED:
            self._parked -= 1
            if self.over:
                self._retire(page)
            else:
                page.place = IN_ORDER
                self._policy.restore(page)
                self._trim_cached()
            if self.wanted:
                self.poke()

    # -- limits -------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int, *, critical: bool = False) -> None:
        """Change what is allowed; what is over it leaves, down to what references (and write-back) hold."""
        self.limit = limit
        self.dirty_limit = int(limit * self.dirty_share)
        self.critical = critical
        self._policy.resize(limit)
        # Much may have to leave at once: first what nobody looks at any more.
        self.sweep()
        if critical:
            self._evict_to(0, "critical")
        else:
            self._evict_to(limit, "limit")
        self.poke()

    def evict_one(self, reason: str) -> bool:
        """Let the next clean victim leave; False if there is none."""
        page = self._next_clean()
        if page is None:
            return False
        self._leave(page, reason)
        return True

    def sweep(self) -> bool:
        """Look which stray buffers have been let go; True if any was."""
        strays = self._strays
        self._unswept = 0
        kept = []
        for entry in strays:
            owner, size, _ = entry
            # The entry itself knows it too.
            if holders(owner) > ALONE + 1:
                kept.append(entry)
            else:
                self.stray_bytes -= size
                self.used -= size
        freed = len(kept) < len(strays)
        self._strays = kept
        return freed

    def largest_strays(self, count: int) -> list[tuple[int, int]]:
        """(chunk, size) of the largest stray buffers."""
        return [(id, size) for _, size, id in heapq.nlargest(count, self._strays, key=lambda stray: stray[1])]

    def share_out(self, make: Callable[[int], Policy], resident: Iterable[Page]) -> Shares:
        """From now on give namespaces shares of the memory.

        Args:
            make: Makes a namespace's policy, given bytes.
            resident: All pages in memory.
        """
        held = sum(page.size for page in resident if page.place == IN_ORDER)
        self._policy = shares = Shares(make, self.limit, self._policy, held)
        return shares

    @property
    def over(self) -> bool:
        """Whether unreferenced contents have to leave as soon as they can, not only when their room is needed."""
        return self.critical or self.used > self.limit

    @property
    def hopeful(self) -> bool:
        """Whether room can come without anybody releasing anything: there is something to write."""
        return bool(self.laundry or self.dirty)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _evict_to(self, target: int, reason: str) -> bool:
        began = bool(self.laundry)
        if self._strays:
            # Not each time: while much is being written that was replaced meanwhile, there are many.
            self._unswept += 1
            if self._unswept > len(self._strays):
                self.sweep()
        while self.used > target:
            page = self._next_clean()
            if page is None:
                if self._strays and self.sweep():
                    continue
                if self.laundry:
                    self._on_laundry()
                return False
            self._leave(page, reason)
        if self.dirty and not self.critical:
            self._keep_ahead()
        if self.laundry and not began:
            self._on_laundry()
        return True

    def _next_clean(self) -> Page | None:
        while ready := self._spent or self._ready:
            page, _ = ready.popitem(last=ready is self._spent)
            self._ready_bytes -= page.size
            if page.refs or page.hot:
                page.place = IN_ORDER
                self._policy.restore(page)
            else:
                return page
        victim = self._policy.victim
        while (found := victim()) is not None:
            page = found
            if page.refs:
                self._park(page)
            elif page.dirty:
                self._to_laundry(page)
            else:
                return page
        return None

    def _keep_ahead(self) -> None:
        """Choose the next victims early, so that the dirty ones are clean when their room is needed."""
        want = int(self.limit * AHEAD_SHARE)
        while self._ready_bytes + self._laundry_bytes < want:
            page = self._policy.victim()
            if page is None:
                break
            self._choose(page)

    def _choose(self, page: Page) -> None:
        if page.refs:
            self._park(page)
        elif page.dirty:
            self._to_laundry(page)
            self._on_laundry()
        else:
            self._to_ready(page)

    def _retire(self, page: Page) -> None:
        """More than is allowed is in use: a page that is in no container leaves as soon as it can."""
        if page.refs or page.dirty:
            self._choose(page)
        else:
            self._leave(page, "critical" if self.critical else "limit")

    def _trim_cached(self) -> None:
        """Keep to the limit on unreferenced pages; the referenced ones the hand meets are parked and count no more."""
        if self._max_cached is None:
            return
        while len(self._policy) + len(self._ready) + len(self._spent) + len(self.laundry) > self._max_cached:
            page = self._next_clean()
            if page is None:
                if self.laundry:
                    self._on_laundry()
                return
            self._leave(page, "limit")

    def _leave(self, page: Page, reason: str) -> None:
        """Drop the contents of a page that is in no container any more."""
        page.place = ABSENT
        self.evictions += 1
        self._policy.evicted(page)
        self._let_go(swap(page, None), page.size, page.id)
        self._on_evicted(page, reason)

    def _let_go(self, owner: object, size: int, id: int) -> None:
        """Account for contents that no page holds any more: freed, or stray while somebody looks at them.

        Callers pass `owner` as an expression, not from a variable, so that nobody but this frame knows it.
        """
        if size > SHARED_BYTES and holders(owner) > ALONE:
            self._strays.append((owner, size, id))
            self.stray_bytes += size
        else:
            self.used -= size

    # -- containers ---------------------------------------------------------------------------------------------------

    def _park(self, page: Page) -> None:
        page.place = PARKED
        self._parked += 1

    def _to_ready(self, page: Page, *, first: bool = False) -> None:
        page.place = READY
        self._ready[page] = None
        self._ready_bytes += page.size
        if first:
            self._ready.move_to_end(page, last=False)

    def _to_laundry(self, page: Page, *, first: bool = False) -> None:
        page.place = LAUNDRY
        self.laundry[page] = first
        self._laundry_bytes += page.size

    def _unlaundry(self, page: Page) -> None:
        del self.laundry[page]
        self._laundry_bytes -= page.size

    def _restore(self, page: Page) -> None:
        """Back from laundry or ready into the order."""
        self._take_out(page)
        page.place = IN_ORDER
        self._policy.restore(page)

    def _take_out(self, page: Page) -> None:
        if page.place == IN_ORDER:
            self._policy.remove(page)
        elif page.place == LAUNDRY:
            self._unlaundry(page)
        elif page.place == READY:
            del (self._spent if page in self._spent else self._ready)[page]
            self._ready_bytes -= page.size
        elif page.place == PARKED:
            self._parked -= 1

    def __repr__(self) -> str:
        return (
            f"<Memory {self.used}/{self.limit} B used, {self.dirty_bytes} dirty, {self.stray_bytes} stray, "
            f"{len(self._policy)} in order, {self._parked} parked, {len(self._waiting) + len(self._stuck)} waiting>"
        )
