"""When a read deserves a second request: after the time within which 95 of 100 like it were answered, and twice the usual one.

Object stores answer most requests soon and a few very late, and the few are not late twice. (J. Dean, L. A. Barroso, "The Tail
at Scale", CACM 2013.) Second requests are bounded to a share of all, so that a store that is slow as a whole is not asked twice
as much on top of it.
"""

from __future__ import annotations

from collections import deque

SAMPLES = 128
"""Of each class of lengths, the latest."""
ENOUGH = 32
"""Fewer say nothing about the slowest twentieth."""
QUANTILE = 0.95
STRAGGLER = 2.0
"""Times the median. Where all take about as long, on a line or a server that is busy, the slowest twentieth has no bad luck."""
SHARE = 0.05
"""Second requests per read, in the long run."""
BURST = 4.0
SHORTEST_S = 0.002


class Hedging:
    """Measured delays, and how many second requests may still be sent.

    Args:
        patience: Seconds to wait as long as little was measured.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._samples: dict[int, deque[float]] = {}
        self._delays: dict[int, float] = {}
        self._tokens = BURST

    def delay(self, length: int) -> float:
        """Seconds to wait for `length` bytes before asking a second time."""
        return self._delays.get(_class(length), self._patience)

    def measured(self, length: int, seconds: float) -> None:
        """A read of `length` bytes was answered after so long."""
        self._tokens = min(BURST, self._tokens + SHARE)
        samples = self._samples.setdefault(_class(length), deque(maxlen=SAMPLES))
        samples.append(seconds)
        if len(samples) >= ENOUGH:
            ordered = sorted(samples)
            usual, late = ordered[len(ordered) // 2], ordered[int(QUANTILE * len(ordered))]
            self._delays[_class(length)] = max(SHORTEST_S, STRAGGLER * usual, late)

    def take(self) -> bool:
        """Whether a second request may be sent; if so, it counts as sent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _class(length: int) -> int:
    # Lengths within a factor of four take about as long as each other.
    return length.bit_length() >> 1
