"""Pools: devices, space, commits, and what is left when something fails."""

from __future__ import annotations

import asyncio
import os
import threading
from random import Random

import pytest
from memory_data import MemoryData
from thin_tools import require_tools, thin_check, thin_dump

from dstorage.errors import ClosedError, InvalidArgumentError, StoreLocked
from dstorage.volumes.check import check
from dstorage.volumes.device import FileDevice
from dstorage.volumes.errors import (
    DeviceBusyError,
    DeviceExistsError,
    NoSuchDeviceError,
    NotAPoolError,
    PoolFullError,
    PoolReadOnlyError,
)
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.pool import ThinPool
from dstorage.volumes.status import LowSpace, Mode

BLOCK = 65536


@pytest.fixture(autouse=True, scope="module")
def _tools():
    require_tools()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metadata"


async def create(path, blocks=16, **options):
    data = MemoryData()
    options = {"metadata_bytes": 2**20, "commit_interval": None} | options
    return data, await ThinPool.create(path, data, data_bytes=blocks * BLOCK, **options)


def sound(path):
    thin_check(path)
    assert check(path).problems == []


async def reopened(path, data):
    return await ThinPool.open(path, data, commit_interval=None)


# -- life


async def test_a_pool_is_found_again_as_it_was_closed(path):
    data, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        async with await pool.volume(1, size=2**50) as volume:
            await volume.pwrite(b"far away", 2**49)
        await pool.snapshot(2, origin=1)
        await pool.set_transaction_id(5, expected=0)
    sound(path)
    async with await reopened(path, data) as pool:
        assert pool.devices() == [1, 2]
        assert (await pool.device(1, shared=True)).shared_blocks == 1
        assert (await pool.device(2)).mapped_blocks == 1
        status = pool.status()
        assert (status.mode, status.devices, status.transaction_id, status.time) == (Mode.WRITE, 2, 5, 1)
        assert (status.data_blocks, status.free_data_blocks, status.block_bytes) == (16, 15, BLOCK)
        assert "15 of 16 blocks free" in repr(pool)
        volume = await pool.volume(2, size=2**50)
        assert await volume.pread(8, 2**49) == b"far away"
    assert "closed" in repr(pool)
    await pool.close()
    for call in (pool.status, pool.devices):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        await pool.create_device(7)
    with pytest.raises(ClosedError):
        await volume.pread(1, 0)


@pytest.mark.parametrize("missing", [(), ("pread", "pwrite", "preadv", "RWF_NOWAIT")])
async def test_a_pool_on_files(path, tmp_path, monkeypatch, missing):
    for name in missing:
        monkeypatch.delattr(os, name)
    device = FileDevice(tmp_path / "data", create=True)
    async with await ThinPool.create(path, device, data_bytes=2**22, metadata_bytes=2**20) as pool:
        await pool.create_device(1)
        volume = await pool.volume(1)
        assert volume.size == 2**22
        await volume.pwrite(b"x" * 100_000, 50_000)
        await volume.flush()
        assert bytes(await volume.pread(200_000, 0)) == bytes(50_000) + b"x" * 100_000 + bytes(50_000)
        with pytest.raises(StoreLocked):
            await ThinPool.open(path, device)
        reading = await ThinPool.open(path, device, read_only=True)
        assert reading.mode is Mode.READ_ONLY
        with pytest.raises(PoolReadOnlyError, match="opened read-only"):
            await reading.create_device(2)
        await reading.close()
    device.close()


async def test_a_data_device_that_is_another_one_is_refused(path):
    _, pool = await create(path)
    await pool.close()
    with pytest.raises(NotAPoolError, match="cut short"):
        await reopened(path, MemoryData(15 * BLOCK))


async def test_an_impossible_pool_leaves_the_data_device_as_it_was(path):
    data = MemoryData(100)
    path.write_bytes(b"precious")
    with pytest.raises(InvalidArgumentError, match="holds something"):
        await ThinPool.create(path, data, data_bytes=2**22)
    assert data.size == 100


