"""A store of a disk and a server of the LAN, while the server is away and when it comes back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import warnings

import pytest
from dstorage_controllers.disk import DiskController
from dstorage_controllers.lan import LanController
from servers.redis_server import RedisServer

import dstorage
from dstorage.check import check
from dstorage.testing import eventually, payload

TIMEOUT_S = 1.5


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(redis, tmp_path):
    controllers = [DiskController("disk", rank=50), LanController(url=redis.url, timeout=TIMEOUT_S)]
    async with dstorage.open(
        tmp_path / "store", budget=2**20, commit_interval=None, pressure=None, controllers=controllers
    ) as store:
        yield store
        if not redis.alive:
            redis.start()


async def make(store, controller, count=10):
    made = {}
    for number in range(count):
        data = payload(number, 20_000)
        with await store.create(data, controller=controller) as handle:
            made[handle.id] = data
    await store.commit()
    return made


def forget_memory(store):
    """The next read has to ask a controller."""
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


async def content(store, id):
    async with store.handle(id) as data:
        return bytes(data)


async def test_every_chunk_is_reachable_again_after_the_server_was_killed_and_restarted(store, redis):
    made = await make(store, "lan", 60)
    forget_memory(store)
    redis.kill()
    for id in made:
        with pytest.raises(dstorage.TemporarilyUnavailable):
            await content(store, id)
    redis.start()
    await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is back")
    assert {id: await content(store, id) for id in made} == made


async def test_while_the_server_is_away_everybody_is_told_why(store, redis):
    first, second, *_ = await make(store, "lan")
    forget_memory(store)
    redis.kill()
    for id in (first, second):
        # The second one meets the outage without asking the server.
        with pytest.raises(
            dstorage.TemporarilyUnavailable, match=r"the server of 'lan' cannot be used now: .*[Cc]onnect"
        ):
            await content(store, id)
    assert "cannot be used now" in (store.controllers()[1].error or "")
    redis.start()
    await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is back")
    assert store.controllers()[1].error is None


async def test_the_disk_serves_and_commits_while_the_server_is_away(store, redis):
    near, far = await make(store, "disk"), await make(store, "lan")
    forget_memory(store)
    redis.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(dstorage.TemporarilyUnavailable) as caught:
            await content(store, next(iter(far)))
        assert caught.value.controller == "lan"
        assert time.monotonic() - began < TIMEOUT_S + 3
        assert {id: await content(store, id) for id in near} == near
        new = await make(store, None)
        with store.handle(next(iter(near))) as handle:
            await handle.replace(b"changed")
        await store.commit()
        forget_memory(store)
        assert await content(store, next(iter(near))) == b"changed"
        assert {id: await content(store, id) for id in new} == new
    finally:
        redis.thaw()
    await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is back")
    assert {id: await content(store, id) for id in far} == far


async def test_a_server_that_became_a_replica_is_read_and_new_chunks_go_elsewhere(store, redis):
    far = await make(store, "lan")
    forget_memory(store)
    redis.ask("REPLICAOF", "127.0.0.1", "1")
    with (
        await store.create(b"for the server", controller="lan") as handle,
        pytest.raises(dstorage.TemporarilyUnavailable),
    ):
        await handle.flush()
    assert store.controller("lan").status is dstorage.ControllerStatus.READ_ONLY
    assert {id: await content(store, id) for id in far} == far
    redis.ask("REPLICAOF", "NO", "ONE")
    await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is a master again")
    await store.commit()
    assert store.info(handle.id).controller == "lan"


async def test_who_waits_is_told_at_once_when_the_server_is_back(store, redis):
    far = await make(store, "lan")
    forget_memory(store)
    redis.kill()
    waiting = asyncio.ensure_future(store.resolve_all(list(far), wait=30))
    await eventually(lambda: store.controller("lan").status is not dstorage.ControllerStatus.OK, "it is away")
    assert not waiting.done()
    redis.start()
    # Far less than the 15 seconds that a store's own pauses grow to.
    handles = await asyncio.wait_for(waiting, 60)
    for handle, data in zip(handles, far.values(), strict=True):
        assert bytes(handle.data) == data
        handle.release()


async def test_nobody_waits_past_the_deadline(store, redis):
    far = await make(store, "lan")
    forget_memory(store)
    redis.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(dstorage.TemporarilyUnavailable):
            await store.resolve_all(list(far), wait=1.0)
        assert 0.9 < time.monotonic() - began < 1.0 + TIMEOUT_S + 3
    finally:
        redis.thaw()


async def test_a_commit_that_needs_the_server_fails_whole_and_succeeds_later(store, redis, tmp_path):
    near, far = await make(store, "disk", 2), await make(store, "lan", 2)
    with await store.create(b"for the server", controller="lan") as handle:
        new = handle.id
    with store.handle(next(iter(near))) as handle:
        await handle.replace(b"changed")
    redis.kill()
    with pytest.raises((dstorage.TemporarilyUnavailable, dstorage.StoreFull)):
        await store.commit()
    redis.start()
    await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is back")
    await store.commit()
    forget_memory(store)
    assert await content(store, new) == b"for the server"
    assert await content(store, next(iter(near))) == b"changed"
    assert await content(store, next(iter(far))) == far[next(iter(far))]


async def test_a_store_opens_without_its_server_and_finds_it_later(redis, tmp_path):
    controllers = [DiskController("disk", rank=50), LanController(url=redis.url, timeout=TIMEOUT_S)]
    async with dstorage.open(tmp_path / "store", budget=2**20, controllers=controllers) as store:
        near, far = await make(store, "disk"), await make(store, "lan")
    redis.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = await dstorage.open(tmp_path / "store", budget=2**20)
    async with opened as store:
        assert {id: await content(store, id) for id in near} == near
        with pytest.raises(dstorage.TemporarilyUnavailable):
            await content(store, next(iter(far)))
        redis.start()
        await eventually(lambda: store.controller("lan").status is dstorage.ControllerStatus.OK, "it is back")
        assert {id: await content(store, id) for id in far} == far


async def test_what_a_crash_left_on_the_server_is_swept_by_the_next_store(redis, tmp_path):
    controllers = [DiskController("disk", rank=50), LanController(url=redis.url)]
    async with dstorage.open(tmp_path / "store", budget=2**20, controllers=controllers) as store:
        far = await make(store, "lan")
    keys = int(redis.ask("DBSIZE")[1:])
    stem = redis.ask("SCAN", "0", "MATCH", "dstorage:*", "COUNT", "1000").split(b"\r\n")
    prefix = next(part for part in stem if part.startswith(b"dstorage:")).split(b":")[:3]
    redis.ask("SET", b":".join([*prefix, b"%x" % next(iter(far)), b"5"]), b"of a commit that never was")
    redis.ask("SET", b":".join([*prefix, b"fffff", b"5", b"0"]), b"of a chunk that never was")
    async with dstorage.open(tmp_path / "store", budget=2**20) as store:
        await eventually(lambda: int(redis.ask("DBSIZE")[1:]) == keys, "only that is gone")
        assert {id: await content(store, id) for id in far} == far


async def test_check_says_which_settings_of_the_server_lose_chunks(redis, tmp_path):
    path = tmp_path / "store"
    async with dstorage.open(path, budget=2**20, controllers=[LanController("far", redis.url)]) as store:
        await make(store, "far")
        assert (await check(store)).advice == {}
        redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        redis.ask("CONFIG", "SET", "appendonly", "no")
        report = await check(store)
        assert report.sound, "it may lose chunks and has not"
        evicts, forgets = report.advice["far"]
    assert "maxmemory-policy allkeys-lru" in evicts
    assert "noeviction" in evicts
    assert "appendonly no" in forgets
    command = [sys.executable, "-c", "from dstorage.cli import main; main()", "check", str(path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"advice: far: {evicts}\n" in done.stdout
