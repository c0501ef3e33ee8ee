"""Devices that misbehave on demand."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections import defaultdict

from dstorage_controllers.disk import Device


def write_directly(monkeypatch, least):
    """Let direct I/O begin at chunks of `least` bytes, and go through few pages at a time, so that small tests meet it."""
    monkeypatch.setattr("dstorage_controllers.disk.direct.HUGE_PAGE", 8192)
    monkeypatch.setattr("dstorage_controllers.disk.appender.DIRECT_BYTES", least)
    monkeypatch.setattr("dstorage_controllers.disk.reader.DIRECT_BYTES", least)


def is_direct(fd):
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


class FaultyDevice(Device):
    """Fails the next calls of a method, has room for so many bytes only, and can hold calls up.

    Attributes:
        faults: Errors for the next calls, by method; None lets one pass.
        room: Bytes that may still be written; None for no limit.
        gate: Calls of the methods in `held` wait for it.
        cold: Nothing is in the page cache: reads that would not wait are refused.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.faults = defaultdict(list)
        self.calls = defaultdict(int)
        self.punched: list[int] = []
        self.room = None
        self.held = set()
        self.cold = False
        self.gate = threading.Event()

    def fail(self, method, code, times=1):
        self.faults[method] += [OSError(code, os.strerror(code))] * times

    def _meet(self, method):
        self.calls[method] += 1
        if method in self.held:
            assert self.gate.wait(30)
        if self.faults[method] and (fault := self.faults[method].pop(0)) is not None:
            raise fault

    def open(self, path, *, create=False, write=True):
        self._meet("create" if create else "open")
        return super().open(path, create=create, write=write)

    def open_direct(self, path, *, write=True):
        self._meet("open")
        return super().open_direct(path, write=write)

    def rename(self, old, new):
        self._meet("rename")
        super().rename(old, new)

    def preadv(self, fd, buffers, offset, *, nowait=False):
        self._meet("preadv_nowait" if nowait else "preadv")
        if nowait and self.cold:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return super().preadv(fd, buffers, offset, nowait=nowait)

    def read_held(self, fd, address, length, offset):
        self._meet("preadv_nowait")
        if self.cold:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return super().read_held(fd, address, length, offset)

    def pwritev(self, fd, buffers, offset):
        self._meet("pwritev")
        if self.room is None:
            return super().pwritev(fd, buffers, offset)
        # As a file system does: what fits is written and said; the next call finds nothing.
        data = b"".join(bytes(buffer) for buffer in buffers)
        fits = min(self.room, len(data))
        if is_direct(fd):
            fits = fits // 4096 * 4096
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= fits
        with mmap.mmap(-1, fits) as pages:
            pages[:] = data[:fits]
            return super().pwritev(fd, [pages], offset)

    def sync(self, fd):
        self._meet("sync")
        super().sync(fd)

    def sync_directory(self, path):
        self._meet("sync_directory")
        super().sync_directory(path)

    def truncate(self, path, length):
        self._meet("truncate")
        if self.room is not None:
            self.room += max(0, self.size(path) - length)
        super().truncate(path, length)

    def unlink(self, path):
        self._meet("unlink")
        super().unlink(path)

    def punch(self, fd, offset, length):
        self._meet("punch")
        self.punched.append(length)
        if self.room is not None:
            self.room += length
        return super().punch(fd, offset, length)

    def available(self, path):
        return super().available(path) if self.room is None else self.room
