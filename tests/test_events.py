"""The event stream: every kind with its reason, bounded for slow readers, ended by close."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from memory_controller import MemoryController
from turns import settle

import dstorage
from dstorage import Event, InvalidArgumentError, Lost, TemporarilyUnavailable, TierRule
from dstorage.paging.pressure import Level, Pressure

OPTIONS = {"budget": 100_000, "pressure": None, "commit_interval": None, "tiering": None}


async def fill(store, count, size=1000):
    ids = []
    for _ in range(count):
        with await store.create(bytes(size), wait=5) as handle:
            ids.append(handle.id)
    return ids


async def test_what_leaves_memory_tells_why(store):
    (id,) = await fill(store, 1)
    await store.commit()
    with store.events() as events:
        store.set_budget(1)
        store.set_budget(2**20)
        async with store.handle(id):
            pass
        store.on_pressure(Pressure(Level.CRITICAL, 2**20))
        store.on_pressure(Pressure(Level.NORMAL, 2**20))
        async with store.handle(id):
            pass
        (await store.create(2**20, wait=5)).release()
    reasons = [event.detail async for event in events if event.kind == "evicted" and event.id == id]
    assert reasons == ["limit", "critical", "room"]


async def test_very_many_changes_are_committed_before_their_time(tmp_path):
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=3600.0, pressure=None) as store:
        with store.events() as events:
            for _ in range(5000):
                (await store.create(4096, wait=5)).release()
            async with asyncio.timeout(60):
                async for event in events:
                    if event.kind == "commit":
                        break
        async with dstorage.open(tmp_path, budget=2**20, read_only=True, pressure=None) as reader:
            assert reader.stats().chunks >= 4096


async def test_controllers_chunks_and_copies_are_told(tmp_path):
    fast, slow = MemoryController("fast", rank=50), MemoryController("slow", rank=10)
    rules = {"fast": TierRule(copy_to=("slow",))}
    async with dstorage.open(tmp_path, controllers=[fast, slow], tiers=rules, **OPTIONS) as store:
        with store.events() as events:
            (id,) = await fill(store, 1)
            await store.commit()
            await store.migrate([id], to="slow")
            fast.set_unavailable(True)
            slow.set_unavailable(True)
            store.set_budget(1)
            store.set_budget(100_000)
            with store.handle(id) as handle, pytest.raises(TemporarilyUnavailable) as unavailable:
                await handle
            slow.set_unavailable(False)
            await store.declare_removed("fast")
            with store.handle(99) as handle, pytest.raises(Lost):
                await handle
            with store.handle(id) as handle:
                await handle.get(wait=5)
                handle.delete()
        assert [event async for event in events] == [
            Event("created", id),
            Event("written", id, "fast"),
            Event("copied", id, "slow"),
            Event("commit"),
            Event("moved", id, "slow"),
            Event("controller", 0, "fast: temporarily unavailable"),
            Event("controller", 0, "slow: temporarily unavailable"),
            Event("evicted", id, "limit"),
            Event("unavailable", id, str(unavailable.value)),
            Event("controller", 0, "slow: ok"),
            Event("controller", 0, "fast: temporarily unavailable"),  # Unloaded, before it is
            Event("controller", 0, "fast: removed"),
            Event("lost", 99, "unknown id"),
            Event("resolved", id),
            Event("deleted", id),
        ]


async def test_each_commit_is_told_once_the_last_one_too(tmp_path, memory):
    store = await dstorage.open(tmp_path, controllers=[memory], **OPTIONS)
    events = store.events()
    await fill(store, 1)
    await asyncio.gather(*[store.commit() for _ in range(5)])
    assert store.stats().commits == 1
    await fill(store, 1)
    await store.close()
    assert [event.kind async for event in events].count("commit") == 2


async def test_a_slow_reader_loses_the_oldest_and_slows_nobody(store):
    with store.events(limit=3) as events:
        ids = await fill(store, 10)
        assert events.dropped == 7
    assert [event.id async for event in events] == ids[-3:]


async def test_a_reader_that_breaks_off_or_is_cancelled_costs_nothing_more(store):
    async def first():
        async for event in store.events():
            return event

    reader = asyncio.create_task(first())
    await settle()
    ids = await fill(store, 1)
    assert await asyncio.wait_for(reader, 60) == Event("created", ids[0])
    cancelled = asyncio.create_task(first())
    await settle()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    del reader, cancelled
    gc.collect()
    assert not store._events.streams

    left, closed = store.events(), store.events()
    closed.close()
    left = weakref.ref(left)
    assert left() is None
    assert not store._events.streams


async def test_a_task_that_nobody_holds_reads_on(store):
    seen = []

    async def follow():
        async for event in store.events():
            seen.append(event.id)

    # As programs do, and the loop knows its tasks weakly.
    asyncio.create_task(follow())  # noqa: RUF006
    ids = []
    for _ in range(3):
        await settle()
        gc.collect()
        ids += await fill(store, 1)
    await settle()
    assert seen == ids


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", None, True, 10**30])
async def test_a_limit_that_makes_no_sense_is_refused(store, limit):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        store.events(limit=limit)


async def test_where_two_read_one_stream_each_event_goes_to_one_of_them(store):
    events = store.events()
    readers = [asyncio.create_task(anext(events)) for _ in range(3)]
    await settle()
    # One who does not want to wait any more takes nothing from the others.
    readers.pop(0).cancel()
    ids = await fill(store, 2)
    assert sorted([(await asyncio.wait_for(reader, 60)).id for reader in readers]) == ids
    events.close()


async def test_the_stream_ends_with_the_store(tmp_path, memory):
    store = await dstorage.open(tmp_path, controllers=[memory], **OPTIONS)
    events = store.events()
    waiting = asyncio.create_task(anext(events, None))
    await settle()
    await store.close()
    assert await asyncio.wait_for(waiting, 60) is None
    with pytest.raises(dstorage.ClosedError):
        store.events()


async def test_what_was_deleted_or_replaced_while_it_was_being_written_is_not_told_as_written(tmp_path):
    slow = MemoryController()
    async with dstorage.open(tmp_path, controllers=[slow], **OPTIONS) as store:
        slow.write_gate = asyncio.Event()
        with await store.create(b"deleted") as deleted, await store.create(b"old") as changed, store.events() as events:
            flushes = [asyncio.create_task(handle.flush()) for handle in (deleted, changed)]
            await settle()
            deleted.delete()
            await changed.replace(b"new")
            slow.write_gate.set()
            await asyncio.wait_for(asyncio.gather(*flushes), 60)
            await settle()
            assert events.take() == Event("deleted", deleted.id)
            assert events.take() is None
            assert store.stats().dirty == len(b"new")
