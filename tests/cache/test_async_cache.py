"""What a program sees of `AsyncCache`, call by call."""

from __future__ import annotations

import asyncio
import datetime
import os
import tracemalloc
import warnings

import numpy as np
import pytest

import dstorage
from dstorage.cache.asynchronous import AsyncCache
from dstorage.cache.entries import ENTRY_BYTES
from dstorage.errors import ClosedError, InvalidArgumentError, MemoryUnavailable, ReadOnlyError, UsageError


async def test_what_is_set_is_got(cache):
    await cache.set("a", b"one")
    assert await cache.get("a") == b"one"
    assert await cache["a"] == b"one"
    assert await cache.get("b") is None
    assert await cache.get("b", 5) == 5
    with pytest.raises(KeyError):
        await cache["b"]


async def test_none_is_a_value(cache):
    await cache.set("a", None)
    assert "a" in cache
    assert await cache.get("a", 1) is None


async def test_arrays_share_memory_with_the_cache(cache):
    grid = np.arange(1000.0).reshape(10, 100)
    await cache.set(("grid", 1), grid)
    one, other = await cache.get(("grid", 1)), await cache.get(("grid", 1))
    assert np.shares_memory(one, other)
    assert (one == grid).all()
    mine = await cache.get(("grid", 1), copy=True)
    mine[0] = 1
    assert not np.shares_memory(one, mine)


async def test_bytes_are_given_out_without_a_copy_also_when_they_came_from_a_controller(cache, store):
    await cache.set("a", bytes(50_000))
    await cache.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    first = await cache.get("a")
    assert first == bytes(50_000)
    assert await cache.get("a") is first
    assert await cache.get("a", copy=True) is not first


@pytest.fixture
async def disk_cache(tmp_path):
    """A cache in a directory, committing only when told."""
    async with AsyncCache(tmp_path / "c", budget="64M", commit_interval=None, pressure=False) as opened:
        yield opened


async def cool(cache):
    """Have nothing in memory."""
    await cache.commit()
    cache.store.set_budget(1)
    cache.store.set_budget("64M")


@pytest.mark.parametrize("size", [50_000, 500_000])
async def test_what_get_many_brought_into_memory_is_given_out_without_a_copy(disk_cache, size):
    await disk_cache.set_many({"a": os.urandom(size), "b": os.urandom(size)})
    await cool(disk_cache)
    first = (await disk_cache.get_many(["a", "b"]))["a"]
    assert await disk_cache.get("a") is first


async def test_a_large_value_is_read_from_the_disk_into_the_bytes_that_are_given_out(disk_cache):
    size = 2**20
    value = os.urandom(size)
    await disk_cache.set("a", value)
    await cool(disk_cache)
    tracemalloc.start()
    try:
        assert await disk_cache.get("a") == value
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * size


async def test_many_at_once_let_others_have_the_loop(cache):
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    keys = range(1000)
    watch = asyncio.create_task(other())
    for work, argument in ((cache.set_many, dict.fromkeys(keys, 1)), (cache.get_many, keys), (cache.delete_many, keys)):
        turns = 0
        await work(argument)
        assert turns >= 2
    watch.cancel()


async def test_expiry_to_the_moment(cache, clock):
    await cache.set("a", 1, expire=10)
    clock.advance(9.75)
    assert await cache.get("a") == 1
    assert "a" in cache
    clock.advance(0.25)
    assert await cache.get("a") is None
    assert "a" not in cache
    assert len(cache) == 0
    assert await cache.expire() == 1
    assert cache.volume == 0


async def test_touch_moves_the_expiry(cache, clock):
    await cache.set("a", 1, expire=10, tag="t")
    assert await cache.touch("a", 20)
    clock.advance(15)
    assert await cache.get("a") == 1
    assert cache.info("a") == dstorage.cache.CacheEntryInfo(1, 1020.0, "t")
    assert await cache.touch("a")
    clock.advance(1e9)
    assert await cache.get("a") == 1
    assert not await cache.touch("b", 5)


async def test_the_reaper_removes_what_has_expired(store, clock):
    async with AsyncCache(store, clock=clock, reap_interval=0.001) as cache:
        for number in range(1000):
            await cache.set(number, b"x", expire=5)
        clock.advance(5)
        async with asyncio.timeout(60):
            while cache.stats().entries:
                await asyncio.sleep(0.001)
        assert cache.stats().expired == 1000
        assert list(store.names(b"cache/cache\0e")) == []


