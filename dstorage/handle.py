"""The handle: how a program holds a chunk.

`TRANSITIONS` is the whole state machine, and `Handle.to` the one method that changes a status. A handle is where its status says:

* NOT_RESOLVED, WAITING: in the store's table while referenced or waited for;
* RESOLVED: in the table, and in one container of `dstorage.paging.memory.Memory`;
* TEMPORARILY_UNAVAILABLE: in the table, and in the store's table of outages;
* LOST, DELETED: in the table while referenced.

A hit (`store.handle(id)`, `handle.data`, `handle.release()`) costs three short calls: no task, no future, no lock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from dstorage.buffers import copied, zeros
from dstorage.errors import (
    Deleted,
    DStorageError,
    IllegalTransitionError,
    NotResolvedError,
    OverReleaseError,
    TemporarilyUnavailable,
    UsageError,
)
from dstorage.paging.page import Page
from dstorage.waiting import check_wait

if TYPE_CHECKING:
    from types import TracebackType

    from dstorage.controller import Buffer
    from dstorage.store import Store


class Status(enum.Enum):
    """Status of a handle."""

    UNINITIALISED = "uninitialised"
    """Names no chunk yet; leaves by `bind`."""
    NOT_RESOLVED = "not resolved"
    """The id is known, its bytes are not in memory; leaves by `resolve`."""
    WAITING = "waiting"
    """A resolve is under way; leaves by the controller's answer."""
    RESOLVED = "resolved"
    """`data` is valid while a reference is held; leaves by the last release, then eviction."""
    TEMPORARILY_UNAVAILABLE = "temporarily unavailable"
    """Cannot be had now; leaves by `resolve` after `retry_at`, or by the controller coming back."""
    LOST = "lost"
    """Gone for ever."""
    DELETED = "deleted"
    """The program deleted it."""

    __hash__ = object.__hash__  # Members are singletons; the default hashes the name each time.


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.UNINITIALISED: frozenset({Status.NOT_RESOLVED, Status.RESOLVED}),
    Status.NOT_RESOLVED: frozenset({Status.WAITING, Status.RESOLVED, Status.DELETED}),
    Status.WAITING: frozenset({Status.RESOLVED, Status.TEMPORARILY_UNAVAILABLE, Status.LOST, Status.DELETED}),
    Status.RESOLVED: frozenset({Status.NOT_RESOLVED, Status.DELETED}),
    Status.TEMPORARILY_UNAVAILABLE: frozenset(
        {Status.WAITING, Status.NOT_RESOLVED, Status.RESOLVED, Status.LOST, Status.DELETED}
    ),
    Status.LOST: frozenset({Status.DELETED}),
    Status.DELETED: frozenset(),
}
"""Status -> the statuses that may follow it."""

Callback = Callable[["Handle"], object]


