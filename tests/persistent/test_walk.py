"""Of a damaged tree all that is whole is found, what is lost is named, and nothing that blocks say makes reading endless."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from fake_transaction import FakeTransactionManager
from hypothesis import given, settings
from hypothesis import strategies as st

from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError
from dstorage.persistent.node import check_node
from dstorage.persistent.walk import Damage


def loaded(levels=1, count=130000):
    tm = FakeTransactionManager()
    tree = BTree(tm, levels=levels)
    if levels == 1:
        entries = {(key,): key for key in range(count)}
    else:
        entries = {(outer, key): key for outer in range(300) for key in range(0, 9 * outer, 3)}
    root = tree.bulk_load(entries.items())
    tm.commit()
    return tm, tree, root, entries


def split(tree, root):
    """Entries found, and damages."""
    found, damages = [], []
    for part in tree.walk(root):
        if isinstance(part, Damage):
            damages.append(part)
        else:
            found += [((*part.prefix, key), value) for key, value in zip(part.node.keys, part.node.values, strict=True)]
    return found, damages


@pytest.mark.parametrize("levels", [1, 2])
def test_a_whole_tree_is_found_wholly(levels):
    _, tree, root, entries = loaded(levels)
    found, damages = split(tree, root)
    assert found == list(entries.items())
    assert damages == []


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_is_exactly_what_the_damages_name(levels, seed):
    tm, tree, root, entries = loaded(levels)
    tm.broken = set(random.Random(seed).sample(sorted(tm.blocks), 5))
    found, damages = split(tree, root)
    assert {damage.block for damage in damages} <= tm.broken

    def lost(keys):
        return any(
            keys[: len(damage.prefix)] == damage.prefix and damage.first <= keys[len(damage.prefix)] < damage.end
            for damage in damages
        )

    assert found == [(keys, value) for keys, value in entries.items() if not lost(keys)]
    # What ordinary reading does: the right answer or an error.
    for keys in random.Random(seed).sample(sorted(entries), 300):
        if lost(keys):
            with pytest.raises(DamagedMetadataError) as caught:
                tree.lookup_u64(root, *keys)
            assert caught.value.block in tm.broken
        else:
            assert tree.lookup_u64(root, *keys) == entries[keys]


def test_a_broken_root_loses_everything():
    tm, tree, root, _ = loaded()
    tm.broken = {root}
    found, (damage,) = split(tree, root)
    assert found == []
    assert (damage.first, damage.end, damage.block) == (0, 2**64, root)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_tampering_gives_a_wrong_key_or_an_endless_walk(data):
    """Blocks with right checksums and wrong contents: pointers to anywhere, keys of anything."""
    tm, tree, root, _ = loaded(count=2000)
    numbers = sorted(tm.blocks)
    for _ in range(data.draw(st.integers(1, 4))):
        block = tm.blocks[data.draw(st.sampled_from(numbers))]
        at = data.draw(st.sampled_from([4, 16, 20, 24]) | st.integers(4, 511).map(lambda word: 8 * word))
        if at < 32:
            struct.pack_into("<I", block, at, data.draw(st.integers(0, 3) | st.integers(0, 2**32 - 1)))
        else:
            struct.pack_into("<Q", block, at, data.draw(st.sampled_from(numbers) | st.integers(0, 2**64 - 1)))
    # The validator's part, by which every block goes on its way in.
    tm.broken = {number for number in numbers if check_node(tm.blocks[number])}
    found, _ = split(tree, root)
    keys = [keys for keys, _ in found]
    assert keys == sorted(set(keys))
    for read in (
        lambda: list(tree.items(root)),
        lambda: [tree.lookup_u64(root, key) for key in range(0, 2000, 13)],
        lambda: [tree.lookup_le(root, key) for key in range(0, 2000, 13)],
        lambda: tree.find_lowest(root) + tree.find_highest(root),
    ):
        with contextlib.suppress(DamagedMetadataError):
            read()


def test_a_circle_is_an_error_and_no_hang():
    tm, tree, root, _ = loaded(count=2000)
    (room,) = struct.unpack_from("<I", tm.blocks[root], 20)
    for index in range(252):
        struct.pack_into("<Q", tm.blocks[root], 32 + 8 * room + 8 * index, root)
    for read in (
        lambda: tree.lookup_u64(root, 5),
        lambda: tree.lookup(root, 5),
        lambda: tree.lookup_le(root, 5),
        lambda: list(tree.items(root)),
        lambda: tree.find_highest(root),
    ):
        with pytest.raises(DamagedMetadataError, match="levels"):
            read()
    assert split(tree, root)[0] == []


def test_a_leaf_with_other_values_is_an_error():
    tm = FakeTransactionManager()
    root = BTree(tm, value_size=4).insert(BTree(tm, value_size=4).empty(), 1, 5)
    tree = BTree(tm)
    for call in (
        lambda: tree.lookup_u64(root, 1),
        lambda: tree.lookup(root, 1),
        lambda: tree.lookup_le(root, 1),
        lambda: tree.find_lowest(root),
        lambda: list(tree.items(root)),
        lambda: tree.insert(root, 1, 1),
        lambda: tree.delete(root),
    ):
        with pytest.raises(DamagedMetadataError, match="values of 4 bytes in a tree of 8"):
            call()
