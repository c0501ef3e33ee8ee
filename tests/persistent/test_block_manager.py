"""Cached blocks under locks: what is read was checked, what is written is sealed, the superblock comes last."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from memory_device import MemoryDevice

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.block_file import BlockFile
from dstorage.persistent.block_manager import BlockManager
from dstorage.persistent.errors import (
    BlockLockError,
    DamagedMetadataError,
    DeadlockError,
    ReadOnlyMetadataError,
    WouldBlockError,
)
from dstorage.persistent.validators import Validator

KIND = Validator("test block", 4711)
OTHER = Validator("other block", 4712)


def body(data):
    return bytes(data[16:20])


def write(manager, number, text, kind=KIND):
    block = manager.write_lock_zero(number, kind)
    block.data[16 : 16 + len(text)] = text
    manager.unlock(block)


@pytest.fixture
def device():
    return MemoryDevice(64)


@pytest.fixture
def manager(device):
    return BlockManager(device)


# -- bytes


def test_what_was_flushed_is_read_by_another_manager(device, manager):
    write(manager, 5, b"five")
    manager.flush()
    block = BlockManager(device).read_lock(5, KIND)
    assert body(block.data) == b"five"
    with pytest.raises(TypeError):
        block.data[0] = 1


def test_blocks_locked_as_zero_are_zero_and_not_read(device, manager):
    device.bytes[5 * 4096 : 6 * 4096] = b"\xff" * 4096
    block = manager.write_lock_zero(5, KIND)
    assert not any(block.data)
    assert not device.reads


@pytest.mark.parametrize("at", [0, 8, 100, 4095])
def test_a_damaged_block_is_named_and_never_given(device, manager, at):
    write(manager, 5, b"five")
    manager.flush()
    device.bytes[5 * 4096 + at] ^= 0x40
    again = BlockManager(device)
    for _ in range(2):
        with pytest.raises(DamagedMetadataError, match="test block in block 5 of memory: wrong checksum") as caught:
            again.read_lock(5, KIND)
        assert caught.value.block == 5
        with pytest.raises(DamagedMetadataError):
            again.peek(5, KIND, body)
    assert not len(again)


def test_a_block_in_another_ones_place_is_damage(device, manager):
    write(manager, 5, b"five")
    manager.flush()
    device.bytes[6 * 4096 : 7 * 4096] = device.bytes[5 * 4096 : 6 * 4096]
    with pytest.raises(DamagedMetadataError, match="it says that it is block 5"):
        manager.read_lock(6, KIND)


def test_there_is_nothing_outside_of_the_device(manager):
    for number in (64, 2**63, -1):
        with pytest.raises(DamagedMetadataError, match="outside"):
            manager.read_lock(number, KIND)
        with pytest.raises(DamagedMetadataError, match="outside"):
            manager.write_lock_zero(number, KIND)


def test_a_block_is_of_one_kind_until_it_is_made_anew(device, manager):
    write(manager, 5, b"five")
    with pytest.raises(DamagedMetadataError, match="in use as a test block"):
        manager.read_lock(5, OTHER)
    write(manager, 5, b"othr", OTHER)
    assert body(manager.read_lock(5, OTHER).data) == b"othr"
    manager.flush()
    with pytest.raises(DamagedMetadataError, match="checksum"):
        BlockManager(device).read_lock(5, KIND)


# -- flushing


def test_the_superblock_is_written_after_everything_else_is_durable(device, manager):
    write(manager, 0, b"root")
    for number in (7, 3, 4):
        write(manager, number, b"leaf")
    manager.flush()
    assert device.written() == [3, 4, 7, None, 0, None]
    assert len([entry for entry in device.log if entry]) == 3
    device.log.clear()
    manager.flush()
    assert device.written() == [None]


@pytest.mark.parametrize("succeed", range(5))
def test_a_failed_flush_never_lets_the_superblock_go_first(device, manager, succeed):
    write(manager, 0, b"root")
    for number in (3, 7):
        write(manager, number, b"leaf")
    device.fails_after = succeed
    with pytest.raises(OSError, match="failed"):
        manager.flush()
    assert device.written() == [3, 7, None, 0, None][:succeed]
    device.fails_after = None
    device.log.clear()
    manager.flush()
    assert device.written()[-2:] == ([0, None] if succeed < 4 else [None])


def test_flushing_under_a_write_lock_is_a_mistake(device, manager):
    block = manager.write_lock_zero(5, KIND)
    with pytest.raises(BlockLockError, match="block 5 is locked for writing"):
        manager.flush()
    manager.unlock(block)
    manager.flush()
    assert device.written() == [5, None]


def test_what_is_dropped_is_as_on_the_device(manager):
    write(manager, 5, b"old.")
    manager.flush()
    write(manager, 5, b"new.")
    manager.drop()
    assert manager.peek(5, KIND, body) == b"old."


# -- the cache


def test_the_cache_is_bounded_and_loses_nothing(device):
    manager = BlockManager(device, cache_blocks=16)
    for number in range(64):
        write(manager, number, b"%4d" % number)
        assert len(manager) <= 16
    assert 0 not in device.written()
    for number in range(64):
        assert manager.peek(number, KIND, body) == b"%4d" % number
        assert len(manager) <= 16
    manager.flush()
    for number in range(64):
        assert BlockManager(device).peek(number, KIND, body) == b"%4d" % number


def test_what_is_used_often_stays(device):
    manager = BlockManager(device, cache_blocks=16)
    for number in range(1, 64):
        write(manager, number, b"text")
    manager.flush()
    manager.peek(1, KIND, body)
    device.reads = 0
    for number in range(2, 64):
        manager.peek(number, KIND, body)
        manager.peek(1, KIND, body)
    assert device.reads == 62


def test_locked_blocks_stay_however_many(device):
    manager = BlockManager(device, cache_blocks=16)
    blocks = [manager.write_lock_zero(number, KIND) for number in range(1, 40)]
    for block in blocks:
        block.data[16:20] = b"%4d" % block.number
        manager.unlock(block)
    for number in range(1, 40):
        assert manager.peek(number, KIND, body) == b"%4d" % number


def test_a_cache_too_small_to_work_is_refused(device):
    with pytest.raises(InvalidArgumentError, match="16"):
        BlockManager(device, cache_blocks=15)


def test_views_are_decoded_once_until_the_block_is_written(manager):
    write(manager, 5, b"five")
    calls = []

    def decode(data):
        calls.append(1)
        return body(data)

    assert [manager.peek(5, KIND, decode) for _ in range(3)] == [b"five"] * 3
    assert len(calls) == 1
    block = manager.write_lock(5, KIND)
    block.data[16:20] = b"cinq"
    with pytest.raises(BlockLockError, match="by this thread"):
        manager.peek(5, KIND, decode)
    manager.unlock(block)
    assert manager.peek(5, KIND, decode) == b"cinq"
    assert len(calls) == 2


def test_prefetching_asks_for_runs_that_are_not_in_memory(device, manager):
    write(manager, 5, b"five")
    manager.prefetch([3, 4, 5, 6, 9, 64])
    assert device.wanted == [(2 * 4096, 3 * 4096), (4096, 6 * 4096), (4096, 9 * 4096)]


def test_a_fetched_block_is_read_while_others_use_the_manager(device, manager):
    for number in (5, 6):
        write(manager, number, b"old.")
    manager.flush()
    manager.drop()
    real, begun, go_on = device.pread, threading.Event(), threading.Event()

    def slow(length, offset):
        data = real(length, offset)
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert go_on.wait(10)
        return data

    device.pread = slow
    with ThreadPoolExecutor(1) as threads:
        fetched = threads.submit(manager.fetch, 5, KIND)
        assert begun.wait(10)
        write(manager, 5, b"new.")
        manager.flush()
        manager.drop()
        go_on.set()
        fetched.result(10)
        # What was read is older than what was written meanwhile.
        assert not len(manager)
        assert manager.peek(5, KIND, body) == b"new."
        threads.submit(manager.fetch, 6, KIND).result(10)
        device.reads = 0
        assert manager.peek(6, KIND, body) == b"old."
        threads.submit(manager.fetch, 6, KIND).result(10)
        assert not device.reads
        with pytest.raises(DamagedMetadataError):
            threads.submit(manager.fetch, 99, KIND).result(10)


def test_a_grown_device_has_more_blocks(device, manager):
    manager.grow(80)
    assert manager.nr_blocks == 80
    write(manager, 79, b"last")
    manager.flush()
    manager.grow(10)
    assert manager.nr_blocks == 80


def test_read_only_refuses_to_write(device):
    manager = BlockManager(device, read_only=True)
    for lock in (manager.write_lock, manager.write_lock_zero):
        with pytest.raises(ReadOnlyMetadataError, match="read only"):
            lock(5, KIND)


def test_a_file_of_blocks(tmp_path):
    path = tmp_path / "metadata"
    path.write_bytes(bytes(10 * 4096 + 5))
    file = BlockFile(path)
    manager = BlockManager(file)
    assert manager.nr_blocks == 10
    write(manager, 9, b"nine")
    manager.prefetch([1, 2])
    manager.grow(12)
    manager.flush()
    file.close()
    file.close()
    reading = BlockFile(path, read_only=True)
    assert BlockManager(reading, read_only=True).peek(9, KIND, body) == b"nine"
    assert reading.pread(100, 12 * 4096 - 50) == bytes(50)
    with pytest.raises(OSError, match="file descriptor"):
        reading.pwrite(b"x", 0)
    reading.close()


# -- locks


def test_readers_share_and_a_writer_does_not(manager):
    write(manager, 5, b"five")
    first, second = manager.read_lock(5, KIND), manager.read_lock(5, KIND)
    with pytest.raises(BlockLockError, match="block 5 is locked by this thread already"):
        manager.write_lock(5, KIND)
    manager.unlock(first)
    manager.unlock(second)
    block = manager.write_lock(5, KIND)
    for lock in (manager.read_lock, manager.write_lock, manager.write_lock_zero):
        with pytest.raises(BlockLockError, match="by this thread already"):
            lock(5, KIND)
    manager.unlock(block)
    with pytest.raises(BlockLockError, match="unlocked before"):
        manager.unlock(block)


def test_upgrading_needs_the_only_read_lock(manager):
    write(manager, 5, b"five")
    first, second = manager.read_lock(5, KIND), manager.read_lock(5, KIND)
    with pytest.raises(BlockLockError, match="2 read locks"):
        manager.upgrade(first)
    manager.unlock(second)
    block = manager.upgrade(first)
    block.data[16:20] = b"more"
    with pytest.raises(BlockLockError):
        manager.unlock(first)
    with pytest.raises(BlockLockError):
        manager.upgrade(block)
    manager.unlock(block)
    assert manager.peek(5, KIND, body) == b"more"


def test_trying_neither_waits_nor_reads(device, manager):
    write(manager, 5, b"five")
    manager.flush()
    manager.drop()
    with pytest.raises(WouldBlockError, match="block 5"):
        manager.read_try_lock(5, KIND)
    with pytest.raises(WouldBlockError, match="block 5"):
        manager.peek_cached(5, KIND, body)
    manager.unlock(manager.read_lock(5, KIND))
    assert body(manager.read_try_lock(5, KIND).data) == b"five"
    assert manager.peek_cached(5, KIND, body) == b"five"
    block = manager.write_lock_zero(6, KIND)
    with pytest.raises(WouldBlockError):
        manager.read_try_lock(6, KIND)
    manager.unlock(block)


def waiting(manager, count):
    """Return when so many threads wait for locks."""
    while len(manager._locks._waits) < count:
        pass


def test_threads_wait_for_each_other(manager):
    write(manager, 5, b"five")
    seen = []

    def change(text):
        block = manager.write_lock(5, KIND)
        seen.append(body(block.data))
        block.data[16:20] = text
        manager.unlock(block)

    reading = manager.read_lock(5, KIND)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(change, b"one.")
        waiting(manager, 1)
        # One that comes later waits behind the writer; this thread, which reads already, does not.
        later = threads.submit(lambda: manager.peek(5, KIND, body))
        waiting(manager, 2)
        manager.unlock(manager.read_lock(5, KIND))
        assert not first.done()
        assert not later.done()
        manager.unlock(reading)
        first.result(10)
        assert later.result(10) == b"one."
    assert seen == [b"five"]


def test_two_upgrades_of_one_block_are_a_deadlock_that_one_is_told_of(manager):
    write(manager, 5, b"five")
    ready = threading.Barrier(2)

    def other():
        block = manager.read_lock(5, KIND)
        ready.wait(10)
        block = manager.upgrade(block)
        manager.unlock(block)

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(other)
        mine = manager.read_lock(5, KIND)
        ready.wait(10)
        waiting(manager, 1)
        with pytest.raises(DeadlockError, match="block 5"):
            manager.upgrade(mine)
        manager.unlock(mine)
        future.result(10)


def test_a_circle_of_waits_is_told(manager):
    for number in (5, 6, 7):
        write(manager, number, b"text")
    ready = threading.Barrier(3)

    def hold_and_want(mine, wanted):
        block = manager.write_lock(mine, KIND)
        ready.wait(10)
        manager.unlock(manager.read_lock(wanted, KIND))
        manager.unlock(block)

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(hold_and_want, 5, 6), threads.submit(hold_and_want, 6, 7)]
        block = manager.write_lock(7, KIND)
        ready.wait(10)
        waiting(manager, 2)
        with pytest.raises(DeadlockError, match="block 5"):
            manager.write_lock(5, KIND)
        manager.unlock(block)
        for future in futures:
            future.result(10)


def test_another_threads_lock_cannot_be_released(manager):
    write(manager, 5, b"five")
    block = manager.write_lock(5, KIND)
    with ThreadPoolExecutor(1) as threads, pytest.raises(BlockLockError, match="by this thread"):
        threads.submit(manager.unlock, block).result(10)
    manager.unlock(block)


def test_a_block_that_is_waited_for_stays_in_memory(device):
    """Else whoever waits would get bytes that nobody will ever write."""
    manager = BlockManager(device, cache_blocks=16)
    for number in range(64):
        write(manager, number, b"old.")
    manager.flush()

    def change():
        block = manager.upgrade(manager.read_lock(5, KIND))
        block.data[16:20] = b"new."
        manager.unlock(block)

    held = manager.write_lock(5, KIND)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(change)
        waiting(manager, 1)
        with manager._mutex:
            # It is unlocked, and pushed out if it can be, before the other thread gets to it.
            manager.unlock(held)
            manager.flush()
            for number in range(20, 64):
                manager.peek(number, KIND, body)
                manager.peek(number, KIND, body)
        waiter.result(10)
    manager.flush()
    assert body(device.bytes[5 * 4096 :]) == b"new."


@pytest.mark.parametrize("lock", ["read_lock", "write_lock"])
def test_a_block_that_became_another_kind_while_it_was_waited_for_is_not_given(manager, lock):
    write(manager, 5, b"five")
    held = manager.write_lock(5, KIND)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(getattr(manager, lock), 5, KIND)
        waiting(manager, 1)
        with manager._mutex:
            manager.unlock(held)
            write(manager, 5, b"else", OTHER)
        with pytest.raises(DamagedMetadataError, match="in use as a other block"):
            waiter.result(10)
    # Nobody holds it.
    manager.unlock(manager.write_lock(5, OTHER))
