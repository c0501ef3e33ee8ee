"""Counts of blocks: exact after any history, on disk as the kernel has them, and nothing given out that a crash would need."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from maps import OnDevice, check_metadata, commit, counts_on_device, reopen
from memory_device import MemoryDevice
from trees import references

from dstorage.errors import InvalidArgumentError
from dstorage.persistent import space_map_disk
from dstorage.persistent.block_manager import BlockManager
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import DamagedMetadataError, SpaceMapFullError
from dstorage.persistent.node import NODE
from dstorage.persistent.space_map_common import BITMAP, MapRoot, free_entries, summary
from dstorage.persistent.space_map_disk import DiskSpaceMap
from dstorage.persistent.space_map_metadata import MAX_METADATA_BLOCKS
from dstorage.persistent.transaction import TransactionManager


def fresh(nr_blocks=64, device_blocks=None):
    device = MemoryDevice(device_blocks or nr_blocks)
    return device, TransactionManager.create(BlockManager(device))


def block(tm):
    made = tm.new_block(NODE)
    made.data[4] = 2
    made.data[20], made.data[24] = 252, 8
    tm.unlock(made)
    return made.number


# -- bits


def test_pairs_of_bits_are_the_other_way_round():
    _, tm = fresh()
    disk = DiskSpaceMap.create(tm, 100)
    blocks = [disk.allocate() for _ in range(3)]
    assert blocks == [0, 1, 2]
    for times, number in ((2, 0), (1, 2)):
        for _ in range(times):
            disk.inc([number])
    disk.settle()
    made = tm.read_lock(disk._entry(0).block, BITMAP)
    # Counts 3, 1, 2, 0 of the first four.
    assert made.data[16] == 0x1B
    assert not any(made.data[17:])


def test_summary_of_a_bitmap():
    bits = memoryview(bytes([0xFF, 0xFF, 0b11110011]) + bytes(4077))
    assert summary(bits, 16320) == (16320 - 11, 9)
    assert summary(bits, 12) == (1, 9)
    assert summary(bits, 9) == (0, 9)
    assert list(free_entries(bits, 0, 14)) == [9, 12, 13]
    assert list(free_entries(bits, 10, 13)) == [12]


# -- the metadata's own map


def test_a_new_map_counts_itself_and_the_superblock():
    device, tm = fresh()
    commit(tm)
    check_metadata(device, Counter())
    counts, _ = counts_on_device(device, bytes(device.bytes[64:96]), index_is_a_tree=False)
    assert len(counts) == 4


def test_a_map_of_many_bitmaps_counts_them_all():
    device, tm = fresh(40_000)
    commit(tm)
    check_metadata(device, Counter())
    again, _ = reopen(device)
    assert again.space_map.nr_blocks == 40_000
    assert again.space_map.free == 40_000 - 6


def test_a_device_too_small_is_told():
    with pytest.raises(SpaceMapFullError, match="all 3 metadata blocks are in use") as caught:
        fresh(3)
    assert caught.value.kind == "metadata"


def test_what_is_freed_is_not_given_out_before_the_commit():
    _, tm = fresh(32)
    first = block(tm)
    commit(tm)
    tm.dec(first)
    taken = [block(tm) for _ in range(tm.space_map.free)]
    with pytest.raises(SpaceMapFullError, match="those freed since the last commit come after the next"):
        block(tm)
    assert first not in taken
    assert tm.space_map.free == 0
    tm.abort()
    tm.dec(first)
    commit(tm)
    assert first in [block(tm) for _ in range(tm.space_map.free)]


def test_what_was_made_and_freed_in_one_transaction_can_be_had_again():
    device, tm = fresh(32)
    commit(tm)
    free = tm.space_map.free
    for _ in range(100):
        tm.dec(block(tm))
    assert tm.space_map.free == free
    commit(tm)
    check_metadata(device, Counter())


def test_shared_blocks_go_into_the_overflow_tree_and_back():
    device, tm = fresh(3000)
    blocks = [block(tm) for _ in range(800)]
    for times in range(5):
        for number in blocks[times * 100 :]:
            tm.inc(number)
        assert tm.ref(blocks[-1]) == times + 2
        commit(tm)
        check_metadata(
            device, Counter({number: 1 + min(times + 1, place // 100 + 1) for place, number in enumerate(blocks)})
        )
        tm, _ = reopen(device)
    left = Counter({number: tm.ref(number) for number in blocks})
    while left:
        for number in left:
            tm.dec(number)
        left -= Counter(list(left))
        commit(tm)
        check_metadata(device, left)


def test_counting_below_zero_or_from_nothing_is_damage_found_at_the_commit():
    for change in (lambda tm: tm.dec(50), lambda tm: tm.inc(50)):
        device, tm = fresh()
        commit(tm)
        before = bytes(device.bytes)
        change(tm)
        with pytest.raises(DamagedMetadataError, match=r"metadata space map: block 50: .1 references where it has 0"):
            commit(tm)
        assert device.bytes[:4096] == before[:4096]
        tm.abort()
        commit(tm)
        check_metadata(device, Counter())


def test_blocks_behind_the_last_one_are_damage():
    _, tm = fresh()
    for number in (64, 2**60):
        with pytest.raises(DamagedMetadataError, match="the map has only 64"):
            tm.ref(number)


def test_growing_a_full_map():
    device, tm = fresh(16)
    taken = []
    commit(tm)
    while tm.space_map.free > 6:
        taken.append(block(tm))
    commit(tm)
    tm.grow(33_000)
    assert device.size == 33_000 * 4096
    taken += [block(tm) for _ in range(100)]
    commit(tm)
    check_metadata(device, Counter(taken))
    tm, _ = reopen(device)
    assert tm.space_map.nr_blocks == 33_000
    tm.grow(33_000)
    commit(tm)
    check_metadata(device, Counter(taken))
    with pytest.raises(InvalidArgumentError, match="can only grow"):
        tm.grow(32_999)
    with pytest.raises(InvalidArgumentError, match="at most 4161600"):
        tm.grow(MAX_METADATA_BLOCKS + 1)
    commit(tm)


def test_a_map_that_says_it_is_larger_than_its_device_is_damage():
    device, tm = fresh()
    commit(tm)
    root = MapRoot.unpack(bytes(device.bytes[64:96]))
    for wrong in (root._replace(nr_blocks=65), root._replace(nr_blocks=2**63), root._replace(nr_blocks=0)):
        with pytest.raises(DamagedMetadataError):
            TransactionManager.open(BlockManager(device), wrong.pack())


def test_what_the_index_says_is_not_believed():
    device, tm = fresh()
    tm.space_map._set_entry = lambda number, entry: None
    tm.space_map._index = [tm.space_map._index[0]._replace(free=0, hint=60)]
    del tm.space_map._set_entry
    commit(tm)
    again, _ = reopen(device)
    assert again.space_map.free == 64 - again.space_map.root().nr_allocated


# -- the map of a disk


@pytest.mark.parametrize("nr_blocks", [1, 100, 16320, 16321, 32640, 50_000])
def test_every_block_of_a_disk_can_be_had_once(nr_blocks):
    device, tm = fresh(512)
    disk = DiskSpaceMap.create(tm, nr_blocks)
    assert disk.free == nr_blocks
    assert [disk.allocate() for _ in range(nr_blocks)] == list(range(nr_blocks))
    with pytest.raises(SpaceMapFullError, match="data blocks are in use") as caught:
        disk.allocate()
    assert caught.value.kind == "data"
    disk.settle()
    commit(tm)
    counts, own = counts_on_device(device, disk.root().pack(), index_is_a_tree=True)
    assert counts == dict.fromkeys(range(nr_blocks), 1)
    check_metadata(device, own)
    again = DiskSpaceMap.open(tm, disk.root())
    with pytest.raises(SpaceMapFullError):
        again.allocate()


def test_allocation_goes_on_behind_the_last_one_and_comes_round():
    _, tm = fresh(512)
    disk = DiskSpaceMap.create(tm, 20_000)
    for _ in range(17_000):
        disk.allocate()
    disk.dec(range(0, 17_000, 2))
    disk.settle()
    commit(tm)
    disk.begin()
    taken = [disk.allocate() for _ in range(disk.free)]
    assert taken == [*range(17_000, 20_000), *range(0, 17_000, 2)]


def test_a_long_transaction_does_not_collect_without_bound(monkeypatch):
    monkeypatch.setattr(space_map_disk, "MAX_PENDING", 100)
    device, tm = fresh(512)
    disk = DiskSpaceMap.create(tm, 20_000)
    expected: Counter[int] = Counter()
    for step in range(5000):
        number = disk.allocate()
        expected[number] += 1
        if step % 3 == 0:
            disk.inc([number, number])
            expected[number] += 2
        if step % 5 == 0:
            disk.dec([number])
            expected[number] -= 1
        assert len(disk._pending) <= 101
    disk.settle()
    commit(tm)
    counts, own = counts_on_device(device, disk.root().pack(), index_is_a_tree=True)
    assert counts == +expected
    check_metadata(device, own)


def test_only_what_was_never_used_can_be_had_again_before_the_commit():
    _, tm = fresh()
    disk = DiskSpaceMap.create(tm, 10)
    commit(tm, *disk.root())
    blocks = [disk.allocate() for _ in range(10)]
    disk.dec(blocks[:3])
    assert disk.has_freed
    assert disk.free == 0
    disk.release(blocks[5:7])
    assert disk.free == 2
    assert sorted([disk.allocate(), disk.allocate()]) == [5, 6]
    with pytest.raises(SpaceMapFullError):
        disk.allocate()
    disk.settle()
    commit(tm, *disk.root())
    disk.begin()
    assert disk.free == 3


class Disk(RuleBasedStateMachine):
    """A disk's map beside a dict, with commits, aborts, reopening and growth in any order."""

    @initialize(nr_blocks=st.sampled_from([5, 300, 16320, 16400]))
    def create(self, nr_blocks):
        self.device = MemoryDevice(2000)
        self.tm = TransactionManager.create(BlockManager(self.device, cache_blocks=16))
        self.disk = DiskSpaceMap.create(self.tm, nr_blocks)
        self.counts: Counter[int] = Counter()
        self.committed: dict[int, int] = {}
        self.commit()

    @rule(times=st.integers(1, 40))
    def allocate(self, times):
        for _ in range(times):
            free = self.disk.free
            try:
                number = self.disk.allocate()
            except SpaceMapFullError:
                assert free == 0
                return
            assert not self.counts[number]
            assert number not in self.committed
            self.counts[number] = 1

    @precondition(lambda self: self.counts)
    @rule(data=st.data(), times=st.integers(1, 4), delta=st.sampled_from([-1, 1]))
    def change(self, data, times, delta):
        numbers = data.draw(st.lists(st.sampled_from(sorted(self.counts)), max_size=20, unique=True))
        for _ in range(times):
            there = [number for number in numbers if self.counts[number]]
            (self.disk.inc if delta > 0 else self.disk.dec)(there)
            for number in there:
                self.counts[number] += delta
        for number in numbers:
            assert self.disk.count(number) == self.counts[number]
        self.counts = +self.counts

    @rule(more=st.sampled_from([0, 1, 20, 16320]))
    def grow(self, more):
        self.disk.grow(self.disk.nr_blocks + more)

    @rule()
    def settle(self):
        self.disk.settle()

    @rule()
    def commit(self):
        self.disk.settle()
        root = self.disk.root()
        commit(self.tm, *root)
        self.disk.begin()
        counts, own = counts_on_device(self.device, root.pack(), index_is_a_tree=True)
        assert counts == self.counts
        check_metadata(self.device, own)
        self.committed = counts

    @rule(how=st.sampled_from(["abort", "reopen"]))
    def go_back(self, how):
        if how == "abort":
            self.tm.abort()
            numbers = reopen(self.device)[1]
        else:
            self.tm, numbers = reopen(self.device, cache_blocks=16)
        self.disk = DiskSpaceMap.open(self.tm, MapRoot(*numbers[:4]))
        self.counts = Counter(self.committed)
        assert self.disk.free == self.disk.nr_blocks - len(self.committed)


TestDisk = Disk.TestCase
TestDisk.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_trees_and_maps_together_leak_nothing():
    device, tm = fresh(4000)
    tree = BTree(tm)
    roots = [tree.empty()]
    for step in range(30):
        root = roots.pop(0) if len(roots) > 3 else roots[step % len(roots)]
        if root in roots:
            tm.inc(root)
        for key in range(step * 37, step * 37 + 300):
            root = tree.insert(root, key * 7 % 5000, key)
        roots.append(root)
        commit(tm, *roots)
        check_metadata(device, Counter(references(OnDevice(device), roots)))
    for root in roots:
        tree.delete(root)
    commit(tm)
    check_metadata(device, Counter())
