"""The values that the two trees of a thin pool hold, and runs of mappings.

Source: Linux `drivers/md/dm-thin-metadata.c` (pack_block_time, struct disk_device_details).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

TIME_BITS = 24
MAX_TIME = 2**TIME_BITS - 1
MAX_DATA_BLOCK = 2 ** (64 - TIME_BITS) - 1
MAX_DEVICE_ID = 2**24 - 1
MAX_VIRTUAL_BLOCK = 2**64 - 1

MAPPING_BYTES = 8
_DETAILS = struct.Struct("<QQII")
DETAILS_BYTES = _DETAILS.size


def pack_mapping(data_block: int, time: int) -> int:
    """A mapping as the tree's 64-bit value."""
    return data_block << TIME_BITS | time


def unpack_mapping(value: int) -> tuple[int, int]:
    """Data block and time of a mapping's 64-bit value."""
    return value >> TIME_BITS, value & MAX_TIME


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """What a pool keeps about one thin device.

    Attributes:
        mapped_blocks: Number of mappings.
        transaction_id: The pool's transaction id when the device was made.
        creation_time: The pool's time then.
        snapshotted_time: The pool's time at the last snapshot of the device; mappings older than that are taken as shared.
    """

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int

    def pack(self) -> bytes:
        """The 24 bytes on disk."""
        return _DETAILS.pack(self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> DeviceDetails:
        """From the 24 bytes on disk."""
        return cls(*_DETAILS.unpack(data))


class Run(NamedTuple):
    """Consecutive virtual blocks mapped to consecutive data blocks at one time."""

    virtual: int
    data: int
    length: int
    time: int


def runs_of(mappings: Iterable[tuple[int, int]]) -> Iterator[Run]:
    """Join (virtual block, mapping value) pairs in ascending order to the longest runs."""
    start = length = value = 0
    for key, mapping in mappings:
        # One comparison for block and time: the next block at the same time is the value plus 1 << 24.
        if length and key == start + length and mapping == value + (length << TIME_BITS):
            length += 1
            continue
        if length:
            yield Run(start, value >> TIME_BITS, length, value & MAX_TIME)
        start, value, length = key, mapping, 1
    if length:
        yield Run(start, value >> TIME_BITS, length, value & MAX_TIME)
