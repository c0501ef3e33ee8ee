"""Memory for chunks whose contents are about to come from elsewhere: not zeroed first, and on pages where that helps.

A `bytearray` of zeros is zeroed with the interpreter locked, which costs 10 to 15 % of a cached read. And direct I/O moves bytes
between a device and memory only by whole, aligned pages: a buffer that begins on a page is read into and written from
without a copy. A `bytearray` whose front is deleted keeps its memory and begins later, so it can be made to.
"""

from __future__ import annotations

import ctypes
import sys

PAGE = 4096
FRESH_BYTES = 128 * 2**10
"""From here on a buffer is not zeroed and begins on a page; below, the calls through ctypes cost more than they save. So the
page that may be lost in front is at most a thirty-second."""

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
_WRITABLE = 0x200
"""The interpreter's PyBUF_WRITE."""


def fresh_buffer(size: int) -> bytearray:
    """A buffer of `size` bytes, to be filled completely or dropped: what it holds at first is undefined.

    From `FRESH_BYTES` on it begins on a page, where the interpreter lets it; ask `on_page` before relying on that.
    """
    if size < FRESH_BYTES or _allocate is None:
        return bytearray(size)
    buffer: bytearray = _allocate(None, size + PAGE)
    del buffer[: -_address(buffer) % PAGE]
    del buffer[size:]
    return buffer


def fresh_bytes(size: int) -> tuple[bytes | None, bytearray | memoryview]:
    """Bytes that nobody else knows yet, and a view to fill them by, which is to be dropped before anybody does.

    None and a buffer to be copied from, where that is quicker or the interpreter does not let us.
    """
    if size < FRESH_BYTES or _allocate_bytes is None:
        return None, bytearray(size)
    data: bytes = _allocate_bytes(None, size)
    return data, _view_memory(id(data) + _BYTES_HEAD, size, _WRITABLE)


def on_page(buffer: bytes | bytearray | memoryview) -> bool:
    """Whether the memory of a writable buffer is known to begin on a page."""
    try:
        return _address(buffer) % PAGE == 0
    except (TypeError, ValueError):
        # Read-only, or empty.
        return False


def _address(buffer: bytes | bytearray | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