class Handle(Page):
    """A counted reference on one chunk; get it from `Store.handle` or `Store.create`.

    There is one handle per id and store. It belongs to the store's event loop: other threads use `dstorage.blocking`.

    Used with ``with`` it releases its reference at the end; with ``async with`` it also resolves first and gives the bytes::

        async with store.handle(id) as data:
            ...

    Attributes:
        id: The chunk's id; 0 while UNINITIALISED.
        size: Length in bytes while RESOLVED.
        status: See `Status`.
        error: Why the last resolve failed, else None.
        refs: References held.
        dirty: Changed since it was last written to a controller.
    """

    __slots__ = ("error", "status", "store", "waiters")

    def __init__(self, store: Store, id: int = 0) -> None:
        super().__init__(id)
        self.store = store
        self.status = Status.NOT_RESOLVED if id else Status.UNINITIALISED
        self.error: DStorageError | None = None
        self.waiters: list[Callback] | None = None

    # -- references ---------------------------------------------------------------------------------------------------

    def acquire(self) -> Self:
        """Add one reference.

        Returns:
            The handle itself.

        Raises:
            UsageError: It names no chunk yet.
        """
        if self.refs:
            self.refs += 1
            self.hot = True
        else:
            self.store.table.revive(self)
        return self

    def release(self) -> None:
        """Give one reference back; `data` must not be used after the last one.

        Raises:
            OverReleaseError: None is held.
        """
        refs = self.refs
        if refs == 1:
            self.refs = 0
            if self.place:
                self.store.table.last_release(self)
        elif refs:
            self.refs = refs - 1
        else:
            raise OverReleaseError(f"handle {self.id} was released more often than acquired")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    async def __aenter__(self) -> memoryview:
        try:
            return await self
        except BaseException:
            self.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> memoryview:
        """The bytes, read-only; valid while a reference is held.

        Raises:
            NotResolvedError: They are not in memory.
        """
        buffer = self.buffer
        if buffer is None:
            raise NotResolvedError(f"handle {self.id} is {self.status.value}: await it or call resolve() first")
        return memoryview(buffer) if type(buffer) is bytes else memoryview(buffer).toreadonly()

    def __await__(self) -> Generator[Any, None, memoryview]:
        """The bytes as a read-only memoryview.

        Cancelling the awaiting task harms neither the I/O nor others who wait.

        Raises:
            TemporarilyUnavailable: Cannot be had now.
            Lost: Gone for ever.
            Deleted: The program deleted the chunk.
            MemoryUnavailable: All of the budget is held by references.
        """
        buffer = self.buffer
        if buffer is None:
            yield from self.store.resolver.page_in(self)
            buffer = self.buffer
            if buffer is None:
                raise self.failure()
        return memoryview(buffer) if type(buffer) is bytes else memoryview(buffer).toreadonly()

    async def get(self, *, wait: float | None = None) -> memoryview:
        """Like ``await handle``, but keeps trying for `wait` seconds while the chunk is temporarily unavailable or
        memory is short.

        A try that has begun is not cut short: at the latest the controller's own time-out ends it. To leave sooner, put
        ``asyncio.timeout`` around it; the read goes on for the others.

        Raises:
            TemporarilyUnavailable, MemoryUnavailable: Still so after `wait` seconds.
            Lost, Deleted: As for ``await``.
            InvalidArgumentError: `wait` is negative or not finite.
        """
        check_wait(wait)
        if self.buffer is None and wait is not None:
            return await self.store.resolver.get_waiting(self, wait)
        return await self

    def resolve(self, callback: Callback | None = None, *, wait: float | None = None) -> None:
        """Ask for the bytes; never blocks.

        Args:
            callback: Called exactly once, on the loop and never from within this call, with the handle; its status
                says how it went (RESOLVED, TEMPORARILY_UNAVAILABLE with `error`, LOST, DELETED). The handle is
                referenced while it runs. What it raises goes to the loop's exception handler.
            wait: Seconds to keep trying while the chunk is temporarily unavailable or memory is short.

        Raises:
            UsageError: The handle names no chunk yet.
            InvalidArgumentError: `wait` is negative or not finite.
        """
        self.store.resolver.resolve(self, callback, wait)

    def failure(self) -> DStorageError:
        """The error that says why there are no bytes."""
        if self.status is Status.DELETED:
            return Deleted(f"chunk {self.id} was deleted", id=self.id)
        if self.status is Status.UNINITIALISED:
            return UsageError("this handle names no chunk yet: bind() it to an id")
        error = self.error
        if error is None:
            return TemporarilyUnavailable(f"chunk {self.id} left memory again; await it once more", id=self.id)
        # One to each who asks: its traceback keeps the frames of whom it is raised to, and the handle keeps `error`.
        return _not_raised_yet(error)

    @property
    def retry_at(self) -> float | None:
        """Loop time before which `resolve` is answered from memory; None when it would really ask."""
        error = self.error
        return error.retry_at if isinstance(error, TemporarilyUnavailable) else None

    # -- changing -----------------------------------------------------------------------------------------------------

    def edit(self, *, wait: float | None = None, discard: bool = False) -> Edit:
        """Change the contents in place::

            with handle.edit() as buf:        # resolved already, room at hand
                buf[0] = 1
            async with handle.edit() as buf:  # resolves, waits for write-back to make room
                buf[0] = 1

        `buf` is a writable memoryview on a private copy. It becomes the contents when the block ends normally; an
        exception discards it. Readers keep the bytes they have. Whoever ends last wins, as with files. `buf` ends with the block;
        slices and arrays made of it must not be written to afterwards.

        Args:
            wait: Seconds to wait for room or an unavailable chunk (``async with`` only).
            discard: Do not copy: `buf` starts as zeros.

        Raises:
            NotResolvedError: (``with``) The chunk is not in memory.
            MemoryUnavailable: No room for the copy.
        """
        return Edit(self, wait, discard)

    async def replace(self, data: Buffer, *, wait: float | None = None) -> None:
        """Give the chunk other contents, of any size; the old ones need not be in memory.

        Raises:
            MemoryUnavailable: No room, even after `wait` seconds.
            Lost, Deleted: There is no such chunk any more.
        """
        await self.store.contents.replace(self, data, wait)

    def replace_nowait(self, data: Buffer) -> None:
        """`replace` without waiting.

        Raises:
            MemoryUnavailable: No room at this moment, or too much of the budget is dirty.
        """
        self.store.contents.replace_nowait(self, data)

    def delete(self) -> None:
        """Delete the chunk: at once for this program, for good with the next commit.

        The reference held stays to be released. Who waits for the chunk is told DELETED.

        Raises:
            Lost: There is no such chunk.
        """
        self.store.contents.delete(self)

    async def flush(self) -> None:
        """Return when the contents are on a controller (durable they are only after `Store.commit`).

        Raises:
            StoreFull: No controller has room.
            TemporarilyUnavailable: No controller takes it now.
        """
        await self.store.contents.flush(self)

    def bind(self, id: int) -> Handle:
        """Let an UNINITIALISED handle name chunk `id`.

        Returns:
            The one handle for `id`: this one, or the one there was, to which this one's references are added. In the
            second case this object goes on working as another name for it.
        """
        return self.store.table.bind(self, id)

    # -- state machine ------------------------------------------------------------------------------------------------

    def to(self, status: Status) -> None:
        """Change the status (for the store).

        Raises:
            IllegalTransitionError: `TRANSITIONS` does not allow it; nothing was changed.
        """
        if status not in TRANSITIONS[self.status]:
            raise IllegalTransitionError(f"handle {self.id} cannot go from {self.status.value} to {status.value}")
        self.status = status

    def __repr__(self) -> str:
        size = f", {self.size} B" if self.buffer is not None else ""
        return f"<Handle {self.id}, {self.status.value}{size}, {self.refs} refs{', dirty' if self.dirty else ''}>"


