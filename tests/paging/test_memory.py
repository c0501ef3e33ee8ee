"""What is in memory is accounted to the byte: a store's memory against a plain count, under any history."""

from __future__ import annotations

import asyncio
import random

import pytest
from memory_controller import MemoryController
from turns import settle

import dstorage
from dstorage import MemoryUnavailable

BUDGET = 64 * 1024


@pytest.fixture
async def store(tmp_path, memory):
    async with dstorage.open(
        tmp_path / "store", budget=BUDGET, controllers=[memory], commit_interval=None, pressure=None, tiering=False
    ) as opened:
        yield opened


@pytest.mark.parametrize("seed", range(5))
async def test_used_is_what_is_resident_and_what_is_held_and_never_above_the_budget(store, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[int, bytes] = {}
    held: dict[int, dstorage.Handle] = {}
    for _ in range(600):
        match rng.choice(
            ["create", "create", "read", "read", "replace", "edit", "delete", "hold", "release", "commit"]
        ):
            case "create":
                data = rng.randbytes(rng.randrange(6000))
                with await store.create(data, wait=5) as handle:
                    model[handle.id] = data
            case "read" if model:
                id = rng.choice(list(model))
                async with store.handle(id) as data:
                    assert data == model[id]
            case "replace" if model:
                id = rng.choice(list(model))
                model[id] = rng.randbytes(rng.randrange(6000))
                with store.handle(id) as handle:
                    await handle.replace(model[id], wait=5)
            case "edit" if model:
                id = rng.choice(list(model))
                if model[id]:
                    with store.handle(id) as handle:
                        async with handle.edit(wait=5) as buf:
                            buf[0] ^= 1
                    model[id] = bytes([model[id][0] ^ 1]) + model[id][1:]
            case "delete" if model:
                id = rng.choice(list(model))
                if id not in held:
                    with store.handle(id) as handle:
                        handle.delete()
                    del model[id]
            case "hold" if model and len(held) < 4:
                id = rng.choice(list(model))
                if id not in held:
                    held[id] = store.handle(id)
                    await held[id]
            case "release" if held:
                id, handle = held.popitem()
                assert handle.data == model[id]
                handle.release()
            case "commit":
                await store.commit()
        stats = store.stats()
        assert stats.used <= BUDGET
        resident = [handle for handle in store.table.handles.values() if handle.buffer is not None]
        assert stats.used - stats.stray == sum(handle.size for handle in resident)
        assert stats.dirty == sum(handle.size for handle in resident if handle.dirty)
    for handle in held.values():
        handle.release()
    assert {id: bytes(await read(store, id)) for id in model} == model


async def read(store, id):
    async with store.handle(id) as data:
        return bytes(data)


@pytest.mark.parametrize("data", [b"", b"x", bytearray(1)], ids=["empty", "one", "one zero"])
async def test_contents_that_the_interpreter_shares_are_no_strays(store, data):
    for _ in range(100):
        with await store.create(data) as handle:
            await handle.replace(data)
            async with handle.edit():
                pass
    await store.commit()
    store.set_budget(1)
    store.set_budget(BUDGET)
    async with store.handle(handle.id):
        pass
    with store.handle(handle.id) as again:
        again.delete()
    assert len(store._memory._strays) == 0
    store.set_budget(1)
    assert store.stats().stray == 0
    assert store.stats().used <= 1


async def test_what_references_hold_stays_and_the_error_says_who(store):
    handles = [await store.create(bytes(16 * 1024)) for _ in range(4)]
    await store.commit()
    with pytest.raises(MemoryUnavailable, match=r"4 chunks are referenced, the largest: \d+ \(16384 B, 1 refs\)"):
        await store.create(b"x")
    with pytest.raises(MemoryUnavailable, match="more than the whole budget"):
        await store.create(bytes(BUDGET + 1))
    waiting = asyncio.create_task(store.create(b"x", wait=60))
    await settle()
    assert not waiting.done()
    handles.pop().release()
    (await asyncio.wait_for(waiting, 60)).release()
    for handle in handles:
        handle.release()


async def test_who_waits_has_an_answer_however_little_is_dirty(store):
    with await store.create(bytes(1024)) as handle:
        id = handle.id
    await store.commit()
    held = [await store.create(BUDGET - 1024)]
    await store.commit()
    for few in (1000, 0):
        held.append(await store.create(few))
        with store.handle(id) as handle, pytest.raises(MemoryUnavailable, match=", 0 dirty"):
            await asyncio.wait_for(handle, 60)
        held.append(await store.create(0))
        with pytest.raises(MemoryUnavailable, match=", 0 dirty"):
            await asyncio.wait_for(store.create(2048, wait=0.01), 60)
    for handle in held:
        handle.release()


async def test_where_nobody_takes_what_is_dirty_the_error_says_so(store, memory):
    memory.capacity = 0
    with pytest.raises(
        MemoryUnavailable, match=r"What is dirty cannot leave: no room to write .* controllers memory are full"
    ):
        await produce(store, 100)
    memory.capacity = None


async def produce(store, count):
    for _ in range(count):
        (await store.create(bytes(2000))).release()


async def test_a_producer_is_slowed_at_the_share_that_may_be_dirty(tmp_path):
    slow = MemoryController()
    slow.write_gate = asyncio.Event()
    async with dstorage.open(
        tmp_path / "store", budget=BUDGET, controllers=[slow], dirty_share=0.25, commit_interval=None, pressure=None
    ) as store:

        async def produce():
            for _ in range(100):
                (await store.create(bytes(1024), wait=60)).release()

        producer = asyncio.create_task(produce())
        await settle(200)
        assert not producer.done()
        assert store.stats().dirty <= BUDGET / 4
        slow.write_gate.set()
        await asyncio.wait_for(producer, 60)
        assert store.stats().dirty <= BUDGET / 4


async def test_a_large_request_is_not_starved_by_small_ones(store):
    made = 0

    async def produce_small():
        nonlocal made
        while not large.done() and made < 5000:
            (await store.create(bytes(1024), wait=60)).release()
            made += 1
            await asyncio.sleep(0)

    large = asyncio.get_running_loop().create_future()
    producers = [asyncio.create_task(produce_small()) for _ in range(8)]
    await settle()
    (await store.create(bytes(BUDGET // 2 - 1024), wait=60)).release()
    large.set_result(None)
    await asyncio.gather(*producers)
    assert made < 500


async def test_where_nothing_is_written_who_fits_need_not_stand_behind_who_does_not(store):
    held = [await store.create(bytes(BUDGET // 4)) for _ in range(3)]
    await store.commit()
    large = asyncio.create_task(store.create(bytes(BUDGET // 2), wait=60))
    await settle()
    # Whoever holds what the large one needs may need this to get on.
    small = await asyncio.wait_for(store.create(bytes(1024)), 60)
    assert not large.done()
    for handle in (small, *held):
        handle.release()
    (await asyncio.wait_for(large, 60)).release()


async def test_many_who_wait_for_memory_do_not_keep_the_loop_busy(store):
    ids = []
    for _ in range(400):
        with await store.create(bytes(1024), wait=5) as handle:
            ids.append(handle.id)
    await store.commit()
    held = [await store.create(bytes(BUDGET // 4)) for _ in range(2)]
    await store.commit()
    held += [await store.create(bytes(BUDGET // 4)) for _ in range(2)]
    await store.commit()

    async def read(id):
        with store.handle(id) as handle:
            return len(await handle.get(wait=60))

    began = store.loop.time()
    with store.events() as tries:
        readers = [asyncio.create_task(read(id)) for id in ids]
        await asyncio.sleep(0.3)
    tried = len([event async for event in tries if event.kind == "unavailable"])
    assert len(ids) <= tried + tries.dropped <= len(ids) + 3000 * (store.loop.time() - began)
    for handle in held:
        handle.release()
    assert await asyncio.gather(*readers) == [1024] * len(ids)


async def test_clean_victims_are_kept_ahead_so_that_reads_need_not_wait_for_writes(store, memory):
    for _ in range(200):
        (await store.create(bytes(1024), wait=5)).release()
    await settle(200)
    # The background writer keeps half of what may be dirty free of its own accord.
    assert store.stats().dirty <= BUDGET / 4
    written = len(memory.writes)
    async with store.handle(1):
        pass
    assert len(memory.writes) == written


async def test_one_pass_over_everything_does_not_flush_what_is_used_again_and_again(store, memory):
    hot = []
    for _ in range(20):
        with await store.create(bytes(1024), wait=5) as handle:
            hot.append(handle.id)
    for _ in range(300):
        (await store.create(bytes(1024), wait=5)).release()
    await store.commit()
    for _ in range(5):
        for id in hot:
            await read(store, id)
    for id in range(max(hot) + 1, max(hot) + 301):
        await read(store, id)
    memory.reads.clear()
    for id in hot:
        await read(store, id)
    assert len(memory.reads) <= len(hot) // 4


async def test_a_closed_store_has_nothing_in_memory_but_what_is_held(tmp_path, memory):
    store = await dstorage.open(tmp_path / "other", budget=BUDGET, controllers=[memory], pressure=None)
    held = await store.create(b"held")
    view = held.data
    for _ in range(20):
        (await store.create(bytes(1000))).release()
    with pytest.warns(ResourceWarning, match="still referenced"):
        await store.close()
    assert view == b"held"
    assert store.memory_used == len(b"held")


async def test_a_smaller_budget_first_takes_what_nobody_looks_at_any_more(store):
    views = []
    for _ in range(6):
        with await store.create(bytes(4096)) as handle:
            views.append(handle.data[1:])
            handle.delete()
    made = []
    for _ in range(8):
        with await store.create(bytes(4096)) as handle:
            made.append(handle)
    await store.commit()
    assert store.stats().stray == 6 * 4096
    views.clear()
    store.set_budget(8 * 4096)
    assert all(handle.buffer is not None for handle in made)
    assert store.stats().used == 8 * 4096


async def test_what_arrives_after_the_budget_was_shrunk_leaves_as_what_was_there_did(store, memory):
    ids = []
    for _ in range(30):
        with await store.create(bytes(1000)) as handle:
            ids.append(handle.id)
    await store.commit()
    store.set_budget(1)
    store.set_budget(BUDGET)
    memory.gate = asyncio.Event()
    held = [store.handle(id) for id in ids[:10]]
    reads = [asyncio.ensure_future(handle.get()) for handle in held]
    store.prefetch(ids[10:])
    await settle()
    store.set_budget(5000)
    memory.gate.set()
    await asyncio.wait(reads)
    del reads
    await settle()
    # What nobody holds has left; what is held stays.
    assert store.memory_used == 10_000
    for handle in held:
        handle.release()
    assert store.memory_used <= 5000


async def test_who_waits_for_a_release_slows_nobody_who_needs_none(store):
    held = [await store.create(bytes(BUDGET // 4)) for _ in range(3)]
    await store.commit()
    large = asyncio.create_task(store.create(bytes(BUDGET // 2), wait=60))
    await settle()
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.05)

    counting = asyncio.create_task(count())
    for _ in range(200):
        with await store.create(bytes(100), wait=60) as small:
            await small.replace(bytes(200), wait=60)
    counting.cancel()
    # One at a time, each after a look, they took 200 of these.
    assert turns < 100
    assert not large.done()
    for handle in held:
        handle.release()
    (await asyncio.wait_for(large, 60)).release()


async def test_who_waits_for_more_than_a_lowered_budget_is_told(store):
    with await store.create(bytes(BUDGET - 1000)):
        await store.commit()
        waiting = asyncio.create_task(store.create(bytes(BUDGET // 2), wait=60))
        await settle()
        store.set_budget(BUDGET // 4)
        with pytest.raises(MemoryUnavailable, match="more than the whole budget"):
            await asyncio.wait_for(waiting, 30)


async def test_a_page_in_that_waits_for_more_than_is_allowed_since_is_told(store, memory):
    with await store.create(bytes(BUDGET // 2)) as handle:
        id = handle.id
    await store.commit()
    with await store.create(bytes(BUDGET // 4)) as first, await store.create(bytes(BUDGET // 2)):
        await store.commit()
        memory.write_gate = asyncio.Event()
        await first.replace(bytes(BUDGET // 4))
        with store.handle(id) as handle:
            reading = asyncio.ensure_future(handle.get())
            await settle()
            assert not reading.done()
            store.set_budget(BUDGET // 4)
            await asyncio.wait([reading], timeout=30)
            memory.write_gate.set()
            with pytest.raises(MemoryUnavailable, match="more than the whole budget"):
                await asyncio.wait_for(reading, 30)


async def test_the_error_counts_what_no_chunk_holds(store):
    with await store.create(bytes(BUDGET // 2)) as handle:
        await store.commit()
        async with handle.edit():
            with pytest.raises(
                MemoryUnavailable, match=f"; {BUDGET // 2} bytes are for reads, edits and writes under way"
            ):
                await store.create(b"x")


async def test_contents_that_were_written_are_not_taken_for_looked_at(tmp_path):
    """The thread that wrote them would else be found to know them still, and others would leave in their stead."""
    async with dstorage.open(tmp_path / "store", budget=BUDGET, pressure=None, commit_interval=None) as store:
        for _ in range(300):
            with await store.create(bytes(BUDGET // 16), wait=60) as handle:
                await handle.flush()
            store.set_budget(1)
            assert store.stats().stray == 0
            store.set_budget(BUDGET)


async def test_what_was_chosen_to_leave_is_written_though_others_could_leave_first(store, memory):
    rest = []
    for _ in range(96):
        with await store.create(bytes(1024), wait=5) as handle:
            rest.append(handle.id)
    await store.commit()
    store.set_budget(1)
    store.set_budget(BUDGET)
    dirty = []
    for _ in range(16):
        with await store.create(bytes(1024)) as handle:
            dirty.append(handle.id)
    for _ in range(4):
        for id in rest:
            await read(store, id)
    await settle()
    assert not [id for id in dirty if id not in memory.writes]


async def test_a_page_in_that_waits_for_room_and_is_not_wanted_any_more_stands_in_nobody_s_way(store, memory):
    with await store.create(bytes(BUDGET // 2)) as handle:
        id = handle.id
    await store.commit()
    with await store.create(bytes(BUDGET // 2 + 2000)):
        await store.commit()
        memory.write_gate = asyncio.Event()
        (await store.create(b"dirty")).release()
        with store.handle(id) as handle:
            reading = asyncio.ensure_future(handle.get())
            await settle()
            waited = store._memory.wanted
            handle.delete()
            waits = store._memory.wanted
            memory.write_gate.set()
            with pytest.raises(dstorage.Deleted):
                await asyncio.wait_for(reading, 60)
    assert waited
    assert not waits


async def test_who_waits_has_an_answer_in_time_though_something_is_dirty_all_the_time(store):
    with await store.create(bytes(BUDGET // 2 + 2000)), await store.create(b"") as hot:
        await store.commit()

        async def change():
            number = 0
            while True:
                number += 1
                hot.replace_nowait(b"%d" % number)
                await asyncio.sleep(0)

        changing = asyncio.create_task(change())
        for wait in (None, 0.5):
            with pytest.raises(MemoryUnavailable, match="chunks are referenced"):
                await asyncio.wait_for(store.create(bytes(BUDGET // 2), wait=wait), 60)
        changing.cancel()


async def test_many_who_wait_for_a_release_are_no_work_for_each_other(store):
    with await store.create(bytes(BUDGET // 2 + 2000)):
        await store.commit()
        waiting = [asyncio.create_task(store.create(bytes(BUDGET // 2), wait=60)) for _ in range(50)]
        await settle()
        tried = 0
        reserve = store._memory.reserve

        def counting(*args, **options):
            nonlocal tried
            tried += 1
            return reserve(*args, **options)

        store._memory.reserve = counting
        for _ in range(100):
            store._memory.poke()
        assert tried <= 100
        store._memory.reserve = reserve
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert not store._memory.wanted
