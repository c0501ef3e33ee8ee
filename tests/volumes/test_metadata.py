"""A pool's metadata beside a plain dict, judged by the thin-provisioning tools and by counting every reference."""

from __future__ import annotations

import errno
import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from thin_tools import POOLS, random_xml, require_tools, thin_check, thin_dump, thin_restore

from dstorage.errors import ClosedError, InvalidArgumentError, StoreLocked, UsageError
from dstorage.volumes.check import check
from dstorage.volumes.errors import (
    DamagedMetadataError,
    DeviceBusyError,
    DeviceExistsError,
    NoSuchDeviceError,
    NotAPoolError,
    PoolFullError,
    PoolReadOnlyError,
)
from dstorage.volumes.layout import SUPERBLOCK_SALT, seal
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.records import unpack_mapping

MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def _tools():
    require_tools()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metadata"


@pytest.fixture
def pool(path):
    with ThinMetadata.create(path, metadata_bytes=4 * MIB, block_bytes=65536, nr_data_blocks=20_000) as made:
        yield made


def sound(path):
    """What the tools say, and what they do not look at: counts of data blocks, hints, figures."""
    thin_check(path)
    report = check(path)
    assert report.problems == []
    return report


def fill(pool, id, blocks):
    """Map blocks of a device; where they are."""
    new = dict(zip(blocks, pool.allocate(len(blocks)), strict=True))
    pool.map(id, new)
    return new


def mapped(pool, id):
    return {block: unpack_mapping(value)[0] for block, value in pool.mappings(id)}


# -- what the tools say


def test_a_new_pool_is_what_the_tools_expect(pool, path):
    sound(path)
    assert thin_dump(path) == (
        b'<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="128" '
        b'nr_data_blocks="20000">\n</superblock>\n'
    )
    assert (pool.nr_data_blocks, pool.free_data_blocks) == (20_000, 20_000)
    assert (pool.nr_metadata_blocks, pool.block_bytes) == (1024, 65536)
    # The superblock, the map's index, overflow and bitmap, the data map's index, overflow and two bitmaps, two trees.
    assert pool.free_metadata_blocks == 1024 - 102 - 10


def test_devices_and_snapshots_are_dumped_as_they_were_made(pool, path):
    pool.create_device(1)
    fill(pool, 1, range(50))
    pool.set_transaction_id(0, 7)
    pool.create_snapshot(3, 1)
    pool.create_device(2)
    fill(pool, 3, [10, 2**40])
    pool.commit()
    sound(path)
    assert thin_dump(path).decode() == (
        '<superblock uuid="" time="1" transaction="7" flags="0" version="2" data_block_size="128" nr_data_blocks="20000">\n'
        '  <device dev_id="1" mapped_blocks="50" transaction="0" creation_time="0" snap_time="1">\n'
        '    <range_mapping origin_begin="0" data_begin="0" length="50" time="0"/>\n'
        "  </device>\n"
        '  <device dev_id="2" mapped_blocks="0" transaction="7" creation_time="1" snap_time="1">\n'
        "  </device>\n"
        '  <device dev_id="3" mapped_blocks="51" transaction="7" creation_time="1" snap_time="1">\n'
        '    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>\n'
        '    <single_mapping origin_block="10" data_block="50" time="1"/>\n'
        '    <range_mapping origin_begin="11" data_begin="11" length="39" time="0"/>\n'
        '    <single_mapping origin_block="1099511627776" data_block="51" time="1"/>\n'
        "  </device>\n"
        "</superblock>\n"
    )


@pytest.mark.parametrize("name", POOLS)
def test_what_the_tools_restored_is_opened_changed_and_sound(name, path):
    seed, devices, runs = POOLS[name]
    thin_restore(random_xml(seed, devices, runs), path, 16 * MIB)
    before = thin_dump(path)
    chance = random.Random(seed)
    with ThinMetadata.open(path) as pool:
        pool.commit()
        assert thin_dump(path) == before
        sound(path)
        ids = [id for id, _ in pool.devices()]
        model = {id: mapped(pool, id) for id in ids}
        for id in chance.sample(ids, min(3, len(ids))):
            copy = next(id for id in range(1000) if id not in model)
            pool.create_snapshot(copy, id)
            model[copy] = dict(model[id])
            model[id] |= fill(pool, id, chance.sample(range(5000), 200))
            first = chance.randrange(1000)
            pool.unmap(id, first, first + 5000)
            model[id] = {block: place for block, place in model[id].items() if not first <= block < first + 5000}
        for id in ids[:1]:
            pool.delete_device(id)
            del model[id]
        pool.create_device(2**24 - 1)
        model[2**24 - 1] = fill(pool, 2**24 - 1, range(300))
        pool.commit()
    sound(path)
    with ThinMetadata.open(path, read_only=True) as pool:
        assert {id: mapped(pool, id) for id, _ in pool.devices()} == model


