"""The superblock of a thin pool: block 0 of its metadata, the one block that is ever overwritten in place.

Its 364 bytes lie in one 512-byte sector, so a torn write leaves the old or the new one. A copy of it elsewhere is a metadata
snapshot.

Source: Linux `drivers/md/dm-thin-metadata.c`, struct thin_disk_superblock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dstorage.errors import VersionError
from dstorage.persistent.validators import Validator
from dstorage.volumes.errors import NotAPoolError
from dstorage.volumes.layout import SUPERBLOCK_SALT

SUPERBLOCK = Validator("superblock", SUPERBLOCK_SALT)
MAGIC = 27022010
VERSION = 2
SECTOR_BYTES = 512
METADATA_BLOCK_SECTORS = 8
NEEDS_CHECK = 1

MIN_DATA_BLOCK_SECTORS = 128
MAX_DATA_BLOCK_SECTORS = 2097152

_LAYOUT = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")
ROOT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Superblock:
    """All fields, in the order of the disk; the checksum is the block manager's part.

    Attributes:
        flags: Bit 0: the metadata need a check before anybody changes them. Other bits are kept as they are.
        block: Where it is: 0, or its own location in a metadata snapshot.
        uuid: 16 bytes that nobody uses.
        version: 2; thin_restore may leave 1.
        time: Counts snapshots.
        transaction_id: The user's own.
        held_root: Block of the metadata snapshot, or 0.
        data_map_root: Root of the data space map, 32 bytes.
        metadata_map_root: Root of the metadata space map, 32 bytes.
        mapping_root: Root of the two-level tree device id -> virtual block -> mapping.
        details_root: Root of the tree device id -> details.
        data_block_size: In sectors of 512 bytes.
        metadata_block_size: In sectors: 8.
        metadata_blocks: Number of metadata blocks when it was formatted.
    """

    flags: int
    block: int
    uuid: bytes
    version: int
    time: int
    transaction_id: int
    held_root: int
    data_map_root: bytes
    metadata_map_root: bytes
    mapping_root: int
    details_root: int
    data_block_size: int
    metadata_block_size: int
    metadata_blocks: int
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0

    @property
    def needs_check(self) -> bool:
        """Whether the metadata must be checked before anybody changes them."""
        return bool(self.flags & NEEDS_CHECK)

    @property
    def block_bytes(self) -> int:
        """Bytes of a data block."""
        return self.data_block_size * SECTOR_BYTES

    def pack_into(self, block: bytearray | memoryview) -> None:
        """Write all fields but the checksum."""
        _LAYOUT.pack_into(
            block,
            0,
            0,
            self.flags,
            self.block,
            self.uuid,
            MAGIC,
            self.version,
            self.time,
            self.transaction_id,
            self.held_root,
            self.data_map_root,
            self.metadata_map_root,
            self.mapping_root,
            self.details_root,
            self.data_block_size,
            self.metadata_block_size,
            self.metadata_blocks,
            self.compat_flags,
            self.compat_ro_flags,
            self.incompat_flags,
        )

    @classmethod
    def unpack(cls, block: bytes | bytearray | memoryview, path: object) -> Superblock:
        """From the block's bytes, whose checksum is known to be right.

        Args:
            block: 4096 bytes.
            path: For messages.

        Raises:
            NotAPoolError: Another magic number, or another metadata block size.
            VersionError: A newer version, or features that are not known here.
        """
        _, flags, number, uuid, magic, version, *rest = _LAYOUT.unpack_from(block)
        if magic != MAGIC:
            raise NotAPoolError(f"{path} holds no thin pool: its magic number is {magic}, not {MAGIC}")
        if version > VERSION:
            raise VersionError(
                f"{path} is of version {version}, known is up to {VERSION}: use a newer release of dstorage",
                found=version,
                supported=VERSION,
            )
        time, transaction, held, data_map, metadata_map, *rest = rest
        found = cls(
            flags,
            number,
            uuid,
            version,
            time,
            transaction,
            held,
            data_map[:ROOT_BYTES],
            metadata_map[:ROOT_BYTES],
            *rest,
        )
        if found.incompat_flags:
            raise VersionError(
                f"{path} uses features {found.incompat_flags:#x} that this release does not know: use a newer one",
                found=found.incompat_flags,
                supported=0,
            )
        if found.metadata_block_size != METADATA_BLOCK_SECTORS:
            raise NotAPoolError(
                f"{path} says that its metadata blocks have {found.metadata_block_size} sectors; "
                f"only {METADATA_BLOCK_SECTORS} are possible"
            )
        return found


def check_data_block_size(sectors: int, path: object) -> None:
    """Raise unless a pool can work with data blocks of that many sectors.

    Raises:
        NotAPoolError: It is out of range or no multiple of 64 KiB.
    """
    if not MIN_DATA_BLOCK_SECTORS <= sectors <= MAX_DATA_BLOCK_SECTORS or sectors % MIN_DATA_BLOCK_SECTORS:
        raise NotAPoolError(
            f"{path}: data blocks of {sectors} sectors; a pool has a multiple of {MIN_DATA_BLOCK_SECTORS} (64 KiB) "
            f"up to {MAX_DATA_BLOCK_SECTORS} (1 GiB)"
        )