# -- devices


async def test_mistakes_with_devices_are_told(path):
    _, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        with pytest.raises(DeviceExistsError):
            await pool.create_device(1)
        with pytest.raises(NoSuchDeviceError):
            await pool.snapshot(2, origin=3)
        with pytest.raises(NoSuchDeviceError):
            await pool.volume(3)
        with pytest.raises(NoSuchDeviceError):
            await pool.delete_device(3)
        with pytest.raises(InvalidArgumentError, match=r"2\*\*63"):
            await pool.volume(1, size=2**63)
        volume = await pool.volume(1)
        with pytest.raises(DeviceBusyError, match="open already"):
            await pool.volume(1)
        with pytest.raises(DeviceBusyError, match="open as a volume"):
            await pool.delete_device(1)
        volume.close()
        await pool.delete_device(1)
        assert pool.devices() == []
        assert pool.mode is Mode.WRITE


async def test_a_metadata_snapshot_while_the_pool_goes_on(path):
    _, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1)
        await volume.pwrite(b"x", 0)
        assert await pool.take_metadata_snapshot() == pool.status().held_root
        held = thin_dump(path, "-m")
        with pytest.raises(DeviceBusyError):
            await pool.take_metadata_snapshot()
        await volume.pwrite(b"y" * BLOCK, 5 * BLOCK)
        await pool.commit()
        assert thin_dump(path, "-m") == held
        sound(path)
        await pool.release_metadata_snapshot()
        with pytest.raises(InvalidArgumentError):
            await pool.release_metadata_snapshot()
    sound(path)


# -- space


async def test_a_full_pool_takes_no_new_block_until_there_is_room(path):
    data, pool = await create(path, blocks=4)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1, size=100 * BLOCK)
        await volume.pwrite(b"1" * 4 * BLOCK, 0)
        assert pool.mode is Mode.OUT_OF_DATA_SPACE
        with pytest.raises(PoolFullError, match="0 of 4 are free") as caught:
            await volume.pwrite(b"2", 50 * BLOCK)
        assert caught.value.kind == "data"
        # What is mapped can be written still.
        await volume.pwrite(b"3" * BLOCK, BLOCK)
        await volume.discard(0, BLOCK)
        # Freed only with a commit, which the write makes by itself.
        assert pool.status().free_data_blocks == 0
        await volume.pwrite(b"2", 50 * BLOCK)
        assert bytes(await volume.pread(3, 50 * BLOCK)) == b"2\0\0"
        with pytest.raises(PoolFullError):
            await volume.pwrite(b"2", 51 * BLOCK)
        await pool.grow_data(6 * BLOCK)
        assert data.size == 6 * BLOCK
        await volume.pwrite(b"2", 51 * BLOCK)
        with pytest.raises(InvalidArgumentError, match="only grow"):
            await pool.grow_data(5 * BLOCK)
    sound(path)


async def test_without_metadata_space_nothing_new_is_mapped(path):
    _, pool = await create(path, blocks=4000, metadata_bytes=80 * 4096)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1, size=2**60)
        block = 0
        await volume.pwrite(b"first", 0)
        while pool.mode is Mode.WRITE:
            block += 1
            await pool.create_device(1 + block)
            if pool.mode is not Mode.WRITE:
                # What was copied in this transaction is free behind it.
                await pool.commit()
        with pytest.raises(PoolFullError, match="out of metadata space") as caught:
            await pool.snapshot(1000, origin=1)
        assert caught.value.kind == "metadata"
        assert pool.mode is Mode.OUT_OF_METADATA_SPACE
        with pytest.raises(PoolFullError, match="out of metadata space"):
            await volume.pwrite(b"x", BLOCK)
        await volume.pwrite(b"again", 0)
        await pool.commit()
        sound(path)
        await pool.delete_device(2)
        await pool.commit()
        await pool.grow_metadata(2**20)
        assert pool.mode is Mode.WRITE
        await volume.pwrite(b"x", BLOCK)
        with pytest.raises(InvalidArgumentError):
            await pool.grow_metadata(2**19)
    sound(path)


