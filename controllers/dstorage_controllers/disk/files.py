"""The files of segments: descriptors shared by threads, and reads and writes that are whole or say why not.

Descriptors are opened by whichever thread needs one, and closed when nobody uses them: on the loop when too many are
open, or by the last user of a deleted segment. So a read on the loop, which takes no part in the counting, never meets
a descriptor that was closed (and given to another file) under it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dstorage_controllers.disk import layout
from dstorage_controllers.disk.device import IOV_MAX, Device
from dstorage_controllers.disk.layout import ENTRY_BYTES, Committed

OPEN_FILES = 256
"""Descriptors kept open at most when nobody reads; a quarter of the usual limit of a process."""


class Segment:
    """One segment file.

    Attributes:
        number: Names the file; never used twice by one controller.
        slots: Length of its table.
        tail: Where the next extent goes.
        next_slot: Of its table.
        live: Stored bytes not discarded yet, answered or about to be.
        committed: As of the last commit, None if no commit refers to it.
        sealed: Nothing will be appended any more.
        missing: The file was not there when the log was loaded.
        gone: Dead: no longer in the log, its file about to be deleted.
        read_end: End of the extent that was last asked for on the loop.
        advised: Whether the kernel was last told to expect reading in sequence; None: nothing yet.
        fd: Descriptor, or -1.
        direct_fd: Descriptor for direct I/O, or -1.
        users: Threads that use a descriptor now.
        touched: When it was last used, by a count of all uses.
        durable: (tail, next_slot) up to which the last good sync reached.
        forgotten: Offsets of extents behind `durable` that were discarded; they may be holes already.
        doubtful: A sync failed: what it left behind has to be written again before another one can be believed.
    """

    __slots__ = (
        "advised",
        "committed",
        "direct_fd",
        "doubtful",
        "durable",
        "fd",
        "forgotten",
        "gone",
        "live",
        "missing",
        "next_slot",
        "number",
        "read_end",
        "sealed",
        "slots",
        "tail",
        "touched",
        "users",
    )

    def __init__(self, number: int, slots: int, committed: Committed | None = None) -> None:
        self.number = number
        self.slots = slots
        self.tail = slots * ENTRY_BYTES if committed is None else committed.tail
        self.next_slot = 1 if committed is None else committed.next_slot
        self.live = 0 if committed is None else committed.live
        self.committed = committed
        self.sealed = False
        self.missing = False
        self.gone = False
        self.read_end = 0
        self.advised: bool | None = None
        self.fd = -1
        self.direct_fd = -1
        self.users = 0
        self.touched = 0
        self.durable = (self.tail, self.next_slot)
        self.forgotten: set[int] = set()
        self.doubtful = False

    @property
    def start(self) -> int:
        """Offset of the first extent."""
        return self.slots * ENTRY_BYTES


class SegmentFiles:
    """The segment files in one directory.

    Args:
        device: The file system.
        directory: Where they are.
        read_only: Open them for reading only.
        direct: Large extents are to go past the page cache.

    Attributes:
        direct: Whether they do; it turns False for good when the file system refuses.
    """

    def __init__(self, device: Device, directory: Path, *, read_only: bool, direct: bool = False) -> None:
        self.device = device
        self.directory = directory
        self.direct = direct
        self._write = not read_only
        self._lock = threading.Lock()
        """Guards descriptors and their counts; never held over I/O."""
        self._uses = 0
        self._open = 0
        self._visitors: dict[int, Segment] = {}
        """Threads in `read_cached`, and what they read. Not counted in `Segment.users`, which takes the lock twice: threads that read much
        would spend their time waiting for each other."""
        self._left_open: list[tuple[Segment, int]] = []
        """Descriptors to be closed when no visitor reads the segment any more."""

    def path(self, number: int) -> Path:
        """Where the file of a segment is."""
        return self.directory / layout.file_name(number)

    def create(self, segment: Segment) -> None:
        """Blocking: create the file of a segment that nobody else knows yet."""
        segment.fd = self.device.open(self.path(segment.number), create=True)
        with self._lock:
            self._open += 1

    def recycle(self, number: int, segment: Segment) -> None:
        """Blocking: make the file of a dead segment that of one that nobody else knows yet."""
        self.device.rename(self.path(number), self.path(segment.number))

    @contextmanager
    def using(self, segment: Segment, *, direct: bool = False) -> Iterator[int]:
        """Blocking: a descriptor that stays open inside the `with`.

        Args:
            segment: The segment.
            direct: The descriptor for direct I/O, or the other one if the file system has none.

        Raises:
            FileNotFoundError: The segment was deleted, or its file is missing.
            OSError: From the device.
        """
        with self._lock:
            if segment.gone:
                raise FileNotFoundError(errno.ENOENT, "the segment was deleted", str(self.path(segment.number)))
            segment.users += 1
            self._uses += 1
            segment.touched = self._uses
            fd = segment.direct_fd if direct else segment.fd
        try:
            yield fd if fd >= 0 else self._open_direct(segment) if direct else self._open_file(segment)
        finally:
            with self._lock:
                segment.users -= 1
                left = self._take_gone(segment)
            self._let_go(segment, left)

    def _open_direct(self, segment: Segment) -> int:
        if self.direct:
            try:
                fd = self.device.open_direct(self.path(segment.number), write=self._write)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct = False
            else:
                with self._lock:
                    if segment.direct_fd < 0:
                        segment.direct_fd = fd
                        self._open += 1
                        return fd
                    theirs = segment.direct_fd
                self.device.close(fd)
                return theirs
        return segment.fd if segment.fd >= 0 else self._open_file(segment)

    def _open_file(self, segment: Segment) -> int:
        fd = self.device.open(self.path(segment.number), write=self._write)
        with self._lock:
            if segment.fd < 0:
                segment.fd = fd
                self._open += 1
                return fd
            theirs = segment.fd
        self.device.close(fd)
        return theirs

    def read_cached(self, segment: Segment, read: Callable[..., int], *args: object) -> int:
        """In any thread: call `read` with a segment's descriptor and `args`; returns how much it read, 0 if it could not without waiting."""
        thread = threading.get_ident()
        try:
            # In this order: who closes takes the descriptor away first, and looks who is here after that.
            self._visitors[thread] = segment
            fd = segment.fd
            return 0 if segment.gone or fd < 0 else read(fd, *args)
        except OSError:
            return 0
        finally:
            self._visitors.pop(thread, None)
            if self._left_open:
                self._close_left()

    def close_surplus(self, segments: Iterable[Segment]) -> None:
        """On the loop: close the descriptors used longest ago when too many are open."""
        if self._open <= OPEN_FILES:
            return
        # The writer thread may begin another meanwhile: a list of them is made at once.
        opened = [segment for segment in list(segments) if segment.fd >= 0 or segment.direct_fd >= 0]
        for segment in sorted(opened, key=lambda segment: segment.touched):
            with self._lock:
                if self._open <= OPEN_FILES:
                    return
                if segment.users:
                    continue
                segment.advised = None
                left = self._take(segment)
            self._let_go(segment, left)

    def close(self, segments: Iterable[Segment]) -> None:
        """Close all descriptors; one that `read_cached` is using is closed when it is through."""
        for segment in segments:
            with self._lock:
                segment.gone = True
                left = self._take_gone(segment)
            self._let_go(segment, left)

    def doom(self, segment: Segment) -> None:
        """On the loop: let nobody open a segment again that was taken out of the log."""
        with self._lock:
            segment.gone = True

    def delete(self, segment: Segment) -> None:
        """Blocking: delete the file of a doomed segment; who still reads it keeps its descriptor."""
        with self._lock:
            left = self._take_gone(segment)
        self._let_go(segment, left)
        self.device.unlink(self.path(segment.number))

    def retire(self, segment: Segment) -> bool:
        """Blocking: keep the file of a doomed segment for `recycle`; False while somebody still reads it."""
        with self._lock:
            if segment.users or segment in self._visitors.copy().values():
                return False
            left = self._take_gone(segment)
        self._let_go(segment, left)
        return True

    def _take_gone(self, segment: Segment) -> list[int]:
        """With the lock held: the descriptors to close if a doomed segment's last user has left."""
        return self._take(segment) if segment.gone and not segment.users else []

    def _take(self, segment: Segment) -> list[int]:
        left = [fd for fd in (segment.fd, segment.direct_fd) if fd >= 0]
        segment.fd = segment.direct_fd = -1
        self._open -= len(left)
        return left

    def _let_go(self, segment: Segment, fds: Sequence[int]) -> None:
        """Close descriptors that were taken from a segment, once nobody reads from them."""
        if fds:
            with self._lock:
                self._left_open += [(segment, fd) for fd in fds]
            self._close_left()

    def _close_left(self) -> None:
        with self._lock:
            read = set(self._visitors.copy().values())
            ready = [fd for segment, fd in self._left_open if segment not in read]
            self._left_open = [left for left in self._left_open if left[0] in read]
        for fd in ready:
            self.device.close(fd)


