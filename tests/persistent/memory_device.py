"""A device in memory that remembers what was done to it."""

from __future__ import annotations

import errno


class MemoryDevice:
    """Bytes; `log` has every write and sync since it was last cleared: (offset, data), or None for a sync."""

    def __init__(self, nr_blocks: int, name: str = "memory") -> None:
        self.name = name
        self.bytes = bytearray(4096 * nr_blocks)
        self.log: list[tuple[int, bytes] | None] = []
        self.reads = 0
        self.wanted: list[tuple[int, int]] = []
        self.fails_after: int | None = None
        """Writes and syncs that still succeed; None for all."""

    @property
    def size(self):
        return len(self.bytes)

    def pread(self, length, offset):
        self.reads += 1
        return bytes(self.bytes[offset : offset + length])

    def pwrite(self, data, offset):
        self._step()
        assert offset + len(data) <= len(self.bytes)
        self.bytes[offset : offset + len(data)] = data
        self.log.append((offset, bytes(data)))

    def sync(self):
        self._step()
        self.log.append(None)

    def will_need(self, length, offset):
        self.wanted.append((length, offset))

    def truncate(self, size):
        self.bytes = self.bytes[:size] + bytes(max(0, size - len(self.bytes)))

    def close(self):
        pass

    def written(self):
        """Numbers of the blocks written, None for each sync."""
        numbers: list[int | None] = []
        for entry in self.log:
            if entry is None:
                numbers.append(None)
            else:
                numbers += range(entry[0] // 4096, (entry[0] + len(entry[1])) // 4096)
        return numbers

    def _step(self):
        if self.fails_after is not None:
            if not self.fails_after:
                raise OSError(errno.EIO, "the device failed")
            self.fails_after -= 1
