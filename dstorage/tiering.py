"""Sleep-time tiering: while the store is idle, hot chunks move to faster controllers and cold ones make room there.

*Up* goes what was paged in at least twice lately from a controller that is not the fastest: one read alone never costs a write. *Down*
go, once a controller is fuller than the high mark, the chunks of it that were not used for the longest, among those a look at the
catalog finds; each look goes on where the last one ended, so a large catalog is never scanned at once.

Idle means that nothing was read from or written to a controller since the last look. Moves are limited to a rate, and stop at once when
the program works again. Ids, readers and writers notice nothing (see `dstorage.mover`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice, pairwise

from dstorage.controller import ControllerStatus
from dstorage.errors import DStorageError
from dstorage.index import Index
from dstorage.mover import Mover
from dstorage.paging.pagein import PageIn
from dstorage.paging.writeback import WriteBack
from dstorage.registry import Entry, Registry
from dstorage.uses import Uses

HOT_READS = 2
SAMPLE = 4096
"""Catalog records looked at in one idle second when something has to move down."""


@dataclass(frozen=True, slots=True)
class TieringRules:
    """How chunks move between controllers while the store is idle.

    Attributes:
        interval: Seconds between looks; so long must nothing have happened.
        rate: Bytes per second moved at most.
        high: Share of a controller's capacity (0 to 1) above which its coldest chunks move down.
        low: Share down to which they do.
    """

    interval: float = 1.0
    rate: int = 32 * 2**20
    high: float = 0.9
    low: float = 0.8


class Tiering:
    """The mover's plan for idle times.

    Args:
        rules: Limits.
        mover: Moves chunks.
        index: Says where they are.
        registry: Knows the controllers.
        uses: Knows what was read how often, and when.
        pagein: Knows whether anything is read now.
        writeback: Knows whether anything is being written.
    """

    def __init__(
        self,
        rules: TieringRules,
        *,
        mover: Mover,
        index: Index,
        registry: Registry,
        uses: Uses,
        pagein: PageIn,
        writeback: WriteBack,
    ) -> None:
        self.rules = rules
        self.paused = False
        """Set it to keep chunks where they are for a while."""
        self._mover = mover
        self._index = index
        self._registry = registry
        self._uses = uses
        self._pagein = pagein
        self._writeback = writeback
        self._position = 0
        self._seen = (0, 0)

    async def run(self) -> None:
        """Look for ever; the store that owns this ends it."""
        while True:
            await asyncio.sleep(self.rules.interval)
            if self._idle() and not self.paused:
                await self.step()

    async def step(self) -> int:
        """One look: move what fits in one interval's share of the rate; returns the number of chunks moved."""
        budget = max(1, int(self.rules.rate * self.rules.interval))
        moved = 0
        try:
            moved += await self._up(budget)
            moved += await self._down(budget)
        except DStorageError:
            # A controller is full or away: the next look plans anew. Whoever needs the chunk hears of it.
            pass
        self._seen = self._work()
        return moved

    def _work(self) -> tuple[int, int]:
        return self._pagein.chunks_read, self._writeback.chunks_written

    def _idle(self) -> bool:
        before, self._seen = self._seen, self._work()
        return before == self._seen and not self._writeback.busy

    def _durable(self) -> list[Entry]:
        """Durable, working controllers, the fastest first."""
        return [
            entry
            for entry in self._registry.by_rank()
            if entry.controller is not None
            and not entry.controller.volatile
            and entry.status in (ControllerStatus.OK, ControllerStatus.FULL)
        ]

    @staticmethod
    def _share_used(entry: Entry) -> float:
        assert entry.controller is not None
        total, used = entry.controller.space()
        return used / total if total else 0.0

    async def _up(self, budget: int) -> int:
        tiers = self._durable()
        heat = self._uses.take_counts()
        if len(tiers) < 2:
            return 0
        fastest = tiers[0]
        hot = sorted((id for id, reads in heat.items() if reads >= HOT_READS), key=lambda id: -heat[id])
        chosen = []
        for id in hot:
            record = self._index.get(id)
            if record is None or record.controller == fastest.index or id in self._writeback.pinned:
                continue
            budget -= record.locator.size
            if budget < 0 or self._share_used(fastest) >= self.rules.high or fastest.status is not ControllerStatus.OK:
                break
            chosen.append(id)
        return await self._mover.move(chosen, fastest) if chosen else 0

    async def _down(self, budget: int) -> int:
        moved = 0
        tiers = self._durable()
        for entry, below in pairwise(tiers):
            if self._share_used(entry) < self.rules.high:
                continue
            assert entry.controller is not None
            total, used = entry.controller.space()
            assert total is not None
            excess = min(budget, used - int(total * self.rules.low))
            chosen = []
            for _, id, size in sorted(self._sample(entry)):
                if excess <= 0:
                    break
                chosen.append(id)
                excess -= size
            moved += await self._mover.move(chosen, below) if chosen else 0
        return moved

    def _sample(self, entry: Entry) -> list[tuple[int, int, int]]:
        """(last access, id, size) of committed chunks on `entry`, from where the last look ended."""
        part = list(islice(self._index.catalog.records(self._position), SAMPLE))
        self._position = part[-1][0] + 1 if len(part) == SAMPLE else 0
        return [
            (self._uses.last(id, record.last_access), id, record.locator.size)
            for id, record in part
            if record.controller == entry.index and id not in self._writeback.pinned and self._index.get(id) == record
        ]
