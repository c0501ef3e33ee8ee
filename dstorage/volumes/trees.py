"""The trees of a thin pool, and whose references each of their values stands for.

The mapping tree has two levels, device and virtual block. The same tree is also looked at as one of devices, whose values are
whole trees: dropping one of them drops all its mappings, as far as nobody shares them.

Source: Linux `drivers/md/dm-thin-metadata.c` (subtree_inc, subtree_dec, data_block_inc and their family).
"""

from __future__ import annotations

from dstorage.persistent.btree import BTree
from dstorage.persistent.space_map_disk import DiskSpaceMap
from dstorage.persistent.transaction import TransactionManager
from dstorage.persistent.values import ValueHooks
from dstorage.volumes.records import DETAILS_BYTES, TIME_BITS

_TIME_BYTES = TIME_BITS // 8


class ThinTrees:
    """The kinds of trees; their roots are the superblock's.

    Args:
        tm: The metadata blocks.
        data: Counts of the data blocks that mappings refer to.

    Attributes:
        mappings: Device, virtual block -> mapping.
        devices: The same trees as device -> root of its mappings.
        device: One device's mappings: virtual block -> mapping.
        details: Device -> `DeviceDetails`.
    """

    def __init__(self, tm: TransactionManager, data: DiskSpaceMap) -> None:
        self._tm = tm
        self._data = data
        hooks = ValueHooks(inc=self._inc_mappings, dec=self._dec_mappings, equal=_same_block)
        self.mappings = BTree(tm, levels=2, hooks=hooks)
        self.device = BTree(tm, hooks=hooks)
        self.devices = BTree(tm, hooks=ValueHooks(inc=self._inc_devices, dec=self._dec_devices, equal=bytes.__eq__))
        self.details = BTree(tm, value_size=DETAILS_BYTES)

    def _inc_mappings(self, packed: memoryview) -> None:
        self._data.inc([value >> TIME_BITS for value in packed.cast("Q")])

    def _dec_mappings(self, packed: memoryview) -> None:
        self._data.dec([value >> TIME_BITS for value in packed.cast("Q")])

    def _inc_devices(self, packed: memoryview) -> None:
        for root in packed.cast("Q"):
            self._tm.inc(root)

    def _dec_devices(self, packed: memoryview) -> None:
        for root in packed.cast("Q").tolist():
            self.device.delete(root)


def _same_block(old: bytes, new: bytes) -> bool:
    """Whether two mappings are of one data block; their times do not matter."""
    return old[_TIME_BYTES:] == new[_TIME_BYTES:]
