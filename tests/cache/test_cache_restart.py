"""What holds over restarts, and what a damaged or hostile store does to a cache."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dstorage
from dstorage import AsyncCache
from dstorage.cache.records import Entry, Names
from dstorage.cache.values import Kind
from dstorage.errors import CorruptData, UsageError, VersionError
from dstorage.testing import FakeClock

PREFIX = b"cache/cache\0"


def opened(path, **options):
    return AsyncCache(path, budget="2M", pressure=False, commit_interval=None, **options)


async def test_entries_with_expiry_and_tag_and_order(tmp_path, clock):
    async with opened(tmp_path, clock=clock) as cache:
        await cache.set("text", "a", expire=100, tag="t")
        await cache.set(("grid", 1), np.eye(300), tag=("long", "x" * 1000))
        await cache.set("k" * 3000, 1.5)
        await cache.set_missing("none", "why", expire=50)
    clock.advance(49)
    async with opened(tmp_path, clock=clock) as cache:
        assert list(cache) == ["text", ("grid", 1), "k" * 3000]
        assert cache.info("text") == dstorage.CacheEntryInfo(1, 1100.0, "t")
        assert (await cache[("grid", 1)] == np.eye(300)).all()
        assert cache.keys(tag=("long", "x" * 1000)) == [("grid", 1)]
        assert await cache["k" * 3000] == 1.5
        assert await cache.missing("none") == "why"
    clock.advance(51)
    async with opened(tmp_path, clock=clock) as cache:
        assert "text" not in cache
        assert await cache.expire() == 2


async def test_the_limit_is_kept_and_holds_from_the_first_moment(tmp_path):
    async with opened(tmp_path, size_limit=10_000) as cache:
        await cache.set_many({n: bytes(1000) for n in range(20)})
        assert len(cache) == 8
    async with opened(tmp_path) as cache:
        assert cache.size_limit == 10_000
        await cache.set("new", bytes(1000))
        assert cache.volume <= 10_000
    async with opened(tmp_path, size_limit=3000) as cache:
        assert cache.volume <= 3000
        assert "new" in cache
    async with opened(tmp_path, size_limit=None) as cache:
        assert cache.size_limit is None
    async with opened(tmp_path) as cache:
        assert cache.size_limit is None


async def test_many_entries_are_read_in_parts_between_which_others_run(tmp_path, store):
    async with AsyncCache(store) as cache:
        await cache.set_many({("k" * 900, n) if n % 100 == 0 else n: b"" for n in range(5000)})
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    async with AsyncCache(store) as cache:
        assert len(cache) == 5000
        assert turns >= 2
    counting.cancel()


async def test_the_default_limit_is_one_gibibyte(tmp_path):
    async with opened(tmp_path) as cache:
        assert cache.size_limit == 2**30


async def test_a_value_of_an_unnamed_serializer_is_not_read(tmp_path):
    async with opened(tmp_path, serializer="pickle") as cache:
        await cache.set("a", {1, 2})
    async with opened(tmp_path) as cache:
        with pytest.raises(UsageError, match="pickle"):
            await cache.get("a")
        assert await cache.delete("a")


async def test_half_written_values_of_a_crash_are_deleted(store, clock):
    async with AsyncCache(store, clock=clock) as cache:
        await cache.set("a", 1)
        transaction = cache.transact()
        await transaction.__aenter__()
        await transaction.set("b", bytes(200_000))
        names = list(store.names(PREFIX + b"p"))
        assert len(names) == 4
        await store.commit()
        # As if the process had ended here: the cache is opened anew over what was committed.
        transaction._core = None
        transaction._turns.give_back()
    async with AsyncCache(store, clock=clock) as cache:
        assert list(store.names(PREFIX + b"p")) == []
        assert list(cache) == ["a"]
        await store.commit()
        assert len(list(store.ids())) == 2


async def test_damaged_records_are_dropped_with_a_warning(tmp_path, store):
    async with AsyncCache(store) as cache:
        await cache.set("a", 1)
    store.set_name(PREFIX + b"e" + b"\xff" * 20, 12345)
    store.set_name(PREFIX + b"e", 77)
    cache = AsyncCache(store)
    with pytest.warns(RuntimeWarning, match="2 damaged records"):
        await cache
    assert list(cache) == ["a"]
    await cache.close()
    async with AsyncCache(store) as cache:
        assert await cache["a"] == 1


async def test_damaged_settings_are_told_and_replaced(store):
    async with AsyncCache(store, size_limit=5000):
        pass
    for raw in (b"{", b"[]", b'{"size_limit": -5}', b'{"size_limit": "1"}', b"\xff" * 10_000, b"[" * 4096):
        with await store.create(raw) as handle:
            store.set_name(PREFIX + b"s", handle.id)
        cache = AsyncCache(store)
        with pytest.warns(RuntimeWarning, match="settings are damaged"):
            await cache
        assert cache.size_limit == 2**30
        await cache.close()
        # Told once: they are replaced.
        async with AsyncCache(store) as cache:
            assert cache.size_limit == 2**30


async def test_settings_that_are_damaged_or_away_cost_no_entry(store, memory, monkeypatch):
    monkeypatch.setattr("dstorage.cache.loading.DEFAULT_SIZE_LIMIT", 1000)
    async with AsyncCache(store, size_limit=5000) as cache:
        await cache.set_many({number: bytes(72) for number in range(20)})
    await store.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    memory.set_unavailable(True)
    cache = AsyncCache(store)
    with pytest.warns(RuntimeWarning, match="cannot be had now"):
        await cache
    assert (len(cache), cache.size_limit) == (20, 4000)
    await cache.close()
    memory.set_unavailable(False)
    async with AsyncCache(store) as cache:
        assert (len(cache), cache.size_limit) == (20, 5000)
    with await store.create(b"{") as handle:
        store.set_name(PREFIX + b"s", handle.id)
    cache = AsyncCache(store)
    with pytest.warns(RuntimeWarning, match="damaged"):
        await cache
    assert (len(cache), cache.size_limit) == (20, 4000)
    await cache.close()


async def test_settings_of_a_newer_format_are_left_untouched(store):
    with await store.create(b'{"format": 2, "limits": {}}') as handle:
        store.set_name(PREFIX + b"s", handle.id)
    with pytest.raises(VersionError, match="upgrade"):
        await AsyncCache(store)
    assert store.get_name(PREFIX + b"s") == handle.id


async def test_a_newer_format_is_left_untouched(store):
    entry = Entry("a", 5, Kind.BYTES, 1)
    name = bytearray(Names("cache").of_entry(entry)[0])
    name[len(PREFIX) + 1 + 9] = 2
    store.set_name(bytes(name), 5)
    with pytest.raises(VersionError, match="upgrade"):
        await AsyncCache(store)
    assert store.get_name(bytes(name)) == 5
    async with AsyncCache(store, name="other"):
        pass


@pytest.mark.parametrize("kind", [Kind.FLOAT, Kind.BOOL, Kind.NONE, Kind.ARRAY, Kind.SCALAR])
@pytest.mark.parametrize("size", [3, 4])
async def test_an_entry_that_points_at_other_bytes_is_not_believed(store, kind, size):
    """Whoever can write the catalog can point an entry anywhere; what is there is checked against what the entry says."""
    with await store.create(b"\xff\xfe\xfd") as handle:
        id = handle.id
        store.set_name(Names("cache").of_entry(Entry("a", id, kind, size))[0], id)
    async with AsyncCache(store) as cache:
        if size == 3:
            with pytest.raises(CorruptData, match="'a'"):
                await cache.get("a")
        else:
            assert await cache.get("a") is None
            assert cache.stats().lost == 1


@given(st.lists(st.tuples(st.binary(max_size=100), st.integers(1, 50)), max_size=5), st.integers(0, 2**32))
@settings(max_examples=30)
def test_any_names_in_the_catalog_make_a_cache_that_works(names, seed):
    import tempfile
    import warnings

    async def main():
        with tempfile.TemporaryDirectory() as folder:
            async with dstorage.open(folder, budget="1M", pressure=False, commit_interval=None) as store:
                genuine = Names("cache").of_entry(Entry("k", 7, Kind.STR, 3, tag="t"))[0]
                damaged = bytearray(genuine)
                damaged[random.Random(seed).randrange(len(PREFIX), len(genuine))] ^= 1 << seed % 8
                for name, id in [*names, (bytes(damaged)[len(PREFIX) :], 7)]:
                    store.set_name(PREFIX + name, id)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    try:
                        cache = await AsyncCache(store, clock=FakeClock(0))
                    except VersionError:
                        return
                for key in list(cache):
                    assert await cache.get(key) is None
                await cache.set("k", b"works")
                assert await cache["k"] == b"works"
                assert cache.keys() == ["k"]
                await cache.close()

    asyncio.run(main())


async def test_after_a_restart_keys_come_in_the_order_of_last_writing(store):
    async with AsyncCache(store) as cache:
        await cache.set_many({"a": 1, "b": 2, "c": 3})
        await cache.set("a", 4)
        assert list(cache) == ["a", "b", "c"]
    async with AsyncCache(store) as cache:
        assert list(cache) == ["b", "c", "a"]
