"""Chunks on a local disk: the controller around the segment log.

The loop plans and accounts, threads do the file calls: one writer thread appends (so that the tail of the log has one
owner), a few others read, sync, punch and delete. Everything asked for while the writer is busy goes out in its next
job, gathered. A read that the page cache can answer is answered on the loop, with no thread at all.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar
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
    ChunkError,
    ControllerError,
    ControllerUnavailable,
    CorruptData,
    InvalidArgumentError,
    Lost,
)
from dstorage.record import MAX_CHUNK_BYTES, Locator
from dstorage_controllers.disk import layout
from dstorage_controllers.disk.codec import Codec
from dstorage_controllers.disk.device import Device
from dstorage_controllers.disk.keys import load_key
from dstorage_controllers.disk.layout import Committed, Place
from dstorage_controllers.disk.segment import Item, Segment, SegmentLog, read_exactly

if TYPE_CHECKING:
    from dstorage_controllers.disk.cipher import Cipher

T = TypeVar("T")

SEGMENT_BYTES = 64 * 2**20
DEFAULT_LEVEL = 3
"""What `compress=True` means: zstd's own default."""

INLINE_BYTES = 4 * 2**20
"""Read on the loop at most: what a page-cached read of one large chunk may cost."""
INLINE_DECODE_BYTES = 64 * 2**10
"""Decompressed or decrypted on the loop at most."""

RUN_BYTES = 8 * 2**20
RUN_CHUNKS = 64
"""Neighbouring extents read by one call at most."""

RECHECK_S = 1.0
"""A full disk is asked so often whether others have freed space."""


class _Read(NamedTuple):
    at: int
    id: int
    place: Place