def test_a_pool_grows_data_and_metadata(pool, path):
    pool.create_device(1)
    fill(pool, 1, range(20_000))
    with pytest.raises(PoolFullError, match="0 of 20000 are free") as caught:
        pool.allocate(1)
    assert (caught.value.kind, caught.value.errno) == ("data", errno.ENOSPC)
    pool.grow_data(100_000)
    fill(pool, 1, range(20_000, 50_000))
    pool.grow_metadata(80 * MIB)
    pool.commit()
    assert path.stat().st_size == 80 * MIB
    sound(path)
    assert b'nr_data_blocks="100000"' in thin_dump(path)
    with ThinMetadata.open(path, read_only=True) as again:
        assert again.nr_metadata_blocks == 20 * 1024
        assert mapped(again, 1) == {block: block for block in range(50_000)}
    for grow, size in ((pool.grow_data, 99_999), (pool.grow_metadata, 79 * MIB), (pool.grow_metadata, 16 * 2**30)):
        with pytest.raises(InvalidArgumentError):
            grow(size)
    assert not pool.changed


# -- sharing


def test_a_snapshot_takes_the_same_few_blocks_whatever_the_size(path):
    with ThinMetadata.create(path, metadata_bytes=32 * MIB, block_bytes=65536, nr_data_blocks=200_000) as pool:
        taken = []
        for id, size in enumerate((10, 1000, 100_000)):
            pool.create_device(id)
            fill(pool, id, range(size))
            pool.commit()
            free = pool.free_metadata_blocks
            pool.create_snapshot(100 + id, id)
            taken.append(free - pool.free_metadata_blocks)
            pool.commit()
        assert len(set(taken)) == 1
        assert taken[0] <= 4
        sound(path)


def test_shared_runs_are_told_until_they_are_mapped_anew(pool, path):
    pool.create_device(1)
    fill(pool, 1, range(10))
    assert [(run.virtual, run.length, shared) for run, shared in pool.runs(1)] == [(0, 10, False)]
    pool.create_snapshot(2, 1)
    fill(pool, 1, [4, 5])
    assert [(run.virtual, run.length, shared) for run, shared in pool.runs(1)] == [
        (0, 4, True),
        (4, 2, False),
        (6, 4, True),
    ]
    assert [shared for _, shared in pool.runs(2)] == [True]
    assert pool.is_data_shared(0)
    assert not pool.is_data_shared(4)
    pool.commit()
    pool.delete_device(2)
    assert [shared for _, shared in pool.runs(1, 2, 8)] == [True, False, True]
    assert not pool.is_data_shared(0)
    assert pool.commit() == [(4, 2)]
    sound(path)


def test_what_was_freed_comes_after_the_commit_that_frees_it(pool, path):
    pool.create_device(1)
    places = fill(pool, 1, range(20_000))
    pool.commit()
    assert pool.unmap(1, 100, 200) == 100
    assert pool.freed
    assert pool.free_data_blocks == 0
    with pytest.raises(PoolFullError):
        pool.allocate(1)
    assert pool.commit() == [(places[100], 100)]
    assert not pool.freed
    assert sorted(pool.allocate(100)) == list(range(100, 200))


def test_allocated_and_released_blocks_leave_no_trace(pool, path):
    places = pool.allocate(100)
    pool.release(places)
    assert pool.free_data_blocks == 20_000
    pool.commit()
    assert sound(path).data_blocks == 0


def test_a_total_that_is_too_low_costs_no_block(pool, path):
    """Some program wrote it wrong: more seems to be free than is."""
    pool.create_device(1)
    fill(pool, 1, range(19_990))
    pool.commit()
    pool.close()
    content = bytearray(path.read_bytes())
    block = content[:4096]
    block[72:80] = (19_000).to_bytes(8, "little")
    content[:4096] = seal(block, 0, SUPERBLOCK_SALT)
    path.write_bytes(content)
    with ThinMetadata.open(path) as again:
        with pytest.raises(PoolFullError):
            again.allocate(100)
        assert len(again.allocate(10)) == 10
        again.abort()
        with pytest.raises(PoolFullError):
            again.allocate(100)
        again.commit()
    thin_check(path)
    assert check(path).sound


# -- transactions


