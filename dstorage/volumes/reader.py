"""Metadata read without trusting them: checksums, structure and bounds are checked at every step, nothing is changed.

The checker and the dump stand on this rather than on `dstorage.persistent`: what gives a second opinion must not share the code
that it judges. No walk can be made endless or large by what the file says: a node has at most 336 entries, trees at most
`MAX_DEPTH` levels, keys ascend over the whole tree.

Source: Linux `drivers/md/persistent-data`; the limits that thin_check 0.9.0 applies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dstorage.persistent import positioned
from dstorage.volumes.errors import DamagedMetadataError, NotAPoolError
from dstorage.volumes.layout import (
    BLOCK_BYTES,
    INTERNAL,
    LEAF,
    MAX_METADATA_BLOCKS,
    NODE_HEADER,
    NODE_SALT,
    SUPERBLOCK_SALT,
    checksum,
)
from dstorage.volumes.superblock import Superblock

MAX_DEPTH = 16
"""Nodes are at least a third full, so a tree of 2**64 keys has fewer levels."""

_NUMBER = struct.Struct("<Q")


class Node(NamedTuple):
    """A node of a tree: `values` are numbers where they have 8 bytes, else bytes."""

    block: int
    leaf: bool
    keys: tuple[int, ...]
    values: tuple[int, ...] | tuple[bytes, ...]
    max_entries: int


class MetadataReader:
    """A metadata file, read only, no lock. A context manager.

    Args:
        path: The file.

    Raises:
        NotAPoolError: It is too short, or not there.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._fd = positioned.open_file(path, read_only=True)
        except OSError as error:
            raise NotAPoolError(f"{path} cannot be read: {error.strerror}") from error
        try:
            # No map can count more: what lies behind, in a file that is longer, is none of the pool's.
            self.nr_blocks = min(positioned.size_of(self._fd) // BLOCK_BYTES, MAX_METADATA_BLOCKS)
            if not self.nr_blocks:
                raise NotAPoolError(f"{path} holds no thin pool: it is shorter than one block")
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)

    def damaged(self, kind: str, number: int, reason: str) -> DamagedMetadataError:
        """An error that names block, kind and file."""
        return DamagedMetadataError(f"{kind} in block {number} of {self.path}: {reason}", block=number)

    def block(self, number: int, salt: int, kind: str) -> bytes:
        """A block whose checksum and number are right.

        Raises:
            DamagedMetadataError: They are not, or there is no such block.
        """
        if not 0 <= number < self.nr_blocks:
            raise self.damaged(kind, number, f"outside of the file, which has {self.nr_blocks} blocks")
        block = positioned.pread(self._fd, BLOCK_BYTES, number * BLOCK_BYTES)
        if len(block) != BLOCK_BYTES:
            raise self.damaged(kind, number, "the file has been cut short")
        if checksum(block, salt) != int.from_bytes(block[:4], "little"):
            raise self.damaged(kind, number, "wrong checksum")
        (found,) = _NUMBER.unpack_from(block, 8)
        if found != number:
            raise self.damaged(kind, number, f"it says that it is block {found}")
        return block

    def superblock(self, number: int = 0) -> Superblock:
        """The superblock, or the copy that is a metadata snapshot.

        Raises:
            NotAPoolError: There is none.
            DamagedMetadataError: It fails its checksum.
            VersionError: It is of a version not known here.
        """
        if number == 0 and not positioned.pread(self._fd, BLOCK_BYTES, 0).strip(b"\0"):
            raise NotAPoolError(f"{self.path} holds no thin pool: its first block is empty")
        return Superblock.unpack(self.block(number, SUPERBLOCK_SALT, "superblock"), self.path)

    def node(self, number: int, value_size: int, kind: str, *, root: bool) -> Node:
        """A node of a tree whose leaves hold values of `value_size` bytes.

        Raises:
            DamagedMetadataError: It breaks a rule of the format.
        """
        block = self.block(number, NODE_SALT, kind)
        _, flags, _, count, most, size, _ = NODE_HEADER.unpack_from(block)
        leaf = flags == LEAF
        if not leaf and flags != INTERNAL:
            raise self.damaged(kind, number, f"flags {flags:#x} are neither those of a leaf nor of an internal node")
        wanted = value_size if leaf else 8
        if size != wanted:
            raise self.damaged(kind, number, f"values of {size} bytes where {wanted} are due")
        if not most or most % 3 or NODE_HEADER.size + (8 + size) * most > BLOCK_BYTES:
            raise self.damaged(kind, number, f"no node has room for {most} entries")
        if count > most:
            raise self.damaged(kind, number, f"{count} entries in a node of {most}")
        if not count and not (leaf and root):
            raise self.damaged(kind, number, "it is empty")
        keys = struct.unpack_from(f"<{count}Q", block, NODE_HEADER.size)
        # Sorted and without equals, by C code: one comparison per key would cost more than all the rest.
        if list(keys) != sorted(set(keys)):
            raise self.damaged(kind, number, "its keys do not ascend")
        start = NODE_HEADER.size + 8 * most
        values: tuple[int, ...] | tuple[bytes, ...]
        if size == 8:
            values = struct.unpack_from(f"<{count}Q", block, start)
        else:
            values = tuple([block[at : at + size] for at in range(start, start + count * size, size)])
        return Node(number, leaf, keys, values, most)

    def leaves(self, root: int, value_size: int, kind: str) -> Iterator[Node]:
        """The leaves of a tree in order.

        Raises:
            DamagedMetadataError: At the first thing wrong; what was yielded before is sound.
        """
        # Per level: the node and the place of the child to visit next.
        path: list[tuple[Node, int]] = []
        number, last = root, -1
        while True:
            node = self.node(number, value_size, kind, root=not path)
            if path and node.keys[0] < path[-1][0].keys[path[-1][1] - 1]:
                raise self.damaged(kind, number, "its keys begin before its parent says")
            if node.leaf:
                if node.keys:
                    if node.keys[0] <= last:
                        raise self.damaged(kind, number, "its keys do not ascend from the leaf before")
                    last = node.keys[-1]
                yield node
                while path and path[-1][1] == len(path[-1][0].keys):
                    path.pop()
                if not path:
                    return
            else:
                if len(path) == MAX_DEPTH:
                    raise self.damaged(kind, number, f"the tree has more than {MAX_DEPTH} levels")
                path.append((node, 0))
            parent, at = path[-1]
            child = parent.values[at]
            assert isinstance(child, int)
            path[-1] = (parent, at + 1)
            number = child
