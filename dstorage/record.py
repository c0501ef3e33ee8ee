"""The 32-byte catalog record, and the locator inside it.

Little-endian ``<QIIQQ``: last access (ns since the epoch), controller index, then a, b, c. The three together are the
controller's *locator*: all it needs to find the bytes again without an index of its own. One thing about them is
common to all controllers: `Locator.size` (a) is the chunk's length in bytes, so that the store can make room in
memory before it asks for the bytes.
"""

from __future__ import annotations

import operator
import struct
from typing import NamedTuple

from dstorage.errors import InvalidArgumentError

MAX_CHUNK_BYTES = 2**31 - 1
"""Largest chunk: a single pwrite on Linux takes no more, and `size` is 32 bits wide."""

MAX_ID = 2**64 - 1
"""Ids are 1 .. MAX_ID; 0 is invalid."""

NAMESPACE_SHIFT = 56
MAX_NAMESPACES = 255
"""An id's highest byte is the number of its namespace, 0 for none; the 56 bits below it are never used twice in a store, so
a chunk's namespace needs neither a look into a table nor a byte of memory."""

RECORD = struct.Struct("<QIIQQ")
KEY = struct.Struct("=Q")
"""Native order: LMDB compares keys of MDB_INTEGERKEY databases as native integers."""


def checked_id(id: object) -> int:
    """`id` as an int, if it is one, whatever kind of integer it is: numpy's equal them, so they would be found in a dict, but not elsewhere.

    Raises:
        InvalidArgumentError: It is none, or not in 1 .. 2**64-1.
    """
    try:
        # True equals 1, but nobody means that chunk by it.
        number = 0 if isinstance(id, bool) else operator.index(id)  # type: ignore[arg-type]  # no integer: refused here
    except TypeError:
        number = 0
    if not 0 < number <= MAX_ID:
        raise InvalidArgumentError(f"{id!r} is no chunk id: ids are integers from 1 to 2**64-1")
    return number


def namespace_of(id: int) -> int:
    """Number of the namespace that an id belongs to; 0 for none."""
    return id >> NAMESPACE_SHIFT


class Locator(NamedTuple):
    """Where a controller put a chunk.

    Attributes:
        size: The chunk's length in bytes, as the program sees it (u32).
        b: The controller's own (u64).
        c: The controller's own (u64).
    """

    size: int
    b: int = 0
    c: int = 0


class Record(NamedTuple):
    """One chunk's entry in the catalog.

    Attributes:
        last_access: Nanoseconds since the epoch, refreshed lazily.
        controller: Index in the store's list of controllers.
        locator: Where that controller keeps the bytes.
    """

    last_access: int
    controller: int
    locator: Locator


DAMAGED = Record(0, 2**32 - 1, Locator(0))
"""What bytes that are no record are taken for. It names a controller that no list has, so the chunk is lost, and others are not
held up."""


_new = tuple.__new__


def pack_record(record: Record) -> bytes:
    """Encode a record into its 32 bytes."""
    return RECORD.pack(record.last_access, record.controller, *record.locator)


def unpack_record(raw: bytes | memoryview) -> Record:
    """Decode 32 bytes; others are `DAMAGED`."""
    if len(raw) != RECORD.size:
        return DAMAGED
    return unpack_record_at(raw, 0)


def unpack_record_at(raw: bytes | memoryview, offset: int) -> Record:
    """Decode the 32 bytes at `offset`."""
    last_access, controller, size, b, c = RECORD.unpack_from(raw, offset)
    # Past their constructors, which take three times as long.
    return _new(Record, (last_access, controller, _new(Locator, (size, b, c))))
