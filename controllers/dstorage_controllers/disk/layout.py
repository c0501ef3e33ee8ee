"""What the disk controller's bytes mean: locators, segment files, private state. All little-endian.

**Locator** of a chunk: `size` is its length as the program sees it;

    b = offset (bits 0-31) | segment (bits 32-61) | flags (bits 62-63)
    c = checksum (bits 0-31) | stored length (bits 32-63)

`offset` counts bytes from the start of the segment file; `flags` are `ZSTD` and `AES`; `checksum` is the low half of
xxh3_64 over the stored bytes, seeded with the chunk's id and the flags, so that another chunk's extent fails it. A
zero-length chunk is kept nowhere: b = 0, and c has the checksum of nothing, so that a record of zeros is none; of a controller with a
key b has the flag `AES`, and c 32 bits of a keyed hash (BLAKE2b with the key, personalized "dstorage empty") of the store's uuid and the id.

A controller has a key from its first commit on, or never: of one that has, no locator without `AES` is believed. Neither flags nor
checksum are authenticated, and who can write the catalog would else have forged bytes taken for a chunk.

**Segment file** ``00000007.seg``: a table of `slots` entries of 32 bytes, then, from `slots` * 32 on, the stored bytes
(extents). Slot 0 describes the file, slot k > 0 the k-th extent written:

    slot 0   8s magic "DSTSEG01" | 16s uuid of the store | u32 segment | u32 slots
    slot k   u32 magic "EXT1" | u32 size | u64 id | u64 b | u64 c            (a locator and whose it is)

The table stands apart from the bytes so that extents lie side by side: chunks of a multiple of the page size are
page-aligned with no padding, cost one page less to read, and can be punched out whole. It is never read to serve a
chunk, only to scan a segment. Files are sparse; what is not used of the table takes no space.

An extent written past the page cache begins on a page, and the next one on the page behind it; zeros fill the last. Then the
file of a dead segment may become, renamed, that of a new one: what is behind its tail is of old.

**Private state** by segment number: u64 live bytes | u64 tail | u32 next slot | u32 slots, as of the last commit.
Key 0: u32 format | 16s key check (zeros of a controller without a key), from the first commit on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from dstorage.errors import ControllerError, CorruptData, VersionError
from dstorage.record import MAX_CHUNK_BYTES, Locator

PAGE = 4096
FORMAT = 1
ENTRY_BYTES = 32
BYTES_PER_SLOT = 512
"""A segment has one slot for so many bytes: chunks of less on average fill its table before its space."""

MIN_SEGMENT_BYTES = 2**14
MAX_SEGMENT_BYTES = 2**30
"""With the table and one oversized chunk behind it an offset still fits into 32 bits."""

ZSTD = 1
AES = 2

NO_KEY = bytes(16)
"""The key check of a controller without a key."""

MAX_SEGMENT = 2**30 - 1

_FILE = struct.Struct("<8s16sII")
_ENTRY = struct.Struct("<IIQQQ")
_STATE = struct.Struct("<QQII")
_HEAD = struct.Struct("<I16s")
_FILE_MAGIC = b"DSTSEG01"
_ENTRY_MAGIC = int.from_bytes(b"EXT1", "little")
_MASK32 = 2**32 - 1
MAX_OVERHEAD = 64
"""Bytes by which a stored chunk may exceed its size (nonce and tag of AES-GCM)."""


class Place(NamedTuple):
    """A locator taken apart.

    Attributes:
        size: Length as the program sees it.
        segment: Number of the segment file; 0 for a zero-length chunk.
        first: Offset of the first stored byte in the file.
        stored: Number of stored bytes.
        checksum: Of the stored bytes.
        flags: `ZSTD` and `AES`.
    """

    size: int
    segment: int = 0
    first: int = 0
    stored: int = 0
    checksum: int = 0
    flags: int = 0

    @property
    def end(self) -> int:
        """Offset behind the last stored byte."""
        return self.first + self.stored


NOWHERE = Place(0)


def pack(place: Place) -> Locator:
    """The locator of a place."""
    return Locator(
        place.size,
        place.first | place.segment << 32 | place.flags << 62,
        place.checksum | place.stored << 32,
    )


def unpack(id: int, locator: Locator) -> Place:
    """Take a locator apart, trusting nothing in it.

    Raises:
        CorruptData: No `write` can have returned it.
    """
    size, b, c = locator
    flags = b >> 62
    offset = b & _MASK32
    stored = c >> 32
    segment = b >> 32 & MAX_SEGMENT
    if flags == 0:
        good = stored == size
    elif flags == ZSTD:
        good = stored < size
    else:
        good = stored <= size + MAX_OVERHEAD
    if size == 0:
        good = b in (0, AES << 62) and stored == 0
    elif segment == 0 or stored == 0 or offset < PAGE or size > MAX_CHUNK_BYTES or offset + stored > 2**32:
        good = False
    if not good:
        raise CorruptData(f"the locator of chunk {id} makes no sense: {tuple(locator)}", id=id)
    # Past its constructor, which takes three times as long: this is done for each read.
    return tuple.__new__(Place, (size, segment, offset, stored, c & _MASK32, flags))


def sensible(locators: Iterable[tuple[int, Locator]]) -> Iterator[Place]:
    """The places of locators; those that make no sense name nothing and are left out: it must be possible to drop their records."""
    for id, locator in locators:
        try:
            place = unpack(id, locator)
        except CorruptData:
            continue
        yield place


def slots_for(segment_bytes: int) -> int:
    """Slots in the table of a segment that is to hold `segment_bytes`; the table ends at a page."""
    slots = segment_bytes // BYTES_PER_SLOT + 1
    per_page = PAGE // ENTRY_BYTES
    return -(-slots // per_page) * per_page


def pack_entry(id: int, locator: Locator) -> bytes:
    """One slot of a segment's table."""
    return _ENTRY.pack(_ENTRY_MAGIC, locator.size, id, locator.b, locator.c)


