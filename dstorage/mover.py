"""Moving chunks between controllers without their ids changing.

A move reads the bytes from where the record says, writes them to the target, and makes the new place the current one *only if
the record is still the same*: whoever wrote the chunk meanwhile wins, and the copy is thrown away. The old place stays readable until
the commit that no longer refers to it, so readers are never disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from dstorage.controller import Controller, ReadRequest, WriteRequest
from dstorage.errors import (
    ControllerFull,
    CorruptData,
    DStorageError,
    Lost,
    StoreFull,
    TemporarilyUnavailable,
)
from dstorage.events import Events
from dstorage.index import Index
from dstorage.paging.memory import Memory
from dstorage.record import Locator, Record
from dstorage.registry import Entry, Registry
from dstorage.room import Room

BATCH_BYTES = 4 * 2**20
BATCH_CHUNKS = 64
SHARE = 1 / 8
"""Of the memory: as much may be on its way between controllers."""
ROOM_WAIT_S = 30.0


class Mover:
    """Moves the chunks of one store.

    Args:
        memory: Holds the bytes on their way.
        room: Waits for room for them.
        index: Says where chunks are and learns where they went.
        registry: Knows the controllers.
        discard: Frees places.
        events: Is told of each move.
    """

    def __init__(
        self,
        memory: Memory,
        room: Room,
        index: Index,
        registry: Registry,
        *,
        discard: Callable[[int, list[tuple[int, Locator]]], None],
        events: Events,
    ) -> None:
        self._memory = memory
        self._room = room
        self._index = index
        self._registry = registry
        self._discard = discard
        self._events = events
        self.moved = 0

    async def move(self, ids: Iterable[int], target: Entry) -> int:
        """Move chunks to `target`; returns how many were moved.

        Raises:
            StoreFull, TemporarilyUnavailable, Lost, CorruptData, MemoryUnavailable: See `Store.migrate`.
        """
        moved = 0
        source = iter(ids)
        while batch := list(islice(source, BATCH_CHUNKS)):
            by_controller: dict[int, list[tuple[int, Record]]] = {}
            for id in batch:
                record = self._index.get(id)
                if record is None:
                    raise Lost("unknown id (or not written to any controller yet)", id=id)
                if record.controller != target.index:
                    by_controller.setdefault(record.controller, []).append((id, record))
            for index, chunks in by_controller.items():
                for part in self._parts(chunks):
                    moved += await self._move(index, part, target)
        return moved

    async def rewrite(self, places: Iterable[tuple[int, Locator]], entry: Entry) -> int:
        """Write the chunks that still are at these `places` of `entry` anew on it; returns how many were.

        Raises:
            As `move`.
        """
        current = (
            (id, record)
            for id, locator in places
            if (record := self._index.get(id)) is not None
            and record.controller == entry.index
            and record.locator == locator
        )
        moved = 0
        for part in self._parts(current):
            moved += await self._move(entry.index, part, entry)
        return moved

    async def drain_volatile(self) -> None:
        """Move every chunk on a volatile controller to the fastest durable one with room.

        Raises:
            StoreFull: No durable controller has room for all of them.
        """
        while self._index.scratch:
            ids = list(islice(self._index.scratch, BATCH_CHUNKS))
            failure: DStorageError = StoreFull(
                f"{len(self._index.scratch)} scratch chunks cannot be kept: no durable controller is loaded; add one"
            )
            for target in self._registry.by_rank():
                if target.controller is not None and not target.controller.volatile:
                    try:
                        await self.move(ids, target)
                        break
                    except (StoreFull, TemporarilyUnavailable) as error:
                        failure = error
            else:
                raise failure

    async def _move(self, source_index: int, chunks: list[tuple[int, Record]], target: Entry) -> int:
        source = self._loaded(self._registry[source_index], source_index)
        destination = self._loaded(target, target.index)
        size = sum(record.locator.size for _, record in chunks)
        if target.throttle is not None:
            await target.throttle.take(size)
        await self._room.reserve(size, 0, ROOM_WAIT_S, dirty=False)
        try:
            found = await source.read([ReadRequest(id, record.locator) for id, record in chunks])
            whole = []
            for (id, record), answer in zip(chunks, found, strict=True):
                if isinstance(answer, Exception):
                    if self._index.get(id) != record:
                        continue
                    raise self._explain(answer, id, source.name)
                whole.append((id, record, answer))
            places = await destination.write([WriteRequest(id, data) for id, _, data in whole])
        finally:
            self._memory.give_back(size)
        moved = 0
        failure: Exception | None = None
        for (id, record, _), place in zip(whole, places, strict=True):
            if isinstance(place, Exception):
                failure = self._explain(place, id, target.name)
                continue
            new = Record(record.last_access, target.index, place)
            if self._index.get(id) == record:
                free = self._index.put(id, new, volatile=destination.volatile)
                if free is not None:
                    self._discard(free.controller, [(id, free.locator)])
                moved += 1
                self.moved += 1
                if self._events.streams:
                    self._events.emit("moved", id, target.name)
            else:
                self._discard(target.index, [(id, place)])
        if failure is not None:
            raise failure
        return moved

    def _parts(self, chunks: Iterable[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
        """Cut a list into parts of bounded size (but at least one chunk)."""
        most = min(BATCH_BYTES, int(self._memory.limit * SHARE))
        part: list[tuple[int, Record]] = []
        total = 0
        for id, record in chunks:
            if part and (total + record.locator.size > most or len(part) >= BATCH_CHUNKS):
                yield part
                part, total = [], 0
            part.append((id, record))
            total += record.locator.size
        if part:
            yield part

    @staticmethod
    def _loaded(entry: Entry | None, index: int) -> Controller:
        if entry is None or entry.controller is None:
            name = entry.name if entry is not None else f"number {index}"
            raise TemporarilyUnavailable(f"controller {name!r} is not loaded; register it", controller=name)
        return entry.controller

    @staticmethod
    def _explain(error: Exception, id: int, controller: str) -> Exception:
        if isinstance(error, ControllerFull):
            return StoreFull(f"controller {controller!r} has no room for chunk {id}: {error}")
        if isinstance(error, CorruptData):
            return Lost(str(error), id=id, controller=controller)
        if isinstance(error, Lost):
            return error
        explained = TemporarilyUnavailable(
            f"chunk {id} on controller {controller!r}: {error}", id=id, controller=controller
        )
        explained.__cause__ = error
        return explained
