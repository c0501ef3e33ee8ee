"""What a store says about an array is believed only when it fits together; nothing of another array is touched."""

from __future__ import annotations

import asyncio
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_controller import MemoryController

import dstorage
from dstorage.array.core import AsyncPagedArray
from dstorage.array.layout import Layout
from dstorage.array.tiles import DELETED, MAGIC, pack_root, unpack_root


async def root_of(store, name):
    return store.handle(store.get_name(b"array/" + name))


async def change(handle, function):
    async with handle.edit() as buffer:
        function(buffer)


async def test_a_name_that_stands_for_something_else_is_corrupt_data(store):
    with await store.create(b"no array") as handle:
        store.set_name(b"array/a", handle.id)
    with pytest.raises(dstorage.CorruptData, match="'a'"):
        await AsyncPagedArray.open(store, "a")
    store.set_name(b"array/b", 12345)
    with pytest.raises(dstorage.Lost):
        await AsyncPagedArray.open(store, "b")


@settings(max_examples=200)
@given(st.data())
def test_a_changed_root_is_corrupt_data_or_another_sound_description(data):
    layout = Layout.make((5, 6), "f8", (2, 3), 0, 2**20)
    raw = bytearray(pack_root(layout))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    try:
        found, head = unpack_root(memoryview(bytes(raw)), "a", 1)
    except dstorage.CorruptData:
        return
    assert found.tiles * found.dtype.itemsize < 2**62
    assert head <= len(raw)


@pytest.mark.parametrize("length", [0, 2**16 + 1, 2**32 - 1])
def test_a_length_beyond_the_chunk_is_corrupt_data(length):
    with pytest.raises(dstorage.CorruptData):
        unpack_root(memoryview(MAGIC + struct.pack("<I", length) + bytes(100)), "a", 1)


async def test_a_table_that_names_other_chunks_gives_no_bytes_of_theirs(store):
    array = await AsyncPagedArray.create(store, "a", (4, 4), tile=(2, 4))
    await array.write(..., 1)
    with await store.create(b"secret") as secret, await root_of(store, b"a") as root:
        await change(root, lambda ids: struct.pack_into("<Q", ids, len(ids) - 8, secret.id))
        with pytest.raises(dstorage.CorruptData, match="6 bytes, tile 1 of the array has 64"):
            await array.read()
        with pytest.raises(dstorage.CorruptData):
            await array.write((3, 0), 1)
        with pytest.raises(dstorage.CorruptData):
            await array.write(np.s_[2:], 1)
        assert (await array.read(np.s_[:2]) == 1).all()
        # Nor does deleting the array take them along.
        await AsyncPagedArray.delete(store, "a")
        assert bytes(await secret) == b"secret"


async def test_a_node_of_the_wrong_length_is_corrupt_data(store):
    array = await AsyncPagedArray.create(store, "a", 4000, "u1", tile=1)
    await array.write(3000, 1)
    with await store.create(b"no node") as other, await root_of(store, b"a") as root:
        await change(root, lambda ids: struct.pack_into("<Q", ids, len(ids) - 16, other.id))
        with pytest.raises(dstorage.CorruptData, match="7 bytes"):
            await array.read(3000)
        assert await array.read(0) == 0


async def test_a_tile_number_of_no_chunk_is_lost_not_zero(store):
    array = await AsyncPagedArray.create(store, "a", 4)
    with await root_of(store, b"a") as root:
        await change(root, lambda ids: struct.pack_into("<Q", ids, len(ids) - 8, 2**60))
    with pytest.raises(dstorage.Lost):
        await array.read()
    with pytest.raises(dstorage.Lost):
        await array.write(..., 1)


async def test_deleting_goes_on_after_a_crash_in_its_middle(store, tmp_path, memory):
    array = await AsyncPagedArray.create(store, "a", 4000, "u1", tile=1)
    await array.write(np.s_[::50], 1)
    await store.commit()
    chunks = store.stats().chunks
    # As a crash would leave it behind the first step.
    id = store.get_name(b"array/a")
    store.set_name(b"array/a", None)
    store.set_name(DELETED + b"%d" % id, id)
    await store.commit()
    assert store.stats().chunks == chunks
    assert AsyncPagedArray.names(store) == []
    await AsyncPagedArray.create(store, "b", 4)
    await store.commit()
    assert store.stats().chunks == 1
    assert not list(store.names(DELETED))


async def test_what_is_to_be_deleted_but_is_no_array_is_left_alone(store):
    with await store.create(b"mine") as handle:
        store.set_name(DELETED + b"1", handle.id)
        await AsyncPagedArray.create(store, "b", 4)
        assert bytes(await handle) == b"mine"
    assert not list(store.names(DELETED))


async def test_deleting_an_array_whose_tree_names_other_chunks_leaves_them(store):
    array = await AsyncPagedArray.create(store, "a", 4000, "u1", tile=1)
    await array.write(0, 1)
    with await store.create(b"no node") as other, await root_of(store, b"a") as root:
        await change(root, lambda ids: struct.pack_into("<Q", ids, len(ids) - 16, other.id))
        await AsyncPagedArray.delete(store, "a")
        assert bytes(await other) == b"no node"
    assert not list(store.names(DELETED))


async def test_a_tree_that_names_itself_is_deleted_once(store):
    array = await AsyncPagedArray.create(store, "a", 2**40, "u1", tile=1)
    await array.write(0, 1)
    with await root_of(store, b"a") as root:
        (node,) = struct.unpack_from("<Q", await root, len(await root) - 8 * 1024)
    with store.handle(node) as handle:
        await change(handle, lambda ids: struct.pack_into("<1024Q", ids, 0, *[node] * 1024))
    await AsyncPagedArray.delete(store, "a")
    assert store.info(node) is None
    assert not list(store.names(DELETED))


async def test_an_array_that_is_away_does_not_keep_another_from_being_deleted(tmp_path, memory):
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    away = MemoryController("away", rank=1)
    async with dstorage.open(tmp_path / "store", controllers=[away], **options) as store:
        await (await AsyncPagedArray.create(store, "a", 4000, "u1", tile=1)).write(np.s_[::50], 1)
    away = MemoryController("away", rank=1, medium=away.medium)
    async with dstorage.open(tmp_path / "store", controllers=[memory, away], **options) as store:
        await (await AsyncPagedArray.create(store, "b", 4000, "u1", tile=1)).write(np.s_[::50], 1)
        await store.commit()
        away.set_unavailable(True)
        with pytest.raises(dstorage.TemporarilyUnavailable):
            await AsyncPagedArray.delete(store, "a", wait=None)
        await AsyncPagedArray.delete(store, "b", wait=None)
        await store.commit()
        assert AsyncPagedArray.names(store) == []
        assert {store.info(id).controller for id in store.ids()} == {"away"}
        away.set_unavailable(False)
        await asyncio.sleep(0)
        await AsyncPagedArray.create(store, "c", 4)
        await store.commit()
        assert store.stats().chunks == 1
