"""Chunks in this process's own memory: a "fake memory drive", or, compressed, what zswap is to a kernel.

Volatile: the bytes end with the process. A locator's `b` is the number of a slot, `c` a random number of the open
instance, so that a locator left behind by an earlier process is told to be lost and never answered with other bytes.
Bytes are copied in and out, because a reader owns what it gets and a writer keeps what it gave.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, NamedTuple

import zstandard

from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Settings,
    Space,
    WriteRequest,
)
from dstorage.errors import ControllerError, ControllerFull, CorruptData, InvalidArgumentError, Lost
from dstorage.record import Locator

MAX_ZSTD_LEVEL = 22
DEFAULT_LEVEL = 1
"""What `compress=True` means: the fastest of zstd's ordinary levels; memory is meant to be fast."""

INLINE_BYTES = 4 * 2**20
"""Copied without giving the loop a turn: about what one page-cached read of the largest inline size costs."""

INLINE_DECODE_BYTES = 64 * 2**10
"""Decompressed on the loop at most: beyond it the work costs more than a page-cached read of the same bytes."""


class _Slot(NamedTuple):
    id: int
    size: int
    data: bytes
    compressed: bool


class RamController(Controller):
    """Keeps chunks in memory, optionally compressed.

    Args:
        name: The name under which the store lists it.
        capacity: Bytes of (compressed) chunks to keep at most; None for no limit but the machine's.
        rank: Performance class.
        compress: False, True, or a zstd level 1 to 22. What zstd does not shrink is kept as it is.

    Raises:
        InvalidArgumentError: `capacity` is negative or `compress` is no level.
    """

    kind: ClassVar[str] = "ram"
    volatile = True

    def __init__(
        self, name: str = "ram", capacity: int | None = None, *, rank: int = 100, compress: bool | int = False
    ) -> None:
        if capacity is not None and (not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0):
            raise InvalidArgumentError(f"capacity must be a number of bytes >= 0 or None, not {capacity!r}")
        if not isinstance(compress, int) or not 0 <= compress <= MAX_ZSTD_LEVEL:
            raise InvalidArgumentError(
                f"compress must be a bool or a zstd level up to {MAX_ZSTD_LEVEL}, not {compress!r}"
            )
        super().__init__(name, rank=rank, settings={"capacity": capacity, "compress": compress, "rank": rank})
        self._capacity = capacity
        self._level = DEFAULT_LEVEL if compress is True else int(compress)
        self._slots: dict[int, _Slot] | None = None
        self._next = 1
        self._session = 0
        self._used = 0
        self._refused: int | None = None
        self._context: OpenContext | None = None
        self._threads: ThreadPoolExecutor | None = None

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> RamController:
        """Build one from what the catalog kept.

        Raises:
            InvalidArgumentError: A setting is unknown or out of range.
        """
        unknown = settings.keys() - {"capacity", "compress", "rank"}
        if unknown:
            raise InvalidArgumentError(f"RAM controller {name!r} has unknown settings: {', '.join(sorted(unknown))}")
        capacity, compress, rank = settings.get("capacity"), settings.get("compress", False), settings.get("rank", 100)
        if (
            not (capacity is None or isinstance(capacity, int))
            or not isinstance(compress, int)
            or not isinstance(rank, int)
        ):
            raise InvalidArgumentError(f"RAM controller {name!r}: capacity, compress and rank must be whole numbers")
        return cls(name, capacity, rank=rank, compress=compress)

    @property
    def status(self) -> ControllerStatus:
        """FULL while the smallest chunk it had to refuse would still not fit."""
        if self._refused is not None and self._room() < self._refused:
            return ControllerStatus.FULL
        return ControllerStatus.OK

    def space(self) -> Space:
        """The capacity, and the bytes kept (compressed ones as they are kept)."""
        return Space(self._capacity, self._used)

    async def open(self, context: OpenContext) -> None:
        """Start empty."""
        self._slots = {}
        self._session = secrets.randbits(64)
        self._context = context
        if self._level:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"dstorage-{self.name}")

    async def close(self) -> None:
        """Forget everything."""
        self._slots = None
        self._used = 0
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Copy the bytes out; None only where decompressing them would hold up the loop."""
        slot = self._slot(id, locator)
        if not slot.compressed:
            return bytearray(slot.data)
        return self._decompress(slot) if slot.size <= INLINE_DECODE_BYTES else None

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Copy the bytes out, large compressed ones through a thread."""
        answers: list[Buffer | Exception] = []
        copied = 0
        for id, locator in requests:
            try:
                answer = self.read_nowait(id, locator)
                if answer is None:
                    answer = await self._in_thread_decompress(self._slot(id, locator))
                answers.append(answer)
            except (Lost, CorruptData) as error:
                answers.append(error)
            copied = await self._breathe(copied + locator.size)
        return answers

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Copy the bytes in; a request beyond the capacity is answered with `ControllerFull`."""
        self._open_slots()
        answers: list[Locator | Exception] = []
        was = self.status
        copied = 0
        try:
            for id, data in requests:
                answers.append(await self._put(id, memoryview(data).cast("B")))
                copied = await self._breathe(copied + memoryview(data).nbytes)
        except BaseException:
            # Cancelled: nobody will ever name these slots, so they must not count as used.
            self._free([(r.id, a) for r, a in zip(requests, answers, strict=False) if isinstance(a, Locator)])
            raise
        self._tell(was)
        return answers

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Free the slots; those that are unknown or belong to another chunk are left alone."""
        was = self.status
        self._free(locators)
        self._tell(was)

    async def sync(self) -> None:
        """Nothing to do: a volatile controller promises nothing."""
        self._open_slots()

    # -- private ------------------------------------------------------------------------------------------------------

    def _open_slots(self) -> dict[int, _Slot]:
        if self._slots is None:
            raise ControllerError(f"RAM controller {self.name!r} is not open")
        return self._slots

    def _slot(self, id: int, locator: Locator) -> _Slot:
        slots = self._open_slots()
        slot = slots.get(locator.b) if locator.c == self._session else None
        if slot is None or slot.id != id or slot.size != locator.size:
            raise Lost(
                "it was kept in the memory of a process that has ended, or was discarded", id=id, controller=self.name
            )
        return slot

    def _room(self) -> int | float:
        return float("inf") if self._capacity is None else self._capacity - self._used

    async def _put(self, id: int, data: memoryview) -> Locator | Exception:
        kept, compressed = await self._keep(data)
        slots = self._open_slots()
        if self._room() < len(kept):
            self._refused = min(len(kept), len(kept) if self._refused is None else self._refused)
            return ControllerFull(
                f"RAM controller {self.name!r} has {self._room()} of {self._capacity} bytes left, chunk {id} needs "
                f"{len(kept)}; raise its capacity or let the next controller take it"
            )
        number = self._next
        self._next += 1
        slots[number] = _Slot(id, len(data), kept, compressed)
        self._used += len(kept)
        return Locator(len(data), number, self._session)

    async def _keep(self, data: memoryview) -> tuple[bytes, bool]:
        if self._threads is not None and len(data) > 64:
            level = self._level
            squeeze = zstandard.ZstdCompressor(level=level).compress
            if len(data) <= INLINE_DECODE_BYTES // 4:
                packed = squeeze(data)
            else:
                packed = await asyncio.get_running_loop().run_in_executor(self._threads, squeeze, data)
            if len(packed) < len(data):
                return packed, True
        return bytes(data), False

    def _decompress(self, slot: _Slot) -> bytes:
        try:
            return zstandard.ZstdDecompressor().decompress(slot.data, max_output_size=slot.size)
        except zstandard.ZstdError as error:
            raise CorruptData(f"its memory was overwritten: {error}", id=slot.id, controller=self.name) from error

    async def _in_thread_decompress(self, slot: _Slot) -> bytes:
        assert self._threads is not None, "only a compressing controller has compressed slots"
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decompress, slot)

    async def _breathe(self, copied: int) -> int:
        if copied < INLINE_BYTES:
            return copied
        await asyncio.sleep(0)
        return 0

    def _free(self, locators: Sequence[tuple[int, Locator]]) -> None:
        if self._slots is None:
            return
        for id, locator in locators:
            slot = self._slots.get(locator.b)
            if slot is not None and slot.id == id and locator.c == self._session:
                del self._slots[locator.b]
                self._used -= len(slot.data)

    def _tell(self, was: ControllerStatus) -> None:
        now = self.status
        if now is ControllerStatus.OK:
            self._refused = None
        if now is not was and self._context is not None:
            self._context.status_changed()