class DiskController(Controller):
    """Keeps chunks in append-only segment files.

    Args:
        name: The name under which the store lists it.
        path: Directory for the files (each store makes its own in it); None: inside the store's directory.
        capacity: Stored bytes of live chunks to keep at most; None for what the file system has.
        rank: Performance class.
        segment_bytes: Size of a segment file; 16 KiB to 1 GiB.
        compress: False, True, or a zstd level 1 to 22. What does not shrink is stored as it is.
        key_file: File with the AES-256 key to encrypt with (32 bytes, or 64 hexadecimal digits).
        key_env: Environment variable with that key in hexadecimal digits, instead of a file.
        punch: False keeps dead space until compaction, as on systems that cannot punch holes.
        threads: Threads for reading, 1 to 64.
        timeout: Seconds after which a read or write that the disk does not answer counts as unavailable.
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
        segment_bytes: int = SEGMENT_BYTES,
        compress: bool | int = False,
        key_file: str | os.PathLike[str] | None = None,
        key_env: str | None = None,
        punch: bool = True,
        threads: int = 4,
        timeout: float = 60.0,
        device: Device | None = None,
    ) -> None:
        settings: dict[str, object] = {
            "path": None if path is None else str(Path(path).absolute()),
            "capacity": capacity,
            "rank": rank,
            "segment_bytes": segment_bytes,
            "compress": compress,
            "key_file": None if key_file is None else str(Path(key_file).absolute()),
            "key_env": key_env,
            "punch": punch,
            "threads": threads,
            "timeout": timeout,
        }
        _check(name, settings)
        super().__init__(name, rank=rank, settings=settings)
        self._path = None if path is None else Path(path).absolute()
        self._capacity = capacity
        self._segment_bytes = segment_bytes
        self._level = DEFAULT_LEVEL if compress is True else int(compress)
        self._key_file = None if key_file is None else Path(key_file).absolute()
        self._key_env = key_env
        self._timeout = timeout
        self._threads = threads
        self._device = Device(punch=punch) if device is None else device
        self._context: OpenContext | None = None
        self._log: SegmentLog | None = None
        self._codec: Codec | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Future[object]] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._next_sync: asyncio.Task[None] | None = None
        self._plan: dict[int, Committed | None] = {}
        self._head: bytes | None = None
        self._closing = False
        self._recheck: asyncio.TimerHandle | None = None
        self._available: int | None = None
        self._directory = Path()

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> DiskController:
        """Build one from what the catalog kept.

        Raises:
            InvalidArgumentError: A setting is unknown, of the wrong type or out of range.
        """
        _check(name, settings)
        return cls(name, **settings)  # type: ignore[arg-type]  # _check has just checked them

    # -- inspection ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """FULL while the disk is, or while the smallest chunk refused for the capacity would still not fit."""
        full = self._log is not None and self._log.full
        return ControllerStatus.FULL if full else ControllerStatus.OK

    def space(self) -> Space:
        """Stored bytes of live chunks, and the capacity (without one: with what the file system had free lately)."""
        used = 0 if self._log is None else self._log.used
        if self._capacity is not None:
            return Space(self._capacity, used)
        return Space(None if self._available is None else used + self._available, used)

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, context: OpenContext) -> None:
        """Take over the segments as the last commit left them.

        Raises:
            ControllerUnavailable: The directory cannot be read now, or none of the files is there.
            ControllerError: Wrong key, damaged state, no right to read or write there.
        """
        self._context = context
        own = f"{context.store_uuid}-{context.index}"
        self._directory = context.directory if self._path is None else self._path / own
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"dstorage-{self.name}-writer")
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix=f"dstorage-{self.name}")
        try:
            missing = await self._in(self._writer, self._load, context)
        except PermissionError as error:
            raise ControllerError(f"controller {self.name!r} may not use {self._directory}: {error}") from error
        except (ControllerError, InvalidArgumentError):
            raise
        except OSError as error:
            raise ControllerUnavailable(f"controller {self.name!r} cannot open {self._directory}: {error}") from error
        if missing:
            names = ", ".join(layout.file_name(number) for number in missing[:5])
            warnings.warn(
                f"controller {self.name!r}: {len(missing)} segment files are missing from {self._directory} ({names}...); "
                "their chunks are lost unless the files are put back before the next open",
                RuntimeWarning,
                stacklevel=2,
            )

    def _load(self, context: OpenContext) -> list[int]:
        key = load_key(self.name, self._key_file, self._key_env)
        cipher = None if key is None else _cipher(self.name, context.store_uuid, key)
        codec = Codec(level=self._level, cipher=cipher)
        key_check = bytes(16) if cipher is None else cipher.key_check
        state = dict(context.state)
        head = state.pop(0, None)
        if head is not None:
            check = layout.unpack_head(head)
            if check != key_check and check != bytes(16):
                source = self._key_file or self._key_env
                problem = "no key was given" if key is None else f"the key in {source} is another one"
                raise ControllerError(
                    f"controller {self.name!r} is encrypted and {problem}; pass key_file or key_env with the right key"
                )
        self._head = None if head == layout.pack_head(key_check) else layout.pack_head(key_check)
        log = SegmentLog(
            self._device,
            self._directory,
            codec,
            store=context.store_uuid,
            segment_bytes=self._segment_bytes,
            capacity=self._capacity,
            name=self.name,
        )
        if not context.read_only:
            kind = self._device.network_type(self._directory)
            if kind is not None:
                warnings.warn(
                    f"controller {self.name!r}: {self._directory} is on a network file system ({kind}): speed, locks and "
                    "durability are the server's; prefer a local disk or the lan controller",
                    RuntimeWarning,
                    stacklevel=2,
                )
        missing = log.load(state, read_only=context.read_only)
        if not context.read_only:
            self._device.make_directory(self._directory)
        self._look_at_space()
        self._codec, self._log = codec, log
        return missing

    async def close(self) -> None:
        """Wait for what is under way and let go of files and threads; a second call does nothing."""
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        for pool in (self._writer, self._readers):
            if pool is not None:
                await asyncio.to_thread(pool.shutdown)
        self._writer = self._readers = None
        log, self._log = self._log, None
        if log is not None:
            log.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Read what is in the page cache; None if it is not, or is too large or too costly to decode on the loop."""
        log, codec = self._opened()
        place = layout.unpack(id, locator)
        size, number, offset, stored, _, flags = place
        if size == 0:
            return bytearray()
        if stored > INLINE_BYTES or (flags and size > INLINE_DECODE_BYTES):
            return None
        segment = log.segments.get(number)
        if segment is None or segment.fd < 0:
            return None
        buffer = _new_buffer(stored)
        try:
            done = self._device.preadv(segment.fd, (buffer,), offset, nowait=True)
        except OSError:
            # Not cached, or an error that the thread will meet and explain.
            return None
        if done != stored or not codec.matches(id, place, buffer):
            return None
        return codec.decode(id, place, buffer) if flags else buffer

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read chunks in threads, neighbours on disk by one call."""
        log, _ = self._opened()
        answers: list[Buffer | Exception | None] = [None] * len(requests)
        wanted: list[tuple[Segment, _Read]] = []
        for index, (id, locator) in enumerate(requests):
            try:
                place = layout.unpack(id, locator)
                if place.size == 0:
                    answers[index] = bytearray()
                else:
                    wanted.append((log.segment(place.segment, read_only=self._read_only), _Read(index, id, place)))
            except ChunkError as error:
                answers[index] = _about(error, id, self.name)
        runs = _runs(wanted)
        if runs:
            jobs = min(len(runs), self._threads)
            futures = [self._in(self._readers, self._read_runs, runs[job::jobs], answers) for job in range(jobs)]
            await asyncio.wait(futures, timeout=self._timeout)
            log.close_surplus()
        late = ControllerUnavailable(f"{self._directory} did not answer a read within {self._timeout:g} s; ask again")
        # A new list: threads that are late go on writing into the old one.
        return [late if answer is None else answer for answer in answers]

    def _read_runs(self, runs: list[tuple[Segment, list[_Read]]], answers: list[Buffer | Exception | None]) -> None:
        log, codec = self._opened()
        for segment, run in runs:
            buffers = [_new_buffer(read.place.stored) for read in run]
            try:
                fd = log.acquire(segment, write=not self._read_only)
                try:
                    whole = read_exactly(self._device, fd, buffers, run[0].place.first)
                    for read, buffer in zip(run, buffers, strict=True):
                        answers[read.at] = self._answer(fd, codec, read, buffer, whole=whole)
                finally:
                    log.release(segment)
            except Exception as error:
                for read in run:
                    answers[read.at] = self._explain_read(error, read)

    def _answer(self, fd: int, codec: Codec, read: _Read, buffer: bytearray, *, whole: bool) -> Buffer | Exception:
        _, id, place = read
        try:
            if not whole or not codec.matches(id, place, buffer):
                # Once more from the medium: the copy in the cache may be what is damaged.
                self._device.drop_cache(fd, place.first, place.stored)
                if not read_exactly(self._device, fd, [buffer], place.first):
                    return Lost(f"its segment {place.segment} ends before it", id=id, controller=self.name)
                if not codec.matches(id, place, buffer):
                    raise CorruptData(
                        f"chunk {id} fails its checksum (segment {place.segment}, offset {place.first}, "
                        f"{place.stored} bytes on controller {self.name!r})",
                        id=id,
                    )
            return codec.decode(id, place, buffer)
        except (ChunkError, OSError) as error:
            return self._explain_read(error, read)

    def _explain_read(self, error: Exception, read: _Read) -> Exception:
        if isinstance(error, ChunkError):
            return _about(error, read.id, self.name)
        if isinstance(error, FileNotFoundError):
            return Lost(f"file {error.filename} is missing", id=read.id, controller=self.name)
        explained = ControllerUnavailable(f"controller {self.name!r} cannot read chunk {read.id}: {error}; ask again")
        explained.__cause__ = error
        return explained

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Append chunks; each is answered with its locator, `ControllerFull` or `ControllerUnavailable`."""
        log, _ = self._opened()
        if self._read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only")
        was = self.status
        job = self._in(self._writer, self._append, list(requests))
        try:
            answers = await asyncio.wait_for(asyncio.shield(job), self._timeout)
        except (TimeoutError, asyncio.CancelledError) as error:
            job.add_done_callback(lambda job: self._undo(requests, job))
            if isinstance(error, asyncio.CancelledError):
                raise
            late = ControllerUnavailable(f"{self._directory} did not take a write within {self._timeout:g} s")
            return [late] * len(requests)
        log.close_surplus()
        self._tell(was)
        if log.disk_full and self._recheck is None and not self._closing:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK_S, self._check_space)
        return answers

    def _append(self, requests: list[WriteRequest]) -> list[Locator | Exception]:
        log, codec = self._opened()
        answers: list[Locator | Exception] = [layout.pack(layout.NOWHERE)] * len(requests)
        items: list[Item] = []
        places: list[int] = []
        for index, (id, data) in enumerate(requests):
            view = memoryview(data).cast("B")
            if len(view) > MAX_CHUNK_BYTES:
                answers[index] = InvalidArgumentError(f"chunk {id} is larger than {MAX_CHUNK_BYTES} bytes")
            elif len(view):
                packed, flags = codec.compress(view)
                items.append(Item(id, packed, len(view), flags))
                places.append(index)
        for index, answer in zip(places, log.append(items), strict=True):
            answers[index] = answer
        return answers

    def _undo(self, requests: Sequence[WriteRequest], job: asyncio.Future[list[Locator | Exception]]) -> None:
        """A write that nobody waits for any more is over: nobody will ever name its places."""
        if job.cancelled() or job.exception() is not None or self._log is None:
            return
        pairs = [(r.id, a) for r, a in zip(requests, job.result(), strict=True) if isinstance(a, Locator)]
        self._discard(pairs)

    # -- freeing ------------------------------------------------------------------------------------------------------

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Free extents: punch them out, and delete segments that hold nothing else."""
        self._opened()
        if self._read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only")
        job = self._discard(locators)
        if job is not None:
            await asyncio.wait({job}, timeout=self._timeout)

    def _discard(self, locators: Sequence[tuple[int, Locator]]) -> asyncio.Future[None] | None:
        log, _ = self._opened()
        was = self.status
        places = []
        for id, locator in locators:
            try:
                place = layout.unpack(id, locator)
            except CorruptData:
                # Names nothing that could be freed.
                continue
            if place.size:
                places.append(place)
        holes, dead = log.discard(places)
        self._tell(was)
        if not (dead or (holes and self._device.can_punch)):
            return None
        return self._in(self._readers, self._release_space, holes, dead)

    def _release_space(self, holes: dict[Segment, list[tuple[int, int]]], dead: list[Segment]) -> None:
        log, _ = self._opened()
        try:
            for segment in dead:
                log.delete(segment)
            for segment, ranges in holes.items():
                if not segment.gone:
                    log.punch(segment, ranges)
        except OSError:
            # Dead space that stays is found by compaction, and files left behind are deleted by the next open.
            return

    # -- compaction ---------------------------------------------------------------------------------------------------

    async def sparse_segments(self, max_live_share: float) -> list[int]:
        """Segments of which at most this share (0 to 1) of the disk space they take is alive, the sparsest first.

        Writing their live chunks again (and committing, and discarding the old places) frees the files. The segment
        being appended to is never among them.

        Raises:
            ControllerUnavailable: The disk does not answer.
        """
        log, _ = self._opened()
        return await self._mapped(self._in(self._readers, log.sparse, max_live_share), "look at its segments")

    async def extents(self, segment: int) -> list[tuple[int, Locator]]:
        """The (id, locator) pairs of all chunks ever written to a segment, from the table in the file itself.

        Alive is what the catalog's record still equals; entries that are damaged are left out, so a segment whose live
        chunks are not all found simply stays.

        Raises:
            Lost: There is no such segment.
            CorruptData: The file is not that segment of this store.
            ControllerUnavailable: The disk does not answer.
        """
        log, _ = self._opened()
        return await self._mapped(self._in(self._readers, log.extents, segment), f"scan segment {segment}")

    async def _mapped(self, job: asyncio.Future[T], what: str) -> T:
        try:
            return await asyncio.wait_for(asyncio.shield(job), self._timeout)
        except (ControllerError, ChunkError):
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
        self._opened()
        if self._next_sync is None or self._next_sync.done():
            # A round under way may have looked at the log before our writes: ours is the one after it.
            self._next_sync = asyncio.get_running_loop().create_task(self._sync_after(self._syncing))
            self._keep(self._next_sync)
        await asyncio.shield(self._next_sync)

    async def _sync_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        self._syncing, self._next_sync = self._next_sync, None
        log, _ = self._opened()
        try:
            if log.doubtful:
                damaged = await self._in(self._writer, log.mend)
                if damaged:
                    warnings.warn(
                        f"controller {self.name!r}: the disk lost chunks {damaged[:10]} while making them durable",
                        RuntimeWarning,
                        stacklevel=1,
                    )
            await self._in(self._readers, self._sync)
        except OSError as error:
            if isinstance(error, ControllerError):
                raise
            raise ControllerUnavailable(
                f"controller {self.name!r} cannot make {self._directory} durable: {error}"
            ) from error

    def _sync(self) -> None:
        log, _ = self._opened()
        log.sync()
        self._look_at_space()

    def checkpoint(self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]) -> dict[int, bytes]:
        """Live bytes and tail of the segments that the commit touches."""
        log, _ = self._opened()
        self._plan = log.plan_commit(
            (layout.unpack(id, locator) for id, locator in alive), (layout.unpack(id, locator) for id, locator in dead)
        )
        changes = {number: b"" if left is None else layout.pack_state(left) for number, left in self._plan.items()}
        if self._head is not None:
            changes[0] = self._head
        return changes

    def committed(self) -> None:
        """The commit of the last checkpoint has happened."""
        log, _ = self._opened()
        log.apply_commit(self._plan)
        self._plan = {}
        self._head = None

    # -- private ------------------------------------------------------------------------------------------------------

    def _opened(self) -> tuple[SegmentLog, Codec]:
        if self._log is None or self._codec is None:
            raise ControllerError(f"controller {self.name!r} is not open")
        return self._log, self._codec

    @property
    def _read_only(self) -> bool:
        return self._context is not None and self._context.read_only

    def _in(self, pool: ThreadPoolExecutor | None, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run `function` in a thread; `close` waits for it."""
        if pool is None:
            raise ControllerError(f"controller {self.name!r} is not open")
        future = asyncio.get_running_loop().run_in_executor(pool, function, *args)
        self._keep(future)
        return future

    def _keep(self, future: asyncio.Future[T]) -> None:
        self._tasks.add(future)  # type: ignore[arg-type]  # futures are invariant; only waited for
        future.add_done_callback(self._tasks.discard)

    def _look_at_space(self) -> None:
        try:
            self._available = self._device.available(self._directory)
        except OSError:
            self._available = None

    def _check_space(self) -> None:
        """On the loop, once in a while as long as the disk is full."""
        self._recheck = None
        if self._log is not None and not self._closing and self._log.disk_full:
            self._in(self._readers, self._look_at_space).add_done_callback(self._space_looked_at)

    def _space_looked_at(self, _: asyncio.Future[None]) -> None:
        if self._log is None or self._closing:
            return
        was = self.status
        self._log.space_returned(self._available)
        self._tell(was)
        if self._log.disk_full and self._recheck is None:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK_S, self._check_space)

    def _tell(self, was: ControllerStatus) -> None:
        if self.status is not was and self._context is not None:
            self._context.status_changed()


