"""Where a chunk is on the server: the locator's bits, the names of its keys, and how it is cut into pieces.

A chunk up to the piece size is one value, a larger one several, so that they travel side by side. Keys are never written
twice: ``dstorage:<store uuid>:<controller index>:<id>:<generation>[:<piece>]``, numbers in hexadecimal. They begin alike so
that an ACL rule (``~dstorage:*``) or a SCAN can name them.

The locator: `size` the chunk's length; `b` the generation, different for each write; `c` from the top 8 bits of the piece
size's logarithm (0: not cut), 40 bits of the content's xxh3 and 16 bits of the xxh3 of all the rest, so that a locator that
is damaged or belongs to another chunk or store is found out without asking the server.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from uuid import UUID

from xxhash import xxh3_64_intdigest

from dstorage.errors import CorruptData
from dstorage.record import MAX_CHUNK_BYTES, Locator

MIN_PIECE_BYTES = 64 * 2**10
MAX_PIECE_BYTES = 64 * 2**20
"""Servers refuse values above 512 MiB by default, and slow ones take a while for much less."""

PREFIX = "dstorage:"
_CHECKED = struct.Struct("<QIQQ")


def content_sum(id: int, data: bytes | bytearray | memoryview) -> int:
    """40 bits that tell whether bytes are those of chunk `id`; at about 10 GB/s."""
    return xxh3_64_intdigest(data, seed=id) >> 24


class Place(NamedTuple):
    """A locator taken apart.

    Attributes:
        size: The chunk's length in bytes.
        generation: Different for each write.
        piece: Length of each piece but the last; 0 if it was not cut.
        checksum: The content's `content_sum`.
    """

    size: int
    generation: int
    piece: int
    checksum: int


class Layout:
    """Locators and keys of one controller of one store.

    Args:
        store: The store's uuid.
        index: The controller's index in it.
        name: The controller's name, for messages.
    """

    def __init__(self, store: UUID, index: int, name: str) -> None:
        self.prefix = f"{PREFIX}{store.hex}:{index:x}:"
        self._seed = store.int & (2**64 - 1) ^ index
        self._name = name

    def pack(self, id: int, place: Place) -> Locator:
        """The locator of a place."""
        log = place.piece.bit_length() - 1 if place.piece else 0
        high = log << 56 | place.checksum << 16
        return Locator(place.size, place.generation, high | self._check(id, place.size, place.generation, high))

    def unpack(self, id: int, locator: Locator) -> Place:
        """Take a locator apart.

        Raises:
            CorruptData: It is none that `pack` made for this chunk of this store and controller.
        """
        size, generation, c = locator
        log = c >> 56
        high = c & ~0xFFFF
        piece = 1 << log if log else 0
        if (
            self._check(id, size, generation, high) != c & 0xFFFF
            or size > MAX_CHUNK_BYTES
            or (piece and not MIN_PIECE_BYTES <= piece <= MAX_PIECE_BYTES)
        ):
            raise CorruptData("its catalog record makes no sense", id=id, controller=self._name)
        return Place(size, generation, piece, c >> 16 & (2**40 - 1))

    def keys(self, id: int, place: Place) -> list[str]:
        """Keys of all pieces, in order; none for the empty chunk."""
        stem = f"{self.prefix}{id:x}:{place.generation:x}"
        if not place.size:
            return []
        if not place.piece:
            return [stem]
        return [f"{stem}:{number:x}" for number in range(-(-place.size // place.piece))]

    @property
    def mark(self) -> str:
        """The key that says which session committed last."""
        return f"{self.prefix}mark"

    def probe(self, number: int) -> str:
        """A key to write to when nothing is to be said; it lies where its number does."""
        return f"{self.prefix}probe:{{{number:x}}}"

    def parse(self, key: str) -> tuple[int, int] | None:
        """The id and generation a key names, or None if it is none of this controller's chunks."""
        if not key.startswith(self.prefix):
            return None
        try:
            id, generation = key[len(self.prefix) :].split(":")[:2]
            return int(id, 16), int(generation, 16)
        except ValueError:
            return None

    def _check(self, id: int, size: int, generation: int, high: int) -> int:
        return xxh3_64_intdigest(_CHECKED.pack(id, size, generation, high), seed=self._seed) & 0xFFFF