async def test_add_does_it_once(cache, clock):
    assert await cache.add("a", 1, expire=5)
    assert not await cache.add("a", 2)
    assert await cache.get("a") == 1
    clock.advance(5)
    assert await cache.add("a", 3)
    done = await asyncio.gather(*[cache.add("b", n) for n in range(20)])
    assert sum(done) == 1


async def test_pop_gives_it_to_one(cache):
    await cache.set("a", "value", tag="t")
    got = await asyncio.gather(*[cache.pop("a") for _ in range(20)])
    assert sorted(got, key=str) == [None] * 19 + ["value"]
    assert await cache.pop("a", "default") == "default"
    assert cache.keys(tag="t") == []


async def test_incr_loses_none(cache, clock):
    assert await asyncio.gather(*[cache.incr("n") for _ in range(50)]) == list(range(1, 51))
    assert await cache.decr("n", 8) == 42
    assert await cache.incr("x", 0.5, default=1) == 1.5
    with pytest.raises(KeyError):
        await cache.incr("y", default=None)
    await cache.set("z", 1, expire=10, tag="t")
    await cache.incr("z")
    assert cache.info("z") == dstorage.cache.CacheEntryInfo(1, 1010.0, "t")
    await cache.set("text", "1")
    with pytest.raises(InvalidArgumentError, match="no sum"):
        await cache.incr("text")
    assert await cache.get("text") == "1"


async def test_delete_says_whether_it_was_there(cache):
    await cache.set("a", 1)
    assert await cache.delete("a")
    assert not await cache.delete("a")
    assert "a" not in cache


async def test_setdefault(cache):
    assert await cache.setdefault("a", 1) == 1
    assert await cache.setdefault("a", 2) == 1


async def test_tags(cache):
    await cache.set("a", 1, tag="red")
    await cache.set("b", 2, tag="red")
    await cache.set("c", 3, tag=("blue", 7))
    assert cache.tags() == ["red", ("blue", 7)]
    assert cache.keys(tag="red") == ["a", "b"]
    await cache.set("b", 2)
    assert await cache.evict("red") == 1
    assert list(cache) == ["b", "c"]
    assert await cache.evict("red") == 0


async def test_listing_by_prefix_and_range(cache):
    for key in ["user:2", "user:1", "users", 10, 9, ("a", 2), ("a", 1, "x"), ("b",)]:
        await cache.set(key, 1)
    assert cache.keys() == [9, 10, "user:1", "user:2", "users", ("a", 1, "x"), ("a", 2), ("b",)]
    assert cache.keys("user:") == ["user:1", "user:2"]
    assert cache.keys(("a",), reverse=True) == [("a", 2), ("a", 1, "x")]
    assert cache.keys(start=10, stop="users") == [10, "user:1", "user:2"]


async def test_many_at_once(cache):
    await cache.set_many({n: str(n) for n in range(100)}, tag="t")
    assert await cache.get_many([5, 7, 1000]) == {5: "5", 7: "7"}
    assert await cache.delete_many([5, 7, 1000]) == 2
    assert len(cache) == 98
    assert {key async for key, _ in cache.items()} == set(cache)
    assert sorted([value async for value in cache.values()]) == sorted(str(key) for key in cache)
    assert await cache.clear() == 98
    assert len(cache) == 0


async def test_remembered_misses(cache, clock):
    await cache.set("a", 1)
    await cache.set_missing("a", "no such user", expire=10)
    assert await cache.get("a") is None
    assert "a" not in cache
    assert await cache.missing("a") == "no such user"
    assert len(cache) == 0
    assert list(cache) == []
    assert await cache.pop("a", 3) == 3
    clock.advance(10)
    assert await cache.missing("a") is None
    await cache.set_missing("a", expire=10)
    assert await cache.add("a", 2)
    assert await cache.missing("a") is None


async def test_the_limit_holds_and_what_was_used_stays(cache):
    await cache.set_size_limit(10 * (1000 + ENTRY_BYTES))
    for number in range(100):
        await cache.set(number, bytes(1000))
        assert await cache.get(0) is not None
        assert cache.volume <= cache.size_limit
    assert len(cache) == 10
    assert cache.stats().culled == 90


async def test_what_has_expired_leaves_first(cache, clock):
    await cache.set_size_limit(3 * (1000 + ENTRY_BYTES))
    await cache.set("old", bytes(1000))
    await cache.set("dead", bytes(1000), expire=1)
    await cache.set("young", bytes(1000))
    clock.advance(1)
    await cache.set("new", bytes(1000))
    assert list(cache) == ["old", "young", "new"]