def _cipher(name: str, store: UUID, key: bytes) -> Cipher:
    try:
        from dstorage_controllers.disk.cipher import Cipher
    except ImportError as error:
        raise ControllerError(
            f"controller {name!r} needs the package cryptography to encrypt: pip install 'dstorage[encryption]'"
        ) from error
    return Cipher(store, key)


def _about(error: ChunkError, id: int, controller: str) -> ChunkError:
    error.id = error.id or id
    error.controller = error.controller or controller
    return error


def _runs(wanted: list[tuple[Segment, _Read]]) -> list[tuple[Segment, list[_Read]]]:
    """Reads in the order of the disk, neighbours together."""
    wanted.sort(key=lambda pair: (pair[1].place.segment, pair[1].place.first))
    runs: list[tuple[Segment, list[_Read]]] = []
    length = 0
    for segment, read in wanted:
        if runs and runs[-1][0] is segment and runs[-1][1][-1].place.end == read.place.first:
            run = runs[-1][1]
            if len(run) < RUN_CHUNKS and length + read.place.stored <= RUN_BYTES:
                run.append(read)
                length += read.place.stored
                continue
        runs.append((segment, [read]))
        length = read.place.stored
    return runs


_TYPES: dict[str, tuple[type, ...]] = {
    "path": (str, type(None)),
    "capacity": (int, type(None)),
    "rank": (int,),
    "segment_bytes": (int,),
    "compress": (int,),
    "key_file": (str, type(None)),
    "key_env": (str, type(None)),
    "punch": (bool,),
    "threads": (int,),
    "timeout": (int, float),
}
_RANGES: dict[str, tuple[float, float]] = {
    "capacity": (0, 2**63),
    "segment_bytes": (layout.MIN_SEGMENT_BYTES, layout.MAX_SEGMENT_BYTES),
    "compress": (0, 22),
    "threads": (1, 64),
    "timeout": (0.001, 86400),
}


