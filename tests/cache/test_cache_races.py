"""Who waits in the middle of a change looks again: everything with a wait, and somebody else at that moment."""

from __future__ import annotations

import asyncio

import pytest

from dstorage import AsyncCache
from dstorage.cache.records import Entry
from dstorage.cache.values import Kind
from dstorage.errors import ClosedError, CorruptData, TooManyHandles

LARGE = bytes(200_000)


@pytest.fixture
def slow(cache, monkeypatch):
    """Every chunk takes a turn of the loop to be written and read, as it does when memory is short."""
    write, read = cache.core.chunks.write, cache.core.chunks.read

    async def write_later(payload, own=False):
        await asyncio.sleep(0)
        return await write(payload, own=own)

    async def read_later(entry):
        await asyncio.sleep(0)
        return await read(entry)

    monkeypatch.setattr(cache.core.chunks, "write", write_later)
    monkeypatch.setattr(cache.core.chunks, "read", read_later)
    monkeypatch.setattr(cache.core, "hot", lambda key: None)
    return cache


async def chunks_of(cache):
    """Chunks there are after a commit, without the settings."""
    await cache.commit()
    return len(list(cache.store.ids())) - 1


async def test_increments(slow):
    assert sorted(await asyncio.gather(*[slow.incr("n") for _ in range(10)])) == list(range(1, 11))
    assert await chunks_of(slow) == 1


@pytest.mark.parametrize("value", [b"small", LARGE])
async def test_adds(slow, value):
    assert sum(await asyncio.gather(*[slow.add("a", value) for _ in range(10)])) == 1
    await slow.set("a", b"")
    assert await chunks_of(slow) == 1
    assert [name for name, _ in slow.store.names(b"cache/cache\0p")] == []


async def test_setdefaults(slow):
    assert len(set(await asyncio.gather(*[slow.setdefault("a", n) for n in range(10)]))) == 1


async def test_pops(slow):
    await slow.set("a", LARGE)
    got = await asyncio.gather(*[slow.pop("a") for _ in range(10)])
    assert [value for value in got if value is not None] == [LARGE]
    assert await chunks_of(slow) == 0


async def test_a_value_replaced_while_it_is_read_is_read_anew(slow):
    await slow.set("a", 1)
    replacement = slow.core.entry("a", slow.core.codec.encode("new"), [await slow.core.chunks.write(b"new")])
    reading = asyncio.create_task(slow.get("a"))
    await asyncio.sleep(0)
    slow.core.publish([replacement])
    assert await reading == "new"
    reading = asyncio.create_task(slow.get("a"))
    await asyncio.sleep(0)
    await slow.delete("a")
    assert await reading is None
    assert slow.stats().lost == 0


async def test_a_cancelled_set_of_a_large_value_leaves_nothing(slow):
    setting = asyncio.create_task(slow.set("a", LARGE))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(list(slow.store.names(b"cache/cache\0p"))) > 0
    setting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await setting
    assert "a" not in slow
    assert await chunks_of(slow) == 0
    assert list(slow.store.names(b"cache/cache\0p")) == []


async def test_a_transaction_that_reads_a_lost_value(cache):
    await cache.set("a", LARGE)
    with cache.store.handle(cache.core.live["a"].id) as handle:
        handle.delete()
    async with cache.transact() as transaction:
        assert await transaction.get("a", "lost") == "lost"
        await transaction.set("a", 1)
    assert await cache["a"] == 1
    assert cache.stats().lost == 1


async def test_parts_that_do_not_add_up_are_a_loss(cache):
    for size in (len(LARGE) - 1, len(LARGE) + 1):
        await cache.set("a", LARGE)
        entry = cache.core.live["a"]
        cache.core.entries.remove(entry)
        wrong = Entry("a", entry.id, Kind.BYTES, size, parts=entry.parts)
        cache.core.entries.put(wrong)
        with pytest.raises(CorruptData, match="add up"):
            await cache.core.chunks.read(wrong)
        assert await cache.get("a") is None


async def test_what_no_handle_is_free_to_delete_is_deleted_at_the_next_opening(store, monkeypatch):
    async with AsyncCache(store) as cache:
        await cache.set("a", 1)
        with monkeypatch.context() as patched:

            def full(id):
                raise TooManyHandles("all referenced")

            patched.setattr(store.table, "get", full)
            assert await cache.delete("a")
        assert await chunks_of(cache) == 1
    async with AsyncCache(store) as cache:
        assert await chunks_of(cache) == 0
        assert len(cache) == 0


async def test_a_later_entry_for_the_same_key_wins(store):
    async with AsyncCache(store) as cache:
        names = cache.core.names
    for value in (b"old", b"new"):
        with await store.create(value) as handle:
            store.set_name(names.of_entry(Entry("k", handle.id, Kind.BYTES, 3))[0], handle.id)
    async with AsyncCache(store) as cache:
        assert await cache["k"] == b"new"
        assert await chunks_of(cache) == 1


@pytest.mark.parametrize("value", [b"small", LARGE])
async def test_a_cache_that_is_closed_while_a_value_is_written_has_it_not(store, monkeypatch, value):
    async with AsyncCache(store) as cache:
        write = cache.core.chunks.write
        going = asyncio.Event()

        async def write_later(payload, own=False):
            await going.wait()
            return await write(payload, own=own)

        monkeypatch.setattr(cache.core.chunks, "write", write_later)
        setting = asyncio.create_task(cache.set("a", value))
        transaction = cache.transact()
        await transaction.__aenter__()
        await asyncio.sleep(0)
    going.set()
    with pytest.raises(ClosedError):
        await setting
    with pytest.raises(ClosedError):
        await transaction.__aexit__(None, None, None)
    async with AsyncCache(store) as cache:
        assert len(cache) == 0
        assert await chunks_of(cache) == 0
