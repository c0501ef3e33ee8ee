"""Objects that nobody refers to, on their way out: in batches behind commits, after an outage when the bucket is back, and
by a sweep after a crash.

The sweep lists the controller's folder and deletes what neither the last commit nor this session knows. It is only made when
the mark in the folder says that whoever wrote there last was this very store: a copy of a store that somebody else goes on
using must not delete the other's objects.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from dstorage_controllers.internet.bucket import DELETE_AT_ONCE, FAILURES, Bucket

MAX_KEYS = 2**20
"""Remembered at most; what is beyond is found by the sweep of a later open."""
RETRY_S = 2.0
"""What could not be deleted is tried again so much later; twice that the next time, and so on."""
LONGEST_RETRY_S = 60.0
GATHER_S = 0.05
"""A request for one costs as much as one for a thousand."""


class Cleaning:
    """The queue of one controller.

    Args:
        bucket: Where.
        usable: Whether it makes sense to ask now.
    """

    def __init__(self, bucket: Bucket, usable: Callable[[], bool]) -> None:
        self._bucket = bucket
        self._usable = usable
        self._keys: deque[str] = deque()
        self._task: asyncio.Task[None] | None = None
        self._sweep: asyncio.Task[None] | None = None
        self._later: set[asyncio.TimerHandle] = set()
        self._batch = DELETE_AT_ONCE
        self._closed = False
        self.swept = 0
        """Objects that crashes had left behind."""

    def add(self, keys: Iterable[str]) -> None:
        """Have objects deleted soon."""
        if self._closed:
            return
        self._keys.extend(keys)
        while len(self._keys) > MAX_KEYS:
            self._keys.pop()
        if self._keys and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    def add_later(self, keys: list[str], seconds: float) -> None:
        """Have objects deleted that may still be on their way in."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()

        def now() -> None:
            self._later.discard(handle)
            self.add(keys)

        handle = loop.call_later(seconds, now)
        self._later.add(handle)

    def sweep(self, folder: str, orphan: Callable[[str], bool]) -> None:
        """Begin to look through a folder, in the background, for what `orphan` is true of."""

        async def look() -> None:
            try:
                async for key in self._bucket.names(folder):
                    if orphan(key):
                        self.swept += 1
                        self.add([key])
            except FAILURES:
                # The next open looks again.
                return

        if self._sweep is None and not self._closed:
            self._sweep = asyncio.get_running_loop().create_task(look())

    async def wait(self, timeout: float) -> None:
        """Return when the queue is empty and the sweep is over, or after `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        if self._sweep is not None:
            await asyncio.wait({self._sweep}, timeout=timeout)
        # Only now: what the sweep has found is in the queue.
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Give up what is left."""
        self._closed = True
        self._keys.clear()
        for handle in self._later:
            handle.cancel()
        tasks = {task for task in (self._sweep, self._task) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _drain(self) -> None:
        pause = RETRY_S
        try:
            await asyncio.sleep(GATHER_S)
            while self._keys:
                if not self._usable():
                    await asyncio.sleep(RETRY_S)
                    continue
                keys = [self._keys.popleft() for _ in range(min(self._batch, len(self._keys)))]
                try:
                    await self._bucket.delete(keys)
                except FAILURES:
                    # To the end: one that is not to be deleted (a lock, a legal hold) is not to be in the way of the others.
                    self._keys.extend(keys)
                    # Servers that delete one after the other may need longer than the deadline for a thousand.
                    self._batch = max(1, self._batch // 4)
                    await asyncio.sleep(pause)
                    pause = min(LONGEST_RETRY_S, pause * 2)
                else:
                    self._batch = min(DELETE_AT_ONCE, self._batch * 2)
                    pause = RETRY_S
        finally:
            self._task = None
