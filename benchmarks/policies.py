"""Eviction policies to compare with: LRU, ARC, S3-FIFO, W-TinyLFU and Belady, all by bytes, each as plain as its paper allows.

A cache here is one method, ``access(id, size) -> hit``: it simulates, it keeps no contents. What is larger than the whole
cache passes by. Sources: ARC: Megiddo and Modha, FAST 2003. S3-FIFO: Yang et al., SOSP 2023. W-TinyLFU: Einziger, Friedman and
Manes, ACM TOS 2017, with counters per id in place of a sketch of them, so that no collision blurs its figures; how ties and
ageing are settled moves its misses by some hundredths, here as in other implementations. Belady: Belady,
IBM Systems Journal 1966; with sizes that differ it is no bound any more, only the customary yardstick.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from dstorage.paging.page import Page
from dstorage.paging.policy import policy_maker


class Cache(Protocol):
    """One simulated cache."""

    def access(self, id: int, size: int) -> bool:
        """Ask for `id`; True if it was there, otherwise it is brought in. An id always comes with the same size."""


class _Queue(OrderedDict[int, int]):
    """id -> size, the oldest first; knows its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def push(self, id: int, size: int) -> None:
        self[id] = size
        self.bytes += size

    def drop(self, id: int) -> int:
        size = self.pop(id)
        self.bytes -= size
        return size

    def shift(self) -> tuple[int, int]:
        id, size = self.popitem(last=False)
        self.bytes -= size
        return id, size


class Ours:
    """A policy of dstorage, called as `dstorage.paging.memory.Memory` calls it."""

    def __init__(self, capacity: int, name: str | None = None) -> None:
        self._capacity = capacity
        self._policy = policy_maker(name)(capacity)
        self._pages: dict[int, Page] = {}
        self._used = 0

    def access(self, id: int, size: int) -> bool:
        page = self._pages.get(id)
        if page is not None:
            page.hot = True
            return True
        if size > self._capacity:
            return False
        while self._used + size > self._capacity:
            victim = self._policy.victim()
            assert victim is not None
            self._policy.evicted(victim)
            self._used -= victim.size
            del self._pages[victim.id]
        page = self._pages[id] = Page(id)
        page.size = size
        self._used += size
        self._policy.insert(page)
        return False


class Lru:
    """The least recently used leaves."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queue = _Queue()

    def access(self, id: int, size: int) -> bool:
        queue = self._queue
        if id in queue:
            queue.move_to_end(id)
            return True
        if size <= self._capacity:
            while queue.bytes + size > self._capacity:
                queue.shift()
            queue.push(id, size)
        return False


class Arc:
    """T1 and T2 are resident, B1 and B2 remember what left them; `_share` is the paper's p."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._share = 0.0
        self._t1, self._t2, self._b1, self._b2 = _Queue(), _Queue(), _Queue(), _Queue()

    def access(self, id: int, size: int) -> bool:
        t1, t2, b1, b2 = self._t1, self._t2, self._b1, self._b2
        if id in t2:
            t2.move_to_end(id)
            return True
        if id in t1:
            t2.push(id, t1.drop(id))
            return True
        if size > self._capacity:
            return False
        if id in b1:
            self._share = min(self._capacity, self._share + size * max(1.0, b2.bytes / b1.bytes))
            self._make_room(size, seen_in_b2=False)
            b1.drop(id)
            t2.push(id, size)
        elif id in b2:
            self._share = max(0.0, self._share - size * max(1.0, b1.bytes / b2.bytes))
            self._make_room(size, seen_in_b2=True)
            b2.drop(id)
            t2.push(id, size)
        else:
            while b1 and t1.bytes + b1.bytes + size > self._capacity:
                b1.shift()
            # T1 alone fills the cache: what leaves it now is not remembered.
            while t1 and t1.bytes + size > self._capacity:
                t1.shift()
            while b2 and t1.bytes + t2.bytes + b1.bytes + b2.bytes + size > 2 * self._capacity:
                b2.shift()
            self._make_room(size, seen_in_b2=False)
            t1.push(id, size)
        return False

    def _make_room(self, size: int, *, seen_in_b2: bool) -> None:
        t1, t2 = self._t1, self._t2
        while t1.bytes + t2.bytes + size > self._capacity:
            if t1 and (not t2 or t1.bytes > self._share or (seen_in_b2 and t1.bytes >= self._share)):
                self._b1.push(*t1.shift())
            else:
                self._b2.push(*t2.shift())


