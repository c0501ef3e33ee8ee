"""The figures of a pool's metadata, and whether there is room for a change.

What is promised: when `has_room` has said so, the changes it was asked about find the metadata blocks they need, and so does the
commit behind them, wherever in the trees they are. For a change that found none half way would cost everything since the last commit.
"""

from __future__ import annotations

from dstorage.persistent.node import max_entries
from dstorage.persistent.space_map_common import nr_bitmaps
from dstorage.volumes.records import MAPPING_BYTES, DeviceDetails
from dstorage.volumes.transaction import PoolTransaction

MAX_RESERVE = 4096
MIN_RESERVE = 16
"""A tenth of the metadata blocks is kept back, within these bounds, so that a commit and deletions can still succeed; more where the
commit may need it."""
CHANGE_BLOCKS = 16
"""Metadata blocks that one change may need: seven nodes on its way down both trees, their neighbours, and what splits."""
COPIED_MAPPINGS = 2 * max_entries(MAPPING_BYTES)
"""Of the leaves that one change copies."""
COPIED_NODES = 3 * max_entries(MAPPING_BYTES)
"""Below the other nodes that one change copies."""
FEW_DEVICES = 16
"""So many that changed are not worth a look at how large their tree is."""


class PoolFigures(PoolTransaction):
    """What a pool's metadata are in numbers; see `dstorage.volumes.metadata.ThinMetadata`."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a data block."""
        return self._superblock.block_bytes

    @property
    def nr_data_blocks(self) -> int:
        """Data blocks in all."""
        return self._data.nr_blocks

    @property
    def free_data_blocks(self) -> int:
        """Data blocks that can be allocated; those freed since the last commit are not among them."""
        return self._data.free

    @property
    def nr_metadata_blocks(self) -> int:
        """Metadata blocks in all."""
        return self._tm.space_map.nr_blocks

    @property
    def used_metadata_blocks(self) -> int:
        """Metadata blocks that hold something, as far as the last commit and this transaction know."""
        return self.nr_metadata_blocks - self._tm.space_map.free

    @property
    def free_metadata_blocks(self) -> int:
        """Metadata blocks that can be allocated, without the reserve for commits and deletions."""
        return max(0, self._spare(1, in_reserve=False) + CHANGE_BLOCKS)

    @property
    def freed(self) -> bool:
        """Whether blocks, of data or metadata, may become free by a commit."""
        return self._data.has_freed or self._tm.space_map.has_freed

    @property
    def time(self) -> int:
        """Counts snapshots."""
        return self._superblock.time

    @property
    def transaction_id(self) -> int:
        """The program's own number."""
        return self._superblock.transaction_id

    @property
    def held_root(self) -> int:
        """Block of the metadata snapshot, or 0."""
        return self._superblock.held_root

    @property
    def needs_check(self) -> bool:
        """Whether nobody may change the metadata before a check."""
        return self._superblock.needs_check

    def devices(self) -> list[tuple[int, DeviceDetails]]:
        """All devices, ascending by id."""
        self._check_open()
        found = {
            id: DeviceDetails.unpack(packed) for id, packed in self._trees.details.items(self._superblock.details_root)
        }
        found.update(self._details)
        return sorted(found.items())

    def ids(self) -> list[int]:
        """The ids of all devices, ascending; their tree is read only the first time."""
        self._check_open()
        if self._ids is None:
            self._ids = {id for id, _ in self.devices()}
        return sorted(self._ids)

    def has_room(self, changes: int, *, in_reserve: bool = False) -> bool:
        """Whether so many changes, and the commit behind them, will find the metadata blocks they need.

        The counts of data blocks and the details of devices are collected in memory and written by the commit. Where room for
        that is in doubt, those collected so far are written now.

        Args:
            changes: To the mappings, each within a leaf or its neighbours.
            in_reserve: They may use the reserve, as far as the commit does not need it.
        """
        if self._spare(changes, in_reserve=in_reserve) >= 0:
            return True
        with self._changing():
            self._settle()
        return self._spare(changes, in_reserve=in_reserve) >= 0

    def _spare(self, changes: int, *, in_reserve: bool) -> int:
        """Metadata blocks that are left when these changes and a commit have taken theirs; negative if they are not sure to find them."""
        space_map = self._tm.space_map
        # Below a snapshot a change copies nodes, and all that they lead to is counted anew.
        shared = self.time or self.held_root
        mappings, nodes = (changes * COPIED_MAPPINGS, changes * COPIED_NODES) if shared else (0, 0)
        kept = MIN_RESERVE if in_reserve else min(MAX_RESERVE, max(MIN_RESERVE, space_map.nr_blocks // 10))
        # Beside the counts of data blocks, those of the metadata blocks themselves, and the devices.
        own = 2 * nr_bitmaps(space_map.nr_blocks) + space_map.overflow_blocks(nodes)
        own += self._details_blocks(len(self._details) + changes)
        reserve = own + self._data.settling_blocks(mappings, kept - own)
        return space_map.free - reserve - changes * CHANGE_BLOCKS

    def _details_blocks(self, changed: int) -> int:
        """Metadata blocks that writing the details of so many devices may need, wherever in their tree they are."""
        # Each a leaf, one that it splits off, and a part of the way there.
        if changed <= FEW_DEVICES:
            return 3 * changed
        if self._details_nodes is None:
            self._details_nodes = self._trees.details.nodes(self._superblock.details_root)
        nodes = self._details_nodes
        return min(2 * changed, nodes) + min(changed, nodes) + changed // 40 + 4
