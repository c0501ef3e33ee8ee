"""Writing: small chunks of a batch into packs, large ones in pieces, each object under a number of its own.

An object whose write failed, timed out or was cancelled is abandoned: its number is never used again, and the object, if it
came to be, is deleted later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dstorage.controller import Buffer, WriteRequest
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable, InvalidArgumentError
from dstorage.record import MAX_CHUNK_BYTES, Locator
from dstorage_controllers.internet import layout
from dstorage_controllers.internet.books import Shape
from dstorage_controllers.internet.bucket import FAILURES, Taken
from dstorage_controllers.internet.layout import INDEX_ID, NOWHERE, PIECES, Place
from dstorage_controllers.internet.parts import INLINE_BYTES, Parts

Answers = list[Locator | Exception]


class _Met(ControllerUnavailable):
    """There is an object of the name that a new one was to have.

    It may be the new one itself, if the answer was lost and obstore asked again. It is written under another name, and what is
    there is left to the sweep of the next open.
    """


class _Item(NamedTuple):
    """A chunk on its way into a pack."""

    at: int
    id: int
    size: int
    data: Buffer
    flags: int
    stored: int


@dataclass(slots=True)
class _Call:
    """One call of `write`: what it answers, and what is to be given back at its end, however it ends."""

    answers: Answers
    reserved: int = 0
    """Bytes counted as used."""
    kept: int = 0
    """Of them, those whose object is in the bucket."""
    doubtful: set[str] = field(default_factory=set)
    """Names of objects that may be on their way and are not wanted."""


class Writer:
    """Writes for one controller.

    Args:
        name: The controller's name, for messages.
        parts: The open controller.
        pack_bytes: Length of packs and pieces.
        capacity: Bytes of chunks to keep at most; None for no limit.
        timeout: Seconds after which an abandoned write is over.
    """

    def __init__(self, name: str, parts: Parts, *, pack_bytes: int, capacity: int | None, timeout: float) -> None:
        self._name = name
        self._parts = parts
        self._pack_bytes = pack_bytes
        self._capacity = capacity
        self._timeout = timeout
        self.create = False
        """Whether the server is known to refuse to overwrite when it is asked to."""
        self._refused: int | None = None
        self._told_full = False

    @property
    def room(self) -> int | float:
        """Bytes left of the capacity."""
        return float("inf") if self._capacity is None else self._capacity - self._parts.books.used

    @property
    def full(self) -> bool:
        """Whether the smallest chunk refused for the capacity would still not fit."""
        return self._refused is not None and self.room < self._refused

    async def write(self, requests: Sequence[WriteRequest]) -> Answers:
        """Answer each request with its locator or what befell it."""
        parts = self._parts
        answers: Answers = [parts.layout.pack(request.id, NOWHERE) for request in requests]
        call = _Call(answers)
        refused = parts.health.refuse(write=True)
        small: list[tuple[int, int, memoryview]] = []
        jobs: list[Coroutine[Any, Any, None]] = []
        for at, (id, data) in enumerate(requests):
            view = memoryview(data).cast("B")
            if len(view) > MAX_CHUNK_BYTES:
                answers[at] = InvalidArgumentError(f"chunk {id} is larger than {MAX_CHUNK_BYTES} bytes")
            elif not len(view):
                continue
            elif refused is not None:
                answers[at] = refused
            elif len(view) > self._pack_bytes:
                jobs.append(self._cut(call, at, id, view))
            else:
                small.append((at, id, view))
        if small:
            jobs.append(self._packed(call, small))
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        except BaseException:
            # Cancelled: nobody will ever name these places.
            self.discard(
                [(r.id, answer) for r, answer in zip(requests, answers, strict=True) if isinstance(answer, Locator)]
            )
            raise
        finally:
            parts.books.used -= call.reserved - call.kept
            if call.doubtful:
                parts.cleaning.add_later(sorted(call.doubtful), self._timeout)
            self._tell()
        return answers

    def discard(self, locators: Iterable[tuple[int, Locator]]) -> None:
        """Free places, and have objects deleted of which nothing is in use any more."""
        for place in self._parts.layout.sensible(locators):
            shape = self._parts.books.discard(place)
            if shape is not None:
                self._parts.cleaning.add(self._parts.layout.keys(place.number, shape.pieces))
        self._tell()

    def _tell(self) -> None:
        """The room has changed; what the bucket itself says is told by its health."""
        if not self.full:
            self._refused = None
        if self.full is not self._told_full:
            self._told_full = self.full
            self._parts.context.status_changed()

    # -- packs --------------------------------------------------------------------------------------------------------

    async def _packed(self, call: _Call, chunks: list[tuple[int, int, memoryview]]) -> None:
        total = sum(len(view) for _, _, view in chunks)
        items = self._shrink(chunks) if total <= INLINE_BYTES else await asyncio.to_thread(self._shrink, chunks)
        async with asyncio.TaskGroup() as group:
            pack: list[_Item] = []
            stored = 0
            for item in items:
                refused = self._reserve(call, item.id, item.stored)
                if refused is not None:
                    call.answers[item.at] = refused
                    continue
                if pack and stored + item.stored > self._pack_bytes:
                    group.create_task(self._pack(call, pack, stored))
                    pack, stored = [], 0
                pack.append(item)
                stored += item.stored
            if pack:
                group.create_task(self._pack(call, pack, stored))

    def _shrink(self, chunks: list[tuple[int, int, memoryview]]) -> list[_Item]:
        codec = self._parts.codec
        items = []
        for at, id, view in chunks:
            data, flags = codec.shrink(view)
            items.append(_Item(at, id, len(view), data, flags | codec.flags, len(data) + codec.overhead(codec.flags)))
        return items

    async def _pack(self, call: _Call, items: list[_Item], stored: int, *, again: bool = False) -> None:
        number = self._parts.session.number()
        key = self._parts.layout.key(number)
        call.doubtful.add(key)
        try:
            async with self._turn():
                if stored <= INLINE_BYTES:
                    sealed, places, shape = self._seal(number, items)
                else:
                    sealed, places, shape = await asyncio.to_thread(self._seal, number, items)
                await self._parts.bucket.put(key, sealed, create=self.create)
        except ControllerError as error:
            if isinstance(error, _Met):
                call.doubtful.discard(key)
                if not again:
                    await self._pack(call, items, stored, again=True)
                    return
            for item in items:
                call.answers[item.at] = error
            return
        self._parts.books.written(number, shape)
        call.kept += stored
        call.doubtful.discard(key)
        for item, place in zip(items, places, strict=True):
            call.answers[item.at] = place

    def _seal(self, number: int, items: list[_Item]) -> tuple[list[Buffer], list[Locator], Shape]:
        codec = self._parts.codec
        sealed: list[Buffer] = []
        places: list[Locator] = []
        offset = 0
        for item in items:
            place = Place(item.size, number, offset, item.stored, item.flags, codec.key_tag)
            sealed += codec.seal(item.id, item.size, number, 0, item.flags, item.data)
            places.append(self._parts.layout.pack(item.id, place))
            offset += item.stored
        plain = layout.pack_index([(item.id, place) for item, place in zip(items, places, strict=True)])
        index_bytes = len(plain) + codec.overhead(codec.flags)
        sealed += codec.seal(INDEX_ID, len(plain), number, 0, codec.flags, plain)
        sealed.append(layout.pack_tail(offset, index_bytes))
        return sealed, places, Shape(offset, 0, index_bytes, codec.key_check)

    # -- pieces -------------------------------------------------------------------------------------------------------

    async def _cut(self, call: _Call, at: int, id: int, view: memoryview) -> None:
        parts = self._parts
        pieces = -(-len(view) // self._pack_bytes)
        most = len(view) + pieces * (1 + parts.codec.overhead(parts.codec.flags))
        refused = self._reserve(call, id, most)
        if refused is not None:
            call.answers[at] = refused
            return
        answer = await self._send(call, id, view, pieces)
        if isinstance(answer, _Met):
            answer = await self._send(call, id, view, pieces)
        call.answers[at] = answer

    async def _send(self, call: _Call, id: int, view: memoryview, pieces: int) -> Locator | Exception:
        parts = self._parts
        number = parts.session.number()
        keys = parts.layout.keys(number, pieces)
        call.doubtful.update(keys)
        failed: list[Exception] = []
        stored = 0

        async def send(piece: int) -> None:
            nonlocal stored
            part = view[piece * self._pack_bytes : (piece + 1) * self._pack_bytes]
            try:
                async with self._turn():
                    if failed:
                        return
                    sealed = await asyncio.to_thread(self._seal_piece, id, number, piece, part)
                    await parts.bucket.put(keys[piece], sealed, create=self.create)
            except ControllerError as error:
                failed.append(error)
                if isinstance(error, _Met):
                    call.doubtful.discard(keys[piece])
            else:
                stored += sum(len(one) for one in sealed)

        async with asyncio.TaskGroup() as group:
            for piece in range(pieces):
                group.create_task(send(piece))
        if failed:
            return failed[0]
        flags = PIECES | parts.codec.flags
        place = Place(len(view), number, 0, stored, flags, parts.codec.key_tag, self._pack_bytes)
        shape = Shape(stored, pieces, 0, parts.codec.key_check, id, len(view), self._pack_bytes)
        parts.books.written(number, shape)
        call.kept += stored
        call.doubtful.difference_update(keys)
        return parts.layout.pack(id, place)

    def _seal_piece(self, id: int, number: int, piece: int, part: memoryview) -> list[Buffer]:
        codec = self._parts.codec
        data, flags = codec.shrink(part)
        return [bytes([flags]), *codec.seal(id, len(part), number, piece, flags | PIECES | codec.flags, data)]

    # -- both ---------------------------------------------------------------------------------------------------------

    def _reserve(self, call: _Call, id: int, stored: int) -> Exception | None:
        if self.room < stored:
            self._refused = min(stored, self._refused or stored)
            return ControllerFull(
                f"controller {self._name!r} has {self.room} of {self._capacity} bytes left, chunk {id} needs {stored}; raise "
                "its capacity or let the next controller take it"
            )
        self._parts.books.used += stored
        call.reserved += stored
        return None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A turn to write.

        Raises:
            ControllerError: What the store is to be told of what failed inside.
        """
        parts = self._parts
        try:
            async with parts.bucket.writing.turn():
                refused = parts.health.refuse(write=True)
                if refused is not None:
                    raise refused
                yield
        except ControllerError:
            raise
        except Taken as error:
            raise _Met(
                f"controller {self._name!r} met an object {error} that it has not written; write again"
            ) from error
        except FAILURES as error:
            raise parts.health.failed(error) from None
