"""The blocking handle: a chunk by its id, for any thread.

It is an id and the store, nothing more: it holds no reference and needs no release. What it gives to look at is held by looking
at it: contents never change once published, so a view stays what it is as long as somebody has it, whatever becomes of the
chunk. (Memory of the store's that is looked at stays counted in the budget; what was read from the page cache in the calling thread is
the caller's.) `acquire` keeps a chunk in memory while nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

from dstorage.blocking.delivery import Deliver
from dstorage.controller import Buffer
from dstorage.errors import DStorageError, Lost, NotResolvedError, UsageError
from dstorage.handle import Edit as AsyncEdit
from dstorage.handle import Handle as AsyncHandle
from dstorage.handle import Status

if TYPE_CHECKING:
    from types import TracebackType

    from dstorage.blocking.store import Store

Callback = Callable[["Handle"], object]

Answer = tuple[Status, DStorageError | None, memoryview | None]
"""How a resolve went: status, error, bytes."""


class Handle:
    """A chunk of a blocking store; get it from `Store.handle` or `Store.create`. For any thread; two for one id are equal.

    Used with ``with`` it gives the bytes::

        with store.handle(id) as data:
            ...

    Attributes:
        store: The store.
        id: The chunk's id.
    """

    __slots__ = ("_answer", "id", "store")

    def __init__(self, store: Store, id: int) -> None:
        self.store = store
        self.id = id
        self._answer: Answer | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> memoryview:
        """The bytes, read-only, if they are in memory.

        Raises:
            NotResolvedError: They are not.
            ClosedError: The store is closed.
        """
        data = self._answer[2] if self._answer is not None else self.store.peek(self.id)
        if data is None:
            self.store.inner.check_open()
            raise NotResolvedError(f"chunk {self.id} is {self.status.value}: use get(), or resolve() first")
        return data

    def get(self, *, wait: float | None = None) -> memoryview:
        """The bytes as a read-only memoryview; from memory, or from the system's page cache, without a trip to the loop.

        What the page cache has comes into memory when it is asked for again, or if the chunk is acquired.

        Args:
            wait: Seconds to keep trying while the chunk is temporarily unavailable or memory is short.

        Raises:
            TemporarilyUnavailable, MemoryUnavailable: Cannot be had now, or still not after `wait` seconds.
            Lost: Gone for ever.
            Deleted: The program deleted the chunk.
        """
        return self.store.get(self.id, wait=wait)

    def resolve(
        self, callback: Callback | None = None, *, wait: float | None = None, deliver: Deliver | None = None
    ) -> None:
        """Ask for the bytes; does not wait.

        Args:
            callback: Called exactly once with a handle, never from within this call. While it runs, the handle's
                `status`, `error` and `data` are the answer, whatever becomes of the chunk meanwhile.
            wait: Seconds to keep trying while the chunk is temporarily unavailable or memory is short.
            deliver: Where to call it; by default as given to `dstorage.blocking.open`.

        Raises:
            InvalidArgumentError: `wait` or `deliver` is none.
        """
        self.store.resolve(self.id, callback, wait=wait, deliver=deliver)

    def call_back(self, callback: Callback, answer: Answer) -> None:
        """Run a callback, for which the handle shows the answer (for the store)."""
        self._answer = answer
        try:
            callback(self)
        finally:
            self._answer = None

    def __enter__(self) -> memoryview:
        return self.get()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Nothing is held."""

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """See `dstorage.Status`; NOT_RESOLVED also for an id that was not asked for yet."""
        if self._answer is not None:
            return self._answer[0]
        known = self.store.inner.table.handles.get(self.id)
        return known.status if known is not None else Status.NOT_RESOLVED

    @property
    def error(self) -> DStorageError | None:
        """Why the last resolve failed, else None."""
        if self._answer is not None:
            return self._answer[1]
        known = self.store.inner.table.handles.get(self.id)
        return known.error if known is not None else None

    @property
    def size(self) -> int:
        """Length in bytes.

        Raises:
            Lost: There is no such chunk.
        """
        info = self.store.info(self.id)
        if info is None:
            raise Lost("unknown id", id=self.id)
        return info.size

    @property
    def dirty(self) -> bool:
        """Changed since it was last written to a controller."""
        known = self.store.inner.table.handles.get(self.id)
        return known is not None and known.dirty

    # -- references ---------------------------------------------------------------------------------------------------

    def acquire(self) -> Self:
        """Keep the chunk in memory, once it is there, until `release`.

        Returns:
            The handle itself.
        """
        table = self.store.inner.table
        self.store.loop.call(lambda call: call.done(table.get(self.id)), AsyncHandle.release)
        return self

    def release(self) -> None:
        """Undo one `acquire`.

        Raises:
            OverReleaseError: There was none.
        """

        def release() -> None:
            handle = self.store.inner.table.get(self.id)
            handle.release()
            handle.release()

        self.store.loop.finish(release)

    # -- changing -----------------------------------------------------------------------------------------------------

    def edit(self, *, wait: float | None = None, discard: bool = False) -> Edit:
        """Change the contents in place::

            with handle.edit() as buf:
                buf[0] = 1

        `buf` is a writable memoryview on a private copy. It becomes the contents when the block ends normally; an
        exception discards it. Readers keep the bytes they have. Whoever ends last wins, as with files.

        Args:
            wait: Seconds to wait for room or an unavailable chunk.
            discard: Do not copy: `buf` starts as zeros.

        Raises:
            MemoryUnavailable: No room for the copy.
            TemporarilyUnavailable, Lost, Deleted: As for `get`.
        """
        return Edit(self, wait, discard)

    def replace(self, data: Buffer, *, wait: float | None = None) -> None:
        """Give the chunk other contents, of any size; the old ones need not be in memory.

        Raises:
            MemoryUnavailable: No room, even after `wait` seconds.
            Lost, Deleted: There is no such chunk any more.
        """

        async def replace(handle: AsyncHandle) -> None:
            await handle.replace(data, wait=wait)

        self._with(replace)

    def delete(self) -> None:
        """Delete the chunk: at once for this program, for good with the next commit.

        Raises:
            Lost: There is no such chunk.
        """

        def delete() -> None:
            with self.store.inner.table.get(self.id) as handle:
                handle.delete()

        self.store.loop.call_sync(delete)

    def flush(self) -> None:
        """Return when the contents are on a controller (durable they are only after `Store.commit`).

        Raises:
            StoreFull: No controller has room.
            TemporarilyUnavailable: No controller takes it now.
        """
        self._with(AsyncHandle.flush)

    def _with(self, work: Callable[[AsyncHandle], Coroutine[Any, Any, None]]) -> None:
        async def on_loop() -> None:
            with self.store.inner.table.get(self.id) as handle:
                await work(handle)

        self.store.loop.run(on_loop)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other.id == self.id and other.store is self.store

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<blocking.Handle {self.id}, {self.status.value}>"


class Edit:
    """The block of `Handle.edit`; use it once."""

    __slots__ = ("_discard", "_edit", "_handle", "_wait")

    def __init__(self, handle: Handle, wait: float | None, discard: bool) -> None:
        self._handle = handle
        self._wait = wait
        self._discard = discard
        self._edit: AsyncEdit | None = None

    def __enter__(self) -> memoryview:
        store, id = self._handle.store, self._handle.id

        async def begin() -> tuple[AsyncEdit, memoryview]:
            # The edit holds a reference of its own.
            with store.inner.table.get(id) as handle:
                edit = handle.edit(wait=self._wait, discard=self._discard)
                return edit, await edit.__aenter__()

        def undo(begun: tuple[AsyncEdit, memoryview]) -> None:
            begun[0].__exit__(KeyboardInterrupt, None, None)

        self._edit, buffer = store.loop.run(begin, undo=undo)
        return buffer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        edit, self._edit = self._edit, None
        if edit is None:
            raise UsageError("this edit is over: call handle.edit() again")
        # Without the traceback, whose frames hold the view on the copy.
        self._handle.store.loop.finish(edit.__exit__, kind, None, None)
