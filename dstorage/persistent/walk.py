"""Going through a tree that may be damaged, as far as it is whole, and telling which keys are lost.

A node that cannot be read, breaks the format, or holds keys outside of the place its parent gives it, is left out with all below it.
What the blocks say can neither make a walk endless nor let it give a key twice: a node is whole in one place of a tree only.

Source: the rules that thin_check and thin_dump of thin-provisioning-tools apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dstorage.persistent.blocks import Blocks
from dstorage.persistent.cursor import AHEAD
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.persistent.node import DEPTHS, MAX_KEY, NODE, NodeView, empty_node, too_deep, wrong_size


@dataclass(frozen=True, slots=True)
class Leaf:
    """A whole leaf of an innermost tree.

    Attributes:
        prefix: The keys that lead to that tree.
        node: Its entries: `node.keys`, and `node.values` or `node.value(index)`.
    """

    prefix: tuple[int, ...]
    node: NodeView


@dataclass(frozen=True, slots=True)
class Damage:
    """Keys that are lost, if there were any.

    Attributes:
        prefix: The keys that lead to the tree concerned; shorter than the levels minus one where whole inner trees are lost.
        first: The lowest key that may be lost, inclusive.
        end: The highest one, exclusive.
        block: The block that is damaged.
        error: What is wrong with it.
    """

    prefix: tuple[int, ...]
    first: int
    end: int
    block: int
    error: OSError


def walk(blocks: Blocks, root: int, value_sizes: tuple[int, ...]) -> Iterator[Leaf | Damage]:
    """The whole leaves of a tree and the gaps between, in ascending order.

    Args:
        blocks: The transaction.
        root: Of the tree.
        value_sizes: Bytes of the values of each level.
    """
    return _tree(blocks, root, value_sizes, ())


def _tree(blocks: Blocks, root: int, value_sizes: tuple[int, ...], prefix: tuple[int, ...]) -> Iterator[Leaf | Damage]:
    is_innermost = len(prefix) == len(value_sizes) - 1
    for found in _leaves(blocks, root, value_sizes[len(prefix)], prefix):
        if isinstance(found, Damage) or is_innermost:
            yield found
        else:
            for key, inner in zip(found.node.keys, found.node.values, strict=True):
                yield from _tree(blocks, inner, value_sizes, (*prefix, key))


def _leaves(blocks: Blocks, root: int, value_size: int, prefix: tuple[int, ...]) -> Iterator[Leaf | Damage]:
    """As `walk`, one level of trees."""
    # Nodes to visit, the next one last, each with the keys that it may hold and its depth.
    pending = [(root, 0, MAX_KEY + 1, 0)]
    while pending:
        number, first, end, depth = pending.pop()
        try:
            node = blocks.peek(number, NODE, NodeView)
            _check_place(node, number, first, end, depth, value_size)
        except OSError as error:
            yield Damage(prefix, first, end, number, error)
            continue
        if node.is_leaf:
            yield Leaf(prefix, node)
            continue
        blocks.prefetch(node.values[:AHEAD])
        ends = [*node.keys[1:], end]
        pending += reversed(
            [(child, low, high, depth + 1) for child, low, high in zip(node.values, node.keys, ends, strict=True)]
        )


def _check_place(node: NodeView, number: int, first: int, end: int, depth: int, value_size: int) -> None:
    keys = node.keys
    if node.is_leaf and node.value_size != value_size:
        raise wrong_size(number, node.value_size, value_size)
    if not node.is_leaf and depth == len(DEPTHS):
        raise too_deep(number)
    if not keys:
        if depth:
            raise empty_node(number)
    elif keys[0] < first or keys[-1] >= end:
        raise DamagedMetadataError(
            f"tree node in block {number}: keys {keys[0]} to {keys[-1]} where {first} to {end - 1} belong", block=number
        )
