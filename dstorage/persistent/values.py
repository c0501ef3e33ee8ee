"""What a tree or an array holds beside plain bytes: values that stand for something with owners of its own.

Source: Linux `drivers/md/persistent-data/dm-btree.h` (struct dm_btree_value_type).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dstorage.errors import InvalidArgumentError

Value = bytes | int
"""Bytes of the size that values have, or the number that they are in little-endian order."""

Inc = Callable[[memoryview], None]
Dec = Callable[[memoryview], None]
Equal = Callable[[bytes, bytes], bool]


@dataclass(frozen=True, slots=True)
class ValueHooks:
    """Called when values get an owner more or lose one. Values come packed, one behind the other; the view ends with the call.

    A value that a program inserts brings its reference along: `inc` is not called for it.

    Attributes:
        inc: These values have one owner more: a node that holds them was copied because it was shared.
        dec: These values have one owner less: they were removed, overwritten, or their last node was deleted.
        equal: Whether overwriting one value by another changes nothing that `inc` and `dec` count; then neither is called.
    """

    inc: Inc | None = None
    dec: Dec | None = None
    equal: Equal | None = None


@dataclass(frozen=True, slots=True)
class ValueType:
    """A size and hooks: what the leaves of one level of a tree hold."""

    size: int
    hooks: ValueHooks

    def overwrite(self, old: bytes, new: bytes) -> None:
        """Tell the hooks that a value is being replaced."""
        hooks = self.hooks
        if hooks.dec is not None and (hooks.equal is None or not hooks.equal(old, new)):
            hooks.dec(memoryview(old))


def bytes_of(value: Value, size: int, holder: str) -> bytes:
    """The bytes of a value for `holder` ("a tree"), where values have `size`.

    Raises:
        InvalidArgumentError: It is not of that size.
    """
    if isinstance(value, int):
        try:
            return value.to_bytes(size, "little")
        except OverflowError as error:
            raise InvalidArgumentError(f"value {value} does not fit into {size} bytes") from error
    if len(value) != size:
        raise InvalidArgumentError(f"a value of {len(value)} bytes in {holder} of {size}")
    return value
