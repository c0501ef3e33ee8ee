"""Reading from the log: on the loop what the page cache has, in threads the rest.

A job of several reads first tells the kernel about all of them (`POSIX_FADV_WILLNEED` starts the device on each and
waits for none), then reads one after the other: on one thread that had 77000 cold 4 KiB reads a second out of a device
that gave 27000 to four threads of one read each. Neighbours on disk are read by one call, without that hint, because
it would stop the kernel's own, faster reading ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from dstorage.buffers import fresh_buffer, fresh_buffer_at, fresh_bytes_at, fresh_contents
from dstorage.controller import Buffer
from dstorage.errors import ChunkError, ControllerUnavailable, CorruptData, Lost
from dstorage.record import Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.direct import DIRECT_BYTES, DirectReader, pages
from dstorage_controllers.disk.files import Segment, read_exactly
from dstorage_controllers.disk.layout import PAGE, Place
from dstorage_controllers.disk.log import SegmentLog

INLINE_BYTES = 4 * 2**20
"""Read on the loop at most: what a page-cached read of one large chunk may cost."""
BEHIND_BYTES = 8 * 2**20
"""A read so little behind the last one may be the same one, asked for again: it says nothing of the order."""
HELD_BYTES = 256 * 2**10
"""Copied out of the page cache in one go, while other threads wait, at most. Who gives the interpreter's lock away for a copy of some
microseconds may get it back milliseconds later, if another thread computes."""
INLINE_DECODE_BYTES = 64 * 2**10
"""Decompressed or decrypted on the loop at most."""

RUN_BYTES = 8 * 2**20
RUN_CHUNKS = 64
"""Neighbours read by one call at most."""

JOB_BYTES = 2 * 2**20
"""Stored bytes that are worth a thread of their own: copying them takes some times longer than starting it."""

Answers = list[Buffer | Exception | None]


class Read(NamedTuple):
    """One chunk to read.

    Attributes:
        at: The place of its answer.
        id: The chunk.
        place: Where it is.
        contents: What it is read into.
        view: What fills them.
        begun: So many bytes of it are there already; only the first of a run has any.
        direct: It is read past the page cache, by whole pages.
    """

    at: int
    id: int
    place: Place
    contents: bytes | bytearray
    view: bytearray | memoryview
    begun: int = 0
    direct: bool = False

    @property
    def end(self) -> int:
        """Where its neighbour begins."""
        return self.place.first + (pages(self.place.stored) if self.direct else self.place.stored)


class _Begun(NamedTuple):
    id: int
    locator: Locator
    contents: bytes | bytearray
    view: bytearray | memoryview
    done: int


Run = tuple[Segment, list[Read]]
"""Neighbours in one segment, in the order of the disk."""


class Reader:
    """Reads chunks of a log.

    Args:
        log: The log.
        codec: Checks and decodes what is read.
    """

    def __init__(self, log: SegmentLog, codec: Codec) -> None:
        self._log = log
        self._codec = codec
        self._takes_plain = codec.takes_plain
        self._device = log.files.device
        self._thread = threading.local()
        self._begun: _Begun | None = None
        """The last read of more than `HELD_BYTES` that the page cache could answer in part. One is enough: it is a reading in sequence that meets
        the kernel's own reading ahead, and beginning anew cost it a fifth of its speed."""

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """On the loop: what is in the page cache; None if it is not, or is too large or too costly to decode.

        Raises:
            CorruptData: The locator makes no sense, or bytes that pass their checksum cannot be decoded.
        """
        place = layout.unpack(id, locator)
        size, number, first, stored, _, flags = place
        if size == 0:
            return self._nothing(id, place)
        segment = self._log.segments.get(number)
        if segment is None or segment.fd < 0 or self._is_direct(place):
            return None
        if self._begun is not None and self._begun.id == id:
            # Asked again in the midst of the kernel's reading ahead: nothing is saved by beginning anew.
            return None
        if not 0 < segment.read_end - first <= BEHIND_BYTES:
            in_sequence = segment.read_end == first
            segment.read_end = first + stored
            if segment.advised is not in_sequence:
                segment.advised = in_sequence
                self._device.expect(segment.fd, in_sequence=in_sequence)
        if stored > INLINE_BYTES or (flags and size > INLINE_DECODE_BYTES):
            return None
        device, held = self._device, self._held(stored)
        contents: bytes | bytearray
        try:
            if held is not None:
                contents, address = held
                if device.read_held(segment.fd, address, stored, first) != stored:
                    return None
            else:
                contents, view = fresh_contents(stored)
                done = device.preadv(segment.fd, (view,), first, nowait=True)
                if done != stored:
                    # The kernel is still reading ahead: `plan` goes on from here.
                    self._begun = _Begun(id, locator, contents, view, done)
                    return None
        except OSError:
            # Not cached, or an error that the thread will meet too and explain.
            return None
        if not self._codec.matches(id, place, contents):
            return None
        return contents if self._takes_plain and not flags else self._codec.decode(id, place, contents)

    def read_in_thread(self, id: int, locator: Locator, *, writable: bool) -> bytes | bytearray | None:
        """In any thread: what is in the page cache; None if anything about it is doubtful."""
        kind = bytearray if writable else bytes
        try:
            place = layout.unpack(id, locator)
            segment = self._log.segments.get(place.segment)
            if segment is None or place.stored == 0 or self._is_direct(place):
                return None
            data = self._read_cached(segment, place, writable=writable)
            if data is None:
                return None
            if not self._codec.matches(id, place, data):
                return None
            # `read_nowait` goes on from here when it looks for an order in what is asked for.
            segment.read_end = place.end
            chunk = self._codec.decode(id, place, data)
            return chunk if isinstance(chunk, kind) else kind(chunk)
        except CorruptData:
            return None

    def _read_cached(self, segment: Segment, place: Place, *, writable: bool) -> bytes | bytearray | None:
        device, files, first, stored = self._device, self._log.files, place.first, place.stored
        held = self._held(stored, writable=writable)
        data: bytes | bytearray
        if held is not None:
            data, address = held
            done = files.read_cached(segment, device.read_held, address, stored, first)
        else:
            buffer: bytearray | memoryview
            if writable:
                data = buffer = fresh_buffer(stored)
            else:
                data, buffer = fresh_contents(stored)
            done = files.read_cached(segment, partial(device.preadv, nowait=True), (buffer,), first)
        return data if done == stored else None

    def _held(self, stored: int, *, writable: bool = False) -> tuple[bytes | bytearray, int] | None:
        if stored > HELD_BYTES or not self._device.can_read_held:
            return None
        return fresh_buffer_at(stored) if writable else fresh_bytes_at(stored)

    def plan(self, requests: Sequence[tuple[int, Locator]], answers: Answers, threads: int) -> list[list[Run]]:
        """On the loop: jobs for `read_job`; requests that need no reading are answered at once."""
        wanted: list[tuple[Segment, Read]] = []
        total = 0
        for at, (id, locator) in enumerate(requests):
            try:
                place = layout.unpack(id, locator)
                if place.size == 0:
                    answers[at] = self._nothing(id, place)
                else:
                    # Allocated here, on the loop, where it is freed as well: C allocators keep an arena per thread,
                    # and memory that travels between them is held twice.
                    begun = self._begun
                    if self._is_direct(place):
                        read = Read(at, id, place, *fresh_contents(place.stored), direct=True)
                    elif begun is not None and begun.id == id and begun.locator == locator:
                        read = Read(at, id, place, begun.contents, begun.view, begun.done)
                        self._begun = None
                    else:
                        read = Read(at, id, place, *fresh_contents(place.stored))
                    wanted.append((self._log.segment(place.segment), read))
                    # What has to be decoded is more work by the byte.
                    total += place.size * 8 if place.flags else place.stored
            except ChunkError as error:
                answers[at] = self._about(error, id)
        runs = _runs(wanted)
        jobs = max(1, min(threads, len(runs), total // JOB_BYTES))
        return [job for first in range(jobs) if (job := runs[first::jobs])]

    def _is_direct(self, place: Place) -> bool:
        return place.stored >= DIRECT_BYTES and self._log.files.direct and place.first % PAGE == 0

    def read_job(self, runs: Sequence[Run], answers: Answers) -> None:
        """Blocking: read runs, and put each answer in its place."""
        with ExitStack() as stack:
            # One descriptor for each segment, not for each run: in a batch of small reads the taking would cost as much.
            fds: dict[Segment, int] = {}
            for segment, run in runs:
                try:
                    if segment not in fds:
                        fds[segment] = stack.enter_context(self._log.files.using(segment))
                    if len(runs) > 1 and not run[0].direct:
                        first = run[0].place.first
                        self._device.will_need(fds[segment], first, run[-1].place.end - first)
                except OSError as error:
                    self._refuse(run, error, answers)
            for segment, run in runs:
                if answers[run[0].at] is None:
                    try:
                        if run[0].direct:
                            self._read_direct(fds[segment], segment, run, answers)
                        else:
                            self._read_run(fds[segment], run, answers)
                    except Exception as error:
                        self._refuse(run, error, answers)

    def _refuse(self, run: Sequence[Read], error: Exception, answers: Answers) -> None:
        for read in run:
            answers[read.at] = self._explain(error, read)

    def _read_direct(self, fd: int, segment: Segment, run: Sequence[Read], answers: Answers) -> None:
        """What does not come whole is read again, by the page cache."""
        reader: DirectReader | None = getattr(self._thread, "reader", None)
        if reader is None:
            reader = self._thread.reader = DirectReader(self._device)
        targets = [(read.place.first, read.view) for read in run]
        try:
            with self._log.files.using(segment, direct=True) as direct_fd:
                whole = reader.read(direct_fd, targets, run[0].place.first, run[-1].place.end)
        except OSError:
            # Wherever the reason lies, the other way will find it too, or do.
            whole = False
        self._check_run(fd, run, answers, whole=whole)

    def _read_run(self, fd: int, run: Sequence[Read], answers: Answers) -> None:
        begun = run[0].begun
        buffers = [read.view for read in run]
        if begun:
            buffers[0] = memoryview(run[0].view)[begun:]
        whole = read_exactly(self._device, fd, buffers, run[0].place.first + begun)
        self._check_run(fd, run, answers, whole=whole)

    def _check_run(self, fd: int, run: Sequence[Read], answers: Answers, *, whole: bool) -> None:
        for read in run:
            try:
                if not (whole and self._codec.matches(read.id, read.place, read.contents)):
                    self._reread(fd, read)
                answers[read.at] = self._codec.decode(read.id, read.place, read.contents)
            except (ChunkError, OSError) as error:
                answers[read.at] = self._explain(error, read)

    def _reread(self, fd: int, read: Read) -> None:
        """Once more from the medium: it may be the copy in the page cache that is damaged."""
        id, place = read.id, read.place
        self._device.drop_cache(fd, place.first, place.stored)
        if not read_exactly(self._device, fd, [read.view], place.first):
            raise Lost(f"segment {place.segment} ends before it", id=id)
        if not self._codec.matches(id, place, read.contents):
            raise CorruptData(
                f"chunk {id} fails its checksum ({place.stored} bytes at {place.first} in "
                f"{self._log.files.path(place.segment)})",
                id=id,
            )

    def _nothing(self, id: int, place: Place) -> Buffer:
        if place != self._codec.nothing(id):
            raise CorruptData(f"the locator of chunk {id} is not one of an empty chunk", id=id)
        return bytearray()

    def _about(self, error: ChunkError, id: int) -> ChunkError:
        if isinstance(error, Lost) and not error.id:
            # Its message names the chunk.
            return Lost(error.reason, id=id, controller=self._log.name)
        error.controller = error.controller or self._log.name
        return error

    def _explain(self, error: Exception, read: Read) -> Exception:
        if isinstance(error, ChunkError):
            return self._about(error, read.id)
        if isinstance(error, FileNotFoundError):
            return Lost(f"file {error.filename} is missing", id=read.id, controller=self._log.name)
        explained = ControllerUnavailable(
            f"controller {self._log.name!r} cannot read chunk {read.id}: {error}; ask again"
        )
        explained.__cause__ = error
        return explained


def _runs(wanted: list[tuple[Segment, Read]]) -> list[Run]:
    wanted.sort(key=lambda pair: (pair[1].place.segment, pair[1].place.first))
    runs: list[Run] = []
    length = 0
    for segment, read in wanted:
        if runs:
            previous, run = runs[-1]
            length += read.place.stored
            near = previous is segment and run[-1].end == read.place.first and not read.begun
            near = near and run[-1].direct is read.direct
            if near and len(run) < RUN_CHUNKS and length <= RUN_BYTES:
                run.append(read)
                continue
        runs.append((segment, [read]))
        length = read.place.stored
    return runs
