"""The deep checker: every tree, every reference count of metadata and of data, the lists of devices.

It lists all it finds and walks damaged trees as far as they are whole. What thin_check looks at, and besides what thin_check
0.9.0 leaves out: counts of data blocks, mapped_blocks, that both trees list the same devices, block numbers, data blocks
outside of the pool. Figures that only speed searching up (nr_allocated, nr_free, none_free_before) are reported as hints: other
tools leave them stale.

No file can make it run for ever or take much memory: a block is examined once per purpose, which costs about 30 bytes of memory
per metadata block; counts of data blocks are in a sparse temporary file; `MAX_PROBLEMS` are kept, the rest counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

from dstorage.errors import VersionError
from dstorage.volumes.checked_trees import CheckedTrees
from dstorage.volumes.counts import DataCounts
from dstorage.volumes.errors import DamagedMetadataError, NotAPoolError
from dstorage.volumes.layout import BITMAP_ENTRIES, BITMAP_SALT, INDEX_ENTRY, INDEX_SALT, MAP_ROOT, MAX_BITMAPS
from dstorage.volumes.reader import MetadataReader, Node
from dstorage.volumes.records import DETAILS_BYTES, MAPPING_BYTES, MAX_DEVICE_ID, TIME_BITS, DeviceDetails
from dstorage.volumes.report import MAX_PROBLEMS, CheckReport, Severity
from dstorage.volumes.superblock import Superblock, check_data_block_size


def check(metadata: Path | str, *, advance: Callable[[int], None] | None = None) -> CheckReport:
    """Check the metadata of a pool that nobody is changing.

    Args:
        metadata: The file.
        advance: Called with the number of metadata blocks examined, now and then.

    Raises:
        NotAPoolError: There is no file, or no superblock in it at all.
        VersionError: It is of a version not known here.
    """
    with MetadataReader(metadata) as reader:
        checker = _Checker(reader, advance or (lambda _: None))
        try:
            checker.run()
        except DamagedMetadataError as error:
            # The superblock itself: nothing else can be found without it.
            checker.report.complete = False
            checker.report.add(Severity.DAMAGE, error.block, str(error))
        return checker.report


class _Checker:
    def __init__(self, reader: MetadataReader, advance: Callable[[int], None]) -> None:
        self.report = CheckReport(str(reader.path))
        self._reader = reader
        self._trees = CheckedTrees(reader, self.report, advance)
        self._data_blocks = 0
        self._outside = 0

    def run(self) -> None:
        superblock = self._superblock()
        self._trees.claim(0, "superblock")
        self._data_blocks = MAP_ROOT.unpack(superblock.data_map_root)[0]
        most = self._reader.nr_blocks * BITMAP_ENTRIES
        if self._data_blocks > most:
            self._trees.problem(
                0, f"superblock: a pool of {self._data_blocks} data blocks, but these metadata can count only {most}"
            )
            self._data_blocks = 0
        with DataCounts(self._data_blocks) as data:
            self._devices(superblock, data)
            if superblock.held_root:
                self._held(superblock.held_root, data)
            self._data_map(superblock.data_map_root, data)
        self._metadata_map(superblock.metadata_map_root)

    def _superblock(self) -> Superblock:
        superblock = self._reader.superblock()
        self.report.needs_check = superblock.needs_check
        try:
            check_data_block_size(superblock.data_block_size, "superblock")
        except NotAPoolError as error:
            self.report.add(Severity.DAMAGE, 0, str(error))
        if superblock.version != 2:
            self.report.add(Severity.HINT, 0, f"superblock: version {superblock.version}; pools in use have 2")
        return superblock

    def _devices(self, superblock: Superblock, data: DataCounts, *, snapshot: bool = False) -> None:
        where = " of the metadata snapshot" if snapshot else ""
        details: dict[int, DeviceDetails] = {}
        roots: dict[int, int] = {}

        def note_details(leaf: Node) -> None:
            for id, packed in zip(leaf.keys, leaf.values, strict=True):
                assert isinstance(packed, bytes)
                details[id] = DeviceDetails.unpack(packed)

        def note_roots(leaf: Node) -> None:
            roots.update(zip(leaf.keys, leaf.values, strict=True))  # type: ignore[arg-type]  # 8-byte values

        if snapshot:
            # Leaves shared with the live trees were visited there; the lists are compared only where they can be had.
            self._trees.walk(superblock.details_root, DETAILS_BYTES, "device details", note_details)
            self._trees.walk(superblock.mapping_root, MAPPING_BYTES, "device tree", note_roots)
        else:
            whole_details = self._trees.walk(superblock.details_root, DETAILS_BYTES, "device details", note_details)
            whole_roots = self._trees.walk(superblock.mapping_root, MAPPING_BYTES, "device tree", note_roots)
            self.report.devices = len(details)
        for id, root in roots.items():
            found = self._trees.walk(root, MAPPING_BYTES, "mappings", lambda leaf: self._count(leaf, data))
            if snapshot:
                continue
            self.report.mappings += found.entries
            if id in details and found.depth and details[id].mapped_blocks != found.entries:
                self.report.add(
                    Severity.DAMAGE,
                    root,
                    f"device {id}: its details say {details[id].mapped_blocks} mappings, it has {found.entries}",
                )
        if snapshot:
            return
        for id in details:
            if id > MAX_DEVICE_ID:
                self.report.add(Severity.DAMAGE, -1, f"device {id}{where}: the highest possible id is {MAX_DEVICE_ID}")
            if id not in roots and whole_roots.depth:
                self.report.add(Severity.DAMAGE, -1, f"device {id} has details but no mapping tree")
        for id in roots:
            if id not in details and whole_details.depth:
                self.report.add(Severity.DAMAGE, -1, f"device {id} has a mapping tree but no details")

    def _held(self, number: int, data: DataCounts) -> None:
        try:
            self._trees.claim(number, "metadata snapshot")
            held = self._reader.superblock(number)
        except (DamagedMetadataError, NotAPoolError, VersionError) as error:
            self._trees.problem(number, f"metadata snapshot: {error}")
            return
        self._devices(held, data, snapshot=True)

    def _count(self, leaf: Node, data: DataCounts) -> None:
        for key, value in zip(leaf.keys, leaf.values, strict=True):
            assert isinstance(value, int)
            block = value >> TIME_BITS
            if block < self._data_blocks:
                data.add(block)
            else:
                self.report.add(
                    Severity.DAMAGE,
                    leaf.block,
                    f"mappings in block {leaf.block}: virtual block {key} is at data block {block}, "
                    f"but the pool has {self._data_blocks}",
                )

    def _data_map(self, root: bytes, data: DataCounts) -> None:
        blocks, allocated, index_root, overflow_root = MAP_ROOT.unpack(root)
        entries: list[tuple[int, bytes]] = []

        def note(leaf: Node) -> None:
            entries.extend(zip(leaf.keys, leaf.values, strict=True))  # type: ignore[arg-type]  # 16-byte values

        self._trees.walk(index_root, INDEX_ENTRY.size, "data map index", note)
        index = {number: INDEX_ENTRY.unpack(packed) for number, packed in entries}
        self._compare("data", blocks if self._data_blocks else 0, allocated, index, overflow_root, data.part)
        self.report.data_blocks = data.used

    def _metadata_map(self, root: bytes) -> None:
        blocks, allocated, index_block, overflow_root = MAP_ROOT.unpack(root)
        here = self._reader.nr_blocks
        if blocks > here:
            self._trees.problem(0, f"superblock: {blocks} metadata blocks, but the file has only {here}")
        blocks = min(blocks, here)
        index: dict[int, tuple[int, int, int]] = {}
        try:
            self._trees.claim(index_block, "metadata map index")
            block = self._reader.block(index_block, INDEX_SALT, "metadata map index")
            for number in range(min(MAX_BITMAPS, -(-blocks // BITMAP_ENTRIES))):
                index[number] = INDEX_ENTRY.unpack_from(block, 16 + number * INDEX_ENTRY.size)
        except DamagedMetadataError as error:
            self._trees.problem(error.block, str(error))
        references = self._trees.references
        # The map counts its own bitmaps and overflow tree, so claim them before anything is compared.
        self._compare(
            "metadata", blocks, allocated, index, overflow_root, lambda first, size: references[first : first + size]
        )
        self.report.metadata_blocks = sum(1 for count in references if count)

    def _compare(
        self,
        kind: str,
        blocks: int,
        allocated: int,
        index: dict[int, tuple[int, int, int]],
        overflow_root: int,
        used: Callable[[int, int], array[int]],
    ) -> None:
        """Compare a space map with what was counted."""
        overflow = array("Q")

        def note(leaf: Node) -> None:
            for key, packed in zip(leaf.keys, leaf.values, strict=True):
                overflow.append(key)
                overflow.append(int.from_bytes(packed, "little"))  # type: ignore[arg-type]  # 4-byte values

        self._trees.walk(overflow_root, 4, f"{kind} map overflow", note)
        bitmaps: list[tuple[int, bytes | None, int, int]] = []
        for number in range(-(-blocks // BITMAP_ENTRIES)):
            at, free, hint = index.pop(number, (0, 0, 0))
            try:
                if not self._trees.claim(at, f"{kind} map bitmap") if at else True:
                    raise self._reader.damaged(f"{kind} map bitmap", at, f"missing, or there twice (number {number})")
            except DamagedMetadataError as error:
                self._trees.problem(error.block, str(error))
                at = 0
            bitmaps.append((number, None, at, free | hint << 32))
        for number in list(index)[:MAX_PROBLEMS]:
            self.report.add(
                Severity.DAMAGE, index[number][0], f"{kind} map index: entry {number} is behind the last bitmap"
            )
        place = total = 0
        for number, _, at, free_hint in bitmaps:
            first = number * BITMAP_ENTRIES
            size = min(BITMAP_ENTRIES, blocks - first)
            stop = place
            while stop < len(overflow) and overflow[stop] < first + size:
                stop += 2
            if at:
                try:
                    block = self._reader.block(at, BITMAP_SALT, f"{kind} map bitmap")
                except DamagedMetadataError as error:
                    self._trees.problem(error.block, str(error))
                else:
                    counts = _decode(block, size)
                    large = dict(zip(overflow[place:stop:2], overflow[place + 1 : stop : 2], strict=True))
                    total += size - counts.count(0)
                    self._hints(kind, at, counts, free_hint & 0xFFFFFFFF, free_hint >> 32)
                    self._compare_bitmap(kind, first, counts, large, used(first, size))
            place = stop
        if place < len(overflow):
            self.report.add(
                Severity.DAMAGE, overflow_root, f"{kind} map overflow: block {overflow[place]} is behind the last one"
            )
        if total != allocated and self.report.complete:
            self.report.add(
                Severity.HINT, 0, f"superblock: {allocated} {kind} blocks allocated, their map counts {total}"
            )

    def _hints(self, kind: str, at: int, counts: bytes, free: int, hint: int) -> None:
        zeros = counts.count(0)
        # The kernel counts a part-used bitmap as if all its entries existed.
        if free not in (zeros, zeros + BITMAP_ENTRIES - len(counts)):
            self.report.add(
                Severity.HINT, at, f"{kind} map bitmap in block {at}: {free} free by the index, {zeros} in it"
            )
        found = counts.find(0)
        if 0 <= found < hint:
            self.report.add(
                Severity.HINT,
                at,
                f"{kind} map bitmap in block {at}: entry {found} is free, the index says none before {hint}",
            )

    def _compare_bitmap(self, kind: str, first: int, counts: bytes, large: dict[int, int], used: array[int]) -> None:
        if not large and 3 not in counts and bytes(min(count, 3) for count in used) == counts:
            return
        for at, (small, wanted) in enumerate(zip(counts, used, strict=True)):
            block = first + at
            found = large.pop(block, None) if small == 3 else small
            where = block if kind == "metadata" else -1
            if found is None or (small == 3 and found < 3):
                self.report.add(
                    Severity.DAMAGE, where, f"{kind} block {block}: a count of 3 or more is due in the overflow tree"
                )
            elif found < wanted:
                self.report.add(Severity.DAMAGE, where, f"{kind} block {block}: counted {found}, used {wanted} times")
            elif found > wanted and self.report.complete:
                self.report.add(Severity.LEAK, where, f"{kind} block {block}: counted {found}, used {wanted} times")
        for block in large:
            self.report.add(
                Severity.DAMAGE, -1, f"{kind} block {block}: in the overflow tree, though its count is below 3"
            )


_PAIRS = (0, 2, 1, 3)
_QUARTERS = [bytes(_PAIRS[byte >> shift & 3] for byte in range(256)) for shift in (0, 2, 4, 6)]


def _decode(block: bytes, size: int) -> bytes:
    """The counts of a bitmap block, one byte each; 3 stands for 3 or more."""
    packed = block[16:]
    counts = bytearray(4 * len(packed))
    for place, table in enumerate(_QUARTERS):
        counts[place::4] = packed.translate(table)
    return bytes(counts[:size])
