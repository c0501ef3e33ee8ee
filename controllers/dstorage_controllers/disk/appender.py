"""The writer: puts chunks behind what the log has, one gathered write for those that lie in the same segment.

Runs in the controller's one writer thread. Bytes are written first, the slots that name them second, and only then the
log is told, so whatever fails on the way leaves nothing that counts.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from dstorage.controller import Buffer
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable
from dstorage.record import Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.direct import DIRECT_BYTES, DirectWriter, pages
from dstorage_controllers.disk.files import Segment, write_all
from dstorage_controllers.disk.layout import ENTRY_BYTES, PAGE, Place
from dstorage_controllers.disk.log import SegmentLog

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAX_PADDING = 16
"""An extent starts on a page where the padding in front costs at most 1/16 of it: whole pages can be punched out."""

_ZEROS = memoryview(bytes(PAGE))


class Item(NamedTuple):
    """One chunk to append.

    Attributes:
        id: The chunk.
        data: Its bytes, compressed or not.
        size: Its length as the program sees it.
        flags: How `data` is stored.
    """

    id: int
    data: Buffer
    size: int
    flags: int


class _Extent(NamedTuple):
    at: int
    id: int
    place: Place
    padding: int
    data: Buffer
    direct: bool

    @property
    def end(self) -> int:
        """Where the next one may begin: pages that were written directly are not shared with what is written otherwise."""
        return _end(self.place.first, self.place.stored, self.direct)


class Appender:
    """Appends to a log.

    Args:
        log: What it appends to.
        codec: Seals what is appended.
        segment_bytes: Stored bytes after which a segment is full.
    """

    def __init__(self, log: SegmentLog, codec: Codec, *, segment_bytes: int) -> None:
        self._log = log
        self._codec = codec
        self._segment_bytes = segment_bytes
        self._direct = DirectWriter(log.files.device)

    def append(self, items: Sequence[Item]) -> list[Locator | Exception]:
        """Blocking: write chunks; each is answered in its place by its locator or by why it was not written."""
        answers: list[Locator | Exception] = [ControllerUnavailable("not written")] * len(items)
        run: list[_Extent] = []
        segment: Segment | None = None
        end = 0
        for at, item in enumerate(items):
            stored = len(item.data) + self._codec.overhead
            if not self._log.reserve(stored):
                answers[at] = self._over_capacity(item.id, stored)
                continue
            if segment is None or not self._fits(segment, end, len(run), stored):
                if segment is not None:
                    self._write(segment, run, answers)
                    run = []
                try:
                    segment = self._segment_with_room(stored)
                except OSError as error:
                    segment = None
                    self._log.give_back(stored)
                    answers[at] = self._explain(error, "begin a segment", stored)
                    continue
                end = segment.tail
            direct = self._is_direct(stored)
            padding = _padding(end, stored, direct)
            place = Place(item.size, segment.number, end + padding, stored, 0, item.flags)
            data, place = self._codec.seal(item.id, place, item.data)
            run.append(_Extent(at, item.id, place, padding, data, direct))
            end = run[-1].end
        if segment is not None:
            self._write(segment, run, answers)
        return answers

    def _is_direct(self, stored: int) -> bool:
        return stored >= DIRECT_BYTES and self._log.files.direct

    def _fits(self, segment: Segment, end: int, extents: int, stored: int) -> bool:
        direct = self._is_direct(stored)
        end = _end(end + _padding(end, stored, direct), stored, direct)
        return end <= segment.start + self._segment_bytes and segment.next_slot + extents < segment.slots

    def _segment_with_room(self, stored: int) -> Segment:
        try:
            return self._segment_for(stored)
        except OSError as error:
            if error.errno not in NO_ROOM or not self._log.give_up_spares():
                raise
            return self._segment_for(stored)

    def _segment_for(self, stored: int) -> Segment:
        """The active segment if the bytes fit, else a new one; larger chunks than a segment get one of their own."""
        active = self._log.active
        if active is not None and not active.sealed and self._fits(active, active.tail, 0, stored):
            return active
        self._log.seal()
        segment = Segment(self._log.next_number, layout.slots_for(self._segment_bytes))
        self._log.begin(segment)
        return segment

    def _write(self, segment: Segment, run: list[_Extent], answers: list[Locator | Exception]) -> None:
        run, error = self._write_what_fits(segment, run, answers)
        if error is not None and error.errno in NO_ROOM and self._log.give_up_spares():
            run, error = self._write_what_fits(segment, run, answers)
        if error is None:
            return
        for extent in run:
            self._log.give_back(extent.place.stored)
            answers[extent.at] = self._explain(error, f"write chunk {extent.id}", extent.place.stored)
        self._cut(segment, segment.tail)

    def _write_what_fits(
        self, segment: Segment, run: list[_Extent], answers: list[Locator | Exception]
    ) -> tuple[list[_Extent], OSError | None]:
        """Write extents and answer them; returns those that were not written, and why."""
        if not run:
            return run, None
        try:
            with self._log.files.using(segment) as fd:
                written, error = self._put(fd, segment, run)
                whole = [extent for extent in run if extent.place.end <= written]
                if error is not None:
                    # First of all, so that a full disk has room for the slots of what did fit.
                    self._cut(segment, whole[-1].end if whole else segment.tail)
                if whole:
                    locators = [layout.pack(extent.place) for extent in whole]
                    failed = self._name(fd, segment, [(e.id, loc) for e, loc in zip(whole, locators, strict=True)])
                    if failed is None:
                        stored = sum(extent.place.stored for extent in whole)
                        self._log.appended(segment, stored=stored, tail=whole[-1].end, slots=len(whole))
                        for extent, locator in zip(whole, locators, strict=True):
                            answers[extent.at] = locator
                        run = run[len(whole) :]
                    error = failed or error
        except OSError as failed:
            error = failed
        return run, error

    def _put(self, fd: int, segment: Segment, run: list[_Extent]) -> tuple[int, OSError | None]:
        """Write extents side by side; returns up to where all is written, and why if that is short of the end."""
        files = self._log.files
        written, error = segment.tail, None
        for direct, extents in groupby(run, lambda extent: extent.direct):
            span = list(extents)
            first = span[0].place.first
            if direct:
                with files.using(segment, direct=True) as direct_fd:
                    written, error = self._direct.write(direct_fd, [extent.data for extent in span], first)
            else:
                written, error = write_all(files.device, fd, _gathered(span), first - span[0].padding)
            if error is not None:
                break
        return written, error

    def _cut(self, segment: Segment, tail: int) -> None:
        # What stays behind the tail, should this fail, is written over by the next append.
        with suppress(OSError):
            self._log.files.device.truncate(self._log.files.path(segment.number), tail)

    def _name(self, fd: int, segment: Segment, pairs: list[tuple[int, Locator]]) -> OSError | None:
        slots = [layout.pack_entry(id, locator) for id, locator in pairs]
        first = segment.next_slot
        if first == 1:
            slots.insert(0, layout.pack_file(self._log.store, segment.number, segment.slots))
            first = 0
        _, error = write_all(self._log.files.device, fd, [b"".join(slots)], first * ENTRY_BYTES)
        return error

    def _over_capacity(self, id: int, stored: int) -> ControllerFull:
        capacity = self._log.capacity or 0
        return ControllerFull(
            f"controller {self._log.name!r} has {capacity - self._log.used} of {capacity} bytes left, chunk {id} needs "
            f"{stored}; raise its capacity or delete chunks"
        )

    def _explain(self, error: OSError, what: str, stored: int) -> ControllerError:
        kind: type[ControllerError] = ControllerUnavailable
        way_out = "it is tried again"
        if error.errno in NO_ROOM:
            self._log.no_room(stored)
            kind, way_out = ControllerFull, "free space there or let the next controller take it"
        explained = kind(
            f"controller {self._log.name!r} cannot {what} in {self._log.files.directory}: {error}; {way_out}"
        )
        explained.__cause__ = error
        return explained


def _padding(end: int, stored: int, direct: bool) -> int:
    padding = -end % PAGE
    return padding if direct or padding * MAX_PADDING <= stored else 0


def _end(first: int, stored: int, direct: bool) -> int:
    return first + (pages(stored) if direct else stored)


def _gathered(run: list[_Extent]) -> list[Buffer]:
    buffers: list[Buffer] = []
    for extent in run:
        if extent.padding:
            buffers.append(_ZEROS[: extent.padding])
        buffers.append(extent.data)
    return buffers
