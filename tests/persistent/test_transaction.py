"""Transactions: what is committed is never touched, all of a transaction or nothing of it is there after a crash."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule
from maps import OnDevice, check_metadata, commit, reopen
from memory_device import MemoryDevice
from trees import references

from dstorage.errors import UsageError
from dstorage.persistent.block_manager import BlockManager
from dstorage.persistent.btree import BTree
from dstorage.persistent.errors import (
    BlockLockError,
    DamagedMetadataError,
    ReadOnlyMetadataError,
    SpaceMapFullError,
    WouldBlockError,
)
from dstorage.persistent.node import NODE, Node
from dstorage.persistent.transaction import TransactionManager


@pytest.fixture
def device():
    return MemoryDevice(200)


@pytest.fixture
def tm(device):
    made = TransactionManager.create(BlockManager(device))
    commit(made)
    return made


def leaf(tm, key):
    node = Node.format(tm.new_block(NODE), is_leaf=True, value_size=8)
    node.insert(0, key, bytes(8))
    tm.unlock(node.block)
    return node.number


def key_of(tm, number):
    return tm.peek(number, NODE, lambda data: int.from_bytes(data[32:40], "little"))


# -- shadowing


def test_a_block_of_this_transaction_is_written_where_it_is(tm):
    number = leaf(tm, 1)
    block, inc_children = tm.shadow_block(number, NODE)
    assert (block.number, inc_children) == (number, False)
    tm.unlock(block)


def test_a_committed_block_is_copied_once(tm, device):
    number = leaf(tm, 1)
    commit(tm, number)
    copy, inc_children = tm.shadow_block(number, NODE)
    assert copy.number != number
    assert not inc_children
    assert copy.data[32:40] == bytes([1]) + bytes(7)
    copy.data[32] = 2
    tm.unlock(copy)
    again, _ = tm.shadow_block(copy.number, NODE)
    assert again.number == copy.number
    tm.unlock(again)
    assert (tm.ref(number), tm.ref(copy.number)) == (0, 1)
    with pytest.raises(DamagedMetadataError, match="counted as free"):
        tm.shadow_block(number, NODE)
    commit(tm, copy.number)
    check_metadata(device, Counter([copy.number]))


def test_a_shared_block_is_copied_even_if_it_is_of_this_transaction(tm, device):
    number = leaf(tm, 1)
    tm.inc(number)
    copy, inc_children = tm.shadow_block(number, NODE)
    assert copy.number != number
    assert inc_children
    tm.unlock(copy)
    assert (tm.ref(number), tm.ref(copy.number)) == (1, 1)
    commit(tm)
    check_metadata(device, Counter([number, copy.number]))


def test_places_in_trees_are_stale_whenever_blocks_move(tm):
    seen = [tm.generation]
    number = leaf(tm, 1)
    seen.append(tm.generation)
    tm.inc(number)
    seen.append(tm.generation)
    tm.dec(number)
    seen.append(tm.generation)
    commit(tm, number)
    seen.append(tm.generation)
    tm.unlock(tm.shadow_block(number, NODE)[0])
    seen.append(tm.generation)
    tm.abort()
    seen.append(tm.generation)
    assert seen == sorted(set(seen))


# -- commits and aborts


def test_an_abort_drops_all(tm, device):
    number = leaf(tm, 1)
    commit(tm, number)
    free = tm.space_map.free
    before = bytes(device.bytes)
    copy, _ = tm.shadow_block(number, NODE)
    copy.data[32] = 2
    leaf(tm, 3)
    # Even a lock that was left behind.
    tm.abort()
    assert key_of(tm, number) == 1
    assert tm.space_map.free == free
    commit(tm, number)
    check_metadata(device, Counter([number]))
    assert reopen(device)[1][0] == number
    assert len(before) == len(device.bytes)


def test_there_is_nothing_to_go_back_to_before_the_first_commit(device):
    tm = TransactionManager.create(BlockManager(device))
    with pytest.raises(UsageError, match="nothing was committed yet"):
        tm.abort()
    assert not any(device.bytes[:4096])


def test_a_forgotten_lock_fails_the_commit_and_nothing_is_durable(tm, device):
    number = leaf(tm, 1)
    before = bytes(device.bytes[:4096])
    tm.shadow_block(number, NODE)
    with pytest.raises(BlockLockError, match=f"block {number} is locked"):
        commit(tm, number)
    assert device.bytes[:4096] == before
    for change in (lambda: leaf(tm, 2), lambda: tm.inc(number), lambda: tm.dec(number), lambda: commit(tm)):
        with pytest.raises(ReadOnlyMetadataError, match="abort the transaction"):
            change()
    tm.abort()
    commit(tm)
    check_metadata(device, Counter())


@pytest.mark.parametrize("succeed", range(6))
def test_a_device_that_fails_leaves_the_last_commit_or_this_one(tm, device, succeed):
    number = leaf(tm, 1)
    commit(tm, number)
    device.log.clear()
    other = leaf(tm, 2)
    tm.dec(number)
    device.fails_after = succeed
    try:
        commit(tm, other)
        done = True
    except OSError:
        done = False
    device.fails_after = None
    there, numbers = reopen(device)
    assert numbers[0] in (number, other)
    if done:
        assert numbers[0] == other
    elif None not in device.log:
        assert numbers[0] == number
    check_metadata(device, Counter([numbers[0]]))
    assert key_of(there, numbers[0]) == (1 if numbers[0] == number else 2)


def test_without_room_for_the_counts_the_commit_fails_whole():
    device = MemoryDevice(12)
    tm = TransactionManager.create(BlockManager(device))
    commit(tm)
    for key in range(tm.space_map.free):
        leaf(tm, key)
    with pytest.raises(SpaceMapFullError):
        commit(tm)
    tm.abort()
    commit(tm)
    check_metadata(device, Counter())


def test_read_only_changes_nothing(tm, device):
    number = leaf(tm, 1)
    commit(tm, number)
    reading, _ = reopen(device, read_only=True)
    assert key_of(reading, number) == 1
    for change in (
        lambda: leaf(reading, 1),
        lambda: reading.shadow_block(number, NODE),
        lambda: reading.inc(number),
        lambda: reading.dec(number),
        lambda: reading.grow(300),
        lambda: commit(reading),
    ):
        with pytest.raises(ReadOnlyMetadataError, match="read only"):
            change()


def test_damage_names_block_kind_and_file(tm, device):
    number = leaf(tm, 1)
    commit(tm, number)
    device.bytes[number * 4096 + 99] ^= 1
    again, _ = reopen(device)
    with pytest.raises(DamagedMetadataError, match=f"tree node in block {number} of memory: wrong checksum"):
        BTree(again).lookup(number, 1)


# -- clones


def test_a_clone_never_waits_and_says_what_it_missed(tm, device):
    tree = BTree(tm)
    root = tree.bulk_load((key, key * key) for key in range(1000))
    commit(tm, root)
    again, _ = reopen(device)
    clone = again.clone()
    looking = BTree(clone)
    device.reads = 0
    misses = 0
    while True:
        try:
            assert looking.lookup_u64(root, 700) == 490_000
            break
        except WouldBlockError:
            assert not device.reads
            clone.fetch_missed()
            device.reads = 0
            misses += 1
    assert misses == 2
    with pytest.raises(WouldBlockError):
        clone.read_lock(root + 100, NODE)
    for change in (clone.new_block, clone.ref, clone.is_shared, clone.inc, clone.dec):
        with pytest.raises(WouldBlockError, match="only reads"):
            change(NODE)
    block = again.shadow_block(root, NODE)[0]
    clone.unlock(clone.read_lock(root, NODE))
    with pytest.raises(WouldBlockError):
        clone.peek(block.number, NODE, bytes)
    again.unlock(block)


def test_a_clone_reads_while_another_thread_changes(tm):
    tree = BTree(tm)
    root = tree.bulk_load((key, key) for key in range(5000))
    commit(tm, root)
    clone = tm.clone()
    stop = threading.Event()
    wrong = []

    def read():
        looking = BTree(clone)
        while not stop.is_set():
            for key in range(0, 5000, 97):
                try:
                    if looking.lookup_u64(root, key) != key:
                        wrong.append(key)
                except WouldBlockError:
                    pass

    reader = threading.Thread(target=read)
    reader.start()
    changed = root
    for key in range(3000):
        changed = tree.insert(changed, key, key + 1)
    stop.set()
    reader.join()
    assert not wrong
    assert tree.lookup_u64(root, 1) == 1
    assert tree.lookup_u64(changed, 1) == 2


# -- crashes


def crash_states(device, before, seed):
    """What a power failure may leave: for every moment, all that was synced, and any part of what was not, torn at sectors."""
    chance = random.Random(seed)
    durable, open_writes = bytearray(before), []
    for entry in [*device.log, None]:
        for _ in range(3):
            state = bytearray(durable)
            for offset, data in chance.sample(open_writes, len(open_writes)):
                for at in range(0, len(data), 512):
                    if chance.random() < 0.5:
                        state[offset + at : offset + at + 512] = data[at : at + 512]
            yield state
        if entry is None:
            for offset, data in open_writes:
                durable[offset : offset + len(data)] = data
            open_writes = []
            yield bytearray(durable)
        else:
            open_writes.append(entry)


def test_after_any_crash_the_last_commit_is_there_whole():
    """Nothing is mocked but the disk: every state that lost, torn or reordered unsynced writes can leave is opened."""
    device = MemoryDevice(400)
    tm = TransactionManager.create(BlockManager(device, cache_blocks=16))
    tree = BTree(tm)
    chance = random.Random(5)
    model, root, snapshot, old_model = {}, tree.empty(), 0, {}
    commit(tm, root, 0)
    states = 0
    for step in range(25):
        before, previous = bytes(device.bytes), (dict(model), dict(old_model))
        device.log.clear()
        if step % 5 == 4:
            if snapshot:
                tree.delete(snapshot)
            tm.inc(root)
            snapshot, old_model = root, dict(model)
        for _ in range(chance.choice([1, 30, 200])):
            key = chance.randrange(800)
            if key in model and chance.random() < 0.5:
                root = tree.remove(root, key)
                del model[key]
            else:
                model[key] = chance.randrange(2**40)
                root = tree.insert(root, key, model[key])
        commit(tm, root, snapshot)
        for state in crash_states(device, before, step):
            states += 1
            crashed = MemoryDevice(0)
            crashed.bytes = state
            again, (there, then, *_) = reopen(crashed)
            found = (
                dict(BTree(again).items_u64(there)),
                dict(BTree(again).items_u64(then)) if then else {},
            )
            assert found in (previous, (model, old_model))
            check_metadata(crashed, Counter(references(OnDevice(crashed), [there, then][: 1 + bool(then)])))
    assert states > 500


# -- everything together


class Trees(RuleBasedStateMachine):
    """Trees that share blocks, beside dicts: counts are exact at every commit, committed blocks are never overwritten."""

    trees = Bundle("trees")

    @initialize()
    def create(self):
        self.device = MemoryDevice(3000)
        self.tm = TransactionManager.create(BlockManager(self.device, cache_blocks=32))
        self.models: dict[int, tuple[int, dict[int, int]]] = {}
        self.names = 0
        self.commit()

    def tree(self):
        return BTree(self.tm)

    @rule(target=trees, keys=st.lists(st.integers(0, 3000), max_size=300, unique=True))
    def load(self, keys):
        self.names += 1
        self.models[self.names] = (
            self.tree().bulk_load((key, key) for key in sorted(keys)),
            {key: key for key in keys},
        )
        return self.names

    @rule(target=trees, name=trees)
    def snapshot(self, name):
        if name not in self.models:
            return name
        root, model = self.models[name]
        self.tm.inc(root)
        self.names += 1
        self.models[self.names] = (root, dict(model))
        return self.names

    @rule(name=trees, first=st.integers(0, 3000), count=st.integers(1, 200), step=st.integers(1, 40))
    def insert(self, name, first, count, step):
        if name in self.models:
            root, model = self.models[name]
            for key in range(first, first + count * step, step):
                root = self.tree().insert(root, key, count)
                model[key] = count
            self.models[name] = (root, model)

    @rule(name=trees, first=st.integers(0, 3000), length=st.integers(1, 2000))
    def remove(self, name, first, length):
        if name in self.models:
            root, model = self.models[name]
            root, removed = self.tree().remove_range(root, first, first + length)
            gone = [key for key in model if first <= key < first + length]
            assert removed == len(gone)
            for key in gone:
                del model[key]
            self.models[name] = (root, model)

    @rule(name=consumes(trees))
    def delete(self, name):
        if name in self.models:
            self.tree().delete(self.models.pop(name)[0])

    @rule()
    def commit(self):
        self.check_committed()
        commit(self.tm)
        self.committed = {name: (root, dict(model)) for name, (root, model) in self.models.items()}
        roots = [root for root, _ in self.models.values()]
        check_metadata(self.device, Counter(references(OnDevice(self.device), roots)))
        self.check_committed()

    @rule(how=st.sampled_from(["abort", "reopen"]))
    def go_back(self, how):
        if how == "abort":
            self.tm.abort()
        else:
            self.tm, _ = reopen(self.device, cache_blocks=16)
        self.models = {name: (root, dict(model)) for name, (root, model) in self.committed.items()}

    def check_committed(self):
        if hasattr(self, "committed"):
            # Through another manager: only what is on the device counts.
            again, _ = reopen(self.device)
            for root, model in self.committed.values():
                assert dict(BTree(again).items_u64(root)) == model

    def teardown(self):
        if hasattr(self, "tm"):
            for root, model in self.models.values():
                assert dict(self.tree().items_u64(root)) == model


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
