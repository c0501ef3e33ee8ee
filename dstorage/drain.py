"""Draining: everything moves off a controller, so that it can be taken away.

That it is to be drained is kept in the store's list: from then on it gets no new chunks, also after a crash, until it is empty or the
draining is called off. So a drain that was interrupted goes on where it was: what has moved is not there any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from dstorage.commit import Committer
from dstorage.errors import StoreFull
from dstorage.index import Index
from dstorage.mover import Mover
from dstorage.paging.writeback import WriteBack
from dstorage.registry import Entry, Registry

IDS_AT_A_TIME = 1024


class Drainer:
    """Empties controllers of one store.

    Args:
        mover: Moves chunks.
        index: Says where they are.
        registry: Keeps what is to be drained.
        writeback: Knows which chunks are meant for one controller.
        committer: Makes the moves durable.
    """

    def __init__(
        self, mover: Mover, index: Index, registry: Registry, writeback: WriteBack, committer: Committer
    ) -> None:
        self._mover = mover
        self._index = index
        self._registry = registry
        self._writeback = writeback
        self._committer = committer

    async def drain(self, entry: Entry, advance: Callable[[int], None]) -> int:
        """Move everything off `entry`; see `Store.drain`."""
        await self._committer.exclusively(lambda: self._registry.declare_draining(entry, True))
        pinned = self._writeback.pinned
        for id in [id for id, index in pinned.items() if index == entry.index]:
            del pinned[id]
        moved = await self._round(entry, advance)
        # What was on its way there when the draining began is there after the commit.
        await self._committer.commit()
        while found := await self._round(entry, _nobody):
            moved += found
            await self._committer.commit()
        return moved

    async def call_off(self, entry: Entry) -> None:
        """Let `entry` take chunks again."""
        await self._committer.exclusively(lambda: self._registry.declare_draining(entry, False))

    async def _round(self, entry: Entry, advance: Callable[[int], None]) -> int:
        moved = 0
        ids = self._index.ids()
        while part := list(islice(ids, IDS_AT_A_TIME)):
            records = []
            for id in part:
                record, *copies = self._index.places(id) or (None,)
                if record is not None and record.controller == entry.index:
                    records.append(id)
                elif record is not None and any(copy.controller == entry.index for copy in copies):
                    kept = tuple(copy for copy in copies if copy.controller != entry.index)
                    self._index.put(id, record, copies=kept)
                    moved += 1
            if records:
                nobody = f"nothing can take the {len(records)} chunks of controller {entry.name!r}: add a controller with room"
                await self._mover.move_to_fastest(records, StoreFull(nobody))
                moved += len(records)
            advance(len(part))
            await asyncio.sleep(0)
        return moved


def _nobody(count: int) -> None:
    pass
