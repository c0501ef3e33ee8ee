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
