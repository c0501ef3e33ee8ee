"""Reading: chunks of one pack by one request where they are near each other, pieces side by side, all within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from dstorage.controller import Buffer, ReadRequest
from dstorage.errors import ControllerError, ControllerUnavailable, CorruptData, DStorageError, Lost
from dstorage.record import Locator
from dstorage_controllers.internet.books import Shape
from dstorage_controllers.internet.bucket import FAILURES, Cut, Gone, is_reply, said
from dstorage_controllers.internet.layout import AES, INDEX_ID, MAX_SEAL, PIECES, ZSTD, Place, unpack_index
from dstorage_controllers.internet.parts import INLINE_BYTES, Parts

GAP_BYTES = 256 * 2**10
"""Up to so many bytes between two chunks of a pack are read along: they cost less than a second request."""
RUN_BYTES = 2**20 + 2**16
"""A run of chunks is read by requests of at most this length, a mebibyte and room for the seals: several side by side are faster
than one."""

CHECKED_AT_ONCE = 64
"""Indexes; fewer are on their way at a time."""


class _Wanted(NamedTuple):
    at: int
    id: int
    place: Place


class Reader:
    """Reads for one controller.

    Args:
        name: The controller's name, for messages.
        parts: The open controller.
        connections: Most pieces of chunks in memory at a time, sealed and plain.
        known: Name of an object that is there, or about which the bucket can at least say that it is not.
        patience: Seconds to ask for that.
    """

    def __init__(self, name: str, parts: Parts, connections: int, *, known: str, patience: float) -> None:
        self._name = name
        self._parts = parts
        self._known = known
        self._patience = patience
        self._pieces = asyncio.Semaphore(connections)

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Answer each request with its chunk or what befell it."""
        answers: list[Buffer | Exception] = [b""] * len(requests)
        jobs: list[Coroutine[Any, Any, None]] = []
        packed: list[_Wanted] = []
        refused = self._parts.health.refuse(write=False)
        for at, (id, locator) in enumerate(requests):
            try:
                place = self._parts.layout.unpack(id, locator)
            except CorruptData as error:
                answers[at] = error
                continue
            if not place.size:
                continue
            if refused is not None:
                answers[at] = refused
            elif place.flags & PIECES:
                jobs.append(self._cut(_Wanted(at, id, place), answers))
            else:
                packed.append(_Wanted(at, id, place))
        jobs += [self._run(run, answers) for run in _runs(packed)]
        if len(jobs) == 1:
            await jobs[0]
        elif jobs:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        return answers

    async def contents(self, number: int, shape: Shape) -> list[tuple[int, Locator]]:
        """All chunks that were ever in an object.

        Raises:
            Lost, CorruptData, ControllerUnavailable: Its index cannot be read.
        """
        parts = self._parts
        flags = AES if any(shape.key) else 0
        if shape.pieces:
            place = Place(shape.size, number, 0, shape.stored, PIECES | flags, shape.key[0], shape.piece)
            return [(shape.id, parts.layout.pack(shape.id, place))]
        sealed = await self._fetch(INDEX_ID, parts.layout.key(number), shape.stored, shape.index_bytes)
        size = shape.index_bytes - parts.codec.overhead(flags)
        plain = parts.codec.open(INDEX_ID, size, number, 0, flags, shape.key[0], sealed)
        try:
            return unpack_index(bytes(plain))
        except ValueError as error:
            raise CorruptData(f"the index of pack {number:x} makes no sense: {error}") from error

    async def damaged_indexes(self) -> int:
        """In how many packs chunks can be read, and not be found."""
        books = self._parts.books

        async def damaged(number: int) -> bool:
            try:
                await self.contents(number, books[number].shape)
            except CorruptData:
                return True
            except (Lost, ControllerUnavailable):
                # Shown by its chunks.
                return False
            return False

        numbers, found = list(books), 0
        for start in range(0, len(numbers), CHECKED_AT_ONCE):
            some = [number for number in numbers[start : start + CHECKED_AT_ONCE] if number in books]
            found += sum(await asyncio.gather(*map(damaged, some)))
        return found

    # -- packs --------------------------------------------------------------------------------------------------------

    async def _run(self, run: list[_Wanted], answers: list[Buffer | Exception]) -> None:
        start = run[0].place.offset
        end = max(wanted.place.offset + wanted.place.stored for wanted in run)
        try:
            # Short answers are shown by the seals of the chunks that are cut off.
            data = await self._fetch(run[0].id, self._parts.layout.key(run[0].place.number), start, end - start)
        except DStorageError as error:
            for wanted in run:
                answers[wanted.at] = self._about(error, wanted.id)
            return
        if end - start <= INLINE_BYTES:
            self._open(run, start, data, answers)
        else:
            await asyncio.to_thread(self._open, run, start, data, answers)

    def _open(self, run: list[_Wanted], start: int, data: memoryview, answers: list[Buffer | Exception]) -> None:
        for at, id, place in run:
            offset = place.offset - start
            sealed = data[offset : offset + place.stored]
            try:
                if len(sealed) < place.stored:
                    raise CorruptData(f"the object of chunk {id} is shorter than it was", id=id, controller=self._name)
                plain = self._parts.codec.open(id, place.size, place.number, 0, place.flags, place.key, sealed)
                # A view would keep its neighbours in memory as well.
                answers[at] = bytes(plain) if len(run) > 1 and isinstance(plain, memoryview) else plain
            except CorruptData as error:
                answers[at] = error

    # -- pieces -------------------------------------------------------------------------------------------------------

    async def _cut(self, wanted: _Wanted, answers: list[Buffer | Exception]) -> None:
        at, id, place = wanted
        target = bytearray(place.size)
        try:
            async with asyncio.TaskGroup() as group:
                for piece in range(-(-place.size // place.piece)):
                    group.create_task(self._piece(id, place, piece, target))
        except BaseExceptionGroup as group_error:
            known, other = group_error.split(DStorageError)
            if other is not None:
                raise
            assert known is not None
            answers[at] = _first(known)
        else:
            answers[at] = target

    async def _piece(self, id: int, place: Place, piece: int, target: bytearray) -> None:
        async with self._pieces:
            start = piece * place.piece
            size = min(place.piece, place.size - start)
            key = self._parts.layout.piece_key(place.number, piece)
            sealed = await self._fetch(id, key, 0, size + MAX_SEAL)
            if not sealed:
                raise CorruptData(f"piece {piece} of chunk {id} is empty in the bucket", id=id, controller=self._name)
            # Whether a piece is compressed is said by its first byte, and bound into its seal.
            flags = place.flags & ~ZSTD | sealed[0] & ZSTD
            codec = self._parts.codec
            plain = await asyncio.to_thread(codec.open, id, size, place.number, piece, flags, place.key, sealed[1:])
            target[start : start + size] = plain

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _fetch(self, id: int, key: str, start: int, length: int) -> memoryview:
        parts = self._parts
        try:
            async with parts.bucket.reading.turn():
                refused = parts.health.refuse(write=False)
                if refused is not None:
                    raise refused
                return await parts.bucket.get(key, start, length)
        except ControllerError:
            raise
        except Gone:
            raise Lost("its object is not in the bucket any more", id=id, controller=self._name) from None
        except Cut as error:
            raise CorruptData(
                f"the object of chunk {id} is shorter than it was", id=id, controller=self._name
            ) from error
        except FAILURES as error:
            if is_reply(error) and await self.is_well():
                # An object in an archive, on a broken disk, with a key that is not to be had: all others can be read.
                raise ControllerUnavailable(
                    f"the bucket of {self._name!r} does not give the object of chunk {id} now: {said(error)}"
                ) from None
            raise parts.health.failed(error) from None

    async def is_well(self) -> bool:
        """Whether the bucket gives other objects."""
        try:
            await self._parts.bucket.get(self._known, 0, 1, patience=self._patience)
        except FAILURES:
            return False
        except (Gone, Cut):
            return True
        return True

    def _about(self, error: DStorageError, id: int) -> DStorageError:
        """The error of a run as one of a chunk."""
        if isinstance(error, Lost):
            return Lost(error.reason, id=id, controller=self._name)
        if isinstance(error, CorruptData):
            return CorruptData(f"the object of chunk {id} is shorter than it was", id=id, controller=self._name)
        return error


def _runs(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Chunks that are read by one request each."""
    runs: list[list[_Wanted]] = []
    end = 0
    for one in sorted(wanted, key=lambda one: (one.place.number, one.place.offset)):
        place = one.place
        if runs:
            first = runs[-1][0].place
            near = place.number == first.number and place.offset <= end + GAP_BYTES
            if near and place.offset + place.stored <= first.offset + RUN_BYTES:
                runs[-1].append(one)
                end = max(end, place.offset + place.stored)
                continue
        runs.append([one])
        end = place.offset + place.stored
    return runs


def _first(errors: BaseExceptionGroup[DStorageError]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