def unpack_entries(table: bytes | bytearray, segment: int) -> list[tuple[int, Locator]]:
    """The extents that a stretch of a segment's table names; slots that make no sense are left out."""
    found = []
    for magic, size, id, b, c in _ENTRY.iter_unpack(table):
        if magic != _ENTRY_MAGIC or id == 0:
            continue
        locator = Locator(size, b, c)
        try:
            place = unpack(id, locator)
        except CorruptData:
            continue
        if place.segment == segment:
            found.append((id, locator))
    return found


def pack_file(store: UUID, segment: int, slots: int) -> bytes:
    """Slot 0 of a segment."""
    return _FILE.pack(_FILE_MAGIC, store.bytes, segment, slots)


def file_name(segment: int) -> str:
    """Name of a segment's file."""
    return f"{segment:08d}.seg"


def segment_of(name: str) -> int | None:
    """Number of the segment in a file of this name, or None if it is no segment's."""
    stem, dot, ending = name.partition(".")
    if dot + ending != ".seg" or not (stem.isascii() and stem.isdigit()):
        return None
    number = int(stem)
    return number if 0 < number <= MAX_SEGMENT and file_name(number) == name else None


class Committed(NamedTuple):
    """What the last commit says of a segment.

    Attributes:
        live: Stored bytes of the chunks that the catalog's records place in it.
        tail: Where the next extent goes; nothing behind it is referred to.
        next_slot: The table's first unused slot.
        slots: Length of the table.
    """

    live: int
    tail: int
    next_slot: int
    slots: int


def pack_state(committed: Committed) -> bytes:
    """A segment's private state."""
    return _STATE.pack(*committed)


def unpack_state(segment: int, raw: bytes) -> Committed:
    """Check and decode a segment's private state.

    Raises:
        ControllerError: It makes no sense.
    """
    if len(raw) == _STATE.size:
        live, tail, next_slot, slots = _STATE.unpack(raw)
        start = slots * ENTRY_BYTES
        sane = 0 < slots <= slots_for(MAX_SEGMENT_BYTES) and start % PAGE == 0 and start <= tail <= 2**32
        if sane and 0 < live <= tail - start and 0 < next_slot <= slots and 0 < segment <= MAX_SEGMENT:
            return Committed(live, tail, next_slot, slots)
    raise ControllerError(f"the catalog's state of segment {segment} is damaged; run `dstorage check`")


def pack_head(key_check: bytes) -> bytes:
    """The private state under key 0."""
    return _HEAD.pack(FORMAT, key_check)


def unpack_head(raw: bytes) -> bytes:
    """The key check from the private state under key 0.

    Raises:
        VersionError: Written in a format this version does not know.
        ControllerError: It makes no sense.
    """
    if len(raw) != _HEAD.size:
        raise ControllerError("the catalog's state of the disk controller is damaged; run `dstorage check`")
    format, key_check = _HEAD.unpack(raw)
    if format != FORMAT:
        raise VersionError(
            f"the disk controller's files are of format {format}; this version reads {FORMAT}: install a newer one",
            found=format,
            supported=FORMAT,
        )
    return bytes(key_check)
