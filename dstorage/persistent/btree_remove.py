"""Removing from a B-tree, and deleting whole ones.

One pass from the root down shadows each node and, before it steps on, gives a child that has no entry to spare more of them: from
a neighbour, or by merging the two. So what is removed never leaves a node less than a third full. The kernel evens out three
neighbours where it can and does so on every step; two, and only when it must be, give trees that obey the same rules.

Source: Linux `drivers/md/persistent-data/dm-btree-remove.c`; dm-btree.c (dm_btree_del).
"""

from __future__ import annotations

from bisect import bisect_left

from dstorage.persistent.blocks import Blocks
from dstorage.persistent.node import DEPTHS, MAX_KEY, NODE, Node, NodeView, spread, too_deep, wrong_size
from dstorage.persistent.spine import Spine
from dstorage.persistent.values import ValueType


def remove(
    blocks: Blocks,
    types: tuple[ValueType, ...],
    root: int,
    keys: tuple[int, ...],
    end: int,
    *,
    only_a_run: bool,
) -> tuple[int, int, int]:
    """Remove the entry of `keys`, which must be there, and of those after it what one pass can.

    Args:
        blocks: The transaction.
        types: Of the levels' values.
        root: Of the tree.
        keys: Of the first entry.
        end: Last keys from here on stay.
        only_a_run: Stop before the first key that is not the next number.

    Returns:
        The new root, how many entries were removed, and the last of their keys.
    """
    with Spine(blocks) as spine:
        node = spine.shadow(root, types[0])
        new_root = node.number
        for level, key in enumerate(keys[:-1]):
            leaf = _descend(spine, node, key, types[level])
            node = spine.child(leaf, leaf.find(key), types[level + 1])
        leaf, is_root = _descend_with_spare(blocks, spine, node, keys[-1], types[-1])
        first = leaf.find(keys[-1])
        stop = bisect_left(leaf.keys, end, first + 1, leaf.count) if end <= MAX_KEY else leaf.count
        if only_a_run:
            # Keys minus their places never descend, so the run's end can be bisected for.
            start = leaf.keys[first] - first
            stop = bisect_left(range(stop), True, first + 1, key=lambda index: leaf.keys[index] - index != start)
        if not is_root:
            stop = min(stop, first + leaf.count - leaf.room // 3)
        last = leaf.keys[stop - 1]
        dec = types[-1].hooks.dec
        if dec is not None:
            dec(leaf.packed(first, stop))
        leaf.delete(first, stop)
    return new_root, stop - first, last


def _descend(spine: Spine, node: Node, key: int, values: ValueType) -> Node:
    """The leaf of a key that is there."""
    for _ in DEPTHS:
        if node.is_leaf:
            return node
        node = spine.child(node, node.find(key), values)
    raise too_deep(node.number)


def _descend_with_spare(blocks: Blocks, spine: Spine, node: Node, key: int, values: ValueType) -> tuple[Node, bool]:
    """The leaf of a key that is there, and whether it is the root; if not, it has an entry more than it must have."""
    is_root = True
    for _ in DEPTHS:
        while is_root and not node.is_leaf and node.count == 1:
            node = _pull_up(blocks, spine, node, values)
        if node.is_leaf:
            return node, is_root
        index = node.find(key)
        child = spine.child(node, index, values)
        if child.count <= child.room // 3 and node.count > 1:
            child = _feed(blocks, spine, node, index, child, key, values)
        node, is_root = child, False
    raise too_deep(node.number)


def _pull_up(blocks: Blocks, spine: Spine, root: Node, values: ValueType) -> Node:
    """Put the contents of a root's only child into the root; gives the node that the root's block now is."""
    number = root.children[0]
    was_shared = blocks.is_shared(number)
    block = blocks.read_lock(number, NODE)
    try:
        root = root.become_copy_of(block.data)
    finally:
        blocks.unlock(block)
    if root.is_leaf and root.value_size != values.size:
        raise wrong_size(number, root.value_size, values.size)
    if was_shared:
        spine.inc_children(root, values)
    blocks.dec(number)
    return root


def _feed(blocks: Blocks, spine: Spine, parent: Node, index: int, child: Node, key: int, values: ValueType) -> Node:
    """Even a child out with a neighbour, or make the two one; gives the child that now holds the key."""
    left = index - 1
    if index == 0 or (index + 1 < parent.count and blocks.is_shared(parent.children[left])):
        # One that nobody shares need not be copied for this.
        left = index
    other = left if left < index else left + 1
    sibling = spine.child(parent, other, values)
    pair = [sibling, child] if other < index else [child, sibling]
    total = pair[0].count + pair[1].count
    if total < 2 * (child.room // 3 + 1):
        spread(pair, [total, 0])
        parent.delete(left + 1, left + 2)
        blocks.dec(pair[1].number)
        return pair[0]
    spread(pair, [total // 2, total - total // 2])
    blocks.generation += 1
    parent.keys[left + 1] = pair[1].keys[0]
    return pair[key >= pair[1].keys[0]]


def delete(blocks: Blocks, types: tuple[ValueType, ...], root: int) -> None:
    """Drop one reference to a tree, and what of it nobody else refers to."""
    last = len(types) - 1
    pending = [(root, 0, 0)]
    while pending:
        number, level, depth = pending.pop()
        if not blocks.is_shared(number):
            node = blocks.peek(number, NODE, NodeView)
            if not node.is_leaf:
                if depth == len(DEPTHS):
                    raise too_deep(root)
                blocks.prefetch(node.values)
                pending += [(child, level, depth + 1) for child in reversed(node.values)]
            elif node.value_size != types[level].size:
                raise wrong_size(number, node.value_size, types[level].size)
            elif level < last:
                pending += [(inner, level + 1, 0) for inner in node.values]
            else:
                dec = types[level].hooks.dec
                if dec is not None and node.keys:
                    dec(node.packed())
        blocks.dec(number)
