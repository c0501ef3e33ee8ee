"""A clock that moves only when told to, so that tests of time-outs and delays neither wait nor race."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """Seconds that pass by `advance` alone.

    Use the instance itself where a `time.monotonic`-like callable is wanted, and `sleep` for `asyncio.sleep`. Belongs to
    the loop it is used on.

    Example:
        >>> clock = FakeClock(100.0)
        >>> clock.advance(2.5)
        >>> clock()
        102.5
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        """The time now, in seconds."""
        return self._now

    @property
    def sleeping(self) -> int:
        """How many tasks wait in `sleep`."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was advanced by `seconds`; at once (after one turn of the loop) for 0 or less."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake who has slept enough, in the order of their times.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)
