"""Transactions over metadata blocks: nothing that is committed is changed, until one write of the superblock changes it all.

What is promised: a block can be written only if it was allocated in this transaction, directly or as the copy of an older one;
within a transaction it is copied once. After a crash at any point, and after `abort`, everything is as the last `commit` left it.

Source: Linux `drivers/md/persistent-data/dm-transaction-manager.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Self, TypeVar

from dstorage.errors import UsageError
from dstorage.persistent.block_manager import SUPERBLOCK, BlockManager, LockedBlock
from dstorage.persistent.errors import ReadOnlyMetadataError, WouldBlockError
from dstorage.persistent.space_map_common import MapRoot
from dstorage.persistent.space_map_metadata import MAX_METADATA_BLOCKS, MetadataSpaceMap
from dstorage.persistent.validators import Validator

T = TypeVar("T")


class TransactionManager:
    """Blocks with reference counts (`dstorage.persistent.blocks.Blocks`); made by `create` or `open`.

    After an error out of a change, `abort` is the way on: until then nothing can be changed or committed if the error came from
    `commit`, and nothing should be in any case.

    Attributes:
        manager: The blocks themselves.
        space_map: Their reference counts.
        generation: See `Blocks.generation`.
    """

    def __init__(self, manager: BlockManager, root: MapRoot) -> None:
        self.manager = manager
        self.space_map = MetadataSpaceMap(self, root)
        self.generation = 0
        # Blocks of this transaction that surely have one reference: most blocks that are asked for again. An answer without a look
        # into the space map; the others' counts are looked up.
        self._sole: set[int] = set()
        self._committed: MapRoot | None = None
        self._is_broken = False
        # The hot path of every lookup: one call less.
        self.peek = manager.peek  # type: ignore[method-assign]
        self.unlock = manager.unlock  # type: ignore[method-assign]

    @classmethod
    def create(cls, manager: BlockManager) -> Self:
        """Begin the first transaction on a device that holds nothing; only its `commit` writes the superblock.

        Raises:
            SpaceMapFullError: The device is too small.
        """
        made = cls(manager, MapRoot(0, 0, 0, 0))
        made.space_map.format(min(manager.nr_blocks, MAX_METADATA_BLOCKS))
        return made

    @classmethod
    def open(cls, manager: BlockManager, root: bytes) -> Self:
        """Begin a transaction on what was committed.

        Args:
            manager: Of the device.
            root: The space map's root, 32 bytes, as `commit` gave it to the superblock.

        Raises:
            DamagedMetadataError: The space map is damaged.
        """
        opened = cls(manager, MapRoot.unpack(root))
        opened._begin(MapRoot.unpack(root))
        return opened

    # -- blocks: see `dstorage.persistent.blocks.Blocks` --------------------------------------------------------------

    def read_lock(self, number: int, validator: Validator, /) -> LockedBlock:
        """A block to read."""
        return self.manager.read_lock(number, validator)

    def unlock(self, block: LockedBlock, /) -> None:
        """Release a block."""
        self.manager.unlock(block)

    def peek(self, number: int, validator: Validator, decode: Callable[[memoryview], T], /) -> T:
        """What `decode` makes of a block's bytes, kept until the block is rewritten; it must not be changed."""
        return self.manager.peek(number, validator, decode)

    def prefetch(self, numbers: Iterable[int], /) -> None:
        """These blocks will be wanted soon."""
        self.manager.prefetch(numbers)

    def new_block(self, validator: Validator, /) -> LockedBlock:
        """A block of zeros with one reference, write-locked.

        Raises:
            SpaceMapFullError: None is free.
            ReadOnlyMetadataError: Nothing may be changed.
        """
        self._check_changeable()
        self.generation += 1
        block = self.manager.write_lock_zero(self.space_map.allocate(), validator)
        self._sole.add(block.number)
        return block

    def shadow_block(self, number: int, validator: Validator, /) -> tuple[LockedBlock, bool]:
        """A write-locked block of this transaction with the contents of another, whose reference it takes over.

        Returns:
            The block: the same one if it is of this transaction and nobody else refers to it. And whether others still refer to
            that one, so that all it refers to has one owner more.

        Raises:
            SpaceMapFullError: None is free.
            DamagedMetadataError: The block is damaged.
            ReadOnlyMetadataError: Nothing may be changed.
        """
        if number in self._sole:
            return self.manager.write_lock(number, validator), False
        count = self.space_map.count(number)
        # Asked before whether it is of this transaction: what was made in it and shared since must be copied.
        if count == 1 and number in self.space_map.fresh:
            return self.manager.write_lock(number, validator), False
        if not count:
            raise self.manager.damaged(validator, number, "referred to, but counted as free")
        old = self.manager.read_lock(number, validator)
        try:
            block = self.new_block(validator)
            block.data[:] = old.data
        finally:
            self.manager.unlock(old)
        self.dec(number)
        return block, count > 1

    def inc(self, number: int, /) -> None:
        """Count one reference more."""
        self._check_changeable()
        self.generation += 1
        self._sole.discard(number)
        self.space_map.inc((number,))

    def dec(self, number: int, /) -> None:
        """Count one reference less; a block without any is free from the next commit on."""
        self._check_changeable()
        self.generation += 1
        self._sole.discard(number)
        self.space_map.dec((number,))

    def ref(self, number: int, /) -> int:
        """References to a block."""
        return self.space_map.count(number)

    def is_shared(self, number: int, /) -> bool:
        """Whether a block has more than one reference."""
        return self.space_map.count(number) > 1

    # -- transactions -------------------------------------------------------------------------------------------------

    def commit(self, validator: Validator, fill: Callable[[bytearray, bytes], None]) -> None:
        """Make this transaction durable and begin the next: everything is flushed, then the superblock.

        Args:
            validator: The superblock's kind.
            fill: Is given the superblock's 4096 bytes, zeros, to be filled, and the 32 bytes of the space map's root for it.

        Raises:
            SpaceMapFullError: There is no room to write the counts; `abort`.
            BlockLockError: A block is still locked for writing.
            OSError: The device failed; `abort` gets what is on it now, the last commit or this one.
        """
        self._check_changeable()
        try:
            self.space_map.settle()
            root = self.space_map.root()
            block = self.manager.write_lock_zero(SUPERBLOCK, validator)
            try:
                assert isinstance(block.data, bytearray)
                fill(block.data, root.pack())
            finally:
                self.manager.unlock(block)
            self.manager.flush()
        except BaseException:
            self._is_broken = True
            raise
        self.generation += 1
        self._sole.clear()
        self.space_map.begin()
        self._committed = root

    def abort(self, root: bytes | None = None) -> None:
        """Drop everything since the last commit, locks included.

        Args:
            root: The space map's root as read from the superblock; None takes that of the last commit that succeeded.

        Raises:
            UsageError: There is no commit yet to go back to.
            DamagedMetadataError: The space map is damaged.
        """
        back = self._committed if root is None else MapRoot.unpack(root)
        if back is None:
            raise UsageError("nothing was committed yet, so there is nothing to go back to: create it anew")
        self.manager.drop()
        self.space_map = MetadataSpaceMap(self, back)
        self._is_broken = False
        self._begin(back)

    def grow(self, nr_blocks: int) -> None:
        """Have more blocks, the device made longer where it is too short; part of the transaction.

        Raises:
            InvalidArgumentError: Fewer, or more than a map can count; nothing was changed.
            OSError: The device cannot be made longer.
        """
        self._check_changeable()
        self.space_map.check_growth(nr_blocks)
        self.manager.grow(nr_blocks)
        self.space_map.grow(nr_blocks)

    def clone(self) -> Clone:
        """A view that only reads, and never waits."""
        return Clone(self.manager)

    def _begin(self, root: MapRoot) -> None:
        self.generation += 1
        self._sole.clear()
        if root.nr_blocks > self.manager.nr_blocks:
            raise self.space_map.damaged(root.nr_blocks - 1, f"the device has only {self.manager.nr_blocks} blocks")
        self.space_map.load(recount=not self.manager.read_only)
        self._committed = root

    def _check_changeable(self) -> None:
        if self._is_broken:
            raise ReadOnlyMetadataError(
                f"a commit of {self.manager.device.name} failed: abort the transaction before changing anything"
            )
        if self.manager.read_only:
            raise ReadOnlyMetadataError(f"{self.manager.device.name} was opened to be read only")