async def test_a_write_without_metadata_space_has_those_that_a_commit_frees(path):
    _, pool = await create(path, blocks=4000, metadata_bytes=80 * 4096)
    async with pool:
        await pool.create_device(0)
        await pool.commit()
        volume = await pool.volume(0, size=2**60)
        id = 0
        while pool.mode is Mode.WRITE:
            id += 1
            await pool.create_device(id)
        for gone in range(1, id + 1):
            await pool.delete_device(gone)
        await volume.pwrite(b"x", 0)
    sound(path)


async def test_room_is_left_to_write_the_counts_of_what_snapshots_share(path, tmp_path):
    """Each leaf copied counts its 252 data blocks anew; those lie all over the maps, and are written by the commit."""
    data = FileDevice(tmp_path / "data", create=True)
    pool = await ThinPool.create(path, data, data_bytes=300_000 * BLOCK, metadata_bytes=2**20, commit_interval=None)
    async with pool:
        random, metadata, size = Random(6), pool.metadata, 12_000
        await pool.create_device(0)
        places = metadata.allocate(size)
        random.shuffle(places)
        metadata.map(0, dict(enumerate(places)))
        await pool.commit()
        id = refused = 0
        while refused < 3:
            id += 1
            try:
                await pool.snapshot(id, origin=0)
                for _ in range(100):
                    pool.map(id, {random.randrange(size): pool.allocate(1)[0]})
            except PoolFullError:
                refused += 1
            await pool.commit()
        assert pool.mode is not Mode.READ_ONLY
    data.close()
    sound(path)


async def test_many_writes_at_once_never_cost_the_last_commit(path):
    """Each finds room before it begins; together they would use up what there is, half way."""
    data, pool = await create(path, blocks=4000, metadata_bytes=80 * 4096)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1, size=2**60)
        places = [number * 2**40 for number in range(1000)]
        data.open.clear()
        writes = [asyncio.create_task(volume.pwrite(b"a", place)) for place in places]
        for _ in range(20):
            await asyncio.sleep(0)
        # The others wait for room that these may need.
        assert 0 < data.waiting < 10
        data.open.set()
        await asyncio.gather(*writes)
        id = 1
        while pool.mode is Mode.WRITE:
            id += 1
            await pool.snapshot(id, origin=1)
            # Each of these copies its leaf.
            writes = [volume.pwrite(b"b", place) for place in places[::20]]
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert all(result is None or isinstance(result, PoolFullError) for result in results)
            await pool.commit()
        assert any(isinstance(result, PoolFullError) for result in results)
        assert pool.mode is Mode.OUT_OF_METADATA_SPACE
        await pool.grow_metadata(2**21)
        await asyncio.gather(*(volume.pwrite(b"c", place) for place in places))
    sound(path)


async def test_a_metadata_device_that_is_gone_leaves_a_pool_that_says_why(path, monkeypatch):
    data, pool = await create(path)
    await pool.create_device(1)
    await pool.commit()
    await pool.create_device(2)

    def fail(*_):
        raise OSError(5, "the metadata device is gone")

    with monkeypatch.context() as patch:
        for name in ("pread", "pwrite", "sync"):
            patch.setattr(pool.metadata._device, name, fail)
        with pytest.raises(OSError, match="is gone") as caught:
            await pool.commit()
        assert any("nor could the last commit" in note for note in caught.value.__notes__)
    with pytest.raises(PoolReadOnlyError, match="is gone"):
        await pool.create_device(3)
    await pool.close()
    async with await reopened(path, data) as pool:
        assert pool.devices() == [1]


