"""The metadata of a thin pool: which devices there are, and where their blocks are; everything as at the last commit after a crash.

Knows nothing of bytes in data blocks: whoever uses it makes these durable before `commit`. Calls block; one thread at a time.

After an error other than those named as leaving everything as it was, a change may be half made: `abort` takes it back.

Source: Linux `drivers/md/dm-thin-metadata.c`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dstorage.errors import InvalidArgumentError, UsageError
from dstorage.persistent.block_manager import BLOCK_BYTES
from dstorage.persistent.errors import DamagedMetadataError, SpaceMapFullError
from dstorage.volumes.errors import (
    DeviceBusyError,
    DeviceExistsError,
    NoSuchDeviceError,
    PoolFullError,
)
from dstorage.volumes.figures import PoolFigures
from dstorage.volumes.records import (
    MAX_DEVICE_ID,
    MAX_TIME,
    MAX_VIRTUAL_BLOCK,
    DeviceDetails,
    Run,
    pack_mapping,
    runs_of,
)
from dstorage.volumes.superblock import (
    ROOT_BYTES,
    SUPERBLOCK,
    Superblock,
)
from dstorage.volumes.transaction import check_data_blocks, check_metadata_bytes


class ThinMetadata(PoolFigures):
    """What a pool's metadata are asked and told; made by `create` or `open`, see `PoolTransaction`."""

    # -- devices ------------------------------------------------------------------------------------------------------

    def details(self, id: int) -> DeviceDetails:
        """About one device.

        Raises:
            NoSuchDeviceError: There is none.
        """
        self._check_open()
        found = self._find(id)
        if found is None:
            raise NoSuchDeviceError(f"{self.path} has no device {id}")
        return found

    def snapshotted_time(self, id: int) -> int:
        """The pool's time at a device's last snapshot; its mappings from before that are shared, and must not be written."""
        return self.details(id).snapshotted_time

    def create_device(self, id: int) -> None:
        """Make a device without mappings.

        Raises:
            DeviceExistsError: There is one of that id; everything is as it was.
            InvalidArgumentError: No device can have that id; everything is as it was.
            PoolFullError: No metadata block is free.
        """
        self._check_new(id)
        with self._changing():
            self._add_device(id, self._trees.device.empty(), 0)

    def create_snapshot(self, id: int, origin: int) -> None:
        """Make a device with the mappings that another one has now; takes the same time whatever their number.

        Raises:
            DeviceExistsError: There is one of that id; everything is as it was.
            NoSuchDeviceError: There is no origin; everything is as it was.
            InvalidArgumentError: No device can have that id, or time is up; everything is as it was.
            PoolFullError: No metadata block is free.
        """
        self._check_new(id)
        details = self.details(origin)
        root = self._root_of(origin)
        if self.time >= MAX_TIME:
            raise InvalidArgumentError(
                f"{self.path} has counted {MAX_TIME} snapshots, and can count no further: dump and restore it"
            )
        with self._changing():
            self._superblock = replace(self._superblock, time=self.time + 1)
            self._tm.inc(root)
            self._add_device(id, root, details.mapped_blocks)
            self._details[origin] = replace(details, snapshotted_time=self.time)

    def delete_device(self, id: int) -> None:
        """Delete a device; what only it has is free after the commit.

        Raises:
            NoSuchDeviceError: There is none; everything is as it was.
        """
        self.details(id)
        self._root_of(id)
        with self._changing():
            # Its details may be of this transaction, and nowhere else.
            self._details.pop(id, None)
            here = self._superblock
            details_root = here.details_root
            if self._trees.details.lookup(details_root, id) is not None:
                details_root = self._trees.details.remove(details_root, id)
            mapping_root = self._trees.devices.remove(here.mapping_root, id)
            self._superblock = replace(here, details_root=details_root, mapping_root=mapping_root)
            if self._ids is not None:
                self._ids.discard(id)

    # -- mappings -----------------------------------------------------------------------------------------------------

    def mappings(self, id: int, first: int = 0, end: int = MAX_VIRTUAL_BLOCK + 1) -> Iterator[tuple[int, int]]:
        """Mapped virtual blocks of a device from `first` to before `end`, ascending, each with its packed mapping.

        Raises:
            NoSuchDeviceError: There is none.
        """
        self.details(id)
        return self._trees.mappings.items_u64(self._superblock.mapping_root, id, first=first, end=end)

    def runs(self, id: int, first: int = 0, end: int = MAX_VIRTUAL_BLOCK + 1) -> Iterator[tuple[Run, bool]]:
        """As `mappings`, neighbours joined; with each run whether it is shared with a snapshot, so that a write must copy it.

        A run stays shared when that snapshot is deleted, until it is mapped anew.
        """
        snapshotted = self.snapshotted_time(id)
        for run in runs_of(self.mappings(id, first, end)):
            yield run, run.time < snapshotted

    def touch(self, id: int, first: int, end: int) -> None:
        """Go to the mappings of a device from `first` to before `end` without waiting for anything.

        Raises:
            WouldBlockError: Something on the way is not in memory: have it fetched by `fetch_missed`, and try again.
        """
        for _ in self._looking.items_u64(self._superblock.mapping_root, id, first=first, end=end):
            pass

    def fetch_missed(self) -> None:
        """Read into memory what `touch` missed. This may be called while another thread uses the metadata.

        Raises:
            DamagedMetadataError: Something is damaged.
            OSError: The device failed.
        """
        self._clone.fetch_missed()

    def lookup(self, id: int, block: int) -> int | None:
        """The packed mapping of a device's virtual block, or None.

        Raises:
            NoSuchDeviceError: There is no such device.
        """
        self.details(id)
        return self._trees.mappings.lookup_u64(self._superblock.mapping_root, id, block)

    def mapped_end(self, id: int) -> int:
        """Behind the last mapped virtual block of a device; 0 if nothing is mapped.

        Raises:
            NoSuchDeviceError: There is none.
        """
        self.details(id)
        found = self._trees.mappings.find_highest(self._superblock.mapping_root, id)
        return found[1] + 1 if len(found) == 2 else 0

    def allocate(self, count: int) -> list[int]:
        """Take so many data blocks, or none; each is to be given to `map` or `release`.

        Raises:
            PoolFullError: There are not so many; everything is as it was.
        """
        free = self._data.free
        if count > free:
            raise PoolFullError(
                f"{count} data blocks are wanted, {free} of {self._data.nr_blocks} are free in {self.path}: discard or "
                "delete and commit, or grow the pool",
                kind="data",
            )
        taken: list[int] = []
        with self._changing():
            try:
                for _ in range(count):
                    taken.append(self._data.allocate())  # noqa: PERF401  # known when it raises half way
            except SpaceMapFullError:
                # Only if the map's total is wrong.
                self._data.release(taken)
                raise
        return taken

    def release(self, places: Iterable[int]) -> None:
        """Give data blocks back that were allocated and not mapped."""
        with self._changing():
            self._data.release(places)

    def map(self, id: int, new: dict[int, int]) -> None:
        """Let virtual blocks of a device be at data blocks that were allocated for it; what they were mapped to before loses an owner.

        Raises:
            NoSuchDeviceError: There is none; everything is as it was.
            PoolFullError: No metadata block is free.
        """
        details = self.details(id)
        tree, time, added = self._trees.mappings, self.time, 0
        with self._changing():
            root = self._superblock.mapping_root
            for block, place in new.items():
                root, is_new = tree.insert_notify(root, (id, block), pack_mapping(place, time))
                added += is_new
            self._superblock = replace(self._superblock, mapping_root=root)
            self._details[id] = replace(details, mapped_blocks=details.mapped_blocks + added)

    def unmap(self, id: int, first: int, end: int) -> int:
        """Unmap the virtual blocks of a device from `first` to before `end`; how many were mapped.

        Raises:
            NoSuchDeviceError: There is none; everything is as it was.
        """
        details = self.details(id)
        with self._changing():
            root, removed = self._trees.mappings.remove_range(self._superblock.mapping_root, (id, first), end)
            self._superblock = replace(self._superblock, mapping_root=root)
            self._details[id] = replace(details, mapped_blocks=details.mapped_blocks - removed)
        return removed

    def is_data_shared(self, place: int) -> bool:
        """Whether several leaves of mappings refer to a data block, so that it is still used when one of them lets it go."""
        return self._data.count(place) > 1

    # -- the whole ----------------------------------------------------------------------------------------------------

    def grow_data(self, nr_blocks: int) -> None:
        """Have more data blocks.

        Raises:
            InvalidArgumentError: Fewer, or more than can be mapped; everything is as it was.
            PoolFullError: No metadata block is free to count them.
        """
        check_data_blocks(nr_blocks)
        self._data.check_growth(nr_blocks)
        with self._changing():
            self._data.grow(nr_blocks)

    def grow_metadata(self, metadata_bytes: int) -> None:
        """Have a longer metadata file.

        Raises:
            InvalidArgumentError: A shorter one, or more than 15.9 GiB; everything is as it was.
        """
        check_metadata_bytes(metadata_bytes)
        self._tm.space_map.check_growth(metadata_bytes // BLOCK_BYTES)
        with self._changing():
            self._tm.grow(metadata_bytes // BLOCK_BYTES)

    def set_transaction_id(self, expected: int, new: int) -> None:
        """Set the program's own number, if it is `expected` now.

        Raises:
            InvalidArgumentError: It is not, or the new one has more than 64 bits; everything is as it was.
        """
        if expected != self.transaction_id:
            raise InvalidArgumentError(f"the transaction id of {self.path} is {self.transaction_id}, not {expected}")
        if not 0 <= new < 2**64:
            raise InvalidArgumentError(f"a transaction id has 64 bits, {new} does not fit")
        with self._changing():
            self._superblock = replace(self._superblock, transaction_id=new)

    def take_snapshot(self) -> None:
        """Hold the last commit's trees, so that they can be read while the pool goes on; commit before and afterwards.

        Raises:
            DeviceBusyError: One is held already; everything is as it was.
            UsageError: There are changes that were not committed; everything is as it was.
        """
        if self.held_root:
            raise DeviceBusyError(f"{self.path} has a metadata snapshot already: release that first")
        if self.changed:
            raise UsageError("a metadata snapshot is one of the last commit: commit first")
        with self._changing():
            # As if the superblock were shared: so it is copied, and the trees get an owner more.
            self._tm.inc(0)
            block, _ = self._tm.shadow_block(0, SUPERBLOCK)
            blank = bytes(ROOT_BYTES)
            try:
                replace(self._superblock, block=block.number, data_map_root=blank, metadata_map_root=blank).pack_into(
                    block.data
                )
            finally:
                self._tm.unlock(block)
            self._tm.inc(self._superblock.mapping_root)
            self._tm.inc(self._superblock.details_root)
            self._superblock = replace(self._superblock, held_root=block.number)

    def release_snapshot(self) -> None:
        """Let the metadata snapshot go.

        Raises:
            InvalidArgumentError: There is none; everything is as it was.
        """
        number = self.held_root
        if not number:
            raise InvalidArgumentError(f"{self.path} has no metadata snapshot")
        held = self._tm.peek(number, SUPERBLOCK, lambda data: Superblock.unpack(data, self.path))
        with self._changing():
            self._trees.mappings.delete(held.mapping_root)
            self._trees.details.delete(held.details_root)
            self._tm.dec(number)
            self._superblock = replace(self._superblock, held_root=0)

    # -- private ------------------------------------------------------------------------------------------------------

    def _find(self, id: int) -> DeviceDetails | None:
        found = self._details.get(id)
        if found is None and 0 <= id <= MAX_DEVICE_ID:
            packed = self._trees.details.lookup(self._superblock.details_root, id)
            found = None if packed is None else DeviceDetails.unpack(packed)
        return found

    def _root_of(self, id: int) -> int:
        """Root of a device's mappings."""
        root = self._trees.devices.lookup_u64(self._superblock.mapping_root, id)
        if root is None:
            raise DamagedMetadataError(
                f"device {id} of {self.path} has details but no mappings", block=self._superblock.mapping_root
            )
        return root

    def _check_new(self, id: int) -> None:
        self._check_open()
        if not 0 <= id <= MAX_DEVICE_ID:
            raise InvalidArgumentError(f"device {id}: ids are 0 to {MAX_DEVICE_ID}")
        if self._find(id) is not None:
            raise DeviceExistsError(f"{self.path} has a device {id} already")

    def _add_device(self, id: int, root: int, mapped_blocks: int) -> None:
        """Add a device, which takes over a reference to the root of its mappings."""
        here = self._superblock
        self._superblock = replace(here, mapping_root=self._trees.devices.insert(here.mapping_root, id, root))
        self._details[id] = DeviceDetails(mapped_blocks, here.transaction_id, here.time, here.time)
        if self._ids is not None:
            self._ids.add(id)
