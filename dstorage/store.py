"""The store: ids, handles and commits over a memory budget and a list of controllers.

`Store` is the one object a program opens. It puts the parts together, owns every background task, and belongs to the event loop it
was opened on. The way of a hit is `Store.handle`; of a miss `Resolver.page_in`, then `PageIn.begin`; of a change
`Contents.publish`, then `WriteBack`, then `Committer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dstorage.bulk import Bulk
from dstorage.catalog import MAX_NAME_BYTES, Catalog
from dstorage.commit import Committer
from dstorage.contents import Contents
from dstorage.controller import Buffer, Controller, ControllerStatus, Space
from dstorage.copies import Copier
from dstorage.drain import Drainer
from dstorage.errors import (
    ClosedError,
    DStorageError,
    InvalidArgumentError,
    ReadOnlyError,
    TemporarilyUnavailable,
    UsageError,
)
from dstorage.events import Events, EventStream
from dstorage.handle import Handle, Status
from dstorage.ids import IdAllocator
from dstorage.index import Index
from dstorage.info import ChunkInfo, ControllerInfo, Stats
from dstorage.loading import Loader
from dstorage.lock import StoreLock
from dstorage.mover import Mover
from dstorage.namespace import Namespace, Namespaces
from dstorage.outage import Outages
from dstorage.paging.budget import parse_bytes
from dstorage.paging.memory import Memory
from dstorage.paging.page import Page
from dstorage.paging.pagein import PageIn
from dstorage.paging.policy import Policy
from dstorage.paging.pressure import Level, Pressure, PressureMonitor
from dstorage.paging.trim import trim
from dstorage.paging.writeback import WriteBack
from dstorage.record import MAX_ID, Locator, Record, checked_id
from dstorage.registry import Entry, Registry
from dstorage.resolver import Resolver
from dstorage.room import Room
from dstorage.shortcut import Shortcut
from dstorage.table import HandleTable
from dstorage.tier import TierRule
from dstorage.tiering import Tiering, TieringRules
from dstorage.transfer import Transfer
from dstorage.uses import Uses

LAST_COMMIT_WAIT_S = 2.0
LAST_COMMIT_PAUSE_S = 0.25
"""How long close() tries to make its commit while a controller is unavailable, and the pause between two tries."""
CHANGE_BYTES = 512
CHANGES_SHARE = 16
MANY_CHANGES = 4096
"""What a changed chunk costs until its commit is over, measured at 300 to 500 bytes; changes that take more than a sixteenth of the budget
are worth a background commit before its time, but not fewer than these many."""
DISCARD_WAIT_S = 5.0
"""How long close() waits for space to be given back."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a store was opened; see `dstorage.open`, whose keyword arguments these are."""

    budget: int
    policy: Callable[[int], Policy]
    dirty_share: float = 0.5
    commit_interval: float | None = 5.0
    max_handles: int | None = None
    max_cached: int | None = None
    read_only: bool = False
    pressure: PressureMonitor | None = None
    tiering: TieringRules | None = None
    tiers: Mapping[str, TierRule] = field(default_factory=dict)