async def test_low_space_is_told_once_each_time(path):
    told = []
    low = LowSpace(lambda kind, free: told.append((kind, free)), data_blocks=2)
    _, pool = await create(path, blocks=5, low_space=low)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1, size=5 * BLOCK)
        for block in range(5):
            await volume.pwrite(b"x", block * BLOCK)
        await asyncio.sleep(0)
        assert told == [("data", 2)]
        await volume.discard(0, 4 * BLOCK)
        await pool.commit()
        await volume.pwrite(b"x", 0)
        await volume.pwrite(b"x", BLOCK)
        await asyncio.sleep(0)
        assert told == [("data", 2), ("data", 2)]


async def test_space_that_is_low_already_is_told_at_opening(path):
    data, pool = await create(path, blocks=5)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1, size=5 * BLOCK)
        await volume.pwrite(b"x" * 3 * BLOCK, 0)
    for mark, expected in ((1, []), (2, [("data", 2)])):
        told = []
        low = LowSpace(lambda kind, free, told=told: told.append((kind, free)), data_blocks=mark)
        async with await ThinPool.open(path, data, commit_interval=None, low_space=low):
            await asyncio.sleep(0)
            assert told == expected


# -- figures


@pytest.fixture
def held(monkeypatch):
    """Holds up the threads in which `ThinMetadata` does one thing; nobody else may look at what it changes meanwhile."""
    here = threading.get_ident()

    class Held:
        def __init__(self):
            self.begun, self.go = threading.Event(), threading.Event()

        def up(self, method):
            real = getattr(ThinMetadata, method)

            def slow(metadata, *args):
                assert threading.get_ident() != here
                self.begun.set()
                assert self.go.wait(10)
                try:
                    return real(metadata, *args)
                finally:
                    self.begun.clear()

            monkeypatch.setattr(ThinMetadata, method, slow)

    held = Held()
    for name in ("_spare", "devices"):
        real = getattr(ThinMetadata, name)

        def alone(metadata, *args, real=real, **options):
            assert not (held.begun.is_set() and threading.get_ident() == here), "looked at while a thread changes it"
            return real(metadata, *args, **options)

        monkeypatch.setattr(ThinMetadata, name, alone)
    return held


@pytest.mark.parametrize("what", ["commit", "delete_device", "grow_metadata", "unmap"])
async def test_while_a_thread_changes_the_metadata_the_figures_are_those_before(path, held, what):
    _, pool = await create(path, blocks=100)
    async with pool:
        for id in (3, 1, 2):
            await pool.create_device(id)
        volume = await pool.volume(1, size=2**40)
        await volume.pwrite(b"x" * 10 * BLOCK, 0)
        if what != "commit":
            await pool.commit()
        before, shown = pool.status(), repr(pool)
        held.up(what)
        work = {
            "commit": pool.commit,
            "delete_device": lambda: pool.delete_device(3),
            "grow_metadata": lambda: pool.grow_metadata(2**21),
            "unmap": lambda: volume.discard(0, 2**40),
        }[what]
        task = asyncio.create_task(work())
        await asyncio.to_thread(held.begun.wait, 10)
        assert (pool.status(), pool.devices(), repr(pool)) == (before, [1, 2, 3], shown)
        held.go.set()
        await task
        after = pool.status()
        assert pool.devices() == ([1, 2] if what == "delete_device" else [1, 2, 3])
        assert after.devices == len(pool.devices())
        assert (after.metadata_blocks > before.metadata_blocks) == (what == "grow_metadata")


