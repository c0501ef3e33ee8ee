"""Where a chunk is in the bucket: the locator's bits, the names of objects, and what is in a pack.

An object is written once under a number that is used once: ``<prefix>/dstorage/<store uuid>/<controller index>/<number>``,
14 hexadecimal digits. It is a *pack*: sealed chunks one behind the other, then its index (sealed as well), then 16 bytes
that say where the index is. A chunk larger than a pack is cut into pieces, objects of their own named ``<number>.<piece>``.

The locator: `size` the chunk's length; `b` the number (56 bits) and a tag of the key (8 bits); `c` from the top two flags
(cut into pieces; encrypted), one (zstd), 47 bits of place, and 14 bits of check over all the rest, so that a locator that
is damaged or belongs to another chunk, controller or store is found out without asking anybody. The place is 23 bits of
offset and 24 of stored length in a pack; or 5 bits of the piece's logarithm and 42 of the stored length of all pieces.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from xxhash import xxh3_64_intdigest

from dstorage.errors import CorruptData
from dstorage.record import MAX_CHUNK_BYTES, Locator

MIN_PACK_BYTES = 64 * 2**10
MAX_PACK_BYTES = 8 * 2**20
"""Of chunks in a pack, before the index: offsets have 23 bits."""
MAX_SEAL = 64
"""No seal adds more bytes to a chunk."""
MAX_NUMBER = 2**56 - 1
INDEX_ID = 0
"""The id (no chunk has it) under which a pack's index is sealed."""

ZSTD = 1
AES = 2
PIECES = 4

_CHECKED = struct.Struct("<QIQQ")
_ENTRY = struct.Struct("<QIQQ")
TAIL = struct.Struct("<8sII")
_MAGIC = b"dstpack1"
_NAME = re.compile(r"([0-9a-f]{14})(?:\.([0-9a-f]{1,8}))?")


class Place(NamedTuple):
    """A locator taken apart.

    Attributes:
        size: The chunk's length in bytes.
        number: Of the object; 0 for the empty chunk, which is nowhere.
        offset: Of the sealed bytes in the pack; 0 for pieces.
        stored: Length of the sealed bytes, of all pieces together.
        flags: `ZSTD`, `AES`, `PIECES`.
        key: Tag of the key it is encrypted with.
        piece: Plain length of each piece but the last; 0 if it was not cut.
    """

    size: int
    number: int
    offset: int
    stored: int
    flags: int
    key: int
    piece: int = 0


NOWHERE = Place(0, 0, 0, 0, 0, 0)


class Layout:
    """Locators and names of one controller of one store.

    Args:
        store: The store's uuid.
        index: The controller's index in it.
        name: The controller's name, for messages.
        prefix: What all names in the bucket begin with; may be empty.
    """

    def __init__(self, store: UUID, index: int, name: str, prefix: str) -> None:
        self.folder = "/".join(part for part in (prefix, "dstorage", store.hex, f"{index:x}") if part)
        self.bound = store.bytes + struct.pack("<I", index)
        """Binds sealed bytes to this controller of this store."""
        self._seed = xxh3_64_intdigest(self.bound)
        self._name = name

    def pack(self, id: int, place: Place) -> Locator:
        """The locator of a place."""
        if place.flags & PIECES:
            where = (place.piece.bit_length() - 1) << 42 | place.stored
        else:
            where = place.offset << 24 | place.stored
        high = place.flags << 61 | where << 14
        b = place.number << 8 | place.key
        return Locator(place.size, b, high | self._check(id, place.size, b, high))

    def unpack(self, id: int, locator: Locator) -> Place:
        """Take a locator apart.

        Raises:
            CorruptData: It is none that `pack` made for this chunk of this store and controller.
        """
        size, b, c = locator
        high = c & ~0x3FFF
        flags = c >> 61
        where = c >> 14 & (2**47 - 1)
        if flags & PIECES:
            place = Place(size, b >> 8, 0, where & (2**42 - 1), flags, b & 0xFF, 1 << (where >> 42))
            sane = MIN_PACK_BYTES <= place.piece <= MAX_PACK_BYTES and place.piece < size
        else:
            place = Place(size, b >> 8, where >> 24, where & (2**24 - 1), flags, b & 0xFF)
            sane = place.stored <= MAX_PACK_BYTES + MAX_SEAL and (place.stored > 0) == (size > 0)
        if not sane or self._check(id, size, b, high) != c & 0x3FFF or size > MAX_CHUNK_BYTES:
            raise CorruptData("its catalog record makes no sense", id=id, controller=self._name)
        return place

    def sensible(self, locators: Iterable[tuple[int, Locator]]) -> Iterator[Place]:
        """Those that can be taken apart: a damaged record names no place that could be freed, and is to be got rid of."""
        for id, locator in locators:
            with suppress(CorruptData):
                yield self.unpack(id, locator)

    @staticmethod
    def stored(locator: Locator) -> int:
        """Stored bytes of a locator that `pack` made."""
        where = locator.c >> 14 & (2**47 - 1)
        return where & (2**42 - 1 if locator.c >> 61 & PIECES else 2**24 - 1)

    def key(self, number: int) -> str:
        """Name of a pack."""
        return f"{self.folder}/{number:014x}"

    def piece_key(self, number: int, piece: int) -> str:
        """Name of one piece of a chunk that was cut."""
        return f"{self.folder}/{number:014x}.{piece:x}"

    def keys(self, number: int, pieces: int) -> list[str]:
        """Names of all objects of a number: one pack (`pieces` is 0), or so many pieces."""
        return [self.piece_key(number, piece) for piece in range(pieces)] if pieces else [self.key(number)]

    def parse(self, key: str) -> int | None:
        """The number that a name names, or None if it is none of this controller's objects."""
        match = _NAME.fullmatch(key[len(self.folder) + 1 :]) if key.startswith(f"{self.folder}/") else None
        return int(match[1], 16) if match is not None else None

    def _check(self, id: int, size: int, b: int, high: int) -> int:
        return xxh3_64_intdigest(_CHECKED.pack(id, size, b, high), seed=self._seed) & 0x3FFF


def pack_index(entries: Sequence[tuple[int, Locator]]) -> bytes:
    """The index of a pack, plain: id and locator of each chunk in it."""
    return b"".join(_ENTRY.pack(id, *locator) for id, locator in entries)


def unpack_index(raw: bytes) -> list[tuple[int, Locator]]:
    """What `pack_index` was given.

    Raises:
        ValueError: It is none.
    """
    if len(raw) % _ENTRY.size:
        raise ValueError("not a whole number of entries")
    return [(id, Locator(size, b, c)) for id, size, b, c in _ENTRY.iter_unpack(raw)]


def pack_tail(start: int, length: int) -> bytes:
    """The last bytes of a pack: where its sealed index is."""
    return TAIL.pack(_MAGIC, start, length)
