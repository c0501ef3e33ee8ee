"""Memory pressure: how much of its budget a store may use now.

A `PressureSource` samples the machine; `PressureMonitor.evaluate` turns a sample into what is allowed. Two watermarks on what
is still available (of the machine, or of the control group that holds this process, whichever is scarcer):

* below *low* (default 10 %), the allowed bytes are what is in use now less what is missing up to the mark;
* below *critical* (default 3 %), or when tasks were stalled on memory for a large share of the last ten seconds (PSI), everything
  unreferenced leaves at once.

A limit on the resident memory of this process, if one is given, is a third such memory, with the same watermarks.

It never falls below a sixteenth of the budget. Above low, the allowance grows back by an eighth of the budget a sample, so that it does not swing. Worked example: 16 GiB of
memory, low mark 1.6 GiB, a budget of 4 GiB. Available falls to 1.1 GiB: 0.5 GiB is missing, so 3.5 GiB are allowed; the store
evicts 0.5 GiB.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from dstorage.errors import InvalidArgumentError

LOW_SHARE = 0.10
CRITICAL_SHARE = 0.03
STALLED_PERCENT = 20.0
"""PSI "full" over ten seconds that counts as critical: so much of the time nobody got anywhere for lack of memory."""
INTERVAL_S = 1.0
GROW_SHARE = 1 / 8
FLOOR_SHARE = 1 / 16
"""Of the budget: so much is always allowed, or the program could do nothing that would end the shortage."""

_UNLIMITED = 2**60
_CGROUP2 = Path("/sys/fs/cgroup")
_CGROUP1 = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True, slots=True)
class PressureSample:
    """What was measured; sizes in bytes.

    Attributes:
        total: Memory this process may use: the machine's, or its control group's limit where that is lower.
        available: Of that, what can be had without swapping; the page cache of files counts as available.
        rss: Resident memory of this process.
        stalled: PSI memory "full avg10" in percent, of the innermost control group that has it, else of the machine; None where
            there is none.
    """

    total: int
    available: int
    rss: int
    stalled: float | None = None


class PressureSource(Protocol):
    """Where samples come from."""

    def sample(self) -> PressureSample:
        """Measure now; must not block."""


class Level(enum.Enum):
    """How short memory is."""

    NORMAL = "normal"
    LOW = "low"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a store has to do.

    Attributes:
        level: How short memory is.
        allowed_bytes: At most so many bytes of chunk contents now.
    """

    level: Level
    allowed_bytes: int


class SystemPressure:
    """Samples this machine: psutil everywhere; on Linux also the control group (v1 or v2) and PSI (the group's own under v2)."""

    def __init__(self, *, cgroup2: Path = _CGROUP2, cgroup1: Path = _CGROUP1, proc: Path = Path("/proc")) -> None:
        self._process = psutil.Process()
        self._proc = proc
        self._page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        self._groups = _groups(cgroup2, cgroup1, proc)
        # A group's own stalls, the innermost group's first: those of the machine may be its neighbours'.
        self._stalls = [group.pressure for group in self._groups if group.pressure is not None]
        self._stalls.append(proc / "pressure" / "memory")

    def sample(self) -> PressureSample:
        """Measure now."""
        machine = psutil.virtual_memory()
        total, available = machine.total, machine.available
        for group in self._groups:
            limit, usage = _number(group.limit), _number(group.usage)
            if limit is None or usage is None or limit >= _UNLIMITED:
                continue
            # Pages of files are in nobody's way, as in the kernel's own figure for the machine (MemAvailable). Those used twice, too, which it
            # calls active: of data that is read at random most are, and a store would give its memory up for them.
            usage -= min(usage, _sum_of(group.statistics, group.reclaimable))
            total = min(total, limit)
            available = min(available, max(0, limit - usage))
        return PressureSample(total, available, self._rss(), self._stalled())

    def _rss(self) -> int:
        try:
            return int((self._proc / "self" / "statm").read_bytes().split()[1]) * self._page
        except (OSError, ValueError, IndexError):
            return int(self._process.memory_info().rss)

    def _stalled(self) -> float | None:
        for path in self._stalls:
            try:
                full = next(line for line in path.read_text().splitlines() if line.startswith("full"))
                return float(full.split("avg10=")[1].split()[0])
            except (OSError, ValueError, IndexError, StopIteration):
                # None there, or switched off (`cgroup.pressure`): the next one outwards says something of it.
                continue
        return None


def memory_total() -> int:
    """Bytes this process may use: the machine's memory, or its control group's limit where that is lower."""
    return SystemPressure().sample().total


