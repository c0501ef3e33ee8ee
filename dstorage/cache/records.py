"""What the cache knows of an entry besides its value, as names in the store's catalog.

Names change together with the chunks they stand for, in one commit; so after a crash every entry is there with its value, or neither
is. All names of a cache begin with ``cache/``, its name and a zero, then comes what they are:

* ``e`` id seq piece: an entry. The pieces, in order of seq, make its record; most have one. They stand for the chunk of the value.
* ``s``: stands for the chunk of the settings, in JSON.
* ``p`` id: a chunk that belongs to no entry yet: a part of a large value, or of a transaction, under way. Found at opening, it is
  what a crash left, and is deleted.

A record is ``<BBdfQHB`` (version, kind, expiry, cost, size, number of runs, length of the serializer's name), then the runs, that name,
the key, and the tag if there is one, both as in `dstorage.cache.keys`. A run ``<QI`` is the id of a chunk and how many with the ids behind
it follow: the parts of a value too large for one chunk, in order. Bytes in the catalog are checked like bytes from anybody.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from dstorage.cache.keys import Key, decode_key, encode_key
from dstorage.cache.values import MAX_SERIALIZER_NAME, Kind
from dstorage.errors import InvalidArgumentError, VersionError
from dstorage.record import MAX_ID

RECORD_VERSION = 1
MAX_CACHE_NAME = 64
"""Bytes of a cache's name."""
_NAME_BYTES = 511
"""LMDB's limit, and so the catalog's."""
MAX_PIECES = 255

MAX_RUNS = 2**13
MAX_PARTS = 2**20
"""Chunks of one value; more than any has, so that damage makes no endless work."""

_FIXED = struct.Struct("<BBdfQHB")
_RUN = struct.Struct("<QI")
_HEAD = struct.Struct(">QB")
"""Id and seq, big-endian: records come in the order they were written, pieces of one together."""
_ID = struct.Struct(">Q")

NEVER: Final = math.inf
"""Expiry of what does not expire."""


