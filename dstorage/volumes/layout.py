"""Layouts of the metadata's blocks, as the offline parts (restore, dump, check) need them.

Source: Linux `drivers/md/persistent-data` (dm-btree-internal.h, dm-space-map-common.h).
"""

from __future__ import annotations

import struct

import google_crc32c

BLOCK_BYTES = 4096
SUPERBLOCK_SALT = 160774
NODE_SALT = 121107
BITMAP_SALT = 240779
INDEX_SALT = 160478

INTERNAL = 1
LEAF = 2
NODE_HEADER = struct.Struct("<IIQIIII")
"""Checksum, flags, block, entries, room for entries, bytes of a value, padding."""

BITMAP_ENTRIES = 16320
MAX_BITMAPS = 255
MAX_METADATA_BLOCKS = MAX_BITMAPS * BITMAP_ENTRIES
BITMAP_HEADER_BYTES = 16
INDEX_HEADER_BYTES = 16
INDEX_ENTRY = struct.Struct("<QII")
"""Block of the bitmap, its free entries, the first that may be free."""
MAP_ROOT = struct.Struct("<QQQQ")
"""Blocks, allocated blocks, root of the bitmaps, root of the overflow tree."""

_LOCATION = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")


def max_entries(value_size: int) -> int:
    """Entries that a node with values of so many bytes has room for; always a multiple of 3."""
    return (BLOCK_BYTES - NODE_HEADER.size) // (8 + value_size) // 3 * 3


def checksum(block: bytes | bytearray, salt: int) -> int:
    """CRC-32C of all but the first four bytes, without the final inversion, mixed with the kind's salt."""
    return int(google_crc32c.value(bytes(memoryview(block)[4:]))) ^ 0xFFFFFFFF ^ salt


def seal(block: bytearray, number: int, salt: int) -> bytearray:
    """Put its location and checksum into a block; all kinds but array blocks have them at these places."""
    _LOCATION.pack_into(block, 8, number)
    _CHECKSUM.pack_into(block, 0, checksum(block, salt))
    return block
