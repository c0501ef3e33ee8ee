"""A node of the on-disk B-tree: 4096 bytes with sorted 64-bit keys and values of one fixed size, the kernel's to the byte.

Two faces of the same bytes: `NodeView` is what looking up reads, decoded once and cached with the block; `Node` is what changing
writes, straight into a block that the transaction owns. Neither is trusted to be whole because it was written by us: `check_node`
says what is wrong with bytes from outside, and every block passes it on its way in.

Source: Linux `drivers/md/persistent-data/dm-btree-internal.h` and `dm-btree-spine.c`.
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_right
from collections.abc import Sequence
from operator import ge

from dstorage.persistent.blocks import Block
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.persistent.validators import Validator

if sys.byteorder != "little":
    raise ImportError("dstorage.persistent needs a little-endian machine: it reads keys in place, as they lie on disk")

BLOCK_BYTES = 4096
NODE_SALT = 121107
INTERNAL = 1
LEAF = 2
NODE_HEADER = struct.Struct("<IIQIIII")
"""Checksum, flags, block, entries, room for entries, bytes of a value, padding."""
MAX_KEY = 2**64 - 1
MAX_VALUE_BYTES = (BLOCK_BYTES - NODE_HEADER.size) // 3 - 8
"""A node must have room for three entries, else it could not be kept a third full."""
DEPTHS = range(16)
"""Levels of nodes that a descent goes down: with nodes a third full fewer are enough for all 2**64 keys, more are a circle."""

_FIELDS = struct.Struct("<IQIII")
_COUNT = struct.Struct("<I")
_FLAGS_AT = 4
_COUNT_AT = 16
_KEYS_AT = NODE_HEADER.size


def max_entries(value_size: int) -> int:
    """Entries that a node with values of so many bytes has room for; always a multiple of 3."""
    return (BLOCK_BYTES - NODE_HEADER.size) // (8 + value_size) // 3 * 3


def too_deep(number: int) -> DamagedMetadataError:
    """The error for a descent that does not come to a leaf."""
    return DamagedMetadataError(f"tree node in block {number}: more than {len(DEPTHS)} levels of nodes", block=number)


def wrong_size(number: int, found: int, expected: int) -> DamagedMetadataError:
    """The error for a leaf of another kind of tree."""
    return DamagedMetadataError(
        f"tree node in block {number}: values of {found} bytes in a tree of {expected}", block=number
    )


def empty_node(number: int) -> DamagedMetadataError:
    """The error for a node without entries that is not a root."""
    return DamagedMetadataError(f"tree node in block {number}: no entries", block=number)


def check_node(data: bytes | bytearray | memoryview) -> str | None:
    """What is structurally wrong with a block that should be a node, or None; checksum and place are the validator's."""
    flags, _, count, room, size = _FIELDS.unpack_from(data, _FLAGS_AT)
    if flags not in (INTERNAL, LEAF):
        return f"flags {flags}, neither an internal node's nor a leaf's"
    if not size or not room or room % 3 or _KEYS_AT + room * (8 + size) > BLOCK_BYTES:
        return f"room for {room} entries with values of {size} bytes"
    if flags == INTERNAL and size != 8:
        return f"an internal node with values of {size} bytes"
    if count > room:
        return f"{count} entries where {room} have room"
    if flags == INTERNAL and not count:
        return "an internal node without entries"
    keys = memoryview(data)[_KEYS_AT : _KEYS_AT + 8 * count].cast("Q").tolist()
    if any(map(ge, keys, keys[1:])):
        return "keys that do not ascend"
    return None


NODE = Validator("tree node", NODE_SALT, rules=check_node)
"""What every node passes on its way in."""


class NodeView:
    """A node to read; a snapshot as long as nobody writes the block.

    Attributes:
        keys: Ascending. Unpacked in internal nodes, which are few and visited always: bisecting a list takes half the time.
        values: As integers where values have 8 bytes, empty elsewhere; `value` gives the bytes of any.
        value_size: Bytes of a value.
    """

    __slots__ = ("_data", "_values_at", "is_leaf", "keys", "value_size", "values")

    keys: Sequence[int]
    values: Sequence[int]

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        flags, _, count, room, size = _FIELDS.unpack_from(data, _FLAGS_AT)
        view = memoryview(data)
        at = _KEYS_AT + 8 * room
        self._data = view
        self._values_at = at
        self.is_leaf = flags == LEAF
        self.value_size = size
        keys = view[_KEYS_AT : _KEYS_AT + 8 * count].cast("Q")
        if self.is_leaf:
            self.keys = keys
            self.values = view[at : at + 8 * count].cast("Q") if size == 8 else ()
        else:
            self.keys = keys.tolist()
            self.values = view[at : at + 8 * count].cast("Q").tolist()

    def value(self, index: int) -> bytes:
        """The bytes of one value."""
        at = self._values_at + index * self.value_size
        return bytes(self._data[at : at + self.value_size])

    def packed(self, first: int = 0, end: int | None = None) -> memoryview:
        """The values of the entries from `first` to before `end`, one behind the other."""
        size, at = self.value_size, self._values_at
        return self._data[at + first * size : at + (len(self.keys) if end is None else end) * size]