def read_exactly(device: Device, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> bool:
    """Blocking: fill `buffers` (at most `IOV_MAX`); False if the file ends before."""
    done = device.preadv(fd, buffers, offset)
    if done == sum(len(buffer) for buffer in buffers):
        return True
    # Cut short by a signal, by the 2 GiB that one call takes, or by the end of the file.
    for buffer in buffers:
        view = memoryview(buffer)
        at = min(done, len(view))
        done -= at
        while at < len(view):
            more = device.preadv(fd, [view[at:]], offset + at)
            if more == 0:
                return False
            at += more
        offset += len(view)
    return True


def write_all(
    device: Device, fd: int, buffers: Iterable[bytes | bytearray | memoryview], offset: int
) -> tuple[int, OSError | None]:
    """Blocking: write `buffers` at `offset`; returns where it ended, and why if that is short of the end."""
    left = [memoryview(buffer).cast("B") for buffer in buffers]
    first = 0
    while first < len(left):
        try:
            done = device.pwritev(fd, left[first : first + IOV_MAX], offset)
        except OSError as error:
            return offset, error
        if done == 0:
            return offset, OSError(errno.EIO, "the system wrote nothing")
        offset += done
        while first < len(left) and done >= len(left[first]):
            done -= len(left[first])
            first += 1
        if done:
            left[first] = left[first][done:]
    return offset, None
