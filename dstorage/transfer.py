"""Bytes of chunks on their way from one controller to another, in parts of bounded size that the memory accounts for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dstorage.answers import write_to
from dstorage.controller import Buffer, Controller, ReadRequest, WriteRequest
from dstorage.errors import ControllerFull, CorruptData, Lost, StoreFull, TemporarilyUnavailable
from dstorage.paging.memory import Memory
from dstorage.record import Locator, Record
from dstorage.registry import Entry, Registry
from dstorage.room import Room

BATCH_BYTES = 4 * 2**20
BATCH_CHUNKS = 64
SHARE = 1 / 8
"""Of the memory: as much may be on its way between controllers."""
ROOM_WAIT_S = 30.0

Chunk = tuple[int, Record]
"""A chunk's id and one place of its bytes."""


class Transfer:
    """Carries bytes between the controllers of one store.

    Args:
        memory: Accounts for the bytes on their way.
        room: Waits for room for them.
        registry: Knows the controllers.
    """

    def __init__(self, memory: Memory, room: Room, registry: Registry) -> None:
        self._memory = memory
        self._room = room
        self._registry = registry

    def parts(self, chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
        """Cut chunks, all of one controller, into parts that may be carried at a time (at least one chunk each)."""
        most = min(BATCH_BYTES, int(self._memory.limit * SHARE))
        part: list[Chunk] = []
        total = 0
        for id, record in chunks:
            if part and (total + record.locator.size > most or len(part) >= BATCH_CHUNKS):
                yield part
                part, total = [], 0
            part.append((id, record))
            total += record.locator.size
        if part:
            yield part

    async def copy(self, chunks: list[Chunk], target: Entry) -> list[Locator | Exception]:
        """Write one part, all of it from one controller, to `target` as well.

        Returns:
            For each chunk its place there, or what went wrong, in the store's own terms: `Lost` (its bytes are gone), `StoreFull` (the
            target has no room), `TemporarilyUnavailable`.

        Raises:
            TemporarilyUnavailable: One of the two is not loaded.
            MemoryUnavailable: No room for bytes on their way.
        """
        source = self._loaded(chunks[0][1].controller)
        destination = self._loaded(target.index)
        size = sum(record.locator.size for _, record in chunks)
        if target.throttle is None:
            return await self._carry(chunks, size, source, destination)
        await target.throttle.take(size)
        written = 0
        try:
            answers = await self._carry(chunks, size, source, destination)
            written = sum(answer.size for answer in answers if isinstance(answer, Locator))
            return answers
        finally:
            target.throttle.give_back(size - written)

    async def _carry(
        self, chunks: list[Chunk], size: int, source: Controller, destination: Controller
    ) -> list[Locator | Exception]:
        await self._room.reserve(size, 0, ROOM_WAIT_S, dirty=False)
        try:
            found = await source.read([ReadRequest(id, record.locator) for id, record in chunks])
            answers: list[Locator | Exception] = []
            requests: list[WriteRequest] = []
            for (id, _), answer in zip(chunks, found, strict=True):
                if isinstance(answer, Exception):
                    answers.append(explain(answer, id, source.name))
                else:
                    answers.append(_UNANSWERED)
                    requests.append(WriteRequest(id, answer))
            places = iter(await self._write(destination, requests))
        finally:
            self._memory.give_back(size)
        for number, (id, _) in enumerate(chunks):
            if answers[number] is _UNANSWERED:
                place = next(places)
                answers[number] = explain(place, id, destination.name) if isinstance(place, Exception) else place
        return answers

    async def put(self, id: int, buffer: Buffer, target: Entry) -> Locator | Exception:
        """Write bytes that are in memory to `target`; answers as `copy` does."""
        (place,) = await self._write(self._loaded(target.index), [WriteRequest(id, buffer)])
        return explain(place, id, target.name) if isinstance(place, Exception) else place

    @staticmethod
    async def _write(controller: Controller, requests: list[WriteRequest]) -> list[Locator | Exception]:
        return await write_to(controller, requests) if requests else []

    def _loaded(self, index: int) -> Controller:
        entry = self._registry[index]
        if entry is None or entry.controller is None:
            name = entry.name if entry is not None else f"number {index}"
            raise TemporarilyUnavailable(f"controller {name!r} is not loaded; register it", controller=name)
        return entry.controller


_UNANSWERED = Locator(0)


def explain(error: Exception, id: int, controller: str) -> Exception:
    """A controller's answer in the store's terms."""
    if isinstance(error, ControllerFull):
        return StoreFull(f"controller {controller!r} has no room for chunk {id}: {error}")
    if isinstance(error, CorruptData):
        return Lost(str(error), id=id, controller=controller)
    if isinstance(error, Lost):
        error.id = error.id or id
        error.controller = error.controller or controller
        return error
    explained = TemporarilyUnavailable(
        f"chunk {id} on controller {controller!r}: {error}", id=id, controller=controller
    )
    explained.__cause__ = error
    return explained
