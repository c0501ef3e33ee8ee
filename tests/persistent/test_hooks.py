"""Values that count owners: every history leaves each value with as many as there are entries in distinct leaves."""

from __future__ import annotations

from collections import Counter

from fake_transaction import FakeTransactionManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import references

from dstorage.persistent.btree import BTree
from dstorage.persistent.values import ValueHooks


class Things:
    """What values stand for: numbers shifted by 8 bits, the low byte of which counts for nothing."""

    def __init__(self) -> None:
        self.owners: Counter[int] = Counter()
        self.hooks = ValueHooks(inc=self.inc, dec=self.dec, equal=lambda old, new: old[1:] == new[1:])

    def inc(self, packed):
        for value in packed.cast("Q"):
            assert self.owners[value >> 8] > 0
            self.owners[value >> 8] += 1

    def dec(self, packed):
        for value in packed.cast("Q"):
            assert self.owners[value >> 8] > 0
            self.owners[value >> 8] -= 1


def owners(tm, roots, levels):
    values = Counter()
    blocks = references(tm, roots, levels=levels, values=values)
    found = Counter()
    for value, count in values.items():
        found[int.from_bytes(value, "little") >> 8] += count
    return blocks, found


STEP = st.tuples(st.sampled_from("iiiorRsdc"), st.integers(0, 2), st.integers(0, 900), st.integers(1, 300))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(levels=st.sampled_from([1, 2]), steps=st.lists(STEP, max_size=50))
def test_owners_of_values_are_exact_after_any_history(levels, steps):
    tm, things = FakeTransactionManager(), Things()
    tree = BTree(tm, levels=levels, hooks=things.hooks)
    roots = [tree.empty()]
    fresh = 0

    def at(outer, key):
        return (outer, key) if levels == 2 else key

    for kind, outer, key, count in steps:
        if kind == "i":
            for each in range(key, key + count):
                fresh += 1
                things.owners[fresh] += 1
                roots[0] = tree.insert(roots[0], at(outer, each), fresh << 8)
        elif kind == "o":
            # An equal value: nothing is told to anybody, but the low byte changes.
            found = tree.lookup_u64(roots[0], *((outer, key) if levels == 2 else (key,)))
            if found is not None:
                roots[0] = tree.insert(roots[0], at(outer, key), found | 1)
        elif kind in "rR":
            remove = tree.remove_range if kind == "R" else tree.remove_leaves
            roots[0], _ = remove(roots[0], at(outer, key), key + count)
        elif kind == "s":
            tm.inc(roots[0])
            roots.append(roots[0])
        elif kind == "d" and len(roots) > 1:
            tree.delete(roots.pop())
        elif kind == "c":
            tm.commit()
        blocks, found = owners(tm, roots, levels)
        tm.check(blocks)
        assert +things.owners == found
    while roots:
        tree.delete(roots.pop())
    tm.check(Counter())
    assert not +things.owners


def test_a_tree_of_trees_kept_by_hooks_shares_and_deletes_whole_trees():
    tm = FakeTransactionManager()
    inner = BTree(tm)

    def dec(packed):
        for root in packed.cast("Q"):
            inner.delete(root)

    def inc(packed):
        for root in packed.cast("Q"):
            tm.inc(root)

    outer = BTree(tm, hooks=ValueHooks(inc=inc, dec=dec, equal=lambda old, new: old == new))
    both = BTree(tm, levels=2)
    root = outer.empty()
    for number in range(500):
        root = outer.insert(root, number, inner.bulk_load((key, key) for key in range(number)))
    tm.check(references(tm, [root], levels=2))
    shared = both.lookup_u64(root, 300, 5)
    assert shared == 5
    origin = outer.lookup_u64(root, 300)
    tm.inc(origin)
    root = outer.insert(root, 1000, origin)
    root = both.insert(root, (1000, 5), 77)
    assert both.lookup_u64(root, 300, 5) == 5
    assert both.lookup_u64(root, 1000, 5) == 77
    tm.check(references(tm, [root], levels=2))
    root = outer.remove(root, 300)
    root, removed = outer.remove_range(root, 0, 400)
    assert removed == 399
    assert both.lookup_u64(root, 1000, 6) == 6
    tm.check(references(tm, [root], levels=2))
    outer.delete(root)
    tm.check(Counter())


def test_replacing_a_value_drops_the_old_one_and_does_not_count_the_new_one():
    tm, things = FakeTransactionManager(), Things()
    tree = BTree(tm, hooks=things.hooks)
    things.owners.update({1: 1, 2: 1})
    root = tree.insert(tree.empty(), 9, 1 << 8)
    root = tree.insert(root, 9, 1 << 8 | 3)
    assert things.owners == {1: 1, 2: 1}
    tree.insert(root, 9, 2 << 8)
    assert +things.owners == {2: 1}
