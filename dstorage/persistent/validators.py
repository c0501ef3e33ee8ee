"""What every kind of metadata block must show before its bytes are believed, and what it is given when it is written.

A checksum over all but its own four bytes, mixed with a salt of the kind, so that a block of another kind fails as well; the
block's own number, so that one written to a wrong place fails; and rules of the kind's own. The CRC-32C comes from google-crc32c,
which uses the processor's instruction for it.

Source: Linux `drivers/md/persistent-data/dm-block-manager.h` (struct dm_block_validator).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c

Buffer = bytes | bytearray | memoryview

_CHECKSUM = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, eq=False)
class Validator:
    """A kind of block; two are the same only if they are one object.

    Attributes:
        name: For messages.
        salt: Mixed into the checksum.
        number_at: Where in the block its number is.
        rules: Says what else is wrong with a block whose checksum and number are right, or None.
    """

    name: str
    salt: int
    number_at: int = 8
    rules: Callable[[Buffer], str | None] | None = None

    def seal(self, data: bytearray, number: int) -> None:
        """Put number and checksum into a block that is about to be written."""
        _NUMBER.pack_into(data, self.number_at, number)
        _CHECKSUM.pack_into(data, 0, self.checksum(data))

    def problem(self, data: Buffer, number: int) -> str | None:
        """What is wrong with a block read from place `number`, or None."""
        if _CHECKSUM.unpack_from(data)[0] != self.checksum(data):
            return "wrong checksum"
        (found,) = _NUMBER.unpack_from(data, self.number_at)
        if found != number:
            return f"it says that it is block {found}"
        return None if self.rules is None else self.rules(data)

    def checksum(self, data: Buffer) -> int:
        """CRC-32C of all but the first four bytes, without the final inversion, mixed with the salt."""
        return int(google_crc32c.value(bytes(memoryview(data)[4:]))) ^ 0xFFFFFFFF ^ self.salt
