"""Write-back: dirty contents on their way to controllers.

One write per id at a time, however many want it (eviction, flush, commit): a second wish for the same contents joins the
first, one for newer contents queues behind it. Writes are gathered into batches per controller; the fastest controller
with room takes them, and when it says full the next in rank does. What cannot be written anywhere stays dirty in memory.

Three sources feed the queue: *commits and flushes* (`submit`), the *laundry* (pages chosen to leave), and the *background*:
the longest dirty pages, once more than half of the dirty limit is in use.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from dstorage.answers import write_to
from dstorage.controller import Controller, ControllerStatus, WriteRequest
from dstorage.errors import ControllerFull, ControllerUnavailable, DStorageError, StoreFull, TemporarilyUnavailable
from dstorage.index import Index
from dstorage.paging.memory import Memory
from dstorage.paging.page import LAUNDRY, Page
from dstorage.record import Locator, Record
from dstorage.registry import Entry, Registry
from dstorage.tier import Throttle

BATCH_BYTES = 8 * 2**20
"""With 4 MiB, an array's write-behind had a disk idle for a tenth of the time between two batches."""
BATCH_CHUNKS = 256
BATCHES_IN_FLIGHT = 4
BACKGROUND_SHARE = 0.5
"""Of the dirty limit: above it the background writer works."""
BACKGROUND_STEP = 0.125
"""Of the dirty limit: so much more has to be dirty before it begins, and less is left to become more: what a batch costs, however few
chunks it has, is mostly the threads' waiting for each other.
"""
RETRY_S = 0.25
"""Pause after a write that no controller took."""

SUBMITS_PER_TURN = 2048
"""How many writes of a commit are queued before other callbacks of the loop get their turn."""

Done = Callable[[Exception | None], None]

_DROPPED = bytearray()
"""The contents of a write that is not wanted any more; they are nobody's."""


class Write:
    """One write of one chunk.

    Attributes:
        page: The chunk.
        buffer: The contents to write; they never change (but see `WriteBack.drop`).
        done: To be called once with None or what went wrong.
        refused: Indices of the controllers that would not take it, whether that is for lack of room, and what they said.
    """

    __slots__ = ("buffer", "done", "page", "refused")

    def __init__(self, page: Page, buffer: bytes | bytearray, done: Done | None) -> None:
        self.page = page
        self.buffer = buffer
        self.done: list[Done] = [] if done is None else [done]
        self.refused: dict[int, tuple[bool, str]] = {}


