"""Keys that nobody refers to any more, on their way out: in batches, and after an outage when the server is back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from dstorage_controllers.lan.link import Link
from dstorage_controllers.lan.trips import TRIP_COMMANDS, Trip, Trips

KEYS_AT_ONCE = 512
"""UNLINK frees memory in the background of the server, so that this many names take it about 0.2 ms."""
MAX_KEYS = 2**17
"""Remembered at most while the server is away, 16 MB; what is beyond is found by the sweep of the next open."""


class Unlinking:
    """The queue of one controller.

    Args:
        link: To the server.
        trips: How to get there.
    """

    def __init__(self, link: Link, trips: Trips) -> None:
        self._link = link
        self._trips = trips
        self._keys: deque[str] = deque()
        self._task: asyncio.Task[None] | None = None
        self._again = False
        """Asked to go on while it was finding out that the server did not take some: what it finds may be out of date."""

    def add(self, keys: Iterable[str]) -> None:
        """Have keys unlinked soon."""
        self._keys.extend(keys)
        while len(self._keys) > MAX_KEYS:
            self._keys.pop()
        self.resume()

    def resume(self) -> None:
        """Go on with what the server did not take; to be called when it is back."""
        self._again = True
        if self._keys and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def wait(self, timeout: float) -> None:
        """Return when the queue is empty or the server does not take it now, at the latest after `timeout` seconds."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)

    async def close(self) -> None:
        """Give up what is left."""
        self._keys.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _drain(self) -> None:
        try:
            while self._keys:
                self._again = False
                keys = [self._keys.popleft() for _ in range(min(KEYS_AT_ONCE, len(self._keys)))]
                if not await self._unlink(keys):
                    self._keys.extendleft(keys)
                    if not self._again:
                        break
        finally:
            self._task = None

    async def _unlink(self, keys: list[str]) -> bool:
        commands = [("UNLINK", *keys)] if self._link.many_keys else [("UNLINK", key) for key in keys]
        trips: list[Trip] = []
        for start in range(0, len(commands), TRIP_COMMANDS):
            trip = Trip()
            trip.commands += commands[start : start + TRIP_COMMANDS]
            trip.whose += [(0, 0)] * len(trip.commands)
            trips.append(trip)
        failed = False

        def take(request: int, piece: int, reply: object) -> None:
            nonlocal failed
            failed = failed or isinstance(reply, Exception)

        # Freeing is allowed, and all the more welcome, when the server takes nothing more.
        await self._trips.make(trips, take, write=False)
        return not failed
