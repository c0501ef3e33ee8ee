"""Copy-on-write metadata of the Linux kernel's persistent-data library, compatible to the byte; ``dstorage[persistent]``."""

from __future__ import annotations

from dstorage.persistent.array import PersistentArray
from dstorage.persistent.bitset import Bitset
from dstorage.persistent.block_file import BlockDevice, BlockFile
from dstorage.persistent.block_manager import BlockManager, LockedBlock
from dstorage.persistent.btree import BTree
from dstorage.persistent.cursor import Cursor
from dstorage.persistent.errors import (
    BlockLockError,
    DamagedMetadataError,
    DeadlockError,
    MissingKeyError,
    PersistentDataError,
    ReadOnlyMetadataError,
    SpaceMapFullError,
    WouldBlockError,
)
from dstorage.persistent.space_map_common import MapRoot
from dstorage.persistent.space_map_disk import DiskSpaceMap
from dstorage.persistent.transaction import Clone, TransactionManager
from dstorage.persistent.validators import Validator
from dstorage.persistent.values import ValueHooks
from dstorage.persistent.walk import Damage, Leaf

__all__ = [
    "BTree",
    "Bitset",
    "BlockDevice",
    "BlockFile",
    "BlockLockError",
    "BlockManager",
    "Clone",
    "Cursor",
    "Damage",
    "DamagedMetadataError",
    "DeadlockError",
    "DiskSpaceMap",
    "Leaf",
    "LockedBlock",
    "MapRoot",
    "MissingKeyError",
    "PersistentArray",
    "PersistentDataError",
    "ReadOnlyMetadataError",
    "SpaceMapFullError",
    "TransactionManager",
    "Validator",
    "ValueHooks",
    "WouldBlockError",
]