class Node:
    """A node to change, on a block that is write-locked; every change is in the block's bytes at once.

    Attributes:
        block: What is to be unlocked.
        keys: All places for keys; those from `count` on mean nothing.
        children: The values as integers where they have 8 bytes.
    """

    __slots__ = ("_data", "_values_at", "block", "children", "count", "is_leaf", "keys", "number", "room", "value_size")

    def __init__(self, block: Block) -> None:
        data = memoryview(block.data)
        flags, _, self.count, self.room, self.value_size = _FIELDS.unpack_from(data, _FLAGS_AT)
        self.block = block
        self.number = block.number
        self.is_leaf = flags == LEAF
        at = _KEYS_AT + 8 * self.room
        self._data = data
        self._values_at = at
        self.keys = data[_KEYS_AT:at].cast("Q")
        self.children = data[at : at + 8 * self.room].cast("Q") if self.value_size == 8 else memoryview(b"").cast("Q")

    def renewed(self, block: Block) -> Node:
        """The node after its block has been locked anew: itself if the bytes lie where they were."""
        if block.data is not self.block.data:
            return Node(block)
        self.block = block
        (self.count,) = _COUNT.unpack_from(block.data, _COUNT_AT)
        return self

    @classmethod
    def format(cls, block: Block, *, is_leaf: bool, value_size: int) -> Node:
        """Make a fresh block of zeros, or a node to be turned into another, a node without entries."""
        flags = LEAF if is_leaf else INTERNAL
        _FIELDS.pack_into(block.data, _FLAGS_AT, flags, block.number, 0, max_entries(value_size), value_size)
        return cls(block)

    def find(self, key: int) -> int:
        """Place of the greatest key that is not above this one, or -1."""
        return bisect_right(self.keys, key, 0, self.count) - 1

    def value(self, index: int) -> bytes:
        """The bytes of one value."""
        at = self._values_at + index * self.value_size
        return bytes(self._data[at : at + self.value_size])

    def set_value(self, index: int, value: bytes) -> None:
        """Overwrite one value."""
        at = self._values_at + index * self.value_size
        self._data[at : at + self.value_size] = value

    def packed(self, first: int = 0, end: int | None = None) -> memoryview:
        """The values of the entries from `first` to before `end`, one behind the other; valid until the next change."""
        size, at = self.value_size, self._values_at
        return self._data[at + first * size : at + (self.count if end is None else end) * size]

    def insert(self, index: int, key: int, value: bytes) -> None:
        """Put an entry before the one at `index`; there must be room."""
        data, count, size = self._data, self.count, self.value_size
        key_at = _KEYS_AT + 8 * index
        value_at = self._values_at + size * index
        if index < count:
            key_end, value_end = _KEYS_AT + 8 * count, self._values_at + size * count
            data[key_at + 8 : key_end + 8] = data[key_at:key_end]
            data[value_at + size : value_end + size] = data[value_at:value_end]
        self.keys[index] = key
        data[value_at : value_at + size] = value
        self._set_count(count + 1)

    def delete(self, first: int, end: int) -> None:
        """Take out the entries from `first` to before `end`."""
        data, count, size = self._data, self.count, self.value_size
        at, value_at = _KEYS_AT, self._values_at
        data[at + 8 * first : at + 8 * (first + count - end)] = data[at + 8 * end : at + 8 * count]
        data[value_at + size * first : value_at + size * (first + count - end)] = data[
            value_at + size * end : value_at + size * count
        ]
        self._set_count(count - (end - first))

    def become_copy_of(self, data: bytes | bytearray | memoryview) -> Node:
        """Take over another node's contents, whatever its kind; gives the node that this block now is."""
        self._data[_FLAGS_AT:] = data[_FLAGS_AT:]
        return Node(self.block)

    def fill(self, keys: bytes, values: bytes) -> None:
        """Replace all entries by packed ones."""
        self._data[_KEYS_AT : _KEYS_AT + len(keys)] = keys
        self._data[self._values_at : self._values_at + len(values)] = values
        self._set_count(len(keys) // 8)

    def _set_count(self, count: int) -> None:
        self.count = count
        _COUNT.pack_into(self._data, _COUNT_AT, count)

    def packed_keys(self) -> memoryview:
        """The keys, one behind the other."""
        return self._data[_KEYS_AT : _KEYS_AT + 8 * self.count]


def spread(nodes: Sequence[Node], counts: Sequence[int]) -> None:
    """Deal the entries of neighbouring nodes of one kind out again, in order, so many to each."""
    keys = b"".join([node.packed_keys() for node in nodes])
    values = b"".join([node.packed() for node in nodes])
    size = nodes[0].value_size
    first = 0
    for node, count in zip(nodes, counts, strict=True):
        end = first + count
        node.fill(keys[8 * first : 8 * end], values[size * first : size * end])
        first = end
