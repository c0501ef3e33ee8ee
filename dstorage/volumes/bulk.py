"""Blocks written one behind the other: trees, and space maps from final counts, each node once.

Source: layouts of Linux `drivers/md/persistent-data`; the bulk building is this module's own.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import islice

from dstorage.persistent import positioned
from dstorage.volumes.counts import DataCounts
from dstorage.volumes.layout import (
    BITMAP_ENTRIES,
    BITMAP_HEADER_BYTES,
    BITMAP_SALT,
    BLOCK_BYTES,
    INDEX_ENTRY,
    INDEX_HEADER_BYTES,
    INDEX_SALT,
    INTERNAL,
    LEAF,
    MAP_ROOT,
    NODE_HEADER,
    NODE_SALT,
    max_entries,
    seal,
)

WRITE_BLOCKS = 256
"""Blocks gathered for one write."""


class BulkWriter:
    """Writes blocks one behind the other, block 0 excepted."""

    def __init__(self, fd: int, nr_blocks: int) -> None:
        self.nr_blocks = nr_blocks
        self.used = 1
        self._fd = fd
        self._gathered: list[bytearray] = []

    def put(self, block: bytearray, salt: int) -> int:
        """Write a block in the next place, and tell which."""
        number = self.used
        # The surveyed need is exact or too high; this guards the code, not the user.
        assert number < self.nr_blocks
        self.used += 1
        self._gathered.append(seal(block, number, salt))
        if len(self._gathered) == WRITE_BLOCKS:
            self.flush()
        return number

    def flush(self) -> None:
        """Hand over what was gathered."""
        positioned.pwrite(self._fd, b"".join(self._gathered), (self.used - len(self._gathered)) * BLOCK_BYTES)
        self._gathered.clear()

    def tree(self, entries: Iterator[tuple[int, bytes]], count: int, value_size: int) -> int:
        """Write a tree of `count` entries in ascending order, all nodes of a level equally full; gives its root."""
        if not count:
            return self._node([], LEAF, value_size)
        flags = LEAF
        while True:
            nodes = -(-count // max_entries(value_size))
            level = self._level(entries, count, nodes, flags, value_size)
            if nodes == 1:
                return struct.unpack("<Q", next(level)[1])[0]  # type: ignore[no-any-return]
            entries, count, flags, value_size = level, nodes, INTERNAL, 8

    def _level(
        self, entries: Iterator[tuple[int, bytes]], count: int, nodes: int, flags: int, value_size: int
    ) -> Iterator[tuple[int, bytes]]:
        for number in range(nodes):
            part = list(islice(entries, count * (number + 1) // nodes - count * number // nodes))
            yield part[0][0], struct.pack("<Q", self._node(part, flags, value_size))

    def _node(self, entries: list[tuple[int, bytes]], flags: int, value_size: int) -> int:
        block = bytearray(BLOCK_BYTES)
        most = max_entries(value_size)
        NODE_HEADER.pack_into(block, 0, 0, flags, 0, len(entries), most, value_size, 0)
        struct.pack_into(f"<{len(entries)}Q", block, NODE_HEADER.size, *[key for key, _ in entries])
        values = b"".join([value for _, value in entries])
        start = NODE_HEADER.size + 8 * most
        block[start : start + len(values)] = values
        return self.put(block, NODE_SALT)


def write_data_map(writer: BulkWriter, counts: DataCounts) -> bytes:
    """The data space map; gives its 32-byte root."""
    entries = bytearray()
    crowded: list[int] = []
    allocated = overflowing = 0
    for first in range(0, counts.nr_blocks, BITMAP_ENTRIES):
        part = counts.part(first, min(BITMAP_ENTRIES, counts.nr_blocks - first))
        block, free, hint, many = _bitmap(part)
        if many:
            crowded.append(first)
            overflowing += many
        allocated += len(part) - free
        entries += INDEX_ENTRY.pack(writer.put(block, BITMAP_SALT), free, hint)

    def overflow() -> Iterator[tuple[int, bytes]]:
        for first in crowded:
            part = counts.part(first, min(BITMAP_ENTRIES, counts.nr_blocks - first))
            for number, count in enumerate(part):
                if count > 2:
                    yield first + number, struct.pack("<I", count)

    size = INDEX_ENTRY.size
    index = ((number, bytes(entries[number * size : (number + 1) * size])) for number in range(len(entries) // size))
    index_root = writer.tree(index, len(entries) // size, size)
    overflow_root = writer.tree(overflow(), overflowing, 4)
    return MAP_ROOT.pack(counts.nr_blocks, allocated, index_root, overflow_root)


_PAIRS = bytes([0, 2, 1, 3])
"""Counts 0, 1, 2, more as the pair of bits on disk: the first of the two is the higher one."""


def _bitmap(counts: array[int]) -> tuple[bytearray, int, int, int]:
    """A bitmap block of up to 16320 counts: the block, how many are 0, the first that is, how many are above 2."""
    block = bytearray(BLOCK_BYTES)
    size = len(counts)
    if not any(counts):
        return block, size, 0, 0
    pairs = bytes([_PAIRS[count] if count < 3 else 3 for count in counts])
    free = pairs.count(0)
    hint = pairs.find(0) if free else size
    padded = pairs + bytes(-size % 4)
    # Four counts make a byte, the first in its lowest bits; whole columns at once.
    whole = 0
    for place in range(4):
        whole |= int.from_bytes(padded[place::4], "little") << 2 * place
    end = BITMAP_HEADER_BYTES + len(padded) // 4
    block[BITMAP_HEADER_BYTES:end] = whole.to_bytes(len(padded) // 4, "little")
    return block, free, hint, pairs.count(3)


def write_metadata_map(writer: BulkWriter, shared_block: int, references: int) -> bytes:
    """The metadata space map, which covers its own blocks; gives its 32-byte root.

    All blocks are used once; only the root of the empty devices has `references`.
    """
    bitmaps = -(-writer.nr_blocks // BITMAP_ENTRIES)
    overflow = [(shared_block, struct.pack("<I", references))] if references > 2 else []
    overflow_root = writer.tree(iter(overflow), len(overflow), 4)
    used = writer.used + bitmaps + 1
    index = bytearray(BLOCK_BYTES)
    for number in range(bitmaps):
        first = number * BITMAP_ENTRIES
        size = min(BITMAP_ENTRIES, writer.nr_blocks - first)
        taken = min(size, max(0, used - first))
        counts = array("I", b"\1\0\0\0" * taken + bytes(4 * (size - taken)))
        if references > 1 and first <= shared_block < first + size:
            counts[shared_block - first] = references
        block, free, hint, _ = _bitmap(counts)
        INDEX_ENTRY.pack_into(
            index, INDEX_HEADER_BYTES + number * INDEX_ENTRY.size, writer.put(block, BITMAP_SALT), free, hint
        )
    index_block = writer.put(index, INDEX_SALT)
    assert writer.used == used
    return MAP_ROOT.pack(writer.nr_blocks, used, index_block, overflow_root)


def tree_blocks(count: int, value_size: int) -> int:
    """Nodes that `BulkWriter.tree` makes of `count` entries."""
    nodes = -(-max(1, count) // max_entries(value_size))
    total = nodes
    while nodes > 1:
        nodes = -(-nodes // max_entries(8))
        total += nodes
    return total
