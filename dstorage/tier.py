"""What a program asks of one controller as a tier: who is let in, who has to leave, how fast it may be written to."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from dstorage.errors import InvalidArgumentError

MAX_COPIES = 8


@dataclass(frozen=True, slots=True)
class TierRule:
    """How one controller is used as a tier; see the argument `tiers` of `dstorage.open`.

    Attributes:
        admit_reads: A chunk that lives on a slower controller is copied up to this one only after it was paged in so many
            times. So what is read once is never written here.
        min_age: Seconds that a chunk must have been left alone before it moves down from here to make room.
        high: Share of the capacity (0 to 1) above which the coldest chunks move down, and nothing moves up.
        low: Share down to which they do.
        capacity: Bytes that `high` and `low` are shares of; None: what the controller says it has. With less than that, the
            rest stays free for new chunks.
        copy_to: Names of controllers that keep what lives on this one a second time. Copies are read when this one fails or is away,
            and what it lost is written to it anew from them.
        copy_later: False: a commit is there when its copies are (and fails while they cannot be made). True: copies are
            made after the commit, in the background; what was not copied yet is lost with this controller.
        write_rate: Bytes per second written to it at most, on average, whatever for: write-backs, commits, moves. It spares a
            drive's endurance or a line that others use; a program that writes more is slowed, once `dirty_share`
            of the budget waits. None: no limit.

    Raises:
        InvalidArgumentError: A value is out of range.
    """

    admit_reads: int = 2
    min_age: float = 0.0
    high: float = 0.9
    low: float = 0.8
    capacity: int | None = None
    write_rate: int | None = None
    copy_to: tuple[str, ...] = ()
    copy_later: bool = False

    def __post_init__(self) -> None:
        if self.admit_reads < 1:
            raise InvalidArgumentError(f"admit_reads={self.admit_reads}: give at least 1")
        if not self.min_age >= 0:
            raise InvalidArgumentError(f"min_age={self.min_age}: give seconds, 0 or more")
        if not 0 < self.low <= self.high <= 1:
            raise InvalidArgumentError(f"low={self.low}, high={self.high}: give shares, 0 < low <= high <= 1")
        if self.capacity is not None and self.capacity < 1:
            raise InvalidArgumentError(f"capacity={self.capacity}: give at least 1 byte, or None")
        if self.write_rate is not None and self.write_rate < 1:
            raise InvalidArgumentError(f"write_rate={self.write_rate}: give at least 1 byte per second, or None")
        if (
            isinstance(self.copy_to, str)
            or len(set(self.copy_to)) != len(self.copy_to)
            or len(self.copy_to) > MAX_COPIES
        ):
            raise InvalidArgumentError(f"copy_to={self.copy_to!r}: give a tuple of up to {MAX_COPIES} different names")


class Throttle:
    """Lets through so many bytes per second.

    Each piece waits until the pieces before it are paid for, so any stretch of time sees at most its share and one piece more.

    Args:
        rate: Bytes per second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._paid_at = 0.0
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    async def take(self, size: int) -> None:
        """Return when `size` bytes may go; whoever came first goes first. Who is cancelled before that pays nothing."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (debt := self._paid_at - loop.time()) > 0:
                self._given_back.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(debt):
                        await self._given_back.wait()
            self._paid_at = max(loop.time(), self._paid_at) + size / self._rate

    def give_back(self, size: int) -> None:
        """Of what was taken, `size` bytes did not go after all."""
        self._paid_at -= size / self._rate
        self._given_back.set()
