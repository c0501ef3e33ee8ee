"""Commands gathered into trips to the server: few large ones or many small ones each, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from dstorage_controllers.health import Health
from dstorage_controllers.lan.link import FAILURES, Command, Link, Reply

TRIP_BYTES = 256 * 2**10
TRIP_COMMANDS = 64
"""A trip carries at most so much, but at least one command."""

Take = Callable[[int, int, Reply], None]
"""Called with a request's number, the number of its piece, and the reply or an exception for it."""


class Trip:
    """Commands that go together.

    Attributes:
        commands: They.
        whose: For each, the number of the request in its batch and of the piece in its chunk.
        size: Bytes they carry there or back.
    """

    __slots__ = ("commands", "size", "whose")

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.whose: list[tuple[int, int]] = []
        self.size = 0


class Trips:
    """Makes the trips of one controller.

    Args:
        link: Where to.
        health: Asked before each trip, told of each failure.
        at_once: Most trips at a time.
    """

    def __init__(self, link: Link, health: Health, at_once: int) -> None:
        self._link = link
        self._health = health
        self._at_once = at_once
        self._slots = asyncio.Semaphore(at_once)

    async def make(self, trips: Sequence[Trip], take: Take, *, write: bool) -> None:
        """Make trips side by side; `take` gets each reply, or the error the store is to be told instead."""
        if len(trips) == 1:
            await self._make(trips[0], take, write)
            return
        left = deque(trips)

        async def work() -> None:
            while left:
                await self._make(left.popleft(), take, write)

        await asyncio.gather(*(work() for _ in range(min(len(trips), self._at_once))))

    async def _make(self, trip: Trip, take: Take, write: bool) -> None:
        async with self._slots:
            # Asked only now: while this trip waited for its turn another may have found that the server is away.
            error: Exception | None = self._health.refuse(write=write)
            if error is None:
                try:
                    replies = await self._link.run(trip.commands)
                except FAILURES as failure:
                    error = self._health.failed(failure)
        for number, (request, piece) in enumerate(trip.whose):
            reply = replies[number] if error is None else error
            if error is None and isinstance(reply, FAILURES):
                reply = self._health.failed(reply)
            take(request, piece, reply)


def add(trips: list[Trip], command: Command, request: int, piece: int, size: int) -> None:
    """Put a command that carries `size` bytes into the last trip if there is room, else into a new one."""
    if not trips or trips[-1].size + size > TRIP_BYTES or len(trips[-1].commands) >= TRIP_COMMANDS:
        trips.append(Trip())
    trip = trips[-1]
    trip.commands.append(command)
    trip.whose.append((request, piece))
    trip.size += size
