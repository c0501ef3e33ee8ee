"""Room for new contents: reserving it, waiting for it, and saying who holds it when there is none."""

from __future__ import annotations

import asyncio
import heapq
import time

from dstorage.errors import MemoryUnavailable
from dstorage.paging.memory import Memory, RoomRequest
from dstorage.paging.writeback import WriteBack
from dstorage.table import HandleTable

RECHECK_S = 0.05
"""How often somebody who waits looks whether there is still hope."""
STAND_S = 1.0
"""How often the oldest of those whom only a release can help has the others stand behind it for a moment."""
LOOK_S = 0.25
"""After which somebody for whom others write looks whether that can help at all."""


class Room:
    """Reserves memory for contents that will be dirty."""

    def __init__(self, memory: Memory, writeback: WriteBack, table: HandleTable) -> None:
        self._memory = memory
        self._writeback = writeback
        self._table = table
        self._holders = ""
        self._look_again = 0.0
        self._stand_at = 0.0
        self._held = 0
        self._count_again = 0.0

    @property
    def budget(self) -> int:
        """Bytes of the budget, as `Store.set_budget` left it."""
        return self._memory.budget

    async def reserve(self, size: int, id: int, wait: float | None, *, dirty: bool = True) -> None:
        """Reserve room, waiting for write-back, and up to `wait` seconds for references.

        Args:
            size: Bytes.
            id: The chunk it is for, or 0, for messages.
            wait: Seconds.
            dirty: The contents will be dirty.

        Raises:
            MemoryUnavailable: There is none.
        """
        memory = self._memory
        if memory.reserve(size, dirty=dirty):
            return
        self._check_fits(size, id)
        loop = asyncio.get_running_loop()
        deadline = None if wait is None else loop.time() + wait
        granted = loop.create_future()

        def grant() -> None:
            if granted.done():
                memory.give_back(size, dirty=dirty)
            else:
                granted.set_result(None)

        request = RoomRequest(size, dirty, grant)
        memory.wait(request)
        begun = loop.time()
        try:
            while not granted.done():
                # The budget may have been lowered meanwhile.
                self._check_fits(size, id)
                now = loop.time()
                writing = memory.hopeful and not self._writeback.stalled
                if request.stuck:
                    # Others go on, and may let go of something that tells nobody.
                    if memory.reserve(size, dirty=dirty, overtake=True):
                        memory.abandon(request)
                        return
                    # Many small requests shall not keep a large one from its turn for ever.
                    if writing and size <= memory.limit and now >= self._stand_at and memory.stand_again(request):
                        self._stand_at, begun = now + STAND_S, now - LOOK_S
                elif size > memory.limit or not writing or (now >= begun + LOOK_S and not self._could_fit(size)):
                    # Nothing is being written that would help: only a release can.
                    memory.sweep()
                    memory.poke()
                    if granted.done():
                        return
                    if memory.reserve(size, dirty=dirty, overtake=True):
                        # Those in front would not have it: they wait for more, maybe for what this caller holds.
                        memory.abandon(request)
                        return
                    memory.stand_aside(request)
                    self._stand_at = max(self._stand_at, now + STAND_S)
                if request.stuck and (deadline is None or now >= deadline):
                    raise self.error(self._no_room(size, id))
                await asyncio.wait([granted], timeout=RECHECK_S)
        except BaseException:
            if granted.done() and not granted.cancelled():
                memory.give_back(size, dirty=dirty)
            else:
                granted.cancel()
                memory.abandon(request)
            raise

    def ample(self, size: int) -> bool:
        """Whether there should be room for so much more that is dirty; for any thread, and no promise."""
        memory = self._memory
        return memory.dirty_bytes + size <= memory.dirty_limit and not memory.wanted

    def try_reserve(self, size: int) -> bool:
        """Reserve room for dirty contents now, if there is any; costs no search for who holds it."""
        return self._memory.reserve(size, dirty=True)

    def try_reserve_along(self, size: int) -> bool:
        """Reserve room for dirty contents that go with others, past their limit if need be."""
        return self._memory.reserve_along(size)

    def reserve_nowait(self, size: int, id: int) -> None:
        """Reserve room for dirty contents now.

        Raises:
            MemoryUnavailable: There is none.
        """
        # Who does not wait cannot stand behind anybody.
        if not self._memory.reserve(size, dirty=True, overtake=True):
            self._check_fits(size, id)
            raise self.error(self._no_room(size, id))

    def _could_fit(self, size: int) -> bool:
        """Whether there would be room if all that nobody holds were written and gone, and what is under way had come."""
        began = time.perf_counter()
        if began >= self._count_again:
            handles = self._table.handles.values()
            self._held = sum(handle.size for handle in handles if handle.refs and handle.buffer is not None)
            # With many handles it takes long; others who ask meanwhile are told what the first was.
            self._count_again = began + 10 * (time.perf_counter() - began)
        return self._held + self._memory.stray_bytes + size <= self._memory.limit

    def _check_fits(self, size: int, id: int) -> None:
        if size > self._memory.budget:
            error = MemoryUnavailable(
                f"{size} bytes for {f'chunk {id}' if id else 'a new chunk'} are more than the whole budget of "
                f"{self._memory.budget}: raise the budget or split the data"
            )
            error.never = True
            raise error

    def _no_room(self, size: int, id: int) -> str:
        return f"no room for {size} bytes ({f'chunk {id}' if id else 'a new chunk'})"

    def error(self, what: str) -> MemoryUnavailable:
        """A MemoryUnavailable that says who holds the most."""
        memory = self._memory
        began = time.perf_counter()
        if began >= self._look_again:
            self._holders = self._find_holders()
            # With many handles it takes long, and where one call fails many do: they are told what the first was.
            self._look_again = began + 10 * (time.perf_counter() - began)
        short = "" if memory.limit >= memory.budget else f" (budget {memory.budget}; the machine is short of memory)"
        obstacle = self._writeback.obstacle
        way_out = "Release handles and views, pass wait=seconds, or raise the budget"
        if obstacle is not None:
            way_out = f"What is dirty cannot leave: {obstacle}"
        return MemoryUnavailable(
            f"{what}: {memory.used} of {memory.limit} bytes{short} in use, {memory.dirty_bytes} dirty (at most "
            f"{memory.dirty_limit}), {memory.stray_bytes} held by stray views; {self._holders}. {way_out}"
        )

    def _find_holders(self) -> str:
        memory = self._memory
        resident = [handle for handle in self._table.handles.values() if handle.buffer is not None]
        held = [handle for handle in resident if handle.refs]
        others = memory.used - memory.stray_bytes - sum(handle.size for handle in resident)
        most = ", ".join(f"{h.id} ({h.size} B, {h.refs} refs)" for h in heapq.nlargest(5, held, key=lambda h: h.size))
        strays = ", ".join(f"{id} ({size} B)" for id, size in self._memory.largest_strays(5))
        return (
            f"{len(held)} chunks are referenced{f', the largest: {most}' if most else ''}"
            f"{f'; the largest stray views are on {strays}' if strays else ''}"
            f"{f'; {others} bytes are for reads, edits and writes under way' if others else ''}"
        )
