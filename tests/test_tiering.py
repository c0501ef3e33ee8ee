"""Sleep-time tiering: hot chunks up, cold ones down, at a rate, and nobody notices."""

from __future__ import annotations

import asyncio

from memory_controller import MemoryController

import dstorage
from dstorage import TieringRules


def opening(path, *controllers, **options):
    return dstorage.open(
        path, **{"budget": 50_000, "controllers": controllers, "commit_interval": None, "pressure": None} | options
    )


async def fill(store, count, controller=None):
    ids = []
    for number in range(count):
        with await store.create(bytes([number % 256]) * 1000, controller=controller) as handle:
            ids.append(handle.id)
    await store.commit()
    store._writeback.pinned.clear()
    return ids


async def page_in(store, ids, times):
    for _ in range(times):
        store.set_budget(1)
        store.set_budget(50_000)
        for id in ids:
            async with store.handle(id):
                pass


def kept_on(store, ids):
    return [store.info(id).controller for id in ids]


async def test_what_is_read_again_moves_up_and_what_is_read_once_does_not(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=100_000), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=False) as store:
        ids = await fill(store, 20, "slow")
        await page_in(store, ids[:5], 2)
        await page_in(store, ids[5:10], 1)
        assert await store.tiering.step() == 5
        assert kept_on(store, ids) == ["fast"] * 5 + ["slow"] * 15


async def test_a_full_controller_gives_its_coldest_down_to_the_low_mark(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=20_500), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600, high=0.9, low=0.5)) as store:
        ids = await fill(store, 20)
        assert kept_on(store, ids) == ["fast"] * 20
        await page_in(store, ids[10:], 1)
        assert await store.tiering.step() == 10
        await store.commit()
        assert kept_on(store, ids) == ["slow"] * 10 + ["fast"] * 10
        assert fast.used == 10_000
        for number, id in enumerate(ids):
            async with store.handle(id) as data:
                assert data == bytes([number]) * 1000


async def test_the_rate_bounds_a_step(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600, rate=1)) as store:
        ids = await fill(store, 10, "slow")
        await page_in(store, ids, 2)
        assert await store.tiering.step() == 3


async def test_it_works_by_itself_only_while_the_store_is_idle_and_not_paused(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=0.01)) as store:
        store.tiering.paused = True
        ids = await fill(store, 5, "slow")
        await page_in(store, ids, 2)
        with store.events() as events:
            store.tiering.paused = False
            async with asyncio.timeout(10):
                moved = [await anext(aiter(events)) for _ in range(5)]
        assert [event.kind for event in moved] == ["moved"] * 5
        assert kept_on(store, ids) == ["fast"] * 5


async def test_ids_stay_valid_while_they_are_read_and_written(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=30_000), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600)) as store:
        ids = await fill(store, 60)
        model = {id: bytes([number]) * 1000 for number, id in enumerate(ids)}

        async def use():
            for round_ in range(6):
                for id in ids:
                    if (id + round_) % 7 == 0:
                        model[id] = bytes([round_]) * 900
                        with store.handle(id) as handle:
                            await handle.replace(model[id])
                    async with store.handle(id) as data:
                        assert data == model[id]
                    await asyncio.sleep(0)

        async def tier():
            for _ in range(30):
                await store.tiering.step()
                await store.commit()
                await asyncio.sleep(0)

        await asyncio.gather(use(), tier())
        await store.commit()
    async with opening(
        tmp_path, MemoryController("fast", medium=fast.medium), MemoryController("slow", medium=slow.medium)
    ) as store:
        for id in ids:
            async with store.handle(id) as data:
                assert data == model[id]
