"""AES-256-GCM for the bytes of chunks; needs the extra `encryption` (the package cryptography).

Each segment has a key of its own, derived by HKDF-SHA256 from the user's key, the store's uuid and the segment's
number, and each chunk a random nonce: the bound for random nonces, 2^32 chunks for one key, is then a matter of one
segment and not of the store's life. Store, id, size, segment, offset and flags are bound in as associated data, so that
ciphertext moved elsewhere does not decrypt. Stored: nonce (12) | ciphertext | tag (16).
"""

from __future__ import annotations

import hashlib
import os
import struct
from functools import lru_cache
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dstorage.controller import Buffer
from dstorage.errors import CorruptData
from dstorage_controllers.disk.keys import KEY_BYTES
from dstorage_controllers.disk.layout import Place

NONCE_BYTES = 12
TAG_BYTES = 16
_DERIVED_KEYS = 64
"""Ciphers kept ready; deriving one costs some 10 us."""
_BOUND = struct.Struct("<QIIIB")


class Cipher:
    """Encrypts the chunks of one store; safe to use from several threads.

    Args:
        store: Uuid of the store.
        key: `KEY_BYTES` bytes.
    """

    overhead = NONCE_BYTES + TAG_BYTES
    """Bytes that encryption adds to each chunk."""

    def __init__(self, store: UUID, key: bytes) -> None:
        self._store = store.bytes
        self._key = key
        self._aes = lru_cache(maxsize=_DERIVED_KEYS)(self._derive)

    @property
    def key_check(self) -> bytes:
        """16 bytes that tell one key from another and nothing else."""
        return hashlib.blake2b(self._store, key=self._key, digest_size=16, person=b"dstorage check").digest()

    def encrypt(self, id: int, place: Place, data: Buffer) -> bytes:
        """What to store of a chunk at its place."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes(place.segment).encrypt(nonce, data, self._bound(id, place))

    def decrypt(self, id: int, place: Place, stored: Buffer) -> bytes:
        """What was encrypted for this chunk and place.

        Raises:
            CorruptData: Something else is there, or the key is another one.
        """
        view = memoryview(stored)
        if len(view) < self.overhead:
            raise CorruptData(f"chunk {id} is too short on disk to be encrypted", id=id)
        try:
            return self._aes(place.segment).decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], self._bound(id, place))
        except InvalidTag as error:
            raise CorruptData(f"chunk {id} cannot be authenticated: moved, forged, or another key", id=id) from error

    def _bound(self, id: int, place: Place) -> bytes:
        return self._store + _BOUND.pack(id, place.size, place.segment, place.first, place.flags)

    def _derive(self, segment: int) -> AESGCM:
        info = b"dstorage segment" + segment.to_bytes(4, "little")
        return AESGCM(HKDF(SHA256(), KEY_BYTES, self._store, info).derive(self._key))
