"""The data device of a pool: anything with asynchronous positioned reads and writes; and a file as one.

A `FileDevice` answers reads that the page cache can serve on the loop (`RWF_NOWAIT`: no thread, no waiting) and everything
else in threads of its own, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from dstorage.durable import sync_file
from dstorage.errors import ClosedError, InvalidArgumentError
from dstorage.persistent import positioned
from dstorage.volumes.finish import finish

Buffer = bytes | bytearray | memoryview

THREADS = 4
"""More bring nothing on a local file: reads ahead and write-back are the kernel's."""
INLINE_BYTES = 4 * 2**20
"""Read on the loop at most: copying that much from the page cache takes about a millisecond."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
T = TypeVar("T")


class DataDevice(Protocol):
    """What a pool keeps the bytes of its volumes on.

    Offsets and lengths are in bytes. Calls may overlap in time; a pool never has two in flight that write to the same bytes
    unless the program wrote the same bytes of a volume twice at once. A call that is cancelled returns only when the device has
    done with the bytes concerned: the pool gives them to somebody else afterwards.
    """

    @property
    def size(self) -> int:
        """Length in bytes."""

    async def pread(self, length: int, offset: int, /) -> Buffer:
        """`length` bytes from `offset`; fewer only at the end of the device."""

    async def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` at `offset`; the buffer is the caller's again when this returns."""

    async def flush(self) -> None:
        """Return when all that was written before is durable."""

    async def discard(self, offset: int, length: int, /) -> None:
        """A hint that these bytes are not needed any more; may do nothing."""

    async def truncate(self, size: int, /) -> None:
        """Make the device `size` bytes long; what is new reads as zeros."""


class FileDevice:
    """A file as a data device.

    Args:
        path: The file.
        create: Make it if it does not exist; else that is an error.
        read_only: Refuse writing.

    Raises:
        OSError: The file cannot be opened, or is neither a file nor a block device.
    """

    def __init__(self, path: Path | str, *, create: bool = False, read_only: bool = False) -> None:
        self.path = Path(path)
        self._fd = positioned.open_file(path, read_only=read_only, create=create)
        self._size = positioned.size_of(self._fd)
        self._nowait: int | None = getattr(os, "RWF_NOWAIT", None)
        self._threads: ThreadPoolExecutor | None = None

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    async def pread(self, length: int, offset: int, /) -> Buffer:
        """`length` bytes from `offset`; fewer only at the end of the file."""
        fd = self._open_fd()
        if length <= INLINE_BYTES and self._nowait is not None:
            buffer = _fresh(length)
            try:
                done = os.preadv(fd, (buffer,), offset, self._nowait)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    # This file system cannot tell: ask it no more.
                    self._nowait = None
                done = 0
            if done == length:
                return buffer
        return await self._in_thread(lambda: _read(fd, length, offset))

    async def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` at `offset`; the file grows when that is behind its end."""
        fd = self._open_fd()
        await self._in_thread(lambda: _write(fd, data, offset))
        self._size = max(self._size, offset + len(data))

    async def flush(self) -> None:
        """Return when all that was written before is durable."""
        fd = self._open_fd()
        await self._in_thread(lambda: sync_file(fd))

    async def discard(self, offset: int, length: int, /) -> None:
        """Give the bytes back to the file system where it can; else nothing."""
        fd = self._open_fd()
        await self._in_thread(lambda: _punch(fd, offset, length))

    async def truncate(self, size: int, /) -> None:
        """Make the file `size` bytes long; what is new is a hole and reads as zeros."""
        fd = self._open_fd()
        await self._in_thread(lambda: os.ftruncate(fd, size))
        self._size = size

    def close(self) -> None:
        """Wait for what is under way and close; a second call does nothing."""
        if self._fd < 0:
            return
        if self._threads is not None:
            self._threads.shutdown()
        os.close(self._fd)
        self._fd = -1

    def __repr__(self) -> str:
        return f"FileDevice({str(self.path)!r}, size={self._size})"

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise ClosedError(f"the data device {self.path} was closed: open it again")
        return self._fd

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dstorage-data")
        return await finish(asyncio.get_running_loop().run_in_executor(self._threads, work))


def _read(fd: int, length: int, offset: int) -> Buffer:
    if not hasattr(os, "preadv"):
        return positioned.pread(fd, length, offset)
    buffer = _fresh(length)
    view = memoryview(buffer)
    done = 0
    while done < length:
        count = os.preadv(fd, (view[done:],), offset + done)
        if not count:
            return bytes(view[:done])
        done += count
    return buffer


def _write(fd: int, data: Buffer, offset: int) -> None:
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    positioned.pwrite(fd, view, offset)


def _punch(fd: int, offset: int, length: int) -> None:
    if _fallocate is not None and length:
        # A refusal is no error: discarding is a hint.
        _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length)


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        # An interpreter without dynamic linking: there is no way to the call.
        return None
    function = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found


_fallocate = _find_fallocate()

_unfilled = None
if sys.implementation.name == "cpython":
    _unfilled = ctypes.pythonapi.PyByteArray_FromStringAndSize
    _unfilled.restype = ctypes.py_object
    _unfilled.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def _fresh(size: int) -> bytearray:
    """A buffer to be filled completely or dropped; large ones are not zeroed first, which would cost 10 to 15 % of a read."""
    if size < 128 * 1024 or _unfilled is None:
        return bytearray(size)
    buffer: bytearray = _unfilled(None, size)
    return buffer


def check_range(offset: int, length: int, size: int) -> None:
    """Raise unless `offset` and `length` are inside of `size` bytes.

    Raises:
        InvalidArgumentError: They are negative, or reach behind the end.
    """
    if offset < 0 or length < 0 or offset + length > size:
        raise InvalidArgumentError(
            f"{length} bytes at {offset} are not within the {size} bytes there are: stay inside, or open with a larger size"
        )
