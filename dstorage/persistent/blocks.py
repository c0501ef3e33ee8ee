"""What trees and arrays need of a transaction: the seam between them and `dstorage.persistent.transaction`.

The space maps are made of trees, and the transaction manager of space maps; trees know neither, only this.

Source: Linux `drivers/md/persistent-data/dm-transaction-manager.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Block(Protocol):
    """A block under a lock: its bytes may be changed only if it came from `new_block` or `shadow_block`."""

    @property
    def data(self) -> Any:
        """Its 4096 bytes: writable bytes-like, or read-only under a read lock."""

    @property
    def number(self) -> int:
        """Its place."""


class Blocks(Protocol):
    """Blocks with reference counts, changed by copying. What kind a block is of tells the validator."""

    generation: int
    """Grows when a place in a tree that a change found may have become another: when a block is allocated or copied, gains or
    loses a reference, at a commit and an abort. Trees add to it when they move entries between nodes."""

    def read_lock(self, number: int, validator: Any, /) -> Any:
        """A block to read."""

    def unlock(self, block: Any, /) -> None:
        """Release a block."""

    def new_block(self, validator: Any, /) -> Any:
        """A block of zeros with one reference, write-locked."""

    def shadow_block(self, number: int, validator: Any, /) -> tuple[Any, bool]:
        """A write-locked block of this transaction with the contents of another, whose reference it takes over.

        The second of the pair says whether others still refer to that one, so that all it refers to has one owner more.
        """

    def inc(self, number: int, /) -> None:
        """Count one reference more."""

    def dec(self, number: int, /) -> None:
        """Count one reference less; a block without any is free from the next commit on."""

    def ref(self, number: int, /) -> int:
        """References to a block."""

    def is_shared(self, number: int, /) -> bool:
        """Whether a block has more than one reference."""

    def prefetch(self, numbers: Iterable[int], /) -> None:
        """These blocks will be wanted soon."""

    def peek(self, number: int, validator: Any, decode: Callable[[memoryview], T], /) -> T:
        """What `decode` makes of a block's bytes; kept until the block is written, so it must not be changed."""
