"""Draining: everything moves off a controller, so that it can be taken away.

That it is to be drained is kept in the store's list: from then on it gets no new chunks, also after a crash, until it is empty or the
draining is called off. So a drain that was interrupted goes on where it was: what has moved is not there any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dstorage.commit import Committer
from dstorage.controller import ControllerStatus
from dstorage.errors import InvalidArgumentError, Lost, StoreFull, UsageError
from dstorage.index import Index
from dstorage.mover import Mover
from dstorage.paging.writeback import WriteBack
from dstorage.record import Record
from dstorage.registry import Entry, Registry
from dstorage.transfer import BATCH_CHUNKS

LOOKED_AT_A_TIME = 1024
"""Chunks looked at in one turn of the loop."""
COMMIT_S = 5.0
"""After so long what has moved is committed, so that the next drain need not move it again after a crash."""


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
        if not any(self._takes(other) for other in self._registry if other is not entry):
            raise StoreFull(f"nothing can take what is on controller {entry.name!r}: add another that is durable")
        await self._committer.exclusively(lambda: self._registry.declare_draining(entry, True))
        pinned = self._writeback.pinned
        for id in [id for id, index in pinned.items() if index == entry.index]:
            del pinned[id]
        lost: dict[int, Lost] = {}
        moved = await self._round(entry, advance, lost)
        # What was on its way there when the draining began is there after the commit.
        await self._committer.commit()
        while found := await self._round(entry, _nobody, lost):
            moved += found
            await self._committer.commit()
        if lost:
            id, first = next(iter(lost.items()))
            why = f"{len(lost)} chunks stay behind, damaged and without a copy, which `check` lists and drops; the first: {first.reason}"
            raise Lost(why, id=id, controller=entry.name) from first
        return moved

    async def call_off(self, entry: Entry) -> None:
        """Let `entry` take chunks again."""
        if entry.removed:
            raise InvalidArgumentError(f"controller {entry.name!r} was declared removed, which is for ever")
        await self._committer.exclusively(lambda: self._registry.declare_draining(entry, False))

    @staticmethod
    def _takes(entry: Entry) -> bool:
        return entry.controller is not None and not (entry.controller.volatile or entry.draining or entry.removed)

    async def _round(self, entry: Entry, advance: Callable[[int], None], lost: dict[int, Lost]) -> int:
        """Look at all chunks once; returns how many of them, or their copies, were on `entry` and could be taken from it.

        Those that are damaged are put into `lost`, and left alone if they are in it.
        """
        found = looked = 0
        batch: list[int] = []
        committed = time.monotonic()

        async def carry() -> None:
            nonlocal looked, committed, found
            if not entry.draining:
                raise UsageError(
                    f"the draining of controller {entry.name!r} was called off; what has moved stays moved"
                )
            while batch:
                nobody = f"nothing can take the chunks of controller {entry.name!r}: add a controller with room, or cancel the drain"
                try:
                    await self._mover.move_to_fastest(batch, StoreFull(nobody))
                    batch.clear()
                except Lost as error:
                    if error.id not in batch:
                        raise
                    # The others are to be saved all the same.
                    lost[error.id] = error
                    found -= 1
                    batch.remove(error.id)
            advance(looked)
            looked = 0
            if time.monotonic() - committed > COMMIT_S:
                await self._committer.commit()
                committed = time.monotonic()
            await asyncio.sleep(0)

        for id in self._index.ids():
            looked += 1
            record, *copies = (None,) if id in lost else self._index.places(id) or (None,)
            if record is not None and record.controller == entry.index:
                batch.append(id)
                found += 1
            elif record is not None and any(copy.controller == entry.index for copy in copies):
                if self._readable(record):
                    kept = tuple(copy for copy in copies if copy.controller != entry.index)
                    self._index.put(id, record, copies=kept)
                else:
                    # Not before there is another place from which it can be read.
                    batch.append(id)
                found += 1
            if len(batch) == BATCH_CHUNKS or looked == LOOKED_AT_A_TIME:
                await carry()
        await carry()
        return found

    def _readable(self, record: Record) -> bool:
        entry = self._registry[record.controller]
        return entry is not None and entry.status not in (
            ControllerStatus.TEMPORARILY_UNAVAILABLE,
            ControllerStatus.REMOVED,
        )


def _nobody(count: int) -> None:
    pass
