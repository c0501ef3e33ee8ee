"""Whether an LMDB file is whole, found by plain reads before LMDB maps it.

LMDB reads its file through a memory map: where the file was cut off, the first look at a missing page ends the process by
SIGBUS. `check_whole` finds that before. The file has to reach to the last page in use that its newer meta page names, but for
pages at its end that are free: those of a transaction that were used and freed again are never written, so a sound file may
be shorter. Then, and only then, the tree of free pages is read, too.

Source: the data format of LMDB 0.9 (version 1), as `MDB_page`, `MDB_meta`, `MDB_db` and `MDB_node` in its mdb.c describe it, for
64-bit machines. What is no such file is LMDB's to refuse.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dstorage.errors import CorruptData

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_NO_PAGE = 2**64 - 1
_BRANCH, _LEAF = 1, 2
_BIG_DATA = 1
LOOKS = 100
"""A writer may commit while we look; if it does so each time, there is nothing wrong with the file."""

_PAGE = struct.Struct("=Q2xHHH")
"""Number, flags, end of the pointers to nodes, start of the nodes; after it 16-bit offsets of the nodes."""
_DB = "IHHQQQQQ"
"""Page size (of the first), flags, depth, branch, leaf and overflow pages, entries, root."""
_META = struct.Struct(f"=II16x{_DB}{_DB}QQ")
"""Magic, version, (address, size of the map), the free pages' tree, the main tree, last page in use, transaction."""
_NODE = struct.Struct("=HHHH")
"""Low and high half of the data's length (or of a child's page number), flags (or its top), length of the key."""
_WORD = struct.Struct("=Q")


class _Meta(NamedTuple):
    page_bytes: int
    free_root: int
    last_page: int
    transaction: int


def check_whole(path: Path) -> None:
    """Return unless the file was cut off. Blocking: two pages are read, seldom more.

    Raises:
        CorruptData: Pages in use are missing.
        OSError: It cannot be read.
    """
    if struct.calcsize("P") != 8:
        return
    with path.open("rb") as file:
        fd = file.fileno()
        for _ in range(LOOKS):
            meta = _newest_meta(fd)
            if meta is None:
                return
            size = os.fstat(fd).st_size
            there = size // meta.page_bytes
            missing = meta.last_page + 1 - there
            try:
                if missing <= 0 or missing == len({number for number in _free_pages(fd, meta) if there <= number}):
                    return
            except (ValueError, struct.error):
                # That tree is cut off as well.
                pass
            if _newest_meta(fd) == meta:
                raise CorruptData(
                    f"{path} was cut off: it has {size} bytes and pages in use up to byte "
                    f"{(meta.last_page + 1) * meta.page_bytes}; restore the store from a backup"
                )


def _newest_meta(fd: int) -> _Meta | None:
    """What the next transaction would go by; None if this is no file of the kind."""
    first = _meta(_read(fd, 0, _PAGE.size + _META.size))
    if first is None:
        return None
    second = _meta(_read(fd, first.page_bytes, _PAGE.size + _META.size))
    return first if second is None or first.transaction >= second.transaction else second


def _meta(raw: bytes) -> _Meta | None:
    if len(raw) < _PAGE.size + _META.size:
        return None
    magic, version, page_bytes, *_, free_root = _META.unpack_from(raw, _PAGE.size)[:10]
    last_page, transaction = _META.unpack_from(raw, _PAGE.size)[-2:]
    if magic != _MAGIC or version != _VERSION or not 256 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
        return None
    return _Meta(page_bytes, free_root, last_page, transaction)


def _free_pages(fd: int, meta: _Meta) -> Iterator[int]:
    """All pages that the tree of free pages names.

    Raises:
        ValueError, struct.error: It is damaged.
    """
    ahead, seen = [meta.free_root] if meta.free_root != _NO_PAGE else [], set[int]()
    while ahead:
        number = ahead.pop()
        page = _read(fd, number * meta.page_bytes, meta.page_bytes)
        own, flags, lower, _ = _PAGE.unpack_from(page)
        if own != number or number in seen or not flags & (_BRANCH | _LEAF):
            raise ValueError
        seen.add(number)
        for at in range(_PAGE.size, lower, 2):
            (offset,) = struct.unpack_from("=H", page, at)
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, offset)
            size = low | high << 16
            if flags & _BRANCH:
                ahead.append(size | node_flags << 32)
                continue
            start = offset + _NODE.size + key_bytes
            if node_flags & _BIG_DATA:
                (first,) = _WORD.unpack_from(page, start)
                numbers = _read(fd, first * meta.page_bytes + _PAGE.size, size)
            else:
                numbers = page[start : start + size]
            (count,) = _WORD.unpack_from(numbers)
            yield from struct.unpack_from(f"={count}Q", numbers, _WORD.size)


def _read(fd: int, offset: int, size: int) -> bytes:
    if os.fstat(fd).st_size < offset + size:
        return b""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)