class Entry:
    """What the cache knows of one key; never changed once others can see it, but for `used`, and `id` of what is written behind.

    Attributes:
        key: The key.
        id: Chunk of the value, or of its first part.
        kind: How the value is kept.
        size: Bytes of the value's payload.
        expires: Time since the epoch, in seconds, from which on it is no more; `NEVER`.
        tag: Its tag, or None.
        cost: Seconds it took to compute, for `memoize`.
        serializer: Name of the serializer, or "".
        parts: Runs (id, count) of the chunks of a value in several ones; else empty.
        used: Looked at since the eviction hand last came by.
    """

    __slots__ = ("cost", "expires", "id", "key", "kind", "parts", "serializer", "size", "tag", "used")

    def __init__(
        self,
        key: Key,
        id: int,
        kind: Kind,
        size: int,
        expires: float = NEVER,
        tag: Key | None = None,
        cost: float = 0.0,
        serializer: str = "",
        parts: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.key = key
        self.id = id
        self.kind = kind
        self.size = size
        self.expires = expires
        self.tag = tag
        self.cost = cost
        self.serializer = serializer
        self.parts = parts
        self.used = False

    def expiring(self, expires: float) -> Entry:
        """The same entry with another expiry."""
        return Entry(self.key, self.id, self.kind, self.size, expires, self.tag, self.cost, self.serializer, self.parts)

    def ids(self) -> Iterator[int]:
        """All chunks of the value, in order."""
        if not self.parts:
            yield self.id
        for first, count in self.parts:
            yield from range(first, first + count)

    def __repr__(self) -> str:
        return f"<Entry {self.key!r}, {self.kind.name}, {self.size} B, chunk {self.id}>"


class Names:
    """The names of one cache in the catalog.

    Args:
        cache: Name of the cache.

    Raises:
        InvalidArgumentError: It is empty, too long, or has a zero in it.
    """

    def __init__(self, cache: str) -> None:
        try:
            raw = cache.encode()
        except (AttributeError, UnicodeEncodeError):  # No text, or with a lone surrogate.
            raw = b""
        if not 0 < len(raw) <= MAX_CACHE_NAME or b"\0" in raw:
            raise InvalidArgumentError(
                f"cache name {repr(cache)[:40]}: give 1 to {MAX_CACHE_NAME} bytes of UTF-8 without zeros"
            )
        self.prefix = b"cache/" + raw + b"\0"
        self.entries = self.prefix + b"e"
        self.pending = self.prefix + b"p"
        self.settings = self.prefix + b"s"
        self._room = _NAME_BYTES - len(self.entries) - _HEAD.size

    def of_entry(self, entry: Entry) -> list[bytes]:
        """The names that say what `entry` is; the same for the same entry.

        Raises:
            InvalidArgumentError: Its chunks have no room in a record.
        """
        record = pack_entry(entry)
        room = self._room
        if len(record) <= room:
            return [self.entries + _HEAD.pack(entry.id, 0) + record]
        if len(record) > room * MAX_PIECES or len(entry.parts) > MAX_RUNS:
            raise InvalidArgumentError(
                f"a value of {entry.size} bytes in {len(entry.parts)} runs of chunks: store it in several entries"
            )
        pieces = [record[start : start + room] for start in range(0, len(record), room)]
        return [self.entries + _HEAD.pack(entry.id, seq) + piece for seq, piece in enumerate(pieces)]

    def of_pending(self, id: int) -> bytes:
        """The name of a chunk that belongs to no entry yet."""
        return self.pending + _ID.pack(id)

    def id_of(self, name: bytes) -> bytes:
        """Which entry a name is of: its id, as it stands there."""
        start = len(self.entries)
        return name[start : start + _ID.size]

    def read(self, names: Iterable[tuple[bytes, int]]) -> tuple[list[Entry], list[tuple[bytes, int]]]:
        """Entries, from the names that begin with `entries`, in order.

        Returns:
            The entries, in the order they were written, and the names (with their ids) that make none: damaged ones.

        Raises:
            VersionError: A newer dstorage wrote one; nothing is to be thrown away.
        """
        found: list[Entry] = []
        damaged: list[tuple[bytes, int]] = []
        pieces: list[tuple[bytes, int]] = []

        def finish() -> None:
            if pieces:
                entry = self._join(pieces)
                if entry is None:
                    damaged.extend(pieces)
                else:
                    found.append(entry)
                pieces.clear()

        head: bytes | None = None
        for name, id in names:
            this = self.id_of(name)
            if this != head:
                finish()
                head = this
            pieces.append((name, id))
        finish()
        return found, damaged

    def _join(self, pieces: list[tuple[bytes, int]]) -> Entry | None:
        start = len(self.entries)
        if len(pieces) > MAX_PIECES:
            return None
        record = b""
        for seq, (name, id) in enumerate(pieces):
            # Whole pieces but the last; otherwise one is missing.
            if name[start : start + _HEAD.size] != _HEAD.pack(id, seq) or len(record) != seq * self._room:
                return None
            record += name[start + _HEAD.size :]
        try:
            return unpack_entry(pieces[0][1], record)
        except ValueError:
            return None


def batches(
    names: Iterable[tuple[bytes, int]], id_of: Callable[[bytes], bytes], most: int = 2048
) -> Iterator[list[tuple[bytes, int]]]:
    """Names in parts of about `most`; what belongs to one id stays together."""
    part: list[tuple[bytes, int]] = []
    for name, id in names:
        if len(part) >= most and id_of(part[-1][0]) != id_of(name):
            yield part
            part = []
        part.append((name, id))
    if part:
        yield part


def pack_entry(entry: Entry) -> bytes:
    """The record of an entry."""
    serializer = entry.serializer.encode()
    fixed = _FIXED.pack(
        RECORD_VERSION, entry.kind, entry.expires, entry.cost, entry.size, len(entry.parts), len(serializer)
    )
    runs = b"".join([_RUN.pack(*run) for run in entry.parts])
    tag = b"" if entry.tag is None else encode_key(entry.tag)
    return b"".join((fixed, runs, serializer, encode_key(entry.key), tag))


def unpack_entry(id: int, record: bytes) -> Entry:
    """The entry of a record.

    Raises:
        ValueError: It is none.
        VersionError: A newer dstorage wrote it.
    """
    if record and record[0] > RECORD_VERSION:
        raise VersionError(
            f"an entry of this cache has format {record[0]}, this version of dstorage reads up to {RECORD_VERSION}: upgrade "
            "dstorage (the cache was not touched)",
            found=record[0],
            supported=RECORD_VERSION,
        )
    if len(record) < _FIXED.size:
        raise ValueError("the record is cut off")
    version, kind, expires, cost, size, runs, length = _FIXED.unpack_from(record)
    if version != RECORD_VERSION or length > MAX_SERIALIZER_NAME or size >= 2**63 or runs > MAX_RUNS:
        raise ValueError("no record of an entry")
    if math.isnan(expires) or not 0 <= cost < math.inf:
        raise ValueError("an expiry or cost that is no time")
    parts_end = _FIXED.size + runs * _RUN.size
    position = parts_end + length
    if position > len(record):
        raise ValueError("the record is cut off")
    parts = tuple(_RUN.iter_unpack(record[_FIXED.size : parts_end]))
    if any(not 0 < first <= first + count - 1 <= MAX_ID for first, count in parts) or (parts and parts[0][0] != id):
        raise ValueError("parts that cannot be")
    if sum(count for _, count in parts) > MAX_PARTS:
        raise ValueError("more parts than there can be")
    serializer = record[parts_end:position].decode()
    key, position = decode_key(record, position)
    tag = None
    if position < len(record):
        tag, position = decode_key(record, position)
    if position != len(record):
        raise ValueError("something is behind the record")
    return Entry(key, id, Kind(kind), size, expires, tag, cost, serializer, parts)
