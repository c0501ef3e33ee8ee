"""Memoized functions: one computes, what is kept, what is told apart."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import pathlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_controller import MemoryController

import dstorage
from dstorage.cache.calls import CallKey
from dstorage.cache.synchronous import Cache
from dstorage.errors import InvalidArgumentError


async def test_results_are_kept(cache, clock):
    calls = []

    @cache.memoize(expire=10, tag="squares")
    async def square(n, power=2):
        """Squares."""
        calls.append(n)
        return n**power

    assert await square(3) == await square(3, 2) == await square(n=3, power=2) == 9
    assert calls == [3]
    assert square.__doc__ == "Squares."
    assert square.key(3) in cache.keys(tag="squares")
    clock.advance(10)
    assert await square(3) == 9
    assert calls == [3, 3]
    assert await cache.delete(square.key(3))
    await square(3)
    assert len(calls) == 3
    assert (cache.stats().hits, cache.stats().misses) == (2, 3)


async def test_of_many_who_ask_one_computes(cache):
    calls = 0
    going = asyncio.Event()

    @cache.memoize()
    async def slow(n):
        nonlocal calls
        calls += 1
        await going.wait()
        return n

    tasks = [asyncio.create_task(slow(1)) for _ in range(50)]
    await asyncio.sleep(0.01)
    tasks[10].cancel()
    going.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert calls == 1
    assert results.count(1) == 49


async def test_if_the_one_is_cancelled_another_computes(cache):
    calls = 0
    going = asyncio.Event()

    @cache.memoize()
    async def slow():
        nonlocal calls
        calls += 1
        await going.wait()
        return calls

    tasks = [asyncio.create_task(slow()) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    going.set()
    assert (await asyncio.gather(*tasks, return_exceptions=True))[1:] == [2, 2]


async def test_a_coroutine_that_calls_itself_with_the_same_arguments_waits_not_for_itself(cache):
    depth = []

    @cache.memoize()
    async def twice(n):
        depth.append(n)
        return await twice(n) if len(depth) < 3 else "end"

    async with asyncio.timeout(60):
        assert await twice(1) == "end"


async def test_errors_go_to_all_who_wait_and_are_not_kept(cache):
    calls = 0

    @cache.memoize()
    async def fails():
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(fails(), fails(), return_exceptions=True)
    assert [str(error) for error in results] == ["no", "no"]
    with pytest.raises(ValueError, match="no"):
        await fails()
    assert calls == 2


async def test_a_result_without_room_is_given_and_not_kept(cache):
    await cache.set_size_limit(1000)

    @cache.memoize()
    async def large():
        return bytes(5000)

    assert await large() == bytes(5000)
    assert len(cache) == 0
    assert cache.stats().unkept == 1


async def test_what_cannot_be_had_now_is_computed_anew_and_kept(cache, store, memory):
    calls = []

    @cache.memoize(misses=60)
    async def find(n):
        calls.append(n)
        return {1: b"one"}[n]

    await find(1)
    with pytest.raises(KeyError):
        await find(2)
    await cache.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    memory.set_unavailable(True)
    assert [await find(1), await find(1)] == [b"one", b"one"]
    with pytest.raises(KeyError):
        await find(2)
    assert calls == [1, 2, 1, 2]
    memory.set_unavailable(False)
    assert await find(1) == b"one"
    assert calls == [1, 2, 1, 2]


async def test_a_result_that_memory_has_no_room_for_is_computed_anew(cache, store):
    @cache.memoize()
    async def large():
        return bytes(100_000)

    await large()
    await cache.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    with await store.create(bytes(2**20 - 1000)):
        assert await large() == bytes(100_000)
        assert cache.stats().unkept == 1


async def test_numbers_of_any_length_are_arguments(cache):
    @cache.memoize()
    async def double(n):
        return str(2 * n)

    for bits in (799, 800, 801, 2048, 2049):
        assert await double(2**bits) == await double(2**bits) == str(2 * 2**bits)
        assert await double(-(2**bits)) == str(-2 * 2**bits)
    assert cache.stats().hits == 5


async def test_misses_are_remembered_for_a_while(cache, clock):
    calls = 0

    @cache.memoize(misses=10)
    async def find(name):
        nonlocal calls
        calls += 1
        raise KeyError(name)

    with pytest.raises(KeyError):
        await find("x")
    with pytest.raises(dstorage.Missing, match=r"^KeyError: 'x'"):
        await find("x")
    assert calls == 1
    clock.advance(10)
    with pytest.raises(KeyError):
        await find("x")
    assert calls == 2


async def test_early_recompute_by_one_while_the_others_are_served(cache, clock, monkeypatch):
    cost = [4.0]
    monkeypatch.setattr("time.perf_counter", lambda: cost[0])
    luck = [0.0]
    monkeypatch.setattr("dstorage.cache.memoize.random.random", lambda: luck[0])
    going = asyncio.Event()
    going.set()
    calls = 0

    @cache.memoize(expire=100, early=1.0)
    async def slow():
        nonlocal calls
        calls += 1
        cost[0] += 4.0
        await going.wait()
        return calls

    assert await slow() == 1
    clock.advance(90)
    assert await slow() == 1, "with this luck it is not early yet"
    luck[0] = 0.99  # -ln(0.01) * 4 s is more than the 10 s that are left
    going.clear()
    unlucky = asyncio.create_task(slow())
    await asyncio.sleep(0.01)
    assert await slow() == 1, "somebody computes already"
    going.set()
    assert await unlucky == 2
    clock.advance(50)
    luck[0] = 0.0
    assert await slow() == 2


async def test_a_failing_early_recompute_leaves_the_old_value(cache, clock, monkeypatch):
    cost = [4.0]
    monkeypatch.setattr("time.perf_counter", lambda: cost[0])
    luck = [0.0]
    monkeypatch.setattr("dstorage.cache.memoize.random.random", lambda: luck[0])

    @cache.memoize(expire=100, early=1.0)
    async def once():
        cost[0] += 4
        if clock() > 1000:
            raise OSError("down")
        return "old"

    await once()
    clock.advance(99)
    luck[0] = 0.999
    assert await once() == "old"
    clock.advance(1)
    with pytest.raises(OSError, match="down"):
        await once()


async def test_a_plain_function_runs_in_a_thread(cache):
    @cache.memoize()
    def where():
        return threading.current_thread() is threading.main_thread()

    assert await where() is False


@pytest.fixture
def blocking(tmp_path, clock):
    with Cache(tmp_path / "c", budget="8M", clock=clock, pressure=False) as cache:
        yield cache


def test_threads_compute_once(blocking):
    calls = []
    begun, going = threading.Event(), threading.Event()

    @blocking.memoize()
    def slow(n):
        calls.append(n)
        begun.set()
        assert going.wait(10)
        return np.full(3, n)

    results = []
    threads = [threading.Thread(target=lambda: results.append(slow(7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    going.set()
    for thread in threads:
        thread.join()
    assert calls == [7]
    assert [list(result) for result in results] == [[7, 7, 7]] * 8


@pytest.mark.parametrize("asynchronous", [False, True])
def test_while_a_controller_is_away_threads_and_loops_compute(tmp_path, asynchronous):
    memory = MemoryController()
    calls = []
    options = {"budget": "4M", "pressure": False, "controllers": [memory], "commit_interval": None}
    with Cache(tmp_path / "c", **options) as cache:
        if asynchronous:

            @cache.memoize()
            async def coroutine(n):
                calls.append(n)
                return n * b"n"

            def call(n):
                return asyncio.run(coroutine(n))
        else:

            @cache.memoize()
            def call(n):
                calls.append(n)
                return n * b"n"

        call(3)
        cache.commit()
        cache.store.set_budget(1)
        cache.store.set_budget("4M")
        cache.store.loop.call_sync(memory.set_unavailable, True)
        assert [call(3), call(3)] == [b"nnn", b"nnn"]
        assert calls == [3, 3]
        cache.store.loop.call_sync(memory.set_unavailable, False)


def test_a_function_that_calls_itself_with_other_arguments(blocking):
    @blocking.memoize()
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(80) == 23416728348467685


def test_a_function_that_calls_itself_with_the_same_arguments_waits_not_for_itself(blocking):
    depth = []

    @blocking.memoize()
    def twice(n):
        depth.append(n)
        return twice(n) if len(depth) < 3 else "end"

    assert twice(1) == "end"


def test_if_the_thread_that_computes_is_interrupted_another_computes(blocking):
    begun, going = threading.Event(), threading.Event()
    calls = []

    @blocking.memoize()
    def slow():
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            assert going.wait(10)
            raise KeyboardInterrupt
        return "second"

    def first():
        with pytest.raises(KeyboardInterrupt):
            slow()

    results = []
    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(10)
    threads.append(threading.Thread(target=lambda: results.append(slow())))
    threads[1].start()
    going.set()
    for thread in threads:
        thread.join()
    assert results == ["second"]


def test_coroutine_functions_over_a_blocking_cache(blocking):
    calls = []

    @blocking.memoize(misses=5)
    async def find(n):
        calls.append(n)
        await asyncio.sleep(0)
        if n < 0:
            raise IndexError(n)
        return n

    async def main():
        assert await asyncio.gather(*[find(1) for _ in range(5)]) == [1] * 5
        with pytest.raises(IndexError):
            await find(-1)
        with pytest.raises(dstorage.Missing):
            await find(-1)

    asyncio.run(main())
    assert calls == [1, -1]


def test_a_cache_that_is_read_only_answers_and_keeps_nothing(tmp_path):
    def find(cache):
        @cache.memoize(misses=5, name="find")
        def find(n):
            return {1: "one", 2: "two"}[n]

        return find

    with Cache(tmp_path / "c", budget="4M", pressure=False) as cache:
        find(cache)(1)
    with Cache(tmp_path / "c", budget="4M", pressure=False, read_only=True) as cache:
        assert [find(cache)(1), find(cache)(2)] == ["one", "two"]
        with pytest.raises(KeyError, match="3"):
            find(cache)(3)
        assert (len(cache), cache.stats().unkept) == (1, 2)


@pytest.mark.parametrize("name", [1, "\udc80 is a file's name"])
def test_misses_of_plain_functions(blocking, name):
    @blocking.memoize(misses=5)
    def find(name):
        raise IndexError(name)

    with pytest.raises(IndexError):
        find(name)
    with pytest.raises(dstorage.Missing) as missing:
        find(name)
    assert isinstance(missing.value, KeyError)
    assert str(missing.value) == f"IndexError: {name}"


@pytest.mark.parametrize(
    "options",
    [
        {"early": 1.0},
        {"early": -1, "expire": 5},
        {"expire": -1},
        {"misses": -1},
        {"ignore": ["x"]},
        {"ignore": [3]},
        {"ignore": 3},
        {"ignore": "x"},
        {"beta": 1},
    ],
)
def test_options_are_checked(blocking, options):
    with pytest.raises(InvalidArgumentError):
        blocking.memoize(**options)(lambda n: n)
    for wrong in (
        lambda: blocking.memoize()(5),
        lambda: blocking.memoize(lambda n: n),
        lambda: blocking.memoize("name"),
    ):
        with pytest.raises(InvalidArgumentError, match="brackets"):
            wrong()
    with pytest.raises(InvalidArgumentError, match="brackets"):
        blocking.inner.memoize(len)
    with pytest.raises(InvalidArgumentError, match="name="):
        blocking.memoize()(functools.partial(lambda a, b: a * b, 2))
    assert blocking.memoize(name="double")(functools.partial(lambda a, b: a * b, 2))(4) == 8
    with pytest.raises(InvalidArgumentError, match="parameters"):
        blocking.memoize()(dict)


# -- the key of a call ------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@dataclasses.dataclass
class Point:
    x: int
    y: float


def anything(*args, **kwargs):
    return args, kwargs


ARGUMENT = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5),
        st.sampled_from(Colour), st.builds(Point, st.integers(0, 3), st.just(0.5)), st.dates(), st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=5,
)  # fmt: skip


@given(st.lists(ARGUMENT, max_size=3), st.lists(ARGUMENT, max_size=3))
def test_calls_have_one_key_if_their_arguments_are_equal(one, other):
    key = CallKey(anything, "f", typed=False, ignore=())
    if any(isinstance(value, complex) for value in [*one, *other]):
        return  # 1 and 1+0j are equal to Python; to us a complex number is always another
    assert (key(tuple(one), {}) == key(tuple(other), {})) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.zeros((3, 1))), (np.zeros(3), np.zeros(3, "f4")), (np.zeros(3), np.ones(3)),
        (np.float32(1), np.float32(2)), (datetime.timedelta(1), datetime.timedelta(2)), ({1, 2}, {1, 3}),
        (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b")), ("1", 1), (b"a", "a"), (["a", "b"], ["ab"]), ([], [[]]),
        ([0, 1], (0, 1)), (10**300, 10**300 + 1),
    ],
)  # fmt: skip
def test_other_arguments_are_another_call(one, other):
    key = CallKey(anything, "f", typed=False, ignore=())
    assert key((one,), {}) == key((one,), {})
    assert key((one,), {}) != key((other,), {})


def test_plain_arguments_stay_readable():
    key = CallKey(lambda a, b=2: None, "f", typed=False, ignore=())
    assert key((1,), {}) == key((), {"a": 1}) == ("f", 1, 2)
    assert key((True, "x"), {}) == ("f", 1, "x")
    assert len(key(("x" * 10_000, 2), {})) == 2


def test_types_are_told_apart_on_request():
    key = CallKey(anything, "f", typed=True, ignore=())
    assert len({key((1,), {}), key((True,), {}), key((1.0,), {})}) == 3
    assert key(([1],), {}) != key(((1,),), {})


def test_ignored_arguments_do_not_matter():
    def call(self, a, log=None): ...

    for one, same in ((0, "self"), ([0], ["self"])):
        key = CallKey(call, "f", typed=False, ignore=one)
        assert key((object(), 1), {}) == CallKey(call, "f", typed=False, ignore=same)((object(), 1), {})
    key = CallKey(lambda self, a, log=None: None, "f", typed=False, ignore=(0, "log"))
    assert key((object(), 1), {}) == key((object(), 1), {"log": object()}) == ("f", 1)


def test_an_argument_without_contents_is_refused():
    key = CallKey(anything, "f", typed=False, ignore=())
    with pytest.raises(InvalidArgumentError, match="ignore="):
        key((object(),), {})
    endless = []
    endless.append(endless)
    with pytest.raises(InvalidArgumentError, match="levels"):
        key((endless,), {})
    with pytest.raises(TypeError):
        CallKey(lambda a: None, "f", typed=False, ignore=())((1, 2), {})


def test_the_name_is_the_functions():
    def local():
        pass

    assert CallKey(local, None, typed=False, ignore=())((), {}) == (f"{__name__}.{local.__qualname__}",)
