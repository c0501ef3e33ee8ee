"""Many chunks at once: hints, results as they come, all together, the first few."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from dstorage.arguments import checked_count
from dstorage.errors import InvalidArgumentError, TooManyHandles
from dstorage.handle import Handle, Status
from dstorage.index import Index
from dstorage.paging.memory import Memory
from dstorage.record import checked_id
from dstorage.resolver import Resolver
from dstorage.waiting import check_wait

if TYPE_CHECKING:
    from dstorage.store import Store

PREFETCH_SHARE = 0.25
"""Of the budget: as much may be on its way in because of hints."""
IN_FLIGHT_SHARE = 0.5
"""Of the budget: as much does `Bulk.each` ask for at a time."""
MAX_ASKED = 1024


class Bulk:
    """The calls of `Store` that take many ids."""

    def __init__(self, store: Store, resolver: Resolver, memory: Memory, index: Index) -> None:
        self._store = store
        self._resolver = resolver
        self._memory = memory
        self._index = index
        self._prefetching = 0

    def prefetch(self, ids: Iterable[int]) -> None:
        """A hint that these chunks will be wanted: brings in those that fit in a share of the budget, in order.

        Never raises for an id, does nothing while memory is short.
        """
        self._store.check_open()
        room = int(self._memory.limit * PREFETCH_SHARE)
        for id in ids:
            if self._memory.critical or self._memory.wanted or self._prefetching >= room:
                return
            try:
                id = checked_id(id)
            except InvalidArgumentError:
                continue
            known = self._store.table.handles.get(id)
            if known is not None and known.status is not Status.NOT_RESOLVED:
                continue
            record = self._index.get(id)
            if record is None:
                continue
            size = record.locator.size
            # A hint waits for no room: with others like it, it might wait for room that none of them will give.
            if not self._memory.reserve(size):
                return
            self._memory.give_back(size)
            try:
                handle = self._store.table.get(id)
            except TooManyHandles:
                return
            self._prefetching += size

            def arrived(_: Handle, size: int = size) -> None:
                self._prefetching -= size

            self._resolver.start(handle, ahead=True)
            if handle.status is Status.WAITING:
                self._resolver.wait_for(handle, arrived)
            else:
                arrived(handle)
            handle.release()

    async def each(self, ids: Iterable[int], *, wait: float | None = None) -> AsyncIterator[Handle]:
        """Resolve many chunks and give their handles as the answers come.

        Each handle is referenced until the iterator is asked for the next one; its status says how it went. Only as many
        chunks are asked for at a time as half of the budget holds, so a list may be longer than memory.

        Args:
            ids: The chunks; taken one by one, as there is room.
            wait: See `Handle.resolve`.
        """
        check_wait(wait)
        arrived: asyncio.Queue[Handle] = asyncio.Queue()
        waiting = iter(ids)
        asked: dict[Handle, int] = {}
        in_flight = 0
        id = next(waiting, None)
        try:
            while True:
                while (
                    id is not None
                    and (not asked or in_flight < self._memory.limit * IN_FLIGHT_SHARE)
                    and len(asked) < MAX_ASKED
                ):
                    try:
                        handle = self._store.handle(checked_id(id))
                    except TooManyHandles:
                        if not asked:
                            raise
                        # Its turn comes when one of those has been let go.
                        break
                    if handle in asked:
                        handle.release()
                    else:
                        record = self._index.get(id)
                        asked[handle] = record.locator.size if record is not None else handle.size
                        in_flight += asked[handle]
                        handle.resolve(arrived.put_nowait, wait=wait)
                    id = next(waiting, None)
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

    async def all(self, ids: Iterable[int], *, wait: float | None = None) -> list[Handle]:
        """Resolve many chunks together; all of them must fit in the budget.

        Returns:
            A handle per id, in order, each with a reference that is the caller's to release.

        Raises:
            TemporarilyUnavailable, Lost, Deleted, MemoryUnavailable: The first that failed; no reference is left.
        """
        check_wait(wait)
        handles = self._handles(ids)
        done = asyncio.get_running_loop().create_future()
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

    def _handles(self, ids: Iterable[int]) -> list[Handle]:
        """Handles of all `ids`, or of none."""
        handles: list[Handle] = []
        try:
            # Checked here: what equals an id, as 1.0 does, is found in the table of handles.
            handles.extend(self._store.handle(checked_id(id)) for id in ids)
        except BaseException:
            for handle in handles:
                handle.release()
            raise
        return handles

    async def first(self, ids: Iterable[int], n: int | None = None, timeout: float | None = None) -> list[Handle]:
        """Wait until `n` of the chunks are resolved, or `timeout` seconds have passed.

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
        check_wait(timeout, "timeout")
        wanted = dict.fromkeys(map(checked_id, ids))
        count = len(wanted)
        enough = (
            count
            if n is None
            else checked_count("n", n, lambda n: 0 <= n <= count, f"0 to {count}: there are {count} different chunks")
        )
        handles = self._handles(wanted)
        came: list[Handle] = []
        done = asyncio.get_running_loop().create_future()
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
