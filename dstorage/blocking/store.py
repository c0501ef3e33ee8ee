"""The blocking store: `dstorage.Store` for programs without an event loop, from any thread.

There is one implementation of the store. This one has it on a loop in a thread of its own (`inner`), brings calls there and
waits. What is in memory is answered in the calling thread: contents never change once published, so reading one attribute of
the chunk's page is all it takes, without lock or loop. So is what the page cache has; see `dstorage.shortcut`.

* *Fork*: in the child every call raises `ClosedError`; the parent is not disturbed. The child may open a store of its own.
* *Interpreter exit*: stores still open are closed, so what is dirty is committed.
* *KeyboardInterrupt*: breaks the wait at once; what was asked for is cancelled, or undone if it had come to its end.
  A commit, once begun, goes on.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import thread as _executors  # noqa: F401 - see the end of this module
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from dstorage.blocking.delivery import Deliver, Delivery, check_deliver
from dstorage.blocking.events import EventStream
from dstorage.blocking.handle import Callback, Handle
from dstorage.blocking.loop import Call, LoopThread
from dstorage.blocking.namespace import Namespace
from dstorage.controller import Buffer, Controller
from dstorage.errors import ClosedError, DStorageError
from dstorage.handle import Handle as AsyncHandle
from dstorage.info import ChunkInfo, ControllerInfo, Stats
from dstorage.record import Record
from dstorage.store import Store as AsyncStore
from dstorage.waiting import check_wait

T = TypeVar("T")

AT_A_TIME = 1000
"""Ids or names brought from the loop per trip."""


class Store:
    """An open store for any thread; get it from `dstorage.blocking.open`.

    Every method may be called from every thread, but for the store's own loop. Names and meanings are those of
    `dstorage.Store`; what is awaited there, waits here.

    Attributes:
        inner: The `dstorage.Store`; for code that runs on its loop (see `call`).
        loop: The loop's thread.
    """

    def __init__(self, inner: AsyncStore, loop: LoopThread, deliver: Deliver | None) -> None:
        self.inner = inner
        self.loop = loop
        self.path = inner.path
        self.options = inner.options
        self._handles: dict[int, AsyncHandle] = inner.table.handles
        self._end: asyncio.Task[Exception | None] | None = None
        self._delivery = Delivery(deliver, self._report)
        _open_stores[self] = None

    def _report(self, error: BaseException) -> None:
        # Also of a callback that runs while or after the loop ends: this touches nothing of the loop but its handler.
        self.loop.loop.call_exception_handler(
            {"message": f"dstorage {self.path}: a callback raised", "exception": error}
        )

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run a coroutine function on the store's loop, with `inner` at hand, and wait for its result.

        A way to do many steps in one trip, and whatever only the asynchronous interface offers.
        """
        return self.loop.run(function, *args)

    # -- handles ------------------------------------------------------------------------------------------------------

    def handle(self, id: int) -> Handle:
        """A handle for chunk `id`; never fails for an unknown id, costs no trip to the loop, and needs no release."""
        return Handle(self, id)

    def get(self, id: int, *, wait: float | None = None) -> memoryview:
        """The bytes of chunk `id`, read-only; valid for as long as anybody has the view. See `Handle.get`."""
        if wait is not None:
            check_wait(wait)
        handle = self._handles.get(id)
        if handle is not None:
            buffer = handle.buffer
            if buffer is not None:
                handle.hot = True
                return memoryview(buffer) if buffer.__class__ is bytes else memoryview(buffer).toreadonly()
        read = self.inner.shortcut.read(id)
        if read is not None:
            return memoryview(read)

        # A callback, for a task would cost more than many a read.
        def begin(call: Call[memoryview]) -> None:
            def answer(handle: AsyncHandle) -> None:
                if handle.buffer is not None:
                    call.done(handle.data)
                else:
                    call.failed(self._failure(handle))

            with self.inner.table.get(id) as handle:
                if handle.buffer is not None:
                    answer(handle)
                else:
                    handle.resolve(answer, wait=wait)

        return self.loop.call(begin)

    def _failure(self, handle: AsyncHandle) -> DStorageError:
        """Why a chunk's bytes did not come: the store is closed, or something about the chunk."""
        try:
            self.inner.check_open()
        except ClosedError as error:
            return error
        return handle.failure()

    def peek(self, id: int) -> memoryview | None:
        """The bytes of chunk `id` if they are in memory, else None; never waits."""
        handle = self._handles.get(id)
        buffer = handle.buffer if handle is not None else None
        if handle is None or buffer is None:
            return None
        handle.hot = True
        return memoryview(buffer).toreadonly()

    def resolve(
        self, id: int, callback: Callback | None = None, *, wait: float | None = None, deliver: Deliver | None = None
    ) -> None:
        """Ask for chunk `id`; see `Handle.resolve`."""
        check_deliver(deliver)

        def on_loop() -> None:
            with self.inner.table.get(id) as handle:
                handle.resolve(answer if callback is not None else None, wait=wait)

        def answer(handle: AsyncHandle) -> None:
            assert callback is not None
            data = handle.data if handle.buffer is not None else None
            told = (handle.status, handle.error, data)
            self._delivery.send(lambda: Handle(self, id).call_back(callback, told), deliver)

        self.loop.call_sync(on_loop)

    def create(
        self,
        data: Buffer | int,
        *,
        durable: bool = True,
        controller: str | None = None,
        wait: float | None = None,
    ) -> Handle:
        """Make a new chunk; see `dstorage.Store.create`.

        Returns:
            Its handle, which needs no release. If the wait is interrupted there is no chunk.

        Raises:
            MemoryUnavailable: No room.
            InvalidArgumentError: Too large, or no such controller.
            ReadOnlyError, ClosedError: The store takes no changes.
        """
        return self.create_in(0, data, durable, controller, wait)

    def create_in(
        self, namespace: int, data: Buffer | int, durable: bool, controller: str | None, wait: float | None
    ) -> Handle:
        """`create` in the namespace of that number (for `Namespace`)."""
        create = self.inner.contents.create

        async def make() -> int:
            with await create(data, durable=durable, controller=controller, wait=wait, namespace=namespace) as handle:
                return handle.id

        def undo(id: int) -> None:
            with self.inner.table.get(id) as handle:
                handle.delete()

        return Handle(self, self.loop.run(make, undo=undo))

    # -- many at once -------------------------------------------------------------------------------------------------

    def prefetch(self, ids: Iterable[int]) -> None:
        """A hint that these chunks will be wanted; does not wait. See `dstorage.Store.prefetch`."""
        wanted = list(ids)
        self.loop.post(lambda: self.inner.prefetch(wanted))

    def resolve_each(self, ids: Iterable[int], *, wait: float | None = None) -> Iterator[Handle]:
        """Resolve many chunks and give their handles as the answers come; see `dstorage.Store.resolve_each`.

        `ids` is read to its end before the first chunk is asked for.
        """
        answers = self.inner.resolve_each(list(ids), wait=wait)

        async def following() -> int | None:
            handle = await anext(answers, None)
            return None if handle is None else handle.id

        try:
            while (id := self.loop.run(following)) is not None:
                yield Handle(self, id)
        finally:
            # Without waiting, for this may be the collector's doing, in any thread. A closed store has ended it already.
            with contextlib.suppress(ClosedError):
                self.loop.post(lambda: self.inner.spawn(answers.aclose()))  # type: ignore[attr-defined]  # a generator

    def resolve_all(self, ids: Iterable[int], *, wait: float | None = None) -> list[memoryview]:
        """Resolve many chunks together; all of them must fit in the budget.

        Returns:
            The bytes of each, in order.

        Raises:
            TemporarilyUnavailable, Lost, Deleted, MemoryUnavailable: The first that failed.
        """
        wanted = list(ids)

        async def resolve() -> list[memoryview]:
            handles = await self.inner.resolve_all(wanted, wait=wait)
            views = [handle.data for handle in handles]
            for handle in handles:
                handle.release()
            return views

        return self.loop.run(resolve)

    def wait(self, ids: Iterable[int], n: int | None = None, timeout: float | None = None) -> list[Handle]:
        """Wait until `n` of the chunks are resolved, or `timeout` seconds have passed; see `dstorage.Store.wait`.

        `Store.get` raises why one is missing.
        """
        # Here, not on the loop: what gives the ids may ask this store for them.
        wanted = list(ids)

        async def wait() -> list[int]:
            handles = await self.inner.wait(wanted, n, timeout)
            for handle in handles:
                handle.release()
            return [handle.id for handle in handles]

        return [Handle(self, id) for id in self.loop.run(wait)]

    # -- memory and commits -------------------------------------------------------------------------------------------

    def set_budget(self, budget: int | float | str) -> None:
        """Change the budget (bytes) while running; a smaller one evicts down to what references hold."""
        self.loop.call_sync(self.inner.set_budget, budget)

    def commit(self) -> None:
        """Return when everything done up to this call, by any thread, is durable, as one.

        An interrupt ends the waiting, not the commit.

        Raises:
            StoreFull, TemporarilyUnavailable: It could not be made; the last commit stands, nothing in memory is lost.
        """
        self.loop.run(self.inner.commit)

    # -- names --------------------------------------------------------------------------------------------------------

    def set_name(self, name: bytes, id: int | None) -> None:
        """Let `name` (1 to 511 bytes) stand for `id` from the next commit on, or for nothing any more (None)."""
        self.loop.call_sync(self.inner.set_name, name, id)

    def get_name(self, name: bytes) -> int | None:
        """The id that `name` stands for, or None."""
        return self.loop.call_sync(self.inner.get_name, name)

    def names(self, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Names that start with `prefix`, from `start` on, in byte order, with their ids; what changes while they are read may be
        seen or not.
        """
        return self.in_parts(lambda: self.inner.names(prefix, start))

    # -- namespaces ---------------------------------------------------------------------------------------------------

    def namespace(self, name: str, *, share: float | None = None) -> Namespace:
        """The namespace called `name`, made if there is none; see `dstorage.Store.namespace`."""
        return Namespace(self, self.loop.run(lambda: self.inner.namespace(name, share=share)))

    def namespaces(self) -> list[Namespace]:
        """All namespaces of the store."""
        return [Namespace(self, namespace) for namespace in self.loop.call_sync(self.inner.namespaces)]

    # -- controllers --------------------------------------------------------------------------------------------------

    def register(self, controller: Controller) -> int:
        """Load a controller, made anywhere; from now on it belongs to the store's loop. See `dstorage.Store.register`."""
        return self.loop.run(self.inner.register, controller)

    def unload(self, name: str) -> None:
        """Close a controller; its chunks are temporarily unavailable until `register` brings one of that name."""
        self.loop.run(self.inner.unload, name)

    def declare_removed(self, name: str) -> None:
        """Declare, for ever, that a controller is gone: its chunks are lost."""
        self.loop.run(self.inner.declare_removed, name)

    def controllers(self) -> list[ControllerInfo]:
        """The list of controllers, in order of index."""
        return self.loop.call_sync(self.inner.controllers)

    def compact(self, *, max_live_share: float = 0.5) -> int:
        """Write sparse regions anew, and commit; see `dstorage.Store.compact`."""
        return self.loop.run(lambda: self.inner.compact(max_live_share=max_live_share))

    def migrate(self, ids: Iterable[int], *, to: str) -> int:
        """Move chunks to controller `to`; see `dstorage.Store.migrate`."""
        wanted = list(ids)
        return self.loop.run(lambda: self.inner.migrate(wanted, to=to))

    def make_copies(self) -> int:
        """Return when all copies that the rules ask for are made; see `dstorage.Store.make_copies`."""
        return self.loop.run(self.inner.make_copies)

    def drain(self, name: str, *, advance: Callable[[int], None] = lambda count: None) -> int:
        """Move everything off controller `name`, and commit; see `dstorage.Store.drain`.

        Args:
            name: The controller.
            advance: Called on the store's loop, so it must not wait, with a number of chunks looked at.
        """
        return self.loop.run(lambda: self.inner.drain(name, advance=advance))

    def cancel_drain(self, name: str) -> None:
        """Let controller `name` take chunks again; what has moved stays moved."""
        self.loop.run(self.inner.cancel_drain, name)

    # -- looking ------------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters now."""
        return self.loop.call_sync(self.inner.stats)

    @property
    def memory_used(self) -> int:
        """Bytes of chunk contents in memory now; no trip to the loop."""
        return self.inner.memory_used

    def info(self, id: int) -> ChunkInfo | None:
        """Where chunk `id` is, or None if there is no such chunk."""
        return self.loop.call_sync(self.inner.info, id)

    def record(self, id: int) -> Record | None:
        """The current catalog record of a chunk, for tools."""
        return self.loop.call_sync(self.inner.record, id)

    def ids(self) -> Iterator[int]:
        """Ids of all chunks that have been written, ascending; those only in memory yet come with the next commit."""
        return self.in_parts(self.inner.ids)

    def in_parts(self, make: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What an iterator made on the loop gives, with few trips there (for `Namespace`)."""
        source = self.loop.call_sync(make)

        def parts() -> Iterator[T]:
            while part := self.loop.call_sync(lambda: list(islice(source, AT_A_TIME))):
                yield from part

        return parts()

    def events(self, *, limit: int = 10000) -> EventStream:
        """A stream of what happens from this call on; at most `limit` unread events are kept.

        It ends with the store, or when nobody has it any more.
        """
        return EventStream(self.loop, self.loop.call_sync(lambda: self.inner.events(limit=limit)))

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Commit, drain scratch chunks to durable controllers, and give everything back. Idempotent, from any thread.

        Callbacks that wait are called; calls of other threads that are under way raise `ClosedError`.

        Raises:
            StoreFull, TemporarilyUnavailable: The last commit could not be made; the store is closed all the same, as it
                was at the commit before.
        """
        self.loop.check_caller()
        if self not in _open_stores:
            return

        def begin(call: Call[Exception | None]) -> None:
            call.run(self._close())

        failure = None
        # Under no lock: who closes it at the same time may be a callback that this waits for, or a signal's handler in this thread.
        with contextlib.suppress(ClosedError):  # Another thread was quicker.
            failure = self.loop.call(begin)
        self._handles = {}
        self.loop.stop()
        self._delivery.close()
        _open_stores.pop(self, None)
        if failure is not None:
            raise failure

    async def _close(self) -> Exception | None:
        # Once begun it goes on to its end, also when the wait is interrupted; all who close wait for the same end.
        if self._end is None:
            self._end = asyncio.create_task(self._close_inner())
        return await asyncio.shield(self._end)

    async def _close_inner(self) -> Exception | None:
        await self.loop.cancel_calls()
        try:
            await self.inner.close()
        except Exception as error:
            return error
        return None

    def _forked(self) -> None:
        self._handles = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<blocking.Store {str(self.path)!r}, {self.inner!r}>"


_open_stores: dict[Store, None] = {}
"""In the order of opening."""


def _close_at_exit() -> None:
    for store in reversed(list(_open_stores)):
        try:
            store.close()
        except BaseException:  # An interrupt gives up this one, not the others.
            sys.excepthook(*sys.exc_info())


def _after_fork() -> None:
    for store in list(_open_stores):
        store._forked()
    _open_stores.clear()


# Executors take no more work once `threading` shuts down, which is before `atexit`; a commit needs them. What is registered
# with `threading` runs in reverse order: this, registered after the executors' own (imported above), comes first.
getattr(threading, "_register_atexit", atexit.register)(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
