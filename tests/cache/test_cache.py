"""`Cache`: the same as `AsyncCache` for any thread, without a trip to the loop for hits and misses."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from memory_controller import MemoryController

import dstorage
import dstorage.blocking
from dstorage import AsyncCache, AsyncCacheTransaction, Cache, CacheTransaction
from dstorage.errors import (
    ClosedError,
    InvalidArgumentError,
    MemoryUnavailable,
    StoreLocked,
    TemporarilyUnavailable,
    UsageError,
)


@pytest.fixture
def cache(tmp_path, clock):
    with Cache(tmp_path / "c", budget="4M", clock=clock, pressure=False, commit_interval=None) as opened:
        yield opened


def public(kind):
    return {name for name, value in vars(kind).items() if not name.startswith("_")}


def test_both_faces_have_the_same_names_and_arguments():
    own = {"core", "answer", "transaction", "store", "inner", "abort", "under_way", "read"}
    for one, other in ((Cache, AsyncCache), (CacheTransaction, AsyncCacheTransaction)):
        assert public(one) - own == public(other) - own
        for name in public(one) - own:
            ours, theirs = getattr(one, name), getattr(other, name)
            if callable(ours):
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    assert list(inspect.signature(Cache).parameters) == list(inspect.signature(AsyncCache).parameters)


def test_a_mapping(cache):
    cache["a"] = "one"
    cache[("b", 2)] = np.arange(5)
    assert cache["a"] == "one"
    assert list(cache[("b", 2)]) == [0, 1, 2, 3, 4]
    assert "a" in cache
    assert "z" not in cache
    assert list(cache) == ["a", ("b", 2)]
    assert len(cache) == 2
    assert dict(cache.items())["a"] == "one"
    assert "one" in [value for value in cache.values() if isinstance(value, str)]
    del cache["a"]
    with pytest.raises(KeyError):
        cache["a"]
    with pytest.raises(KeyError):
        del cache["a"]


def test_every_call(cache, clock):
    assert cache.add("n", 1, expire=10, tag="t")
    assert not cache.add("n", 2)
    assert cache.incr("n", 4) == 5
    assert cache.decr("n") == 4
    assert cache.setdefault("n", 9) == 4
    assert cache.info("n").expires == 1010
    assert cache.touch("n", 20)
    clock.advance(10)
    assert cache.get("n") == 4
    assert cache.keys(tag="t") == ["n"]
    assert cache.tags() == ["t"]
    assert cache.evict("t") == 1
    cache.set_many({i: bytes(10) for i in range(10)})
    cache.set_many((i, bytes(10)) for i in range(10, 20))
    assert sorted(cache.get_many(range(5, 30), copy=True)) == list(range(5, 20))
    assert cache.delete_many(range(5)) == 5
    assert cache.keys(start=17, reverse=True) == [19, 18, 17]
    assert cache.pop(19) == bytes(10)
    assert cache.pop(19, "gone") == "gone"
    cache.set_missing("m", "no", expire=5)
    assert cache.missing("m") == "no"
    assert cache.missing("other") is None
    assert cache.get("m", 3) == 3
    cache.set("e", 1, expire=1)
    clock.advance(1)
    assert len(cache) == 14
    clock.advance(10)
    assert cache.expire() == 2
    assert cache.cull() == 0
    cache.set_size_limit(5 * 138)
    assert len(cache) == 5
    assert cache.size_limit == 690
    assert cache.volume == 690
    cache.commit()
    stats = cache.stats(reset=True)
    assert (stats.hits, stats.culled) == (17, 9)
    assert cache.clear() == 5
    assert "0 entries" in repr(cache)


def test_hits_and_misses_make_no_trip_to_the_loop(cache):
    cache.set("a", b"value")
    blocked, going = threading.Event(), threading.Event()

    def hold():
        blocked.set()
        assert going.wait(10)

    cache.store.loop.post(hold)
    assert blocked.wait(10)
    try:
        assert cache.get("a") == b"value"
        assert cache["a"] == b"value"
        assert cache.get("b") is None
        assert "a" in cache
        assert len(cache) == 1
        assert list(cache) == ["a"]
        assert cache.info("a").size == 5
    finally:
        going.set()


def test_values_that_left_memory_come_back(cache):
    values = {n: bytes([n]) * 200_000 for n in range(40)}
    cache.set_many(values)
    assert cache.store.memory_used <= 4 * 2**20
    for n, value in values.items():
        assert cache.get(n) == value


def test_threads_of_all_kinds_at_once(cache):
    """Writers replace values whose contents say what they are; readers never see one that belongs to another key."""
    errors = []
    stop = threading.Event()

    def write(offset):
        n = 0
        while not stop.is_set():
            key = (n * 7 + offset) % 20
            size = 100 + n % 50 * 3000
            if n % 11 == 0:
                cache.delete(key)
            elif n % 3 == 0:
                cache.set(key, np.full(size, key, "u1"), tag="array")
            else:
                cache.set(key, bytes([key]) * size)
            n += 1

    def read():
        n = 0
        while not stop.is_set():
            n += 1
            value = cache.get(n % 20)
            if value is not None and set(bytes(value[:50])) != {n % 20}:
                errors.append((n % 20, value[:50]))

    def run(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(write, offset)) for offset in range(2)]
    threads += [threading.Thread(target=run, args=(read,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        cache.stats()
        cache.evict("array")
        list(cache.items())
        cache.keys()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert cache.volume == sum(cache.info(key).size + 128 for key in cache)


def test_counts_are_exact_over_threads(cache):
    cache.set("a", 1)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [cache.get("a") or cache.get("b") for _ in range(2000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert cache.stats().hits == 8000


def test_many_threads_increment(cache):
    def work():
        for _ in range(50):
            cache.incr("n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache["n"] == 200


def test_closed_says_so(tmp_path):
    cache = Cache(tmp_path / "c", budget="4M", pressure=False)
    cache["a"] = 1
    cache.close()
    cache.close()
    for call in (cache.get, cache.delete, cache.__contains__, cache.__getitem__, cache.incr):
        with pytest.raises(ClosedError):
            call("a")
    with pytest.raises(ClosedError):
        len(cache)
    with pytest.raises(ClosedError):
        cache.set("a", 1)
    assert repr(cache).endswith("closed>")


def test_a_cache_may_be_closed_after_its_store(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", budget="4M", pressure=False) as store:
        cache = Cache(store)
        assert "0 entries" in repr(cache)
    assert repr(cache).endswith("closed>")
    cache.close()
    cache.close()


def test_a_store_that_is_given_stays_open(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", budget="4M", pressure=False) as store:
        with Cache(store, name="one") as one, Cache(store, name="two") as two:
            one["a"], two["a"] = 1, 2
            assert (one["a"], two["a"]) == (1, 2)
            with pytest.raises(UsageError, match="open already"):
                Cache(store, name="two")
        store.commit()
        with Cache(store, name="one") as one:
            assert one["a"] == 1
        with pytest.raises(InvalidArgumentError, match="budget"):
            Cache(store, budget="1M")
    with pytest.raises(ClosedError):
        one.get("a")


def test_bad_arguments_make_no_directory(tmp_path):
    for bad in ({"serializer": "yaml"}, {"name": ""}, {"size_limit": "much"}, {"reap_interval": 0}):
        with pytest.raises(InvalidArgumentError):
            Cache(tmp_path / "c", **bad)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("face", [Cache, AsyncCache])
def test_options_of_another_cache_are_refused_by_name(tmp_path, face):
    with pytest.raises(TypeError, match=r"^a cache takes no cull_limit, timeout: .*size_limit.*budget"):
        face(tmp_path / "c", timeout=60, cull_limit=0, budget="8M")
    assert not (tmp_path / "c").exists()


def test_two_processes_cannot_write_one_cache(tmp_path, cache):
    code = f"import dstorage; dstorage.Cache({str(tmp_path / 'c')!r}, pressure=False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert "StoreLocked" in done.stderr
    assert str(os.getpid()) in done.stderr
    assert issubclass(StoreLocked, OSError)


def _in_child(cache, queue):
    said = []
    for call in (lambda: cache.get("a"), lambda: cache.get("b"), lambda: cache.set("c", 1)):
        try:
            call()
        except Exception as error:
            said.append(type(error).__name__)
    cache.close()
    said.append(repr(cache)[-7:])
    queue.put(said)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told(cache):
    cache["a"] = 1
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(cache, queue))
    child.start()
    assert queue.get() == ["ClosedError"] * 3 + ["closed>"]
    child.join()
    queue.close()
    assert cache["a"] == 1


def test_what_is_not_closed_is_committed_at_exit(tmp_path):
    code = f"import dstorage; cache = dstorage.Cache({str(tmp_path / 'x')!r}, budget='4M', pressure=False); cache['a'] = 'kept'"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    with Cache(tmp_path / "x", budget="4M", pressure=False) as cache:
        assert cache["a"] == "kept"


def test_a_serializer_works_in_the_thread_that_calls(tmp_path):
    threads = set()

    def dumps(value):
        threads.add(threading.get_ident())
        return b"".join(value)

    def loads(data):
        threads.add(threading.get_ident())
        return [data]

    serializer = dstorage.Serializer("joined", dumps, loads)
    with Cache(tmp_path / "c", budget="4M", pressure=False, commit_interval=None, serializer=serializer) as cache:

        def cool():
            cache.commit()
            cache.store.set_budget(1)
            cache.store.set_budget("4M")

        assert cache.add("a", [b"1", b"2"])
        assert not cache.add("a", [b"3"])
        assert cache.setdefault("b", [b"3"]) == [b"3"]
        assert cache.setdefault("a", [b"3"]) == [b"12"]
        cache.set_many((number, [b"n"]) for number in range(10))
        cool()
        assert cache.get_many(["a", "b", "c"]) == cache.get_many(["a", "b"], copy=True) == {"a": [b"12"], "b": [b"3"]}
        assert cache.memoize(name="f")(lambda n: [n])(b"x") == [b"x"]
        cool()
        assert cache.pop("a") == [b"12"]
        assert "a" not in cache
        with cache.transact() as transaction:
            transaction["c"] = [b"4"]
            transaction.set_many({"d": [b"5"]})
            assert transaction.add("e", [b"6"])
            assert transaction["c"] == [b"4"]
            assert transaction.get("b") == [b"3"]
            assert transaction.pop("d") == [b"5"]
        cool()
        assert [key for key, _ in cache.items()] == ["b", *range(10), ("f", b"x"), "c", "e"]
    assert threads == {threading.get_ident()}


def test_set_many_takes_what_is_larger_than_memory(cache):
    cache.set_many((number, bytes(50_000) + b"%d" % number) for number in range(300))
    assert cache[299].endswith(b"299")
    assert len(cache) == 300


def away(cache, memory):
    """The controller of what `cache` keeps goes away, and all contents have left memory."""
    cache.commit()
    cache.store.set_budget(1)
    cache.store.set_budget("4M")
    memory.unavailable = True
    cache.store.loop.call_sync(memory.context.status_changed)


def back(cache, memory):
    memory.unavailable = False
    cache.store.loop.call_sync(memory.context.status_changed)


@pytest.mark.parametrize("value", [b"value", bytes(600_000)])
def test_a_cache_that_waits_outlives_a_controller_that_is_away(tmp_path, value):
    memory = MemoryController()
    options = {"budget": "4M", "pressure": False, "controllers": [memory], "commit_interval": None}
    with Cache(tmp_path / "c", wait=60, **options) as cache:
        cache["a"] = value
        away(cache, memory)
        answers = []
        readers = [threading.Thread(target=lambda: answers.append(cache["a"])) for _ in range(2)]
        for reader in readers:
            reader.start()
        while cache.store.stats().unavailable == 0:
            pass
        back(cache, memory)
        for reader in readers:
            reader.join(60)
        assert answers == [value, value]


def test_by_default_a_controller_that_is_away_is_told_at_once(tmp_path):
    memory = MemoryController()
    with Cache(tmp_path / "c", budget="4M", pressure=False, controllers=[memory], commit_interval=None) as cache:
        cache["a"] = b"value"
        away(cache, memory)
        with pytest.raises(TemporarilyUnavailable):
            cache["a"]
        back(cache, memory)
        assert cache["a"] == b"value"


def test_a_set_waits_for_room_that_references_hold(tmp_path):
    with (
        dstorage.blocking.open(tmp_path / "c", budget=2**20, pressure=False, commit_interval=None) as store,
        Cache(store, wait=60) as patient,
        Cache(store, name="other") as cache,
    ):
        held = store.create(bytes(2**20 - 1000)).acquire()
        with pytest.raises(MemoryUnavailable):
            cache["a"] = bytes(50_000)
        setter = threading.Thread(target=patient.set, args=("a", bytes(50_000)))
        setter.start()
        while not store.inner._memory.wanted:
            pass
        held.release()
        setter.join(60)
        assert patient["a"] == bytes(50_000)


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "1"])
def test_a_wait_that_cannot_be_is_refused(tmp_path, wait):
    with pytest.raises(InvalidArgumentError, match="wait="):
        Cache(tmp_path / "c", wait=wait)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "lone \ud800 surrogate", b"bytes", 5])
def test_a_name_that_no_cache_can_have_is_refused(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match="cache name"):
        Cache(tmp_path / "c", name=name)
    assert not (tmp_path / "c").exists()


@pytest.mark.filterwarnings("ignore:.*still referenced:ResourceWarning")  # by reads that the closing ends
@pytest.mark.parametrize("seed", range(2))
def test_no_thread_ever_gets_an_old_value_half_of_one_or_another_keys(tmp_path, seed):
    """Readers, while others set, delete, commit, shrink the budget, and close the cache."""
    keys = 16
    cache = Cache(tmp_path / "c", budget="256K", pressure=False, commit_interval=None, serializer="json")
    done, begun = [0] * keys, [0] * keys
    closing = threading.Event()
    got, errors = [0] * 3, []

    def value(key, version):
        return b"%04d %08d|" % (key, version) * (1 + (key * 31 + version * 17) % 700)

    def read(which):
        choice = random.Random(seed * 10 + which)
        while True:
            key = choice.randrange(keys)
            floor = done[key]
            try:
                found = cache.get(key, copy=choice.random() < 0.5)
            except ClosedError:
                assert closing.is_set()
                return
            except MemoryUnavailable:
                continue
            if found is None:
                # Deleted by an odd version.
                assert any(version % 5 == 0 for version in range(floor, begun[key] + 1))
                continue
            owner, version = int(found[:4]), int(found[5:13])
            assert owner == key
            assert floor <= version <= begun[key]
            assert found == value(key, version)
            got[which] += 1

    def write():
        choice = random.Random(seed)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            key = choice.randrange(keys)
            version = begun[key] = begun[key] + 1
            try:
                if version % 5 == 0:
                    cache.delete(key)
                else:
                    cache.set(key, value(key, version))
            except MemoryUnavailable:
                begun[key] = version = version + 5 - version % 5
                cache.delete(key)
            done[key] = version
            if choice.random() < 0.5:
                cache.commit()
                cache.store.set_budget(1)
                cache.store.set_budget("256K")
        closing.set()
        cache.close()

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
            closing.set()
            cache.close()

    threads = [threading.Thread(target=guarded, args=(read, which)) for which in range(3)]
    threads.append(threading.Thread(target=guarded, args=(write,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert any(got)


def test_a_place_of_the_other_face_is_refused_with_the_way_out(tmp_path):
    async def other_loop():
        async with await dstorage.open(tmp_path / "a") as store:
            with pytest.raises(InvalidArgumentError, match=r"dstorage\.AsyncCache"):
                Cache(store)

    asyncio.run(other_loop())
    with dstorage.blocking.open(tmp_path / "b") as store, pytest.raises(InvalidArgumentError, match=r"dstorage\.Cache"):
        AsyncCache(store)
    for face in (Cache, AsyncCache):
        for place in (None, "", b"bytes"):
            with pytest.raises(InvalidArgumentError, match="give a directory"):
                face(place)


def test_a_reap_interval_that_is_no_time_is_refused(tmp_path):
    for interval in (0, float("inf"), "1"):
        with pytest.raises(InvalidArgumentError, match="reap_interval"):
            Cache(tmp_path / "c", reap_interval=interval)


@pytest.mark.parametrize("expire", [-1, float("nan"), float("inf"), 10**400, "1"])
def test_an_expiry_that_cannot_be_is_refused(cache, expire):
    with pytest.raises(InvalidArgumentError, match="expire="):
        cache.set("a", 1, expire=expire)
    assert "a" not in cache