def test_an_abort_goes_back_to_the_last_commit(pool, path):
    pool.create_device(1)
    fill(pool, 1, range(100))
    pool.commit()
    before = thin_dump(path)
    pool.create_snapshot(2, 1)
    fill(pool, 1, range(50))
    pool.unmap(1, 60, 70)
    pool.grow_data(30_000)
    pool.abort()
    assert not pool.changed
    assert pool.free_data_blocks == 19_900
    assert [id for id, _ in pool.devices()] == [1]
    pool.commit()
    assert thin_dump(path) == before
    sound(path)


def test_without_room_for_metadata_nothing_is_lost(path):
    with ThinMetadata.create(path, metadata_bytes=25 * 4096, block_bytes=65536, nr_data_blocks=20_000) as pool:
        pool.create_device(1)
        fill(pool, 1, range(500))
        pool.commit()
        before = thin_dump(path)
        chance = random.Random(1)
        places = pool.allocate(5000)
        scattered = dict(zip(chance.sample(range(2**30), 5000), places, strict=True))
        with pytest.raises(PoolFullError, match="grow the metadata") as caught:
            pool.map(1, scattered)
        assert caught.value.kind == "metadata"
        pool.abort()
        assert thin_dump(path) == before
        pool.grow_metadata(4 * MIB)
        fill(pool, 1, [7])
        pool.commit()
        sound(path)


def test_a_file_too_small_is_not_left_behind(path):
    with pytest.raises(PoolFullError, match="metadata"):
        ThinMetadata.create(path, metadata_bytes=5 * 4096, block_bytes=65536, nr_data_blocks=100)
    assert not path.exists()


def test_a_pool_that_needs_a_check_is_only_read(pool, path):
    pool.create_device(1)
    with pytest.raises(UsageError, match="abort"):
        pool.set_needs_check()
    pool.commit()
    pool.set_needs_check()
    assert pool.needs_check
    pool.close()
    assert b'flags="1"' in thin_dump(path)
    with pytest.raises(PoolReadOnlyError, match="needing a check"):
        ThinMetadata.open(path)
    with ThinMetadata.open(path, read_only=True) as reading:
        assert [id for id, _ in reading.devices()] == [1]
        with pytest.raises(PoolReadOnlyError, match="read only"):
            reading.create_device(2)
    os.system(f"PATH=$PATH:/usr/sbin thin_check -q --clear-needs-check-flag {path}")
    ThinMetadata.open(path).close()


# -- the metadata snapshot


def test_a_metadata_snapshot_holds_still(pool, path):
    pool.create_device(1)
    fill(pool, 1, range(3000))
    with pytest.raises(UsageError, match="commit first"):
        pool.take_snapshot()
    pool.commit()
    before = thin_dump(path).replace(b'nr_data_blocks="20000"', b'nr_data_blocks="0"')
    pool.take_snapshot()
    pool.commit()
    with pytest.raises(DeviceBusyError, match="release that first"):
        pool.take_snapshot()
    fill(pool, 1, range(1000, 1500))
    pool.create_snapshot(2, 1)
    pool.commit()
    sound(path)
    assert thin_dump(path, "-m") == before
    pool.delete_device(1)
    pool.delete_device(2)
    pool.commit()
    sound(path)
    assert thin_dump(path, "-m") == before
    # The mappings are held, so their data blocks are.
    assert pool.free_data_blocks == 17_000
    pool.release_snapshot()
    pool.commit()
    assert sound(path).data_blocks == 0
    with pytest.raises(InvalidArgumentError, match="no metadata snapshot"):
        pool.release_snapshot()


# -- errors


def test_mistakes_are_told_and_change_nothing(pool):
    pool.create_device(1)
    pool.commit()
    with pytest.raises(DeviceExistsError, match="device 1 already"):
        pool.create_device(1)
    with pytest.raises(DeviceExistsError, match="device 1 already"):
        pool.create_snapshot(1, 1)
    for call in (
        lambda: pool.create_snapshot(2, 5),
        lambda: pool.delete_device(5),
        lambda: pool.details(5),
        lambda: pool.details(-1),
        lambda: pool.mappings(2**70),
        lambda: pool.lookup(5, 0),
        lambda: pool.map(5, {}),
        lambda: pool.unmap(5, 0, 1),
        lambda: pool.mapped_end(5),
    ):
        with pytest.raises(NoSuchDeviceError, match="has no device"):
            call()
    for id in (-1, 2**24):
        with pytest.raises(InvalidArgumentError, match="ids are 0 to"):
            pool.create_device(id)
    with pytest.raises(InvalidArgumentError, match="is 0, not 5"):
        pool.set_transaction_id(5, 6)
    with pytest.raises(InvalidArgumentError, match="64 bits"):
        pool.set_transaction_id(0, 2**64)
    assert not pool.changed


