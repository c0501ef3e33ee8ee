"""How many objects are on their way at a time: halved when one did not make it in time, one more for each round that did.

Side by side hides the delay of each; but on a line that is too thin for all of them together none would ever arrive before its
deadline. (Additive increase, multiplicative decrease, as TCP does.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pacing:
    """A semaphore whose bound follows what the line carries.

    Args:
        most: The bound to begin with, and never to exceed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._semaphore = asyncio.Semaphore(most)
        self._surplus = 0
        self._in_time = 0
        self._halved = float("-inf")
        self.limit = most
        """The bound now."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; a `TimeoutError` inside says that too many had one."""
        await self._semaphore.acquire()
        began = asyncio.get_running_loop().time()
        try:
            yield
        except TimeoutError:
            # Those that were under way together count once.
            if began > self._halved:
                self._halved = asyncio.get_running_loop().time()
                self._surplus += self.limit // 2
                self.limit -= self.limit // 2
                self._in_time = 0
            raise
        else:
            self._in_time += 1
            if self._in_time >= self.limit and self.limit < self._most:
                self.limit += 1
                self._in_time = 0
                self._give()
        finally:
            self._give()

    def _give(self) -> None:
        if self._surplus:
            self._surplus -= 1
        else:
            self._semaphore.release()