class WriteBack:
    """The writer of one store.

    Args:
        memory: Where dirty pages are.
        index: Learns the new places.
        registry: Who can take a chunk.
        spawn: Starts a task that the store owns.
        discard: Frees a place that nothing refers to.
        on_written: Called with (page, controller's name) after each write that counts.
    """

    def __init__(
        self,
        memory: Memory,
        index: Index,
        registry: Registry,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        discard: Callable[[int, Record], None],
        on_written: Callable[[Page, str], None],
    ) -> None:
        self._memory = memory
        self._index = index
        self._registry = registry
        self._spawn = spawn
        self._discard = discard
        self._on_written = on_written
        self.scratch: set[int] = set()
        """Ids created with durable=False."""
        self.pinned: dict[int, int] = {}
        """id -> index of the controller the program asked for."""
        self.cut: dict[Page, bytes | bytearray] = {}
        """What the commit under way still has to write: page -> its contents at the cut."""
        self._writing: dict[int, Write] = {}
        self._behind: dict[int, list[Write]] = {}
        self._queue: deque[Write] = deque()
        self._in_flight = 0
        self._scheduled = False
        self._stopped = False
        self._paused: asyncio.TimerHandle | None = None
        self.obstacle: str | None = None
        """Why nobody takes what is dirty, as of the last try; None while somebody does."""
        self.bytes_written = 0
        self.chunks_written = 0

    # -- wishes -------------------------------------------------------------------------------------------------------

    def submit(self, page: Page, buffer: bytes | bytearray, done: Done | None = None) -> None:
        """Have `buffer`, contents of `page`, written; `done` is called when it is (or could not be)."""
        running = self._writing.get(page.id)
        if running is None:
            write = Write(page, buffer, done)
            self._writing[page.id] = write
            self._queue.append(write)
            self.wake()
            return
        queue = self._behind.setdefault(page.id, [])
        for write in (running, *queue):
            if write.buffer is buffer:
                # A refusal from before somebody asked anew is no answer to that.
                write.refused.clear()
                if done is not None:
                    write.done.append(done)
                return
        # Newer contents overtake what waits behind and is needed by no commit.
        cut = self.cut.get(page)
        newest = Write(page, buffer, done)
        for write in queue:
            if write.buffer is not cut:
                newest.done += write.done
        queue[:] = [write for write in queue if write.buffer is cut]
        queue.append(newest)

    def drop(self, page: Page) -> None:
        """The contents of `page` are about to be replaced or deleted: hold them no longer for a write, but for a commit's."""
        if page.id in self._writing and self.cut.get(page) is not page.buffer:
            for write in (self._writing[page.id], *self._behind.get(page.id, ())):
                if write.buffer is page.buffer:
                    write.buffer = _DROPPED

    def begin_cut(self) -> None:
        """Take the present contents of every dirty durable page into the commit now beginning."""
        scratch = self.scratch
        self.cut = {
            page: page.buffer for page in self._memory.dirty if page.id not in scratch and page.buffer is not None
        }

    async def write_cut(self) -> None:
        """Return when all of the cut is written.

        Raises:
            StoreFull, TemporarilyUnavailable: Something could not be written; the rest may or may not be.
        """
        failures: list[Exception] = []
        finished = asyncio.get_running_loop().create_future()
        left = len(self.cut)

        def done(error: Exception | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                failures.append(error)
            if left == 0 and not finished.done():
                finished.set_result(None)

        for number, (page, buffer) in enumerate(list(self.cut.items()), 1):
            if page in self.cut:
                self.submit(page, buffer, done)
            else:
                # Eviction has written it since the cut.
                done(None)
            if number % SUBMITS_PER_TURN == 0:
                await asyncio.sleep(0)
        if left:
            await finished
        if failures:
            raise failures[0]

    def dirtied(self) -> None:
        """There is more that is dirty: work if it is enough."""
        memory = self._memory
        if memory.dirty_bytes > memory.dirty_limit * (BACKGROUND_SHARE + BACKGROUND_STEP):
            self.wake()

    def wake(self) -> None:
        """Look for work at the end of this loop iteration, so that one batch gathers what it asked for."""
        if not self._scheduled and self._paused is None and not self._stopped:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def resume(self) -> None:
        """A controller has come back or got room: try again at once."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        self.wake()

    def stop(self) -> None:
        """No new batches; those in flight are the store's tasks."""
        if self._paused is not None:
            self._paused.cancel()
        self._paused = None
        self._stopped = True

    @property
    def busy(self) -> bool:
        """Whether anything is queued or in flight."""
        return bool(self._writing)

    @property
    def stalled(self) -> bool:
        """Whether the last writes found no controller to take them."""
        return self._paused is not None

    # -- work ---------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self._paused is None and not self._stopped:
            if self._in_flight < BATCHES_IN_FLIGHT:
                for page in self._memory.laundry:
                    self._submit_present(page)
                self._feed_background()
            while self._queue and self._in_flight < BATCHES_IN_FLIGHT and self._start_batch():
                pass
        # Only now: what was submitted above needs no pump of its own.
        self._scheduled = False

    def _feed_background(self) -> None:
        memory = self._memory
        if memory.wanted:
            # Somebody who waits may need more than the other half, and has hope as long as anything is dirty: what is empty has to be
            # written, too, so that it ends.
            excess: float = min(memory.dirty_bytes, BATCH_BYTES)
        else:
            excess = memory.dirty_bytes - memory.dirty_limit * BACKGROUND_SHARE
            if excess < min(memory.dirty_limit * BACKGROUND_STEP, BATCH_BYTES):
                return
            excess = min(excess, BATCH_BYTES)
        for page in memory.dirty:
            self._submit_present(page)
            excess -= page.size
            if excess <= 0:
                return

    def _submit_present(self, page: Page) -> None:
        if page.id not in self._writing and page.buffer is not None:
            self.submit(page, page.buffer)

    def _start_batch(self) -> bool:
        queue = self._queue
        batch: list[Write] = []
        total = 0
        target: Entry | None = None
        for _ in range(len(queue)):
            write = queue.popleft()
            if not self._refresh(write):
                self._end(write, None)
                continue
            entry = self._choose(write)
            if entry is None:
                self._give_up(write)
            elif target is None or entry is target:
                target = entry
                batch.append(write)
                total += len(write.buffer)
                if total >= BATCH_BYTES or len(batch) >= BATCH_CHUNKS:
                    break
            else:
                queue.append(write)
        if target is None:
            # What was overtaken may have let newer contents in.
            return bool(queue) and self._paused is None
        self._in_flight += 1
        self._spawn(self._write(target, batch))
        return True

    def _choose(self, write: Write) -> Entry | None:
        """The controller to take it: the one asked for, else the fastest with room."""
        id = write.page.id
        scratch = id in self.scratch
        pinned = self.pinned.get(id)
        for entry in self._registry.by_rank():
            controller = entry.controller
            if (
                controller is None
                or entry.index in write.refused
                or entry.draining
                or (controller.volatile and not scratch)
                or (pinned is not None and entry.index != pinned)
                or controller.status is not ControllerStatus.OK
            ):
                continue
            return entry
        return None

    async def _write(self, entry: Entry, batch: list[Write]) -> None:
        controller = entry.controller
        assert controller is not None
        answers: list[Locator | Exception]
        # Known here, for those of what is dropped are not known afterwards.
        sizes = [len(write.buffer) for write in batch]
        try:
            if entry.throttle is not None:
                batch = await self._wait_for_turn(controller, entry.throttle, batch)
                sizes = [len(write.buffer) for write in batch]
            answers = []
            if batch:
                # Nothing here is to know the contents afterwards.
                answers = await write_to(controller, [WriteRequest(write.page.id, write.buffer) for write in batch])
        except Exception as error:
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for write in batch:
                self._end(write, TemporarilyUnavailable("the store is closing", id=write.page.id))
            raise
        finally:
            self._in_flight -= 1
        for write, size, answer in zip(batch, sizes, answers, strict=True):
            if isinstance(answer, Locator):
                self._written(write, entry, answer)
            else:
                if entry.throttle is not None:
                    entry.throttle.give_back(size)
                # Not the error itself: its traceback would hold the contents.
                write.refused[entry.index] = isinstance(answer, ControllerFull), str(answer)
                if not isinstance(answer, (ControllerFull, ControllerUnavailable)):
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": f"controller {entry.name!r} broke its contract in write", "exception": answer}
                    )
                self._queue.append(write)
        self._memory.poke()
        self.wake()

    async def _wait_for_turn(self, controller: Controller, throttle: Throttle, batch: list[Write]) -> list[Write]:
        """Return when `batch` may be written, with what of it is still wanted then."""
        size = sum(len(write.buffer) for write in batch)
        # Who waits here keeps no other controller from being written to.
        self._in_flight -= 1
        try:
            await throttle.take(size)
        finally:
            self._in_flight += 1
        wanted = []
        for write in batch:
            if not self._refresh(write):
                self._end(write, None)
            elif controller.volatile and write.page.id not in self.scratch:
                # No scratch any more: another has to take it.
                self._queue.append(write)
            else:
                wanted.append(write)
        throttle.give_back(size - sum(len(write.buffer) for write in wanted))
        return wanted

    def _refresh(self, write: Write) -> bool:
        """Have a write whose turn has come write what is wanted of its chunk now; False if nothing is.

        In its own place: contents that change all the time would else never come to their turn.
        """
        page = write.page
        while not (write.buffer is page.buffer or write.buffer is self.cut.get(page)):
            behind = self._behind.get(page.id)
            if behind:
                following = behind.pop(0)
                write.buffer = following.buffer
                if write.done and write.buffer is self.cut.get(page) and page.dirty and page.buffer is not write.buffer:
                    # The commit's are older than what those wait for who wanted these written.
                    if not behind and page.buffer is not None:
                        behind.append(Write(page, page.buffer, None))
                    behind[-1].done += write.done
                    write.done = following.done
                else:
                    write.done += following.done
            elif write.done and page.dirty and page.buffer is not None:
                write.buffer = page.buffer
            else:
                return False
            # Of a refusal of others it says nothing.
            write.refused.clear()
        return True

    def _written(self, write: Write, entry: Entry, locator: Locator) -> None:
        page = write.page
        controller = entry.controller
        self.obstacle = None
        self.bytes_written += locator.size
        self.chunks_written += 1
        record = Record(time.time_ns(), entry.index, locator)
        if controller is not None and controller.volatile and page.id not in self.scratch:
            # No scratch any more, or deleted: another has to keep it, if anybody.
            self._discard(page.id, record)
            self._queue.append(write)
            return
        current = page.buffer is write.buffer
        if self.cut.get(page) is write.buffer:
            del self.cut[page]
            self._index.put_frozen(page.id, record, newest=current)
        elif current:
            self._index.put(page.id, record, volatile=controller is not None and controller.volatile)
        else:
            # Overtaken by newer contents, or deleted.
            self._discard(page.id, record)
            self._end(write, None)
            return
        if current and page.dirty:
            # Let go of it first: if it leaves memory now, nobody is to be found looking at it.
            write.buffer = b""
            self._memory.clean(page)
        self._on_written(page, entry.name)
        self._end(write, None)

    def _give_up(self, write: Write) -> None:
        """No controller takes it now: it stays dirty, and everybody who waits for it is told."""
        page = write.page
        loaded = [e for e in self._registry.by_rank() if e.controller is not None and not e.controller.volatile]
        refused = {e.index: write.refused.get(e.index, (False, e.status.value)) for e in loaded}
        # One that says it is full may have room, but not so much.
        full = [e.name for e in loaded if e.status is ControllerStatus.FULL or refused[e.index][0]]
        error: DStorageError
        if full and len(full) == len(loaded):
            error = StoreFull(
                f"no room to write chunk {page.id} ({len(write.buffer)} bytes): controllers {', '.join(full)} are full; "
                "add one, raise a capacity, or delete chunks that no commit has yet (others give their room back with a commit only)"
            )
        else:
            told = [f"{e.name}: {refused[e.index][1]}" for e in loaded]
            error = TemporarilyUnavailable(
                f"no controller takes chunk {page.id} now ({', '.join(told) or 'none is loaded'})", id=page.id
            )
        if page.place == LAUNDRY:
            self._memory.unwashable(page)
        self.obstacle = str(error)
        if self._paused is None:
            self._paused = asyncio.get_running_loop().call_later(RETRY_S, self._retry)
        self._end(write, error)

    def _retry(self) -> None:
        self._paused = None
        self._memory.poke()
        self.wake()

    def _end(self, write: Write, error: Exception | None) -> None:
        id = write.page.id
        queue = self._behind.get(id)
        if queue:
            following = queue.pop(0)
            self._writing[id] = following
            self._queue.append(following)
            self.wake()
        else:
            self._behind.pop(id, None)
            del self._writing[id]
        for done in write.done:
            done(error)
