"""Small values of threads, on their way to the store's loop.

To have another thread do something and wait for it costs two wakings, which take longer than to keep a small
value. So a thread leaves such a value here, where every thread finds it, and goes on; the loop takes over all that came meanwhile together.
To those who look, a value is first here, then in both, then in the cache alone. What is asked of the loop afterwards finds it there:
it is taken over in the loop's queue of calls, in its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dstorage.blocking.loop import Call, LoopThread
from dstorage.cache.core import Core
from dstorage.cache.keys import Key
from dstorage.cache.records import Entry
from dstorage.cache.values import Encoded
from dstorage.errors import DStorageError

T = TypeVar("T")

SMALL_BYTES = 16 * 2**10
"""The largest value that is left here: with more, copying and writing take longer than the wakings."""
MOST = 64
"""Values that wait here at most (one more for each thread): a mebibyte, beside the budget."""


class WriteBehind:
    """The values of one cache that threads have set and the loop has not taken over yet, and the way to its loop behind them.

    Args:
        core: The cache.
        loop: Its store's.

    Attributes:
        waiting: Key -> what was set and is not in the cache yet; for `get`, which need not be called where it is empty.
    """

    def __init__(self, core: Core, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
        self._lock = threading.Lock()
        """Held while an entry comes or goes, with `_asked`; who looks needs none."""
        self.waiting: dict[Key, tuple[Entry, Encoded]] = {}
        self._asked = False
        """The loop was asked to take over, and has not begun: it will find what comes now."""
        self._held_up = False
        """Something needs room that has to be waited for: until then what is asked for has to wait, too."""
        self._settled: list[Callable[[], object]] = []
        """To be called when that is over."""

    # -- values (from any thread) ---------------------------------------------------------------------------------------

    def put(self, entry: Entry, encoded: Encoded) -> bool:
        """Leave a value here that passed all checks; False if the loop has to be waited for."""
        if encoded.size > SMALL_BYTES or len(self.waiting) >= MOST or not self._core.chunks.ample(MOST * SMALL_BYTES):
            return False
        self._loop.check_caller()
        with self._lock:
            if not self._asked:
                # Before anybody sees the value, and asks the loop for something that is to find it.
                self._loop.begin(self._take_over)
                self._asked = True
            self.waiting[entry.key] = entry, encoded
        return True

    def get(self, key: Key) -> tuple[Entry, bytes | bytearray] | None:
        """What was set for `key` and is not in the cache yet."""
        found = self.waiting.get(key)
        if found is None:
            return None
        entry, encoded = found
        self._core.check_open()
        if entry.expires <= self._core.clock():
            # There may be an older value in the cache, which it is to take the place of first.
            self.settle()
            return None
        payload = encoded.payload
        return entry, payload if isinstance(payload, bytes) else bytes(memoryview(payload))

    def settle(self) -> None:
        """Return when everything set before is in the cache."""
        if self.waiting:
            self.call_sync(lambda: None)

    # -- the loop, behind them ------------------------------------------------------------------------------------------

    def call(self, begin: Callable[[Call[T]], object]) -> T:
        """`LoopThread.call`."""

        def turn(call: Call[T]) -> None:
            if self._held_up:
                self._settled.append(lambda: call.begin_with(begin))
            else:
                begin(call)

        return self._loop.call(turn)

    def call_sync(self, function: Callable[..., T], *args: Any) -> T:
        """`LoopThread.call_sync`."""

        def begin(call: Call[T]) -> None:
            call.done(function(*args))

        return self.call(begin)

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """`LoopThread.run`."""

        async def turn() -> T:
            if self._held_up:
                settled = asyncio.Event()
                self._settled.append(settled.set)
                await settled.wait()
            return await work(*args)

        return self._loop.run(turn)

    # -- on the loop ----------------------------------------------------------------------------------------------------

    def _take_over(self, _: object) -> None:
        if self._held_up:
            return
        with self._lock:
            # What comes from now on asks again, for it has to be taken over before whatever its thread asks for next.
            self._asked = False
            waiting = list(self.waiting.values())
        for entry, encoded in waiting:
            try:
                done = self._core.keep_now(entry, encoded)
            except Exception as error:
                self._fail(entry, error)
            else:
                if not done:
                    self._held_up = True
                    self._loop.spawn(self._wait_for_room(entry, encoded))
                    return
            self._gone(entry)

    async def _wait_for_room(self, entry: Entry, encoded: Encoded) -> None:
        try:
            await self._core.keep(entry, encoded)
        except Exception as error:
            self._fail(entry, error)
        finally:
            self._gone(entry)
            self._held_up = False
            self._take_over(None)
            if not self._held_up:
                settled, self._settled = self._settled, []
                for go_on in settled:
                    go_on()

    def _gone(self, entry: Entry) -> None:
        with self._lock:
            found = self.waiting.get(entry.key)
            # There may be a newer one.
            if found is not None and found[0] is entry:
                del self.waiting[entry.key]

    def _fail(self, entry: Entry, error: Exception) -> None:
        """Whoever set it does not wait any more: as if it had been culled at once, and told in the statistics."""
        core = self._core
        core.unkept += 1
        with contextlib.suppress(DStorageError):
            former = core.live.get(entry.key)
            if former is not None:
                core.erase(former)
        if not isinstance(error, DStorageError):
            self._loop.loop.call_exception_handler({"message": f"setting {entry.key!r}", "exception": error})
