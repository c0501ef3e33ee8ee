"""What callers give as `wait` or `timeout`: what makes no sense is refused before anything is done."""

from __future__ import annotations

import math

import pytest

import dstorage
import dstorage.blocking
from dstorage import InvalidArgumentError, UsageError

WRONG = [math.nan, math.inf, -math.inf, -1, -0.001, 10**400, "1", b"1"]
OPTIONS = {"budget": 2**20, "commit_interval": None, "pressure": None}


@pytest.fixture
async def store(tmp_path):
    async with dstorage.open(tmp_path, **OPTIONS) as store:
        yield store


def told(wait, name="wait"):
    return pytest.raises(InvalidArgumentError, match=f"^{name}=.*: give a finite number of seconds, 0 or more, or None")


@pytest.mark.parametrize("wait", WRONG)
async def test_no_call_waits_for_a_time_that_makes_no_sense(store, wait):
    with await store.create(b"before") as handle:
        for resident in (True, False):
            with told(wait):
                await handle.get(wait=wait)
            with told(wait):
                handle.resolve(lambda handle: pytest.fail("called back"), wait=wait)
            with told(wait):
                handle.edit(wait=wait)
            with told(wait):
                await handle.replace(b"after", wait=wait)
            with told(wait):
                await store.create(b"x", wait=wait)
            with told(wait):
                await store.resolve_all([handle.id], wait=wait)
            with told(wait):
                await anext(store.resolve_each([handle.id], wait=wait))
            with told(wait, "timeout"):
                await store.wait([handle.id], timeout=wait)
            if resident:
                await handle.flush()
        assert handle.refs == 1
        assert await handle == b"before"
    assert store.stats().dirty == 0


@pytest.mark.parametrize("wait", WRONG)
def test_neither_does_a_blocking_one(tmp_path, wait):
    with dstorage.blocking.open(tmp_path, **OPTIONS) as store:
        handle = store.create(b"before")
        with told(wait):
            store.create(b"x", wait=wait)
        with told(wait):
            handle.replace(b"after", wait=wait)
        with told(wait):
            store.resolve(handle.id, lambda handle: None, wait=wait)
        store.commit()
        store.set_budget(1)
        with told(wait):
            store.get(handle.id, wait=wait)


async def test_nor_a_transaction_of_a_cache(tmp_path):
    async with dstorage.AsyncCache(tmp_path) as cache:
        for wait in WRONG:
            with told(wait):
                async with cache.transact(wait=wait):
                    pytest.fail("begun")


@pytest.mark.parametrize("wait", [None, 0, 0.5, 5])
async def test_a_handle_that_names_no_chunk_cannot_be_resolved_however_long_one_waits(store, wait):
    with store.unbound_handle() as handle:
        with pytest.raises(UsageError, match="bind"):
            handle.resolve(lambda handle: pytest.fail("called back"), wait=wait)
        with pytest.raises(UsageError, match="bind"):
            await handle.get(wait=wait)