class PressureMonitor:
    """Watches a source and says what is allowed.

    Args:
        source: Where samples come from; this machine by default.
        low_share: Of total memory: less than that available is low.
        critical_share: Of total memory: less than that available is critical.
        interval: Seconds between samples.
        rss_limit: Bytes that this process should have resident at most, whatever for; None: it does not matter.

    Raises:
        InvalidArgumentError: A value is out of range.
    """

    def __init__(
        self,
        source: PressureSource | None = None,
        *,
        low_share: float = LOW_SHARE,
        critical_share: float = CRITICAL_SHARE,
        interval: float = INTERVAL_S,
        rss_limit: int | None = None,
    ) -> None:
        if not 0 <= critical_share <= low_share < 1:
            raise InvalidArgumentError(
                f"critical_share={critical_share}, low_share={low_share}: give shares, 0 <= critical <= low < 1"
            )
        if not interval > 0:
            raise InvalidArgumentError(f"interval={interval}: give seconds > 0")
        if rss_limit is not None and rss_limit < 1:
            raise InvalidArgumentError(f"rss_limit={rss_limit}: give at least 1 byte, or None")
        self._source = source or SystemPressure()
        self._low_share = low_share
        self._critical_share = critical_share
        self._interval = interval
        self._rss_limit = rss_limit
        self._allowed: int | None = None

    def evaluate(self, sample: PressureSample, *, used: int, budget: int) -> Pressure:
        """What `sample` means for a store that uses `used` of its `budget` bytes."""
        memories = [(sample.total, sample.available)]
        if self._rss_limit is not None:
            memories.append((self._rss_limit, max(0, self._rss_limit - sample.rss)))
        # The scarcest counts: bytes above its low mark, or missing up to it.
        above = min(available - int(total * self._low_share) for total, available in memories)
        critical = any(available < int(total * self._critical_share) for total, available in memories)
        before = budget if self._allowed is None else min(self._allowed, budget)
        if critical or (sample.stalled or 0.0) >= STALLED_PERCENT:
            level = Level.CRITICAL
            allowed = min(before, max(0, used + above))
        elif above < 0:
            level = Level.LOW
            allowed = min(before, max(0, used + above))
        else:
            level = Level.NORMAL
            # Not more than is there above the mark, so that growing does not bring the pressure back.
            allowed = min(budget, before + int(budget * GROW_SHARE), used + above)
            allowed = max(allowed, min(before, used))
        self._allowed = max(1, allowed, int(budget * FLOOR_SHARE))
        return Pressure(level, self._allowed)

    async def run(self, used: Callable[[], tuple[int, int]], on_change: Callable[[Pressure], None]) -> None:
        """Sample for ever; the store that owns this ends it.

        Args:
            used: Gives (bytes used, budget).
            on_change: Called with what is allowed whenever that changes.
        """
        last: Pressure | None = None
        while True:
            in_use, budget = used()
            now = self.evaluate(self._source.sample(), used=in_use, budget=budget)
            if now != last:
                on_change(now)
                last = now
            await asyncio.sleep(self._interval)


class _Group(NamedTuple):
    """Files of one control group, and the fields of its statistics that say what the kernel can drop."""

    limit: Path
    usage: Path
    statistics: Path
    reclaimable: tuple[str, str]
    pressure: Path | None = None


def _groups(cgroup2: Path, cgroup1: Path, proc: Path) -> list[_Group]:
    """The control groups that hold this process, the innermost first."""
    found: list[_Group] = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, kind = cgroup2, _version_2
        elif "memory" in controllers.split(","):
            base, kind = cgroup1, _version_1
        else:
            continue
        path = base / name.lstrip("/")
        found.append(kind(path))
        while path != base and base in path.parents:
            path = path.parent
            found.append(kind(path))
    return [group for group in found if group.limit.exists() or (group.pressure and group.pressure.exists())]


def _version_2(path: Path) -> _Group:
    files = (path / "memory.max", path / "memory.current", path / "memory.stat")
    return _Group(*files, ("inactive_file", "active_file"), path / "memory.pressure")


def _version_1(path: Path) -> _Group:
    files = (path / "memory.limit_in_bytes", path / "memory.usage_in_bytes", path / "memory.stat")
    return _Group(*files, ("total_inactive_file", "total_active_file"))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
        return _UNLIMITED if text == "max" else int(text)
    except (OSError, ValueError):
        return None


def _sum_of(path: Path, names: tuple[str, ...]) -> int:
    try:
        entries = [line.partition(" ") for line in path.read_text().splitlines()]
        return sum(int(value) for name, _, value in entries if name in names)
    except (OSError, ValueError):
        return 0
