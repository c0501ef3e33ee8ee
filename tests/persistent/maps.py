"""Space maps read straight from a device's bytes, and what should be in them."""

from __future__ import annotations

import struct
from collections import Counter

from trees import references

from dstorage.persistent.block_manager import BlockManager
from dstorage.persistent.node import NODE
from dstorage.persistent.space_map_common import BITMAP, INDEX
from dstorage.persistent.transaction import TransactionManager
from dstorage.persistent.validators import Validator

SUPER = Validator("superblock", 160774)


class OnDevice:
    """What `trees.references` reads nodes from; every block must be whole."""

    def __init__(self, device):
        self.device = device
        self.blocks = self

    def __getitem__(self, number):
        return self.block(number, NODE)

    def block(self, number, kind):
        data = bytes(self.device.bytes[number * 4096 : number * 4096 + 4096])
        assert kind.problem(data, number) is None
        return data


def tree_entries(device, root, value_size):
    """All entries of a one-level tree, read naively."""
    data = OnDevice(device)[root]
    _, flags, _, count, room, size, _ = struct.unpack_from("<IIQIIII", data)
    keys = struct.unpack_from(f"<{count}Q", data, 32)
    at = 32 + 8 * room
    values = [data[at + i * size : at + (i + 1) * size] for i in range(count)]
    if flags == 2:
        assert size == value_size
        return dict(zip(keys, values, strict=True))
    found = {}
    for value in values:
        found |= tree_entries(device, int.from_bytes(value, "little"), value_size)
    return found


def counts_on_device(device, root, *, index_is_a_tree):
    """Counts above 0, and the references to metadata blocks that the map itself makes. The index is checked on the way."""
    nr_blocks, allocated, index_root, overflow_root = struct.unpack("<QQQQ", root)
    disk = OnDevice(device)
    own = Counter(references(disk, [overflow_root], value_size=4))
    if index_is_a_tree:
        own += references(disk, [index_root], value_size=16)
        entries = tree_entries(device, index_root, 16)
        packed = [entries[number] for number in range(len(entries))]
    else:
        own[index_root] += 1
        data = disk.block(index_root, INDEX)
        packed = [data[at : at + 16] for at in range(16, 4096, 16)]
        assert not any(b"".join(packed[-(-nr_blocks // 16320) :]))
        packed = packed[: -(-nr_blocks // 16320)]
    assert len(packed) == -(-nr_blocks // 16320)
    overflow = tree_entries(device, overflow_root, 4)
    counts = {}
    for number, entry in enumerate(packed):
        block, free, hint = struct.unpack("<QII", entry)
        own[block] += 1
        data = disk.block(block, BITMAP)
        here = []
        for bit in range(16320):
            low, high = 2 * bit, 2 * bit + 1
            count = (data[16 + low // 8] >> low % 8 & 1) * 2 + (data[16 + high // 8] >> high % 8 & 1)
            here.append(count)
            if count == 3:
                count = int.from_bytes(overflow.pop(number * 16320 + bit), "little")
                assert count >= 3
            if count:
                counts[number * 16320 + bit] = count
        valid = min(16320, nr_blocks - number * 16320)
        assert not any(here[valid:])
        assert free == here[:valid].count(0)
        assert 0 not in here[: min(hint, valid)]
    assert not overflow
    assert len(counts) == allocated
    return counts, own


def commit(tm, *numbers):
    """Commit; the superblock keeps these numbers."""

    def fill(data, root):
        data[64:96] = root
        struct.pack_into(f"<{len(numbers)}Q", data, 128, *numbers)

    tm.commit(SUPER, fill)


def reopen(device, **options):
    """A transaction manager on what is committed, and the numbers that the superblock keeps."""
    manager = BlockManager(device, **options)
    block = manager.read_lock(0, SUPER)
    root, numbers = bytes(block.data[64:96]), struct.unpack_from("<16Q", block.data, 128)
    manager.unlock(block)
    return TransactionManager.open(manager, root), numbers


def check_metadata(device, expected: Counter):
    """The metadata map counts exactly these references, its own, and the superblock's."""
    counts, own = counts_on_device(device, bytes(device.bytes[64:96]), index_is_a_tree=False)
    assert counts == expected + own + Counter([0])
