"""The store: ids, handles and commits over a memory budget and a list of controllers.

`Store` is the one object a program opens. It owns the parts and every background task, and belongs to the event loop it was
opened on; `dstorage.blocking` is the same store for threads. Start reading at `Store.handle`, the hit, then
`Store.page_in`, the miss.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dstorage.catalog import MAX_NAME_BYTES, Catalog
from dstorage.commit import Committer
from dstorage.controller import Buffer, Controller, ControllerStatus, OpenContext, Space
from dstorage.errors import (
    ClosedError,
    ControllerError,
    CorruptData,
    DStorageError,
    InvalidArgumentError,
    Lost,
    MemoryUnavailable,
    ReadOnlyError,
    TemporarilyUnavailable,
    TooManyHandles,
    UsageError,
)
from dstorage.events import Events, EventStream
from dstorage.handle import Callback, Handle, HandleAlias, Status
from dstorage.index import Index
from dstorage.lock import StoreLock
from dstorage.outage import Outages, Patient
from dstorage.paging.memory import Memory, RoomRequest
from dstorage.paging.page import Page
from dstorage.paging.pagein import PageIn
from dstorage.paging.policy import Policy
from dstorage.paging.pressure import Level, Pressure, PressureMonitor
from dstorage.paging.writeback import WriteBack
from dstorage.record import MAX_CHUNK_BYTES, MAX_ID, Locator, Record
from dstorage.registry import Entry, Registry, load_plugin
from dstorage.tiering import Mover

RESERVED_IDS = 2**20
"""Ids promised to the catalog at a time: a crash skips what is left of them, none is ever used again."""
INLINE_PAGE_INS = 64
"""Page-ins in a row answered without suspension before other callbacks of the loop get a turn."""
PREFETCH_SHARE = 0.25
"""Of the budget: as much may be on its way in because of hints."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a store was opened; see `dstorage.open`, whose keyword arguments these are."""

    budget: int
    policy: Policy
    dirty_share: float = 0.5
    commit_interval: float | None = 5.0
    max_handles: int | None = None
    max_cached: int | None = None
    read_only: bool = False
    pressure: PressureMonitor | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of a store's counters; all sizes in bytes, all counts since it was opened.

    Attributes:
        budget: What the program allowed.
        limit: What is allowed now (less than `budget` while the machine is short of memory).
        used: Chunk contents in memory: resident, in flight and stray.
        dirty: Of these, not yet on a controller.
        stray: Of these, held only by views that the program kept too long.
        handles: Handles in the table.
        chunks: Committed chunks.
        page_ins: Chunks read from controllers.
        bytes_read: Bytes of these.
        write_backs: Chunks written to controllers.
        bytes_written: Bytes of these.
        evictions: Chunks that left memory.
        commits: Commits made.
        unavailable: Handles that are temporarily unavailable now.
    """

    budget: int
    limit: int
    used: int
    dirty: int
    stray: int
    handles: int
    chunks: int
    page_ins: int
    bytes_read: int
    write_backs: int
    bytes_written: int
    evictions: int
    commits: int
    unavailable: int


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """One line of the list of controllers, see `Store.controllers`."""

    index: int
    name: str
    kind: str
    rank: int
    status: ControllerStatus
    volatile: bool
    space: Space
    error: str | None


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """Where a chunk is, see `Store.info`.

    Attributes:
        id: The chunk.
        size: Bytes.
        controller: Name of the controller that keeps it, None if it is only in memory yet.
        last_access: Nanoseconds since the epoch, as of the last commit that noted it.
        resident: In memory.
        dirty: Newer in memory than on the controller.
        refs: References held.
    """

    id: int
    size: int
    controller: str | None
    last_access: int
    resident: bool
    dirty: bool
    refs: int


class Store:
    """An open store; get it from `dstorage.open`.

    Loop affinity: all methods are for the loop the store was opened on. Methods without ``async`` never wait.
    """

    def __init__(self, path: Path, lock: StoreLock | None, catalog: Catalog, options: Options) -> None:
        self.path = path
        self.options = options
        self._loop = asyncio.get_running_loop()
        self._lock = lock
        self._catalog = catalog
        self._closed: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handles: dict[int, Handle] = {}
        self._dropped: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()
        self._inline = 0
        self._prefetching = 0
        self._budget = options.budget
        self._next_id = self._reserved_to = catalog.next_id()
        self._reserving: asyncio.Task[None] | None = None
        self._events = Events()
        self._index = Index(catalog)
        self._registry = Registry(catalog, read_only=options.read_only)
        self._outages = Outages(retry=self._start, drop=self._drop)
        self._memory = Memory(
            options.budget,
            dirty_share=options.dirty_share,
            policy=options.policy,
            max_cached=options.max_cached,
            on_evicted=self._on_evicted,
            on_laundry=lambda: self._writeback.wake(),
        )
        self._writeback = WriteBack(
            self._memory,
            self._index,
            self._registry,
            spawn=self._spawn,
            discard=lambda id, record: self._discard(record.controller, [(id, record.locator)]),
            on_written=self._on_written,
        )
        self._pagein = PageIn(
            self._memory,
            self._index,
            self._registry,
            spawn=self._spawn,
            on_resolved=self._on_resolved,
            on_failed=self._on_failed,
            refresh=self._refresh,
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dstorage-catalog")
        self._committer = Committer(
            self._index,
            self._writeback,
            self._registry,
            writer=self._writer,
            spawn=self._spawn,
            discard=self._discard,
        )
        self._mover = Mover(self._memory, self._index, self._registry, discard=self._discard, events=self._events)
        _open_stores.add(self)

    # -- handles ------------------------------------------------------------------------------------------------------

    def handle(self, id: int) -> Handle:
        """The one handle for chunk `id`, with one more reference: to be released, or used with ``with``.

        Never fails for an unknown id: resolving the handle then says LOST.

        Raises:
            InvalidArgumentError: `id` is not in 1 .. 2**64-1.
            TooManyHandles: All of `max_handles` are referenced.
            ClosedError: The store is closed.
        """
        try:
            handle = self._handles[id]
        except KeyError:
            return self._new_handle(id)
        handle.refs += 1
        handle.hot = True
        return handle

    def unbound_handle(self) -> Handle:
        """A handle that names no chunk yet (UNINITIALISED), with one reference; see `Handle.bind`."""
        self._check_open()
        handle = Handle(self)
        handle.refs = 1
        return handle

    def _new_handle(self, id: int) -> Handle:
        self._check_open()
        if not isinstance(id, int) or not 0 < id <= MAX_ID:
            raise InvalidArgumentError(f"{id!r} is no chunk id: ids are integers from 1 to 2**64-1")
        # Somebody may still hold the object of a handle that left the table: it is the one.
        handle = self._dropped.pop(id, None) or Handle(self, id)
        self._enter(handle)
        handle.refs = 1
        return handle

    def _enter(self, handle: Handle) -> None:
        limit = self.options.max_handles
        if limit is not None and len(self._handles) >= limit:
            self._shrink_table(limit - 1)
        self._handles[handle.id] = handle

    def _shrink_table(self, target: int) -> None:
        while len(self._handles) > target:
            if not self._memory.evict_one("limit"):
                idle = next((h for h in self._handles.values() if not h.refs and h.place == 1 and not h.waiters), None)
                if idle is None:
                    raise TooManyHandles(
                        f"{len(self._handles)} handles are in use, all referenced or dirty: release some, commit, or raise "
                        f"max_handles ({self.options.max_handles})"
                    )
                self._drop(idle)

    def _drop(self, handle: Handle) -> None:
        """Take a handle with neither references nor contents out of the table."""
        del self._handles[handle.id]
        self._outages.end(handle)
        if handle.status is Status.TEMPORARILY_UNAVAILABLE:
            handle.to(Status.NOT_RESOLVED)
            handle.error = None
        if handle.status is Status.NOT_RESOLVED:
            self._dropped[handle.id] = handle

    def revive(self, handle: Handle) -> None:
        """Add the first reference to a handle that has none (for `Handle.acquire`)."""
        self._check_open()
        if handle.status is Status.UNINITIALISED:
            raise UsageError("this handle names no chunk yet: bind() it to an id")
        known = self._handles.get(handle.id)
        if known is None:
            self._dropped.pop(handle.id, None)
            self._enter(handle)
        elif known is not handle:
            self._alias(handle, known)
            known.acquire()
            return
        else:
            handle.hot = True
        handle.refs = 1

    def last_release(self, handle: Handle) -> None:
        """The last reference of a handle outside of the eviction order is gone (for `Handle.release`)."""
        if handle.buffer is not None:
            self._memory.released(handle)
        elif handle.status is Status.NOT_RESOLVED or handle.status is Status.LOST or handle.status is Status.DELETED:
            if self._handles.get(handle.id) is handle:
                self._drop(handle)
        # WAITING: its answer decides. TEMPORARILY_UNAVAILABLE: remembered until the next try.

    def bind(self, handle: Handle, id: int) -> Handle:
        """Let `handle` name `id` (for `Handle.bind`)."""
        if handle.status is not Status.UNINITIALISED:
            raise UsageError(f"handle {handle.id} is bound already")
        if not isinstance(id, int) or not 0 < id <= MAX_ID:
            raise InvalidArgumentError(f"{id!r} is no chunk id: ids are integers from 1 to 2**64-1")
        self._check_open()
        known = self._handles.get(id) or self._dropped.get(id)
        if known is None:
            handle.id = id
            handle.to(Status.NOT_RESOLVED)
            if handle.refs:
                self._enter(handle)
            else:
                self._dropped[id] = handle
            return handle
        refs = handle.refs
        self._alias(handle, known)
        for _ in range(refs):
            known.acquire()
        return known

    @staticmethod
    def _alias(handle: Handle, target: Handle) -> None:
        handle.waiters = target  # type: ignore[assignment]  # the slot of an alias holds what it stands for
        handle.__class__ = HandleAlias

    # -- page-in ------------------------------------------------------------------------------------------------------

    def page_in(self, handle: Handle) -> Generator[Any, None, None]:
        """Bring in the contents of `handle`, waiting if need be (for ``await handle``); errors are left in the handle."""
        status = handle.status
        if status is Status.NOT_RESOLVED or (status is Status.TEMPORARILY_UNAVAILABLE and self._outages.due(handle)):
            self._start(handle)
        if handle.buffer is not None:
            # Answered at once; but a task that pages in for ever must not starve the others.
            self._inline += 1
            if self._inline >= INLINE_PAGE_INS:
                self._inline = 0
                handle.refs += 1
                try:
                    yield
                finally:
                    handle.release()
        elif handle.status is Status.WAITING:
            self._inline = 0
            future = self._loop.create_future()

            def wake(_: Handle) -> None:
                if not future.done():
                    future.set_result(None)

            self._wait_for(handle, wake)
            handle.refs += 1
            try:
                yield from future
            finally:
                if handle.waiters is not None and wake in handle.waiters:
                    handle.waiters.remove(wake)
                handle.release()

    async def get_waiting(self, handle: Handle, wait: float) -> memoryview:
        """``await handle`` with patience (for `Handle.get`)."""
        future = self._loop.create_future()

        def wake(_: Handle) -> None:
            if not future.done():
                future.set_result(None)

        patient = Patient(self._loop.time() + wait, wake)
        handle.acquire()
        try:
            self._resolve(handle, patient)
            await future
            buffer = handle.buffer
            if buffer is None:
                raise handle.failure()
            return memoryview(buffer)
        finally:
            self._outages.leave(handle, patient)
            handle.release()

    def resolve(self, handle: Handle, callback: Callback | None, wait: float | None) -> None:
        """Ask for the contents (for `Handle.resolve`)."""
        self._check_open()
        if callback is None:
            tell: Callable[[Handle], object] = _nobody
        else:

            def tell(handle: Handle) -> None:
                handle.refs += 1
                self._loop.call_soon(self._call, callback, handle)

        if wait is None:
            if handle.status is Status.NOT_RESOLVED or (
                handle.status is Status.TEMPORARILY_UNAVAILABLE and self._outages.due(handle)
            ):
                self._start(handle)
            if handle.status is Status.WAITING:
                self._wait_for(handle, tell)
            elif handle.status is Status.UNINITIALISED:
                raise handle.failure()
            else:
                tell(handle)
        else:
            self._resolve(handle, Patient(self._loop.time() + wait, tell))

    def _resolve(self, handle: Handle, patient: Patient) -> None:
        """Tell `patient` when the handle is resolved or final, or temporarily unavailable at the deadline."""

        def answered(handle: Handle) -> None:
            if handle.status is Status.TEMPORARILY_UNAVAILABLE and self._loop.time() < patient.deadline:
                self._outages.wait(handle, patient)
            else:
                patient.tell(handle)

        if handle.status is Status.NOT_RESOLVED or (
            handle.status is Status.TEMPORARILY_UNAVAILABLE and self._outages.due(handle)
        ):
            self._start(handle)
        if handle.status is Status.WAITING:
            self._wait_for(handle, answered)
        else:
            answered(handle)

    @staticmethod
    def _call(callback: Callback, handle: Handle) -> None:
        try:
            callback(handle)
        finally:
            handle.release()

    @staticmethod
    def _wait_for(handle: Handle, tell: Callable[[Handle], object]) -> None:
        if handle.waiters is None:
            handle.waiters = [tell]
        else:
            handle.waiters.append(tell)

    def _start(self, handle: Handle) -> None:
        """Begin a page-in; those who waited through an outage wait for its answer."""
        self._check_open()
        handle.to(Status.WAITING)
        self._pagein.begin(handle)

    def _on_resolved(self, page: Page) -> None:
        assert isinstance(page, Handle)
        page.to(Status.RESOLVED)
        page.error = None
        if self._events.streams:
            self._events.emit("resolved", page.id)
        self._settle(page)

    def _on_failed(self, page: Page, error: DStorageError) -> None:
        assert isinstance(page, Handle)
        if isinstance(error, CorruptData):
            lost = Lost(str(error), id=page.id, controller=error.controller)
            lost.__cause__ = error
            error = lost
        if isinstance(error, Lost):
            page.to(Status.LOST)
            page.error = error
            if self._events.streams:
                self._events.emit("lost", page.id, error.reason)
            self._settle(page)
            if not page.refs and self._handles.get(page.id) is page:
                self._drop(page)
            return
        page.to(Status.TEMPORARILY_UNAVAILABLE)
        page.error = error
        if isinstance(error, TemporarilyUnavailable):
            cause = error.__cause__
            error.retry_at = self._outages.note(page, error.controller, getattr(cause, "retry_after", None))
        else:
            # Memory is short: that may be over with the very next release, so ask again whenever somebody does.
            error = page.error = self._memory_error(str(error))
            self._outages.note(page, None, None if self._closed else 0.01)
        if self._events.streams:
            self._events.emit("unavailable", page.id, str(error))
        waiters, page.waiters = page.waiters, None
        for tell in waiters or ():
            tell(page)

    def _settle(self, handle: Handle) -> None:
        """Tell everybody who waited: it is resolved or final."""
        patients = self._outages.end(handle) if len(self._outages) else ()
        waiters = handle.waiters
        if waiters is not None:
            handle.waiters = None
            for tell in waiters:
                tell(handle)
        for patient in patients:
            patient.tell(handle)

    def _on_evicted(self, page: Page, reason: str) -> None:
        assert isinstance(page, Handle)
        page.to(Status.NOT_RESOLVED)
        if self._events.streams:
            self._events.emit("evicted", page.id, reason)
        if not page.refs and self._handles.get(page.id) is page:
            self._drop(page)

    def _on_written(self, page: Page, controller: str) -> None:
        if self._events.streams:
            self._events.emit("written", page.id, controller)

    # -- many at once -------------------------------------------------------------------------------------------------

    def prefetch(self, ids: Iterable[int]) -> None:
        """A hint that these chunks will be wanted: brings in those that fit in a share of the budget, in order.

        Never raises for an id, does nothing while memory is short.
        """
        self._check_open()
        room = int(self._memory.limit * PREFETCH_SHARE)
        for id in ids:
            if self._memory.critical or self._memory.wanted or self._prefetching >= room:
                return
            if not isinstance(id, int) or not 0 < id <= MAX_ID:
                continue
            known = self._handles.get(id)
            if known is not None and known.status is not Status.NOT_RESOLVED:
                continue
            record = self._index.get(id)
            if record is None:
                continue
            size = record.locator.size
            try:
                handle = self.handle(id)
            except TooManyHandles:
                return
            self._prefetching += size

            def arrived(_: Handle, size: int = size) -> None:
                self._prefetching -= size

            self._start(handle)
            if handle.status is Status.WAITING:
                self._wait_for(handle, arrived)
            else:
                arrived(handle)
            handle.release()

    async def resolve_each(self, ids: Iterable[int], *, wait: float | None = None) -> AsyncIterator[Handle]:
        """Resolve many chunks and give their handles as the answers come.

        Each handle is referenced until the iterator is asked for the next one; its status says how it went. Only as many
        chunks are asked for at a time as half of the budget holds, so a list may be longer than memory.

        Args:
            ids: The chunks; taken one by one, as there is room.
            wait: See `Handle.resolve`.
        """
        arrived: asyncio.Queue[Handle] = asyncio.Queue()
        waiting = iter(ids)
        asked: dict[Handle, int] = {}
        in_flight = 0
        exhausted = False
        try:
            while True:
                while not exhausted and (not asked or in_flight < self._memory.limit // 2) and len(asked) < 1024:
                    id = next(waiting, None)
                    if id is None:
                        exhausted = True
                        break
                    handle = self.handle(id)
                    if handle in asked:
                        handle.release()
                        continue
                    record = self._index.get(id)
                    asked[handle] = record.locator.size if record is not None else handle.size
                    in_flight += asked[handle]
                    handle.resolve(arrived.put_nowait, wait=wait)
                if not asked:
                    return
                handle = await arrived.get()
                try:
                    yield handle
                finally:
                    in_flight -= asked.pop(handle)
                    handle.release()
        finally:
            for handle in asked:
                handle.release()

    async def resolve_all(self, ids: Iterable[int], *, wait: float | None = None) -> list[Handle]:
        """Resolve many chunks together; all of them must fit in the budget.

        Returns:
            A handle per id, in order, each with a reference that is the caller's to release.

        Raises:
            TemporarilyUnavailable, Lost, Deleted, MemoryUnavailable: The first that failed; no reference is left.
        """
        handles = [self.handle(id) for id in ids]
        done = self._loop.create_future()
        left = len(handles)

        def arrived(handle: Handle) -> None:
            nonlocal left
            left -= 1
            if not done.done() and (left == 0 or handle.status is not Status.RESOLVED):
                done.set_result(None)

        try:
            for handle in handles:
                handle.resolve(arrived, wait=wait)
            if handles:
                await done
            for handle in handles:
                if handle.buffer is None:
                    raise handle.failure()
        except BaseException:
            for handle in handles:
                handle.release()
            raise
        return handles

    async def wait(self, ids: Sequence[int], n: int | None = None, timeout: float | None = None) -> list[Handle]:
        """Wait until `n` of the chunks are resolved, or `timeout` seconds have passed.

        Args:
            ids: The chunks.
            n: How many are enough; all by default.
            timeout: Seconds, or None for no limit.

        Returns:
            Handles of the first at most `n` that were resolved, in the order they came, each with a reference that is
            the caller's to release. The others go on arriving in memory as room allows.

        Raises:
            InvalidArgumentError: `n` is not in 0 .. len(ids).
        """
        enough = len(ids) if n is None else n
        if not 0 <= enough <= len(ids):
            raise InvalidArgumentError(f"n={n}: wait for 0 to {len(ids)} of {len(ids)} chunks")
        handles = [self.handle(id) for id in ids]
        came: list[Handle] = []
        done = self._loop.create_future()
        left = len(handles)

        def arrived(handle: Handle) -> None:
            nonlocal left
            left -= 1
            if handle.status is Status.RESOLVED and len(came) < enough and not done.done():
                handle.refs += 1
                came.append(handle)
            if not done.done() and (len(came) >= enough or left == 0):
                done.set_result(None)

        try:
            if enough:
                for handle in handles:
                    handle.resolve(arrived, wait=timeout)
                async with asyncio.timeout(timeout):
                    await done
        except TimeoutError:
            pass
        except BaseException:
            for handle in came:
                handle.release()
            raise
        finally:
            if not done.done():
                done.cancel()
            for handle in handles:
                handle.release()
        return came

    # -- changing -----------------------------------------------------------------------------------------------------

    async def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Handle:
        """Make a new chunk.

        A program that creates faster than controllers write is slowed here, once `dirty_share` of the budget is dirty.

        Args:
            data: Its contents (copied), or its size in bytes for zeros.
            durable: False for scratch: may live on volatile controllers, is lost by a crash.
            controller: Name of the controller that is to keep it; by default the fastest with room.
            wait: Seconds to wait while references hold all of the budget.

        Returns:
            Its handle, RESOLVED, with one reference that is the caller's to release.

        Raises:
            MemoryUnavailable: No room.
            InvalidArgumentError: Too large, or no such controller.
            ReadOnlyError, ClosedError: The store takes no changes.
        """
        size, index = self._check_create(data, durable, controller)
        if not self._memory.reserve(size, dirty=True):
            await self.reserve(size, 0, wait)
        return self._create(data, size, durable, index)

    def create_nowait(self, data: Buffer | int, *, durable: bool = True, controller: str | None = None) -> Handle:
        """`create` without waiting.

        Raises:
            MemoryUnavailable: No room at this moment, or too much of the budget is dirty.
        """
        size, index = self._check_create(data, durable, controller)
        self.reserve_nowait(size, 0)
        return self._create(data, size, durable, index)

    def _check_create(self, data: Buffer | int, durable: bool, controller: str | None) -> tuple[int, int | None]:
        self.check_writable()
        size = data if isinstance(data, int) else memoryview(data).nbytes
        if not 0 <= size <= MAX_CHUNK_BYTES:
            raise InvalidArgumentError(f"a chunk of {size} bytes: chunks have 0 to {MAX_CHUNK_BYTES} bytes; split it")
        if controller is None:
            return size, None
        entry = self._entry(controller)
        if durable and entry.controller is not None and entry.controller.volatile:
            raise InvalidArgumentError(f"controller {controller!r} is volatile: it takes only chunks with durable=False")
        return size, entry.index

    def _create(self, data: Buffer | int, size: int, durable: bool, controller: int | None) -> Handle:
        try:
            handle = Handle(self)
            handle.id = self._take_id()
            self._enter(handle)
        except BaseException:
            self._memory.give_back(size, dirty=True)
            raise
        handle.refs = 1
        handle.to(Status.RESOLVED)
        if not durable:
            self._writeback.scratch.add(handle.id)
        if controller is not None:
            self._writeback.pinned[handle.id] = controller
        self._memory.insert(handle, bytes(data) if isinstance(data, int) else _copy(data), dirty=True)
        self._writeback.dirtied()
        if self._events.streams:
            self._events.emit("created", handle.id)
        return handle

    def _take_id(self) -> int:
        id = self._next_id
        if id >= self._reserved_to:
            # Only when a million ids were taken before the writer thread could reserve more.
            self._catalog.reserve_ids(id + RESERVED_IDS)
            self._reserved_to = id + RESERVED_IDS
        elif self._reserved_to - id == RESERVED_IDS // 2 and self._reserving is None:
            self._reserving = self._spawn(self._reserve_ids())
        self._next_id = id + 1
        return id

    async def _reserve_ids(self) -> None:
        target = self._reserved_to + RESERVED_IDS
        await self._committer.exclusively(lambda: self._catalog.reserve_ids(target))
        self._reserved_to = max(target, self._reserved_to)
        self._reserving = None

    async def replace(self, handle: Handle, data: Buffer, wait: float | None) -> None:
        """Give a chunk other contents (for `Handle.replace`)."""
        size = self._check_replace(handle, data)
        handle.acquire()
        try:
            if not self._memory.reserve(size, dirty=True):
                await self.reserve(size, handle.id, wait)
            self.publish(handle, _copy(data))
        finally:
            handle.release()

    def replace_nowait(self, handle: Handle, data: Buffer) -> None:
        """`replace` without waiting (for `Handle.replace_nowait`)."""
        size = self._check_replace(handle, data)
        self.reserve_nowait(size, handle.id)
        self.publish(handle, _copy(data))

    def _check_replace(self, handle: Handle, data: Buffer) -> int:
        self.check_writable()
        size = memoryview(data).nbytes
        if size > MAX_CHUNK_BYTES:
            raise InvalidArgumentError(f"{size} bytes for chunk {handle.id}: chunks have at most {MAX_CHUNK_BYTES}; split")
        self._check_exists(handle)
        return size

    def _check_exists(self, handle: Handle) -> None:
        if handle.status in (Status.DELETED, Status.LOST, Status.UNINITIALISED):
            raise handle.failure()
        if handle.buffer is None and self._index.get(handle.id) is None:
            raise Lost("unknown id", id=handle.id)

    def publish(self, handle: Handle, buffer: bytes | memoryview) -> None:
        """Make `buffer`, reserved as dirty, the contents of `handle`."""
        if handle.status is Status.DELETED or handle.status is Status.LOST:
            self.drop_reserved(len(buffer))
            raise handle.failure()
        if handle.buffer is not None:
            self._memory.replace(handle, buffer)
        else:
            if self._handles.get(handle.id) is not handle:
                self._enter(handle)
            self._pagein.abandon(handle)
            self._memory.insert(handle, buffer, dirty=True)
            handle.to(Status.RESOLVED)
            handle.error = None
            self._settle(handle)
        self._writeback.dirtied()

    def drop_reserved(self, size: int) -> None:
        """Give back what was reserved for contents that will not come."""
        self._memory.give_back(size, dirty=True)

    def delete(self, handle: Handle) -> None:
        """Delete a chunk (for `Handle.delete`)."""
        self.check_writable()
        if handle.status is Status.DELETED:
            return
        if handle.status is not Status.LOST or self._index.get(handle.id) is None:
            self._check_exists(handle)
        self._pagein.abandon(handle)
        if handle.buffer is not None:
            self._memory.forget(handle)
        free = self._index.put(handle.id, None)
        if free is not None:
            self._discard(free.controller, [(handle.id, free.locator)])
        self._writeback.scratch.discard(handle.id)
        self._writeback.pinned.pop(handle.id, None)
        handle.to(Status.DELETED)
        if self._events.streams:
            self._events.emit("deleted", handle.id)
        self._settle(handle)
        if not handle.refs and self._handles.get(handle.id) is handle:
            self._drop(handle)

    async def flush(self, handle: Handle) -> None:
        """Have the contents written (for `Handle.flush`)."""
        self.check_writable()
        if not handle.dirty or handle.buffer is None:
            return
        written = self._loop.create_future()

        def done(error: Exception | None) -> None:
            if not written.done():
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)

        self._writeback.submit(handle, handle.buffer, done)
        await written

    # -- room ---------------------------------------------------------------------------------------------------------

    async def reserve(self, size: int, id: int, wait: float | None) -> None:
        """Reserve room for dirty contents, waiting for write-back, and up to `wait` seconds for references.

        Raises:
            MemoryUnavailable: There is none.
        """
        memory = self._memory
        if memory.reserve(size, dirty=True):
            return
        self._check_fits(size, id)
        deadline = None if wait is None else self._loop.time() + wait
        granted = self._loop.create_future()

        def grant() -> None:
            if granted.done():
                memory.give_back(size, dirty=True)
            else:
                granted.set_result(None)

        request = RoomRequest(size, True, grant)
        memory.wait(request)
        self._writeback.wake()
        try:
            while not granted.done():
                if not memory.hopeful or self._writeback.stalled:
                    # Nothing is being written: only a release can help.
                    memory.sweep()
                    memory.poke()
                    if not granted.done() and (deadline is None or self._loop.time() >= deadline):
                        raise self._memory_error(self._no_room(size, id))
                await asyncio.wait([granted], timeout=0.05)
        except BaseException:
            if granted.done() and not granted.cancelled():
                memory.give_back(size, dirty=True)
            else:
                granted.cancel()
                memory.abandon(request)
            raise

    def reserve_nowait(self, size: int, id: int) -> None:
        """Reserve room for dirty contents now.

        Raises:
            MemoryUnavailable: There is none.
        """
        if not self._memory.reserve(size, dirty=True):
            self._check_fits(size, id)
            raise self._memory_error(self._no_room(size, id))

    def _check_fits(self, size: int, id: int) -> None:
        if size > self._memory.limit:
            raise MemoryUnavailable(
                f"{size} bytes for {f'chunk {id}' if id else 'a new chunk'} are more than the whole budget of "
                f"{self._memory.limit}: raise the budget or split the data"
            )

    def _no_room(self, size: int, id: int) -> str:
        return f"no room for {size} bytes ({f'chunk {id}' if id else 'a new chunk'})"

    def _memory_error(self, what: str) -> MemoryUnavailable:
        """A MemoryUnavailable that says who holds the most."""
        memory = self._memory
        held = [handle for handle in self._handles.values() if handle.refs and handle.buffer is not None]
        most = ", ".join(f"{h.id} ({h.size} B, {h.refs} refs)" for h in heapq.nlargest(5, held, key=lambda h: h.size))
        return MemoryUnavailable(
            f"{what}: {memory.used} of {memory.limit} bytes in use, {memory.dirty_bytes} dirty (at most "
            f"{memory.dirty_limit}), {memory.stray_bytes} held by stray views; {len(held)} chunks are referenced"
            f"{f', the largest: {most}' if most else ''}. Release handles, pass wait=seconds, or raise the budget"
        )

    def set_budget(self, budget: int) -> None:
        """Change the budget (bytes) while running; a smaller one evicts down to what references hold."""
        self._check_open()
        if budget <= 0:
            raise InvalidArgumentError(f"a budget of {budget} bytes: give at least 1")
        self._budget = budget
        self._memory.set_limit(budget, critical=self._memory.critical)

    def on_pressure(self, pressure: Pressure) -> None:
        """The machine's memory has changed: follow (called by the pressure monitor)."""
        limit = min(self._budget, pressure.allowed_bytes)
        self._memory.set_limit(limit, critical=pressure.level is Level.CRITICAL)

    # -- commits ------------------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Return when everything done up to this call is durable, as one.

        After a crash or power failure the store is as it was at its last commit, whole. Cancelling the caller leaves the
        commit going on.

        Raises:
            StoreFull, TemporarilyUnavailable: It could not be made; the last commit stands, nothing in memory is lost.
        """
        self.check_writable()
        await self._committer.commit()
        self._memory.poke()
        if self._events.streams:
            self._events.emit("commit")

    async def _commit_now_and_then(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            if not (self._index.changed or self._memory.dirty):
                continue
            try:
                await self.commit()
            except DStorageError as error:
                self._report("the background commit failed; it is tried again", error)

    # -- names --------------------------------------------------------------------------------------------------------

    def set_name(self, name: bytes, id: int | None) -> None:
        """Let `name` (1 to 511 bytes) stand for `id` from the next commit on, or for nothing any more (None)."""
        self.check_writable()
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise InvalidArgumentError(f"name {name[:40]!r} has {len(name)} bytes: give 1 to {MAX_NAME_BYTES}")
        self._index.names[name] = id

    def get_name(self, name: bytes) -> int | None:
        """The id that `name` stands for, or None."""
        self._check_open()
        return self._index.get_name(name) if 0 < len(name) <= MAX_NAME_BYTES else None

    def names(self, prefix: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Names that start with `prefix`, in byte order, with their ids."""
        self._check_open()
        return self._index.iter_names(prefix)

    # -- controllers --------------------------------------------------------------------------------------------------

    async def register(self, controller: Controller) -> int:
        """Load a controller: a new one gets the next index; a known name keeps its index, and the former instance is
        closed. Chunks that waited for it are tried at once.

        Returns:
            Its index in the list.

        Raises:
            InvalidArgumentError: The name is known as another kind, or declared removed.
            ControllerError: It could not be opened; the list knows it, its chunks stay unavailable.
        """
        self._check_open()
        entry: Entry | None = None

        def enlist() -> None:
            nonlocal entry
            entry = self._registry.enlist(controller)

        await self._committer.exclusively(enlist)
        assert entry is not None
        await self._load(entry, controller)
        return entry.index

    async def _load(self, entry: Entry, controller: Controller) -> None:
        former, entry.controller = entry.controller, None
        self._registry.reorder()
        if former is not None:
            # What it was asked is answered, or fails as unavailable and is asked again.
            await former.close()
        context = OpenContext(
            store_uuid=self._catalog.uuid,
            index=entry.index,
            directory=self.path / entry.name,
            state=self._catalog.state(entry.index),
            read_only=self.options.read_only,
            status_changed=lambda: self._controller_changed(entry),
        )
        try:
            await controller.open(context)
        except Exception as error:
            await controller.close()
            entry.error = error
            if isinstance(error, DStorageError):
                raise
            raise ControllerError(f"controller {entry.name!r} cannot be opened: {error}") from error
        entry.controller = controller
        entry.error = None
        self._registry.reorder()
        self._controller_changed(entry)

    def _controller_changed(self, entry: Entry) -> None:
        if self._events.streams:
            self._events.emit("controller", 0, f"{entry.name}: {entry.status.value}")
        if entry.status in (ControllerStatus.OK, ControllerStatus.FULL, ControllerStatus.REMOVED):
            self._outages.returned(entry.name)
        if entry.status is ControllerStatus.OK:
            self._writeback.resume()

    async def unload(self, name: str) -> None:
        """Close a controller; its chunks are temporarily unavailable until `register` brings one of that name."""
        entry = self._entry(name)
        controller, entry.controller = entry.controller, None
        self._registry.reorder()
        if controller is not None:
            await controller.close()
        self._controller_changed(entry)

    async def declare_removed(self, name: str) -> None:
        """Declare, for ever, that a controller is gone: its chunks are lost.

        To save them first, see `migrate`.
        """
        self.check_writable()
        entry = self._entry(name)
        await self.unload(name)
        await self._committer.exclusively(lambda: self._registry.declare_removed(entry))
        self._controller_changed(entry)

    def controllers(self) -> list[ControllerInfo]:
        """The list of controllers, in order of index."""
        self._check_open()
        return [
            ControllerInfo(
                entry.index,
                entry.name,
                entry.kind,
                entry.rank,
                entry.status,
                entry.controller.volatile if entry.controller else False,
                entry.controller.space() if entry.controller else Space(None, 0),
                str(entry.error) if entry.error else None,
            )
            for entry in sorted(self._registry, key=lambda entry: entry.index)
        ]

    def controller(self, name: str) -> Controller:
        """The loaded instance called `name`.

        Raises:
            InvalidArgumentError: No such controller, or it is not loaded.
        """
        controller = self._entry(name).controller
        if controller is None:
            raise InvalidArgumentError(f"controller {name!r} is not loaded")
        return controller

    async def migrate(self, ids: Iterable[int], *, to: str) -> int:
        """Move chunks to controller `to`; their ids stay, readers and writers are not disturbed.

        Returns:
            How many were moved (those that are there already, or only in memory, are not counted).

        Raises:
            StoreFull: The target has no room.
            TemporarilyUnavailable: Source or target cannot be reached now; what was moved stays moved.
            Lost: A chunk does not exist or is damaged.
        """
        self.check_writable()
        return await self._mover.move(ids, self._entry(to))

    def _entry(self, name: str) -> Entry:
        entry = self._registry.by_name(name)
        if entry is None:
            known = ", ".join(repr(e.name) for e in self._registry) or "none"
            raise InvalidArgumentError(f"no controller {name!r} in this store (there are: {known})")
        return entry

    def _discard(self, controller: int, places: list[tuple[int, Locator]]) -> None:
        entry = self._registry[controller]
        if entry is not None and entry.controller is not None and not self._closed:
            self._spawn(entry.controller.discard(places))

    # -- looking ------------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters now."""
        memory = self._memory
        memory.sweep()
        return Stats(
            budget=self._budget,
            limit=memory.limit,
            used=memory.used,
            dirty=memory.dirty_bytes,
            stray=memory.stray_bytes,
            handles=len(self._handles),
            chunks=self._catalog.count(),
            page_ins=self._pagein.chunks_read,
            bytes_read=self._pagein.bytes_read,
            write_backs=self._writeback.chunks_written,
            bytes_written=self._writeback.bytes_written,
            evictions=memory.evictions,
            commits=self._committer.commits,
            unavailable=len(self._outages),
        )

    def info(self, id: int) -> ChunkInfo | None:
        """Where chunk `id` is, or None if there is no such chunk."""
        self._check_open()
        handle = self._handles.get(id)
        record = self._index.get(id) if 0 < id <= MAX_ID else None
        resident = handle is not None and handle.buffer is not None
        if record is None and not resident:
            return None
        entry = self._registry[record.controller] if record is not None else None
        return ChunkInfo(
            id=id,
            size=handle.size if handle is not None and resident else record.locator.size if record is not None else 0,
            controller=entry.name if entry is not None else None,
            last_access=record.last_access if record is not None else 0,
            resident=resident,
            dirty=handle is not None and handle.dirty,
            refs=handle.refs if handle is not None else 0,
        )

    def ids(self) -> Iterator[int]:
        """Ids of all chunks that have been written, ascending; those only in memory yet come with the next commit."""
        self._check_open()
        return self._index.ids()

    def record(self, id: int) -> Record | None:
        """The current catalog record of a chunk, for tools."""
        self._check_open()
        return self._index.get(id)

    def events(self, *, limit: int = 10000) -> EventStream:
        """A stream of what happens from now on; at most `limit` unread events are kept."""
        self._check_open()
        return self._events.subscribe(limit)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self, controllers: Sequence[Controller] | None) -> None:
        """Load the controllers and start the background tasks (for `dstorage.open`)."""
        if not self.options.read_only:
            target = self._next_id + RESERVED_IDS
            await self._committer.exclusively(lambda: self._catalog.reserve_ids(target))
            self._reserved_to = target
        given = {controller.name for controller in controllers or ()}
        for entry in list(self._registry):
            if entry.name not in given and not entry.removed:
                await self._load_listed(entry)
        for controller in controllers or ():
            await self.register(controller)
        options = self.options
        if options.commit_interval is not None and not options.read_only:
            self._spawn(self._commit_now_and_then(options.commit_interval))
        if options.pressure is not None:
            self._spawn(options.pressure.run(self.on_pressure))

    async def _load_listed(self, entry: Entry) -> None:
        """Load what the list names; what cannot be is unavailable, which is no reason not to open the rest."""
        try:
            await self._load(entry, load_plugin(entry.kind).from_settings(entry.name, entry.settings))
        except DStorageError as error:
            entry.error = error
            warnings.warn(f"controller {entry.name!r} is not available: {error}", RuntimeWarning, stacklevel=4)

    async def close(self) -> None:
        """Commit, drain scratch chunks to durable controllers, and give everything back. Idempotent.

        Raises:
            StoreFull, TemporarilyUnavailable: The last commit could not be made; the store is closed all the same, as it
                was at the commit before.
        """
        if self._closed is not None:
            return
        failure: BaseException | None = None
        try:
            if not self.options.read_only:
                await self._drain_scratch()
                if self._index.changed or self._memory.dirty:
                    await self._committer.commit()
        except BaseException as error:  # noqa: BLE001 - raised again below, after everything was given back
            failure = error
        held = [handle for handle in self._handles.values() if handle.refs]
        self._closed = "the store is closed"
        self._writeback.stop()
        self._events.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in self._registry:
            if entry.controller is not None:
                await entry.controller.close()
        for handle in self._handles.values():
            waiters, handle.waiters = handle.waiters, None
            for tell in waiters or ():
                handle.error = TemporarilyUnavailable("the store was closed", id=handle.id)
                tell(handle)
            for patient in self._outages.end(handle):
                patient.tell(handle)
        if failure is None and not self.options.read_only:
            self._catalog.reserve_ids(self._next_id)
        self._writer.shutdown()
        self._catalog.close()
        if self._lock is not None:
            self._lock.release()
        _open_stores.discard(self)
        if failure is not None:
            raise failure
        if held:
            names = ", ".join(str(handle.id) for handle in held[:5])
            warnings.warn(
                f"{len(held)} handles were still referenced when the store was closed: {names}",
                ResourceWarning,
                stacklevel=2,
            )

    async def _drain_scratch(self) -> None:
        """An orderly close makes scratch chunks durable: in memory by the commit to come, on volatile controllers by a move."""
        self._writeback.scratch.clear()
        pinned = self._writeback.pinned
        for id, index in list(pinned.items()):
            entry = self._registry[index]
            if entry is not None and entry.controller is not None and entry.controller.volatile:
                del pinned[id]
        await self._mover.drain_volatile()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ClosedError(f"{self._closed}: open it again")

    def check_writable(self) -> None:
        """Raise unless the store takes changes."""
        self._check_open()
        if self.options.read_only:
            raise ReadOnlyError(f"{self.path} was opened with read_only=True")

    def _refresh(self) -> bool:
        if self.options.read_only:
            self._catalog.refresh()
            return True
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that close() ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, DStorageError):
            self._report("a background task failed", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": f"dstorage {self.path}: {message}", "exception": error})

    def _forked(self) -> None:
        self._closed = f"this store was opened by the parent process {os.getppid()}; a forked child must open its own"
        if self._lock is not None:
            self._lock.forget()

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}, {self._closed or repr(self._memory)}>"


def _copy(data: Buffer) -> bytes:
    """A private copy; `bytes(data)` would be `data` itself where it is bytes, and the program's to keep."""
    return bytes(memoryview(data))


def _nobody(handle: Handle) -> None:
    """Whom a resolve without callback tells."""


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_open_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
