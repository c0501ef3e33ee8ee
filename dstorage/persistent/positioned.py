"""Files read and written at given places, also on systems without positioned calls, where each seeks under a lock.

Only what has a length and keeps its bytes is opened: files and block devices.

Source: POSIX `pread` and `pwrite`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_seeking = threading.Lock()


def open_file(path: Path | str, *, read_only: bool = False, create: bool = False) -> int:
    """Open a file or a block device; gives the descriptor.

    Args:
        path: Its name.
        read_only: Refuse writing.
        create: Make an empty file, for this user alone, if there is none.

    Raises:
        OSError: It cannot be opened, or is a directory, a pipe or something else.
    """
    access = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if create else 0)
    # Opening a pipe would wait for its other end.
    fd = os.open(path, access | _FLAGS | getattr(os, "O_NONBLOCK", 0), 0o600)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "neither a file nor a block device", str(path))


def size_of(fd: int) -> int:
    """Length in bytes."""
    # Asked of the end, not of stat: a block device has no length there.
    with _seeking:
        return os.lseek(fd, 0, os.SEEK_END)


def pread(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset`; fewer only at the end of the file."""
    data = _pread(fd, length, offset)
    while len(data) < length:
        more = _pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def pwrite(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = _pwrite(fd, data, offset)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += _pwrite(fd, view[done:], offset + done)


def _pread(fd: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def _pwrite(fd: int, data: Buffer, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
