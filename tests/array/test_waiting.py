"""What waits can be given up, lets others work meanwhile, and leaves nothing reserved behind."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from memory_controller import MemoryController
from turns import settle

import dstorage
from dstorage.array.core import AsyncPagedArray

TILE_BYTES = 4096


@pytest.fixture
async def small(tmp_path, memory):
    """A store with room for 16 tiles, of which 8 may be dirty."""
    async with dstorage.open(
        tmp_path / "store", budget=16 * TILE_BYTES, controllers=[memory], commit_interval=None, pressure=None
    ) as opened:
        yield opened


async def test_a_write_that_waits_for_the_controller_can_be_cancelled(small, memory):
    array = await AsyncPagedArray.create(small, "a", (64, 512), tile=(1, 512))
    memory.write_gate = asyncio.Event()
    writing = asyncio.ensure_future(array.write(..., 1))
    await settle()
    assert not writing.done()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    memory.write_gate.set()
    await small.commit()
    stats = small.stats()
    assert stats.dirty == 0
    assert stats.used == sum(info.size for id in small.ids() if (info := small.info(id)).resident)
    written = int(await array.sum()) // 512
    assert 0 < written < 64
    await array.write(..., 2)
    assert await array.sum() == 2 * 64 * 512


async def test_a_chunk_that_is_away_is_waited_for(small, memory):
    array = await AsyncPagedArray.create(small, "a", (64, 512), tile=(1, 512))
    await array.write(..., 1)
    await small.commit()
    memory.set_unavailable(True)
    reading = asyncio.ensure_future(array.read())
    await settle()
    assert not reading.done()
    memory.set_unavailable(False)
    assert (await reading == 1).all()


async def test_with_no_wait_what_is_away_is_told_at_once(small, memory):
    array = await AsyncPagedArray.create(small, "a", (64, 512), tile=(1, 512), wait=None)
    await array.write(..., 1)
    await small.commit()
    memory.set_unavailable(True)
    with pytest.raises(dstorage.TemporarilyUnavailable):
        await array.read()


@pytest.mark.parametrize("wait", [-1, float("nan"), "1"])
async def test_a_wait_that_makes_no_sense_changes_nothing(store, wait):
    await AsyncPagedArray.create(store, "a", 4)
    for call in (AsyncPagedArray.open, AsyncPagedArray.delete):
        with pytest.raises(dstorage.InvalidArgumentError, match="wait="):
            await call(store, "a", wait=wait)
    with pytest.raises(dstorage.InvalidArgumentError, match="wait="):
        await AsyncPagedArray.create(store, "b", 4, wait=wait)
    assert AsyncPagedArray.names(store) == ["a"]


async def test_views_that_fill_the_budget_are_named_as_the_reason(small):
    array = await AsyncPagedArray.create(small, "a", (64, 512), tile=(1, 512), wait=None)
    await array.write(..., 1)
    kept = []

    async def keep_all():
        async for tile in array.tiles():
            kept.append(tile.data)

    with pytest.raises(dstorage.MemoryUnavailable, match="held by stray views"):
        await keep_all()
    kept.clear()
    assert await array.sum() == 64 * 512


async def test_a_tile_as_large_as_may_be_dirty_finds_room_for_its_entry_in_the_tree(tmp_path, memory):
    async with dstorage.open(
        tmp_path / "store", budget=2**20, dirty_share=0.2, controllers=[memory], commit_interval=None, pressure=None
    ) as store:
        array = await AsyncPagedArray.create(store, "a", 2**30, "u1", tile=2**18, wait=None)
        for tile in (0, 2**11, 2**12 - 1):
            await array.write(tile * 2**18, 1)
        assert await array.read(2**30 - 2**18) == 1


async def test_others_on_the_loop_have_their_turn_between_tiles(store):
    array = await AsyncPagedArray.create(store, "a", (64, 8), tile=(1, 8))
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    for work in (array.write(..., 1), array.read(), array.sum()):
        before = turns
        await work
        assert turns - before >= 60
    task.cancel()


async def test_an_array_that_is_deleted_under_a_writer_is_deleted(small):
    array = await AsyncPagedArray.create(small, "a", (8, 512), tile=(1, 512))
    await array.write(np.s_[0], 1)
    edits = [array.edit(np.s_[row], discard=True) for row in (0, 1)]
    for edit in edits:
        (await edit.__aenter__())[...] = 2
    await AsyncPagedArray.delete(small, "a")
    for edit in edits:
        with pytest.raises((dstorage.Deleted, dstorage.Lost)):
            await edit.__aexit__(None, None, None)
    with pytest.raises(dstorage.Deleted):
        await array.write(np.s_[2], 1)
    assert small.stats().dirty == 0


async def test_what_is_written_into_an_array_that_is_being_deleted_is_not_left_behind(tmp_path, memory):
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    async with dstorage.open(tmp_path / "store", controllers=[memory], **options) as store:
        array = await AsyncPagedArray.create(store, "a", 4000, "u1", tile=1)
        for tile in (0, 2000):
            await array.write(tile, 1)
    again = MemoryController(medium=memory.medium)
    async with dstorage.open(tmp_path / "store", controllers=[again], **options) as store:
        array = await AsyncPagedArray.open(store, "a")
        again.gate = gate = asyncio.Event()
        deleting = asyncio.ensure_future(AsyncPagedArray.delete(store, "a"))
        await settle()
        assert not deleting.done()
        with pytest.raises(dstorage.Deleted):
            await array.write(3000, 1)
        again.gate = None
        gate.set()
        await deleting
        await store.commit()
        assert store.stats().chunks == 0


async def test_a_store_can_be_closed_while_a_read_waits_for_room(tmp_path, memory):
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    store = await dstorage.open(
        tmp_path / "store", budget=4 * TILE_BYTES, controllers=[memory], commit_interval=None, pressure=None
    )
    array = await AsyncPagedArray.create(store, "a", (64, 512), tile=(1, 512))
    await array.write(..., 1)
    await store.commit()
    kept = [await array.view(np.s_[row]) for row in range(3)]
    reading = asyncio.ensure_future(array.read())
    await settle()
    assert not reading.done()
    await store.close()
    with pytest.raises((dstorage.TemporarilyUnavailable, dstorage.ClosedError, dstorage.MemoryUnavailable)):
        await reading
    del kept
    await asyncio.sleep(0.12)
    assert not problems
