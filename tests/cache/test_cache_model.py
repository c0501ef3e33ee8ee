"""The cache beside a dict with a clock, over restarts and crashes, on a real disk.

A crash is a copy of the directory in the middle of it all: what is opened there must be what was last committed, whole.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import dstorage
from dstorage import AsyncCache
from dstorage.cache.entries import ENTRY_BYTES
from dstorage.testing import FakeClock

KEYS = st.one_of(
    st.sampled_from(["a", "b", "b\0c", "k" * 900]), st.integers(-2, 2), st.sampled_from([b"a", ("a", 1), ("a", "b", 2)])
)
SMALL = st.one_of(st.binary(max_size=20), st.text(max_size=10), st.none(), st.floats(allow_nan=False), st.integers())
LARGE = st.integers(0, 5).map(lambda n: bytes([n]) * (60_000 + 40_000 * n))
ARRAYS = st.integers(0, 30).map(lambda n: np.arange(n * 1000).reshape(n, 1000))
VALUES = st.one_of(SMALL, SMALL, LARGE, ARRAYS)
TAGS = st.sampled_from([None, None, "red", ("blue", 1)])
EXPIRES = st.sampled_from([None, None, 5, 20])


def same(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and one == other


class CacheMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.numbers = itertools.count()
        self.clock = FakeClock(1000.0)
        self.model = {}  # key -> (value, expires or None, tag)
        self.committed = {}

    def run(self, work):
        return self.runner.run(work)

    async def open(self):
        self.cache = await AsyncCache(
            self.path, size_limit=None, clock=self.clock, budget="1M", commit_interval=None, pressure=False
        )

    @initialize()
    def begin(self):
        self.path = Path(self.folder.name) / "0"
        self.run(self.open())

    def teardown(self):
        if hasattr(self, "cache"):
            self.run(self.cache.close())
        self.runner.close()
        self.folder.cleanup()

    def alive(self, key):
        entry = self.model.get(key)
        return entry if entry is not None and (entry[1] is None or entry[1] > self.clock()) else None

    def put(self, key, value, expire=None, tag=None):
        self.model.pop(key, None)
        self.model[key] = (value, None if expire is None else self.clock() + expire, tag)

    @rule(key=KEYS, value=VALUES, expire=EXPIRES, tag=TAGS)
    def set(self, key, value, expire, tag):
        self.run(self.cache.set(key, value, expire=expire, tag=tag))
        self.put(key, value, expire, tag)

    @rule(key=KEYS, value=LARGE, tag=TAGS)
    def set_large(self, key, value, tag):
        self.set(key, value, None, tag)

    @rule(key=KEYS, value=ARRAYS, expire=EXPIRES)
    def set_array(self, key, value, expire):
        self.set(key, value, expire, None)

    @rule(items=st.dictionaries(KEYS, VALUES, min_size=2))
    def set_many(self, items):
        self.run(self.cache.set_many(items))
        for key, value in items.items():
            self.put(key, value)

    @rule(key=KEYS, value=SMALL, expire=EXPIRES)
    def add(self, key, value, expire):
        done = self.run(self.cache.add(key, value, expire=expire))
        assert done == (self.alive(key) is None)
        if done:
            self.put(key, value, expire)

    @rule(key=KEYS)
    def pop(self, key):
        entry = self.alive(key)
        assert same(self.run(self.cache.pop(key, "none")), "none" if entry is None else entry[0])
        if entry is not None:
            del self.model[key]

    @rule(key=KEYS)
    def delete(self, key):
        assert self.run(self.cache.delete(key)) == (self.alive(key) is not None)
        self.model.pop(key, None)

    @rule(key=KEYS, expire=EXPIRES)
    def touch(self, key, expire):
        entry = self.alive(key)
        assert self.run(self.cache.touch(key, expire)) == (entry is not None)
        if entry is not None:
            self.model[key] = (entry[0], None if expire is None else self.clock() + expire, entry[2])

    @rule(key=KEYS, delta=st.integers(-5, 5))
    def incr(self, key, delta):
        value, expires, tag = self.alive(key) or (0, None, None)
        if type(value) in (int, float):
            assert self.run(self.cache.incr(key, delta)) == value + delta
            self.model[key] = (value + delta, expires, tag)
        else:
            with pytest.raises(dstorage.InvalidArgumentError):
                self.run(self.cache.incr(key, delta))

    @rule(key=KEYS)
    def remember_miss(self, key):
        self.run(self.cache.set_missing(key, "gone", expire=5))
        self.model.pop(key, None)
        assert self.run(self.cache.missing(key)) == "gone"

    @rule(tag=TAGS)
    def evict(self, tag):
        if tag is not None:
            gone = [key for key, entry in self.model.items() if entry[2] == tag and self.alive(key)]
            assert self.run(self.cache.evict(tag)) == len(gone)
            for key in gone:
                del self.model[key]

    @rule(items=st.dictionaries(KEYS, st.one_of(SMALL, LARGE), max_size=3), removed=KEYS, good=st.booleans(), tag=TAGS)
    def transact(self, items, removed, good, tag):
        async def block():
            async with self.cache.transact() as transaction:
                for key, value in items.items():
                    await transaction.set(key, value, tag=tag)
                    assert same(await transaction.get(key), value)
                await transaction.delete(removed)
                assert removed not in transaction
                if not good:
                    raise ZeroDivisionError

        if good:
            self.run(block())
            for key, value in items.items():
                self.put(key, value, None, tag)
            self.model.pop(removed, None)
        else:
            with pytest.raises(ZeroDivisionError):
                self.run(block())

    @rule(seconds=st.sampled_from([1, 4, 15]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def reap(self):
        self.run(self.cache.expire())

    @rule()
    def commit(self):
        self.run(self.cache.commit())
        self.committed = dict(self.model)

    @rule()
    def restart(self):
        self.run(self.cache.close())
        self.committed = dict(self.model)
        self.run(self.open())

    @rule()
    def crash(self):
        copy = Path(self.folder.name) / str(next(self.numbers) + 1)
        shutil.copytree(self.path, copy)
        self.run(self.cache.close())
        self.path = copy
        self.run(self.open())
        self.model = dict(self.committed)

    @invariant()
    def is_what_the_model_is(self):
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        alive = {key for key in self.model if self.alive(key)}
        assert set(cache) == alive
        for tag in ("red", ("blue", 1)):
            assert set(cache.keys(tag=tag)) == {key for key in alive if self.model[key][2] == tag}
        for key in alive:
            value, expires, tag = self.model[key]
            assert same(self.run(cache.get(key)), value)
            info = cache.info(key)
            assert (info.expires, info.tag) == (expires, tag)
        assert len(cache) == len(alive)

    @rule()
    def nothing_is_left_in_the_store(self):
        """After a commit there are the chunks of entries and the settings, and nothing else."""
        self.commit()
        self.run(self.cache.expire())
        self.run(self.cache.commit())
        live = self.cache.core.live.values()
        ids = {id for entry in live for id in entry.ids()}
        ids.add(self.cache.store.get_name(b"cache/cache\0s"))
        assert set(self.cache.store.ids()) == ids
        assert {id for _, id in self.cache.store.names(b"")} <= ids
        assert self.cache.volume == sum(entry.size + ENTRY_BYTES for entry in live)


CacheMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestCache = CacheMachine.TestCase
