"""The segment files of one disk controller: appended to by one thread, read by many, deleted when dead.

What runs where: `append`, `sync` and everything named "blocking" run in threads; the rest on the loop. Only the
writer thread moves a segment's tail, and moves it after the bytes are written, so that all below a tail is whole.
Descriptors are opened by whoever needs one and closed on the loop only, so that a read on the loop never meets one that
is closed (and given to another file) under it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from dstorage.controller import Buffer
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable, CorruptData, Lost
from dstorage.record import Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.device import IOV_MAX, Device
from dstorage_controllers.disk.layout import ENTRY_BYTES, PAGE, Committed, Place

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAX_PADDING = 16
"""An extent starts on a page where the padding in front costs at most 1/16 of it: whole pages can be punched out."""
NEARLY_EMPTY = 32
"""Holes punched or not, a segment less than 1/32 full is not worth its file."""
SLACK_BYTES = 64 * 2**10
"""Free beyond what a chunk needs before a full disk counts as no longer full: file systems need some for themselves."""
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
        missing: The file was not there at `load`.
        gone: Dead: no longer in the log, its file about to be deleted.
        fd: Descriptor, or -1.
        users: Threads that use `fd` now.
        touched: When it was last used, by the log's count of uses.
        durable: (tail, next_slot) up to which the last good sync reached.
        doubtful: A sync failed: what it left behind has to be written again before another one can be believed.
    """

    __slots__ = (
        "committed",
        "doubtful",
        "durable",
        "fd",
        "gone",
        "live",
        "missing",
        "next_slot",
        "number",
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
        self.fd = -1
        self.users = 0
        self.touched = 0
        self.durable = (self.tail, self.next_slot)
        self.doubtful = False

    @property
    def start(self) -> int:
        """Offset of the first extent."""
        return self.slots * ENTRY_BYTES


class Item(NamedTuple):
    """One chunk to append: its bytes (compressed or not), its size and how they are stored."""

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


class SegmentLog:
    """All segments of one controller.

    Args:
        device: The file system.
        directory: Where the files are.
        codec: Seals what is appended.
        store: Uuid of the store, written into each file.
        segment_bytes: Stored bytes after which a segment is full.
        capacity: Stored bytes to keep at most, or None.
        name: Of the controller, for messages.
    """

    def __init__(
        self,
        device: Device,
        directory: Path,
        codec: Codec,
        *,
        store: UUID,
        segment_bytes: int,
        capacity: int | None,
        name: str,
    ) -> None:
        self._device = device
        self._directory = directory
        self._codec = codec
        self._store = store
        self._segment_bytes = segment_bytes
        self._capacity = capacity
        self._name = name
        self._lock = threading.Lock()
        """Guards what loop and threads both change: `used`, `live`, `users`, `_dirty`. Never held over I/O."""
        self.segments: dict[int, Segment] = {}
        self.used = 0
        self.disk_full = False
        """The file system had no room when it was last asked."""
        self._needed = 0
        """Stored bytes for which there was no room then."""
        self._refused = 0
        """Stored bytes of the smallest chunk that did not fit into the capacity, 0 if all did."""
        self._active: Segment | None = None
        self._next = 1
        self._dirty: set[Segment] = set()
        self._retired: list[Segment] = []
        """Sealed when nothing in them was alive: no discard will come that looks at them."""
        self._new_names = False
        self._uses = 0
        self._open = 0

    @property
    def full(self) -> bool:
        """Whether what was refused last would be refused again."""
        if self._refused and self._capacity is not None and self.used + self._refused <= self._capacity:
            self._refused = 0
        return self.disk_full or self._refused > 0

    def space_returned(self, available: int | None) -> None:
        """The file system says how much is free now (None: it cannot tell, so let the next write find out)."""
        if available is None or available >= self._needed + SLACK_BYTES:
            self.disk_full = False

    # -- opening and closing ------------------------------------------------------------------------------------------

    def load(self, state: Mapping[int, bytes], *, read_only: bool) -> list[int]:
        """Blocking: take over the files as the last commit left them; returns the segments that are missing.

        Unknown files are deleted and longer ones cut, unless `read_only`. Costs one stat per segment.

        Raises:
            ControllerError: The state makes no sense.
            ControllerUnavailable: There is state and not one of its files: another disk must be mounted.
            OSError: From the device.
        """
        known = {number: layout.unpack_state(number, raw) for number, raw in state.items()}
        found = {number for name in self._device.list_directory(self._directory) if (number := layout.segment_of(name))}
        if known and not found & known.keys():
            raise ControllerUnavailable(
                f"controller {self._name!r}: none of its {len(known)} segments is in {self._directory}; "
                "is the right disk mounted there?"
            )
        if not read_only:
            for number in found - known.keys():
                self._device.unlink(self._path(number))
        for number, committed in known.items():
            segment = self.segments[number] = Segment(number, committed.slots, committed)
            segment.missing = number not in found
            segment.sealed = segment.missing
            self.used += committed.live
            if not segment.missing and not read_only and self._device.size(self._path(number)) > committed.tail:
                self._device.truncate(self._path(number), committed.tail)
        self._next = max([0, *known, *found]) + 1
        last = self.segments.get(max(known, default=0))
        for segment in self.segments.values():
            segment.sealed = segment.sealed or segment is not last
        if last is not None and not last.sealed:
            self._active = last
        return sorted(number for number, segment in self.segments.items() if segment.missing)

    def close(self) -> None:
        """Blocking: close all descriptors. No thread may be at work any more."""
        for segment in self.segments.values():
            if segment.fd >= 0:
                self._device.close(segment.fd)
                segment.fd = -1

    # -- descriptors --------------------------------------------------------------------------------------------------

    def segment(self, number: int, *, read_only: bool) -> Segment:
        """The segment of this number.

        Raises:
            Lost: There is none.
        """
        segment = self.segments.get(number)
        if segment is None:
            if not read_only:
                raise Lost(f"segment {number} of controller {self._name!r} does not exist", controller=self._name)
            # Another process writes: it may have begun this segment after we opened.
            segment = self.segments[number] = Segment(number, 0)
            segment.sealed = True
        if segment.missing:
            raise Lost(f"file {self._path(number)} is missing", controller=self._name)
        return segment

    def acquire(self, segment: Segment, *, write: bool) -> int:
        """Blocking: a descriptor that stays open until `release`."""
        with self._lock:
            if segment.gone:
                raise FileNotFoundError(errno.ENOENT, "the segment was deleted", str(self._path(segment.number)))
            segment.users += 1
            self._uses += 1
            segment.touched = self._uses
            if segment.fd >= 0:
                return segment.fd
        try:
            fd = self._device.open(self._path(segment.number), write=write)
        except BaseException:
            self.release(segment)
            raise
        with self._lock:
            if segment.fd < 0:
                segment.fd = fd
                self._open += 1
                return fd
        self._device.close(fd)
        return segment.fd

    def release(self, segment: Segment) -> None:
        """Give up what `acquire` gave."""
        with self._lock:
            segment.users -= 1
            fd = self._take_gone(segment)
        if fd >= 0:
            self._device.close(fd)

    def close_surplus(self) -> None:
        """On the loop: close the descriptors used longest ago when too many are open."""
        if self._open <= OPEN_FILES:
            return
        idle = sorted((s for s in self.segments.values() if s.fd >= 0), key=lambda s: s.touched)
        for segment in idle:
            with self._lock:
                if segment.users or self._open <= OPEN_FILES:
                    continue
                fd, segment.fd = segment.fd, -1
                self._open -= 1
            self._device.close(fd)

    # -- appending (the writer thread) --------------------------------------------------------------------------------

    def append(self, items: Sequence[Item]) -> list[Locator | Exception]:
        """Blocking, in the writer thread only: write chunks behind what is there, one gathered write per segment."""
        answers: list[Locator | Exception] = [ControllerUnavailable("not written")] * len(items)
        run: list[_Extent] = []
        segment: Segment | None = None
        offset = 0
        for index, item in enumerate(items):
            stored = len(memoryview(item.data)) + self._codec.overhead
            refusal = self._reserve(item.id, stored)
            if refusal is not None:
                answers[index] = refusal
                continue
            if segment is None or not self._fits(segment, offset, len(run), stored):
                if segment is not None:
                    self._write(segment, run, answers)
                    run = []
                try:
                    segment = self._room(stored)
                except OSError as error:
                    self._free(None, stored)
                    answers[index] = self._explain(error, "begin a segment", stored)
                    segment = None
                    continue
                offset = segment.tail
            padding = _padding(offset, stored)
            place = Place(item.size, segment.number, offset + padding, stored, 0, item.flags)
            data, place = self._codec.seal(item.id, place, item.data)
            run.append(_Extent(index, item.id, place, padding, data))
            offset = place.end
        if segment is not None:
            self._write(segment, run, answers)
        return answers

    def _reserve(self, id: int, stored: int) -> ControllerFull | None:
        with self._lock:
            if self._capacity is not None and self.used + stored > self._capacity:
                self._refused = min(stored, self._refused or stored)
                return ControllerFull(
                    f"controller {self._name!r} has {self._capacity - self.used} of {self._capacity} bytes left, "
                    f"chunk {id} needs {stored}; raise its capacity or delete chunks"
                )
            self.used += stored
        return None

    def _free(self, segment: Segment | None, stored: int) -> None:
        with self._lock:
            self.used -= stored
            if segment is not None:
                segment.live -= stored

    def _fits(self, segment: Segment, offset: int, extents: int, stored: int) -> bool:
        end = offset + _padding(offset, stored) + stored
        return end <= segment.start + self._segment_bytes and segment.next_slot + extents < segment.slots

    def _room(self, stored: int) -> Segment:
        active = self._active
        if active is not None and not active.sealed and self._fits(active, active.tail, 0, stored):
            return active
        if active is not None:
            with self._lock:
                active.sealed = True
                if active.live == 0:
                    self._retired.append(active)
            self._active = None
        segment = Segment(self._next, layout.slots_for(self._segment_bytes))
        segment.fd = self._device.open(self._path(segment.number), create=True)
        self._next += 1
        with self._lock:
            self._open += 1
            self._new_names = True
            self.segments[segment.number] = segment
        self._active = segment
        return segment

    def _write(self, segment: Segment, run: list[_Extent], answers: list[Locator | Exception]) -> None:
        """Write one run: bytes first, then the slots that name them; what did not fit leaves no trace."""
        if not run:
            return
        error: OSError | None = None
        try:
            fd = self.acquire(segment, write=True)
        except OSError as failed:
            error, written = failed, segment.tail
        else:
            buffers: list[bytes | bytearray | memoryview] = []
            for extent in run:
                if extent.padding:
                    buffers.append(_ZEROS[: extent.padding])
                buffers.append(extent.data)
            written, error = self._write_all(fd, buffers, segment.tail)
            whole = [extent for extent in run if extent.place.end <= written]
            if whole:
                locators = [layout.pack(extent.place) for extent in whole]
                slots = [layout.pack_entry(e.id, locator) for e, locator in zip(whole, locators, strict=True)]
                first = segment.next_slot
                if first == 1:
                    slots.insert(0, layout.pack_file(self._store, segment.number, segment.slots))
                    first = 0
                table = b"".join(slots)
                _, failed_table = self._write_all(fd, [table], first * ENTRY_BYTES)
                if failed_table is None:
                    with self._lock:
                        segment.live += sum(extent.place.stored for extent in whole)
                        segment.next_slot += len(whole)
                        segment.tail = whole[-1].place.end
                        self._dirty.add(segment)
                    for extent, locator in zip(whole, locators, strict=True):
                        answers[extent.at] = locator
                    run = run[len(whole) :]
                else:
                    error = failed_table
            self.release(segment)
        if error is not None:
            for extent in run:
                self._free(None, extent.place.stored)
                answers[extent.at] = self._explain(error, f"write chunk {extent.id}", extent.place.stored)
            try:
                self._device.truncate(self._path(segment.number), segment.tail)
            except OSError:
                # Left over bytes behind the tail are written over by the next append.
                return

    def _write_all(
        self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int
    ) -> tuple[int, OSError | None]:
        """Write at `offset`; returns where it ended, and why if that is short of the end."""
        left = [memoryview(buffer).cast("B") for buffer in buffers]
        first = 0
        while first < len(left):
            try:
                done = self._device.pwritev(fd, left[first : first + IOV_MAX], offset)
            except InterruptedError:
                continue
            except OSError as error:
                return offset, error
            if done == 0:
                return offset, OSError(errno.EIO, "wrote nothing")
            offset += done
            while done and done >= len(left[first]):
                done -= len(left[first])
                first += 1
            if done:
                left[first] = left[first][done:]
        return offset, None

    # -- durability ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Blocking: return when all that `append` answered is durable.

        Raises:
            OSError: From the device; the next sync tries again.
        """
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            new_names, self._new_names = self._new_names, False
        try:
            while dirty:
                segment = next(iter(dirty))
                if not segment.gone:
                    self._sync_one(segment)
                dirty.remove(segment)
            if new_names:
                self._device.sync_directory(self._directory)
                new_names = False
        finally:
            with self._lock:
                self._dirty |= dirty
                self._new_names = self._new_names or new_names

    def _sync_one(self, segment: Segment) -> None:
        reached = segment.tail, segment.next_slot
        try:
            fd = self.acquire(segment, write=True)
        except FileNotFoundError:
            if segment.gone:
                return
            raise
        try:
            self._device.sync(fd)
            segment.durable = reached
        except OSError:
            # The kernel may now call pages clean that never reached the disk, and report success next time.
            segment.doubtful = segment.sealed = True
            raise
        finally:
            self.release(segment)

    @property
    def doubtful(self) -> bool:
        """Whether `mend` is needed before the next `sync` can be believed."""
        with self._lock:
            return any(segment.doubtful for segment in self._dirty)

    def mend(self) -> list[int]:
        """Blocking, in the writer thread: write again, in place, what a failed sync may have left only in the cache.

        Returns:
            Ids of the extents that are damaged already; reading them gives `CorruptData`.

        Raises:
            OSError: From the device.
        """
        damaged = []
        with self._lock:
            doubtful = [segment for segment in self._dirty if segment.doubtful]
        for segment in doubtful:
            fd = self.acquire(segment, write=True)
            try:
                table = self._table(fd, segment, segment.durable[1])
                for id, locator in layout.unpack_entries(table, segment.number):
                    place = layout.unpack(id, locator)
                    stored = bytearray(place.stored)
                    if read_exactly(self._device, fd, [stored], place.first) and self._codec.matches(id, place, stored):
                        self._again(fd, stored, place.first)
                    else:
                        damaged.append(id)
                self._again(fd, table, segment.durable[1] * ENTRY_BYTES)
                header = layout.pack_file(self._store, segment.number, segment.slots)
                self._again(fd, header, 0)
            finally:
                self.release(segment)
            segment.doubtful = False
        return damaged

    def _again(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        _, error = self._write_all(fd, [data], offset)
        if error is not None:
            raise error

    def _table(self, fd: int, segment: Segment, first: int) -> bytearray:
        table = bytearray((segment.next_slot - first) * ENTRY_BYTES)
        if not read_exactly(self._device, fd, [table], first * ENTRY_BYTES):
            raise OSError(errno.EIO, f"the table of segment {segment.number} is cut short")
        return table

    # -- freeing ------------------------------------------------------------------------------------------------------

    def discard(self, places: Iterable[Place]) -> tuple[dict[Segment, list[tuple[int, int]]], list[Segment]]:
        """On the loop: take extents out of the account.

        Returns:
            Page-aligned ranges (start, end) to punch, by segment, and the segments to delete, already forgotten here.
        """
        ranges: dict[Segment, list[tuple[int, int]]] = {}
        with self._lock:
            for place in places:
                segment = self.segments.get(place.segment)
                if segment is None:
                    continue
                segment.live -= place.stored
                self.used -= place.stored
                ranges.setdefault(segment, []).append((place.first, place.end))
        dead = self._take_dead(ranges)
        holes = {
            segment: holes for segment, dying in ranges.items() if segment not in dead and (holes := _pages(dying))
        }
        return holes, dead

    def _take_dead(self, segments: Iterable[Segment]) -> list[Segment]:
        with self._lock:
            candidates = {*segments, *self._retired}
            self._retired.clear()
            dead = [s for s in candidates if s.sealed and s.live == 0 and s.committed is None and not s.gone]
            for segment in dead:
                segment.gone = True
                self.segments.pop(segment.number, None)
                self._dirty.discard(segment)
        return dead

    def delete(self, segment: Segment) -> None:
        """Blocking: delete the file of a dead segment that `discard` gave."""
        with self._lock:
            fd = self._take_gone(segment)
        if fd >= 0:
            self._device.close(fd)
        self._device.unlink(self._path(segment.number))

    def punch(self, segment: Segment, ranges: Sequence[tuple[int, int]]) -> None:
        """Blocking: give page-aligned ranges back to the file system."""
        fd = self.acquire(segment, write=True)
        try:
            for start, end in ranges:
                if not self._device.punch(fd, start, end - start):
                    return
        finally:
            self.release(segment)

    # -- compaction ---------------------------------------------------------------------------------------------------

    def sparse(self, max_live_share: float) -> list[int]:
        """Blocking: sealed segments worth rewriting, the sparsest first; one stat for each segment."""
        found: list[tuple[float, int]] = []
        with self._lock:
            sealed = [s for s in self.segments.values() if s.sealed and not s.missing]
        for segment in sealed:
            written = segment.tail - segment.start
            try:
                taken = min(self._device.allocated(self._path(segment.number)), written)
            except FileNotFoundError:
                continue
            if segment.live <= max_live_share * taken or segment.live * NEARLY_EMPTY <= min(
                written, self._segment_bytes
            ):
                found.append((segment.live / max(taken, 1), segment.number))
        return [number for _, number in sorted(found)]

    def extents(self, number: int) -> list[tuple[int, Locator]]:
        """Blocking: what the table of a segment names: every chunk ever appended, dead ones included.

        Raises:
            Lost: There is no such segment.
            CorruptData: The file is not that segment of this store.
            OSError: From the device.
        """
        segment = self.segment(number, read_only=False)
        fd = self.acquire(segment, write=False)
        try:
            table = self._table(fd, segment, 0)
        finally:
            self.release(segment)
        if table[:ENTRY_BYTES] != layout.pack_file(self._store, number, segment.slots):
            raise CorruptData(f"{self._path(number)} does not begin like segment {number} of this store")
        return layout.unpack_entries(table[ENTRY_BYTES:], number)

    # -- commits (on the loop) ----------------------------------------------------------------------------------------

    def plan_commit(self, alive: Iterable[Place], dead: Iterable[Place]) -> dict[int, Committed | None]:
        """What a commit would leave of each segment it touches (None: nothing). Changes nothing.

        Raises:
            ControllerError: More would die than is alive.
        """
        deltas: dict[int, int] = {}
        for place in alive:
            deltas[place.segment] = deltas.get(place.segment, 0) + place.stored
        for place in dead:
            deltas[place.segment] = deltas.get(place.segment, 0) - place.stored
        deltas.pop(0, None)
        plan: dict[int, Committed | None] = {}
        for number, delta in deltas.items():
            segment = self.segments.get(number)
            before = 0 if segment is None or segment.committed is None else segment.committed.live
            if segment is None or before + delta < 0:
                raise ControllerError(
                    f"controller {self._name!r}: a commit frees {-delta} bytes of segment {number}, which has {before}; "
                    "run `dstorage check`"
                )
            left = Committed(before + delta, segment.tail, segment.next_slot, segment.slots)
            plan[number] = left if left.live else None
        return plan

    def apply_commit(self, plan: Mapping[int, Committed | None]) -> None:
        """The commit that `plan_commit` was asked about has happened."""
        for number, committed in plan.items():
            segment = self.segments.get(number)
            if segment is not None:
                segment.committed = committed

    # -- private ------------------------------------------------------------------------------------------------------

    def _take_gone(self, segment: Segment) -> int:
        """With the lock held: the descriptor to close if a dead segment's last user has left, else -1."""
        if not segment.gone or segment.users or segment.fd < 0:
            return -1
        fd, segment.fd = segment.fd, -1
        self._open -= 1
        return fd

    def _path(self, number: int) -> Path:
        return self._directory / layout.file_name(number)

    def _explain(self, error: OSError, what: str, stored: int) -> ControllerError:
        full = error.errno in NO_ROOM
        if full:
            self._needed = stored
            self.disk_full = True
        kind = ControllerFull if full else ControllerUnavailable
        way_out = "free space there or let the next controller take it" if full else "it is tried again"
        explained = kind(f"controller {self._name!r} cannot {what} in {self._directory}: {error}; {way_out}")
        explained.__cause__ = error
        return explained


_ZEROS = memoryview(bytes(PAGE))


def read_exactly(device: Device, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> bool:
    """Blocking: fill `buffers` (at most `IOV_MAX`); False if the file ends before."""
    wanted = sum(len(buffer) for buffer in buffers)
    done = device.preadv(fd, buffers, offset)
    if done == wanted:
        return True
    # Cut short by a signal or the end of the file: go on by the piece, which is rare.
    for buffer in buffers:
        view = memoryview(buffer)
        if done >= len(view):
            done -= len(view)
        else:
            at = done
            done = 0
            while at < len(view):
                more = device.preadv(fd, [view[at:]], offset + at)
                if more == 0:
                    return False
                at += more
        offset += len(view)
    return True


def _padding(offset: int, stored: int) -> int:
    padding = -offset % PAGE
    return padding if padding * MAX_PADDING <= stored else 0


def _pages(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The whole pages inside byte ranges, neighbours joined first."""
    ranges.sort()
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    pages = ((-(-start // PAGE) * PAGE, end // PAGE * PAGE) for start, end in joined)
    return [(start, end) for start, end in pages if start < end]
