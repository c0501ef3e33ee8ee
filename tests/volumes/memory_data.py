"""A data device in memory that can be held up, and can fail."""

from __future__ import annotations

import asyncio
import errno


class MemoryData:
    """Bytes, 0xEE where nobody wrote: what a disk may hold of somebody else."""

    def __init__(self, size: int = 0) -> None:
        self.bytes = bytearray(b"\xee" * size)
        self.fails = ""
        """Name of the call that fails."""
        self.open = asyncio.Event()
        """Cleared, writes wait before they do anything."""
        self.open.set()
        self.waiting = 0
        self.flushes = 0
        self.discarded: list[tuple[int, int]] = []

    @property
    def size(self):
        return len(self.bytes)

    def _step(self, name):
        if self.fails == name:
            raise OSError(errno.EIO, f"{name} failed")

    async def pread(self, length, offset, /):
        self._step("pread")
        await asyncio.sleep(0)
        return bytes(self.bytes[offset : offset + length])

    async def pwrite(self, data, offset, /):
        self._step("pwrite")
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        assert offset + len(data) <= len(self.bytes)
        self.bytes[offset : offset + len(data)] = data

    async def flush(self):
        self._step("flush")
        self.flushes += 1

    async def discard(self, offset, length, /):
        self._step("discard")
        self.discarded.append((offset, length))
        self.bytes[offset : offset + length] = b"\xee" * length

    async def truncate(self, size, /):
        self._step("truncate")
        self.bytes = self.bytes[:size] + b"\xee" * max(0, size - len(self.bytes))
