"""The space map of a disk: counts of blocks that are not metadata, of any number, with the index of bitmaps in a tree.

Index entries that change are kept in memory until `settle`, so that a tree is not rewritten for every block allocated.

Source: Linux `drivers/md/persistent-data/dm-space-map-disk.c`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from dstorage.persistent.blocks import Blocks
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.persistent.node import max_entries
from dstorage.persistent.space_map import SpaceMap
from dstorage.persistent.space_map_common import INDEX_ENTRY_BYTES, IndexEntry, MapRoot, nr_bitmaps

INDEX_DEPTH = 5
"""Levels of the largest index: of 2**40 blocks."""
MAX_PENDING = 2**18
"""Changes kept in memory before they are written: some 25 MB."""


MAX_FREED = 4096
"""Runs of freed blocks remembered; they are told as a hint only."""


class DiskSpaceMap(SpaceMap):
    """Made by `create` or `open`; see `SpaceMap`. Allocation goes on where it left off, and begins anew at the end."""

    kind = "data"

    def __init__(self, blocks: Blocks, root: MapRoot) -> None:
        super().__init__(blocks, root)
        self._tree = BTree(blocks, value_size=INDEX_ENTRY_BYTES)
        self._index_root = self._committed_root = root.index_root
        self._changed: dict[int, IndexEntry] = {}
        self._freed_runs: list[tuple[int, int]] = []

    @classmethod
    def create(cls, blocks: Blocks, nr_blocks: int) -> Self:
        """A map of free blocks."""
        made = cls(
            blocks,
            MapRoot(0, 0, BTree(blocks, value_size=INDEX_ENTRY_BYTES).empty(), BTree(blocks, value_size=4).empty()),
        )
        made.grow(nr_blocks)
        return made

    @classmethod
    def open(cls, blocks: Blocks, root: MapRoot) -> Self:
        """A map that was committed."""
        opened = cls(blocks, root)
        opened.begin()
        return opened

    def begin(self) -> None:
        """See `SpaceMap.begin`."""
        super().begin()
        self._committed_root = self._index_root
        self._freed_runs = []

    def settle(self) -> None:
        """See `SpaceMap.settle`."""
        self._settle_counts()
        for number, entry in sorted(self._changed.items()):
            self._index_root = self._tree.insert(self._index_root, number, entry.pack())
        self._changed.clear()

    def release(self, blocks: Iterable[int]) -> None:
        """Undo allocations of this transaction; the blocks can be had again at once.

        Blocks that are let go by `dec` cannot: their last reader or writer may not have finished. It has at the commit.
        """
        for block in blocks:
            self.dec((block,))
            self._recycle(block)

    def settling_blocks(self, more: int, kept: int) -> int:
        """Metadata blocks that `settle` may need.

        Args:
            more: Blocks whose counts will be changed by then, beside those that have been.
            kept: As many are kept for it in any case; whether it needs less is not looked at.
        """
        changes = min(len(self._pending) + more, self.nr_blocks)
        # For each a bitmap and the way to it in the index, as far as there are so many.
        bitmaps = nr_bitmaps(self.nr_blocks)
        index = bitmaps // (max_entries(INDEX_ENTRY_BYTES) // 3) + INDEX_DEPTH
        copies = min(changes, bitmaps) + min(INDEX_DEPTH * (changes + len(self._changed)), index)
        # The tree of large counts is looked at only if the answer depends on it.
        if copies + 6 * changes + 4 <= kept:
            return kept
        return max(kept, copies + self.overflow_blocks(more))

    @property
    def freed(self) -> list[tuple[int, int]]:
        """First and number of the blocks that lost their last reference, as far as settled, until `begin`.

        Before the commit the last one may still need their bytes; when there are very many, some are left out.
        """
        return list(self._freed_runs)

    def root(self) -> MapRoot:
        """See `SpaceMap.root`."""
        return MapRoot(self.nr_blocks, self._allocated, self._index_root, self._overflow_root)

    def _collected(self) -> None:
        super()._collected()
        # Deleting a large device must not need memory by its size. The metadata's own map cannot do so: whoever changes its counts
        # may hold the blocks that writing them needs.
        if len(self._pending) > MAX_PENDING:
            self._settle_counts()

    def _settle_counts(self) -> None:
        super().settle()

    def _entry(self, number: int) -> IndexEntry:
        entry = self._changed.get(number)
        return entry if entry is not None else self._look_up(self._index_root, number)

    def _committed_entry(self, number: int) -> IndexEntry:
        return self._look_up(self._committed_root, number)

    def _freed(self, block: int) -> None:
        runs = self._freed_runs
        if runs and sum(runs[-1]) == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif len(runs) < MAX_FREED:
            runs.append((block, 1))

    def _set_entry(self, number: int, entry: IndexEntry) -> None:
        self._changed[number] = entry

    def _look_up(self, root: int, number: int) -> IndexEntry:
        packed = self._tree.lookup(root, number)
        if packed is None:
            raise DamagedMetadataError(
                f"{self.kind} space map: bitmap {number} of {self.nr_blocks} blocks is not in the index", block=root
            )
        return IndexEntry.unpack(packed)