class S3Fifo:
    """A small queue of a tenth, a main queue, and ids remembered of what left the small one unused."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small_capacity = capacity // 10
        self._small, self._main, self._ghost = _Queue(), _Queue(), _Queue()
        self._uses: dict[int, int] = {}

    def access(self, id: int, size: int) -> bool:
        uses = self._uses
        if id in uses:
            uses[id] = min(3, uses[id] + 1)
            return True
        if size > self._capacity:
            return False
        while self._small.bytes + self._main.bytes + size > self._capacity:
            if self._small.bytes > self._small_capacity or not self._main:
                self._shift_small()
            else:
                self._shift_main()
        uses[id] = 0
        if id in self._ghost:
            self._ghost.drop(id)
            self._main.push(id, size)
        else:
            self._small.push(id, size)
        return False

    def _shift_small(self) -> None:
        id, size = self._small.shift()
        if self._uses[id] > 1:
            self._uses[id] = 0
            self._main.push(id, size)
            return
        del self._uses[id]
        self._ghost.push(id, size)
        while self._ghost.bytes > self._capacity - self._small_capacity:
            self._ghost.shift()

    def _shift_main(self) -> None:
        id, size = self._main.shift()
        if self._uses[id]:
            self._uses[id] -= 1
            self._main.push(id, size)
        else:
            del self._uses[id]


class WTinyLfu:
    """A window of 1 %; what leaves it enters the main part only if it was asked for more often than what it displaces."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._window_capacity = max(1, capacity // 100)
        self._protected_capacity = (capacity - self._window_capacity) * 8 // 10
        self._window, self._probation, self._protected = _Queue(), _Queue(), _Queue()
        self._counts: dict[int, int] = {}
        self._counted = 0

    def access(self, id: int, size: int) -> bool:
        self._count(id)
        if id in self._window:
            self._window.move_to_end(id)
            return True
        if id in self._protected:
            self._protected.move_to_end(id)
            return True
        if id in self._probation:
            self._protected.push(id, self._probation.drop(id))
            while self._protected.bytes > self._protected_capacity:
                self._probation.push(*self._protected.shift())
            return True
        if size <= self._capacity:
            self._window.push(id, size)
            while self._window.bytes > self._window_capacity:
                self._admit(*self._window.shift())
        return False

    def _admit(self, id: int, size: int) -> None:
        """Let `id` in if everything that has to leave for it was asked for less often."""
        counts = self._counts
        missing = size - (self._capacity - self._window_capacity - self._probation.bytes - self._protected.bytes)
        victims: list[tuple[_Queue, int]] = []
        for queue in (self._probation, self._protected):
            for victim, victim_size in queue.items():
                if missing <= 0:
                    break
                if counts.get(victim, 0) >= counts.get(id, 0):
                    return
                victims.append((queue, victim))
                missing -= victim_size
        if missing > 0:
            return
        for queue, victim in victims:
            queue.drop(victim)
        self._probation.push(id, size)

    def _count(self, id: int) -> None:
        counts = self._counts
        counts[id] = min(15, counts.get(id, 0) + 1)
        self._counted += 1
        # A sample of ten times what fits; then all counters are halved.
        fits = len(self._window) + len(self._probation) + len(self._protected)
        if self._counted >= 10 * max(100, fits):
            self._counts = {id: half for id, count in counts.items() if (half := count // 2)}
            self._counted = 0


class Belady:
    """What is asked for again last leaves; knows the whole trace."""

    def __init__(self, capacity: int, ids: Sequence[int]) -> None:
        self._capacity = capacity
        self._sizes: dict[int, int] = {}
        self._used = 0
        self._heap: list[tuple[int, int]] = []
        following: dict[int, int] = {}
        next_use = [0] * len(ids)
        for position in range(len(ids) - 1, -1, -1):
            next_use[position] = following.get(ids[position], len(ids))
            following[ids[position]] = position
        self._next_use = deque(next_use)
        self._next: dict[int, int] = {}

    def access(self, id: int, size: int) -> bool:
        sizes = self._sizes
        hit = id in sizes
        next_use = self._next_use.popleft()
        if not hit:
            if size > self._capacity:
                return False
            while self._used + size > self._capacity:
                negative, victim = heappop(self._heap)
                # Entries of earlier uses are skipped.
                if self._next.get(victim) == -negative:
                    self._used -= sizes.pop(victim)
                    del self._next[victim]
            sizes[id] = size
            self._used += size
        self._next[id] = next_use
        heappush(self._heap, (-next_use, id))
        return hit