def _check(name: str, settings: Settings) -> None:
    for key, value in settings.items():
        if key not in _TYPES:
            raise InvalidArgumentError(f"disk controller {name!r} knows no setting {key!r}; it has {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or (isinstance(value, bool) and key not in ("compress", "punch")):
            kinds = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise InvalidArgumentError(f"disk controller {name!r}: {key} must be {kinds}, not {value!r}")
        low, high = _RANGES.get(key, (float("-inf"), float("inf")))
        if isinstance(value, int | float) and not low <= value <= high:
            raise InvalidArgumentError(f"disk controller {name!r}: {key} must be {low:g} to {high:g}, not {value!r}")
    if settings.get("key_file") is not None and settings.get("key_env") is not None:
        raise InvalidArgumentError(f"disk controller {name!r}: give key_file or key_env, not both")


FRESH_BYTES = 128 * 2**10
"""From here on a buffer is taken without being zeroed first, which cost 10 to 15 % of a cached read (benchmarks/disk.py);
below it the call through ctypes costs more than the zeros."""

_fresh = None
if sys.implementation.name == "cpython":
    _fresh = ctypes.pythonapi.PyByteArray_FromStringAndSize
    _fresh.restype = ctypes.py_object
    _fresh.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def _new_buffer(size: int) -> bytearray:
    """A buffer to be filled completely or dropped; what it holds before is undefined."""
    if size < FRESH_BYTES or _fresh is None:
        return bytearray(size)
    buffer: bytearray = _fresh(None, size)
    return buffer
