"""Memory for chunks whose contents are about to come from elsewhere: not zeroed first, and in huge pages where it is very large.

A `bytearray` of zeros is zeroed with the interpreter locked, which costs 10 to 15 % of a cached read. And very large ones may be memory that the
allocator asks the system for each time anew: in pages of 4 KiB, getting it costs more than reading into it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence

FRESH_BYTES = 128 * 2**10
"""From here on a buffer is not zeroed; below, the call through ctypes costs more than it saves."""

ZEROED_BYTES = 16 * 2**10
"""Bytes shorter than this are zeroed all the same: that costs less than the one call. (A `bytearray` takes two, and a cut.)"""
HUGE_BYTES = 4 * 2**20
"""From here on huge pages are asked for, as numpy does. glibc's allocator maps memory for each buffer of 32 MiB, and unmaps it at the
end; what is smaller it may hand out again, but threads other than the first give much of it back to the system, too.
"""
HUGE_PAGE = 2**21
UNLOCKED_BYTES = 2**18
"""From here on a copy gives the interpreter's lock away: other threads need not wait for it to end. A shorter one takes microseconds, after
which the lock may come back milliseconds later, if another thread computes."""

_allocate = _allocate_bytes = None
if sys.implementation.name == "cpython":
    _allocate = ctypes.pythonapi.PyByteArray_FromStringAndSize
    _allocate.restype = ctypes.py_object
    _allocate.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
    _allocate_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
    _allocate_bytes.restype = ctypes.py_object
    _allocate_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
    _view_memory = ctypes.pythonapi.PyMemoryView_FromMemory
    _view_memory.restype = ctypes.py_object
    _view_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_BYTES_HEAD = bytes.__basicsize__ - 1
SHARED_BYTES = 1
"""Bytes objects this short are the interpreter's own, the same for all who have equal ones."""
_WRITABLE = 0x200
"""The interpreter's PyBUF_WRITE."""


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, TypeError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    call: Callable[[int, int, int], int] = function
    return call


_madvise = _find_madvise()


def _in_huge_pages(address: int, size: int) -> None:
    """Have memory that nobody has touched yet come in huge pages; a kernel that refuses does no harm."""
    if size >= HUGE_BYTES and _madvise is not None:
        first, end = -(-address // HUGE_PAGE) * HUGE_PAGE, (address + size) // HUGE_PAGE * HUGE_PAGE
        _madvise(first, end - first, mmap.MADV_HUGEPAGE)


def address_of(buffer: bytearray | memoryview | mmap.mmap) -> int:
    """Where the bytes of a writable buffer are."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes from one view to another of the same length.

    Other threads run while it copies many, except where they are only for reading: the interpreter does not tell where such are.
    """
    if len(source) < UNLOCKED_BYTES or source.readonly or source.itemsize != 1 or not source.c_contiguous:
        target[:] = source
    else:
        ctypes.memmove(address_of(target), address_of(source), len(source))


def fresh_buffer(size: int) -> bytearray:
    """A buffer of `size` bytes, to be filled completely or dropped: what it holds at first is undefined.

    A large one takes just what bytes of its size take. Else C allocators could not give the one's memory to the other and back, and a
    program that reads and edits large chunks would come to hold a fifth more than it has.
    """
    if size < FRESH_BYTES or _allocate is None:
        return bytearray(size)
    buffer: bytearray = _allocate(None, size + _BYTES_HEAD)
    # What is cut off is little, so that nothing is moved.
    del buffer[size:]
    if size >= HUGE_BYTES:
        _in_huge_pages(address_of(buffer), size)
    return buffer


def fresh_buffer_at(size: int) -> tuple[bytearray, int]:
    """`fresh_buffer`, and the address to fill it at."""
    buffer = fresh_buffer(size)
    return buffer, address_of(buffer)


def zeros(size: int) -> bytearray:
    """A buffer of zeros that takes what `fresh_buffer` takes."""
    if size >= HUGE_BYTES and _allocate is not None:
        buffer = fresh_buffer(size)
        ctypes.memset(address_of(buffer), 0, size)
        return buffer
    buffer = bytearray(size + (_BYTES_HEAD if size >= FRESH_BYTES else 0))
    del buffer[size:]
    return buffer


def copied(data: bytes | bytearray | memoryview) -> bytearray:
    """A copy that takes what `fresh_buffer` takes."""
    if len(data) < FRESH_BYTES:
        return bytearray(data)
    buffer = fresh_buffer(len(data))
    copy(memoryview(buffer), memoryview(data))
    return buffer


def joined(parts: Sequence[bytes | bytearray | memoryview]) -> bytearray:
    """Bytes-like parts side by side, in a buffer that takes what `fresh_buffer` takes."""
    size = sum(map(len, parts))
    if size < FRESH_BYTES:
        return bytearray().join(parts)
    buffer = fresh_buffer(size)
    view, first = memoryview(buffer), 0
    for part in parts:
        copy(view[first : first + len(part)], memoryview(part))
        first += len(part)
    return buffer


def copied_bytes(data: memoryview) -> bytes:
    """A copy, as bytes, of a view of any shape."""
    if data.nbytes < HUGE_BYTES or not data.c_contiguous:
        return bytes(data)
    contents, view = fresh_contents(data.nbytes)
    copy(memoryview(view), data.cast("B"))
    return bytes(contents)


def fresh_bytes(size: int) -> tuple[bytes | None, bytearray | memoryview]:
    """Bytes that nobody else knows yet, and a view to fill them by, which is to be dropped before anybody does.

    None and a buffer to be copied from, where that is quicker or the interpreter does not let us.
    """
    if size < FRESH_BYTES or _allocate_bytes is None:
        return None, bytearray(size)
    data: bytes = _allocate_bytes(None, size)
    _in_huge_pages(id(data) + _BYTES_HEAD, size)
    return data, _view_memory(id(data) + _BYTES_HEAD, size, _WRITABLE)


def fresh_bytes_at(size: int) -> tuple[bytes, int] | None:
    """Bytes that nobody else knows yet, and the address to fill them at before anybody does; None where the interpreter does not let us."""
    if _allocate_bytes is None or size <= SHARED_BYTES:
        return None
    data: bytes = bytes(size) if size < ZEROED_BYTES else _allocate_bytes(None, size)
    return data, id(data) + _BYTES_HEAD


def fresh_contents(size: int) -> tuple[bytes | bytearray, bytearray | memoryview]:
    """Contents of a chunk that nobody else knows yet, and a view to fill them by, which is to be dropped before anybody does.

    Bytes where that is no slower: these can be given to a program as they are.
    """
    data, view = fresh_bytes(size)
    if data is None:
        assert isinstance(view, bytearray)
        return view, view
    return data, view