class Clone:
    """A read-only view of the blocks of a transaction manager that neither waits nor reads from the device.

    What it would have had to wait for raises `WouldBlockError` and is remembered, so that it can be fetched before the next try.
    Trees can be looked up through it as through the manager itself.
    """

    generation = 0

    def __init__(self, manager: BlockManager) -> None:
        self._manager = manager
        self._missed: list[tuple[int, Validator]] = []

    def read_lock(self, number: int, validator: Validator, /) -> LockedBlock:
        """A block to read.

        Raises:
            WouldBlockError: It is not in memory, or being written.
        """
        try:
            return self._manager.read_try_lock(number, validator)
        except WouldBlockError:
            self._missed.append((number, validator))
            raise

    def peek(self, number: int, validator: Validator, decode: Callable[[memoryview], T], /) -> T:
        """What `decode` makes of a block's bytes.

        Raises:
            WouldBlockError: It is not in memory, or being written.
        """
        try:
            return self._manager.peek_cached(number, validator, decode)
        except WouldBlockError:
            self._missed.append((number, validator))
            raise

    def unlock(self, block: LockedBlock, /) -> None:
        """Release a block."""
        self._manager.unlock(block)

    def prefetch(self, numbers: Iterable[int], /) -> None:
        """These blocks will be wanted soon."""
        self._manager.prefetch(numbers)

    def fetch_missed(self) -> None:
        """Read what was missed into memory; this may wait, so it is for a thread that may.

        Raises:
            DamagedMetadataError: One of these is damaged.
        """
        missed, self._missed = self._missed, []
        self._manager.prefetch(sorted({number for number, _ in missed}))
        for number, validator in missed:
            self._manager.fetch(number, validator)

    def _refuse(self, *_: Any) -> NoReturn:
        """Not for a view that only reads.

        Raises:
            WouldBlockError: Always.
        """
        raise WouldBlockError("a view that only reads was asked to change or count: use the transaction", block=-1)

    new_block = shadow_block = inc = dec = ref = is_shared = _refuse