class Store:
    """An open store; get it from `dstorage.open`.

    Loop affinity: all methods are for the loop the store was opened on. Methods without ``async`` never wait.
    """

    def __init__(self, path: Path, lock: StoreLock | None, catalog: Catalog, options: Options) -> None:
        self.path = path
        self.options = options
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = lock
        self._catalog = catalog
        self.closed: str | None = None
        """Why it cannot be used any more; None while it is open."""
        self._closing: asyncio.Event | None = None
        """There once `close` was called; set when it is through."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._discards: set[asyncio.Task[None]] = set()
        self._freed: dict[int, list[tuple[int, Locator]]] = {}
        self._trimming = False
        self._allowed: int | None = None
        """What memory pressure allows, None for all of the budget."""
        self._events = Events()
        self._much_changed = asyncio.Event()
        self._index = Index(
            catalog,
            lambda id, record: self.discard(record.controller, [(id, record.locator)]),
            many=max(MANY_CHANGES, options.budget // CHANGES_SHARE // CHANGE_BYTES),
            on_many=self._much_changed.set,
        )
        self._uses = Uses()
        self._registry = Registry(catalog, options.tiers, read_only=options.read_only)
        self._outages = Outages(
            retry=lambda handle: self.resolver.start(handle), drop=lambda handle: self.table.drop(handle)
        )
        self._memory = Memory(
            options.budget,
            dirty_share=options.dirty_share,
            policy=options.policy(options.budget),
            max_cached=options.max_cached,
            on_evicted=lambda page, reason: self.resolver.on_evicted(page, reason),
            on_laundry=lambda: self._writeback.wake(),
        )
        self._writeback = WriteBack(
            self._memory,
            self._index,
            self._registry,
            spawn=self.spawn,
            discard=lambda id, record: self.discard(record.controller, [(id, record.locator)]),
            on_written=self._on_written,
        )
        self._pagein = PageIn(
            self._memory,
            self._index,
            self._registry,
            self._uses,
            spawn=self.spawn,
            on_resolved=lambda page: self.resolver.on_resolved(page),
            on_failed=lambda page, error: self.resolver.on_failed(page, error),
            on_bad=lambda id, place: self._copier.found_bad(id, place),
            refresh=self._refresh,
            stalled=lambda: self._writeback.stalled,
        )
        self.table = HandleTable(self, self._memory, options.max_handles, self._outages)
        self._handles = self.table.handles
        self.room = Room(self._memory, self._writeback, self.table)
        transfer = Transfer(self._memory, self.room, self._registry)
        self.shortcut = Shortcut(
            self._handles,
            self._index,
            self._registry,
            self._memory,
            self._uses,
            # The loop does not see what another process writes before it looks anew.
            open=not options.read_only,
        )
        self._mover = Mover(transfer, self._index, self._registry, discard=self.discard, events=self._events)
        self._copier = Copier(transfer, self._index, self._registry, discard=self.discard, events=self._events)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dstorage-catalog")
        self._committer = Committer(
            self._index,
            self._writeback,
            self._registry,
            self._uses,
            copier=self._copier,
            writer=self._writer,
            spawn=self.spawn,
            discard=self.discard,
            events=self._events,
        )
        self._drainer = Drainer(self._mover, self._index, self._registry, self._writeback, self._committer)
        self._loader = Loader(
            path,
            catalog,
            self._registry,
            self._committer,
            read_only=options.read_only,
            changed=self._controller_changed,
        )
        self._ids = IdAllocator(catalog, self._committer, self.spawn)
        self.resolver = Resolver(
            self.table,
            self._pagein,
            self._events,
            outages=self._outages,
            check_open=self.check_open,
            memory_error=self.room.error,
        )
        self.tiering = Tiering(
            options.tiering or TieringRules(),
            mover=self._mover,
            index=self._index,
            registry=self._registry,
            uses=self._uses,
            chunks_read=self._chunks_read,
            writeback=self._writeback,
            report=self._report,
        )
        self.contents = Contents(
            self,
            table=self.table,
            resolver=self.resolver,
            room=self.room,
            memory=self._memory,
            index=self._index,
            pagein=self._pagein,
            writeback=self._writeback,
            ids=self._ids,
            events=self._events,
        )
        self._namespaces = Namespaces(
            catalog,
            self._committer,
            self.spawn,
            self.contents,
            self._index,
            share_out=lambda: self._memory.share_out(options.policy, self._handles.values()),
        )
        self._bulk = Bulk(self, self.resolver, self._memory, self._index)
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
            return self.table.new(id)
        handle.refs += 1
        handle.hot = True
        return handle

    def unbound_handle(self) -> Handle:
        """A handle that names no chunk yet (UNINITIALISED), with one reference; see `Handle.bind`."""
        return self.table.unbound()

    def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Coroutine[Any, Any, Handle]:
        """Make a new chunk (to be awaited).

        A program that creates faster than controllers write is slowed here, once `dirty_share` of the budget is dirty.

        Args:
            data: Its contents (copied), or its size in bytes for zeros.
            durable: False for scratch: may live on volatile controllers, is lost by a crash.
            controller: Name of the controller that is to keep it as long as the store is open: no other takes it, and tiering leaves it
                there. By default the fastest with room.
            wait: Seconds to wait while references hold all of the budget.

        Returns:
            Its handle, RESOLVED, with one reference that is the caller's to release.

        Raises:
            MemoryUnavailable: No room.
            InvalidArgumentError: Too large, or no such controller.
            ReadOnlyError, ClosedError: The store takes no changes.
        """
        return self.contents.create(data, durable=durable, controller=controller, wait=wait)

    def create_nowait(self, data: Buffer | int, *, durable: bool = True, controller: str | None = None) -> Handle:
        """`create` without waiting.

        Raises:
            MemoryUnavailable: No room at this moment, or too much of the budget is dirty.
        """
        return self.contents.create_nowait(data, durable=durable, controller=controller)

    # -- many at once -------------------------------------------------------------------------------------------------

    def prefetch(self, ids: Iterable[int]) -> None:
        """A hint that these chunks will be wanted: brings in those that fit in a share of the budget, in order.

        Never raises for an id, does nothing while memory is short.
        """
        self._bulk.prefetch(ids)

    def resolve_each(self, ids: Iterable[int], *, wait: float | None = None) -> AsyncIterator[Handle]:
        """Resolve many chunks and give their handles as the answers come (``async for``).

        Each handle is referenced until the iterator is asked for the next one; its status says how it went. Only as many
        chunks are asked for at a time as half of the budget holds, so a list may be longer than memory.

        Args:
            ids: The chunks; taken one by one, as there is room. An id given twice while it is on its way comes once.
            wait: See `Handle.resolve`.
        """
        return self._bulk.each(ids, wait=wait)

    def resolve_all(self, ids: Iterable[int], *, wait: float | None = None) -> Coroutine[Any, Any, list[Handle]]:
        """Resolve many chunks together (to be awaited); all of them must fit in the budget.

        Returns:
            A handle per id, in order, each with a reference that is the caller's to release.

        Raises:
            TemporarilyUnavailable, Lost, Deleted, MemoryUnavailable: The first that failed; no reference is left.
        """
        return self._bulk.all(ids, wait=wait)

    def wait(
        self, ids: Iterable[int], n: int | None = None, timeout: float | None = None
    ) -> Coroutine[Any, Any, list[Handle]]:
        """Wait until `n` of the chunks are resolved, or `timeout` seconds have passed (to be awaited).

        Args:
            ids: The chunks; one that is given twice counts once.
            n: How many are enough; all by default.
            timeout: Seconds, for as long as which what is temporarily unavailable is tried again; None: each chunk has one try,
                however long that takes.

        Returns:
            Handles of the first at most `n` that were resolved, in the order they came, each with a reference that is
            the caller's to release. Fewer when the time is over, when memory has no room for more beside what is referenced, these
            handles included, or when the others are lost, deleted or, without a `timeout`, unavailable. Which of these it is, awaiting
            the handle of one that is missing raises. What has not come goes on arriving in memory as room allows.

        Raises:
            InvalidArgumentError: One of `ids` is none, or `n` is not in 0 .. the number of different `ids`.
        """
        return self._bulk.first(ids, n, timeout)

    # -- memory -------------------------------------------------------------------------------------------------------

    def set_budget(self, budget: int | float | str) -> None:
        """Change the budget while running; a smaller one evicts down to what references hold.

        While the machine is short of memory a larger one comes into effect when the shortage is over.

        Args:
            budget: As for `dstorage.open`: bytes, "512M", or a share of RAM.

        Raises:
            InvalidArgumentError: It is none of these.
        """
        self.check_open()
        self._memory.budget = parse_bytes(budget)
        allowed = self._memory.budget if self._allowed is None else min(self._memory.budget, self._allowed)
        self._set_limit(allowed, critical=self._memory.critical)

    def on_pressure(self, pressure: Pressure) -> None:
        """The machine's memory has changed: follow (called by the pressure monitor)."""
        limit = min(self._memory.budget, pressure.allowed_bytes)
        short = pressure.level is not Level.NORMAL or limit < self._memory.budget
        self._allowed = limit if short else None
        self._set_limit(limit, critical=pressure.level is Level.CRITICAL)

    def _set_limit(self, limit: int, *, critical: bool) -> None:
        used = self._memory.used
        self._memory.set_limit(limit, critical=critical)
        if self._memory.used < used and not self._trimming:
            self._trimming = True
            self.spawn(self._trim())

    async def _trim(self) -> None:
        """What has left is to go back to the machine, not only to the allocator."""
        try:
            await asyncio.to_thread(trim)
        finally:
            self._trimming = False

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

    async def _commit_now_and_then(self, interval: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._much_changed.wait()
            self._much_changed.clear()
            if self._closing is not None:
                return
            if not (self._index.changed or self._memory.dirty):
                continue
            try:
                await self.commit()
            except Exception as error:
                # Whatever it was, the machine out of memory for a moment perhaps: without commits to come, more and more would be lost by a crash.
                self._report("the background commit failed; it is tried again", error)

    # -- names --------------------------------------------------------------------------------------------------------

    def set_name(self, name: bytes, id: int | None) -> None:
        """Let `name` (1 to 511 bytes) stand for `id` from the next commit on, or for nothing any more (None).

        Raises:
            InvalidArgumentError: `name` is no such bytes, or `id` is not in 1 .. 2**64-1.
        """
        self.check_writable()
        # Whatever the catalog could not take would fail every commit from now on.
        if not isinstance(name, bytes):
            raise InvalidArgumentError(f"name {name!r} is {type(name).__name__}: give bytes")
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise InvalidArgumentError(f"name {name[:40]!r} has {len(name)} bytes: give 1 to {MAX_NAME_BYTES}")
        self._index.names[name] = None if id is None else checked_id(id)

    def get_name(self, name: bytes) -> int | None:
        """The id that `name` stands for, or None."""
        self.check_open()
        return self._index.get_name(name) if 0 < len(name) <= MAX_NAME_BYTES else None

    def names(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Names that start with `prefix`, from `start` on, in byte order, with their ids."""
        self.check_open()
        return self._index.iter_names(prefix, start)

    # -- namespaces ---------------------------------------------------------------------------------------------------

    async def namespace(self, name: str, *, share: float | None = None) -> Namespace:
        """The namespace called `name`: a group of chunks with a share of the budget of its own; made if there is none.

        It can be neither removed nor renamed. One that is done with gets ``share=0``, and its chunks are deleted
        (`Namespace.ids`); its name stays in the list and costs nothing.

        Args:
            name: 1 to 255 bytes of UTF-8.
            share: Share of the budget (0 to 1) that its chunks can always fill, however busy the others are; kept in the
                store. By default as it was, and none for a new one. Unused memory is for everybody.

        Raises:
            InvalidArgumentError: The shares would add up to more than 1, or there are 255 namespaces already.
        """
        if share is not None or name not in self._namespaces.by_name:
            self.check_writable()
        self.check_open()
        return await self._namespaces.get(name, share)

    def namespaces(self) -> list[Namespace]:
        """All namespaces of the store."""
        self.check_open()
        return list(self._namespaces.by_name.values())

    # -- controllers --------------------------------------------------------------------------------------------------

    async def register(self, controller: Controller) -> int:
        """Load a controller: a new one gets the next index; a known name keeps its index, and the former instance is
        closed. Chunks that waited for it are tried at once.

        Returns:
            Its index in the list.

        Raises:
            InvalidArgumentError: The name is known as another kind, or declared removed.
            ControllerError: It could not be opened; the list knows it, its chunks stay unavailable. Of a name it knew already, it keeps
                the former settings: what `open` makes the controller from the next time.
        """
        self.check_open()
        return (await self._loader.register(controller)).index

    def _controller_changed(self, entry: Entry) -> None:
        if self._events.streams:
            self._events.emit("controller", 0, f"{entry.name}: {entry.status.value}")
        if entry.status is not ControllerStatus.TEMPORARILY_UNAVAILABLE:
            self._outages.returned(entry.name)
        if entry.status is ControllerStatus.OK:
            self._writeback.resume()
            self._copier.changed()

    async def unload(self, name: str) -> None:
        """Close a controller; its chunks are temporarily unavailable until `register` brings one of that name."""
        await self._loader.unload(self.entry_named(name))

    async def declare_removed(self, name: str) -> None:
        """Declare, for ever, that a controller is gone: its chunks are lost.

        To save them first, see `drain`.
        """
        self.check_writable()
        await self._loader.declare_removed(self.entry_named(name))

    def controllers(self) -> list[ControllerInfo]:
        """The list of controllers, in order of index."""
        self.check_open()
        return [
            ControllerInfo(
                entry.index,
                entry.name,
                entry.kind,
                entry.rank,
                entry.status,
                entry.controller.volatile if entry.controller else False,
                entry.controller.space() if entry.controller else Space(None, 0),
                str(entry.error) if entry.error else entry.controller.trouble if entry.controller else None,
                entry.draining,
            )
            for entry in sorted(self._registry, key=lambda entry: entry.index)
        ]

    def controller(self, name: str) -> Controller:
        """The loaded instance called `name`.

        Raises:
            InvalidArgumentError: No such controller, or it is not loaded.
        """
        controller = self.entry_named(name).controller
        if controller is None:
            raise InvalidArgumentError(f"controller {name!r} is not loaded")
        return controller

    async def compact(self, *, max_live_share: float = 0.5) -> int:
        """Write anew what lies in regions of which at most `max_live_share` is in use, and commit, so that the regions
        can be freed.

        Returns:
            How many chunks were rewritten.

        Raises:
            StoreFull: No room for the copies.
            TemporarilyUnavailable: A controller cannot be reached now.
        """
        self.check_writable()
        await self.commit()
        moved = 0
        for entry in self._registry.by_rank():
            if entry.controller is not None:
                places = await entry.controller.sparse_places(max_live_share)
                moved += await self._mover.rewrite(places, entry)
        await self.commit()
        return moved

    async def migrate(self, ids: Iterable[int], *, to: str) -> int:
        """Move chunks to controller `to`; their ids stay, readers and writers are not disturbed.

        Returns:
            How many were moved (those that are there already, or only in memory, are not counted).

        Raises:
            StoreFull: The target has no room.
            TemporarilyUnavailable: Source or target cannot be reached now; what was moved stays moved.
            Lost: A chunk does not exist or is damaged.
            InvalidArgumentError: The target is volatile and a chunk is durable.
        """
        self.check_writable()
        entry = self.entry_named(to)
        if entry.controller is not None and entry.controller.volatile:
            ids = list(ids)
            durable = next((id for id in ids if id not in self._writeback.scratch), None)
            if durable is not None:
                raise InvalidArgumentError(
                    f"controller {to!r} is volatile: it takes only chunks created with durable=False, not {durable}"
                )
        return await self._mover.move((id for id in ids if not self._only_in_memory(id)), entry)

    def _only_in_memory(self, id: int) -> bool:
        handle = self._handles.get(id)
        return handle is not None and handle.buffer is not None and self._index.get(id) is None

    async def make_copies(self) -> int:
        """Return when all copies that the rules ask for (`TierRule.copy_to`) are made; they are the next commit's.

        Returns:
            How many were missing.

        Raises:
            StoreFull, TemporarilyUnavailable, Lost: One could not be made; those made before it stay.
        """
        self.check_writable()
        return await self._copier.complete()

    async def drain(self, name: str, *, advance: Callable[[int], None] = lambda count: None) -> int:
        """Move everything off controller `name`, and commit, so that it can be declared removed.

        Ids stay valid, readers and writers are not disturbed. From now on it gets no new chunks, also when this is interrupted, by a crash
        even: call again to go on, or `cancel_drain`.

        Args:
            name: The controller.
            advance: Called with a number of chunks looked at, now and then; `stats().chunks` are looked at in all.

        Returns:
            How many chunks (or copies) were on it.

        Raises:
            StoreFull: The others have no room for the rest.
            TemporarilyUnavailable: A controller cannot be reached now.
            Lost: A chunk on it is damaged and has no copy; `check` lists and drops those.
            UsageError: `cancel_drain` called it off meanwhile.
        """
        self.check_writable()
        return await self._drainer.drain(self.entry_named(name), advance)

    async def cancel_drain(self, name: str) -> None:
        """Let controller `name` take chunks again, and end a `drain` of it that is under way; what has moved stays moved."""
        self.check_writable()
        await self._drainer.call_off(self.entry_named(name))

    def entry_named(self, name: str) -> Entry:
        """The line of the list of controllers for `name`, for tools.

        Raises:
            InvalidArgumentError: There is none.
        """
        return self._loader.named(name)

    def discard(self, controller: int, places: list[tuple[int, Locator]]) -> None:
        """Free places that nothing refers to any more, in the background (for the store's parts).

        Those of one turn of the loop go out together.
        """
        if controller in self._freed:
            self._freed[controller] += places
        else:
            self._freed[controller] = list(places)
            self._loop.call_soon(self._send_freed, controller)

    def _send_freed(self, controller: int) -> None:
        places = self._freed.pop(controller, None)
        entry = self._registry[controller]
        if places and entry is not None and entry.controller is not None and not self.closed:
            task = self.spawn(entry.controller.discard(places))
            self._discards.add(task)
            task.add_done_callback(self._discards.discard)

    # -- looking ------------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters now."""
        self.check_open()
        memory = self._memory
        memory.sweep()
        return Stats(
            budget=self._memory.budget,
            limit=memory.limit,
            used=memory.used,
            dirty=memory.dirty_bytes,
            stray=memory.stray_bytes,
            handles=len(self.table.handles),
            chunks=self._catalog.count(),
            page_ins=self._chunks_read(),
            bytes_read=self._pagein.bytes_read + self.shortcut.bytes_read,
            write_backs=self._writeback.chunks_written,
            bytes_written=self._writeback.bytes_written,
            evictions=memory.evictions,
            commits=self._committer.commits,
            unavailable=len(self._outages),
        )

    def _chunks_read(self) -> int:
        return self._pagein.chunks_read + self.shortcut.chunks_read

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it was opened on; its methods are for this loop."""
        return self._loop

    @property
    def memory_used(self) -> int:
        """Bytes of chunk contents in memory now; cheaper than `stats`."""
        if threading.get_ident() == self._thread:
            # What the program has let go of without telling anybody.
            self._memory.sweep()
        return self._memory.used

    def info(self, id: int) -> ChunkInfo | None:
        """Where chunk `id` is, or None if there is no such chunk."""
        self.check_open()
        handle = self.table.handles.get(id)
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
            copies=tuple(
                other.name for copy in self._index.copies(id) if (other := self._registry[copy.controller]) is not None
            ),
        )

    def entry(self, index: int) -> Entry | None:
        """One line of the list of controllers, for tools; None for an index it never had."""
        return self._registry[index]

    def records(self) -> Iterator[tuple[int, Record]]:
        """All records of the last commit in order of id, for tools."""
        self.check_open()
        return self._catalog.records()

    def places(self, id: int) -> tuple[Record, ...]:
        """All places of the bytes of a chunk, its record first, then its copies, for tools."""
        self.check_open()
        return self._index.places(id)

    def forget(self, id: int) -> None:
        """Drop the record of a lost chunk with the next commit, for repairs."""
        self.check_writable()
        self._index.put(id, None)

    async def recount(self, index: int) -> bool:
        """Have controller number `index` count anew what the last commit refers to; returns whether its books are right now. For repairs."""
        self.check_writable()
        entry = self.entry(index)
        return entry is not None and await self._committer.recount(entry)

    async def recount_chunks(self) -> None:
        """Have the catalog count anew how many chunks it has. For repairs."""
        self.check_writable()
        await self._committer.recount_chunks()

    async def heal(self, id: int, place: Record) -> bool:
        """Write a damaged place of a chunk anew from another, or do without it; False if that cannot be. For repairs."""
        self.check_writable()
        return await self._copier.heal(id, place)

    def ids(self) -> Iterator[int]:
        """Ids of all chunks that have been written, ascending; those only in memory yet come with the next commit."""
        self.check_open()
        return self._index.ids()

    def record(self, id: int) -> Record | None:
        """The current catalog record of a chunk, for tools."""
        self.check_open()
        return self._index.get(id)

    def events(self, *, limit: int = 10000) -> EventStream:
        """A stream of what happens from now on; it ends with the store, or when nobody has it any more.

        Args:
            limit: Most unread events that are kept; a reader that falls behind loses the oldest, `EventStream.dropped` counts them.

        Raises:
            InvalidArgumentError: `limit` is no number of events that could be kept.
        """
        self.check_open()
        return self._events.subscribe(limit)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self, controllers: Sequence[Controller] | None) -> None:
        """Load the controllers and start the background tasks (for `dstorage.open`)."""
        if not self.options.read_only:
            await self._ids.reserve()
        await self._loader.start(controllers or ())
        options = self.options
        self._loader.warn_of_unknown(options.tiers)
        self._namespaces.warn_of_overdraft()
        if options.commit_interval is not None and not options.read_only:
            self.spawn(self._commit_now_and_then(options.commit_interval))
        if not options.read_only:
            self.spawn(self._copier.run())
        if options.tiering is not None and not options.read_only:
            self.spawn(self.tiering.run())
        if options.pressure is not None:
            self.spawn(options.pressure.run(lambda: (self.memory_used, self._memory.budget), self.on_pressure))

    async def close(self) -> None:
        """Commit, drain scratch chunks to durable controllers, and give everything back. Idempotent.

        From the call on no changes are taken, so that none is answered that the last commit does not have. Who calls a
        second time waits until the first is through.

        Raises:
            StoreFull, TemporarilyUnavailable: The last commit could not be made, nor a moment later; the store is closed all the
                same, as it was at the commit before.
        """
        if self._closing is not None:
            await self._closing.wait()
        elif self.closed is None:
            self._closing = asyncio.Event()
            try:
                await self._close()
            finally:
                self._closing.set()

    async def _close(self) -> None:
        failure: BaseException | None = None
        try:
            if not self.options.read_only:
                await self._drain_scratch()
                await self._last_commit()
            for controller in list(self._freed):
                self._send_freed(controller)
            if self._discards:
                # What does not come to its end is found when the controller is opened again.
                await asyncio.wait(self._discards, timeout=DISCARD_WAIT_S)
        except BaseException as error:
            failure = error
        self.closed = "the store is closed"
        self.shortcut.open = False
        self._pagein.stop()
        self._writeback.stop()
        self._events.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in self._registry:
            if entry.controller is not None:
                try:
                    await entry.controller.close()
                except BaseException as error:
                    # The catalog and the lock are given back all the same.
                    failure = failure or error
        for handle in list(self.table.handles.values()):
            if handle.status is Status.WAITING:
                self.resolver.on_failed(handle, TemporarilyUnavailable("the store was closed", id=handle.id))
            for patient in self._outages.end(handle):
                patient.tell(handle)
        if failure is None and not self.options.read_only:
            self._ids.give_back()
        # What nobody holds goes back to the machine now, not when the last name for this object is gone.
        self._memory.set_limit(0)
        self._writer.shutdown()
        self._catalog.close()
        if self._lock is not None:
            self._lock.release()
        _open_stores.discard(self)
        if failure is not None:
            raise failure
        # Where the interpreter ends there are no threads to be had any more, and nothing to give back.
        with contextlib.suppress(RuntimeError):
            await asyncio.to_thread(trim)
        # Now those who were told above have had their turn, and released what they waited for.
        held = [handle for handle in self.table.handles.values() if handle.refs]
        if held:
            names = ", ".join(str(handle.id) for handle in held[:5])
            warnings.warn(
                f"{len(held)} handles were still referenced when the store was closed: {names}",
                ResourceWarning,
                stacklevel=3,
            )

    async def _last_commit(self) -> None:
        """What cannot be written for a moment is tried again: there is no later commit to take it."""
        deadline = self._loop.time() + LAST_COMMIT_WAIT_S
        # One that is under way holds what nobody calls changed any more, and may fail still: the last one waits for its end.
        while self._index.changed or self._index.committing or self._memory.dirty:
            try:
                await self._committer.commit()
                return
            except TemporarilyUnavailable:
                if self._loop.time() >= deadline:
                    raise
            await asyncio.sleep(LAST_COMMIT_PAUSE_S)

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

    def check_open(self) -> None:
        """Raise `ClosedError` unless the store is open."""
        if self.closed is not None:
            raise ClosedError(f"{self.closed}: open it again")

    def check_writable(self) -> None:
        """Raise unless the store takes changes, from this thread."""
        self.check_open()
        if threading.get_ident() != self._thread:
            raise UsageError(
                f"{self.path} is open on an event loop of another thread: open it with dstorage.blocking for use from any "
                "thread, or go to its loop (asyncio.run_coroutine_threadsafe(..., store.loop))"
            )
        self.check_changeable()

    def check_changeable(self) -> None:
        """Raise unless the store takes changes, from whatever thread."""
        self.check_open()
        if self._closing is not None:
            raise ClosedError("the store is being closed and takes no changes: open it again")
        if self.options.read_only:
            raise ReadOnlyError(f"{self.path} was opened with read_only=True")

    def _refresh(self) -> bool:
        if self.options.read_only:
            self._catalog.refresh()
            return True
        return False

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
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
        self.closed = f"this store was opened by the parent process {os.getppid()}; a forked child must open its own"
        self.shortcut.open = False
        if self._lock is not None:
            self._lock.forget()

    def _on_written(self, page: Page, controller: str) -> None:
        if self._events.streams:
            self._events.emit("written", page.id, controller)

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}, {self.closed or repr(self._memory)}>"


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_open_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
