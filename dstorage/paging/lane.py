"""The reads of one controller that it could not answer at once.

They are gathered until the end of the loop iteration. Small ones are then asked for again for a moment: a read that was refused has made the
kernel begin to fetch the bytes, and a fast device has them before a task and a thread would have begun to wait for them. Where it has
not, that is left out, for longer each time. What is left goes out in batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from dstorage.controller import Buffer, Controller, ReadRequest
from dstorage.errors import ControllerUnavailable, TemporarilyUnavailable
from dstorage.paging.memory import Memory
from dstorage.paging.page import Page
from dstorage.record import Record
from dstorage.registry import Registry

BATCH_BYTES = 8 * 2**20
BATCH_CHUNKS = 64
BATCHES_IN_FLIGHT = 16
"""What comes after that waits its turn."""
POLLED_CHUNK_BYTES = 2**17
"""What is larger is not waited for on the loop: its copying would cost as much there as a thread's help."""
POLL_S = 150e-6
"""So long the one that is to come next may be missing while the loop asks for it again and again."""
POLLED_BYTES = 2**20
POLLED_MISSES = 3
"""In one step of that so much is read at most, and so many reads are asked for in vain: they come nearly in order."""
MOST_LEFT_OUT = 256
"""Times, after which polling is tried again."""

Read = tuple[Page, Record]


class Lane:
    """See the module's docstring.

    Args:
        index: The controller's.
        registry: Knows the controller, while it is loaded.
        memory: Is poked when reads have ended.
        spawn: Starts a task that the store owns.
        answered: Called with each page, the place that was read, and its contents or what went wrong.

    Attributes:
        pending: Those gathered.
    """

    __slots__ = (
        "_answered",
        "_in_flight",
        "_in_vain",
        "_index",
        "_large",
        "_left_out",
        "_memory",
        "_polled",
        "_registry",
        "_scheduled",
        "_spawn",
        "pending",
    )

    def __init__(
        self,
        index: int,
        registry: Registry,
        memory: Memory,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        answered: Callable[[Page, Record, Buffer | Exception], None],
    ) -> None:
        self._index = index
        self._registry = registry
        self._memory = memory
        self._spawn = spawn
        self._answered = answered
        self.pending: list[Read] = []
        self._large = False
        """One of these is too large to be polled."""
        self._scheduled = False
        self._in_flight = 0
        """Batches."""
        self._polled = 0.0
        """Since when the first of those gathered is the first that is asked for again; 0 while there is none."""
        self._in_vain = 0
        """How many times polling is left out after it was in vain; doubled each time."""
        self._left_out = 0
        """How many of these are still to come."""

    def add(self, page: Page, record: Record) -> None:
        """Read `page` from where `record` says."""
        self.pending.append((page, record))
        if record.locator.size > POLLED_CHUNK_BYTES:
            self._large = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._in_flight or self._large or not self._poll():
            self._large = False
            self._polled = 0.0
            while self.pending and self._in_flight < BATCHES_IN_FLIGHT:
                self._send_batch()
        self._memory.poke()

    def _send_batch(self) -> None:
        count, total = 0, 0
        for _, record in self.pending[:BATCH_CHUNKS]:
            count += 1
            total += record.locator.size
            if total >= BATCH_BYTES:
                break
        batch, self.pending = self.pending[:count], self.pending[count:]
        self._in_flight += 1
        self._spawn(self._read(batch))

    # -- polling ------------------------------------------------------------------------------------------------------

    def _poll(self) -> bool:
        """Ask once more for what is gathered; False if it is to go out in batches."""
        if self._left_out:
            self._left_out -= 1
            return False
        entry = self._registry[self._index]
        controller = entry.controller if entry is not None else None
        if controller is None or type(controller).read_nowait is Controller.read_nowait:
            return False
        gathered, self.pending = self.pending, []
        missed = self._ask_again(controller, gathered)
        self.pending = missed + self.pending
        now = time.perf_counter()
        if not (self._polled and missed and missed[0] is gathered[0]):
            # Not each time something comes: then one that does not would wait for as long as others go on reading.
            self._polled = now
        if len(missed) < len(gathered):
            self._in_vain = 0
        if not self.pending:
            self._polled = 0.0
            return True
        if now - self._polled < POLL_S:
            self._schedule()
            return True
        self._in_vain = self._left_out = min(2 * self._in_vain + 1, MOST_LEFT_OUT)
        return False

    def _ask_again(self, controller: Controller, reads: list[Read]) -> list[Read]:
        """Ask for reads in order; returns those that have not come, or were not asked for after some that had not."""
        left = POLLED_BYTES
        missed: list[Read] = []
        for number, read in enumerate(reads):
            page, record = read
            left -= record.locator.size
            if left < 0 or len(missed) == POLLED_MISSES:
                return missed + reads[number:]
            try:
                answer: Buffer | Exception | None = controller.read_nowait(page.id, record.locator)
            except Exception as error:
                answer = error
            if answer is None:
                missed.append(read)
            else:
                self._answered(page, record, answer)
        return missed

    # -- batches ------------------------------------------------------------------------------------------------------

    async def _read(self, batch: list[Read]) -> None:
        entry = self._registry[self._index]
        answers: list[Buffer | Exception]
        try:
            if entry is None or entry.controller is None:
                raise ControllerUnavailable("it was unloaded")
            answers = await entry.controller.read([ReadRequest(page.id, record.locator) for page, record in batch])
            if len(answers) != len(batch):
                raise ControllerUnavailable(f"it gave {len(answers)} answers to {len(batch)} reads")
        except Exception as error:
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for page, record in batch:
                self._answered(page, record, TemporarilyUnavailable("the store is closing", id=page.id))
            raise
        finally:
            self._in_flight -= 1
            if self.pending:
                self._send()
        for (page, record), answer in zip(batch, answers, strict=True):
            self._answered(page, record, answer)
        self._memory.poke()
