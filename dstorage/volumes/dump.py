"""Metadata as XML, byte for byte as thin_dump 0.9.0 prints them; the memory needed is that of one path down a tree.

A device with mappings but no details is an error and one with details but no mappings is left out, as thin_dump has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from dstorage.volumes.errors import InvalidArgumentError
from dstorage.volumes.layout import MAP_ROOT
from dstorage.volumes.reader import MetadataReader
from dstorage.volumes.records import DETAILS_BYTES, MAPPING_BYTES, DeviceDetails, runs_of
from dstorage.volumes.superblock import Superblock
from dstorage.volumes.xml import DeviceItem, PoolItem, Writer


def dump(
    metadata: Path | str,
    write: Callable[[bytes], object],
    *,
    snapshot: bool = False,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write a pool's metadata as XML.

    Args:
        metadata: The file; nobody may be changing it, unless `snapshot` is true.
        write: Takes the text in pieces.
        snapshot: Dump the metadata snapshot, which holds still while the pool is in use.
        advance: Called with the number of devices done, one by one.

    Raises:
        NotAPoolError: The file holds no pool.
        InvalidArgumentError: `snapshot` is true and there is none.
        DamagedMetadataError: Something is damaged; what was written before is right.
    """
    with MetadataReader(metadata) as reader:
        superblock = reader.superblock()
        if snapshot:
            if not superblock.held_root:
                raise InvalidArgumentError(f"{metadata} has no metadata snapshot: take one first, or dump without")
            superblock = reader.superblock(superblock.held_root)
        _dump(reader, superblock, Writer(write), advance)


def _dump(
    reader: MetadataReader, superblock: Superblock, writer: Writer, advance: Callable[[int], None] | None
) -> None:
    nr_data_blocks = MAP_ROOT.unpack(superblock.data_map_root)[0]
    writer.pool(
        PoolItem(
            superblock.time,
            superblock.transaction_id,
            superblock.data_block_size,
            nr_data_blocks,
            superblock.flags,
            superblock.version,
        )
    )
    details = _details(reader, superblock)
    id, found = next(details, (-1, None))
    for leaf in reader.leaves(superblock.mapping_root, MAPPING_BYTES, "device tree"):
        for device, root in zip(leaf.keys, leaf.values, strict=True):
            while found is not None and id < device:
                id, found = next(details, (-1, None))
            if found is None or id != device:
                raise reader.damaged("device tree", leaf.block, f"device {device} has mappings but no details")
            assert isinstance(root, int)
            writer.device(DeviceItem(device, found))
            leaves = reader.leaves(root, MAPPING_BYTES, f"mappings of device {device}")
            pairs = chain.from_iterable(zip(part.keys, part.values, strict=True) for part in leaves)
            for run in runs_of(pairs):  # type: ignore[arg-type]  # values of 8 bytes are numbers
                writer.run(run)
            if advance is not None:
                advance(1)
    writer.finish()


def _details(reader: MetadataReader, superblock: Superblock) -> Iterator[tuple[int, DeviceDetails | None]]:
    for leaf in reader.leaves(superblock.details_root, DETAILS_BYTES, "device details"):
        for id, packed in zip(leaf.keys, leaf.values, strict=True):
            assert isinstance(packed, bytes)
            yield id, DeviceDetails.unpack(packed)
