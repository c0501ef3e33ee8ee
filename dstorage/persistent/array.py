"""An array of fixed-size values on copy-on-write blocks: a tree of blocks that are packed with values.

Takes the place of a tree where the keys are 0 to n-1: no keys are stored, so a block holds twice as many 64-bit values and is found by
division. The array does not keep its length; whoever keeps its root does (as the kernel's does not).

Reference counts, old roots and errors are as in `dstorage.persistent.btree`.

Source: Linux `drivers/md/persistent-data/dm-array.c`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.blocks import Block, Blocks
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError, MissingKeyError
from dstorage.persistent.node import BLOCK_BYTES
from dstorage.persistent.validators import Validator
from dstorage.persistent.values import Value, ValueHooks, ValueType, bytes_of

ARRAY_SALT = 595846735
ARRAY_HEADER = struct.Struct("<IIIIQ")
"""Checksum, room for values, values, bytes of a value, block."""
MAX_ENTRIES = 2**32
"""Indexes are 32-bit numbers in the kernel."""

_FIELDS = struct.Struct("<IIIQ")
_FIELDS_AT = 4
_COUNT = struct.Struct("<I")
_COUNT_AT = 8


def array_entries(value_size: int) -> int:
    """Values of so many bytes that a block has room for."""
    return (BLOCK_BYTES - ARRAY_HEADER.size) // value_size


def check_array_block(data: bytes | bytearray | memoryview) -> str | None:
    """What is structurally wrong with a block that should be an array's, or None; checksum and place are the validator's."""
    room, count, size, _ = _FIELDS.unpack_from(data, _FIELDS_AT)
    if not size or room != array_entries(size):
        return f"room for {room} values of {size} bytes"
    if count > room:
        return f"{count} values where {room} have room"
    return None


ARRAY = Validator("array block", ARRAY_SALT, number_at=16, rules=check_array_block)
"""What every block of an array passes on its way in."""


class _View:
    """A block of values to read."""

    __slots__ = ("count", "data", "size")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        _, self.count, self.size, _ = _FIELDS.unpack_from(data, _FIELDS_AT)
        self.data = memoryview(data)[ARRAY_HEADER.size : ARRAY_HEADER.size + self.count * self.size]

    def value(self, index: int) -> bytes:
        return bytes(self.data[index * self.size : (index + 1) * self.size])


class PersistentArray:
    """A kind of array: where its blocks come from and what values. Arrays of the kind are root numbers, with a length kept elsewhere.

    Args:
        blocks: The transaction that reads and changes.
        value_size: Bytes of a value, 1 to 4072.
        hooks: Called when values get or lose owners. Unlike in a tree, a value that is set or filled in is counted by `inc`: the
            caller's own reference stays the caller's.

    Example:
        >>> def demo(tm):
        ...     array = PersistentArray(tm)
        ...     root = array.new(1000, (index * index for index in range(1000)))
        ...     root = array.set(root, 3, 10)
        ...     assert array.get_u64(root, 3) == 10
        ...     root = array.resize(root, 1000, 2000, 0)

    Raises:
        InvalidArgumentError: No block can hold such values.
    """

    def __init__(self, blocks: Blocks, *, value_size: int = 8, hooks: ValueHooks | None = None) -> None:
        if not 1 <= value_size <= BLOCK_BYTES - ARRAY_HEADER.size:
            raise InvalidArgumentError(
                f"values have 1 to {BLOCK_BYTES - ARRAY_HEADER.size} bytes in an array, not {value_size}"
            )
        self.value_size = value_size
        self.room = array_entries(value_size)
        self._blocks = blocks
        self._type = ValueType(value_size, hooks or ValueHooks())
        self._tree = BTree(blocks, hooks=ValueHooks(inc=self._inc_blocks, dec=self._dec_blocks))
        # Shadowing a block moves its reference to the copy, so that overwriting its place in the tree must not drop it again.
        self._moving = BTree(blocks, hooks=ValueHooks(inc=self._inc_blocks))

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, root: int, index: int) -> bytes:
        """A value.

        Raises:
            MissingKeyError: The array ends before.
        """
        block, place = divmod(index, self.room)
        number = self._tree.lookup_u64(root, block) if index >= 0 else None
        if number is not None:
            view = self._view(number)
            if place < view.count:
                return view.value(place)
        raise MissingKeyError(f"the array has no index {index}")

    def get_u64(self, root: int, index: int) -> int:
        """As `get`, the value as a number."""
        return int.from_bytes(self.get(root, index), "little")

    def items(self, root: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Indexes and values in ascending order from an index on; do not change the array meanwhile."""
        place = max(first, 0) % self.room
        for block, number in self._tree.items_u64(root, first=max(first, 0) // self.room):
            view = self._view(number)
            for each in range(place, view.count):
                yield block * self.room + each, view.value(each)
            place = 0

    # -- making and changing ------------------------------------------------------------------------------------------

    def empty(self) -> int:
        """Make an array without values; gives its root."""
        return self._tree.empty()

    def new(self, size: int, values: Iterable[Value]) -> int:
        """Make an array of the first `size` of these values; gives its root.

        Raises:
            InvalidArgumentError: There are fewer values, or one does not fit; nothing stays allocated.
        """
        self._check_size(size)
        given = iter(values)
        made: list[int] = []
        try:
            for first in range(0, size, self.room):
                wanted = min(self.room, size - first)
                part = [bytes_of(value, self.value_size, "an array") for value in islice(given, wanted)]
                if len(part) < wanted:
                    raise InvalidArgumentError(f"{first + len(part)} values for an array of {size}")
                made.append(self._make(b"".join(part)))
            return self._tree.bulk_load(enumerate(made))
        except BaseException:
            for number in made:
                self._drop(number)
            raise

    def set(self, root: int, index: int, value: Value) -> int:
        """Set a value that is there already; gives the new root.

        Raises:
            MissingKeyError: The array ends before; nothing was changed.
        """
        packed = bytes_of(value, self.value_size, "an array")
        old = self.get(root, index)
        block, place = divmod(index, self.room)
        hooks = self._type.hooks
        root, shadow = self._shadow(root, block)
        try:
            if hooks.inc is not None and not (hooks.equal is not None and hooks.equal(old, packed)):
                # The new one first: it may be the old one.
                hooks.inc(memoryview(packed))
            self._type.overwrite(old, packed)
            at = ARRAY_HEADER.size + place * self.value_size
            shadow.data[at : at + self.value_size] = packed
        finally:
            self._blocks.unlock(shadow)
        return root

    def resize(self, root: int, old_size: int, new_size: int, value: Value = 0) -> int:
        """Make an array longer, with copies of a value, or shorter; gives the new root.

        Args:
            root: Of the array.
            old_size: Its present length.
            new_size: The length it is to have.
            value: What is added when it grows.

        Raises:
            InvalidArgumentError: `old_size` is not its length, or the value does not fit; nothing was changed.
        """
        self._check_size(new_size)
        self._check_is_length(root, old_size)
        packed = bytes_of(value, self.value_size, "an array")
        whole, rest = divmod(new_size, self.room)
        if new_size < old_size:
            root, _ = self._tree.remove_range(root, whole + (rest > 0), MAX_ENTRIES)
            if rest and old_size > whole * self.room + rest:
                root = self._trim(root, whole, rest)
            return root
        tail = min(new_size, -(-old_size // self.room) * self.room)
        if tail > old_size:
            root = self._extend(root, old_size // self.room, tail - old_size, packed)
        for first in range(max(tail, old_size), new_size, self.room):
            number = self._make(packed * min(self.room, new_size - first))
            root = self._tree.insert(root, first // self.room, number)
        return root

    def delete(self, root: int) -> None:
        """Drop the caller's reference to an array; what nobody else refers to is freed."""
        self._tree.delete(root)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _trim(self, root: int, block: int, count: int) -> int:
        root, shadow = self._shadow(root, block)
        try:
            view = _View(shadow.data)
            if self._type.hooks.dec is not None and view.count > count:
                self._type.hooks.dec(view.data[count * self.value_size :])
            _COUNT.pack_into(shadow.data, _COUNT_AT, min(count, view.count))
        finally:
            self._blocks.unlock(shadow)
        return root

    def _extend(self, root: int, block: int, count: int, packed: bytes) -> int:
        root, shadow = self._shadow(root, block)
        try:
            present = _View(shadow.data).count
            added = packed * count
            if self._type.hooks.inc is not None:
                self._type.hooks.inc(memoryview(added))
            at = ARRAY_HEADER.size + present * self.value_size
            shadow.data[at : at + len(added)] = added
            _COUNT.pack_into(shadow.data, _COUNT_AT, present + count)
        finally:
            self._blocks.unlock(shadow)
        return root

    def _shadow(self, root: int, block: int) -> tuple[int, Block]:
        """The new root, and a block of values that this transaction owns, write-locked."""
        number = self._tree.lookup_u64(root, block)
        if number is None:
            raise MissingKeyError(f"the array has no block {block}")
        self._view(number)
        # The path first: if a leaf was shared, the block has one owner more from here on, and must be copied.
        root = self._moving.insert(root, block, number)
        shadow: Block
        shadow, inc_children = self._blocks.shadow_block(number, ARRAY)
        try:
            if inc_children and self._type.hooks.inc is not None:
                self._type.hooks.inc(_View(shadow.data).data)
            if shadow.number != number:
                root = self._moving.insert(root, block, shadow.number)
        except BaseException:
            self._blocks.unlock(shadow)
            raise
        return root, shadow

    def _make(self, packed: bytes) -> int:
        """A block of values; gives its number."""
        if self._type.hooks.inc is not None:
            self._type.hooks.inc(memoryview(packed))
        block = self._blocks.new_block(ARRAY)
        try:
            _FIELDS.pack_into(
                block.data, _FIELDS_AT, self.room, len(packed) // self.value_size, self.value_size, block.number
            )
            block.data[ARRAY_HEADER.size : ARRAY_HEADER.size + len(packed)] = packed
        finally:
            self._blocks.unlock(block)
        return int(block.number)

    def _drop(self, number: int) -> None:
        if self._type.hooks.dec is not None and not self._blocks.is_shared(number):
            self._type.hooks.dec(self._view(number).data)
        self._blocks.dec(number)

    def _view(self, number: int) -> _View:
        view = self._blocks.peek(number, ARRAY, _View)
        if view.size != self.value_size:
            raise DamagedMetadataError(
                f"array block {number}: values of {view.size} bytes in an array of {self.value_size}", block=number
            )
        return view

    def _inc_blocks(self, packed: memoryview) -> None:
        for number in packed.cast("Q"):
            self._blocks.inc(number)

    def _dec_blocks(self, packed: memoryview) -> None:
        for number in packed.cast("Q"):
            self._drop(number)

    def _check_is_length(self, root: int, size: int) -> None:
        highest = self._tree.find_highest(root)
        length = 0
        if highest:
            number = self._tree.lookup_u64(root, *highest)
            assert number is not None
            length = highest[0] * self.room + self._view(number).count
        if length != size:
            raise InvalidArgumentError(f"the array has {length} values, not {size}")

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= MAX_ENTRIES:
            raise InvalidArgumentError(f"an array has 0 to {MAX_ENTRIES} values, not {size}")
