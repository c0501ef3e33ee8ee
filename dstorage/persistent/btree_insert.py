"""Inserting into a B-tree: one pass from the root down that shadows each node and makes room before it steps on.

Source: Linux `drivers/md/persistent-data/dm-btree.c` (insert_raw, rebalance_or_split, btree_split_beneath).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dstorage.persistent.blocks import Blocks
from dstorage.persistent.node import DEPTHS, MAX_KEY, NODE, Node, NodeView, spread, too_deep
from dstorage.persistent.spine import Spine
from dstorage.persistent.values import ValueType

SPACE_TO_LEND = 8
"""Free places a sibling must have to take entries over; with fewer it would soon be full itself."""

_NUMBER = struct.Struct("<Q")


def empty(blocks: Blocks, value_size: int) -> int:
    """Make a leaf without entries; gives its number."""
    node = Node.format(blocks.new_block(NODE), is_leaf=True, value_size=value_size)
    blocks.unlock(node.block)
    return node.number


class Finger(NamedTuple):
    """Where the last insertion went: the next one may go there at once instead of from the root, if nothing happened meanwhile.

    Attributes:
        generation: Of the transaction; see `Blocks.generation`.
        root: Of the whole tree.
        prefix: All keys but the last.
        low: The leaf is the place of last keys from here on,
        high: to before here.
        leaf: That leaf; it is locked and looked at again before it is used.
    """

    generation: int
    root: int
    prefix: tuple[int, ...]
    low: int
    high: int
    leaf: Node


def insert_at(blocks: Blocks, finger: Finger, values: ValueType, key: int, value: bytes) -> bool | None:
    """Set a value where a finger points to; gives whether the key is new, None if there is no room and nothing was done."""
    block, _ = blocks.shadow_block(finger.leaf.number, NODE)
    try:
        leaf = finger.leaf.renewed(block)
        index = leaf.find(key)
        if index >= 0 and leaf.keys[index] == key:
            values.overwrite(leaf.value(index), value)
            leaf.set_value(index, value)
            return False
        if leaf.count == leaf.room:
            return None
        leaf.insert(index + 1, key, value)
        return True
    finally:
        blocks.unlock(block)


def insert(
    blocks: Blocks, types: tuple[ValueType, ...], root: int, keys: tuple[int, ...], value: bytes
) -> tuple[Finger, bool]:
    """Set the value of `keys`; gives where it went, with the new root in it, and whether they were new."""
    with Spine(blocks) as spine:
        node = spine.shadow(root, types[0])
        new_root = node.number
        last = len(keys) - 1
        for level, key in enumerate(keys):
            leaf, low, high = _descend(blocks, spine, node, key, types[level])
            index = leaf.find(key)
            is_new = index < 0 or leaf.keys[index] != key
            if level == last:
                if is_new:
                    leaf.insert(index + 1, key, value)
                else:
                    types[level].overwrite(leaf.value(index), value)
                    leaf.set_value(index, value)
            elif is_new:
                node = spine.create(is_leaf=True, value_size=types[level + 1].size)
                leaf.insert(index + 1, key, _NUMBER.pack(node.number))
            else:
                node = spine.child(leaf, index, types[level + 1])
    return Finger(blocks.generation, new_root, keys[:-1], low, high, leaf), is_new


def _descend(blocks: Blocks, spine: Spine, root: Node, key: int, values: ValueType) -> tuple[Node, int, int]:
    """The leaf that holds or is to hold a key, with room for it, and what keys belong there; all down to it are shadowed."""
    node, low, high = root, 0, MAX_KEY + 1
    if _is_crowded(node, key):
        _split_root(spine, node)
        # What it was lies below it now.
        node = Node(root.block)
    for _ in DEPTHS:
        if node.is_leaf:
            return node, low, high
        index = node.find(key)
        if index < 0:
            node.keys[0] = key
            index = 0
        child = spine.child(node, index, values)
        if _is_crowded(child, key):
            child = _make_room(blocks, spine, node, index, child, key, values)
            index = node.find(key)
        low = node.keys[index]
        if index + 1 < node.count:
            high = node.keys[index + 1]
        node = child
    raise too_deep(root.number)


def _is_crowded(node: Node, key: int) -> bool:
    if node.count < node.room:
        return False
    if not node.is_leaf:
        return True
    index = node.find(key)
    return index < 0 or node.keys[index] != key


def _split_root(spine: Spine, root: Node) -> None:
    """Put a root's entries into two new nodes below it, so that the root stays where it is."""
    halves = [spine.create(is_leaf=root.is_leaf, value_size=root.value_size) for _ in range(2)]
    keys, values = bytes(root.packed_keys()), bytes(root.packed())
    middle, size = root.count // 2, root.value_size
    halves[0].fill(keys[: 8 * middle], values[: size * middle])
    halves[1].fill(keys[8 * middle :], values[size * middle :])
    top = Node.format(root.block, is_leaf=False, value_size=8)
    for half in halves:
        top.insert(top.count, half.keys[0], _NUMBER.pack(half.number))


def _make_room(
    blocks: Blocks, spine: Spine, parent: Node, index: int, child: Node, key: int, values: ValueType
) -> Node:
    """Let a full child's neighbours take entries over, or split; gives the child that is to hold the key."""
    lenders = 0
    for left in (index - 1, index):
        other = left if left < index else left + 1
        if not 0 <= other < parent.count:
            continue
        number = parent.children[other]
        if blocks.is_shared(number):
            continue
        lenders += 1
        view: NodeView = blocks.peek(number, NODE, NodeView)
        if len(view.keys) + SPACE_TO_LEND <= child.room:
            sibling = spine.child(parent, other, values)
            pair = [sibling, child] if other < index else [child, sibling]
            total = pair[0].count + pair[1].count
            spread(pair, [total // 2, total - total // 2])
            blocks.generation += 1
            parent.keys[left + 1] = pair[1].keys[0]
            return pair[key >= pair[1].keys[0]]
    fresh = spine.create(is_leaf=child.is_leaf, value_size=child.value_size)
    if lenders < 2 or parent.count <= 2:
        half = child.count // 2
        spread([child, fresh], [half, child.count - half])
        parent.insert(index + 1, fresh.keys[0], _NUMBER.pack(fresh.number))
        return fresh if key >= fresh.keys[0] else child
    # Both neighbours are full as well: three nodes two thirds full are better than two half full ones.
    sibling = spine.child(parent, index - 1, values)
    total = sibling.count + child.count
    left = total // 3
    middle = (total - left) // 2
    spread([sibling, fresh, child], [left, middle, total - left - middle])
    parent.keys[index] = child.keys[0]
    parent.insert(index, fresh.keys[0], _NUMBER.pack(fresh.number))
    if key >= child.keys[0]:
        return child
    return fresh if key >= fresh.keys[0] else sibling
