"""From a chunk's bytes to the bytes stored, and back: compression where it pays, encryption, checksum.

* **zstd** is tried on a small sample first and kept only when it saves a sixteenth, so what does not shrink costs a
  probe to write and nothing to read.
* **AES-256-GCM** over that, with a key (see `cipher`).
* **xxh3_64** (low half) over what is stored, seeded with id and flags. It tells damage from a wrong key.

A frame from disk is checked before it is believed: its content size must be the chunk's before anything is allocated.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import xxhash
import zstandard

from dstorage.controller import Buffer
from dstorage.errors import CorruptData
from dstorage_controllers.disk.layout import AES, ZSTD, Place

if TYPE_CHECKING:
    from dstorage_controllers.disk.cipher import Cipher

SAMPLE_BYTES = 4096
PROBE_FROM = 4 * SAMPLE_BYTES
"""Smaller chunks are simply compressed: the sample would be a fair part of them."""
MIN_SAVING = 16
"""Compressed bytes are kept when they save at least 1/16: less is not worth decompressing for."""
SMALLEST = 64
"""Chunks below it are not compressed: a frame's header alone has a dozen bytes."""


def checksum(id: int, flags: int, stored: Buffer) -> int:
    """32 bits over the stored bytes, whose they are and how they are stored."""
    return xxhash.xxh3_64_intdigest(stored, id ^ flags << 62) & 0xFFFFFFFF


class Codec:
    """Encodes and decodes the chunks of one store; safe to use from several threads.

    Args:
        level: zstd level, 0 for none.
        cipher: To encrypt with, or None.
    """

    def __init__(self, *, level: int = 0, cipher: Cipher | None = None) -> None:
        self._level = level
        self._cipher = cipher
        self._local = threading.local()
        self.overhead = 0 if cipher is None else cipher.overhead
        """Bytes added to each chunk beyond what compression leaves."""

    def compress(self, data: memoryview) -> tuple[Buffer, int]:
        """The bytes to keep of a chunk, and the flags that say how; `data` itself where compression does not pay."""
        if self._level == 0 or len(data) < SMALLEST:
            return data, 0
        compressor = self._compressor()
        if len(data) >= PROBE_FROM:
            middle = len(data) // 2
            sample = compressor.compress(data[middle : middle + SAMPLE_BYTES])
            if not _pays(len(sample), SAMPLE_BYTES):
                return data, 0
        packed = compressor.compress(data)
        return (packed, ZSTD) if _pays(len(packed), len(data)) else (data, 0)

    def seal(self, id: int, place: Place, data: Buffer) -> tuple[Buffer, Place]:
        """Encrypt (with a cipher) and checksum bytes for their place: what to store, and the place completed."""
        if self._cipher is not None:
            place = place._replace(flags=place.flags | AES)
            data = self._cipher.encrypt(id, place, data)
        return data, place._replace(checksum=checksum(id, place.flags, data))

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
        if place.flags & ZSTD:
            return self._decompress(id, place, stored)
        if len(stored) != place.size:
            raise CorruptData(f"chunk {id} has {len(stored)} bytes on disk, not {place.size}", id=id)
        return stored

    # -- private ------------------------------------------------------------------------------------------------------

    def _decompress(self, id: int, place: Place, packed: Buffer) -> bytes:
        try:
            if zstandard.get_frame_parameters(packed).content_size == place.size:
                data = self._decompressor().decompress(packed, max_output_size=place.size)
                if len(data) == place.size:
                    return data
        except zstandard.ZstdError as error:
            raise CorruptData(f"chunk {id} cannot be decompressed: {error}", id=id) from error
        raise CorruptData(f"chunk {id} does not decompress to its {place.size} bytes", id=id)

    def _compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        return found

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found


def _pays(packed: int, plain: int) -> bool:
    return packed <= plain - max(1, plain // MIN_SAVING)
