"""Metadata from XML, built in bulk: every node and map is written once, in place order, with its final contents.

What is made passes thin_check and means what thin_restore makes of the same text, down to sharing: each device gets a tree of
its own, all devices without mappings share one empty root. Nodes are filled evenly, as checkers reject those less than a third
full. The superblock comes last, behind a flush: an interrupted restore leaves a file that nobody takes for a pool.

Memory: an entry of 16 bytes per 16320 blocks and what `Survey` needs; the counts of data blocks are in a sparse temporary file.

Source: layouts of Linux `drivers/md/persistent-data`; the bulk building is this module's own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dstorage.durable import sync_file
from dstorage.errors import InvalidArgumentError
from dstorage.persistent import positioned
from dstorage.volumes.bulk import (
    BulkWriter,
    tree_blocks,
    write_data_map,
    write_metadata_map,
)
from dstorage.volumes.counts import DataCounts
from dstorage.volumes.errors import PoolFullError
from dstorage.volumes.layout import BITMAP_ENTRIES, BLOCK_BYTES, INDEX_ENTRY, MAX_METADATA_BLOCKS, SUPERBLOCK_SALT, seal
from dstorage.volumes.lock import MetadataLock
from dstorage.volumes.records import DETAILS_BYTES, MAPPING_BYTES, TIME_BITS, Run, pack_mapping
from dstorage.volumes.superblock import METADATA_BLOCK_SECTORS, VERSION, Superblock
from dstorage.volumes.survey import Survey
from dstorage.volumes.xml import PoolItem, parse

MIN_BLOCKS = 1024
"""A file that is made here has at least so many: 4 MiB."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was written.

    Attributes:
        used_blocks: Metadata blocks in use.
        nr_blocks: Metadata blocks in all.
    """

    devices: int
    mappings: int
    used_blocks: int
    nr_blocks: int


def restore(
    source: BinaryIO,
    metadata: Path | str,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
    advance_mappings: Callable[[int], None] | None = None,
) -> Restored:
    """Make metadata from XML.

    Args:
        source: The text.
        metadata: The file. It is made if it is not there or empty, with room for twice what is needed; else its length stays.
        overwrite: Replace a pool that is there.
        advance: Called with the number of bytes read, piece by piece.
        advance_mappings: Called with the number of mappings written, piece by piece.

    Raises:
        XmlError: The text is not the thin tools' XML; the file is as it was.
        InvalidArgumentError: The text contradicts itself, or there is a pool and `overwrite` is false; the file is as it was.
        PoolFullError: The file is too small; it is as it was.
        StoreLocked: Somebody writes the file.
    """
    path = Path(metadata)
    with Survey(parse(source, advance)) as survey:
        if not 1 <= survey.pool.version <= VERSION:
            raise InvalidArgumentError(f"version {survey.pool.version} is not known: 1 and {VERSION} are")
        needed = _blocks_needed(survey)
        made = not path.exists()
        if made:
            path.touch(mode=0o600)
        try:
            lock = MetadataLock(path)
            try:
                return _restore(survey, path, needed, overwrite, advance_mappings)
            finally:
                lock.release()
        except BaseException:
            if made:
                path.unlink()
            raise


def _restore(
    survey: Survey, path: Path, needed: int, overwrite: bool, advance: Callable[[int], None] | None
) -> Restored:
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            size = max(MIN_BLOCKS, 2 * needed) * BLOCK_BYTES
            file.truncate(size)
        nr_blocks = min(size // BLOCK_BYTES, MAX_METADATA_BLOCKS)
        needed += _metadata_map_blocks(nr_blocks)
        if needed > nr_blocks:
            raise PoolFullError(
                f"{path} has {nr_blocks} blocks of {BLOCK_BYTES} bytes, {needed} are needed: "
                f"make it at least {needed * BLOCK_BYTES} bytes long",
                kind="metadata",
            )
        file.seek(0)
        if file.read(BLOCK_BYTES).strip(b"\0") and not overwrite:
            raise InvalidArgumentError(f"{path} holds something already: pass overwrite=True (--force) to replace it")
        positioned.pwrite(file.fileno(), bytes(BLOCK_BYTES), 0)
        sync_file(file.fileno())
        writer = BulkWriter(file.fileno(), nr_blocks)
        superblock = _write_pool(writer, survey, advance)
        writer.flush()
        sync_file(file.fileno())
        block = bytearray(BLOCK_BYTES)
        superblock.pack_into(block)
        positioned.pwrite(file.fileno(), seal(block, 0, SUPERBLOCK_SALT), 0)
        sync_file(file.fileno())
    return Restored(len(survey.devices), survey.mappings, writer.used, nr_blocks)


def _write_pool(writer: BulkWriter, survey: Survey, advance: Callable[[int], None] | None) -> Superblock:
    pool = survey.pool
    ids = sorted(survey.devices)
    with DataCounts(pool.nr_data_blocks) as counts:
        empty_root = 0
        empty = sum(not device.mappings for device in survey.devices.values())
        if empty:
            empty_root = writer.tree(iter(()), 0, MAPPING_BYTES)
        roots: dict[int, int] = {}
        for id in ids:
            device = survey.devices[id]
            if not device.mappings:
                roots[id] = empty_root
                continue
            mappings = _mappings(survey.runs(id), counts, advance)
            roots[id] = writer.tree(mappings, device.mappings, MAPPING_BYTES)
        packed = struct.Struct("<Q").pack
        mapping_root = writer.tree(((id, packed(roots[id])) for id in ids), len(ids), MAPPING_BYTES)
        details_root = writer.tree(((id, survey.devices[id].details.pack()) for id in ids), len(ids), DETAILS_BYTES)
        data_map = write_data_map(writer, counts)
    metadata_map = write_metadata_map(writer, empty_root, empty)
    return Superblock(
        flags=pool.flags,
        block=0,
        uuid=bytes(16),
        version=pool.version,
        time=pool.time,
        transaction_id=pool.transaction,
        held_root=0,
        data_map_root=data_map,
        metadata_map_root=metadata_map,
        mapping_root=mapping_root,
        details_root=details_root,
        data_block_size=pool.data_block_size,
        metadata_block_size=METADATA_BLOCK_SECTORS,
        metadata_blocks=writer.nr_blocks,
    )


def _mappings(
    runs: Iterator[Run], counts: DataCounts, advance: Callable[[int], None] | None
) -> Iterator[tuple[int, bytes]]:
    pack = struct.Struct("<Q").pack
    for virtual, data, length, time in runs:
        counts.add(data, length)
        value = pack_mapping(data, time)
        for number in range(length):
            yield virtual + number, pack(value + (number << TIME_BITS))
        if advance is not None:
            advance(length)


def _blocks_needed(survey: Survey) -> int:
    """Metadata blocks for everything but the metadata map's own bitmaps; at most some too many."""
    pool: PoolItem = survey.pool
    devices = survey.devices.values()
    bitmaps = -(-pool.nr_data_blocks // BITMAP_ENTRIES)
    trees = sum(tree_blocks(device.mappings, MAPPING_BYTES) for device in devices if device.mappings)
    return (
        1  # superblock
        + 1  # the root of the empty devices
        + trees
        + tree_blocks(len(devices), MAPPING_BYTES)
        + tree_blocks(len(devices), DETAILS_BYTES)
        + bitmaps
        + tree_blocks(bitmaps, INDEX_ENTRY.size)
        # Three mappings at least make one entry of the overflow tree.
        + tree_blocks(survey.mappings // 3, 4)
    )


def _metadata_map_blocks(nr_blocks: int) -> int:
    return 2 + -(-nr_blocks // BITMAP_ENTRIES)
