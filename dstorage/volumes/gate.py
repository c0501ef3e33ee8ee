"""Who may pass at the same time: any number of reads and writes, or one change of the pool as a whole.

Commits and snapshots need a moment in which nothing is half done. Whoever waits for that moment goes before those who come
later, so neither side can starve the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType


class Gate:
    """``async with gate:`` to pass with others, ``async with gate.alone:`` to pass alone. Not reentrant. One loop."""

    def __init__(self) -> None:
        self.alone = _Alone(self)
        self._inside = 0
        self._exclusive = False
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    async def __aenter__(self) -> None:
        # The way of almost all calls: nobody changes the whole, nothing suspends.
        if not self._exclusive and not self._waiting:
            self._inside += 1
            return
        await self._wait(alone=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._inside -= 1
        self._let_in()

    async def _wait(self, *, alone: bool) -> None:
        future = asyncio.get_running_loop().create_future()
        entry = (future, alone)
        self._waiting.append(entry)
        self._let_in()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # Let in and cancelled at once: leave again.
                self._leave(alone=alone)
            else:
                self._waiting.remove(entry)
                self._let_in()
            raise

    def _leave(self, *, alone: bool) -> None:
        if alone:
            self._exclusive = False
        else:
            self._inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and not self._exclusive:
            future, alone = self._waiting[0]
            if future.cancelled():
                # Its owner removes it when it runs.
                return
            if alone and self._inside:
                return
            self._waiting.popleft()
            if alone:
                self._exclusive = True
            else:
                self._inside += 1
            future.set_result(None)


class _Alone:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        gate = self._gate
        if not gate._exclusive and not gate._inside and not gate._waiting:
            gate._exclusive = True
            return
        await gate._wait(alone=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._gate._leave(alone=True)