async def test_the_list_of_devices_is_not_read_again_but_after_a_way_back(path, monkeypatch):
    data, pool = await create(path)
    async with pool:
        await pool.create_device(7)
    async with await reopened(path, data) as pool:
        reads = []
        real = ThinMetadata.devices
        monkeypatch.setattr(ThinMetadata, "devices", lambda metadata: reads.append(1) or real(metadata))
        await pool.create_device(3)
        await pool.snapshot(5, origin=7)
        assert pool.devices() == [3, 5, 7]
        await pool.delete_device(7)
        await pool.commit()
        await pool.delete_device(3)
        await pool.create_device(4)
        assert (pool.devices(), pool.status().devices, reads) == ([4, 5], 2, [])
        await pool.rollback()
        assert (pool.devices(), pool.status().devices) == ([3, 5], 2)


async def test_deleted_blocks_are_given_back_to_the_device_after_the_commit(path):
    data, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        async with await pool.volume(1) as volume:
            await volume.pwrite(b"x" * 4 * BLOCK, 0)
            await pool.commit()
            await volume.discard(BLOCK, 2 * BLOCK)
            assert data.discarded == []
            await pool.commit()
            assert data.discarded == [(BLOCK, 2 * BLOCK)]
        await pool.snapshot(2, origin=1)
        await pool.delete_device(1)
        await pool.commit()
        assert len(data.discarded) == 1
        data.fails = "discard"
        await pool.delete_device(2)
        await pool.commit()
        assert pool.mode is Mode.WRITE
        assert pool.status().free_data_blocks == 16


# -- commits and failures


async def test_a_rollback_takes_everything_back(path):
    _, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        first = await pool.volume(1)
        await first.pwrite(b"old", 0)
        await pool.snapshot(3, origin=1)
        await pool.commit()
        await first.pwrite(b"new", 0)
        await first.pwrite(b"new", BLOCK)
        await pool.create_device(2)
        second = await pool.volume(2)
        await pool.delete_device(3)
        await pool.rollback()
        assert pool.devices() == [1, 3]
        assert bytes(await first.pread(3, 0)) == b"old"
        assert bytes(await first.pread(3, BLOCK)) == bytes(3)
        with pytest.raises(ClosedError):
            await second.pread(1, 0)
    sound(path)


async def test_commits_happen_in_the_background(path):
    _, pool = await create(path, commit_interval=0.001)
    async with pool:
        await pool.create_device(1)
        while pool.metadata.changed:
            await asyncio.sleep(0.001)
        assert b'dev_id="1"' in thin_dump(path)


@pytest.mark.parametrize("what", ["data", "metadata"])
async def test_a_commit_that_fails_leaves_the_last_one_and_a_pool_that_is_only_read(path, what, monkeypatch):
    data, pool = await create(path)
    await pool.create_device(1)
    volume = await pool.volume(1)
    await volume.pwrite(b"old", 0)
    await pool.commit()
    await volume.pwrite(b"lost", BLOCK)
    await pool.create_device(2)
    if what == "data":
        data.fails = "flush"
    else:

        def fail():
            raise OSError(5, "the metadata device failed")

        monkeypatch.setattr(pool.metadata._device, "sync", fail)
    with pytest.raises(OSError, match="failed"):
        await pool.commit()
    monkeypatch.undo()
    data.fails = ""
    assert pool.mode is Mode.READ_ONLY
    assert bytes(await volume.pread(3, 0)) == b"old"
    for call in (volume.pwrite(b"x", 0), pool.create_device(5), pool.commit(), volume.discard(0, BLOCK)):
        with pytest.raises(PoolReadOnlyError, match=r"because of: .*failed"):
            await call
    await pool.close()
    sound(path)
    async with await reopened(path, data) as pool:
        assert pool.devices() in ([1], [1, 2])


class HeldUpData(MemoryData):
    """Its flush can be held up, and then fails once, as a file's does: the kernel tells a lost write to one fsync only."""

    hold: asyncio.Event | None = None

    async def flush(self):
        if self.hold is not None:
            hold, self.hold = self.hold, None
            await hold.wait()
            raise OSError(5, "written bytes are lost")
        await super().flush()


