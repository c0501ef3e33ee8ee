"""A set of bits on copy-on-write blocks: an array of 64-bit words, bit i being bit i % 64 of word i // 64.

Like an array it does not keep its length. Bits of the last word beyond the length mean nothing and are ignored. The kernel keeps one
word in memory and so needs a flush; here many bits are changed by one call instead, and nothing is kept.

Source: Linux `drivers/md/persistent-data/dm-bitset.c`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.array import MAX_ENTRIES, PersistentArray
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.errors import MissingKeyError

WORD_BITS = 64
_ALL = 2**WORD_BITS - 1


class Bitset:
    """Sets of bits are root numbers, with a length kept elsewhere.

    Args:
        blocks: The transaction that reads and changes.

    Example:
        >>> def demo(tm):
        ...     bits = Bitset(tm)
        ...     root = bits.resize(bits.empty(), 0, 1000, False)
        ...     root = bits.update(root, [3, 5], True)
        ...     assert bits.test(root, 5)
        ...     assert list(bits.ones(root, 1000)) == [3, 5]
    """

    def __init__(self, blocks: Blocks) -> None:
        self._words = PersistentArray(blocks)

    def test(self, root: int, index: int) -> bool:
        """Whether a bit is set.

        Raises:
            MissingKeyError: The set ends before.
        """
        word, place = divmod(index, WORD_BITS)
        return bool(self._words.get_u64(root, word) >> place & 1)

    def ones(self, root: int, size: int) -> Iterator[int]:
        """The bits below `size` that are set, ascending; do not change the set meanwhile."""
        for number, packed in self._words.items(root):
            word = int.from_bytes(packed, "little")
            while word:
                lowest = word & -word
                index = number * WORD_BITS + lowest.bit_length() - 1
                if index >= size:
                    return
                yield index
                word ^= lowest

    def empty(self) -> int:
        """Make a set without bits; gives its root."""
        return self._words.empty()

    def new(self, size: int, bits: Iterable[bool]) -> int:
        """Make a set of the first `size` of these bits; gives its root.

        Raises:
            InvalidArgumentError: There are fewer; nothing stays allocated.
        """
        self._check_size(size)
        given = iter(bits)

        def words() -> Iterator[int]:
            for first in range(0, size, WORD_BITS):
                wanted = min(WORD_BITS, size - first)
                part = [bool(bit) for bit in islice(given, wanted)]
                if len(part) < wanted:
                    raise InvalidArgumentError(f"{first + len(part)} bits for a set of {size}")
                yield sum(1 << place for place, bit in enumerate(part) if bit)

        return self._words.new(-(-size // WORD_BITS), words())

    def update(self, root: int, indexes: Iterable[int], value: bool) -> int:
        """Set bits, or clear them; each word is written once. Gives the new root.

        Raises:
            MissingKeyError: The set ends before one of them; nothing was changed.
        """
        ordered = sorted(indexes)
        if ordered and ordered[0] < 0:
            raise MissingKeyError(f"the set has no bit {ordered[0]}")
        if ordered:
            self._words.get(root, ordered[-1] // WORD_BITS)
        for number, places in groupby(ordered, key=lambda index: index // WORD_BITS):
            mask = 0
            for index in places:
                mask |= 1 << index % WORD_BITS
            word = self._words.get_u64(root, number)
            changed = word | mask if value else word & ~mask
            if changed != word:
                root = self._words.set(root, number, changed)
        return root

    def resize(self, root: int, old_size: int, new_size: int, value: bool) -> int:
        """Make a set longer, with bits of one value, or shorter; gives the new root.

        Raises:
            InvalidArgumentError: `old_size` is not its length; nothing was changed.
        """
        self._check_size(new_size)
        words, rest = divmod(old_size, WORD_BITS)
        root = self._words.resize(root, words + (rest > 0), -(-new_size // WORD_BITS), _ALL if value else 0)
        if rest and new_size > old_size:
            # What lies behind the old end may be anything.
            word = self._words.get_u64(root, words) & (1 << rest) - 1
            root = self._words.set(root, words, word | (_ALL << rest & _ALL if value else 0))
        return root

    def delete(self, root: int) -> None:
        """Drop the caller's reference to a set; what nobody else refers to is freed."""
        self._words.delete(root)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= MAX_ENTRIES * WORD_BITS:
            raise InvalidArgumentError(f"a set has 0 to {MAX_ENTRIES * WORD_BITS} bits, not {size}")
