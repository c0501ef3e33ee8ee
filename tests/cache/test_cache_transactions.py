"""Transactions: all or nothing, seen by nobody before their end, one after the other."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import dstorage
from dstorage import AsyncCache, Cache, TransactionConflict
from dstorage.blocking.loop import Call
from dstorage.errors import InvalidArgumentError, TemporarilyUnavailable, UsageError


async def test_nobody_sees_it_before_its_end(cache):
    await cache.set("a", 1)
    async with cache.transact() as transaction:
        await transaction.set("a", 2)
        await transaction.set("b", bytes(200_000))
        assert await transaction["a"] == 2
        assert len(await transaction["b"]) == 200_000
        assert await cache.get("a") == 1
        assert "b" not in cache
    assert await cache.get("a") == 2
    assert len(await cache["b"]) == 200_000


async def test_an_exception_undoes_all(cache, store):
    await cache.set_many({"a": 1, "b": 2})
    await cache.commit()
    before = list(store.ids()), list(store.names())
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what raises
        async with cache.transact() as transaction:
            await transaction.set("a", 5)
            await transaction.delete("b")
            await transaction.set("c", bytes(200_000))
            await transaction.touch("a", 5)
            raise ZeroDivisionError
    assert (await cache["a"], await cache["b"], "c" in cache) == (1, 2, False)
    await cache.commit()
    assert (list(store.ids()), list(store.names())) == before


async def test_every_call_sees_what_the_block_did_before(cache, clock):
    await cache.set("n", 5, expire=10, tag="t")
    await cache.set("text", "old")
    async with cache.transact() as t:
        assert await t.incr("n", 2) == 7
        assert await t.decr("n") == 6
        assert await t.incr("new") == 1
        assert not await t.add("text", "x")
        assert await t.pop("text") == "old"
        assert await t.add("text", "new")
        assert await t.get("text") == "new"
        assert await t.touch("text", 5)
        assert not await t.touch("none", 5)
        assert not await t.delete("none")
        assert await t.pop("none", 3) == 3
        await t.set_many({"x": 1, "y": 2})
        await t.delete("x")
        assert "x" not in t
        assert "y" in t
        with pytest.raises(KeyError):
            await t["x"]
    assert await cache.get_many(["n", "new", "text", "x", "y"]) == {"n": 6, "new": 1, "text": "new", "y": 2}
    assert cache.info("n") == dstorage.CacheEntryInfo(1, 1010.0, "t")
    clock.advance(5)
    assert "text" not in cache


async def test_what_the_block_read_must_be_unchanged_at_its_end(cache):
    await cache.set("a", 1)
    with pytest.raises(TransactionConflict, match="'a'"):  # noqa: PT012 - the end of the block raises
        async with cache.transact() as transaction:
            await transaction.set("b", await transaction["a"] + 1)
            await cache.set("a", 5)
    assert "b" not in cache
    with pytest.raises(TransactionConflict):  # noqa: PT012 - the block is what raises
        async with cache.transact() as transaction:
            assert await transaction.get("c") is None
            await cache.set("c", 1)
            await transaction.get("c")
    async with cache.transact() as transaction:
        await transaction.set("a", 6)
        await cache.set("a", 7)
    assert await cache["a"] == 6, "what is written without being read conflicts with nothing"


async def test_transactions_wait_for_each_other(cache):
    async def add():
        async with cache.transact() as transaction:
            total = await transaction.get("sum", 0)
            await asyncio.sleep(0)
            await transaction.set("sum", total + 1)

    await asyncio.gather(*[add() for _ in range(20)])
    assert await cache["sum"] == 20


async def test_the_wait_is_bounded_and_a_task_does_not_wait_for_itself(cache):
    async with cache.transact():
        with pytest.raises(UsageError, match="already"):
            async with cache.transact():
                pass

        async def other():
            async with cache.transact(wait=0.01):
                pass

        with pytest.raises(TemporarilyUnavailable, match=r"0\.01 seconds"):
            await asyncio.create_task(other())
    async with cache.transact():
        pass


async def test_use_outside_of_its_block_is_refused(cache):
    transaction = cache.transact()
    with pytest.raises(UsageError, match="inside"):
        await transaction.get("a")
    async with transaction:
        pass
    with pytest.raises(UsageError, match="inside"):
        await transaction.set("a", 1)


async def test_more_than_the_limit_is_refused_as_a_whole(cache):
    await cache.set("a", 1)
    await cache.set_size_limit(1000)
    with pytest.raises(InvalidArgumentError, match="size_limit"):
        async with cache.transact() as transaction:
            await transaction.set_many({"b": bytes(500), "c": bytes(500)})
    assert list(cache) == ["a"]
    async with cache.transact() as transaction:
        await transaction.set_many({"b": bytes(300), "c": bytes(400)})
    assert list(cache) == ["b", "c"], "the older one made room"


async def test_durable_is_after_the_block(tmp_path):
    async with AsyncCache(tmp_path / "c", budget="4M", commit_interval=None, pressure=False) as cache:
        async with cache.transact(durable=True) as transaction:
            await transaction.set_many({"a": 1, "b": 2})
        commits = cache.store.stats().commits
        async with dstorage.open(tmp_path / "c", read_only=True, pressure=False) as reader:
            assert len(list(reader.names(b"cache/cache\0e"))) == 2
        assert commits >= 1


def test_threads_take_turns(tmp_path):
    with Cache(tmp_path / "c", budget="4M", pressure=False) as cache:

        def move():
            for _ in range(10):
                with cache.transact() as transaction:
                    transaction["from"] = transaction.get("from", 100) - 1
                    transaction["to"] = transaction.get("to", 0) + 1

        threads = [threading.Thread(target=move) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (cache["from"], cache["to"]) == (60, 40)
        with cache.transact() as transaction:
            with pytest.raises(UsageError, match="already"), cache.transact():
                pass
            assert transaction.incr("to") == 41
            assert transaction.decr("to") == 40
            assert transaction.pop("from") == 60
            assert transaction.add("x", 1)
            assert transaction.touch("x", 50)
            assert "x" in transaction
            del transaction["x"]
            with pytest.raises(KeyError):
                del transaction["x"]
            with pytest.raises(KeyError):
                transaction["x"]
            transaction.set_many({"y": b"1"})
            assert not transaction.delete("z")
        assert sorted(cache) == ["to", "y"]
        with pytest.raises(ZeroDivisionError), cache.transact() as transaction:  # noqa: PT012 - the block is what raises
            transaction["to"] = 0
            raise ZeroDivisionError
        assert cache["to"] == 40


def test_a_transaction_that_nobody_has_any_more_is_over(tmp_path):
    with Cache(tmp_path / "c", budget="4M", pressure=False) as cache:
        lost = cache.transact().__enter__()
        lost["a"] = 1
        del lost
        with cache.transact(wait=30) as transaction:
            assert "a" not in transaction


@pytest.fixture
def interrupted(monkeypatch):
    """An interrupt strikes whoever waits for the loop, before or after it came to the call."""

    def strike(*, answered):
        def wait(call):
            if answered:
                call._answered.acquire()
            raise KeyboardInterrupt

        monkeypatch.setattr(Call, "wait", wait)

    return strike


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("at", ["begin", "end"])
def test_an_interrupted_transaction_is_over(tmp_path, interrupted, monkeypatch, at, answered):
    with Cache(tmp_path / "c", budget="4M", pressure=False) as cache:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what raises
            if at == "begin":
                interrupted(answered=answered)
            with cache.transact() as transaction:
                transaction.set_many({"a": bytes(200_000), "b": 1})
                interrupted(answered=answered)
        monkeypatch.undo()
        assert ("a" in cache) == ("b" in cache)
        with cache.transact(wait=0.1) as transaction:
            transaction["next"] = 1
        cache.clear()
        cache.commit()
        assert len(list(cache.store.ids())) == 1  # the settings


async def test_an_empty_view_of_many_dimensions_is_a_value(cache):
    async with cache.transact() as transaction:
        await transaction.set("empty", memoryview(np.ones((0, 3))))
    assert await cache["empty"] == b""
