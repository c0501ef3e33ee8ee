"""The file system as the disk controller sees it: the one seam between its logic and the operating system.

Every call here may block and is plain: no state but the open descriptors, errors are `OSError`. Tests put a recording
or a faulty device in its place (`dstorage.testing.power`); platforms without positioned or vectored I/O, without
`RWF_NOWAIT` or without hole punching are served by the fallbacks below, which are chosen by what `os` offers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dstorage.durable import sync_directory, sync_file
from dstorage.mount import mount_of
from dstorage_controllers.disk.layout import PAGE

Writable = bytearray | memoryview

IOV_MAX = 1024
"""Buffers that one vectored call takes, on every system that has one (POSIX promises 16, all of ours have 1024)."""

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        # An interpreter without dynamic linking: there is no way to the call.
        return None
    function = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = function
    return call


_fallocate = _find_fallocate()


_pack_iovec = struct.Struct("PN").pack
"""The system's struct iovec: address, length."""


def _find_preadv2() -> Callable[[int, bytes, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        # This kind of library is called without letting go of the interpreter.
        library = ctypes.PyDLL(None, use_errno=True)
        # The plain one's offset has 32 bits on 32-bit systems with glibc; musl knows no other one, and it has 64.
        function = getattr(library, "preadv64v2", None) or library.preadv2
    except (OSError, TypeError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    function.restype = ctypes.c_ssize_t
    call: Callable[[int, bytes, int, int, int], int] = function
    return call


_preadv2 = _find_preadv2()


class Device:
    """The operating system's file calls.

    Args:
        punch: False forces hole punching off.
        nowait: False forces `RWF_NOWAIT` off.
        vectored: False forces the seek-and-read fallback of systems without `preadv`.
    """

    def __init__(self, *, punch: bool = True, nowait: bool = True, vectored: bool = True) -> None:
        self._punch = punch and _fallocate is not None
        self._nowait_flag = getattr(os, "RWF_NOWAIT", 0) if nowait else 0
        self._vectored = vectored and hasattr(os, "preadv") and hasattr(os, "pwritev")
        self._seeking = threading.Lock()

    @property
    def can_punch(self) -> bool:
        """Whether `punch` has a chance; it turns False for good when the file system refuses."""
        return self._punch

    @property
    def can_read_nowait(self) -> bool:
        """Whether `preadv(nowait=True)` has a chance; it turns False for good when the file system refuses."""
        return self._nowait_flag != 0 and self._vectored

    def make_directory(self, path: Path) -> None:
        """Create `path` and its missing parents, durably and for this user alone."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        self.sync_directory(path.parent)

    def list_directory(self, path: Path) -> list[str]:
        """Names in `path`; empty if there is no such directory."""
        try:
            return [entry.name for entry in path.iterdir()]
        except FileNotFoundError:
            return []

    def open(self, path: Path, *, create: bool = False, write: bool = True) -> int:
        """Open a file; `create` wants it not to exist yet."""
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(path, flags, 0o600)

    def open_direct(self, path: Path, *, write: bool = True) -> int:
        """Open a file once more, to move whole pages between it and aligned memory past the page cache.

        Raises:
            OSError: With `EINVAL` where the file system (or this operating system) has no such access.
        """
        flag = getattr(os, "O_DIRECT", 0)
        if not flag or not self._vectored:
            raise OSError(errno.EINVAL, "direct I/O is not to be had here", str(path))
        flags = os.O_RDWR if write else os.O_RDONLY
        return os.open(path, flags | flag | os.O_CLOEXEC | os.O_NOFOLLOW)

    def try_direct(self, directory: Path) -> None:
        """Write and read one page directly, in a file that is deleted again.

        Raises:
            OSError: It does not work there, with whatever the system said.
        """
        path = directory / "direct.try"
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            fd = self.open_direct(path)
            try:
                with mmap.mmap(-1, PAGE) as page:
                    page[:5] = b"whole"
                    if os.pwritev(fd, [page], 0) != PAGE or os.preadv(fd, [page], 0) != PAGE:
                        raise OSError(errno.EINVAL, "a page was moved in part", str(path))
            finally:
                os.close(fd)
        finally:
            path.unlink(missing_ok=True)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def size(self, path: Path) -> int:
        """Length of a file in bytes."""
        return path.stat().st_size

    def allocated(self, path: Path) -> int:
        """Bytes of disk a file takes; its length where the system does not say."""
        found = path.stat()
        blocks: int | None = getattr(found, "st_blocks", None)
        return found.st_size if blocks is None else blocks * 512

    def preadv(self, fd: int, buffers: Sequence[Writable], offset: int, *, nowait: bool = False) -> int:
        """Read into `buffers`, at most `IOV_MAX` of them; may read less than asked for.

        Raises:
            BlockingIOError: `nowait`, and the bytes are not in the page cache (or this system cannot tell).
        """
        if nowait:
            if not self.can_read_nowait:
                raise BlockingIOError(errno.EAGAIN, "reading without waiting is not to be had here")
            try:
                return os.preadv(fd, buffers, offset, self._nowait_flag)
            except OSError as error:
                self._refused(error.errno)
                raise
        if self._vectored:
            return os.preadv(fd, buffers, offset)
        with self._seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            done = 0
            for buffer in buffers:
                piece = os.read(fd, len(buffer))
                buffer[: len(piece)] = piece
                done += len(piece)
                if len(piece) < len(buffer):
                    break
            return done

    @property
    def can_read_held(self) -> bool:
        """Whether `read_held` has a chance."""
        return self._nowait_flag != 0 and self._vectored and _preadv2 is not None

    def read_held(self, fd: int, address: int, length: int, offset: int) -> int:
        """`preadv(nowait=True)` to a memory address, keeping the interpreter's lock: to give it away and get it back takes several threads that
        read at the same time longer than some microseconds of copying.

        Raises:
            BlockingIOError: The bytes are not in the page cache (or this system cannot tell).
        """
        flag = self._nowait_flag
        if not flag or _preadv2 is None:
            raise BlockingIOError(errno.EAGAIN, "reading without waiting is not to be had here")
        done = _preadv2(fd, _pack_iovec(address, length), 1, offset, flag)
        if done < 0:
            code = ctypes.get_errno()
            self._refused(code)
            raise OSError(code, os.strerror(code))
        return done

    def _refused(self, code: int | None) -> None:
        """Note down, and raise, that the file system cannot read without waiting, if that is what an error says."""
        if code in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            self._nowait_flag = 0
            raise BlockingIOError(errno.EAGAIN, "this file system cannot read without waiting")

    def pwritev(self, fd: int, buffers: Sequence[bytes | Writable], offset: int) -> int:
        """Write `buffers`, at most `IOV_MAX` of them; may write less than asked for."""
        if self._vectored:
            return os.pwritev(fd, buffers, offset)
        with self._seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            done = 0
            for buffer in buffers:
                written = os.write(fd, buffer)
                done += written
                if written < len(buffer):
                    break
            return done

    def sync(self, fd: int) -> None:
        """Make a file's bytes and length durable."""
        sync_file(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        sync_directory(path)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        """Give the space of a byte range back to the file system; False where it cannot."""
        if not self._punch or _fallocate is None:
            return False
        if _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            self._punch = False
            return False
        raise OSError(code, os.strerror(code))

    def truncate(self, path: Path, length: int) -> None:
        """Cut a file down to `length` bytes."""
        os.truncate(path, length)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, which nothing has."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Delete a file; that it is gone already is as good."""
        path.unlink(missing_ok=True)

    def will_need(self, fd: int, offset: int, length: int) -> None:
        """Ask the kernel to start reading a range, where it takes such hints."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def expect(self, fd: int, *, in_sequence: bool) -> None:
        """Tell the kernel how a file is going to be read, where it takes such hints: further ahead than usual, or
        exactly what is asked for.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL if in_sequence else os.POSIX_FADV_RANDOM)

    def drop_cache(self, fd: int, offset: int, length: int) -> None:
        """Forget the cached (clean) pages of a range, where the kernel takes such hints."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def available(self, path: Path) -> int | None:
        """Bytes an ordinary user may still write on the file system of `path`; None where it is not to be had."""
        if not hasattr(os, "statvfs"):
            return None
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def network(self, path: Path) -> str | None:
        """The network file system `path` is on, in words; None for a local one or unknown."""
        mount = mount_of(path)
        return mount.what if mount is not None and mount.network else None
