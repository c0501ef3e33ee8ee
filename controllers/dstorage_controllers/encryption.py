"""AES-256-GCM with a key of its own for each region (segment, pack), for controllers; needs the package cryptography.

Region keys are derived by HKDF-SHA256 from the user's key, the store's uuid and the region's name, and each chunk gets a
random nonce: the bound for random nonces, 2^32 chunks for one key, is then a matter of one region and not of the store's
life. What a chunk is and where it belongs is bound in as associated data, so that ciphertext moved elsewhere does not
decrypt. Sealed: nonce (12) | ciphertext | tag (16).
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dstorage.controller import Buffer
from dstorage.errors import CorruptData

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD = NONCE_BYTES + TAG_BYTES
"""Bytes that encryption adds to each chunk."""
_DERIVED_KEYS = 64
"""Ciphers kept ready; deriving one costs some 10 us."""


class Encryption:
    """Encrypts the chunks of one store with one key; safe to use from several threads.

    Args:
        store: Uuid of the store.
        key: `KEY_BYTES` bytes.
    """

    def __init__(self, store: UUID, key: bytes) -> None:
        self._store = store.bytes
        self._key = key
        self._aes = lru_cache(maxsize=_DERIVED_KEYS)(self._derive)

    @property
    def key_check(self) -> bytes:
        """16 bytes that tell one key from another and nothing else."""
        return hashlib.blake2b(self._store, key=self._key, digest_size=16, person=b"dstorage check").digest()

    def mark(self, id: int) -> int:
        """32 bits that who has no key can only guess: the seal of an empty chunk, of which nothing is stored."""
        marked = hashlib.blake2b(
            self._store + id.to_bytes(8, "little"), key=self._key, digest_size=4, person=b"dstorage empty"
        )
        return int.from_bytes(marked.digest(), "little")

    def encrypt(self, region: bytes, bound: bytes, data: Buffer) -> bytes:
        """As `encrypt_apart`, in one piece: a copy."""
        return b"".join(self.encrypt_apart(region, bound, data))

    def encrypt_apart(self, region: bytes, bound: bytes, data: Buffer) -> tuple[bytes, bytes]:
        """Seal bytes: the two parts that `decrypt` takes one behind the other.

        Args:
            region: Names the region; one name for one region for ever.
            bound: What the chunk is and where it belongs.
            data: Its bytes.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce, self._aes(region).encrypt(nonce, data, self._store + bound)

    def decrypt(self, id: int, region: bytes, bound: bytes, sealed: Buffer) -> bytes:
        """What was sealed for this region and `bound`.

        Raises:
            CorruptData: It was something else, or the key is another one.
        """
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise CorruptData(f"chunk {id} is too short to be encrypted", id=id)
        try:
            return self._aes(region).decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], self._store + bound)
        except InvalidTag as error:
            raise CorruptData(f"chunk {id} cannot be authenticated: moved, forged, or another key", id=id) from error

    def _derive(self, region: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), KEY_BYTES, self._store, region).derive(self._key))
