"""A machine whose memory runs short when a test says so."""

from __future__ import annotations

from dstorage.paging.pressure import PressureSample


class FakeMachine:
    """A source for `PressureMonitor`; change its attributes at any time.

    Attributes:
        total: Bytes of memory.
        available: Bytes of that which can be had without swapping.
        rss: Resident bytes of this process.
        stalled: Percent of the last ten seconds that tasks were stalled on memory, or None where nobody says.
        samples: How often it was asked.

    Example:
        >>> machine = FakeMachine(total=16 * 2**30)
        >>> machine.available = 2**30
        >>> machine.sample().available
        1073741824
    """

    def __init__(self, total: int = 16 * 2**30) -> None:
        self.total = total
        self.available = total
        self.rss = 0
        self.stalled: float | None = None
        self.samples = 0

    def sample(self) -> PressureSample:
        """As set."""
        self.samples += 1
        return PressureSample(self.total, self.available, self.rss, self.stalled)