def test_figures_of_a_device(pool):
    pool.create_device(1)
    assert pool.mapped_end(1) == 0
    assert pool.lookup(1, 3) is None
    places = fill(pool, 1, [3, 9])
    assert pool.mapped_end(1) == 10
    assert unpack_mapping(pool.lookup(1, 9))[0] == places[9]
    assert pool.details(1).mapped_blocks == 2
    assert pool.unmap(1, 0, 2**64) == 2
    assert pool.details(1).mapped_blocks == 0
    fill(pool, 1, [2**64 - 1])
    assert pool.mapped_end(1) == 2**64
    assert pool.unmap(1, 2**64 - 1, 2**64) == 1


def test_only_one_writes(pool, path):
    with pytest.raises(StoreLocked):
        ThinMetadata.open(path)
    ThinMetadata.open(path, read_only=True).close()
    pool.close()
    pool.close()
    for call in (pool.devices, lambda: pool.create_device(1), lambda: pool.details(1), pool.commit):
        with pytest.raises(ClosedError, match="open them again"):
            call()
    ThinMetadata.open(path).close()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"block_bytes": 1000}, "multiple of 512"),
        ({"block_bytes": 4096}, "64 KiB"),
        ({"block_bytes": 2**31}, "1 GiB"),
        ({"metadata_bytes": 4095}, "possible"),
        ({"metadata_bytes": 2**35}, "possible"),
        ({"nr_data_blocks": -1}, "can be mapped"),
        ({"nr_data_blocks": 2**41}, "can be mapped"),
    ],
)
def test_impossible_pools_are_not_made(path, arguments, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        ThinMetadata.create(path, **{"metadata_bytes": 4 * MIB, "block_bytes": 65536, "nr_data_blocks": 10} | arguments)
    assert not path.exists()


def test_what_is_no_pool_is_left_alone(path):
    with pytest.raises(NotAPoolError, match="make a pool first"):
        ThinMetadata.open(path)
    path.write_bytes(b"precious")
    with pytest.raises(InvalidArgumentError, match="holds something already"):
        ThinMetadata.create(path, metadata_bytes=4 * MIB, block_bytes=65536, nr_data_blocks=10)
    with pytest.raises(NotAPoolError):
        ThinMetadata.open(path)
    assert path.read_bytes() == b"precious"
    path.write_bytes(bytes(8192))
    with pytest.raises(NotAPoolError, match="first block is empty"):
        ThinMetadata.open(path)
    path.write_bytes(b"precious" * 1024)
    with pytest.raises(DamagedMetadataError, match=r"superblock in block 0 of .*: wrong checksum"):
        ThinMetadata.open(path)


# -- everything together


class Pool(RuleBasedStateMachine):
    """A pool beside dicts; at every commit the tools check and dump it, and every reference is counted."""

    @initialize()
    def create(self):
        self.path = self.directory / f"metadata-{random.getrandbits(64):x}"
        self.pool = ThinMetadata.create(self.path, metadata_bytes=2 * MIB, block_bytes=65536, nr_data_blocks=5000)
        self.devices: dict[int, dict[int, tuple[int, int]]] = {}
        self.details: dict[int, list[int]] = {}
        self.time = self.transaction = 0
        self.nr_data_blocks = 5000
        self.held: bytes | None = None
        self.commit()

    def teardown(self):
        if hasattr(self, "pool"):
            self.pool.close()
            self.path.unlink()

    ids = st.integers(0, 12)

    @rule(id=ids)
    def make(self, id):
        if id not in self.devices:
            self.pool.create_device(id)
            self.devices[id] = {}
            self.details[id] = [self.transaction, self.time, self.time]

    @rule(id=ids, origin=ids)
    def snapshot(self, id, origin):
        if id not in self.devices and origin in self.devices:
            self.pool.create_snapshot(id, origin)
            self.time += 1
            self.devices[id] = dict(self.devices[origin])
            self.details[id] = [self.transaction, self.time, self.time]
            self.details[origin][2] = self.time

    @rule(id=ids)
    def delete(self, id):
        if id in self.devices:
            self.pool.delete_device(id)
            del self.devices[id], self.details[id]

    @rule(id=ids, first=st.integers(0, 2000), count=st.integers(1, 300), step=st.sampled_from([1, 1, 2, 7, 2**40]))
    def map(self, id, first, count, step):
        if id in self.devices:
            blocks = range(first, first + count * step, step)
            try:
                places = self.pool.allocate(count)
            except PoolFullError:
                assert self.pool.free_data_blocks < count
                return
            used = {place for blocks in self.committed.values() for place, _ in blocks.values()}
            assert used.isdisjoint(places)
            self.pool.map(id, dict(zip(blocks, places, strict=True)))
            self.devices[id] |= {block: (place, self.time) for block, place in zip(blocks, places, strict=True)}

    @rule(id=ids, first=st.integers(0, 2000), length=st.sampled_from([1, 50, 3000, 2**64]))
    def unmap(self, id, first, length):
        if id in self.devices:
            gone = [block for block in self.devices[id] if first <= block < first + length]
            assert self.pool.unmap(id, first, min(first + length, 2**64)) == len(gone)
            for block in gone:
                del self.devices[id][block]

    @rule(more=st.integers(0, 500))
    def grow(self, more):
        self.nr_data_blocks += more
        self.pool.grow_data(self.nr_data_blocks)
        self.pool.grow_metadata((self.pool.nr_metadata_blocks + more) * 4096)

    @rule()
    def set_transaction_id(self):
        self.pool.set_transaction_id(self.transaction, self.transaction + 1)
        self.transaction += 1

    @precondition(lambda self: self.held is None)
    @rule()
    def hold(self):
        self.commit()
        self.pool.take_snapshot()
        self.held = thin_dump(self.path).replace(b'nr_data_blocks="%d"' % self.nr_data_blocks, b'nr_data_blocks="0"')
        self.commit()

    @precondition(lambda self: self.held is not None)
    @rule()
    def let_go(self):
        self.pool.release_snapshot()
        self.held = None
        self.commit()

    @rule()
    def commit(self):
        self.pool.commit()
        self.committed = {id: dict(blocks) for id, blocks in self.devices.items()}
        self.figures = (
            {id: list(found) for id, found in self.details.items()},
            self.time,
            self.transaction,
            self.nr_data_blocks,
        )
        sound(self.path)
        assert thin_dump(self.path).decode() == self.xml()
        if self.held is not None:
            assert thin_dump(self.path, "-m") == self.held

    @rule(how=st.sampled_from(["abort", "reopen"]))
    def go_back(self, how):
        if how == "abort":
            self.pool.abort()
        else:
            self.pool.close()
            self.pool = ThinMetadata.open(self.path, cache_blocks=32)
        self.devices = {id: dict(blocks) for id, blocks in self.committed.items()}
        details, self.time, self.transaction, self.nr_data_blocks = self.figures
        self.details = {id: list(found) for id, found in details.items()}
        used = {place for blocks in self.devices.values() for place, _ in blocks.values()}
        if self.held is None:
            assert self.pool.free_data_blocks == self.nr_data_blocks - len(used)

    @invariant()
    def same(self):
        if hasattr(self, "devices"):
            assert [id for id, _ in self.pool.devices()] == sorted(self.devices)
            for id, blocks in self.devices.items():
                found = {block: unpack_mapping(value) for block, value in self.pool.mappings(id)}
                assert found == blocks

    def xml(self):
        lines = [
            f'<superblock uuid="" time="{self.time}" transaction="{self.transaction}" flags="0" version="2" '
            f'data_block_size="128" nr_data_blocks="{self.nr_data_blocks}">'
        ]
        for id, blocks in sorted(self.devices.items()):
            transaction, creation, snapshotted = self.details[id]
            lines.append(
                f'  <device dev_id="{id}" mapped_blocks="{len(blocks)}" transaction="{transaction}" '
                f'creation_time="{creation}" snap_time="{snapshotted}">'
            )
            runs: list[list[int]] = []
            for block, (place, time) in sorted(blocks.items()):
                if runs and [block - runs[-1][2], place - runs[-1][2], time] == [runs[-1][0], runs[-1][1], runs[-1][3]]:
                    runs[-1][2] += 1
                else:
                    runs.append([block, place, 1, time])
            for block, place, length, time in runs:
                lines.append(
                    f'    <single_mapping origin_block="{block}" data_block="{place}" time="{time}"/>'
                    if length == 1
                    else f'    <range_mapping origin_begin="{block}" data_begin="{place}" length="{length}" time="{time}"/>'
                )
            lines.append("  </device>")
        return "\n".join([*lines, "</superblock>", ""])


def test_any_history_is_sound_at_every_commit(tmp_path):
    Pool.directory = tmp_path
    run_state_machine_as_test(Pool, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))
