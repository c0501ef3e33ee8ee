"""Going through a tree in key order, leaf by leaf, with the next leaves fetched ahead.

Source: Linux `drivers/md/persistent-data/dm-btree.c` (dm_btree_cursor_begin and its family).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from dstorage.errors import UsageError
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.persistent.node import DEPTHS, NODE, NodeView, empty_node, too_deep, wrong_size

AHEAD = 16
"""Children asked for ahead: 64 KiB of metadata, more than a disk reads in the time of a leaf's use."""


def leaves(blocks: Blocks, root: int, first: int, value_size: int) -> Iterator[tuple[NodeView, int]]:
    """The leaves of a one-level tree from a key on, and where in each to begin: at 0 but for the first.

    No empty leaf is given. Keys ascend over all of them.

    Raises:
        DamagedMetadataError: A node cannot be read, or is not in its place.
    """
    path: list[tuple[NodeView, int, int]] = []
    number, last = root, -1
    while True:
        node = blocks.peek(number, NODE, NodeView)
        if not node.is_leaf:
            if len(path) == len(DEPTHS):
                raise too_deep(root)
            index = max(0, bisect_right(node.keys, first) - 1)
            ahead = min(len(node.values), index + 1 + AHEAD)
            if ahead > index + 1:
                blocks.prefetch(node.values[index + 1 : ahead])
            path.append((node, index, ahead))
            number = node.values[index]
            continue
        if node.value_size != value_size:
            raise wrong_size(number, node.value_size, value_size)
        if node.keys:
            if node.keys[0] <= last:
                raise DamagedMetadataError(
                    f"tree node in block {number}: begins with key {node.keys[0]}, which is not above {last} before it",
                    block=number,
                )
            last = node.keys[-1]
            start = bisect_left(node.keys, first)
            if start < len(node.keys):
                yield node, start
        elif path:
            raise empty_node(number)
        while path:
            node, index, ahead = path.pop()
            index += 1
            if index < len(node.values):
                if ahead - index < AHEAD // 2 and ahead < len(node.values):
                    further = min(len(node.values), ahead + AHEAD)
                    blocks.prefetch(node.values[ahead:further])
                    ahead = further
                path.append((node, index, ahead))
                number = node.values[index]
                break
        else:
            return


class Cursor:
    """Stands on an entry of a one-level tree, or at its end; do not change the tree while one is used.

    Args:
        blocks: The transaction.
        root: Of the tree; None stands at the end at once.
        value_size: Bytes of its values.
        first: It begins on the first entry that is not below.
    """

    def __init__(self, blocks: Blocks, root: int | None, value_size: int, first: int = 0) -> None:
        self._leaves = iter(()) if root is None else leaves(blocks, root, first, value_size)
        self._leaf: NodeView | None = None
        self._index = 0
        self._enter_next_leaf()

    @property
    def at_end(self) -> bool:
        """Whether there is no entry left."""
        return self._leaf is None

    @property
    def key(self) -> int:
        """Of the entry.

        Raises:
            UsageError: It is at the end.
        """
        return self._here().keys[self._index]

    @property
    def value(self) -> bytes:
        """Of the entry.

        Raises:
            UsageError: It is at the end.
        """
        return self._here().value(self._index)

    def next(self) -> bool:
        """Step on; False at the end."""
        return self.skip(1)

    def skip(self, entries: int) -> bool:
        """Step over so many entries; False if the end came before. Whole leaves are stepped over at once.

        Raises:
            DamagedMetadataError: What follows cannot be read.
        """
        while self._leaf is not None:
            left = len(self._leaf.keys) - self._index
            if entries < left:
                self._index += entries
                return True
            entries -= left
            self._enter_next_leaf()
        return False

    def _enter_next_leaf(self) -> None:
        self._leaf, self._index = next(self._leaves, (None, 0))

    def _here(self) -> NodeView:
        if self._leaf is None:
            raise UsageError("the cursor is at the end of the tree: look at at_end first")
        return self._leaf