async def test_what_has_expired_is_listed_nowhere(cache, clock):
    await cache.set("a", 1, tag="red", expire=10)
    await cache.set("b", 2, tag="blue", expire=20)
    await cache.set_missing("c", expire=10)
    assert (len(cache), cache.tags()) == (2, ["red", "blue"])
    clock.advance(10)
    assert (len(cache), cache.tags(), list(cache), cache.keys()) == (1, ["blue"], ["b"], ["b"])


async def test_culling_a_large_cache_lets_others_have_the_loop(cache):
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await cache.set_many(dict.fromkeys(range(1000), 1))
    watch = asyncio.create_task(other())
    await cache.set_size_limit(1000)
    assert turns >= 2
    watch.cancel()
    assert cache.volume <= 1000


async def test_a_value_that_needs_room_makes_no_more_than_that(cache, clock):
    await cache.set_size_limit(1000 * (1000 + ENTRY_BYTES))
    await cache.set_many({number: bytes(872) for number in range(100)}, expire=1)
    await cache.set_size_limit(100_000)
    clock.advance(1)
    await cache.set("new", bytes(2872))
    assert cache.stats().expired == 3
    assert cache.volume == 100_000


async def test_a_value_larger_than_the_limit_is_refused_and_harms_nothing(cache, store):
    await cache.set_size_limit(5000)
    await cache.set("a", b"small")
    with pytest.raises(InvalidArgumentError, match="size_limit"):
        await cache.set("a", bytes(5000))
    assert await cache.get("a") == b"small"
    await cache.set("b", bytes(5000 - ENTRY_BYTES))
    assert list(cache) == ["b"]


async def test_values_larger_than_a_chunk(cache, store):
    large = np.arange(200_000)
    await cache.set("a", large)
    assert (await cache.get("a") == large).all()
    await cache.set("b", large.tobytes())
    assert await cache.get("b") == large.tobytes()
    await cache.set("b", b"")
    await cache.delete("a")
    await cache.commit()
    assert len(list(store.ids())) == 2, "one value and the settings"
    assert len(list(store.names(b"cache/"))) == 2


async def test_stats_count_hits_and_misses(cache):
    await cache.set("a", bytes(100))
    await cache.get("a")
    await cache.get("b")
    await cache.get("b")
    stats = cache.stats(reset=True)
    assert (stats.hits, stats.misses, stats.entries, stats.volume) == (1, 2, 1, 100 + ENTRY_BYTES)
    assert cache.stats().misses == 0


@pytest.mark.parametrize("key", [1.5, None, ["a"], {"a": 1}, ("a", [])])
async def test_what_is_no_key_is_refused_by_every_call(cache, key):
    for call in (cache.get, cache.delete, cache.pop, cache.touch, cache.incr):
        with pytest.raises(InvalidArgumentError, match="keys are"):
            await call(key)
    with pytest.raises(InvalidArgumentError, match="keys are"):
        await cache.set(key, 1)
    with pytest.raises(InvalidArgumentError, match="keys are"):
        key in cache  # noqa: B015
    with pytest.raises(InvalidArgumentError, match="keys are"):
        await cache.evict(key)
    if key is not None:
        with pytest.raises(InvalidArgumentError, match="keys are"):
            cache.keys(tag=key)


@pytest.mark.parametrize("expire", [-1, float("nan"), float("inf"), "10", datetime.timedelta(1)])
async def test_what_is_no_time_is_refused(cache, expire):
    with pytest.raises(InvalidArgumentError, match="expire"):
        await cache.set("a", 1, expire=expire)
    assert len(cache) == 0


async def test_a_refused_set_leaves_nothing_behind(cache, store):
    await cache.commit()
    before = list(store.ids())
    for arguments in [{"value": object()}, {"value": 1, "tag": 1.5}, {"value": 1, "expire": -1}]:
        with pytest.raises((InvalidArgumentError, TypeError)):
            await cache.set("a", **arguments)
    await cache.commit()
    assert list(store.ids()) == before


async def test_values_that_are_held_fill_the_budget_and_copies_do_not(cache, store):
    for number in range(40):
        await cache.set(number, bytes(60_000))
    copies = [await cache.get(number, copy=True) for number in range(40)]
    held = []

    async def hold():
        for number in range(40):
            held.append(await cache.get(number))

    with pytest.raises(MemoryUnavailable):
        await hold()
    held.clear()
    assert await cache.get(39) == copies[39]


async def test_lost_values_are_misses_and_counted(store, memory, cache):
    await cache.set("a", bytes(100))
    await cache.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    with store.handle(store.get_name(next(store.names(b"cache/cache\0e"))[0])) as handle:
        handle.delete()
    assert await cache.get("a") is None
    assert cache.stats().lost == 1
    assert "a" not in cache


