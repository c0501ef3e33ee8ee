"""From a chunk's bytes to what lies in the bucket, and back: zstd where it pays, then AES-256-GCM or a checksum.

What a chunk is and where it belongs (store, controller, id, length, object, piece) is bound into the seal: a bucket that
swaps objects, or gives back one of another time or store, is found out. Locators say what is encrypted and are not
authenticated, so with a key nothing is taken that they say is not. Several keys can be known at a time, so that keys
can be changed: the first encrypts, all decrypt. Which one it was is told by a tag of 8 bits in the locator and the index
of packs, and by 16 bytes of check in the controller's private state.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xxhash import xxh3_128_digest

from dstorage.controller import Buffer
from dstorage.errors import CorruptData
from dstorage_controllers.compression import Compression
from dstorage_controllers.internet.layout import AES, ZSTD

if TYPE_CHECKING:
    from dstorage_controllers.encryption import Encryption

CHECK_BYTES = 16
CIPHER_BYTES = 28
"""Nonce and tag of AES-GCM."""
NO_KEY = bytes(CHECK_BYTES)
"""The key check of what is not encrypted."""
_BOUND = struct.Struct("<QIQIB")


class Codec:
    """Seals and opens the chunks of one controller; safe to use from several threads.

    Args:
        bound: Names store and controller.
        level: zstd level, 0 for none.
        ciphers: The first encrypts, all decrypt; none: a checksum instead.
    """

    def __init__(self, bound: bytes, *, level: int = 0, ciphers: Sequence[Encryption] = ()) -> None:
        self._bound = bound
        self._compression = Compression(level)
        self._ciphers = list(ciphers)
        self.key_check = self._ciphers[0].key_check if self._ciphers else NO_KEY
        """Tells the key that encrypts from others."""
        self.key_tag = self.key_check[0]
        self.flags = AES if self._ciphers else 0
        """What every place has."""

    @property
    def key_checks(self) -> set[bytes]:
        """Checks of what can be opened."""
        return {cipher.key_check for cipher in self._ciphers} or {NO_KEY}

    def shrink(self, data: memoryview) -> tuple[Buffer, int]:
        """The bytes to seal of a chunk or piece, and `ZSTD` if they were compressed."""
        packed = self._compression.shrink(data)
        return (data, 0) if packed is None else (packed, ZSTD)

    @staticmethod
    def overhead(flags: int) -> int:
        """Bytes that a seal adds."""
        return CIPHER_BYTES if flags & AES else CHECK_BYTES

    def seal(self, id: int, size: int, number: int, piece: int, flags: int, data: Buffer) -> tuple[Buffer, Buffer]:
        """Seal what `shrink` left of a chunk or piece: two parts, so that nothing large is copied.

        Args:
            id: Of the chunk.
            size: Plain length of the chunk or piece.
            number: Of the object.
            piece: Number of the piece; 0 in a pack.
            flags: All of `ZSTD`, `AES`, `PIECES` that hold.
            data: The bytes.
        """
        bound = self._bound + _BOUND.pack(id, size, number, piece, flags)
        if flags & AES:
            return self._ciphers[0].encrypt_apart(_region(number), bound, data)
        return xxh3_128_digest(bound + xxh3_128_digest(data)), data

    def open(self, id: int, size: int, number: int, piece: int, flags: int, tag: int, sealed: memoryview) -> Buffer:
        """The chunk or piece in sealed bytes.

        Raises:
            CorruptData: They are not what was sealed for this chunk and object, or the key is not known.
        """
        bound = self._bound + _BOUND.pack(id, size, number, piece, flags)
        data: Buffer
        if flags & AES:
            data = self._decrypt(id, number, bound, tag, sealed)
        elif self._ciphers:
            raise CorruptData(
                f"chunk {id} is not encrypted, as all is that this controller wrote: it was forged, or its record is damaged; "
                "put the store back from a backup",
                id=id,
            )
        else:
            data = sealed[CHECK_BYTES:]
            if xxh3_128_digest(bound + xxh3_128_digest(data)) != sealed[:CHECK_BYTES]:
                raise CorruptData(f"the bytes stored for chunk {id} do not match their checksum", id=id)
        if flags & ZSTD:
            return self._compression.expand(id, size, data)
        if len(data) != size:
            raise CorruptData(f"chunk {id} has {len(data)} bytes in the bucket, not {size}", id=id)
        return data

    def _decrypt(self, id: int, number: int, bound: bytes, tag: int, sealed: memoryview) -> bytes:
        candidates = [cipher for cipher in self._ciphers if cipher.key_check[0] == tag]
        if not candidates:
            raise CorruptData(
                f"chunk {id} is encrypted with a key that the controller was not given; add the old key behind the new one",
                id=id,
            )
        for cipher in candidates[:-1]:
            try:
                return cipher.decrypt(id, _region(number), bound, sealed)
            except CorruptData:
                # Two keys with one tag.
                continue
        return candidates[-1].decrypt(id, _region(number), bound, sealed)


def _region(number: int) -> bytes:
    return b"dstorage object" + number.to_bytes(8, "little")
