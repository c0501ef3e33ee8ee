"""Small values that threads set: there for everybody at once, taken over by the loop a moment later."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

import dstorage
from dstorage.cache.behind import MOST, SMALL_BYTES
from dstorage.errors import ClosedError, ReadOnlyError

MIB = 2**20


@pytest.fixture
def cache(tmp_path):
    with dstorage.Cache(tmp_path / "cache", budget=4 * MIB, pressure=False) as cache:
        yield cache


@contextlib.contextmanager
def busy(cache):
    """The loop has something else to do."""
    begun, over = threading.Event(), threading.Event()
    cache.store.loop.post(lambda: (begun.set(), over.wait(30)))
    assert begun.wait(30)
    try:
        yield
    finally:
        over.set()


def test_a_value_is_there_for_every_thread_before_the_loop_has_it(cache):
    cache.set("old", b"old")
    assert cache.get("old") == b"old"
    with busy(cache):
        cache.set("old", b"new")
        cache.set("number", 7)
        seen = []
        thread = threading.Thread(target=lambda: seen.append((cache["old"], cache.get("number"), "number" in cache)))
        thread.start()
        thread.join(30)
        assert seen == [(b"new", 7, True)]
        assert cache.get_many(["old", "number"]) == {"old": b"new", "number": 7}
    assert list(cache) == ["old", "number"]
    assert len(cache) == 2
    assert cache.info("number").size > 0
    assert cache.volume > 0


def test_what_is_asked_for_afterwards_finds_it_in_the_cache(cache):
    with busy(cache):
        cache.set("a", 1)
        cache.set("b", b"two", tag="even")
        cache.set("c", b"three")
        results = {}

        def ask():
            results["incr"] = cache.incr("a")
            results["evict"] = cache.evict("even")
            results["pop"] = cache.pop("c")
            results["delete"] = cache.delete("a")

        thread = threading.Thread(target=ask)
        thread.start()
    thread.join(30)
    assert results == {"incr": 2, "evict": 1, "pop": b"three", "delete": True}
    assert list(cache) == []


def test_the_newest_of_several_values_stays(cache):
    with busy(cache):
        for number in range(20):
            cache.set("key", number)
        assert cache["key"] == 19
    assert cache.stats().entries == 1
    assert cache["key"] == 19


def test_what_has_expired_meanwhile_takes_the_older_value_with_it(cache):
    cache.set("key", b"old")
    for _ in range(100):
        cache.set("key", b"old")
        cache.set("key", b"new", expire=0)
        assert cache.get("key") is None
        assert "key" not in cache


def test_only_so_many_are_waiting_and_then_who_sets_waits(cache):
    with busy(cache):
        done = threading.Event()

        def fill():
            for number in range(MOST + 1):
                cache.set(number, bytes(10))
            done.set()

        thread = threading.Thread(target=fill)
        thread.start()
        while MOST - 1 not in cache:
            pass
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()
    assert len(cache) == MOST + 1


def test_a_large_value_is_waited_for(cache):
    with busy(cache):
        thread = threading.Thread(target=cache.set, args=("large", bytes(SMALL_BYTES + 1)))
        thread.start()
        assert "large" not in cache
        assert thread.is_alive()
    thread.join(30)
    assert cache["large"] == bytes(SMALL_BYTES + 1)


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [("x", object(), {}), (1.5, b"x", {}), (["x"], b"x", {}), ("x", b"x", {"expire": -1}), ("x", b"x", {"tag": 1.5})],
)
def test_what_cannot_be_is_told_at_once(cache, key, value, options):
    with busy(cache), pytest.raises(dstorage.InvalidArgumentError):
        cache.set(key, value, **options)
    assert len(cache) == 0


def test_a_closed_or_read_only_cache_takes_nothing(tmp_path):
    with dstorage.Cache(tmp_path / "cache") as cache:
        cache.set("a", b"1")
    with pytest.raises(ClosedError):
        cache.set("a", b"2")
    with dstorage.Cache(tmp_path / "cache", read_only=True) as cache:
        with pytest.raises(ReadOnlyError):
            cache.set("a", b"2")
        assert cache["a"] == b"1"


def test_what_was_set_before_the_close_is_there_after_it(tmp_path):
    wanted = {number: b"%d" % number for number in range(3 * MOST)}
    with dstorage.Cache(tmp_path / "cache") as cache:
        for key, value in wanted.items():
            cache.set(key, value)
    with dstorage.Cache(tmp_path / "cache") as cache:
        assert dict(cache.items()) == wanted


@contextlib.contextmanager
def full(cache):
    """Everything in memory is referenced, and nothing is dirty: who looks from outside sees room."""
    store = cache.store

    async def fill():
        handles = [await store.inner.create(bytes(MIB // 4)) for _ in range(8)]
        await store.inner.commit()
        handles += [await store.inner.create(bytes(MIB // 4)) for _ in range(8)]
        await store.inner.commit()
        return handles

    handles = store.call(fill)
    yield lambda: store.loop.call_sync(lambda: [handle.release() for handle in handles])


def test_what_has_to_wait_for_room_keeps_its_place_in_the_order(tmp_path):
    with dstorage.Cache(tmp_path / "cache", budget=4 * MIB, pressure=False, wait=30) as cache, full(cache) as release:
        cache.set("a", b"1")
        cache.set("b", b"1")
        assert cache["a"] == b"1"
        deleted = []
        thread = threading.Thread(target=lambda: deleted.append(cache.delete("a")))
        thread.start()
        assert cache["b"] == b"1"
        release()
        thread.join(30)
        assert deleted == [True]
        assert "a" not in cache
        assert cache["b"] == b"1"
        assert cache.stats().unkept == 0


def test_what_finds_no_room_at_all_is_as_if_culled_at_once(tmp_path):
    with dstorage.Cache(tmp_path / "cache", budget=4 * MIB, pressure=False) as cache:
        cache.set("a", b"old")
        cache.commit()
        with full(cache) as release:
            cache.set("a", b"new")
            assert list(cache) == []
            assert cache.get("a") is None
            assert cache.stats().unkept == 1
            release()
        cache.set("a", b"newer")
        assert list(cache.items()) == [("a", b"newer")]


def test_a_value_set_while_the_one_before_is_taken_over_is_not_lost(cache, monkeypatch):
    publish = cache.inner.core.publish
    newer = [b"third", b"second"]

    def and_meanwhile(*args):
        publish(*args)
        if newer:
            thread = threading.Thread(target=cache.set, args=("key", newer.pop()))
            thread.start()
            thread.join(30)
            assert not thread.is_alive()

    monkeypatch.setattr(cache.inner.core, "publish", and_meanwhile)
    cache.set("key", b"first")
    assert cache.delete("other") is False
    assert not newer
    assert cache.get("key") == b"third"
    assert list(cache.items()) == [("key", b"third")]


def test_an_interrupt_in_the_midst_leaves_nothing_behind_for_ever(cache, monkeypatch):
    begin = cache.store.loop.begin
    strikes = [KeyboardInterrupt()]

    def interrupted(function):
        if strikes:
            raise strikes.pop()
        begin(function)

    monkeypatch.setattr(cache.store.loop, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.set("a", b"1")
    assert list(cache) == []
    cache.set("b", b"2")
    assert list(cache) == ["b"]
    assert cache.stats().entries == 1


def test_an_interrupt_while_the_loop_is_woken_leaves_it_awake(cache, monkeypatch):
    class Interrupting:
        """The loop, but for one waking."""

        def __init__(self, inner):
            self._inner = inner
            self.strikes = [KeyboardInterrupt()]

        def call_soon_threadsafe(self, *call):
            if self.strikes:
                raise self.strikes.pop()
            return self._inner.call_soon_threadsafe(*call)

    assert len(cache) == 0
    monkeypatch.setattr(cache.store.loop, "loop", Interrupting(cache.store.loop.loop))
    with pytest.raises(KeyboardInterrupt):
        cache.set("a", b"1")
    thread = threading.Thread(target=cache.set, args=("b", b"2"))
    thread.start()
    thread.join(30)
    sizes = []
    thread = threading.Thread(target=lambda: sizes.append(len(cache)), daemon=True)
    thread.start()
    thread.join(10)
    assert sizes == [1]


def test_what_a_thread_asks_for_after_a_value_that_came_in_the_midst_finds_it(cache, monkeypatch):
    keep_now = cache.inner.core.keep_now
    told = threading.Event()
    results = []

    def other():
        cache.set("replaced", b"small")
        cache.set("deleted", b"small")
        told.set()
        cache.set("replaced", bytes(SMALL_BYTES + 1))
        results.append(cache.delete("deleted"))

    thread = threading.Thread(target=other)

    def and_meanwhile(entry, encoded):
        done = keep_now(entry, encoded)
        if entry.key == "first":
            thread.start()
            assert told.wait(30)
            # Until it has asked for more.
            while len(cache.store.loop._queue) < 2:
                pass
        return done

    monkeypatch.setattr(cache.inner.core, "keep_now", and_meanwhile)
    cache.set("first", b"1")
    assert cache.delete("other") is False
    thread.join(30)
    assert results == [True]
    assert {key: len(cache[key]) for key in cache} == {"first": 1, "replaced": SMALL_BYTES + 1}


def test_who_sees_the_value_of_another_thread_can_delete_it(cache, monkeypatch):
    begin = cache.store.loop.begin

    def slowly(function):
        """The thread that sets is held up before it has asked the loop."""
        asking.set()
        assert go_on.wait(30)
        begin(function)

    asking, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(cache.store.loop, "begin", slowly)
    setter = threading.Thread(target=cache.set, args=("key", b"1"))
    setter.start()
    assert asking.wait(30)
    seen = "key" in cache
    deleted = cache.delete("key")
    go_on.set()
    setter.join(30)
    assert seen is deleted is False
    assert cache["key"] == b"1"


def test_threads_see_what_they_set_whatever_others_do(cache):
    seed = random.randrange(2**32)
    print("seed", seed)
    failures = []

    def work(number):
        rnd = random.Random(seed + number)
        mine = {}
        try:
            for turn in range(400):
                key = (number, rnd.randrange(8))
                match rnd.randrange(5):
                    case 0:
                        assert cache.delete(key) is (mine.pop(key, None) is not None)
                    case 1:
                        assert cache.get(key) == mine.get(key)
                    case _:
                        mine[key] = turn
                        cache.set(key, turn)
                        assert cache.get(key) == turn
            assert {key: cache[key] for key in cache if key[0] == number} == mine
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
