"""Arrays and bitsets through transactions on a device: as lists of Python are, after any history, crash or not."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from maps import OnDevice, check_metadata, commit, reopen
from memory_device import MemoryDevice
from trees import references

from dstorage.persistent.array import ARRAY, PersistentArray
from dstorage.persistent.bitset import Bitset
from dstorage.persistent.block_manager import BlockManager
from dstorage.persistent.transaction import TransactionManager


def array_references(device, roots):
    disk, numbers = OnDevice(device), Counter()
    found = references(disk, roots, values=numbers)
    for value, count in numbers.items():
        number = int.from_bytes(value, "little")
        disk.block(number, ARRAY)
        found[number] += count
    return found


@pytest.mark.parametrize("seed", range(4))
def test_arrays_and_snapshots_of_them_are_what_lists_are(seed):
    chance = random.Random(seed)
    device = MemoryDevice(600)
    tm = TransactionManager.create(BlockManager(device, cache_blocks=16))
    model = [chance.randrange(2**64) for _ in range(3000)]
    root = PersistentArray(tm).new(len(model), model)
    states = [(root, list(model))]
    commit(tm, root)
    committed = list(states)
    for _ in range(40):
        array = PersistentArray(tm)
        action = chance.random()
        if action < 0.5:
            for index in chance.sample(range(len(model)), min(len(model), 20)):
                model[index] = chance.randrange(2**64)
                root = array.set(root, index, model[index])
        elif action < 0.65:
            size = chance.randrange(1, 5000)
            root = array.resize(root, len(model), size, 7)
            model = (model + [7] * size)[:size]
        elif action < 0.75 and len(states) < 4:
            tm.inc(root)
            states.append((root, list(model)))
        elif action < 0.8 and len(states) > 1:
            array.delete(states.pop(0)[0])
        states[-1] = (root, list(model))
        if chance.random() < 0.4:
            if chance.random() < 0.3:
                tm, _ = reopen(device, cache_blocks=16)
                states = list(committed)
                root, model = states[-1][0], list(states[-1][1])
                continue
            commit(tm, root)
            committed = [(there, list(values)) for there, values in states]
            check_metadata(device, Counter(array_references(device, [there for there, _ in states])))
        for there, values in states:
            assert [int.from_bytes(value, "little") for _, value in PersistentArray(tm).items(there)] == values


def test_a_bitset_comes_back_as_it_was_committed():
    device = MemoryDevice(200)
    tm = TransactionManager.create(BlockManager(device))
    root = Bitset(tm).new(100_000, (index % 3 == 0 for index in range(100_000)))
    commit(tm, root)
    changed = Bitset(tm).update(root, range(0, 100_000, 7), True)
    assert Bitset(tm).test(changed, 7)
    again, (there, *_) = reopen(device)
    assert list(Bitset(again).ones(there, 100_000)) == list(range(0, 100_000, 3))
    commit(tm, changed)
    check_metadata(device, Counter(array_references(device, [changed])))
    Bitset(tm).delete(changed)
    commit(tm)
    check_metadata(device, Counter())
