"""A B-tree on copy-on-write blocks: 64-bit keys, any number of levels of trees in trees, values of one fixed size.

A tree is nothing but the number of its root. Everything that changes one returns the new root, which must be kept even when it is
the same number. A tree with `levels` above 1 has tuples of keys: each value but the last level's is the root of the next tree.

What is promised: a change touches only blocks of the running transaction, so whoever holds an older root, in this process or on
disk, sees what it saw; all nodes but roots stay at least a third full; reference counts are exact after every call that returns.
A change that raises anything but `MissingKeyError` and `InvalidArgumentError` may have been half made: abort the transaction.
Reading damaged metadata raises `DamagedMetadataError`, never gives a wrong entry, and ends.

One thread at a time uses the trees of one transaction manager.

Source: Linux `drivers/md/persistent-data/dm-btree.c`. Merging of underfull nodes is simpler here: see `btree_remove`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain

from dstorage.errors import InvalidArgumentError
from dstorage.persistent import btree_insert, btree_remove, bulk
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.btree_insert import Finger
from dstorage.persistent.cursor import Cursor, leaves
from dstorage.persistent.errors import MissingKeyError
from dstorage.persistent.node import DEPTHS, MAX_KEY, MAX_VALUE_BYTES, NODE, NodeView, too_deep, wrong_size
from dstorage.persistent.values import Value, ValueHooks, ValueType, bytes_of
from dstorage.persistent.walk import Damage, Leaf, walk

Keys = int | tuple[int, ...]
"""One key for each level; a tree of one level takes the bare number as well."""
_NO_HOOKS = ValueHooks()
_NUMBER_BYTES = 8


class BTree:
    """A kind of tree: where its blocks come from, how many levels, what values. Trees of the kind are root numbers.

    Args:
        tm: The transaction that reads and changes.
        levels: Keys that lead to a value.
        value_size: Bytes of a value, 1 to 1346; nodes have room for fewer entries the larger it is.
        hooks: Called when values get or lose owners; none for plain data.

    Example:
        >>> def demo(tm):
        ...     tree = BTree(tm)
        ...     root = tree.empty()
        ...     root = tree.insert(root, 7, 49)
        ...     assert tree.lookup_u64(root, 7) == 49
        ...     root = tree.remove(root, 7)
        ...     tree.delete(root)

    Raises:
        InvalidArgumentError: No such tree can be.
    """

    def __init__(self, tm: Blocks, *, levels: int = 1, value_size: int = 8, hooks: ValueHooks | None = None) -> None:
        if levels < 1:
            raise InvalidArgumentError(f"a tree has at least one level, not {levels}")
        if not 1 <= value_size <= MAX_VALUE_BYTES:
            raise InvalidArgumentError(f"values have 1 to {MAX_VALUE_BYTES} bytes, not {value_size}")
        self.tm = tm
        self.levels = levels
        self.value_size = value_size
        roots = ValueType(_NUMBER_BYTES, ValueHooks(inc=self._inc_roots))
        self.types = (*[roots] * (levels - 1), ValueType(value_size, hooks or _NO_HOOKS))
        self._peek = tm.peek
        self._finger: Finger | None = None

    # -- looking up ---------------------------------------------------------------------------------------------------

    def lookup(self, root: int, *keys: int) -> bytes | None:
        """The value of these keys, one for each level; None where there is none."""
        leaf, index = self._find(root, keys)
        return None if leaf is None else leaf.value(index)

    def lookup_u64(self, root: int, *keys: int) -> int | None:
        """As `lookup`, the value as a number: for trees whose values have 8 bytes, and faster."""
        # The hot path: nothing is called but the cache and bisecting.
        if len(keys) != self.levels:
            self._check_depth(keys)
        peek = self._peek
        for key in keys:
            for _ in DEPTHS:
                node = peek(root, NODE, NodeView)
                found = node.keys
                if node.is_leaf:
                    break
                index = bisect_right(found, key) - 1
                if index < 0:
                    return None
                root = node.values[index]
            else:
                raise too_deep(root)
            index = bisect_left(found, key)
            if index == len(found) or found[index] != key:
                return None
            if node.value_size != _NUMBER_BYTES:
                raise wrong_size(root, node.value_size, _NUMBER_BYTES)
            root = node.values[index]
        return root

    def lookup_next(self, root: int, *keys: int) -> tuple[int, bytes] | None:
        """The entry with the smallest last key that is not below the given one; the keys before it must be there exactly."""
        self._check_depth(keys)
        inner = self._inner(root, keys[:-1])
        if inner is not None:
            for leaf, index in leaves(self.tm, inner, keys[-1], self.value_size):
                return leaf.keys[index], leaf.value(index)
        return None

    def lookup_le(self, root: int, *keys: int) -> tuple[int, bytes] | None:
        """The entry with the greatest last key that is not above the given one; the keys before it must be there exactly."""
        self._check_depth(keys)
        number = self._inner(root, keys[:-1])
        if number is None:
            return None
        key = keys[-1]
        before: int | None = None
        # It turns back once at most.
        for _ in chain(DEPTHS, DEPTHS):
            node = self._peek(number, NODE, NodeView)
            index = bisect_right(node.keys, key) - 1
            if index < 0:
                # Only where deletions left a child whose first key is above its parent's key for it, or left of everything.
                if before is None:
                    return None
                number, before, key = before, None, MAX_KEY
                continue
            if node.is_leaf:
                if node.value_size != self.value_size:
                    raise wrong_size(number, node.value_size, self.value_size)
                return node.keys[index], node.value(index)
            if index:
                before = node.values[index - 1]
            number = node.values[index]
        raise too_deep(number)

    def find_lowest(self, root: int, *prefix: int) -> tuple[int, ...]:
        """The lowest keys: as many as there are, so fewer than the levels where an inner tree is empty, none in an empty tree.

        Args:
            root: Of the tree.
            prefix: Keys of the first levels, to look in the tree below them.
        """
        return self._outermost(root, prefix, 0)

    def find_highest(self, root: int, *prefix: int) -> tuple[int, ...]:
        """The highest keys, as `find_lowest`."""
        return self._outermost(root, prefix, -1)

    def nodes(self, root: int) -> int:
        """Nodes of a tree of one level; looks at all but the leaves.

        Raises:
            DamagedMetadataError: One of these is damaged.
        """
        level, found = [root], 1
        for _ in DEPTHS:
            first = self._peek(level[0], NODE, NodeView)
            if first.is_leaf:
                return found
            level = [child for number in level for child in self._peek(number, NODE, NodeView).values]
            found += len(level)
        raise too_deep(root)

    # -- ranges -------------------------------------------------------------------------------------------------------

    def items(self, root: int, *prefix: int, first: int = 0, end: int = MAX_KEY + 1) -> Iterator[tuple[int, bytes]]:
        """Entries of one innermost tree in ascending order; do not change that tree meanwhile.

        Args:
            root: Of the tree.
            prefix: The keys of all levels but the last; nothing is there gives nothing.
            first: Inclusive.
            end: Exclusive.
        """
        for leaf, start, stop in self._runs(root, prefix, first, end):
            size = self.value_size
            values = leaf.packed(start, stop)
            for place, key in enumerate(leaf.keys[start:stop]):
                yield key, bytes(values[place * size : (place + 1) * size])

    def items_u64(self, root: int, *prefix: int, first: int = 0, end: int = MAX_KEY + 1) -> Iterator[tuple[int, int]]:
        """As `items`, the values as numbers: for trees whose values have 8 bytes, and faster."""
        if self.value_size != _NUMBER_BYTES:
            raise InvalidArgumentError(f"values of {self.value_size} bytes are no 64-bit numbers: use items()")
        return chain.from_iterable(
            zip(leaf.keys[start:stop], leaf.values[start:stop], strict=True)
            for leaf, start, stop in self._runs(root, prefix, first, end)
        )

    def cursor(self, root: int, *prefix: int, first: int = 0) -> Cursor:
        """A cursor on the first entry that is not below `first`, of the tree below the prefix."""
        inner = self._inner(root, prefix)
        return Cursor(self.tm, inner, self.value_size, first)

    def walk(self, root: int) -> Iterator[Leaf | Damage]:
        """All leaves of a tree that may be damaged, as far as they are whole, and the gaps between them."""
        return walk(self.tm, root, tuple(values.size for values in self.types))

    def _runs(self, root: int, prefix: tuple[int, ...], first: int, end: int) -> Iterator[tuple[NodeView, int, int]]:
        inner = self._inner(root, prefix)
        if inner is None or first >= end or first > MAX_KEY:
            return
        for leaf, start in leaves(self.tm, inner, max(first, 0), self.value_size):
            stop = bisect_left(leaf.keys, end) if end <= MAX_KEY else len(leaf.keys)
            yield leaf, start, stop
            if stop < len(leaf.keys):
                return

    # -- changing -----------------------------------------------------------------------------------------------------

    def empty(self) -> int:
        """Make a tree without entries; gives its root, one reference to which is the caller's."""
        return btree_insert.empty(self.tm, self.types[0].size)

    def insert(self, root: int, keys: Keys, value: Value) -> int:
        """Set the value of these keys, and make inner trees that are missing; gives the new root.

        The value's own reference goes from the caller to the tree. Overwriting an equal value (`ValueHooks.equal`) keeps the old
        one's, so that a caller who counted the new one must drop it again.

        Raises:
            InvalidArgumentError: Keys or value do not fit the tree; nothing was changed.
        """
        return self.insert_notify(root, keys, value)[0]

    def insert_notify(self, root: int, keys: Keys, value: Value) -> tuple[int, bool]:
        """As `insert`; gives the new root, and whether the keys were new."""
        checked, packed = self._keys(keys), bytes_of(value, self.value_size, "a tree")
        key = checked[-1]
        finger = self._finger
        if (
            finger is not None
            and finger.low <= key < finger.high
            and finger.root == root
            and finger.generation == self.tm.generation
            and finger.prefix == checked[:-1]
        ):
            is_new = btree_insert.insert_at(self.tm, finger, self.types[-1], key, packed)
            if is_new is not None:
                return root, is_new
        self._finger, is_new = btree_insert.insert(self.tm, self.types, root, checked, packed)
        return self._finger.root, is_new

    def remove(self, root: int, keys: Keys) -> int:
        """Remove an entry; gives the new root. An inner tree that becomes empty stays.

        Raises:
            MissingKeyError: It is not there; nothing was changed.
            InvalidArgumentError: There must be one key for each level.
        """
        checked = self._keys(keys)
        if self._find(root, checked)[0] is None:
            raise MissingKeyError(f"the tree has no key {keys}")
        return btree_remove.remove(self.tm, self.types, root, checked, checked[-1] + 1, only_a_run=True)[0]

    def remove_leaves(self, root: int, keys: Keys, end: int) -> tuple[int, int]:
        """Remove the entry of these keys and those with the very next last keys, up to the first that is missing.

        Args:
            root: Of the tree.
            keys: The first entry.
            end: Last keys from here on stay.

        Returns:
            The new root, and how many entries were removed.
        """
        return self._remove_between(root, self._keys(keys), end, only_a_run=True)

    def remove_range(self, root: int, keys: Keys, end: int) -> tuple[int, int]:
        """As `remove_leaves`, but missing keys are passed over: all entries from `keys` to before `end` go."""
        return self._remove_between(root, self._keys(keys), end, only_a_run=False)

    def _remove_between(self, root: int, keys: tuple[int, ...], end: int, *, only_a_run: bool) -> tuple[int, int]:
        removed = 0
        while keys[-1] < end:
            following = self.lookup_next(root, *keys)
            if following is None or following[0] >= end or (only_a_run and following[0] != keys[-1]):
                break
            keys = (*keys[:-1], following[0])
            root, count, last = btree_remove.remove(self.tm, self.types, root, keys, end, only_a_run=only_a_run)
            removed += count
            if last == MAX_KEY:
                break
            keys = (*keys[:-1], last + 1)
        return root, removed

    def delete(self, root: int) -> None:
        """Drop the caller's reference to a tree; what nobody else refers to is freed, trees and values below it as well."""
        btree_remove.delete(self.tm, self.types, root)

    def bulk_load(self, entries: Iterable[tuple[Keys, Value]]) -> int:
        """Make a tree of entries in ascending order, many times faster than by inserting them; gives its root.

        Nodes are as full as they can be. Values bring their references along.

        Raises:
            InvalidArgumentError: Keys do not ascend, or an entry does not fit the tree; nothing stays allocated.
        """
        return bulk.bulk_load(
            self.tm,
            self.types,
            ((self._keys(keys), bytes_of(value, self.value_size, "a tree")) for keys, value in entries),
        )

    # -- parts --------------------------------------------------------------------------------------------------------

    def _find(self, root: int, keys: tuple[int, ...]) -> tuple[NodeView, int] | tuple[None, int]:
        self._check_depth(keys)
        inner = self._inner(root, keys[:-1])
        return (None, 0) if inner is None else self._find_in(inner, keys[-1], self.value_size)

    def _inner(self, root: int, prefix: tuple[int, ...]) -> int | None:
        """Root of the innermost tree below all keys but the last."""
        if len(prefix) != self.levels - 1:
            raise InvalidArgumentError(
                f"{len(prefix)} keys lead to an inner tree here, the tree has {self.levels} levels: {self.levels - 1} do"
            )
        for key in prefix:
            leaf, index = self._find_in(root, key, _NUMBER_BYTES)
            if leaf is None:
                return None
            root = leaf.values[index]
        return root

    def _find_in(self, root: int, key: int, value_size: int) -> tuple[NodeView, int] | tuple[None, int]:
        number = root
        for _ in DEPTHS:
            node: NodeView = self._peek(number, NODE, NodeView)
            index = bisect_right(node.keys, key) - 1
            if index < 0:
                return None, 0
            if node.is_leaf:
                if node.value_size != value_size:
                    raise wrong_size(number, node.value_size, value_size)
                return (node, index) if node.keys[index] == key else (None, 0)
            number = node.values[index]
        raise too_deep(root)

    def _outermost(self, root: int, prefix: tuple[int, ...], place: int) -> tuple[int, ...]:
        if len(prefix) >= self.levels:
            raise InvalidArgumentError(
                f"{len(prefix)} keys leave no tree to look in: the tree has {self.levels} levels"
            )
        keys: list[int] = []
        for level, values in enumerate(self.types):
            if level < len(prefix):
                leaf, index = self._find_in(root, prefix[level], values.size)
                if leaf is None:
                    return ()
            else:
                for _ in DEPTHS:
                    leaf = self._peek(root, NODE, NodeView)
                    if leaf.is_leaf:
                        break
                    root = leaf.values[place]
                else:
                    raise too_deep(root)
                if leaf.value_size != values.size:
                    raise wrong_size(root, leaf.value_size, values.size)
                if not leaf.keys:
                    break
                index = place
            keys.append(leaf.keys[index])
            if level < self.levels - 1:
                root = leaf.values[index]
        return tuple(keys)

    def _keys(self, keys: Keys) -> tuple[int, ...]:
        checked = keys if isinstance(keys, tuple) else (keys,)
        if len(checked) != self.levels:
            self._check_depth(checked)
        for key in checked:
            if not 0 <= key <= MAX_KEY:
                raise InvalidArgumentError(f"key {key} is outside of 0 to {MAX_KEY}")
        return checked

    def _check_depth(self, keys: tuple[int, ...]) -> None:
        if len(keys) != self.levels:
            raise InvalidArgumentError(f"{len(keys)} keys for a tree of {self.levels} levels: one for each is needed")

    def _inc_roots(self, packed: memoryview) -> None:
        for root in packed.cast("Q"):
            self.tm.inc(root)
