"""Reference counts of blocks, and which are free: what the maps of metadata and of data have in common.

What is promised: counts are exact after every call; a block that was freed in this transaction is not given out before its commit,
so the last commit stays whole until the next one is; the committed counts are never overwritten.

Changes are collected in memory and written to the bitmaps by `settle`, sorted, each bitmap once. Writing may itself allocate and
free metadata blocks; when the map is the metadata's own, these changes join the collection, and `settle` goes on until nothing is
left. It ends, because a bitmap or a node of the overflow tree is copied at most once in a transaction. (The kernel writes each
change at once and queues only what comes up meanwhile; here everything is queued, which is the same for whoever asks for a count.)

Source: Linux `drivers/md/persistent-data/dm-space-map-common.c`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain, groupby

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError, SpaceMapFullError
from dstorage.persistent.space_map_common import (
    BITMAP,
    BITMAP_ENTRIES,
    BITMAP_HEADER_BYTES,
    MANY,
    MAX_COUNT,
    PAIRS,
    IndexEntry,
    MapRoot,
    bits_of,
    free_entries,
    nr_bitmaps,
    summary,
)


class SpaceMap(ABC):
    """Counts of the blocks 0 to `nr_blocks` - 1.

    A method that raises anything but `SpaceMapFullError` may have been half made: abort the transaction.

    Args:
        blocks: The metadata blocks that bitmaps and trees are made of.
        root: What it is; `begin` must be called before use.

    Attributes:
        nr_blocks: Blocks counted.
        fresh: Blocks that were allocated in this transaction and have references.
        is_changed: Whether there is anything to commit.
        has_freed: Whether there may be blocks that are not free now, but after the commit.
    """

    kind: str
    """What the blocks are for, in messages: "data" or "metadata"."""

    def __init__(self, blocks: Blocks, root: MapRoot) -> None:
        self._blocks = blocks
        self._overflow = BTree(blocks, value_size=4)
        self._overflow_root = root.overflow_root
        self._allocated = root.nr_allocated
        self.nr_blocks = root.nr_blocks
        self.is_changed = self.has_freed = False
        self.fresh: set[int] = set()
        self._pending: dict[int, int] = {}
        self._recycled: list[int] = []
        self._cursor = 0
        self._committed_blocks = self._committed_allocated = 0
        self._free: Iterator[int] = iter(())
        self._overflow_nodes: int | None = None

    # -- counts -------------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Blocks that can be allocated in this transaction."""
        return self.nr_blocks - self._committed_allocated - len(self.fresh)

    def count(self, block: int) -> int:
        """References to a block.

        Raises:
            DamagedMetadataError: There is no such block, or the map is damaged.
        """
        return self._stored(block) + self._pending.get(block, 0)

    def inc(self, blocks: Iterable[int]) -> None:
        """Count one reference more to each of some blocks, which must have some already."""
        pending = self._pending
        for block in blocks:
            pending[block] = pending.get(block, 0) + 1
        self._collected()

    def dec(self, blocks: Iterable[int]) -> None:
        """Count one reference less to each of some blocks."""
        pending, fresh = self._pending, self.fresh
        for block in blocks:
            pending[block] = pending.get(block, 0) - 1
            if block in fresh:
                self._dropped(block)
            else:
                self.has_freed = True
        self._collected()

    def allocate(self) -> int:
        """Take a free block; it has one reference, the caller's.

        Raises:
            SpaceMapFullError: There is none.
        """
        if self._recycled:
            block = self._recycled.pop()
        else:
            try:
                block = next(self._free)
            except StopIteration:
                raise SpaceMapFullError(
                    f"all {self.nr_blocks} {self.kind} blocks are in use; those freed since the last commit come after the next",
                    kind=self.kind,
                ) from None
            self._cursor = block + 1
        self.fresh.add(block)
        self._pending[block] = self._pending.get(block, 0) + 1
        self._collected()
        return block

    def grow(self, nr_blocks: int) -> None:
        """Count more blocks; the new ones are free and can be had at once.

        Raises:
            InvalidArgumentError: That would be fewer.
            SpaceMapFullError: Nothing is left to put the new bitmaps in; the map may be half grown, so abort the transaction.
        """
        self.check_growth(nr_blocks)
        before = self.nr_blocks
        self._free = chain(self._free, range(max(before, self._cursor), nr_blocks))
        self.nr_blocks = nr_blocks
        self.is_changed = True
        for number in range(before // BITMAP_ENTRIES, nr_bitmaps(nr_blocks)):
            valid = self._valid(number)
            if number < nr_bitmaps(before):
                free, hint = summary(self._bits(number), valid)
                self._set_entry(number, IndexEntry(self._entry(number).block, free, hint))
            else:
                block = self._blocks.new_block(BITMAP)
                self._blocks.unlock(block)
                self._set_entry(number, IndexEntry(block.number, valid, 0))

    def check_growth(self, nr_blocks: int) -> None:
        """Raise unless the map can grow to so many blocks.

        Raises:
            InvalidArgumentError: There are more already.
        """
        if nr_blocks < self.nr_blocks:
            raise InvalidArgumentError(
                f"{nr_blocks} {self.kind} blocks: there are {self.nr_blocks}, and a map can only grow"
            )

    # -- transactions -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction begins: everything settled is committed, and what has no reference now can be allocated."""
        self._committed_blocks = self.nr_blocks
        self._committed_allocated = self._allocated
        self.is_changed = self.has_freed = False
        self.fresh.clear()
        self._recycled.clear()
        self._overflow_nodes = None
        self._free = self._free_blocks(min(self._cursor, self.nr_blocks))

    def settle(self) -> None:
        """Write all counts to their bitmaps; `root` is what a superblock is to keep."""
        self._overflow_nodes = None
        pending = self._pending
        while changed := sorted(block for block, delta in pending.items() if delta):
            for number, group in groupby(changed, key=lambda block: block // BITMAP_ENTRIES):
                self._settle_bitmap(number, list(group))
        pending.clear()

    def overflow_blocks(self, more: int) -> int:
        """Metadata blocks that `settle` may need for the tree of counts of 3 and more.

        Args:
            more: Blocks whose counts will be changed by then, beside those that have been.
        """
        changes = min(len(self._pending) + more, self.nr_blocks)
        if not changes:
            return 0
        nodes = self._large_nodes()
        # A count that goes takes its leaf, its leaf's neighbours and the node above; one that comes may split its leaf. Beside that
        # the tree grows by what many of them fill.
        return min(4 * changes, nodes) + min(changes, nodes) + changes // 100 + 4

    @abstractmethod
    def root(self) -> MapRoot:
        """What a superblock is to keep; valid after `settle`, until the next change."""

    # -- the index, which the two maps keep differently ---------------------------------------------------------------

    @abstractmethod
    def _entry(self, number: int) -> IndexEntry:
        """Of a bitmap, as it is now."""

    @abstractmethod
    def _committed_entry(self, number: int) -> IndexEntry:
        """Of a bitmap, as at the last commit."""

    @abstractmethod
    def _set_entry(self, number: int, entry: IndexEntry) -> None:
        """Change or add a bitmap's entry."""

    def _freed(self, block: int) -> None:  # noqa: B027  # not every map has somebody to tell
        """A block that had references is written to have none; called in ascending order within a bitmap."""

    # -- parts --------------------------------------------------------------------------------------------------------

    def _valid(self, number: int) -> int:
        """Entries of a bitmap that stand for blocks."""
        return min(BITMAP_ENTRIES, self.nr_blocks - number * BITMAP_ENTRIES)

    def _bits(self, number: int) -> memoryview:
        return self._blocks.peek(self._entry(number).block, BITMAP, bits_of)

    def _stored(self, block: int) -> int:
        """What bitmap and overflow tree say."""
        if not 0 <= block < self.nr_blocks:
            raise self.damaged(block, f"referred to, but the map has only {self.nr_blocks}")
        number, entry = divmod(block, BITMAP_ENTRIES)
        small = PAIRS[self._bits(number)[entry >> 2] >> 2 * (entry & 3) & 3]
        return small if small < MANY else self._large(block)

    def _large(self, block: int) -> int:
        value = self._overflow.lookup(self._overflow_root, block)
        count = 0 if value is None else int.from_bytes(value, "little")
        if count < MANY:
            raise self.damaged(block, "its count of 3 or more is not in the overflow tree")
        return count

    def _large_nodes(self) -> int:
        """Nodes that the overflow tree has at most, as far as it is written."""
        if self._overflow_nodes is None:
            self._overflow_nodes = self._overflow.nodes(self._overflow_root)
        return self._overflow_nodes

    def _dropped(self, block: int) -> None:
        """A block of this transaction has lost a reference."""
        self.has_freed = True

    def _recycle(self, block: int) -> None:
        """Give a block of this transaction out again before the commit, if nothing refers to it.

        The committed state never did; but whoever used the block must have done with it.
        """
        if not self.count(block):
            self.fresh.discard(block)
            self._recycled.append(block)

    def _collected(self) -> None:
        """Changes were collected in memory."""
        self.is_changed = True

    def _settle_bitmap(self, number: int, blocks: list[int]) -> None:
        """Write the collected changes of some blocks of one bitmap."""
        shadow, _ = self._blocks.shadow_block(self._entry(number).block, BITMAP)
        large: list[tuple[int, int]] = []
        first, valid = number * BITMAP_ENTRIES, self._valid(number)
        try:
            self._set_entry(number, self._entry(number)._replace(block=shadow.number))
            data = shadow.data
            for block in blocks:
                # Taken only now: copying the bitmap may have changed it. From here to the pair nothing can.
                delta = self._pending.pop(block, 0)
                entry = block - first
                if not 0 <= entry < valid:
                    raise self.damaged(block, f"referred to, but the map has only {self.nr_blocks}")
                at, shift = BITMAP_HEADER_BYTES + (entry >> 2), 2 * (entry & 3)
                small = PAIRS[data[at] >> shift & 3]
                before = small if small < MANY else self._large(block)
                after = before + delta
                if not 0 <= after <= MAX_COUNT or (not before and after and block not in self.fresh):
                    raise self.damaged(block, f"{delta:+} references where it has {before}")
                data[at] = data[at] & ~(3 << shift) | PAIRS[min(after, MANY)] << shift
                self._allocated += (after > 0) - (before > 0)
                if before and not after:
                    self._freed(block)
                if after >= MANY or before >= MANY:
                    large.append((block, after))
            free, hint = summary(bits_of(memoryview(data)), valid)
        finally:
            self._blocks.unlock(shadow)
        self._set_entry(number, IndexEntry(shadow.number, free, hint))
        for block, after in large:
            if after >= MANY:
                self._overflow_root = self._overflow.insert(self._overflow_root, block, after)
            else:
                self._overflow_root = self._overflow.remove(self._overflow_root, block)

    def _free_blocks(self, start: int) -> Iterator[int]:
        """Blocks that are free in the last commit, from `start` on and round to it again.

        Each is given once, and nothing else allocates, so whatever it gives is free in this transaction as well.
        """
        for first, end in ((start, self._committed_blocks), (0, start)):
            for number in range(first // BITMAP_ENTRIES, nr_bitmaps(end)):
                base = number * BITMAP_ENTRIES
                block = self._committed_entry(number).block
                bits = self._blocks.peek(block, BITMAP, bits_of)
                for entry in free_entries(bits, max(first - base, 0), min(end - base, BITMAP_ENTRIES)):
                    yield base + entry

    def damaged(self, block: int, reason: str) -> DamagedMetadataError:
        """An error that names the map and one of its blocks."""
        return DamagedMetadataError(
            f"{self.kind} space map: block {block}: {reason}", block=block if self.kind == "metadata" else -1
        )
