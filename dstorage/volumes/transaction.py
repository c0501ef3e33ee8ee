"""One writer's view of a pool's metadata: opened, locked, changed, and committed or aborted as a whole.

`dstorage.volumes.metadata` is what changes them; here is all around a change.

Source: Linux `drivers/md/dm-thin-metadata.c` (__open_metadata, __commit_transaction and their family).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dstorage.durable import sync_directory
from dstorage.errors import ClosedError, InvalidArgumentError, UsageError
from dstorage.persistent.block_file import BlockDevice, BlockFile
from dstorage.persistent.block_manager import BLOCK_BYTES, CACHE_BLOCKS, BlockManager
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError, SpaceMapFullError
from dstorage.persistent.space_map_common import MapRoot
from dstorage.persistent.space_map_disk import DiskSpaceMap
from dstorage.persistent.space_map_metadata import MAX_METADATA_BLOCKS
from dstorage.persistent.transaction import Clone, TransactionManager
from dstorage.volumes.errors import (
    NotAPoolError,
    PoolFullError,
    PoolReadOnlyError,
)
from dstorage.volumes.lock import MetadataLock
from dstorage.volumes.records import (
    MAX_DATA_BLOCK,
    MAX_TIME,
    DeviceDetails,
)
from dstorage.volumes.superblock import (
    METADATA_BLOCK_SECTORS,
    NEEDS_CHECK,
    ROOT_BYTES,
    SECTOR_BYTES,
    SUPERBLOCK,
    VERSION,
    Superblock,
    check_data_block_size,
)
from dstorage.volumes.trees import ThinTrees


class PoolTransaction:
    """A pool's metadata; made by `create` or `open`. A context manager; leaving it closes, and does not commit.

    Attributes:
        path: Of the file, for messages.
        read_only: Whether it was opened so.
        changed: Whether there is anything to commit.
    """

    # Set when the superblock is known: `_begin`.
    _superblock: Superblock
    _tm: TransactionManager
    _data: DiskSpaceMap
    _trees: ThinTrees
    _clone: Clone
    _looking: BTree
    _ids: set[int] | None
    """Of all devices; None: not looked at yet."""

    def __init__(
        self,
        device: BlockDevice,
        *,
        lock: MetadataLock | None = None,
        read_only: bool = False,
        cache_blocks: int = CACHE_BLOCKS,
    ) -> None:
        self.path = device.name
        self.read_only = read_only
        self.changed = False
        self._device = device
        self._lock = lock
        self._manager = BlockManager(device, cache_blocks=cache_blocks, read_only=read_only)
        self._is_closed = False
        # What changed in this transaction and is not written yet.
        self._details: dict[int, DeviceDetails] = {}
        self._details_nodes: int | None = None
        """Of their tree, as far as it is written; None: not counted yet."""

    # -- opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path | str, *, metadata_bytes: int, block_bytes: int, nr_data_blocks: int) -> Self:
        """Make the metadata of a pool without devices, durably.

        Args:
            path: The file, which is made; one that is there must be empty, or all zeros in its first block.
            metadata_bytes: Its length; one that is longer stays so.
            block_bytes: Of a data block.
            nr_data_blocks: How many of them there are.

        Raises:
            InvalidArgumentError: Something is out of its range, or the file holds something; it is as it was.
            PoolFullError: The metadata are too small for so many data blocks.
            StoreLocked: Somebody uses the file.
            OSError: It cannot be written.
        """
        path = Path(path)
        if block_bytes % SECTOR_BYTES:
            raise InvalidArgumentError(f"data blocks of {block_bytes} bytes: no multiple of {SECTOR_BYTES}")
        try:
            check_data_block_size(block_bytes // SECTOR_BYTES, path)
        except NotAPoolError as error:
            raise InvalidArgumentError(str(error)) from None
        check_data_blocks(nr_data_blocks)
        check_metadata_bytes(metadata_bytes)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            is_new = True
        except FileExistsError:
            is_new = False
        file = BlockFile(path)
        lock: MetadataLock | None = None
        try:
            lock = MetadataLock(path)
            if file.pread(BLOCK_BYTES, 0).strip(b"\0"):
                raise InvalidArgumentError(f"{path} holds something already: name another file, or delete it")
            if file.size < metadata_bytes:
                file.truncate(metadata_bytes)
            made = cls(file, lock=lock)
            made._format(block_bytes // SECTOR_BYTES, nr_data_blocks)
            # The new file's name survives a power failure only then.
            sync_directory(path.parent)
        except BaseException:
            file.close()
            if lock is not None:
                lock.release()
            if is_new:
                path.unlink()
            raise
        return made

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, cache_blocks: int = CACHE_BLOCKS) -> Self:
        """Open metadata as at their last commit.

        Args:
            path: The file.
            read_only: Change nothing, and take no lock.
            cache_blocks: Metadata blocks of 4096 bytes kept in memory.

        Raises:
            NotAPoolError: There is none.
            PoolReadOnlyError: They need a check before they are changed; opening with `read_only` is possible.
            StoreLocked: Another process writes them.
            DamagedMetadataError: They are damaged.
            VersionError: They use features not known here.
        """
        path = Path(path)
        try:
            file = BlockFile(path, read_only=read_only)
        except FileNotFoundError as error:
            raise NotAPoolError(f"{path} is not there: make a pool first") from error
        lock: MetadataLock | None = None
        try:
            lock = None if read_only else MetadataLock(path)
            return cls.on_device(file, lock=lock, read_only=read_only, cache_blocks=cache_blocks)
        except BaseException:
            file.close()
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def on_device(
        cls,
        device: BlockDevice,
        *,
        lock: MetadataLock | None = None,
        read_only: bool = False,
        cache_blocks: int = CACHE_BLOCKS,
    ) -> Self:
        """As `open`, on anything with positioned reads and writes; device and lock are closed with this, unless it raises."""
        opened = cls(device, lock=lock, read_only=read_only, cache_blocks=cache_blocks)
        superblock = opened._read_superblock()
        if not opened.read_only:
            if superblock.needs_check:
                raise PoolReadOnlyError(
                    f"{device.name} is marked as needing a check, so nobody may change it: run `thin_check "
                    "--clear-needs-check-flag` on it, or open it with read_only=True"
                )
            if superblock.compat_ro_flags:
                raise PoolReadOnlyError(
                    f"{device.name} uses features {superblock.compat_ro_flags:#x} that this release can only read past: "
                    "open it with read_only=True"
                )
            if superblock.time > MAX_TIME:
                raise DamagedMetadataError(
                    f"superblock in block 0 of {device.name}: its time is {superblock.time}, mappings can tell up to {MAX_TIME}",
                    block=0,
                )
        tm = TransactionManager.open(opened._manager, superblock.metadata_map_root)
        opened._begin(superblock, tm, DiskSpaceMap.open(tm, MapRoot.unpack(superblock.data_map_root)))
        return opened

    def close(self) -> None:
        """Drop what was not committed, and let others open it; a second call does nothing."""
        self._is_closed = True
        self._manager.drop()
        self._device.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- the transaction ----------------------------------------------------------------------------------------------

    def commit(self) -> list[tuple[int, int]]:
        """Make all changes durable, together.

        Returns:
            First and number of the data blocks that are free since; a hint for their device, which leaves some out if there are
            very many.

        Raises:
            PoolFullError: No room is left to write the counts; `abort`.
            OSError: The device failed: what is durable is the last commit or this one; `abort` finds out.
        """
        with self._changing():
            self._settle()
            self._tm.commit(SUPERBLOCK, self._fill)
        freed = self._data.freed
        self._data.begin()
        self.changed = False
        return freed

    def abort(self) -> None:
        """Take everything back to the last commit, as it is on the device.

        Raises:
            DamagedMetadataError: It cannot be read any more.
            OSError: The device failed.
        """
        self._manager.drop()
        superblock = self._read_superblock()
        self._tm.abort(superblock.metadata_map_root)
        self._begin(superblock, self._tm, DiskSpaceMap.open(self._tm, MapRoot.unpack(superblock.data_map_root)))

    def set_needs_check(self) -> None:
        """Mark the last commit, at once, so that nobody changes the pool before a check.

        Raises:
            UsageError: There are changes that were not committed: abort first.
            OSError: The device failed.
        """
        if self.changed:
            raise UsageError("there are changes that were not committed: abort them first")
        self._superblock = replace(self._superblock, flags=self._superblock.flags | NEEDS_CHECK)
        block = self._manager.write_lock(0, SUPERBLOCK)
        try:
            assert isinstance(block.data, bytearray)
            self._superblock.pack_into(block.data)
        finally:
            self._manager.unlock(block)
        self._manager.flush()

    # -- private ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Write what was collected in memory: devices that changed, counts of data blocks."""
        root = self._superblock.details_root
        for id, details in sorted(self._details.items()):
            root = self._trees.details.insert(root, id, details.pack())
        self._superblock = replace(self._superblock, details_root=root)
        self._details.clear()
        self._details_nodes = None
        self._data.settle()

    def _format(self, data_block_size: int, nr_data_blocks: int) -> None:
        try:
            tm = TransactionManager.create(self._manager)
            data = DiskSpaceMap.create(tm, nr_data_blocks)
            trees = ThinTrees(tm, data)
            superblock = Superblock(
                flags=0,
                block=0,
                uuid=bytes(16),
                version=VERSION,
                time=0,
                transaction_id=0,
                held_root=0,
                data_map_root=bytes(ROOT_BYTES),
                metadata_map_root=bytes(ROOT_BYTES),
                mapping_root=trees.mappings.empty(),
                details_root=trees.details.empty(),
                data_block_size=data_block_size,
                metadata_block_size=METADATA_BLOCK_SECTORS,
                metadata_blocks=tm.space_map.nr_blocks,
            )
        except SpaceMapFullError as error:
            raise self._full(error) from error
        self._begin(superblock, tm, data)
        self.commit()

    def _begin(self, superblock: Superblock, tm: TransactionManager, data: DiskSpaceMap) -> None:
        self._superblock = superblock
        self._tm = tm
        self._data = data
        self._trees = ThinTrees(tm, data)
        self._clone = tm.clone()
        self._looking = BTree(self._clone, levels=2)
        self._details.clear()
        self._details_nodes = None
        self._ids = None
        self.changed = False

    def _read_superblock(self) -> Superblock:
        if self._device.size < BLOCK_BYTES:
            raise NotAPoolError(f"{self.path} holds no thin pool: it is shorter than one block")
        if not self._device.pread(BLOCK_BYTES, 0).strip(b"\0"):
            raise NotAPoolError(f"{self.path} holds no thin pool: its first block is empty")
        superblock = self._manager.peek(0, SUPERBLOCK, lambda data: Superblock.unpack(data, self.path))
        check_data_block_size(superblock.data_block_size, self.path)
        return superblock

    def _fill(self, data: bytearray, metadata_map_root: bytes) -> None:
        self._superblock = replace(
            self._superblock,
            data_map_root=self._data.root().pack(),
            metadata_map_root=metadata_map_root,
            version=VERSION,
        )
        self._superblock.pack_into(data)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the metadata {self.path} were closed: open them again")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around every change."""
        self._check_open()
        if self.read_only:
            raise PoolReadOnlyError(f"{self.path} was opened to be read only")
        self.changed = True
        try:
            yield
        except SpaceMapFullError as error:
            raise self._full(error) from error

    def _full(self, error: SpaceMapFullError) -> PoolFullError:
        way_out = {"metadata": "grow the metadata", "data": "grow the pool"}[error.kind]
        return PoolFullError(f"{self.path} is full: {error}; delete devices or {way_out}", kind=error.kind)


def check_data_blocks(nr_blocks: int) -> None:
    """Raise unless a pool can have so many data blocks.

    Raises:
        InvalidArgumentError: It cannot.
    """
    if not 0 <= nr_blocks <= MAX_DATA_BLOCK + 1:
        raise InvalidArgumentError(f"{nr_blocks} data blocks: 0 to {MAX_DATA_BLOCK + 1} can be mapped")


def check_metadata_bytes(size: int) -> None:
    """Raise unless metadata can be so long.

    Raises:
        InvalidArgumentError: They cannot.
    """
    if not BLOCK_BYTES <= size <= MAX_METADATA_BLOCKS * BLOCK_BYTES:
        raise InvalidArgumentError(
            f"metadata of {size} bytes: {BLOCK_BYTES} to {MAX_METADATA_BLOCKS * BLOCK_BYTES} are possible"
        )
