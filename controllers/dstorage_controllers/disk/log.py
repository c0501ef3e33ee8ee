"""The log of one controller: which segments there are, what is alive in them, and what a commit refers to.

Everything here is accounting and the file calls that go with it; `appender` adds to the log, `reader` reads from it.
What blocks says so and runs in threads; the rest runs on the loop. Only the writer thread moves a segment's tail, and
moves it after the bytes are written, so all that lies below a tail is whole.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from dstorage.errors import ControllerError, ControllerUnavailable, CorruptData, Lost
from dstorage.record import Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.files import Segment, SegmentFiles, read_exactly, write_all
from dstorage_controllers.disk.holes import Holes, whole_pages
from dstorage_controllers.disk.layout import ENTRY_BYTES, Committed, Place

Dead = Mapping[Segment, Sequence[int]]
"""Dead ranges by segment, as `Holes` gives them."""

NEARLY_EMPTY = 32
"""Holes punched or not, a segment less than 1/32 full is not worth its file."""
SPARES = 2
"""Files kept for new segments at most."""
WAITING_BYTES = 16 * 2**20
MOST_WAITING_BYTES = 512 * 2**20
WAITING_OF_CAPACITY = 8
"""Dead bytes that may wait to be given back: as many as are alive, or the first of these if that is more; but never more than the second, or
this share of a capacity."""
MOST_HOLES = 8192
"""Punched in one go, in all segments together: a bounded time, which a close or an append on a full disk may have to wait."""
SLACK_BYTES = 64 * 2**10
"""Free beyond what a chunk needs before a full disk counts as no longer full: file systems need some for themselves."""


class SegmentLog:
    """All segments of one controller.

    Args:
        files: Their files.
        store: Uuid of the store, written into each file.
        segment_bytes: Stored bytes after which a segment is full.
        capacity: Stored bytes to keep at most, or None.
        name: Of the controller, for messages.
        read_only: Another process writes: change nothing, and expect segments that begin later.

    With direct I/O, the files of dead segments become those of new ones: then they are written into space that the file system
    has given out already, which was found twice as fast, and what is read meanwhile does not wait for it to do so.
    """

    def __init__(
        self,
        files: SegmentFiles,
        *,
        store: UUID,
        segment_bytes: int,
        capacity: int | None,
        name: str,
        read_only: bool = False,
    ) -> None:
        self.files = files
        self.store = store
        self.capacity = capacity
        self.name = name
        self.read_only = read_only
        self.lock = threading.Lock()
        """Guards what loop and threads both change: live bytes, `_dirty`, `_retired`. Never held over I/O."""
        self.segments: dict[int, Segment] = {}
        self.used = 0
        """Stored bytes of all segments that are not discarded, those being written included."""
        self.next_number = 1
        self.active: Segment | None = None
        """The segment appended to; the writer thread's."""
        self._dirty: set[Segment] = set()
        self._new_names = False
        self._retired: list[Segment] = []
        """Sealed when nothing in them was alive: no discard will come that looks at them."""
        self._disk_full = 0
        """Stored bytes for which the file system had no room when last asked; 0 if it had."""
        self._refused = 0
        """Stored bytes of the smallest chunk that did not fit into the capacity, 0 if all did."""
        self._segment_bytes = segment_bytes
        self._most_waiting = MOST_WAITING_BYTES
        if capacity is not None:
            self._most_waiting = min(MOST_WAITING_BYTES, capacity // WAITING_OF_CAPACITY)
        self._spares: list[int] = []
        """Numbers of dead segments whose files are kept."""
        self._holes = Holes()
        self.closed = False
        """Nothing is punched any more: somebody else may have opened the files, and have written behind what the last commit knows of."""
        self.discards = 0
        """How often something was discarded."""

    # -- opening ------------------------------------------------------------------------------------------------------

    def load(self, state: Mapping[int, bytes]) -> list[int]:
        """Blocking: take over the files as the last commit left them; returns the segments that are missing.

        Unknown files are deleted and longer ones cut, unless read-only. Costs one stat per segment.

        Raises:
            ControllerError: The state makes no sense.
            ControllerUnavailable: There is state and not one of its files: another disk must be mounted.
            OSError: From the device.
        """
        device, files = self.files.device, self.files
        known = {number: layout.unpack_state(number, raw) for number, raw in state.items()}
        found = {n for name in device.list_directory(files.directory) if (n := layout.segment_of(name)) is not None}
        if known and not found & known.keys():
            raise ControllerUnavailable(
                f"controller {self.name!r}: none of its {len(known)} segments is in {files.directory}; "
                "is the right disk mounted there?"
            )
        if not self.read_only:
            for number in found - known.keys():
                device.unlink(files.path(number))
        last = max(known, default=0)
        for number, committed in known.items():
            segment = self.segments[number] = Segment(number, committed.slots, committed)
            segment.missing = number not in found
            segment.sealed = segment.missing or number != last
            self.used += committed.live
            if not (segment.missing or self.read_only) and device.size(files.path(number)) > committed.tail:
                device.truncate(files.path(number), committed.tail)
        self.next_number = max([0, *known, *found]) + 1
        if last and not self.segments[last].sealed:
            self.active = self.segments[last]
        return sorted(number for number, segment in self.segments.items() if segment.missing)

    def segment(self, number: int) -> Segment:
        """On the loop: the segment of this number.

        Raises:
            Lost: There is none.
        """
        segment = self.segments.get(number)
        if segment is None:
            if not self.read_only:
                raise Lost(f"segment {number} of controller {self.name!r} does not exist", controller=self.name)
            # Another process writes: it may have begun this segment after we opened.
            segment = self.segments[number] = Segment(number, 0)
            segment.sealed = True
        if segment.missing:
            raise Lost(f"file {self.files.path(number)} is missing", controller=self.name)
        return segment

    # -- room ---------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether what was refused last would be refused again."""
        if self._refused and self.capacity is not None and self.used + self._refused <= self.capacity:
            self._refused = 0
        return self._disk_full > 0 or self._refused > 0

    @property
    def disk_full(self) -> bool:
        """Whether the file system had no room when it was last asked."""
        return self._disk_full > 0

    def reserve(self, stored: int) -> bool:
        """Take bytes out of the capacity; False if they do not fit."""
        with self.lock:
            if self.capacity is not None and self.used + stored > self.capacity:
                self._refused = min(stored, self._refused or stored)
                return False
            self.used += stored
        return True

    def give_back(self, stored: int) -> None:
        """Undo a `reserve`."""
        with self.lock:
            self.used -= stored

    def no_room(self, stored: int) -> None:
        """The file system had no room for so many bytes."""
        self._disk_full = stored

    def space_returned(self, available: int | None) -> None:
        """The file system says how much is free now (None: it cannot tell, so let the next write find out)."""
        if available is None or available >= self._disk_full + SLACK_BYTES:
            self._disk_full = 0

    # -- what the writer thread tells -----------------------------------------------------------------------------------

    def begin(self, segment: Segment) -> None:
        """Blocking: a new segment, the one appended to from now on.

        Raises:
            OSError: Its file cannot be created; the log is as it was.
        """
        with self.lock:
            spare = self._spares.pop(0) if self._spares else 0
        if spare:
            self.files.recycle(spare, segment)
        else:
            self.files.create(segment)
        self.next_number = segment.number + 1
        with self.lock:
            self._new_names = True
            self.segments[segment.number] = segment
        self.active = segment

    def seal(self) -> None:
        """Append no more to the active segment."""
        segment, self.active = self.active, None
        if segment is not None:
            with self.lock:
                segment.sealed = True
                if segment.live == 0:
                    self._retired.append(segment)

    def appended(self, segment: Segment, *, stored: int, tail: int, slots: int) -> None:
        """Extents are written, and so are the slots that name them."""
        with self.lock:
            segment.live += stored
            segment.next_slot += slots
            segment.tail = tail
            self._dirty.add(segment)

    # -- durability ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Blocking: return when all that was appended so far is durable.

        Raises:
            OSError: From the device; the next sync tries again.
        """
        with self.lock:
            dirty, self._dirty = self._dirty, set()
            new_names, self._new_names = self._new_names, False
        try:
            while dirty:
                segment = next(iter(dirty))
                if not segment.gone:
                    self._sync_one(segment)
                dirty.remove(segment)
            if new_names:
                self.files.device.sync_directory(self.files.directory)
                new_names = False
        finally:
            with self.lock:
                self._dirty |= dirty
                self._new_names = self._new_names or new_names

    def _sync_one(self, segment: Segment) -> None:
        reached = segment.tail, segment.next_slot
        try:
            with self.files.using(segment) as fd:
                self.files.device.sync(fd)
            with self.lock:
                segment.durable = reached
                segment.forgotten = {first for first in segment.forgotten if first >= reached[0]}
        except OSError:
            if segment.gone:
                # Deleted meanwhile: nothing in it is alive.
                return
            # The kernel may now call pages clean that never reached the disk, and report success next time.
            segment.doubtful = segment.sealed = True
            raise

    @property
    def doubtful(self) -> bool:
        """Whether `mend` is needed before the next `sync` can be believed."""
        with self.lock:
            return any(segment.doubtful for segment in self._dirty)

    def mend(self, codec: Codec) -> list[int]:
        """Blocking, in the writer thread: write again, in place, what a failed sync may have left in the cache only.

        Returns:
            Ids of the extents that are damaged already; reading them gives `CorruptData`.

        Raises:
            OSError: From the device.
        """
        with self.lock:
            doubtful = [segment for segment in self._dirty if segment.doubtful and not segment.gone]
        damaged = []
        device = self.files.device
        for segment in doubtful:
            with self.files.using(segment) as fd:
                first = segment.durable[1]
                table = self._table(fd, segment, first)
                for id, locator in layout.unpack_entries(table, segment.number):
                    place = layout.unpack(id, locator)
                    stored = bytearray(place.stored)
                    if read_exactly(device, fd, [stored], place.first) and codec.matches(id, place, stored):
                        _again(write_all(device, fd, [stored], place.first))
                    elif place.first not in segment.forgotten:
                        damaged.append(id)
                _again(write_all(device, fd, [table], first * ENTRY_BYTES))
                _again(write_all(device, fd, [layout.pack_file(self.store, segment.number, segment.slots)], 0))
            segment.doubtful = False
        return damaged

    # -- freeing ------------------------------------------------------------------------------------------------------

    def discard(self, places: Iterable[Place]) -> tuple[Dead, list[Segment]]:
        """On the loop: take extents out of the account.

        Returns:
            What to `punch` now, and the segments to `bury`, already forgotten here.
        """
        with self.lock:
            touched = set()
            for place in places:
                segment = self.segments.get(place.segment)
                if segment is None:
                    continue
                segment.live -= place.stored
                self.used -= place.stored
                if place.first >= segment.durable[0]:
                    segment.forgotten.add(place.first)
                if not segment.missing:
                    self._holes.add(segment, place.first, place.stored)
                touched.add(segment)
            self.discards += 1
            candidates = {*touched, *self._retired}
            self._retired.clear()
            dead = [s for s in candidates if s.sealed and s.live == 0 and s.committed is None and not s.gone]
            for segment in dead:
                del self.segments[segment.number]
                self._dirty.discard(segment)
                self._holes.forget(segment)
            due = self._holes.take_due(min(self._most_waiting, max(WAITING_BYTES, self.used)))
        for segment in dead:
            self.files.doom(segment)
        return due, dead

    def bury(self, segment: Segment) -> None:
        """Blocking: delete the file of a segment that `discard` named, or keep it for another segment.

        Raises:
            OSError: From the device.
        """
        usual = 0 < segment.tail - segment.start <= self._segment_bytes and not (segment.doubtful or segment.missing)
        if self.files.direct and usual and len(self._spares) < SPARES and self.files.retire(segment):
            with self.lock:
                self._spares.append(segment.number)
        else:
            self.files.delete(segment)

    def give_up_spares(self) -> bool:
        """Blocking: give back to the file system what was kept for new segments, and what is dead; returns whether there was any."""
        with self.lock:
            spares, self._spares = self._spares, []
            any_left = bool(spares or self._holes)
        for number in spares:
            with suppress(OSError):
                self.files.device.unlink(self.files.path(number))
        self.punch_waiting()
        return any_left

    @property
    def waiting(self) -> bool:
        """Whether anything dead waits to be given back."""
        return bool(self._holes)

    def punch_waiting(self) -> None:
        """Blocking: `punch` what waits, in part."""
        with self.lock:
            dead = self._holes.take_all()
        self.punch(dead)

    def punch(self, dead: Dead) -> None:
        """Blocking: give whole pages back to the file system, `MOST_HOLES` at most, the largest of a segment first; others go on waiting.
        What the file system does not take is found by compaction.
        """
        most = MOST_HOLES
        for segment, extents in dead.items():
            ranges, left = whole_pages(extents, most)
            most -= len(ranges)
            with suppress(OSError), self.files.using(segment) as fd:
                for first, length in ranges:
                    if self.closed or not self.files.device.punch(fd, first, length):
                        return
            with self.lock:
                if not segment.gone:
                    for first, length in left:
                        self._holes.add(segment, first, length)

    # -- compaction ---------------------------------------------------------------------------------------------------

    def sparse(self, max_live_share: float) -> list[int]:
        """Blocking: give back what waits; then the sealed segments worth rewriting, the sparsest first: one stat for each segment."""
        self.punch_waiting()
        found: list[tuple[float, int]] = []
        with self.lock:
            # Those where nothing is alive need no help: they go with the next commit or discard.
            sealed = [s for s in self.segments.values() if s.sealed and s.live and not s.missing]
        for segment in sealed:
            written = segment.tail - segment.start
            try:
                taken = min(self.files.device.allocated(self.files.path(segment.number)), written)
            except FileNotFoundError:
                continue
            if segment.live <= max_live_share * taken or segment.live * NEARLY_EMPTY <= written:
                found.append((segment.live / max(taken, 1), segment.number))
        return [number for _, number in sorted(found)]

    def extents(self, segment: Segment) -> list[tuple[int, Locator]]:
        """Blocking: what the table of a segment names: every chunk ever appended, dead ones included.

        Raises:
            CorruptData: The file is not that segment of this store.
            OSError: From the device.
        """
        number = segment.number
        with self.files.using(segment) as fd:
            table = self._table(fd, segment, 0)
        if table[:ENTRY_BYTES] != layout.pack_file(self.store, number, segment.slots):
            raise CorruptData(f"{self.files.path(number)} does not begin like segment {number} of this store")
        return layout.unpack_entries(table[ENTRY_BYTES:], number)

    def _table(self, fd: int, segment: Segment, first: int) -> bytearray:
        table = bytearray((segment.next_slot - first) * ENTRY_BYTES)
        if not read_exactly(self.files.device, fd, [table], first * ENTRY_BYTES):
            raise OSError(errno.EIO, f"the table of segment {segment.number} is cut short")
        return table

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
            if place.segment not in self.segments:
                # A damaged record named it; where nothing was, nothing is freed.
                continue
            deltas[place.segment] = deltas.get(place.segment, 0) - place.stored
        deltas.pop(layout.NOWHERE.segment, None)
        plan: dict[int, Committed | None] = {}
        for number, delta in deltas.items():
            segment = self.segments.get(number)
            before = 0 if segment is None or segment.committed is None else segment.committed.live
            if segment is None or before + delta < 0:
                raise ControllerError(
                    f"controller {self.name!r}: a commit changes segment {number} by {delta} bytes, which has {before}; "
                    "run `dstorage check --repair`"
                )
            left = Committed(before + delta, segment.tail, segment.next_slot, segment.slots)
            plan[number] = left if left.live else None
        return plan

    async def recount(self, places: AsyncIterator[tuple[int, Locator]]) -> dict[int, Committed | None]:
        """What the books have to say of each segment in which the catalog refers to other bytes than they say. Changes nothing."""
        counted = dict.fromkeys(self.segments, 0)
        async for id, locator in places:
            for place in layout.sensible([(id, locator)]):
                if place.segment in counted:
                    counted[place.segment] += place.stored
        plan: dict[int, Committed | None] = {}
        for number, live in counted.items():
            segment = self.segments.get(number)
            if segment is None or live == (segment.committed.live if segment.committed else 0):
                continue
            plan[number] = Committed(live, segment.tail, segment.next_slot, segment.slots) if live else None
        return plan

    def apply_recount(self, plan: Mapping[int, Committed | None]) -> None:
        """What `recount` found is saved."""
        with self.lock:
            for number, committed in plan.items():
                segment = self.segments[number]
                before = segment.committed.live if segment.committed else 0
                more = (committed.live if committed else 0) - before
                segment.live += more
                self.used += more
                if segment.sealed and segment.live == 0:
                    self._retired.append(segment)
        self.apply_commit(plan)

    def apply_commit(self, plan: Mapping[int, Committed | None]) -> None:
        """The commit that `plan_commit` was asked about has happened."""
        for number, committed in plan.items():
            self.segments[number].committed = committed


def _again(result: tuple[int, OSError | None]) -> None:
    if result[1] is not None:
        raise result[1]
