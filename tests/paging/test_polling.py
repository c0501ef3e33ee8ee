"""Reads that are asked for again on the loop for a moment, before a thread is made to wait for them."""

from __future__ import annotations

import asyncio
import time

import pytest
from memory_controller import MemoryController

import dstorage
from dstorage.paging import lane
from dstorage.paging.lane import MOST_LEFT_OUT, POLLED_CHUNK_BYTES


class Device(MemoryController):
    """Has the bytes of a chunk so many refusals after it was first asked for."""

    def __init__(self):
        super().__init__("device", rank=50)
        self.late = {}
        self.usual = 3
        self.asked = []

    def read_nowait(self, id, locator):
        self.asked.append(id)
        left = self.late.setdefault(id, self.usual)
        self.late[id] = left - 1
        return None if left > 0 else self._get(dstorage.ReadRequest(id, locator))


@pytest.fixture
def device():
    return Device()


@pytest.fixture
async def ids(tmp_path, device, monkeypatch):
    """Chunks that are on the device and not in memory; ids of small ones, the last one large."""
    monkeypatch.setattr(lane, "POLL_S", 5.0)
    async with dstorage.open(tmp_path, budget="4M", commit_interval=None, pressure=None, controllers=[device]) as store:
        made = []
        for number in range(40):
            with await store.create(b"%04d" % number * 100) as handle:
                made.append(handle.id)
        with await store.create(bytes(POLLED_CHUNK_BYTES + 1)) as handle:
            made.append(handle.id)
        await store.commit()
        store.set_budget(1)
        store.set_budget("4M")
        yield store, made


async def begin_of(handle):
    async with handle as data:
        return bytes(data[:4])


async def test_what_comes_soon_needs_no_thread(ids, device):
    store, made = ids
    async with store.handle(made[0]) as data:
        assert data == b"0000" * 100
    assert device.reads == []
    assert device.asked == [made[0]] * 4


async def test_many_at_once_come_in_whatever_order(ids, device):
    store, made = ids
    device.late = {id: (7 * number) % 11 for number, id in enumerate(made)}

    async def read(id):
        async with store.handle(id) as data:
            return bytes(data[:4])

    found = await asyncio.gather(*map(read, made[:20]))
    assert found == [b"%04d" % number for number in range(20)]
    assert device.reads == []


async def test_others_have_their_turns_meanwhile(ids, device):
    store, made = ids
    device.usual = 50
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async with store.handle(made[0]):
        assert turns >= 40
    task.cancel()


async def test_what_does_not_come_is_read_by_a_thread_and_such_a_device_is_asked_less_and_less(
    ids, device, monkeypatch
):
    monkeypatch.setattr(lane, "POLL_S", 0.0)
    store, made = ids
    device.usual = 10**9
    polled = []
    for number in range(40):
        before = len(device.asked)
        async with store.handle(made[number]) as data:
            assert data == b"%04d" % number * 100
        if len(device.asked) - before > 1:
            polled.append(number)
    assert device.reads == made[:40]
    assert polled == [0, 2, 6, 14, 30], "the pauses double"
    assert MOST_LEFT_OUT < 1000


@pytest.fixture
def ticks(monkeypatch):
    """A clock that goes on by one each time it is looked at; nothing is polled for longer than ten."""

    class Clock:
        now = 0

        def perf_counter(self):
            self.now += 1
            return self.now

    monkeypatch.setattr(lane, "time", Clock())
    monkeypatch.setattr(lane, "POLL_S", 10)


async def test_what_does_not_come_waits_for_a_thread_no_longer_because_others_come(ids, device, ticks):
    store, made = ids
    device.late[made[0]] = 10**9
    late = asyncio.create_task(begin_of(store.handle(made[0])))
    read = 0
    for id in made[1:40]:
        async with store.handle(id):
            read += 1
        if late.done():
            break
    assert await late == b"0000"
    assert read < 10


async def test_polling_that_a_large_read_ended_was_not_in_vain(ids, device, ticks):
    store, made = ids
    device.late[made[0]] = 10**9
    late = asyncio.create_task(begin_of(store.handle(made[0])))
    while len(device.asked) < 5:
        await asyncio.sleep(0)
    async with store.handle(made[-1]):
        await late
    lane.time.now += 1000
    before = len(device.reads)
    async with store.handle(made[1]):
        assert len(device.reads) == before, "a new one is polled for as long as any"


async def test_a_device_that_gets_fast_again_is_asked_each_time(ids, device, monkeypatch):
    monkeypatch.setattr(lane, "POLL_S", 0.0)
    store, made = ids
    device.usual = 10**9
    for id in made[:8]:
        async with store.handle(id):
            pass
    device.usual = 1
    for id in made[8:40]:
        async with store.handle(id):
            pass
    assert device.reads == made[:14], "until it was tried again"


async def test_large_chunks_are_left_to_threads_at_once(ids, device):
    store, made = ids
    async with store.handle(made[-1]) as data:
        assert len(data) == POLLED_CHUNK_BYTES + 1
    assert device.asked == [made[-1]]
    assert device.reads == [made[-1]]


async def test_a_controller_that_never_answers_at_once_is_not_polled(tmp_path):
    class Far(MemoryController):
        read_nowait = dstorage.Controller.read_nowait

    far = Far("far", rank=50)
    async with dstorage.open(tmp_path, budget="4M", commit_interval=None, pressure=None, controllers=[far]) as store:
        with await store.create(b"bytes") as handle:
            id = handle.id
        await store.commit()
        store.set_budget(1)
        store.set_budget("4M")
        began = time.perf_counter()
        async with store.handle(id) as data:
            assert data == b"bytes"
        assert time.perf_counter() - began < 5
        assert far.reads == [id]


async def test_a_chunk_deleted_meanwhile_is_not_there_and_the_room_is_free(ids, device):
    store, made = ids
    device.usual = 30
    handle = store.handle(made[0])
    reading = asyncio.create_task(handle.get())
    while len(device.asked) < 5:
        await asyncio.sleep(0)
    handle.delete()
    with pytest.raises(dstorage.Deleted):
        await reading
    handle.release()
    while device.late[made[0]] >= 0:
        await asyncio.sleep(0)
    assert store.stats().used == 0


async def test_the_close_does_not_wait_for_what_does_not_come(tmp_path, device, monkeypatch):
    async with dstorage.open(tmp_path, budget="4M", commit_interval=None, pressure=None, controllers=[device]) as store:
        with await store.create(b"bytes") as handle:
            id = handle.id
        await store.commit()
        store.set_budget(1)
        store.set_budget("4M")
        monkeypatch.setattr(lane, "POLL_S", 0.01)
        device.usual = 10**9
        device.gate = asyncio.Event()
        handle = store.handle(id)
        reading = asyncio.create_task(handle.get())
        while len(device.asked) < 3:
            await asyncio.sleep(0)
        handle.release()
        async with asyncio.timeout(60):
            await store.close()
        with pytest.raises(dstorage.DStorageError):
            await reading
