"""Page-in: bytes on their way from controllers into memory.

A read that the controller can answer at once (memory, page cache) is answered inside `begin`, with no task, no future and no trip
round the loop. The others go out together, in the `Lane` of their controller. One read per id, however many wait: the caller keeps the waiters.

A chunk may be moved, and its old place freed by a commit, while it is being read. So an answer that fails its check counts only
if the catalog still names the place that was read; otherwise the new place is read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from dstorage.controller import Buffer, Controller, ControllerStatus
from dstorage.errors import (
    ControllerUnavailable,
    CorruptData,
    DStorageError,
    Lost,
    MemoryUnavailable,
    TemporarilyUnavailable,
)
from dstorage.index import Index
from dstorage.paging.lane import Lane
from dstorage.paging.memory import Memory, RoomRequest
from dstorage.paging.page import Page
from dstorage.record import Record
from dstorage.registry import Entry, Registry
from dstorage.uses import FOLD, Uses

RECHECK_S = 0.05
"""How often a page-in that waits for room looks whether there is still hope."""
AHEAD_INLINE_BYTES = 2**18
"""What is larger and nobody waits for yet is not read on the loop, which would keep those waiting who do."""


class PageIn:
    """The reader of one store.

    Args:
        memory: Gives room for what is read.
        index: Says where it is.
        registry: Says who has it.
        uses: Is told what was paged in.
        spawn: Starts a task that the store owns.
        on_resolved: Called when the contents of a page are in memory.
        on_failed: Called with a page and what its waiters are to be told.
        on_bad: Called with an id and a place of it that is damaged or gone, when another place was read in its stead.
        refresh: Looks for a newer commit of another process (read-only stores); True if there may be one.
        stalled: Whether no controller takes what is dirty, so that no room comes from writing.
    """

    def __init__(
        self,
        memory: Memory,
        index: Index,
        registry: Registry,
        uses: Uses,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_resolved: Callable[[Page], None],
        on_failed: Callable[[Page, DStorageError], None],
        on_bad: Callable[[int, Record], None],
        refresh: Callable[[], bool],
        stalled: Callable[[], bool],
    ) -> None:
        self._memory = memory
        self._index = index
        self._registry = registry
        self._uses = uses
        self._spawn = spawn
        self._on_resolved = on_resolved
        self._on_failed = on_failed
        self._on_bad = on_bad
        self._refresh = refresh
        self._stalled = stalled
        self._lanes: dict[int, Lane] = {}
        self._underway: dict[Page, object] = {}
        """Page -> the token of its present read; an answer that carries another token is out of date."""
        self._troubles: dict[Page, list[tuple[Record, DStorageError]]] = {}
        """Page -> the places that were tried in vain, and why; only while another of the chunk's places is tried."""
        self._waiting: dict[Page, RoomRequest] = {}
        """Pages whose read waits for room."""
        self._watching = False
        self.bytes_read = 0
        self.chunks_read = 0

    def begin(self, page: Page, *, ahead: bool = False) -> None:
        """Bring the contents of `page` into memory; the answer comes through `on_resolved` or `on_failed`, perhaps
        before this returns.

        Args:
            page: Whose contents.
            ahead: Nobody waits for them yet.
        """
        try:
            record = self._index.get(page.id)
            if record is None and self._refresh():
                record = self._index.get(page.id)
        except CorruptData as error:
            self._on_failed(page, error)
            return
        if record is None:
            self._on_failed(page, Lost("unknown id", id=page.id))
            return
        fastest = self._registry.by_rank()
        if len(fastest) > 1 and fastest[0].index != record.controller and (copies := self._index.copies(page.id)):
            record = self._fastest_first((record, *copies))[0]
        self._begin_at(page, record, ahead=ahead)

    def _begin_at(self, page: Page, record: Record, *, ahead: bool = False) -> None:
        """Bring in from one of the chunk's places."""
        try:
            controller = self._controller(page, record)
        except DStorageError as error:
            # The handle keeps it, and would by its traceback keep the frames of whoever asked first.
            self._elsewhere(page, record, error.with_traceback(None))
            return
        size = record.locator.size
        memory = self._memory
        if memory.reserve(size):
            self._read_now(page, record, controller, large_ahead=ahead and size > AHEAD_INLINE_BYTES)
        elif size > memory.limit:
            allowed = f"the whole budget of {memory.budget}"
            if size <= memory.budget:
                allowed = f"the {memory.limit} allowed while the machine is short of memory"
            too_large = MemoryUnavailable(f"chunk {page.id} has {size} bytes, more than {allowed}")
            too_large.never = size > memory.budget
            self._give_up(page, too_large)
        elif memory.hopeful or self._underway:
            token = self._underway[page] = object()
            request = self._waiting[page] = RoomRequest(size, False, lambda: self._room_granted(page, size, token))
            memory.wait(request)
            if not self._watching:
                self._watching = True
                self._spawn(self._watch())
        else:
            self._give_up(page, MemoryUnavailable(f"no room for chunk {page.id} ({size} bytes)"))

    def abandon(self, page: Page) -> None:
        """Nobody wants the contents any more (deleted, replaced): whatever comes is dropped."""
        self._underway.pop(page, None)
        self._troubles.pop(page, None)
        request = self._waiting.pop(page, None)
        if request is not None:
            self._memory.abandon(request)

    def stop(self) -> None:
        """The store is closed: no read begins any more, and nobody wants the answers of those under way."""
        self._underway.clear()
        self._troubles.clear()
        for request in self._waiting.values():
            self._memory.abandon(request)
        self._waiting.clear()
        for lane in self._lanes.values():
            lane.pending.clear()

    # -- one read -----------------------------------------------------------------------------------------------------

    def _controller(self, page: Page, record: Record) -> Controller:
        entry = self._registry[record.controller]
        if entry is None:
            raise Lost(f"its controller, number {record.controller}, is not in the store's list", id=page.id)
        if entry.removed:
            raise Lost(f"its controller {entry.name!r} was declared removed", id=page.id, controller=entry.name)
        controller = entry.controller
        if controller is None:
            why = f": {entry.error}" if entry.error else ""
            raise TemporarilyUnavailable(
                f"chunk {page.id} is on controller {entry.name!r}, which is not loaded{why}; register it",
                id=page.id,
                controller=entry.name,
            )
        if controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE:
            why = f": {controller.trouble}" if controller.trouble else ""
            raise TemporarilyUnavailable(
                f"chunk {page.id} is on controller {entry.name!r}, which is unavailable now{why}",
                id=page.id,
                controller=entry.name,
            )
        return controller

    async def _watch(self) -> None:
        """As long as pages wait for room: whether there is still hope, from a write or a read that is let go when it has come."""
        memory = self._memory
        try:
            while self._waiting:
                await asyncio.sleep(RECHECK_S)
                if memory.sweep():
                    memory.poke()
                for page, request in list(self._waiting.items()):
                    if request.size > memory.limit:
                        # The limit has fallen: it says so itself.
                        del self._waiting[page], self._underway[page]
                        memory.abandon(request)
                        self.begin(page)
                writing = memory.hopeful and not self._stalled()
                if writing or any(isinstance(read, Record) for read in self._underway.values()):
                    continue
                for page, request in list(self._waiting.items()):
                    if self._waiting.get(page) is request:
                        del self._waiting[page], self._underway[page]
                        memory.abandon(request)
                        if memory.reserve(request.size):
                            # It only stood behind somebody who waits for more.
                            memory.used -= request.size
                            self.begin(page)
                            continue
                        error = MemoryUnavailable(f"no room for chunk {page.id} ({request.size} bytes)")
                        self._give_up(page, error)
        finally:
            self._watching = False

    def _room_granted(self, page: Page, size: int, token: object) -> None:
        """Room has come: but the chunk may have been moved, replaced or deleted while it waited."""
        if self._underway.get(page) is not token:
            self._memory.give_back(size)
            return
        del self._underway[page], self._waiting[page]
        # Not `give_back`: the room is meant for this page, `begin` takes it again at once.
        self._memory.used -= size
        self.begin(page)

    def _read_now(self, page: Page, record: Record, controller: Controller, *, large_ahead: bool) -> None:
        self._underway[page] = record
        try:
            buffer = None if large_ahead else controller.read_nowait(page.id, record.locator)
        except Exception as error:
            self._failed(page, record, self._explain(page, self._registry[record.controller], error))
            return
        if buffer is not None:
            self._resolved(page, record, buffer)
            return
        lane = self._lanes.get(record.controller)
        if lane is None:
            lane = self._lanes[record.controller] = Lane(
                record.controller, self._registry, self._memory, spawn=self._spawn, answered=self._answered
            )
        lane.add(page, record)

    def _answered(self, page: Page, record: Record, answer: Buffer | Exception) -> None:
        if isinstance(answer, Buffer):
            self._resolved(page, record, answer)
        else:
            why = answer if isinstance(answer, Exception) else TypeError(f"it answered with {answer!r}")
            self._failed(page, record, self._explain(page, self._registry[record.controller], why))

    def _resolved(self, page: Page, record: Record, buffer: Buffer) -> None:
        size = record.locator.size
        if len(buffer) != size:
            error = CorruptData(f"chunk {page.id}: {len(buffer)} bytes came where {size} were stored", id=page.id)
            self._failed(page, record, error)
            return
        if self._underway.get(page) is not record:
            self._memory.give_back(size)
            return
        del self._underway[page]
        if isinstance(buffer, memoryview):
            # What it looks at may be larger than it, or somebody else's.
            buffer = bytes(buffer)
        self.bytes_read += size
        self.chunks_read += 1
        uses = self._uses
        uses.note(page.id, record.last_access)
        if len(uses.recent) >= FOLD:
            uses.fold()
        if self._troubles:
            for place, trouble in self._troubles.pop(page, ()):
                if isinstance(trouble, (CorruptData, Lost)):
                    self._on_bad(page.id, place)
        self._memory.insert(page, buffer)
        self._on_resolved(page)
        self._memory.settled(page)

    def _failed(self, page: Page, record: Record, error: DStorageError) -> None:
        self._memory.give_back(record.locator.size)
        if self._underway.get(page) is not record:
            return
        del self._underway[page]
        if isinstance(error, (CorruptData, Lost)):
            places = self._index.places(page.id)
            if _among(record, places) and self._refresh():
                places = self._index.places(page.id)
            if places and not _among(record, places):
                # It was moved or written anew meanwhile.
                self.begin(page)
                return
        self._elsewhere(page, record, error)

    def _elsewhere(self, page: Page, record: Record, error: DStorageError) -> None:
        """One place failed: go on with the chunk's next, or tell what went wrong. What may pass outweighs what cannot."""
        places = self._index.places(page.id)
        if len(places) > 1:
            troubles = self._troubles.setdefault(page, [])
            troubles.append((record, error))
            for place in self._fastest_first(places):
                if not _among(place, [tried for tried, _ in troubles]):
                    self._begin_at(page, place)
                    return
        errors = [error, *(other for _, other in self._troubles.get(page, ()))]
        passing = [other for other in errors if not isinstance(other, (CorruptData, Lost))]
        self._give_up(page, (passing or errors)[0])

    def _fastest_first(self, places: Sequence[Record]) -> list[Record]:
        """Places in the order in which to try them; those on controllers that are not loaded come last."""
        ranks = {entry.index: entry.rank for entry in self._registry.by_rank()}
        return sorted(places, key=lambda place: ranks.get(place.controller, -math.inf), reverse=True)

    def _give_up(self, page: Page, error: DStorageError) -> None:
        self._troubles.pop(page, None)
        self._on_failed(page, error)

    def _explain(self, page: Page, entry: Entry | None, error: Exception) -> DStorageError:
        """What the waiters are told when a controller answered with `error`."""
        name = entry.name if entry is not None else "?"
        if isinstance(error, (CorruptData, Lost, TemporarilyUnavailable)):
            error.id = error.id or page.id
            error.controller = error.controller or name
            return error
        explained = TemporarilyUnavailable(
            f"chunk {page.id} on controller {name!r}: {error}", id=page.id, controller=name
        )
        explained.__cause__ = error
        if not isinstance(error, ControllerUnavailable):
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"controller {name!r} broke its contract in read", "exception": error}
            )
        return explained


def _among(record: Record, places: Iterable[Record]) -> bool:
    return any(record[1:] == place[1:] for place in places)
