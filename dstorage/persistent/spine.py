"""The nodes that one change of a tree has write-locked, from the root down; they are unlocked together when it ends.

Source: Linux `drivers/md/persistent-data/dm-btree-spine.c`. The kernel holds two nodes at a time; here a change keeps its whole path, a
handful of blocks, and one place releases them whatever happens.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from dstorage.persistent.blocks import Blocks
from dstorage.persistent.node import NODE, Node, wrong_size
from dstorage.persistent.values import ValueType


class Spine:
    """Shadows nodes for one change; a context manager.

    Args:
        blocks: Gives them.
    """

    __slots__ = ("_blocks", "_held")

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._held: list[Node] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for node in self._held:
            self._blocks.unlock(node.block)

    def shadow(self, number: int, values: ValueType) -> Node:
        """A node of this transaction in the place of one that may be older, or may have other owners.

        What it refers to gets one owner more when a shared node was copied. Where it now is must be told to its parent.

        Raises:
            DamagedMetadataError: The block is no node of such a tree.
        """
        for node in self._held:
            if node.number == number:
                # Made by this very change.
                return node
        block, inc_children = self._blocks.shadow_block(number, NODE)
        node = Node(block)
        self._held.append(node)
        if node.is_leaf and node.value_size != values.size:
            raise wrong_size(number, node.value_size, values.size)
        if inc_children:
            self.inc_children(node, values)
        return node

    def inc_children(self, node: Node, values: ValueType) -> None:
        """Count one owner more for all that a node refers to."""
        if not node.is_leaf:
            for child in node.children[: node.count].tolist():
                self._blocks.inc(child)
        elif values.hooks.inc is not None:
            values.hooks.inc(node.packed())

    def child(self, parent: Node, index: int, values: ValueType) -> Node:
        """Shadow a child, and tell its parent where it is."""
        node = self.shadow(parent.children[index], values)
        parent.children[index] = node.number
        return node

    def create(self, *, is_leaf: bool, value_size: int) -> Node:
        """A fresh node without entries."""
        node = Node.format(self._blocks.new_block(NODE), is_leaf=is_leaf, value_size=value_size)
        self._held.append(node)
        return node
