"""Sleep-time tiering: while the store is idle, hot chunks move to faster controllers and cold ones make room there.

*Up* goes what was paged in often enough lately from a controller that is not the fastest, to the fastest that admits it: one read alone
never costs a write. *Down* go, once a controller is fuller than its high mark, the chunks of it that were not used for the longest,
among those a look at the catalog finds; each look goes on where the last one ended, so a large catalog is never scanned at once.
What a controller admits and when it is full is its `TierRule`.

Idle means that nothing was read from or written to a controller since the last look. Moves are limited to a rate, and stop at once when
the program works again. Ids, readers and writers notice nothing (see `dstorage.mover`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise

from dstorage.arguments import check_number
from dstorage.controller import ControllerStatus
from dstorage.errors import DStorageError
from dstorage.index import Index
from dstorage.mover import Mover
from dstorage.paging.writeback import WriteBack
from dstorage.registry import Entry, Registry
from dstorage.uses import Uses

SAMPLE = 4096
"""Catalog records looked at in one idle second when something has to move down."""


@dataclass(frozen=True, slots=True)
class TieringRules:
    """When chunks move between controllers, and how fast; see `TierRule` for which.

    Attributes:
        interval: Seconds between looks; so long must nothing have happened.
        rate: Bytes per second moved at most; `math.inf` for no limit.

    Raises:
        InvalidArgumentError: A value is no number, or out of range.
    """

    interval: float = 1.0
    rate: float = 32 * 2**20

    def __post_init__(self) -> None:
        check_number("interval", self.interval, lambda interval: interval > 0, "seconds > 0")
        check_number("rate", self.rate, lambda rate: rate >= 1, "at least 1 byte per second")


class Tiering:
    """The mover's plan for idle times.

    Args:
        rules: Limits.
        mover: Moves chunks.
        index: Says where they are.
        registry: Knows the controllers.
        uses: Knows what was read how often, and when.
        chunks_read: Says how many were read so far, by the loop and by other threads.
        writeback: Knows whether anything is being written.
        report: Is told what a look failed with.
    """

    def __init__(
        self,
        rules: TieringRules,
        *,
        mover: Mover,
        index: Index,
        registry: Registry,
        uses: Uses,
        chunks_read: Callable[[], int],
        writeback: WriteBack,
        report: Callable[[str, BaseException], None],
    ) -> None:
        self.rules = rules
        self.paused = False
        """Set it to keep chunks where they are for a while."""
        self._mover = mover
        self._index = index
        self._registry = registry
        self._uses = uses
        self._chunks_read = chunks_read
        self._writeback = writeback
        self._report = report
        self._positions: dict[int, int] = {}
        """Index of a controller -> the id at which the next look for what is cold on it begins."""
        self._leaving: dict[int, dict[int, int]] = {}
        """Index of a controller -> id and size of what has moved down from it and is not committed yet."""
        self._seen = (0, 0)
        self._credit = 0
        """Bytes that may be moved now; below zero after a chunk larger than what one look may move."""
        self._all_up = 0
        """The number of page-ins after which everything that could move up had."""

    async def run(self) -> None:
        """Look for ever; the store that owns this ends it."""
        while True:
            await asyncio.sleep(self.rules.interval)
            if self._idle() and not self.paused:
                try:
                    await self.step()
                except Exception as error:
                    # Whatever it was, it must not be the end of tiering.
                    self._report("a look of tiering failed; the next one tries again", error)

    async def step(self) -> int:
        """One look: move what fits in one interval's share of the rate; returns the number of chunks moved."""
        share = max(1, int(min(self.rules.rate * self.rules.interval, sys.maxsize)))
        self._credit = min(share, self._credit + share)
        moved = 0
        for way in (self._up, self._down):
            try:
                moved += await way()
            except DStorageError:
                # A controller is full or away: the next look plans anew. Whoever needs the chunk hears of it.
                continue
        self._seen = self._work()
        return moved

    def _work(self) -> tuple[int, int]:
        return self._chunks_read(), self._writeback.chunks_written

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
            and not entry.draining
            and entry.status not in (ControllerStatus.TEMPORARILY_UNAVAILABLE, ControllerStatus.REMOVED)
        ]

    @staticmethod
    def _capacity(entry: Entry) -> int | None:
        """Bytes that the marks are shares of; None: there is no end to it."""
        assert entry.controller is not None
        total = entry.controller.space().total
        own = entry.rule.capacity
        return total if own is None else own if total is None else min(own, total)

    def _room(self, entry: Entry) -> int:
        """Bytes that may move up to a controller."""
        if entry.status is not ControllerStatus.OK:
            return 0
        assert entry.controller is not None
        capacity = self._capacity(entry)
        return sys.maxsize if capacity is None else int(capacity * entry.rule.high) - entry.controller.space().used

    async def _up(self) -> int:
        tiers = self._durable()
        reads = self._chunks_read()
        if len(tiers) < 2 or reads == self._all_up:
            return 0
        counts = self._uses.counts()
        place = {entry.index: number for number, entry in enumerate(tiers)}
        room = [self._room(entry) for entry in tiers]
        fewest = min(entry.rule.admit_reads for entry in tiers[:-1])
        chosen: list[list[int]] = [[] for _ in tiers]
        hot = sorted((id for id, times in counts.items() if times >= fewest), key=lambda id: -counts[id])
        for id in hot:
            if self._credit <= 0:
                break
            record = self._index.get(id)
            if record is None or id in self._writeback.pinned:
                del counts[id]
                continue
            size = record.locator.size
            for number in range(place.get(record.controller, 0)):
                if counts[id] >= tiers[number].rule.admit_reads and size <= room[number]:
                    break
            else:
                continue
            self._credit -= size
            room[number] -= size
            chosen[number].append(id)
        else:
            self._all_up = reads
        moved = 0
        for entry, ids in zip(tiers, chosen, strict=True):
            if ids:
                moved += await self._mover.move(ids, entry)
                for id in ids:
                    del counts[id]
        return moved

    async def _down(self) -> int:
        moved = 0
        tiers = self._durable()
        for entry, below in pairwise(tiers):
            assert entry.controller is not None
            used = entry.controller.space().used - self._leaving_bytes(entry)
            capacity = self._capacity(entry)
            if capacity is None or used <= capacity * entry.rule.high:
                continue
            excess = used - int(capacity * entry.rule.low)
            oldest = time.time_ns() - entry.rule.min_age * 1e9
            chosen: dict[int, int] = {}
            for last, id, size in sorted(self._sample(entry)):
                if excess <= 0 or self._credit <= 0 or last > oldest:
                    break
                chosen[id] = size
                excess -= size
                self._credit -= size
            if chosen:
                try:
                    moved += await self._mover.move(list(chosen), below)
                finally:
                    self._leaving.setdefault(entry.index, {}).update(chosen)
        return moved

    def _leaving_bytes(self, entry: Entry) -> int:
        """What has moved away from `entry` and is free there only after the next commit: no reason to move still more."""
        leaving = {}
        for id, size in self._leaving.get(entry.index, {}).items():
            committed, now = self._index.catalog.get(id), self._index.get(id)
            if committed is not None and now is not None and committed.controller == entry.index != now.controller:
                leaving[id] = size
        self._leaving[entry.index] = leaving
        return sum(leaving.values())

    def _sample(self, entry: Entry) -> list[tuple[int, int, int]]:
        """(last access, id, size) of committed chunks on `entry`, from where the last look ended."""
        part = list(islice(self._index.catalog.records(self._positions.get(entry.index, 0)), SAMPLE))
        self._positions[entry.index] = part[-1][0] + 1 if len(part) == SAMPLE else 0
        return [
            (self._uses.last(id, record.last_access), id, record.locator.size)
            for id, record in part
            if record.controller == entry.index and id not in self._writeback.pinned and self._index.get(id) == record
        ]