class Edit:
    """The block of `Handle.edit`; use it once.

    Args:
        handle: Of the chunk.
        wait: Seconds to wait for room.
        discard: The present contents are not wanted.
        along: It goes with contents that have room already: the dirty limit does not hold it up, behind which those who hold room
            would wait for each other.
    """

    __slots__ = ("_along", "_buffer", "_discard", "_handle", "_view", "_wait")

    def __init__(self, handle: Handle, wait: float | None, discard: bool, along: bool = False) -> None:
        check_wait(wait)
        self._along = along
        self._handle = handle
        self._wait = wait
        self._discard = discard
        self._buffer: bytearray | None = None
        self._view: memoryview | None = None

    def _begin(self, reserved: int) -> memoryview:
        handle = self._handle
        source = handle.buffer
        try:
            if source is None:
                raise handle.failure()
            self._buffer = zeros(handle.size) if self._discard else copied(source)
        except BaseException:
            handle.store.contents.drop_reserved(reserved)
            raise
        handle.refs += 1
        self._view = memoryview(self._buffer)
        return self._view

    def __enter__(self) -> memoryview:
        handle = self._handle
        handle.store.check_writable()
        if handle.buffer is None:
            raise (
                handle.failure()
                if handle.error or handle.status is Status.DELETED
                else NotResolvedError(
                    f"handle {handle.id} is {handle.status.value}: use `async with handle.edit()`, or await it first"
                )
            )
        handle.store.room.reserve_nowait(handle.size, handle.id)
        return self._begin(handle.size)

    async def __aenter__(self) -> memoryview:
        handle = self._handle
        handle.store.check_writable()
        # Held meanwhile, so that the chunk stays while room for the copy is made.
        handle.acquire()
        try:
            await handle.get(wait=self._wait)
            while True:
                size = handle.size
                room = handle.store.room
                if not (self._along and room.try_reserve_along(size)):
                    await room.reserve(size, handle.id, self._wait)
                if handle.buffer is None or handle.size == size:
                    return self._begin(size)
                # While this waited, other contents of another size came.
                handle.store.contents.drop_reserved(size)
        finally:
            handle.release()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        handle, buffer, view = self._handle, self._buffer, self._view
        assert buffer is not None
        assert view is not None
        self._buffer = self._view = None
        # Published contents do not change any more: who writes to `buf` after its block is told.
        with suppress(BufferError):  # An array looks at it.
            view.release()
        del view
        try:
            if kind is None:
                handle.store.contents.publish(handle, buffer)
            else:
                handle.store.contents.drop_reserved(len(buffer))
        finally:
            handle.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)


class HandleAlias(Handle):
    """What a handle becomes that was found to name the same id as another: a second name for that one.

    The layout is that of `Handle`, so an object can become one in place; `waiters` holds the handle it stands for.
    """

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "waiters"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "waiters"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "waiters"), name, value)

    def __eq__(self, other: object) -> bool:
        return target_of(self) is (target_of(other) if isinstance(other, HandleAlias) else other)

    def __hash__(self) -> int:
        return hash(self.waiters)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.release()

    async def __aenter__(self) -> memoryview:
        return await target_of(self).__aenter__()

    async def __aexit__(self, *details: object) -> None:
        self.release()

    def __await__(self) -> Generator[Any, None, memoryview]:
        return target_of(self).__await__()

    def __repr__(self) -> str:
        return repr(self.waiters)


def target_of(alias: HandleAlias) -> Handle:
    """The handle that an alias stands for."""
    target = object.__getattribute__(alias, "waiters")
    assert isinstance(target, Handle)
    return target_of(target) if isinstance(target, HandleAlias) else target


def _not_raised_yet(error: DStorageError) -> DStorageError:
    """An exception like `error`, made without its class's constructor, whose arguments nobody knows any more."""
    kind: Any = error.__class__
    maker = kind
    # As calling the class does, and unlike `kind.__new__`, which finds that of MemoryError beside a base it does not fit.
    while "__new__" not in vars(maker):
        maker = maker.__base__
    copy: DStorageError = maker.__new__(kind)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
