"""Chunks on a local disk: the controller around the segment log.

The loop plans and accounts, threads do the file calls: one writer thread appends (so that the tail of the log has one
owner), a few others read, sync, punch and delete. A read that the page cache can answer is answered on the loop, with
no thread at all. Every wait for a thread ends with the time-out at the latest; the thread itself cannot be stopped, so
what it did in vain is undone when it comes back.
"""

from __future__ import annotations

import asyncio
import errno
import os
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar
from uuid import UUID

from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Settings,
    Space,
    WriteRequest,
)
from dstorage.errors import (
    ControllerError,
    ControllerUnavailable,
    CorruptData,
    DStorageError,
    InvalidArgumentError,
    Lost,
)
from dstorage.record import MAX_CHUNK_BYTES, Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.appender import Appender, Item
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.device import Device
from dstorage_controllers.disk.files import Segment, SegmentFiles
from dstorage_controllers.disk.keys import load_key
from dstorage_controllers.disk.layout import Committed
from dstorage_controllers.disk.log import Dead, SegmentLog
from dstorage_controllers.disk.reader import Answers, Reader
from dstorage_controllers.disk.settings import check_settings

if TYPE_CHECKING:
    from dstorage_controllers.disk.cipher import Cipher

T = TypeVar("T")

SEGMENT_BYTES = 256 * 2**20
"""At the beginning of each file the kernel's reading ahead has to find its pace again: with 64 MiB, reading cold chunks
in sequence reached 70 % of one large file's speed, with 256 MiB 85 to 90 %."""
DIRECT_SEGMENT_BYTES = 64 * 2**20
"""Past the page cache there is no such pace; and small files are dead as a whole, and can be used again, sooner."""
SEGMENTS_PER_CAPACITY = 16
"""With a capacity, segments are small enough for dead ones to be deleted long before it is reached."""
DEFAULT_LEVEL = 3
"""What `compress=True` means: zstd's own default."""
TIDY_S = 5.0
"""Dead space is given back when nothing was discarded for so long."""
RECHECK_S = 1.0
"""A full disk is asked so often whether others have freed space."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What there is between `open` and `close`."""

    log: SegmentLog
    codec: Codec
    reader: Reader
    appender: Appender
    head: bytes
    """The private state under key 0 as it should be."""


