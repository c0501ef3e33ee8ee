"""The two ways to a store: on its own loop, or from any thread.

The array is written once, as coroutines over an `Access`. On the store's loop they are awaited. In any other thread they are run
by `complete`: there every call of the access waits by blocking the thread, so a coroutine never suspends and one step takes
it to its end. Computing and copying thus happen where the program is, not on the store's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dstorage.handle import Status
from dstorage.store import Store

if TYPE_CHECKING:
    import dstorage.blocking

T = TypeVar("T")


class Access(Protocol):
    """What an array asks of its store.

    Attributes:
        store: The store; its own methods are for its loop.
    """

    store: Store

    async def get(self, id: int) -> memoryview:
        """The bytes of a chunk, read-only; they never change, and are valid for as long as somebody has the view."""

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], object]) -> T:
        """Run a coroutine function on the loop; `undo` is called there with a result that could not be delivered."""

    def post(self, function: Callable[[], object]) -> None:
        """Have a function called on the loop, now or soon."""

    async def breathe(self) -> None:
        """Between two tiles: let others on the same loop have their turn."""

    def prefetch(self, ids: Iterable[int], done: Iterable[int] = ()) -> None:
        """See `dstorage.Store.prefetch`; the contents of the chunks `done` may leave memory first."""


class OnLoop:
    """Access for coroutines on the store's loop.

    Args:
        store: The store.
        wait: Seconds to wait for room in memory, or for a controller that is away; None: not at all.
    """

    def __init__(self, store: Store, wait: float | None) -> None:
        self.store = store
        self._wait = wait

    async def get(self, id: int) -> memoryview:
        """See `Access.get`."""
        with self.store.table.get(id) as handle:
            return await handle.get(wait=self._wait)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], object]) -> T:
        """See `Access.run`."""
        return await work()

    def post(self, function: Callable[[], object]) -> None:
        """See `Access.post`."""
        function()

    async def breathe(self) -> None:
        """See `Access.breathe`."""
        await asyncio.sleep(0)

    def prefetch(self, ids: Iterable[int], done: Iterable[int] = ()) -> None:
        """See `Access.prefetch`."""
        self.store.contents.leave_first(done)
        self.store.prefetch(ids)


class FromThread:
    """Access from any thread but the loop's; nothing here ever suspends.

    Args:
        store: The blocking store.
        wait: As for `OnLoop`.
    """

    def __init__(self, store: dstorage.blocking.Store, wait: float | None) -> None:
        self.store = store.inner
        self._blocking = store
        self._wait = wait

    async def get(self, id: int) -> memoryview:
        """See `Access.get`."""
        return self._blocking.get(id, wait=self._wait)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], object]) -> T:
        """See `Access.run`."""
        return self._blocking.loop.run(work, undo=undo)

    def post(self, function: Callable[[], object]) -> None:
        """See `Access.post`."""
        self._blocking.loop.post(function)

    async def breathe(self) -> None:
        """See `Access.breathe`: nobody else is on this thread."""

    def prefetch(self, ids: Iterable[int], done: Iterable[int] = ()) -> None:
        """See `Access.prefetch`."""
        known = self.store.table.handles
        # A trip to the loop only for what is not on its way already.
        absent = [id for id in ids if (handle := known.get(id)) is None or handle.status is Status.NOT_RESOLVED]
        done = list(done)
        if absent or done:
            self._blocking.loop.post(lambda: self._hint(absent, done))

    def _hint(self, wanted: list[int], done: list[int]) -> None:
        self.store.contents.leave_first(done)
        self.store.prefetch(wanted)


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends (see the module's docstring)."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError(f"{work} suspended: it waits for something else than its access")
