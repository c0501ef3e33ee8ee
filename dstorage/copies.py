"""Copies: chunks kept on a second controller, by the rule (`TierRule.copy_to`) of the controller they live on.

*With the commit* (the default) copies are made between writing and syncing: the commit that names a chunk names its copies, too.
*Later* they are made behind the commit, in the background, as are those that are missing for any other reason: a rule that is new, a
controller that was away, a copy that was damaged. A look at the catalog finds them, each look goes on where the last one
ended, and it rests once a whole round found nothing to do.

What a reader found damaged or gone in one place is written there anew from another, so both heal while they are used.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from dstorage.controller import ControllerStatus
from dstorage.errors import DStorageError, TemporarilyUnavailable
from dstorage.events import Events
from dstorage.index import Index
from dstorage.record import Locator, Record
from dstorage.registry import Entry, Registry
from dstorage.transfer import Chunk, Transfer

LOOK_S = 1.0
"""Pause between looks for what is missing."""
SAMPLE = 4096
"""Catalog records in one look."""
MAX_REMEMBERED = 65536
"""Ids remembered as lacking copies, and damaged places; what is beyond is found by looking, or by the next reader."""


class Copier:
    """Makes and heals the copies of one store.

    Args:
        transfer: Carries the bytes.
        index: Says where chunks are and learns of copies.
        registry: Knows the rules.
        discard: Frees places.
        events: Is told of each copy.
    """

    def __init__(
        self,
        transfer: Transfer,
        index: Index,
        registry: Registry,
        *,
        discard: Callable[[int, list[tuple[int, Locator]]], None],
        events: Events,
    ) -> None:
        self._transfer = transfer
        self._index = index
        self._registry = registry
        self._discard = discard
        self._events = events
        self._lacking: deque[int] = deque(maxlen=MAX_REMEMBERED)
        self._bad: dict[int, Record] = {}
        self._position = 0
        self._unlooked = True
        """Whether some part of the catalog may lack copies that no look has seen."""
        self.made = 0
        self.healed = 0

    # -- with a commit ------------------------------------------------------------------------------------------------

    async def cover(self, frozen: dict[int, Record | None]) -> None:
        """Make the copies without which the commit under way is not there, and remember what to copy behind it.

        Raises:
            StoreFull, TemporarilyUnavailable: A copy cannot be made now.
        """
        if not self._registry.copying:
            return
        missing: dict[tuple[int, int], list[Chunk]] = {}
        for id, record in frozen.items():
            if record is None:
                continue
            there = {copy.controller for copy in self._index.frozen_copies.get(id, ())}
            for target in self._registry.wanted_copies(record):
                if target.index in there:
                    continue
                if self._later(record):
                    self._lacking.append(id)
                else:
                    missing.setdefault((record.controller, target.index), []).append((id, record))
        for (_, index), chunks in missing.items():
            target = self._entry(index)
            for part in self._transfer.parts(chunks):
                for (id, record), place in zip(part, await self._carry(part, target), strict=True):
                    if isinstance(place, Exception):
                        raise place
                    copies = self._index.frozen_copies.get(id, ())
                    self._index.put_frozen(id, record, copies=(*copies, self._made(id, record, target, place)))

    async def _carry(self, part: list[Chunk], target: Entry) -> list[Locator | Exception]:
        try:
            return await self._transfer.copy(part, target)
        except MemoryError as error:
            raise TemporarilyUnavailable(f"no memory to make copies on {target.name!r}: {error}") from error

    # -- in the background --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look for ever; the store that owns this ends it."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except DStorageError:
                # A controller is full or away: the next look tries again.
                self._unlooked = True

    async def look(self) -> int:
        """Heal what readers found, and make copies that were found missing; returns how many places were written."""
        written = 0
        while self._bad:
            id, bad = self._bad.popitem()
            written += await self.heal(id, bad)
        if self._registry.copying:
            while self._lacking:
                ids = [self._lacking.popleft() for _ in range(min(SAMPLE, len(self._lacking)))]
                written += await self._copy(ids)
            if self._unlooked:
                written += await self._copy(id for id, _ in self._sample())
        return written

    async def complete(self) -> int:
        """Make all copies that are wanted and not there; returns how many places were written.

        Raises:
            StoreFull, TemporarilyUnavailable, Lost: One could not be made; those before it stay.
        """
        self._position = 0
        self._unlooked = True
        written = 0
        while self._unlooked and self._registry.copying:
            written += await self.look()
            await asyncio.sleep(0)
        return written

    def changed(self) -> None:
        """A controller came, went or has room again, or a rule is new: look at everything."""
        self._position = 0
        self._unlooked = True

    def _sample(self) -> Iterator[Chunk]:
        part = list(islice(self._index.catalog.records(self._position), SAMPLE))
        self._unlooked = len(part) == SAMPLE
        self._position = part[-1][0] + 1 if self._unlooked else 0
        return iter(part)

    async def _copy(self, ids: Iterable[int]) -> int:
        missing: dict[tuple[int, int], list[Chunk]] = {}
        for id in ids:
            record = self._index.get(id)
            if record is None or id in self._index.scratch:
                continue
            wanted = self._registry.wanted_copies(record)
            there = {copy.controller for copy in self._index.copies(id)} if wanted else set()
            for target in wanted:
                if target.index not in there:
                    missing.setdefault((record.controller, target.index), []).append((id, record))
        written = 0
        failure: Exception | None = None
        for (_, index), chunks in missing.items():
            target = self._entry(index)
            if target.status is not ControllerStatus.OK:
                failure = TemporarilyUnavailable(
                    f"controller {target.name!r} takes no copies now", controller=target.name
                )
                continue
            for part in self._transfer.parts(chunks):
                for (id, record), place in zip(part, await self._carry(part, target), strict=True):
                    if isinstance(place, Exception):
                        failure = place
                    else:
                        written += self._add(id, record, target, place)
        if failure is not None:
            raise failure
        return written

    def _add(self, id: int, record: Record, target: Entry, place: Locator) -> int:
        now = self._index.get(id)
        copies = self._index.copies(id)
        if now is None or now[1:] != record[1:] or any(copy.controller == target.index for copy in copies):
            # Changed or copied meanwhile.
            self._discard(target.index, [(id, place)])
            return 0
        self._index.put(id, now, copies=(*copies, self._made(id, now, target, place)))
        return 1

    def _made(self, id: int, record: Record, target: Entry, place: Locator) -> Record:
        self.made += 1
        if self._events.streams:
            self._events.emit("copied", id, target.name)
        return Record(record.last_access, target.index, place)

    # -- healing ------------------------------------------------------------------------------------------------------

    def found_bad(self, id: int, place: Record) -> None:
        """A reader found that the bytes in one place are damaged or gone, and others whole."""
        if len(self._bad) < MAX_REMEMBERED:
            self._bad[id] = place

    async def heal(self, id: int, bad: Record) -> bool:
        """Write a damaged place anew from a whole one; where nothing can be written, do without it.

        Returns:
            Whether the chunk's places are all whole now, as far as is known.
        """
        places = self._index.places(id)
        if all(bad[1:] != place[1:] for place in places):
            return True
        target = self._entry(bad.controller)
        if target.removed:
            record, *copies = (other for other in places if other[1:] != bad[1:])
            self._index.put(id, record, copies=tuple(copies))
            return True
        for source in places:
            if source[1:] == bad[1:]:
                continue
            try:
                (place,) = await self._transfer.copy([(id, source)], target)
            except DStorageError:
                continue
            if isinstance(place, Exception):
                continue
            if self._index.places(id) != places:
                self._discard(target.index, [(id, place)])
                return True
            record, *copies = (bad._replace(locator=place) if other[1:] == bad[1:] else other for other in places)
            self._index.put(id, record, copies=tuple(copies))
            self.healed += 1
            if self._events.streams:
                self._events.emit("healed", id, target.name)
            return True
        return False

    # -- private ------------------------------------------------------------------------------------------------------

    def _later(self, record: Record) -> bool:
        return self._entry(record.controller).rule.copy_later

    def _entry(self, index: int) -> Entry:
        entry = self._registry[index]
        assert entry is not None
        return entry
