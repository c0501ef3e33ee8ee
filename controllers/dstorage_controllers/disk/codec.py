"""From a chunk's bytes to the bytes stored, and back: compression where it pays, encryption, checksum.

* **zstd** where it pays (see `compression`).
* **AES-256-GCM** over that, with a key (see `cipher`). Locators are not authenticated, so with a key nothing is taken that they say
  was stored without.
* **xxh3_64** (low half) over what is stored, seeded with id and flags. It tells damage from a wrong key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

from dstorage.controller import Buffer
from dstorage.errors import CorruptData
from dstorage_controllers.compression import Compression
from dstorage_controllers.disk.layout import AES, NOWHERE, ZSTD, Place

if TYPE_CHECKING:
    from dstorage_controllers.disk.cipher import Cipher


PIECE_BYTES = 64 * 2**10
"""For more than that xxhash gives the interpreter's lock away."""
MOST_PIECES = 4
"""Up to so many are some microseconds' work, after which the lock may come back milliseconds later, if another thread computes."""


def checksum(id: int, flags: int, stored: Buffer) -> int:
    """32 bits over the stored bytes, whose they are and how they are stored."""
    seed = id ^ flags << 62
    if PIECE_BYTES < len(stored) <= MOST_PIECES * PIECE_BYTES:
        hash, view = xxhash.xxh3_64(seed=seed), memoryview(stored)
        for first in range(0, len(stored), PIECE_BYTES):
            hash.update(view[first : first + PIECE_BYTES])
        return hash.intdigest() & 0xFFFFFFFF
    return xxhash.xxh3_64_intdigest(stored, seed) & 0xFFFFFFFF


class Codec:
    """Encodes and decodes the chunks of one store; safe to use from several threads.

    Args:
        level: zstd level, 0 for none.
        cipher: To encrypt with, or None.
    """

    def __init__(self, *, level: int = 0, cipher: Cipher | None = None) -> None:
        self._compression = Compression(level)
        self._cipher = cipher
        self.overhead = 0 if cipher is None else cipher.overhead
        """Bytes added to each chunk beyond what compression leaves."""
        self.takes_plain = cipher is None
        """Whether stored bytes without flags are the chunk as they are; with a cipher they are nobody's."""

    def compress(self, data: memoryview) -> tuple[Buffer, int]:
        """The bytes to keep of a chunk, and the flags that say how; `data` itself where compression does not pay."""
        packed = self._compression.shrink(data)
        return (data, 0) if packed is None else (packed, ZSTD)

    def seal(self, id: int, place: Place, data: Buffer) -> tuple[Buffer, Place]:
        """Encrypt (with a cipher) and checksum bytes for their place: what to store, and the place completed."""
        if self._cipher is not None:
            place = place._replace(flags=place.flags | AES)
            data = self._cipher.encrypt(id, place, data)
        return data, place._replace(checksum=checksum(id, place.flags, data))

    def nothing(self, id: int) -> Place:
        """The place of an empty chunk, which is kept nowhere: it has a seal all the same."""
        if self._cipher is None:
            return NOWHERE._replace(checksum=checksum(id, 0, b""))
        return NOWHERE._replace(flags=AES, checksum=self._cipher.mark(id))

    def matches(self, id: int, place: Place, stored: Buffer) -> bool:
        """Whether stored bytes pass their checksum."""
        return checksum(id, place.flags, stored) == place.checksum

    def decode(self, id: int, place: Place, stored: Buffer) -> Buffer:
        """The chunk in stored bytes that `matches` has passed.

        Raises:
            CorruptData: They are not what was written there, or the key is not the one they were written with.
        """
        if place.flags & AES:
            if self._cipher is None:
                raise CorruptData(f"chunk {id} is encrypted; give the controller its key (key_file or key_env)", id=id)
            stored = self._cipher.decrypt(id, place, stored)
        elif self._cipher is not None:
            raise CorruptData(
                f"chunk {id} is not encrypted, as all is that this controller wrote: it was forged, or its record is damaged; "
                "put the store back from a backup",
                id=id,
            )
        if place.flags & ZSTD:
            return self._compression.expand(id, place.size, stored)
        if len(stored) != place.size:
            raise CorruptData(f"chunk {id} has {len(stored)} bytes on disk, not {place.size}", id=id)
        return stored
