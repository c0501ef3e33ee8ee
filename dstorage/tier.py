"""What a program asks of one controller as a tier: who is let in, who has to leave, how fast it may be written to."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass

from dstorage.arguments import check_number
from dstorage.errors import InvalidArgumentError

MAX_COPIES = 8


@dataclass(frozen=True, slots=True)
class TierRule:
    """How one controller is used as a tier; see the argument `tiers` of `dstorage.open`.

    Attributes:
        admit_reads: A chunk that lives on a slower controller is copied up to this one only after it was paged in so many
            times. So what is read once is never written here. `math.inf`: nothing is copied up.
        min_age: Seconds that a chunk must have been left alone before it moves down from here to make room. `math.inf`: nothing moves
            down.
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
        InvalidArgumentError: A value is no number, or out of range.
    """

    admit_reads: float = 2
    min_age: float = 0.0
    high: float = 0.9
    low: float = 0.8
    capacity: int | None = None
    write_rate: int | None = None
    copy_to: tuple[str, ...] = ()
    copy_later: bool = False

    def __post_init__(self) -> None:
        check_number("admit_reads", self.admit_reads, lambda reads: reads >= 1, "at least 1")
        check_number("min_age", self.min_age, lambda age: age >= 0, "seconds, 0 or more")
        check_number("high", self.high, lambda high: 0 < high <= 1, "a share, 0 < high <= 1")
        check_number("low", self.low, lambda low: 0 < low <= self.high, f"a share, 0 < low <= high ({self.high})")
        for name, value, unit in (
            ("capacity", self.capacity, "byte"),
            ("write_rate", self.write_rate, "byte per second"),
        ):
            if value is not None:
                check_number(
                    name, value, lambda value: 1 <= value < math.inf, f"at least 1 {unit}, or None for no limit"
                )
        if (
            not isinstance(self.copy_to, tuple | list)
            or not all(isinstance(name, str) for name in self.copy_to)
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

    def __init__(self, rate: float) -> None:
        # A narrow number of numpy's would make the loop's clock one.
        self._rate = float(rate)
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
