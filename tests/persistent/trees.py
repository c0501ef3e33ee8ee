"""What a tree holds and refers to, read straight from the fake's blocks."""

from __future__ import annotations

import struct
from collections import Counter

from dstorage.persistent.node import LEAF, NODE_HEADER, check_node, max_entries


def references(tm, roots, *, levels=1, value_size=8, values=None):
    """References to each block from these roots, each block counted once; checks every node on the way.

    `values` is a Counter to which the innermost values, as bytes, are added.
    """
    found = Counter()
    pending = [(root, 0, None, True) for root in roots]
    depths = {}
    while pending:
        number, level, lowest, is_root = pending.pop()
        found[number] += 1
        if found[number] > 1:
            continue
        data = tm.blocks[number]
        assert check_node(data) is None
        _, flags, _, count, room, size, _ = NODE_HEADER.unpack_from(data)
        keys = struct.unpack_from(f"<{count}Q", data, 32)
        inner = level < levels - 1
        assert size == (8 if flags != LEAF or inner else value_size)
        assert room == max_entries(size)
        assert is_root or count >= room // 3, f"node {number} has {count} entries"
        assert lowest is None or (keys and keys[0] >= lowest)
        at = 32 + 8 * room
        packed = [bytes(data[at + i * size : at + (i + 1) * size]) for i in range(count)]
        if flags != LEAF:
            children = [int.from_bytes(value, "little") for value in packed]
            depth = {depths.setdefault(child, height(tm, child)) for child in children}
            assert len(depth) == 1, "leaves at different depths"
            pending += [(child, level, key, False) for child, key in zip(children, keys, strict=True)]
        elif inner:
            pending += [(int.from_bytes(value, "little"), level + 1, None, True) for value in packed]
        elif values is not None:
            values.update(packed)
    return found


def height(tm, number):
    levels = 0
    while True:
        data = tm.blocks[number]
        _, flags, _, _, room, _, _ = NODE_HEADER.unpack_from(data)
        if flags == LEAF:
            return levels
        levels += 1
        (number,) = struct.unpack_from("<Q", data, 32 + 8 * room)