async def test_two_caches_in_one_store(store, cache):
    async with AsyncCache(store, name="other") as other:
        await cache.set("a", 1)
        await other.set("a", 2)
        assert (await cache.get("a"), await other.get("a")) == (1, 2)
        with pytest.raises(UsageError, match="open already"):
            await AsyncCache(store, name="other")
    with pytest.raises(ClosedError):
        await other.get("a")
    with pytest.raises(ClosedError):
        "a" in other  # noqa: B015
    assert await cache.get("a") == 1


async def test_a_cache_that_is_not_open_says_so(tmp_path):
    cache = AsyncCache(tmp_path / "c")
    with pytest.raises(UsageError, match="async with"):
        await cache.get("a")
    assert "not open" in repr(cache)
    assert not (tmp_path / "c").exists()


async def test_arguments_are_checked(tmp_path, store):
    for arguments in [{"size_limit": 0}, {"size_limit": "x"}, {"reap_interval": 0}, {"serializer": "yaml"}]:
        with pytest.raises(InvalidArgumentError):
            AsyncCache(tmp_path / "c", **arguments)
    with pytest.raises(InvalidArgumentError, match="budget"):
        AsyncCache(store, budget="1M")
    with pytest.raises(InvalidArgumentError, match="name"):
        await AsyncCache(store, name="")


async def test_the_directory_is_private(tmp_path):
    (tmp_path / "c").mkdir(mode=0o755)
    async with AsyncCache(tmp_path / "c", budget="8M") as cache:
        await cache.set("a", 1)
        assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o700


async def test_read_only(tmp_path):
    async with AsyncCache(tmp_path / "c", budget="8M", size_limit="5M") as cache:
        await cache.set("a", 1)
    async with AsyncCache(tmp_path / "c", budget="8M", read_only=True) as cache:
        assert await cache.get("a") == 1
        assert cache.size_limit == 5 * 2**20
        for work in (cache.set("a", 2), cache.delete("a"), cache.evict("t"), cache.clear(), cache.expire()):
            with pytest.raises(ReadOnlyError):
                await work
        assert len(cache) == 1


async def test_a_reader_beside_the_writer_sees_what_was_committed_or_a_miss(tmp_path):
    options = {"budget": "1M", "pressure": False}
    async with AsyncCache(tmp_path / "c", commit_interval=None, **options) as cache:
        await cache.set_many({"a": b"a" * 5000, "b": b"b" * 5000})
        await cache.commit()
        async with AsyncCache(tmp_path / "c", read_only=True, **options) as reader:
            assert await reader.get("a") == b"a" * 5000
            await cache.delete("b")
            await cache.set("c", b"c" * 5000)
            await cache.commit()
            await asyncio.sleep(0)
            assert await reader.get("b") in (None, b"b" * 5000)
            assert await reader.get("c") is None
            assert len(reader) == 2


async def test_nothing_warns_at_the_end(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = await AsyncCache(tmp_path / "c", budget="8M")
        await cache.set("a", 1)
        await cache.close()
        await cache.close()


async def test_another_thread_is_told_to_use_the_other_face(cache):
    await cache.set("a", 1)
    calls = [lambda: cache.set("a", 2), lambda: cache.set("b", bytes(200_000)), lambda: cache.delete("a"), lambda: cache.touch("a", 1),
             lambda: cache.incr("a"), lambda: cache.pop("a"), cache.clear, cache.cull,
             cache.transact().__aenter__, lambda: cache.set_size_limit(5000)]  # fmt: skip

    async def use(call):
        await call()

    for call in calls:
        with pytest.raises(UsageError, match=r"dstorage\.Cache"):
            await asyncio.to_thread(asyncio.run, use(call))
    assert await cache["a"] == 1
    assert len(cache) == 1


async def test_a_large_value_lets_others_have_the_loop(disk_cache):
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    value = bytes(20 * 2**20)
    watch = asyncio.create_task(other())
    await disk_cache.set("a", value)
    assert turns >= 4
    turns = 0
    assert await disk_cache.get("a") == value
    assert turns >= 4
    watch.cancel()


async def test_a_copy_of_what_was_joined_is_not_copied_again(disk_cache):
    size = 16 * 2**20
    value = os.urandom(size)
    await disk_cache.set("a", value)
    await cool(disk_cache)
    tracemalloc.start()
    try:
        assert await disk_cache.get("a", copy=True) == value
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.9 * size
