"""Trees made of entries in ascending order: each node is written once, full, instead of once for each entry.

A node that is not the root must be a third full, so the last two of each level share what is left evenly.

Source: the layout of Linux `drivers/md/persistent-data`; the building is this module's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import lt

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.blocks import Blocks
from dstorage.persistent.node import NODE, Node, max_entries
from dstorage.persistent.values import ValueType

Entry = tuple[tuple[int, ...], bytes]
"""Keys of all levels, and a value."""

_NUMBER = struct.Struct("<Q")


def bulk_load(blocks: Blocks, types: tuple[ValueType, ...], entries: Iterable[Entry]) -> int:
    """Make a tree of entries whose keys ascend; gives its root. Nothing stays allocated if that raises."""
    loader = _Loader(blocks)
    try:
        return loader.load([values.size for values in types], 0, iter(entries))
    except BaseException:
        for number in loader.made:
            blocks.dec(number)
        raise


class _Loader:
    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.made: list[int] = []

    def load(self, sizes: list[int], level: int, entries: Iterator[Entry]) -> int:
        """The tree of one level, and below it those of the further ones; gives its root."""
        if level == len(sizes) - 1:
            flat = ((keys[level], value) for keys, value in entries)
        else:
            flat = (
                (key, _NUMBER.pack(self.load(sizes, level + 1, inner)))
                for key, inner in groupby(entries, key=lambda entry: entry[0][level])
            )
        nodes = list(self._nodes(flat, sizes[level], is_leaf=True))
        if not nodes:
            return self._node((), (), sizes[level], is_leaf=True)
        while len(nodes) > 1:
            nodes = list(self._nodes(iter(nodes), 8, is_leaf=False))
        return int(_NUMBER.unpack(nodes[0][1])[0])

    def _nodes(
        self, entries: Iterator[tuple[int, bytes]], value_size: int, *, is_leaf: bool
    ) -> Iterator[tuple[int, bytes]]:
        """Nodes of one level of nodes, as entries for the level above."""
        room = max_entries(value_size)
        waiting: list[tuple[int, bytes]] = []
        last = -1
        while True:
            part = waiting + list(islice(entries, 2 * room - len(waiting)))
            if len(part) < 2 * room:
                # The end: two nodes evenly, or one.
                sizes = [len(part)] if len(part) <= room else [len(part) // 2, len(part) - len(part) // 2]
            else:
                sizes = [room]
            for size in sizes:
                if not size:
                    return
                keys, values = zip(*part[:size], strict=True)
                if keys[0] <= last or not all(map(lt, keys, keys[1:])):
                    raise InvalidArgumentError(
                        f"keys do not ascend somewhere between {keys[0]} and {keys[-1]}: sort them"
                    )
                last = keys[-1]
                yield keys[0], _NUMBER.pack(self._node(keys, values, value_size, is_leaf=is_leaf))
                part = part[size:]
            if not part:
                return
            waiting = part

    def _node(self, keys: tuple[int, ...], values: tuple[bytes, ...], value_size: int, *, is_leaf: bool) -> int:
        block = self._blocks.new_block(NODE)
        try:
            self.made.append(block.number)
            node = Node.format(block, is_leaf=is_leaf, value_size=value_size)
            node.fill(struct.pack(f"<{len(keys)}Q", *keys), b"".join(values))
        finally:
            self._blocks.unlock(block)
        return node.number
