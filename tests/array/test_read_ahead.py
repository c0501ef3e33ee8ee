"""While the program works on one part, the next ones are on their way in and the last ones on their way out."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from memory_controller import InlineController, MemoryController
from turns import settle

import dstorage
import dstorage.blocking
from dstorage.array.core import AsyncPagedArray
from dstorage.array.paged import PagedArray

TILES, TILE_BYTES = 64, 4096


def options(memory):
    return {"budget": 16 * TILE_BYTES, "controllers": [memory], "commit_interval": None, "pressure": None}


@pytest.fixture
async def stored(tmp_path, memory):
    """An array of 64 tiles on a store that has none of them in memory, with room for 16."""
    async with dstorage.open(tmp_path / "store", **options(memory)) as store:
        array = await AsyncPagedArray.create(store, "a", (TILES, 512), tile=(1, 512))
        await array.write(..., np.arange(TILES)[:, None])
    again = MemoryController(medium=memory.medium)
    async with dstorage.open(tmp_path / "store", **options(again)) as store:
        yield again, await AsyncPagedArray.open(store, "a")


async def read_by(controller, array):
    """Numbers of the tiles that the controller was asked for."""
    await settle()
    numbers = {await array._tiles.find(number): number for number in range(TILES)}
    return [numbers[id] for id in controller.reads if id in numbers]


async def test_the_next_tiles_are_read_while_the_program_works_on_one(stored):
    controller, array = stored
    tiles = array.tiles()
    first = await anext(tiles)
    assert (first.data == 0).all()
    asked = await read_by(controller, array)
    assert asked == list(range(len(asked)))
    assert 2 <= len(asked) <= 1 + 16 * 3 / 16
    # The second one is there: it comes even when the controller answers nothing more.
    controller.gate = asyncio.Event()
    assert ((await anext(tiles)).data == 1).all()
    controller.gate.set()
    await tiles.aclose()


def assert_read_once(asked):
    """All were asked for in order, and next to none was thrown out before it was used."""
    assert list(dict.fromkeys(asked)) == list(range(TILES))
    assert len(asked) <= 1.1 * TILES


async def test_every_tile_is_read_once_and_in_order(stored):
    controller, array = stored
    assert [int(block.data[0, 0]) async for block in array.tiles()] == list(range(TILES))
    assert_read_once(await read_by(controller, array))


async def test_tiles_needed_for_several_halos_are_read_once(stored):
    controller, array = stored
    sums = [int(block.data[:, 0].sum()) async for block in array.bands(halo=1)]
    assert sums[1:-1] == [3 * number for number in range(1, TILES - 1)]
    assert_read_once(await read_by(controller, array))


async def test_a_read_of_many_tiles_has_the_next_ones_on_their_way(stored):
    controller, array = stored
    controller.gate = asyncio.Event()
    reading = asyncio.ensure_future(array.read())
    await settle()
    # Reads under way count when they are answered: let all of the first batch be.
    controller.gate.set()
    controller.gate = None
    np.testing.assert_array_equal((await reading)[:, 0], np.arange(TILES))
    assert_read_once(await read_by(controller, array))


async def test_a_copy_of_an_array_has_the_next_tiles_on_their_way(stored):
    controller, array = stored
    other = await AsyncPagedArray.create(array._access.store, "b", (TILES, 512), tile=(2, 256))
    controller.gate = gate = asyncio.Event()
    copying = asyncio.ensure_future(other.write(..., array))
    await settle()
    # Only what was asked for by now is answered.
    gate.set()
    gate.clear()
    asked = await read_by(controller, array)
    assert asked == list(range(len(asked)))
    assert len(asked) > 2
    controller.gate = None
    gate.set()
    await copying
    np.testing.assert_array_equal((await other.read())[:, 0], np.arange(TILES))


async def test_tiles_that_are_replaced_whole_are_not_read(stored):
    controller, array = stored
    await array.write(..., 5)
    async with array.edit(np.s_[3], discard=True) as part:
        part[...] = 6
    assert await read_by(controller, array) == []


async def test_written_tiles_leave_for_the_controller_while_the_program_goes_on(stored):
    controller, array = stored
    await array.write(..., 7)
    await settle()
    # Most of 64 tiles cannot be in memory, of which half may be dirty.
    assert len(controller.writes) >= TILES - 16


def test_plain_code_has_the_next_tiles_on_their_way_too(tmp_path):
    memory = MemoryController()
    with dstorage.blocking.open(tmp_path / "store", **options(memory)) as store:
        PagedArray.create(store, "a", (TILES, 512), tile=(1, 512))[...] = 1
    again = MemoryController(medium=memory.medium)
    with dstorage.blocking.open(tmp_path / "store", **options(again)) as store:
        array = PagedArray.open(store, "a")
        tiles = array.tiles()
        next(tiles)
        store.call(settle)
        before = len(again.reads)
        assert before >= 2
        next(tiles)
        tiles.close()
        assert array.sum() == TILES * 512


async def test_a_large_chunk_that_nobody_waits_for_is_not_read_on_the_loop(tmp_path):
    memory = InlineController()
    async with dstorage.open(tmp_path / "store", **(options(memory) | {"budget": 2**22})) as store:
        handles = [await store.create(size) for size in (2**12, 2**20)]
        small, large = [handle.id for handle in handles]
        for handle in handles:
            handle.release()
    again = InlineController(medium=memory.medium)
    async with dstorage.open(tmp_path / "store", **(options(again) | {"budget": 2**22})) as store:
        store.prefetch([small, large])
        assert again.reads == [small]
        await settle()
        assert again.reads == [small, large]
        assert store.info(large).resident


async def sweep(field, after, **how):
    async for band in field.bands(halo=1, boundary=0, **how):
        async with after.edit(band.slices, discard=True, **how) as new:
            new[...] = band.data[:-2] + band.data[2:]
    await settle()


async def test_of_a_sweep_that_comes_round_again_a_part_stays_in_memory(stored):
    controller, field = stored
    after = await AsyncPagedArray.create(field._access.store, "b", (TILES, 512), tile=(1, 512))
    numbers = np.arange(TILES, dtype=float)
    for turn in range(4):
        controller.reads.clear()
        await sweep(field, after, once=True)
        field, after = after, field
        numbers = np.pad(numbers, 1)[:-2] + np.pad(numbers, 1)[2:]
        if turn:
            assert len(controller.reads) <= TILES - 5, (
                "of 16 in memory, some are read ahead, and some are being written"
            )
    np.testing.assert_array_equal((await field.read())[:, 0], numbers)
    assert field._access.store.stats().used <= 16 * TILE_BYTES


async def test_what_was_looked_at_once_leaves_before_what_was_not(stored):
    controller, array = stored
    kept = await AsyncPagedArray.create(array._access.store, "b", (4, 512), tile=(1, 512))
    await kept.write(..., 1)
    await array._access.store.commit()
    async for _ in array.tiles(once=True):
        pass
    controller.reads.clear()
    assert (await kept.read() == 1).all()
    assert controller.reads == []


async def test_tiles_that_found_no_room_at_first_are_asked_for_again(stored):
    controller, array = stored
    store = array._access.store
    held = await store.create(14 * TILE_BYTES)
    tiles = array.tiles()
    await anext(tiles)
    assert set(await read_by(controller, array)) <= {0, 1}
    held.delete()
    held.release()
    await settle()
    for _ in range(2):
        await anext(tiles)
        await settle()
    controller.gate = asyncio.Event()
    assert ((await anext(tiles)).data == 3).all()
    controller.gate.set()
    await tiles.aclose()
