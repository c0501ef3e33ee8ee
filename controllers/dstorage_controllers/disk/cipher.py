"""What encryption binds a chunk on disk to: its segment has a key of its own, and its place there is authenticated."""

from __future__ import annotations

import struct
from uuid import UUID

from dstorage.controller import Buffer
from dstorage_controllers.disk.layout import Place
from dstorage_controllers.encryption import OVERHEAD, Encryption

_BOUND = struct.Struct("<QIIIB")


class Cipher:
    """Encrypts the chunks of one store; safe to use from several threads.

    Args:
        store: Uuid of the store.
        key: 32 bytes.
    """

    overhead = OVERHEAD
    """Bytes that encryption adds to each chunk."""

    def __init__(self, store: UUID, key: bytes) -> None:
        self._encryption = Encryption(store, key)

    @property
    def key_check(self) -> bytes:
        """16 bytes that tell one key from another and nothing else."""
        return self._encryption.key_check

    def mark(self, id: int) -> int:
        """32 bits that stand for an empty chunk."""
        return self._encryption.mark(id)

    def encrypt(self, id: int, place: Place, data: Buffer) -> bytes:
        """What to store of a chunk at its place."""
        return self._encryption.encrypt(_region(place), _bound(id, place), data)

    def decrypt(self, id: int, place: Place, stored: Buffer) -> bytes:
        """What was encrypted for this chunk and place.

        Raises:
            CorruptData: Something else is there, or the key is another one.
        """
        return self._encryption.decrypt(id, _region(place), _bound(id, place), stored)


def _region(place: Place) -> bytes:
    return b"dstorage segment" + place.segment.to_bytes(4, "little")


def _bound(id: int, place: Place) -> bytes:
    return _BOUND.pack(id, place.size, place.segment, place.first, place.flags)
