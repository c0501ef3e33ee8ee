"""The commit: one durability promise for all controllers.

1. *Cut.* In one step of the loop: the present contents of all dirty durable chunks and all changed records become the commit's.
   Contents are immutable, so the program goes on changing chunks meanwhile; that is the next commit's.
2. *Write* what is not on a controller yet, and the copies that rules ask for. Nothing that the last commit refers to is overwritten.
3. *Sync* every controller that took something.
4. *Switch* all records, names and private states of controllers in one LMDB transaction.
5. *Discard* the places that no commit refers to any more.

A failure up to 4 leaves the last commit as it was, and what was cut becomes current again. Commits asked for while
one is under way share the next.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import lmdb

from dstorage.catalog import Changes
from dstorage.copies import Copier
from dstorage.errors import ControllerUnavailable, CorruptData, StoreFull, TemporarilyUnavailable
from dstorage.events import Events
from dstorage.index import Index
from dstorage.paging.writeback import WriteBack
from dstorage.record import Locator
from dstorage.registry import Entry, Registry
from dstorage.uses import Uses

RECOUNTED_AT_A_TIME = 1024
"""Records that a recount looks at before it lets the loop go on: a few milliseconds."""

Places = dict[int, list[tuple[int, Locator]]]
"""Controller index -> (id, locator) pairs."""


class Committer:
    """Makes the commits of one store.

    Args:
        index: What changed.
        writeback: Writes what is dirty.
        registry: Whom to sync.
        copier: Makes the copies without which a commit is not there.
        writer: One thread, the only one that writes to the catalog.
        spawn: Starts a task that the store owns.
        discard: Frees places after the switch.
        events: Is told of each commit.
    """

    def __init__(
        self,
        index: Index,
        writeback: WriteBack,
        registry: Registry,
        uses: Uses,
        *,
        copier: Copier,
        writer: ThreadPoolExecutor,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        discard: Callable[[int, list[tuple[int, Locator]]], None],
        events: Events,
    ) -> None:
        self._index = index
        self._writeback = writeback
        self._registry = registry
        self._uses = uses
        self._copier = copier
        self._writer = writer
        self._spawn = spawn
        self._discard = discard
        self._events = events
        self._lock = asyncio.Lock()
        self._asked = 0
        self._covered = 0
        self.commits = 0

    async def commit(self) -> None:
        """Make everything up to now durable. Cancelling it leaves the commit going on.

        Raises:
            StoreFull: No durable controller, or the catalog's disk, has room.
            TemporarilyUnavailable: A controller could not write or sync now.
        """
        self._asked += 1
        await asyncio.shield(self._spawn(self._commit_for(self._asked)))

    async def exclusively(self, function: Callable[[], None]) -> None:
        """Run `function`, which writes to the catalog, in the writer thread and not beside a commit."""
        async with self._lock:
            await asyncio.get_running_loop().run_in_executor(self._writer, function)
            self._index.catalog.refresh()

    async def recount(self, entry: Entry) -> bool:
        """Have a controller count anew what the last commit refers to, and save its books; returns whether they are right now."""
        async with self._lock:
            controller = entry.controller
            if controller is None:
                return False
            try:
                # The books also say how far its medium is written.
                await self._sync({entry.index})
            except TemporarilyUnavailable:
                return False
            counted = 0

            async def places() -> AsyncIterator[tuple[int, Locator]]:
                nonlocal counted
                for number, (id, record) in enumerate(self._index.catalog.records()):
                    if number % RECOUNTED_AT_A_TIME == 0:
                        await asyncio.sleep(0)
                    for place in (record, *self._index.catalog.copies(id)):
                        if place.controller == entry.index:
                            # What names no place takes none.
                            with suppress(CorruptData):
                                counted += controller.footprint(place.locator)
                            yield id, place.locator

            every = places()
            state = await controller.recount(every)
            async for _ in every:
                pass
            if state:
                await self._switch(Changes(state={(entry.index, key): value for key, value in state.items()}))
                self._index.catalog.refresh()
                controller.committed()
            return controller.committed_bytes() == counted

    async def recount_chunks(self) -> None:
        """Count the records of the last commit anew, and save how many there are."""
        async with self._lock:
            count = 0
            for _ in self._index.catalog.records():
                count += 1
                if count % RECOUNTED_AT_A_TIME == 0:
                    await asyncio.sleep(0)
            await self._switch(Changes(count=count))
            self._index.catalog.refresh()

    async def _commit_for(self, ticket: int) -> None:
        async with self._lock:
            if self._covered >= ticket:
                return
            asked = self._asked
            self._index.freeze()
            self._writeback.begin_cut()
            try:
                dead = await self._make_durable()
            except BaseException:
                self._index.thaw()
                raise
            finally:
                self._writeback.cut = {}
            self._covered = asked
            self.commits += 1
            if self._events.streams:
                self._events.emit("commit")
        for controller, places in dead.items():
            self._discard(controller, places)

    async def _make_durable(self) -> Places:
        """Steps 2 to 4; returns what the new state no longer refers to."""
        index = self._index
        await self._writeback.write_cut()
        if not index.frozen and not index.frozen_names:
            index.committed()
            return {}
        await self._copier.cover(index.frozen)
        await self._sync(
            {record.controller for record in index.frozen.values() if record is not None}
            | {copy.controller for copies in index.frozen_copies.values() for copy in copies}
        )
        loop = asyncio.get_running_loop()
        alive, dead = await loop.run_in_executor(self._writer, self._sort_places)
        accessed = self._uses.take_times()
        state: dict[tuple[int, int], bytes] = {}
        touched = []
        for number in alive.keys() | dead.keys():
            entry = self._registry[number]
            if entry is not None and entry.controller is not None:
                touched.append(entry.controller)
                changes = entry.controller.checkpoint(alive.get(number, []), dead.get(number, []))
                state.update({(number, key): value for key, value in changes.items()})
        await self._switch(index.frozen_changes(accessed, state))
        index.committed()
        for controller in touched:
            controller.committed()
        # What was copied or moved since the cut may refer to some of it still, until the newer bytes are written.
        current = index.current
        return {
            number: [
                (id, place) for id, place in places if id not in current or not index.is_current(id, (number, place))
            ]
            for number, places in dead.items()
        }

    async def _switch(self, changes: Changes) -> None:
        catalog = self._index.catalog
        catalog.make_room(len(changes.records) + len(changes.accessed) + len(changes.names) + len(changes.state))
        try:
            while True:
                try:
                    await asyncio.get_running_loop().run_in_executor(self._writer, catalog.apply, changes)
                    return
                except lmdb.MapFullError:
                    catalog.grow()
        except lmdb.Error as error:
            raise StoreFull(f"the catalog {catalog.path} cannot be written: {error}") from error

    async def _sync(self, controllers: set[int]) -> None:
        async def sync(number: int) -> None:
            entry = self._registry[number]
            if entry is None or entry.controller is None:
                name = entry.name if entry else str(number)
                raise TemporarilyUnavailable(f"controller {name!r} was unloaded before the commit", controller=name)
            try:
                await entry.controller.sync()
            except ControllerUnavailable as error:
                raise TemporarilyUnavailable(
                    f"controller {entry.name!r} cannot make the commit durable now: {error}", controller=entry.name
                ) from error

        answers = await asyncio.gather(*map(sync, controllers), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _sort_places(self) -> tuple[Places, Places]:
        """What this commit begins and what it ceases to refer to (in the writer thread; `frozen` is not changed now)."""
        frozen, copies = self._index.frozen, self._index.frozen_copies
        alive: Places = defaultdict(list)
        dead: Places = defaultdict(list)
        for id, old in self._index.catalog.superseded(frozen):
            before = {place[1:] for place in old}
            now = {place[1:] for place in (frozen[id], *copies.get(id, ())) if place is not None}
            for controller, locator in now - before:
                alive[controller].append((id, locator))
            for controller, locator in before - now:
                dead[controller].append((id, locator))
        return alive, dead
