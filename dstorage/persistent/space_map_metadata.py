"""The space map of the metadata themselves: it stores its counts in the very blocks that it counts.

The index of its bitmaps is one block, held in memory and written by `settle`, so that changing it needs no allocation. A map is
made as one of no blocks that grows: whatever the last commit does not know is free, so its own first blocks come from there.

Source: Linux `drivers/md/persistent-data/dm-space-map-metadata.c`.
"""

from __future__ import annotations

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.node import max_entries
from dstorage.persistent.space_map import SpaceMap
from dstorage.persistent.space_map_common import (
    BITMAP_ENTRIES,
    INDEX,
    INDEX_ENTRY_BYTES,
    INDEX_HEADER_BYTES,
    MAX_INDEX_ENTRIES,
    IndexEntry,
    MapRoot,
    nr_bitmaps,
    summary,
)

MAX_METADATA_BLOCKS = MAX_INDEX_ENTRIES * BITMAP_ENTRIES
"""4161600, about 15.9 GiB: the index is one block."""


class MetadataSpaceMap(SpaceMap):
    """Made by the transaction manager; see `SpaceMap`. The lowest free block is taken first."""

    kind = "metadata"

    def __init__(self, blocks: Blocks, root: MapRoot) -> None:
        super().__init__(blocks, root)
        self._index_block = root.index_root
        self._index: list[IndexEntry] = []
        self._committed_index: list[IndexEntry] = []

    def format(self, nr_blocks: int) -> None:
        """Make a map of no blocks one of so many; the superblock has a reference, and what the map itself needs.

        Raises:
            InvalidArgumentError: More than a map can count.
            SpaceMapFullError: Too few for the map itself.
        """
        self._cursor = 1
        self._pending[0] = 1
        self.fresh.add(0)
        self.grow(nr_blocks)
        index = self._blocks.new_block(INDEX)
        self._blocks.unlock(index)
        self._index_block = index.number
        self._overflow_root = self._overflow.empty()

    def load(self, *, recount: bool) -> None:
        """Read the index of a map that was committed.

        Args:
            recount: Look into each bitmap rather than believe what the index says about it: thin_restore leaves it wrong by one.

        Raises:
            DamagedMetadataError: The map is damaged.
        """
        entries = nr_bitmaps(self.nr_blocks)
        if not 0 < entries <= MAX_INDEX_ENTRIES:
            raise self.damaged(0, f"a map of {self.nr_blocks} blocks")
        block = self._blocks.read_lock(self._index_block, INDEX)
        try:
            for number in range(entries):
                at = INDEX_HEADER_BYTES + number * INDEX_ENTRY_BYTES
                self._index.append(IndexEntry.unpack(block.data[at : at + INDEX_ENTRY_BYTES]))
        finally:
            self._blocks.unlock(block)
        found = list(self._index)
        if recount:
            self._index = [
                IndexEntry(entry.block, *summary(self._bits(number), self._valid(number)))
                for number, entry in enumerate(found)
            ]
            self._allocated = self.nr_blocks - sum(entry.free for entry in self._index)
        self.begin()
        # What was wrong is put right with the next commit.
        self.is_changed = self._index != found

    def begin(self) -> None:
        """See `SpaceMap.begin`."""
        self._cursor = 0
        super().begin()
        self._committed_index = list(self._index)

    def check_growth(self, nr_blocks: int) -> None:
        """See `SpaceMap.check_growth`.

        Raises:
            InvalidArgumentError: Also if there are more blocks than a map can count.
        """
        if nr_blocks > MAX_METADATA_BLOCKS:
            raise InvalidArgumentError(f"{nr_blocks} metadata blocks: at most {MAX_METADATA_BLOCKS} are possible")
        super().check_growth(nr_blocks)

    def settle(self) -> None:
        """See `SpaceMap.settle`; writes the index as well."""
        if not self.is_changed:
            return
        # Copied before the counts are written, for that changes them; filled behind, when nothing changes any more.
        shadow, _ = self._blocks.shadow_block(self._index_block, INDEX)
        try:
            self._index_block = shadow.number
            super().settle()
            packed = b"".join([entry.pack() for entry in self._index])
            shadow.data[INDEX_HEADER_BYTES : INDEX_HEADER_BYTES + len(packed)] = packed
        finally:
            self._blocks.unlock(shadow)

    def root(self) -> MapRoot:
        """See `SpaceMap.root`."""
        return MapRoot(self.nr_blocks, self._allocated, self._index_block, self._overflow_root)

    def _dropped(self, block: int) -> None:
        # Nodes come and go within a transaction; nobody uses one that is not referred to.
        self._recycle(block)

    def _large_nodes(self) -> int:
        # Without a look into the tree, which may be far: if all blocks had large counts, in nodes a third full.
        return self.nr_blocks // (max_entries(4) // 3) + 1

    def _entry(self, number: int) -> IndexEntry:
        return self._index[number]

    def _committed_entry(self, number: int) -> IndexEntry:
        return self._committed_index[number]

    def _set_entry(self, number: int, entry: IndexEntry) -> None:
        if number == len(self._index):
            self._index.append(entry)
        else:
            self._index[number] = entry
