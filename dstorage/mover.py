"""Moving chunks between controllers without their ids changing.

A move reads the bytes from where the record says, writes them to the target, and makes the new place the current one *only if
the record is still the same*: whoever wrote the chunk meanwhile wins, and what was written is thrown away. The old place stays
readable until the commit that no longer refers to it, so readers are never disturbed. Where the target has a copy already,
that becomes the record, and nothing is carried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from dstorage.controller import ControllerStatus
from dstorage.errors import DStorageError, Lost, StoreFull, TemporarilyUnavailable
from dstorage.events import Events
from dstorage.index import Index
from dstorage.record import Locator, Record
from dstorage.registry import Entry, Registry
from dstorage.transfer import BATCH_CHUNKS, Chunk, Transfer


class Mover:
    """Moves the chunks of one store.

    Args:
        transfer: Carries the bytes.
        index: Says where chunks are and learns where they went.
        registry: Knows the controllers.
        discard: Frees places.
        events: Is told of each move.
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
        self.moved = 0

    async def move(self, ids: Iterable[int], target: Entry) -> int:
        """Move chunks to `target`; returns how many were moved.

        Raises:
            StoreFull, TemporarilyUnavailable, Lost, MemoryUnavailable: See `Store.migrate`.
        """
        moved = 0
        source = iter(ids)
        while batch := list(islice(source, BATCH_CHUNKS)):
            by_controller: dict[int, list[Chunk]] = {}
            for id in batch:
                record = self._index.get(id)
                if record is None:
                    raise Lost("unknown id", id=id)
                if record.controller == target.index:
                    continue
                copy = next((copy for copy in self._index.copies(id) if copy.controller == target.index), None)
                if copy is not None:
                    self._settle(id, record, copy._replace(last_access=record.last_access), target)
                    moved += 1
                else:
                    by_controller.setdefault(record.controller, []).append((id, record))
            for chunks in by_controller.values():
                for part in self._transfer.parts(chunks):
                    moved += await self._move(part, target)
        return moved

    async def rewrite(self, places: Iterable[tuple[int, Locator]], entry: Entry) -> int:
        """Write what still is at these `places` of `entry`, as record or as copy, anew on it; returns how many chunks were.

        Raises:
            As `move`.
        """
        current = (
            (id, Record(0, entry.index, locator))
            for id, locator in places
            if (entry.index, locator) in {place[1:] for place in self._index.places(id)}
        )
        moved = 0
        for part in self._transfer.parts(current):
            moved += await self._move(part, entry)
        return moved

    async def drain_volatile(self) -> None:
        """Move every chunk on a volatile controller to the fastest durable one with room.

        Raises:
            StoreFull: No durable controller has room for all of them.
        """
        while self._index.scratch:
            ids = list(islice(self._index.scratch, BATCH_CHUNKS))
            nobody = (
                f"{len(self._index.scratch)} scratch chunks cannot be kept: no durable controller is loaded; add one"
            )
            await self.move_to_fastest(ids, StoreFull(nobody))

    async def move_to_fastest(self, ids: list[int], nobody: DStorageError) -> None:
        """Move at most `BATCH_CHUNKS` chunks, those that there still are, to the fastest durable controller that takes them.

        Raises:
            StoreFull, TemporarilyUnavailable: What the last of them said; `nobody` if there is none.
        """
        failure = nobody
        left = {id: record.controller for id in ids if (record := self._index.get(id)) is not None}
        for target in self._registry.by_rank():
            if target.controller is None or target.controller.volatile or target.draining:
                continue
            if target.status not in (ControllerStatus.OK, ControllerStatus.FULL):
                failure = TemporarilyUnavailable(
                    f"controller {target.name!r} takes nothing now", controller=target.name
                )
                continue
            try:
                await self.move(left, target)
                return
            except (StoreFull, TemporarilyUnavailable) as error:
                failure = error
            # What it did take stays there.
            now = {id: self._index.get(id) for id in left}
            left = {id: old for id, old in left.items() if (record := now[id]) is not None and record.controller == old}
        raise failure

    async def _move(self, chunks: list[Chunk], target: Entry) -> int:
        """Carry one part: what was at each chunk's place is at `target` afterwards, unless somebody changed the chunk."""
        places: list[Locator | Exception]
        try:
            places = await self._transfer.copy(chunks, target)
        except TemporarilyUnavailable as error:
            if error.controller == target.name:
                raise
            places = [error] * len(chunks)
        moved = 0
        failure: Exception | None = None
        for (id, old), answer in zip(chunks, places, strict=True):
            place = answer
            if isinstance(place, (Lost, TemporarilyUnavailable)) and place.controller != target.name:
                place = await self._copy_another(id, old, target, place)
            now = self._index.places(id)
            there = any(old[1:] == other[1:] for other in now)
            if isinstance(place, Exception):
                failure = place if there else failure
            elif not there:
                self._discard(target.index, [(id, place)])
            else:
                self._settle(id, old, Record(now[0].last_access, target.index, place), target)
                moved += 1
        if failure is not None:
            raise failure
        return moved

    async def _copy_another(self, id: int, old: Record, target: Entry, failure: Exception) -> Locator | Exception:
        """Write to `target` what cannot be read from one place, from the chunk's others; returns `failure` if that fails, too."""
        for place in self._index.places(id):
            if place[1:] != old[1:] and place.controller != target.index:
                try:
                    (found,) = await self._transfer.copy([(id, place)], target)
                except DStorageError:
                    continue
                if isinstance(found, Locator):
                    return found
        return failure

    def _settle(self, id: int, old: Record, new: Record, target: Entry) -> None:
        """Let `new` take the place of `old`; copies stay that the rule of the record's controller asks for."""
        record, *copies = self._index.places(id)
        if record[1:] == old[1:]:
            record = new
            wanted = {entry.index for entry in self._registry.wanted_copies(new)} - {new.controller}
            copies = [place for place in (old, *copies) if place.controller in wanted and place[1:] != new[1:]]
        else:
            copies = [new if copy[1:] == old[1:] else copy for copy in copies]
        entry = self._registry[record.controller]
        volatile = entry is not None and entry.controller is not None and entry.controller.volatile
        self._index.put(id, record, volatile=volatile, copies=tuple(copies))
        self.moved += 1
        if self._events.streams:
            self._events.emit("moved", id, target.name)
