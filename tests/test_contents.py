"""What a chunk can be made of."""

from __future__ import annotations

import asyncio
import ctypes

import numpy as np
import pytest
from memory_controller import MemoryController

import dstorage
from dstorage import InvalidArgumentError
from dstorage.testing import LoggingController


@pytest.fixture
async def store(tmp_path):
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        yield store


@pytest.mark.parametrize("kind", [int, np.int8, np.uint8, np.int32, np.int64, np.uint64])
async def test_a_whole_number_of_any_kind_is_a_number_of_zeros(store, kind):
    with await store.create(kind(100)) as handle:
        assert await handle == bytes(100)
    with store.create_nowait(kind(100)) as handle:
        assert await handle == bytes(100)
    with await store.create(kind(0)) as handle:
        assert await handle == b""


@pytest.mark.parametrize(
    "wrong", [True, False, np.True_, 1.0, np.float64(8), 1j, np.int64(-1), -1, np.uint64(2**63), 2**31]
)
async def test_what_is_neither_bytes_nor_a_size_makes_no_chunk(store, wrong):
    with pytest.raises(InvalidArgumentError, match=r"give bytes|a chunk of"):
        await store.create(wrong)
    with pytest.raises(InvalidArgumentError, match=r"give bytes|a chunk of"):
        store.create_nowait(wrong)
    for thing in ("text", None, [1]):
        with pytest.raises(TypeError):
            await store.create(thing)
    assert store.stats().used == 0


@pytest.mark.parametrize(
    ("data", "size"),
    [(np.arange(3, dtype="u4"), 12), (np.array(5, dtype="u4"), 4), (np.array([True]), 1), ((ctypes.c_int * 3)(), 12)],
)
async def test_an_array_is_its_bytes(store, data, size):
    with await store.create(data) as handle:
        assert bytes(await handle) == bytes(memoryview(data))
        assert handle.size == size


async def test_places_freed_in_one_turn_of_the_loop_are_freed_together_and_before_the_end(tmp_path):
    log = LoggingController(MemoryController())
    async with dstorage.open(
        tmp_path, controllers=[log], budget=2**20, commit_interval=None, pressure=None, tiering=False
    ) as store:
        handles = [await store.create(b"data", durable=False) for _ in range(5)]
        for handle in handles:
            await handle.flush()
        for handle in handles[:3]:
            handle.delete()
        await asyncio.sleep(0)
        for handle in handles[3:]:
            handle.delete()
        for handle in handles:
            handle.release()
    ids = [handle.id for handle in handles]
    assert [call.ids for call in log.named("discard")] == [tuple(ids[:3]), tuple(ids[3:])]


async def test_what_is_dirty_is_written_in_steps_and_not_chunk_by_chunk(tmp_path):
    log = LoggingController(MemoryController())
    async with dstorage.open(
        tmp_path, controllers=[log], budget=2**20, commit_interval=None, pressure=None, tiering=False
    ) as store:
        handles = []
        for _ in range(72):
            # Half of what may be dirty are 64 chunks; an eighth more are 80.
            handles.append(await store.create(bytes(4096), durable=False))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not log.named("write"), "no step yet"
        for _ in range(9):
            handles.append(await store.create(bytes(4096), durable=False))
        await handles[0].flush()
        written = [id for call in log.named("write") for id in call.ids]
        assert len(log.named("write")) == 1
        assert written == [handle.id for handle in handles[: len(written)]], "the longest dirty first"
        assert 16 <= len(written) <= 17, "down to half"
        for handle in handles:
            handle.release()


async def test_many_are_deleted_at_once_whoever_knows_them(tmp_path):
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None, tiering=False) as store:
        made = [await store.create(b"%d" % number, durable=number % 2 == 0) for number in range(6)]
        ids = [handle.id for handle in made]
        for handle in made:
            await handle.flush()
        await store.commit()
        held, kept = made[1:3]
        for handle in made:
            if handle is not held:
                handle.release()
        del made, handle
        store.set_budget(1)
        store.set_budget(2**20)
        assert store.stats().handles == 1, (
            "one is held; another is in somebody's hands, but not in the table; the others are nowhere"
        )
        with store.handle(ids[5]) as gone:
            gone.delete()
        with store.events() as events:
            assert store.contents.delete_each([*ids, ids[3], 2**63]) == 5, "those that were there, each once"
            told = list(iter(events.take, None))
        assert [(event.kind, event.id) for event in told] == [("deleted", id) for id in ids[:5]]
        assert held.status is kept.status is dstorage.Status.DELETED
        held.release()
        await store.commit()
        assert not list(store.ids())
        assert store.controllers()[0].space.used == 0
    async with dstorage.open(tmp_path, budget=2**20, pressure=None) as store:
        assert not list(store.ids())
    with pytest.raises(dstorage.ClosedError):
        store.contents.delete_each([ids[0]])