class DiskController(Controller):
    """Keeps chunks in append-only segment files.

    Args:
        name: The name under which the store lists it.
        path: Directory for the files (each store makes its own in it); None: inside the store's directory.
        capacity: Stored bytes of live chunks to keep at most; None for what the file system has.
        rank: Performance class.
        segment_bytes: Size of a segment file, 16 KiB to 1 GiB; None: 256 MiB (64 MiB with `direct`), or a
            sixteenth of the capacity if that is less.
        compress: False, True, or a zstd level 1 to 22. What does not shrink is stored as it is.
        key_file: File with the AES-256 key to encrypt with (32 bytes, or 64 hexadecimal digits). A controller that has stored anything
            without a key takes none any more, and one that has a key returns nothing that is not encrypted with it.
        key_env: Environment variable with that key in hexadecimal digits, instead of a file.
        punch: False keeps dead space until compaction, as on systems that cannot punch holes.
        direct: Chunks of 128 KiB and more are written and read past the operating system's page cache. For programs that go
            through more data than the machine has memory, such as simulations: see docs/how-to/simulate-larger-than-memory.md. Where
            the file system refuses it (tmpfs of older kernels, some network file systems), a warning says so at `open`, and the
            page cache is used. It takes 2 MiB for each thread and 4 MiB more, in no budget.
        threads: Threads for reading, 1 to 64.
        timeout: Seconds after which what the disk has not answered counts as unavailable.
        device: The file system, for tests.

    Raises:
        InvalidArgumentError: An argument is out of range.
    """

    kind: ClassVar[str] = "disk"
    volatile = False

    def __init__(
        self,
        name: str = "disk",
        path: str | os.PathLike[str] | None = None,
        *,
        capacity: int | None = None,
        rank: int = 50,
        segment_bytes: int | None = None,
        compress: bool | int = False,
        key_file: str | os.PathLike[str] | None = None,
        key_env: str | None = None,
        punch: bool = True,
        direct: bool = False,
        threads: int = 4,
        timeout: float = 60.0,
        device: Device | None = None,
    ) -> None:
        self._path = None if path is None else Path(path).absolute()
        self._key_file = None if key_file is None else Path(key_file).absolute()
        settings: dict[str, object] = {
            "path": None if self._path is None else str(self._path),
            "capacity": capacity,
            "rank": rank,
            "segment_bytes": segment_bytes,
            "compress": compress,
            "key_file": None if self._key_file is None else str(self._key_file),
            "key_env": key_env,
            "punch": punch,
            "direct": direct,
            "threads": threads,
            "timeout": timeout,
        }
        check_settings(name, settings)
        super().__init__(name, rank=rank, settings=settings)
        self._capacity = capacity
        self._segment_bytes = _segment_bytes(capacity, direct) if segment_bytes is None else segment_bytes
        self._level = DEFAULT_LEVEL if compress is True else int(compress)
        self._key_env = key_env
        self._direct = direct
        self._threads = threads
        self._timeout = timeout
        self._device = Device(punch=punch) if device is None else device
        self._directory = Path()
        self._read_only = False
        self._status_changed: Callable[[], None] = lambda: None
        self._open: _Open | None = None
        self._closing = False
        self._writer: ThreadPoolExecutor | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Future[object]] = set()
        self._sync_running: asyncio.Task[None] | None = None
        self._sync_next: asyncio.Task[None] | None = None
        self._plan: dict[int, Committed | None] = {}
        self._recounted = False
        """Whether a recount made the plan."""
        self._saved_head: bytes | None = None
        self._available: int | None = None
        self._recheck: asyncio.TimerHandle | None = None
        self._tidying: asyncio.TimerHandle | None = None

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> DiskController:
        """Build one from what the catalog kept.

        Raises:
            InvalidArgumentError: A setting is unknown, of the wrong type or out of range.
        """
        check_settings(name, settings)
        return cls(name, **settings)  # type: ignore[arg-type]  # just checked

    # -- inspection ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """FULL while the disk is, or while the smallest chunk refused for the capacity would still not fit."""
        full = self._open is not None and self._open.log.full
        return ControllerStatus.FULL if full else ControllerStatus.OK

    def space(self) -> Space:
        """Stored bytes of live chunks, and the capacity (without one: with what the file system had free lately)."""
        used = 0 if self._open is None else self._open.log.used
        if self._capacity is not None:
            return Space(self._capacity, used)
        return Space(None if self._available is None else used + self._available, used)

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, context: OpenContext) -> None:
        """Take over the segments as the last commit left them. Warns of network file systems and of missing segments.

        Raises:
            ControllerUnavailable: The directory cannot be read now, or none of the files is there.
            ControllerError: Wrong key, or one for what was stored without; damaged state; no right to read or write there.
        """
        own = f"{context.store_uuid}-{context.index}"
        self._directory = context.directory if self._path is None else self._path / own
        self._read_only = context.read_only
        self._status_changed = context.status_changed
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"dstorage-{self.name}-writer")
        self._workers = ThreadPoolExecutor(self._threads, thread_name_prefix=f"dstorage-{self.name}")
        try:
            self._open, missing, network = await self._in(self._workers, self._load, context)
        except PermissionError as error:
            raise ControllerError(f"controller {self.name!r} may not use {self._directory}: {error}") from error
        except OSError as error:
            if isinstance(error, DStorageError):
                raise
            raise ControllerUnavailable(f"controller {self.name!r} cannot open {self._directory}: {error}") from error
        if network is not None:
            warnings.warn(
                f"controller {self.name!r}: {self._directory} is on {network}: speed, locks and "
                "durability are the server's; prefer a local disk or the lan controller",
                RuntimeWarning,
                stacklevel=2,
            )
        if missing:
            names = ", ".join(layout.file_name(number) for number in missing[:5])
            warnings.warn(
                f"controller {self.name!r}: {len(missing)} segment files are missing from {self._directory} ({names}); "
                "their chunks are lost unless the files are put back before the next open",
                RuntimeWarning,
                stacklevel=2,
            )

    def _load(self, context: OpenContext) -> tuple[_Open, list[int], str | None]:
        key = load_key(self.name, self._key_file, self._key_env)
        cipher = None if key is None else _cipher(self.name, context.store_uuid, key)
        codec = Codec(level=self._level, cipher=cipher)
        key_check = layout.NO_KEY if cipher is None else cipher.key_check
        state = dict(context.state)
        self._saved_head = state.pop(0, None)
        if self._saved_head is not None or state:
            self._check_key(self._saved_head, key_check)
        files = SegmentFiles(self._device, self._directory, read_only=context.read_only, direct=self._direct)
        log = SegmentLog(
            files,
            store=context.store_uuid,
            segment_bytes=self._segment_bytes,
            capacity=self._capacity,
            name=self.name,
            read_only=context.read_only,
        )
        missing = log.load(state)
        if not context.read_only:
            self._device.make_directory(self._directory)
            if self._direct:
                self._try_direct(files)
        self._look_at_space()
        appender = Appender(log, codec, segment_bytes=self._segment_bytes)
        opened = _Open(log, codec, Reader(log, codec), appender, layout.pack_head(key_check))
        return opened, missing, self._device.network(self._directory)

    def _check_key(self, head: bytes | None, key_check: bytes) -> None:
        # There is a head wherever there are segments: where it was taken away, it says no more than one that was set back.
        written_with = layout.NO_KEY if head is None else layout.unpack_head(head)
        if written_with == key_check:
            return
        if written_with == layout.NO_KEY:
            raise ControllerError(
                f"controller {self.name!r} has stored chunks without a key: given one now, it could not tell them from forged ones, "
                f"and they would stay readable to everybody; register another controller with the key, and drain {self.name!r}, "
                "opened without, to it"
            )
        source = self._key_file or self._key_env
        problem = "no key was given" if source is None else f"the key in {source} is another one"
        raise ControllerError(
            f"controller {self.name!r} is encrypted and {problem}; pass key_file or key_env with the right key"
        )

    def _try_direct(self, files: SegmentFiles) -> None:
        try:
            self._device.try_direct(self._directory)
        except OSError as error:
            if error.errno != errno.EINVAL:
                # A full disk, for one, says nothing about this.
                return
            files.direct = False
            warnings.warn(
                f"controller {self.name!r}: direct=True has no effect, the file system of {self._directory} takes no direct "
                f"I/O ({error}); the page cache is used",
                RuntimeWarning,
                stacklevel=2,
            )

    async def close(self) -> None:
        """Wait for what is under way and let go of files and threads; a second call does nothing. Cancelled, it lets go of them at once."""
        self._closing = True
        for timer in (self._recheck, self._tidying):
            if timer is not None:
                timer.cancel()
        self._recheck = self._tidying = None
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._open is not None:
                await asyncio.wait({self._in(self._workers, self._open.log.give_up_spares)})
        finally:
            opened, self._open = self._open, None
            if opened is not None:
                opened.log.closed = True
            for pool in (self._writer, self._workers):
                if pool is not None:
                    # Idle by now, if this was not cancelled: it takes no longer than the threads need to see it.
                    pool.shutdown(wait=not self._tasks, cancel_futures=True)
            self._writer = self._workers = None
            if opened is not None:
                opened.log.files.close(opened.log.segments.values())

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Read what is in the page cache; None if it is not, or is too large or too costly to decode on the loop."""
        return self._opened().reader.read_nowait(id, locator)

    def read_in_thread(self, id: int, locator: Locator, *, writable: bool = False) -> bytes | bytearray | None:
        """Read what is in the page cache, in the thread that calls."""
        opened = self._open
        return None if opened is None else opened.reader.read_in_thread(id, locator, writable=writable)

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read chunks in threads, neighbours on disk by one call."""
        opened = self._opened()
        answers: Answers = [None] * len(requests)
        jobs = opened.reader.plan(requests, answers, self._threads)
        if jobs:
            threads = [self._in(self._workers, opened.reader.read_job, job, answers) for job in jobs]
            await asyncio.wait(threads, timeout=self._timeout)
            opened.log.files.close_surplus(opened.log.segments.values())
        late = ControllerUnavailable(f"{self._directory} did not answer a read within {self._timeout:g} s; ask again")
        # A new list: threads that are late go on writing into the old one.
        return [late if answer is None else answer for answer in answers]

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Append chunks; each is answered with its locator, `ControllerFull` or `ControllerUnavailable`."""
        opened = self._changing()
        was = self.status
        job = self._in(self._writer, self._append, opened, list(requests))
        try:
            # Not wait_for: that of Python 3.11 answers instead of letting a late cancellation through.
            async with asyncio.timeout(self._timeout):
                answers = await asyncio.shield(job)
        except (TimeoutError, asyncio.CancelledError) as error:
            job.add_done_callback(lambda job: self._undo(opened, requests, job))
            if isinstance(error, asyncio.CancelledError):
                raise
            late = ControllerUnavailable(f"{self._directory} did not take a write within {self._timeout:g} s")
            return [late] * len(requests)
        opened.log.files.close_surplus(opened.log.segments.values())
        self._tell(was)
        self._watch_space(opened)
        return answers

    def _append(self, opened: _Open, requests: list[WriteRequest]) -> list[Locator | Exception]:
        answers: list[Locator | Exception] = []
        items: list[Item] = []
        ats: list[int] = []
        for at, (id, data) in enumerate(requests):
            view = memoryview(data).cast("B")
            if len(view) > MAX_CHUNK_BYTES:
                answers.append(InvalidArgumentError(f"chunk {id} is larger than {MAX_CHUNK_BYTES} bytes"))
                continue
            # The whole answer for an empty chunk; the others' is put in its place below.
            answers.append(layout.pack(opened.codec.nothing(id)))
            if len(view):
                packed, flags = opened.codec.compress(view)
                items.append(Item(id, packed, len(view), flags))
                ats.append(at)
        for at, answer in zip(ats, opened.appender.append(items), strict=True):
            answers[at] = answer
        # The thread knows its arguments a moment longer than the loop waits for the answers: contents would count as looked at still.
        requests.clear()
        return answers

    def _undo(
        self, opened: _Open, requests: Sequence[WriteRequest], job: asyncio.Future[list[Locator | Exception]]
    ) -> None:
        """A write that nobody waits for any more is over: nobody will ever name its places."""
        if not job.cancelled() and job.exception() is None:
            self._free(
                opened, [(r.id, a) for r, a in zip(requests, job.result(), strict=True) if isinstance(a, Locator)]
            )

    # -- freeing ------------------------------------------------------------------------------------------------------

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Free extents: delete segments that hold nothing else, and punch out of the others what is much, or has waited."""
        job = self._free(self._changing(), locators)
        if job is not None:
            await asyncio.wait({job}, timeout=self._timeout)

    def _free(self, opened: _Open, locators: Sequence[tuple[int, Locator]]) -> asyncio.Future[None] | None:
        was = self.status
        due, dead = opened.log.discard(place for place in layout.sensible(locators) if place.size)
        self._tell(was)
        self._tidy_later(opened)
        if not (dead or (due and self._device.can_punch)):
            return None
        return self._then_tidy(opened, self._in(self._workers, self._free_on_disk, opened, due, dead))

    def _free_on_disk(self, opened: _Open, due: Dead, segments: Sequence[Segment]) -> None:
        # Dead space that stays is found by compaction, and files left behind are deleted by the next open.
        for segment in segments:
            with suppress(OSError):
                opened.log.bury(segment)
        opened.log.punch(due)

    def _then_tidy(self, opened: _Open, job: asyncio.Future[None]) -> asyncio.Future[None]:
        """What a job leaves waiting it puts back when it ends."""
        job.add_done_callback(lambda _: self._tidy_later(opened))
        return job

    def _tidy_later(self, opened: _Open) -> None:
        """What waits to be given back is, as soon as nothing was discarded for a while: then it is in nobody's way."""
        if not opened.log.waiting or self._tidying is not None or not self._device.can_punch or self._closing:
            return

        def tidy(discards: int) -> None:
            self._tidying = None
            if opened.log.discards == discards:
                self._then_tidy(opened, self._in(self._workers, opened.log.punch_waiting))
            else:
                self._tidy_later(opened)

        self._tidying = asyncio.get_running_loop().call_later(TIDY_S, tidy, opened.log.discards)

    # -- compaction ---------------------------------------------------------------------------------------------------

    async def sparse_segments(self, max_live_share: float) -> list[int]:
        """Segments of which at most this share (0 to 1) of the disk space they take is alive, the sparsest first.

        Writing their live chunks again (and committing, and discarding the old places) frees the files. The segment
        being appended to is never among them.

        Raises:
            ControllerUnavailable: The disk does not answer.
        """
        log = self._opened().log
        return await self._answer(self._in(self._workers, log.sparse, max_live_share), "look at its segments")

    async def extents(self, segment: int) -> list[tuple[int, Locator]]:
        """The (id, locator) pairs of all chunks ever written to a segment, from the table in the file itself.

        Alive is what the catalog's record still equals; entries that are damaged are left out, so a segment whose live
        chunks are not all found simply stays.

        Raises:
            Lost: There is no such segment.
            CorruptData: The file is not that segment of this store.
            ControllerUnavailable: The disk does not answer.
        """
        log = self._opened().log
        return await self._answer(self._in(self._workers, log.extents, log.segment(segment)), f"scan segment {segment}")

    async def sparse_places(self, max_live_share: float) -> list[tuple[int, Locator]]:
        """All chunks ever written to the segments that `sparse_segments` names.

        Raises:
            ControllerUnavailable: The disk does not answer.
        """
        places: list[tuple[int, Locator]] = []
        for segment in await self.sparse_segments(max_live_share):
            try:
                places += await self.extents(segment)
            except (Lost, CorruptData):
                # Gone meanwhile, or for `dstorage check` to explain; the others can still be compacted.
                continue
        return places

    def footprint(self, locator: Locator) -> int:
        """Stored bytes: after compression and encryption."""
        return layout.unpack(0, locator).stored

    def committed_bytes(self) -> int | None:
        """Live bytes of all segments, as the last commit left them."""
        # The writer thread may begin another segment meanwhile: a list of them is made at once.
        segments = list(self._opened().log.segments.values())
        return sum(segment.committed.live for segment in segments if segment.committed is not None)

    async def _answer(self, job: asyncio.Future[T], what: str) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(job)
        except DStorageError:
            raise
        except OSError as error:
            # A TimeoutError is one as well.
            raise ControllerUnavailable(f"controller {self.name!r} cannot {what}: {error!r}; try again") from error

    # -- durability ---------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Return when every answered write is durable; calls that come meanwhile share one more round.

        Raises:
            ControllerUnavailable: The disk would not take it.
        """
        opened = self._opened()
        if self._sync_next is None:
            # A round under way may have looked at the log before our writes: ours is the one after it.
            self._sync_next = asyncio.get_running_loop().create_task(self._sync_round(opened, self._sync_running))
            self._keep(self._sync_next)
        await asyncio.shield(self._sync_next)

    async def _sync_round(self, opened: _Open, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._sync_running, self._sync_next = self._sync_next, None
        try:
            if opened.log.doubtful:
                damaged = await self._in(self._writer, opened.log.mend, opened.codec)
                if damaged:
                    warnings.warn(
                        f"controller {self.name!r}: the disk lost chunks {damaged[:10]} while making them durable",
                        RuntimeWarning,
                        stacklevel=1,
                    )
            await self._in(self._workers, self._sync, opened)
        except OSError as error:
            raise ControllerUnavailable(
                f"controller {self.name!r} cannot make {self._directory} durable: {error}"
            ) from error

    def _sync(self, opened: _Open) -> None:
        opened.log.sync()
        self._look_at_space()

    def checkpoint(self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]) -> dict[int, bytes]:
        """Live bytes and tail of the segments that the commit touches."""
        opened = self._opened()
        self._plan = opened.log.plan_commit(
            (layout.unpack(id, locator) for id, locator in alive), layout.sensible(dead)
        )
        self._recounted = False
        changes = _packed(self._plan)
        if self._saved_head != opened.head:
            changes[0] = opened.head
        return changes

    async def recount(self, places: AsyncIterator[tuple[int, Locator]]) -> dict[int, bytes]:
        """Live bytes of the segments where the books are wrong."""
        self._plan = await self._opened().log.recount(places)
        self._recounted = True
        return _packed(self._plan)

    def committed(self) -> None:
        """What the last checkpoint or recount returned is saved."""
        opened = self._opened()
        if self._recounted:
            opened.log.apply_recount(self._plan)
        else:
            opened.log.apply_commit(self._plan)
            self._saved_head = opened.head
        self._plan = {}

    # -- private ------------------------------------------------------------------------------------------------------

    def _opened(self) -> _Open:
        if self._open is None or self._closing:
            raise ControllerError(f"controller {self.name!r} is not open")
        return self._open

    def _changing(self) -> _Open:
        if self._read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only; open the store for writing")
        return self._opened()

    def _in(self, pool: ThreadPoolExecutor | None, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run `function` in a thread; `close` waits for it."""
        future = asyncio.get_running_loop().run_in_executor(pool, function, *args)
        self._keep(future)
        return future

    def _keep(self, future: asyncio.Future[T]) -> None:
        self._tasks.add(future)  # type: ignore[arg-type]  # futures are invariant; this one is only waited for
        future.add_done_callback(self._tasks.discard)

    def _tell(self, was: ControllerStatus) -> None:
        if self.status is not was:
            self._status_changed()

    def _look_at_space(self) -> None:
        try:
            self._available = self._device.available(self._directory)
        except OSError:
            self._available = None

    def _watch_space(self, opened: _Open) -> None:
        """As long as the disk is full, ask once in a while whether it still is: others may free space."""
        if opened.log.disk_full and self._recheck is None and not self._closing:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK_S, self._check_space, opened)

    def _check_space(self, opened: _Open) -> None:
        def looked(_: asyncio.Future[None]) -> None:
            was = self.status
            opened.log.space_returned(self._available)
            self._recheck = None
            self._tell(was)
            self._watch_space(opened)

        self._in(self._workers, self._look_at_space).add_done_callback(looked)


def _packed(plan: Mapping[int, Committed | None]) -> dict[int, bytes]:
    return {number: b"" if left is None else layout.pack_state(left) for number, left in plan.items()}


def _segment_bytes(capacity: int | None, direct: bool) -> int:
    usual = DIRECT_SEGMENT_BYTES if direct else SEGMENT_BYTES
    if capacity is None:
        return usual
    return max(layout.MIN_SEGMENT_BYTES, min(usual, capacity // SEGMENTS_PER_CAPACITY))


def _cipher(name: str, store: UUID, key: bytes) -> Cipher:
    try:
        from dstorage_controllers.disk.cipher import Cipher
    except ImportError as error:
        raise ControllerError(
            f"controller {name!r} needs the package cryptography to encrypt: pip install 'dstorage[encryption]'"
        ) from error
    return Cipher(store, key)
