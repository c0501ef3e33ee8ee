"""A tree does what a dict with sorted keys does, old roots stay as they were, and reference counts are exact."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from fake_transaction import FakeTransactionManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import references

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import MissingKeyError
from dstorage.persistent.node import MAX_KEY

KEYS = st.integers(0, 2000) | st.integers(MAX_KEY - 3, MAX_KEY)


@pytest.fixture
def tm():
    return FakeTransactionManager()


def grown(tm, count, **kind):
    tree = BTree(tm, **kind)
    root = tree.empty()
    for key in range(count):
        root = tree.insert(root, key * 2, bytes([key % 256]) * tree.value_size)
    return tree, root


def test_an_empty_tree_has_nothing(tm):
    tree = BTree(tm)
    root = tree.empty()
    assert tree.lookup(root, 5) is None
    assert tree.lookup_u64(root, 5) is None
    assert tree.lookup_next(root, 0) is None
    assert tree.lookup_le(root, MAX_KEY) is None
    assert list(tree.items(root)) == []
    assert tree.find_lowest(root) == tree.find_highest(root) == ()
    tm.check(Counter({root: 1}))
    tree.delete(root)
    tm.check(Counter())


@pytest.mark.parametrize("value_size", [1, 3, 4, 8, 16, 24, 128, 1000, 1346])
def test_values_of_any_size_come_back(tm, value_size):
    tree, root = grown(tm, 2000, value_size=value_size)
    for key in range(2000):
        assert tree.lookup(root, 2 * key) == bytes([key % 256]) * value_size
        assert tree.lookup(root, 2 * key + 1) is None
    assert [key for key, _ in tree.items(root)] == list(range(0, 4000, 2))
    tm.check(references(tm, [root], value_size=value_size))


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
def test_inserting_and_removing_in_any_order(tm, order):
    tree = BTree(tm)
    keys = list(range(0, 70000, 7))
    if order == "down":
        keys.reverse()
    elif order == "shuffled":
        random.Random(5).shuffle(keys)
    root = tree.empty()
    for key in keys:
        root, is_new = tree.insert_notify(root, key, key * key)
        assert is_new
    tm.check(references(tm, [root]))
    tm.commit()
    assert list(tree.items_u64(root)) == [(key, key * key) for key in sorted(keys)]
    for key in keys[: len(keys) - 5]:
        root = tree.remove(root, key)
    assert [key for key, _ in tree.items(root)] == sorted(keys[-5:])
    tm.check(references(tm, [root]))


def test_neighbours_of_a_key(tm):
    tree, root = grown(tm, 3000)
    for key in range(0, 5998):
        assert tree.lookup_next(root, key)[0] == key + key % 2
        assert tree.lookup_le(root, key)[0] == key - key % 2
    assert tree.lookup_next(root, 5999) is None
    assert tree.lookup_le(root, MAX_KEY)[0] == 5998
    assert tree.find_lowest(root) == (0,)
    assert tree.find_highest(root) == (5998,)


def test_a_neighbour_is_found_beyond_a_leaf_whose_first_keys_were_removed(tm):
    tree, root = grown(tm, 3000)
    left = set(range(0, 6000, 2))
    rng = random.Random(3)
    while len(left) > 700:
        first = rng.choice(sorted(left))
        root, _ = tree.remove_range(root, first, first + 100)
        left -= set(range(first, first + 100))
        expected = sorted(left)
        for key in (first - 1, first, first + 50, first + 99, first + 100):
            below = [other for other in expected if other <= key]
            above = [other for other in expected if other >= key]
            assert (tree.lookup_le(root, max(key, 0)) or (None,))[0] == (below[-1] if below else None)
            assert (tree.lookup_next(root, max(key, 0)) or (None,))[0] == (above[0] if above else None)
    tm.check(references(tm, [root]))


def test_an_old_root_sees_what_it_saw(tm):
    tree, root = grown(tm, 3000)
    before = list(tree.items(root))
    tm.inc(root)
    changed = root
    for key in range(0, 6000, 3):
        changed = tree.insert(changed, key, 1)
    for key in range(0, 6000, 12):
        changed = tree.remove(changed, key)
    assert list(tree.items(root)) == before
    tm.check(references(tm, [root, changed]))
    tm.commit()
    tree.delete(root)
    tm.check(references(tm, [changed]))
    tree.delete(changed)
    tm.check(Counter())


def test_a_snapshot_within_the_transaction_that_made_the_tree_is_copied(tm):
    tree, root = grown(tm, 10)
    tm.inc(root)
    changed = tree.insert(root, 1, 1)
    assert changed != root
    assert tree.lookup(root, 1) is None
    assert tree.insert(changed, 3, 1) == changed


def test_ranges_have_an_exclusive_end(tm):
    tree, root = grown(tm, 1000)
    assert [key for key, _ in tree.items_u64(root, first=3, end=10)] == [4, 6, 8]
    assert [key for key, _ in tree.items(root, first=4, end=8)] == [4, 6]
    assert list(tree.items(root, first=10, end=10)) == []
    root = tree.insert(root, MAX_KEY, 1)
    assert [key for key, _ in tree.items(root, first=1990)] == [1990, 1992, 1994, 1996, 1998, MAX_KEY]
    assert [key for key, _ in tree.items(root, first=1998, end=MAX_KEY)] == [1998]


def test_a_run_of_keys_is_removed_up_to_the_first_gap(tm):
    tree = BTree(tm)
    root = tree.bulk_load((key, key) for key in range(5000) if key != 3000)
    root, removed = tree.remove_leaves(root, 100, 10000)
    assert removed == 2900
    assert [key for key, _ in tree.items(root)] == [*range(100), *range(3001, 5000)]
    assert tree.remove_leaves(root, 100, 200)[1] == 0
    root, removed = tree.remove_range(root, 50, 4000)
    assert removed == 50 + 999
    tm.check(references(tm, [root]))


def test_trees_in_trees(tm):
    tree = BTree(tm, levels=3, value_size=16)
    root = tree.empty()
    expected = {}
    rng = random.Random(1)
    for _ in range(3000):
        keys = (rng.randrange(3), rng.randrange(40), rng.randrange(10000))
        expected[keys] = rng.randbytes(16)
        root = tree.insert(root, keys, expected[keys])
    for keys, value in expected.items():
        assert tree.lookup(root, *keys) == value
    assert tree.lookup(root, 5, 0, 0) is None
    assert tree.find_lowest(root) == min(expected)
    assert tree.find_highest(root, 1) == max(keys for keys in expected if keys[0] == 1)
    assert dict(tree.items(root, 2, 7)) == {keys[2]: value for keys, value in expected.items() if keys[:2] == (2, 7)}
    tm.check(references(tm, [root], levels=3, value_size=16))
    tm.inc(root)
    changed = root
    for keys in sorted(expected)[::2]:
        changed = tree.remove(changed, keys)
    assert all(tree.lookup(root, *keys) == value for keys, value in expected.items())
    tm.check(references(tm, [root, changed], levels=3, value_size=16))
    tree.delete(root)
    tm.check(references(tm, [changed], levels=3, value_size=16))
    tree.delete(changed)
    tm.check(Counter())


def test_an_inner_tree_left_empty_stays(tm):
    tree = BTree(tm, levels=2)
    root = tree.insert(tree.empty(), (3, 4), 5)
    root = tree.remove(root, (3, 4))
    assert tree.find_lowest(root) == (3,)
    assert tree.lookup(root, 3, 4) is None
    tm.check(references(tm, [root], levels=2))


def test_bad_arguments_are_refused_and_change_nothing(tm):
    tree, root = grown(tm, 5)
    tm.commit()
    for call in (
        lambda: tree.insert(root, -1, 0),
        lambda: tree.insert(root, MAX_KEY + 1, 0),
        lambda: tree.insert(root, (1, 2), 0),
        lambda: tree.insert(root, 1, 2**64),
        lambda: tree.insert(root, 1, b"short"),
        lambda: tree.lookup(root),
        lambda: tree.lookup_next(root),
        lambda: tree.lookup_le(root, 1, 2),
        lambda: tree.find_lowest(root, 1),
        lambda: list(tree.items(root, 1)),
        lambda: tree.lookup_u64(root, 1, 2),
        lambda: tree.remove(root, (1, 2)),
        lambda: BTree(tm, levels=0),
        lambda: BTree(tm, value_size=1347),
        lambda: BTree(tm, value_size=0),
        lambda: next(BTree(tm, value_size=4).items_u64(root)),
        lambda: tree.bulk_load([(1, 1), (1, 2)]),
        lambda: tree.bulk_load([(key % 5000, 1) for key in range(6000)]),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    with pytest.raises(MissingKeyError, match="no key 1"):
        tree.remove(root, 1)
    tm.check(Counter({root: 1}))


@pytest.mark.parametrize("count", [0, 1, 83, 252, 253, 503, 504, 505, 252 * 252, 252 * 252 + 1])
def test_bulk_loading_gives_whole_trees(tm, count):
    tree = BTree(tm)
    root = tree.bulk_load((3 * key, key) for key in range(count))
    assert list(tree.items_u64(root)) == [(3 * key, key) for key in range(count)]
    tm.check(references(tm, [root]))


def test_bulk_loading_trees_in_trees(tm):
    tree = BTree(tm, levels=2)
    root = tree.bulk_load(((outer, key), key) for outer in range(300) for key in range(outer))
    assert [key for key, _ in tree.items(root, 299)] == list(range(299))
    assert tree.lookup(root, 0, 0) is None
    assert tree.find_lowest(root) == (1, 0)
    tm.check(references(tm, [root], levels=2))


def test_a_cursor_goes_through_a_tree_and_fetches_ahead(tm):
    tree, root = grown(tm, 2000)
    cursor = tree.cursor(root, first=101)
    seen = []
    while not cursor.at_end:
        seen.append(cursor.key)
        assert cursor.value == bytes([cursor.key // 2 % 256]) * 8
        cursor.next()
    assert seen == list(range(102, 4000, 2))
    assert tm.prefetched
    cursor = tree.cursor(root)
    assert cursor.skip(1500)
    assert cursor.key == 3000
    assert not cursor.skip(500)
    assert cursor.at_end
    with pytest.raises(RuntimeError, match="at the end"):
        _ = cursor.key


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    value_size=st.sampled_from([8, 24, 500, 1346]),
    steps=st.lists(st.tuples(st.sampled_from("iiirRsc"), KEYS, st.integers(1, 400)), max_size=60),
)
def test_any_history_equals_a_dict(value_size, steps):
    tm = FakeTransactionManager()
    # Two that know nothing of each other change the same tree: neither may trust where it went last.
    trees = [BTree(tm, value_size=value_size) for _ in range(2)]
    tree = trees[0]
    root = tree.empty()
    model: dict[int, bytes] = {}
    snapshots: list[tuple[int, dict[int, bytes]]] = []
    for kind, key, count in steps:
        tree = trees[count % 2]
        value = (key % 251).to_bytes(1, "little") * value_size
        if kind == "i":
            for each in range(key, min(key + count, MAX_KEY + 1)):
                root, is_new = tree.insert_notify(root, each, value)
                assert is_new == (each not in model)
                model[each] = value
        elif kind == "r":
            for each in [other for other in sorted(model) if other >= key][:count]:
                root = tree.remove(root, each)
                del model[each]
        elif kind == "R":
            gone = [other for other in model if key <= other < key + count]
            root, removed = tree.remove_range(root, key, key + count)
            assert removed == len(gone)
            for each in gone:
                del model[each]
        elif kind == "s":
            tm.inc(root)
            snapshots.append((root, dict(model)))
        else:
            tm.commit()
    assert dict(tree.items(root)) == model
    for old, contents in snapshots:
        assert list(tree.items(old)) == sorted(contents.items())
    roots = [root, *(old for old, _ in snapshots)]
    tm.check(references(tm, roots, value_size=value_size))
    while roots:
        tree.delete(roots.pop())
        tm.check(references(tm, roots, value_size=value_size))


@pytest.mark.parametrize("by", ["inserting", "removing"])
def test_where_the_last_insertion_went_is_forgotten_when_another_hand_moves_entries(tm, by):
    one, other = (BTree(tm, value_size=100) for _ in range(2))
    # Two full leaves, 0 to 350 and 360 to 710, of this transaction, so that evening out allocates nothing.
    root = one.bulk_load((key, bytes(100)) for key in range(0, 720, 10))
    if by == "inserting":
        root, _ = one.remove_range(root, 0, 120)
        root = other.insert(root, 400, b"a" * 100)
        root = one.insert(root, 705, bytes(100))
    else:
        root = other.insert(root, 300, b"a" * 100)
        root, _ = one.remove_range(root, 360, 600)
        root = one.remove(root, 700)
    between = 361 if by == "inserting" else 345
    root = other.insert(root, between, b"b" * 100)
    assert one.lookup(root, between) == b"b" * 100
    tm.check(references(tm, [root], value_size=100))
