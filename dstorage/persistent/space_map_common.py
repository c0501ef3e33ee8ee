"""How reference counts lie on disk: two bits for each block in bitmap blocks, an index of these, larger counts in a tree.

A pair of bits says 0, 1, 2, or "3 or more: see the tree". Its two bits are the other way round than one would think: the
lower-numbered bit is the high one.

Source: Linux `drivers/md/persistent-data/dm-space-map-common.h`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from dstorage.persistent.block_manager import BLOCK_BYTES
from dstorage.persistent.validators import Validator

BITMAP = Validator("space map bitmap", 240779)
INDEX = Validator("space map index", 160478)

BITMAP_HEADER_BYTES = 16
INDEX_HEADER_BYTES = 16
BITMAP_ENTRIES = (BLOCK_BYTES - BITMAP_HEADER_BYTES) * 4
MANY = 3
"""In a bitmap: this count or more."""
MAX_COUNT = 2**32 - 1

_INDEX_ENTRY = struct.Struct("<QII")
_MAP_ROOT = struct.Struct("<QQQQ")
INDEX_ENTRY_BYTES = _INDEX_ENTRY.size
MAX_INDEX_ENTRIES = (BLOCK_BYTES - INDEX_HEADER_BYTES) // INDEX_ENTRY_BYTES
"""Of the metadata map, whose index is one block."""

PAIRS = (0, 2, 1, 3)
"""From the two bits to the count they stand for, and back: it is its own inverse."""

_LOW_BITS = int.from_bytes(b"\x55" * (BLOCK_BYTES - BITMAP_HEADER_BYTES), "little")
_FREE_IN = tuple(tuple(place for place in range(4) if not byte >> 2 * place & 3) for byte in range(256))
_SOME_FREE = re.compile(b"[" + b"".join(re.escape(bytes([byte])) for byte in range(256) if _FREE_IN[byte]) + b"]")


class IndexEntry(NamedTuple):
    """About one bitmap.

    Attributes:
        block: Where it is.
        free: Entries with count 0, without those behind the last block.
        hint: No entry before this one is free.
    """

    block: int
    free: int
    hint: int

    def pack(self) -> bytes:
        """The 16 bytes on disk."""
        return _INDEX_ENTRY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> IndexEntry:
        """From the 16 bytes on disk."""
        return cls(*_INDEX_ENTRY.unpack(data))


class MapRoot(NamedTuple):
    """What a superblock keeps of a space map.

    Attributes:
        nr_blocks: Blocks it counts references of.
        nr_allocated: Of these, those with a count above 0.
        index_root: Root of the index: a tree's, or the index block itself.
        overflow_root: Root of the tree of counts of 3 and more.
    """

    nr_blocks: int
    nr_allocated: int
    index_root: int
    overflow_root: int

    def pack(self) -> bytes:
        """The 32 bytes on disk."""
        return _MAP_ROOT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> MapRoot:
        """From the 32 bytes on disk."""
        return cls(*_MAP_ROOT.unpack(data))


def bits_of(data: memoryview) -> memoryview:
    """The pairs of bits of a bitmap block; to be given to `peek`."""
    return data[BITMAP_HEADER_BYTES:]


def nr_bitmaps(nr_blocks: int) -> int:
    """Bitmaps needed for so many blocks."""
    return -(-nr_blocks // BITMAP_ENTRIES)


def free_entries(bits: memoryview, first: int, end: int) -> Iterator[int]:
    """Entries with count 0 from `first` to before `end`, ascending."""
    for match in _SOME_FREE.finditer(bits, first >> 2, end + 3 >> 2):
        at = match.start()
        for place in _FREE_IN[bits[at]]:
            entry = 4 * at + place
            if first <= entry < end:
                yield entry


def summary(bits: memoryview, valid: int) -> tuple[int, int]:
    """How many of the first `valid` entries are free, and which is the first one (`valid` if none)."""
    number = int.from_bytes(bits, "little")
    used = ((number | number >> 1) & _LOW_BITS & (1 << 2 * valid) - 1).bit_count()
    return valid - used, next(free_entries(bits, 0, valid), valid)