async def cancelled_commit(pool, data):
    data.hold = hold = asyncio.Event()
    commit = asyncio.create_task(pool.commit())
    while data.hold is not None:
        await asyncio.sleep(0)
    commit.cancel()
    await asyncio.sleep(0)
    assert not commit.done()
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await commit


async def test_a_flush_that_fails_is_not_forgotten_when_its_commit_is_cancelled(path):
    data = HeldUpData()
    pool = await ThinPool.create(path, data, data_bytes=16 * BLOCK, metadata_bytes=2**20, commit_interval=None)
    await pool.create_device(1)
    await pool.commit()
    async with await pool.volume(1) as volume:
        await volume.pwrite(b"lost", 0)
    await cancelled_commit(pool, data)
    with pytest.raises(OSError, match="bytes are lost"):
        await pool.commit()
    assert pool.mode is Mode.READ_ONLY
    assert (await pool.device(1)).mapped_blocks == 0
    await pool.close()
    sound(path)


async def test_a_background_commit_that_fails_while_the_pool_is_closed_is_told(path):
    data = HeldUpData()
    pool = await ThinPool.create(path, data, data_bytes=16 * BLOCK, metadata_bytes=2**20, commit_interval=0.001)
    await pool.create_device(1)
    await pool.commit()
    data.hold = hold = asyncio.Event()
    await pool.create_device(2)
    while data.hold is not None:
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    hold.set()
    with pytest.raises(OSError, match="bytes are lost"):
        await closing
    async with await reopened(path, data) as pool:
        assert pool.devices() == [1]


async def test_closing_twice_at_once_closes_once(path):
    _, pool = await create(path)
    await pool.create_device(1)
    await asyncio.gather(pool.close(), pool.close(), pool.close())
    sound(path)


async def test_nothing_is_read_by_metadata_that_could_not_be_taken_back(path, monkeypatch):
    data, pool = await create(path)
    await pool.create_device(1)
    volume = await pool.volume(1)
    await pool.commit()
    await volume.pwrite(b"uncommitted", 0)

    def fail(*_):
        raise OSError(5, "the metadata device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(pool.metadata._device, "pread", fail)
        with pytest.raises(OSError, match="is gone"):
            await pool.rollback()
    with pytest.raises(ClosedError):
        await volume.pread(1, 0)
    with pytest.raises(PoolReadOnlyError, match="is gone"):
        await pool.create_device(2)
    await pool.close()
    async with await reopened(path, data) as pool:
        assert (await pool.device(1)).mapped_blocks == 0


async def test_a_change_that_breaks_off_marks_the_pool(path, monkeypatch):
    data, pool = await create(path)
    await pool.create_device(1)
    await pool.commit()

    def fail(*_):
        raise OSError(5, "broke off")

    monkeypatch.setattr(pool.metadata._trees.devices, "insert", fail)
    with pytest.raises(OSError, match="broke off"):
        await pool.create_device(2)
    assert pool.status().needs_check
    assert pool.devices() == [1]
    await pool.close()
    with pytest.raises(PoolReadOnlyError, match="needing a check"):
        await reopened(path, data)
    sound(path)


async def test_a_commit_waits_for_writes_under_way_and_holds_back_new_ones(path):
    data, pool = await create(path)
    async with pool:
        await pool.create_device(1)
        volume = await pool.volume(1)
        data.open.clear()
        write = asyncio.create_task(volume.pwrite(b"1" * BLOCK, 0))
        while not data.waiting:
            await asyncio.sleep(0)
        snapshot = asyncio.create_task(pool.snapshot(2, origin=1))
        later = asyncio.create_task(volume.pwrite(b"2" * BLOCK, 0))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not snapshot.done()
        assert pool.devices() == [1]
        data.open.set()
        await asyncio.gather(write, snapshot, later)
        copy = await pool.volume(2)
        assert bytes(await copy.pread(1, 0)) == b"1"
        assert bytes(await volume.pread(1, 0)) == b"2"
