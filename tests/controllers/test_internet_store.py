"""A store with a bucket below it: reopened from its catalog alone, compacted, moved from and to a disk, left by a program that ends."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dstorage_controllers.disk import DiskController
from dstorage_controllers.internet import InternetController
from servers.scripted_s3 import ScriptedS3
from servers.settled import settled

import dstorage
from dstorage.check import check
from dstorage.testing import eventually, payload

_no_leaks = settled
OPTIONS = {"budget": 2**20, "commit_interval": None, "pressure": None}


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("INTERNET_TEST_KEY", "cd" * 32)


def internet(tmp_path, **options) -> InternetController:
    return InternetController(url=f"file://{tmp_path}/bucket", key_env="INTERNET_TEST_KEY", **options)


def packs(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "bucket").rglob("*") if path.is_file() and path.name != "writer"]


async def test_the_catalog_knows_how_to_open_it_again(tmp_path, key):
    data = {}
    async with dstorage.open(tmp_path / "store", controllers=[internet(tmp_path)], **OPTIONS) as store:
        for seed in range(40):
            with await store.create(payload(seed, 100_000), wait=30) as handle:
                data[handle.id] = payload(seed, 100_000)
        await store.commit()
    async with dstorage.open(tmp_path / "store", **OPTIONS) as store:
        (info,) = store.controllers()
        assert info.kind == "internet"
        for id, expected in data.items():
            async with store.handle(id) as found:
                assert bytes(found) == expected
        report = await check(store)
        assert report.problems == []


async def test_a_missing_key_keeps_its_chunks_unavailable_and_says_so(tmp_path, key, monkeypatch):
    async with dstorage.open(tmp_path / "store", controllers=[internet(tmp_path)], **OPTIONS) as store:
        with await store.create(b"secret", wait=30) as handle:
            id = handle.id
    monkeypatch.setenv("INTERNET_TEST_KEY", "ef" * 32)
    async with contextlib.AsyncExitStack() as stack:
        with pytest.warns(RuntimeWarning, match="does not have all their keys"):
            store = await stack.enter_async_context(dstorage.open(tmp_path / "store", **OPTIONS))
        with store.handle(id) as handle, pytest.raises(dstorage.TemporarilyUnavailable):
            await handle


async def test_compaction_frees_what_dead_chunks_take(tmp_path, key):
    async with dstorage.open(tmp_path / "store", controllers=[internet(tmp_path, compress=False)], **OPTIONS) as store:
        written = {}
        for seed in range(60):
            with await store.create(payload(2 * seed + 1, 60_000), wait=30) as handle:
                written[handle.id] = payload(2 * seed + 1, 60_000)
        await store.commit()
        full = sum(path.stat().st_size for path in packs(tmp_path))
        kept = {id: data for at, (id, data) in enumerate(written.items()) if at % 6 == 0}
        for id in written.keys() - kept.keys():
            with store.handle(id) as handle:
                handle.delete()
        await store.commit()
        assert await store.compact() == len(kept)
        bucket = store.controller("internet")
        await bucket._open.parts.cleaning.wait(10)
        assert sum(path.stat().st_size for path in packs(tmp_path)) < full / 4
        for id, expected in kept.items():
            async with store.handle(id) as found:
                assert bytes(found) == expected


async def test_chunks_move_from_a_disk_to_the_bucket_and_back(tmp_path, key):
    controllers = [DiskController(), internet(tmp_path)]
    async with dstorage.open(tmp_path / "store", controllers=controllers, **OPTIONS) as store:
        ids = []
        for seed in range(20):
            with await store.create(payload(seed, 20_000), wait=30) as handle:
                ids.append(handle.id)
        await store.commit()
        assert await store.migrate(ids, to="internet") == 20
        await store.commit()
        assert store.controller("disk").space().used == 0
        assert await store.migrate(ids, to="disk") == 20
        await store.commit()
        assert store.controller("internet").space().used == 0
        for seed, id in enumerate(ids):
            async with store.handle(id) as found:
                assert bytes(found) == payload(seed, 20_000)


# -- while the bucket is away --------------------------------------------------------------------------------------------


@pytest.fixture
async def bucket(key, monkeypatch):
    for name, value in ScriptedS3.environment.items():
        monkeypatch.setenv(name, value)
    async with ScriptedS3() as server:
        yield server


@pytest.fixture
async def two(bucket, tmp_path):
    """A store of a disk and a bucket, with ten chunks on each and none in memory."""
    controllers = [
        DiskController(),
        InternetController(timeout=0.5, key_env="INTERNET_TEST_KEY", **bucket.settings),
    ]
    async with dstorage.open(tmp_path / "store", controllers=controllers, **OPTIONS) as store:
        made = {"disk": {}, "internet": {}}
        for controller, chunks in made.items():
            for number in range(10):
                with await store.create(payload(number, 20_000), controller=controller) as handle:
                    chunks[handle.id] = payload(number, 20_000)
        await store.commit()
        forget(store)
        yield store, made["disk"], made["internet"]
        bucket.script = lambda method, key, query: None


def forget(store):
    """The next read has to ask a controller."""
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


async def content(store, id):
    async with store.handle(id) as data:
        return bytes(data)


async def test_the_disk_serves_and_commits_while_the_bucket_is_away(two, bucket):
    store, near, far = two
    bucket.script = lambda method, key, query: 60.0
    began = time.monotonic()
    with pytest.raises(dstorage.TemporarilyUnavailable) as caught:
        await content(store, next(iter(far)))
    assert caught.value.controller == "internet"
    assert time.monotonic() - began < 5
    assert {id: await content(store, id) for id in near} == near
    with store.handle(next(iter(near))) as handle:
        await handle.replace(b"changed")
    await store.commit()
    forget(store)
    assert await content(store, next(iter(near))) == b"changed"
    bucket.script = lambda method, key, query: None
    status = store.controller("internet")
    await eventually(lambda: status.status is dstorage.ControllerStatus.OK, "the bucket is back, unnoticed")
    assert {id: await content(store, id) for id in far} == far


async def test_who_may_not_write_any_more_goes_on_reading(two, bucket):
    store, near, far = two
    denied = (403, b"<Error><Code>AccessDenied</Code></Error>")
    bucket.script = lambda method, key, query: denied if method != "GET" else None
    with await store.create(b"new", controller="internet") as handle:
        far[handle.id] = b"new"
        with pytest.raises(dstorage.TemporarilyUnavailable, match="privileges"):
            await store.commit()
        forget(store)
        assert {id: await content(store, id) for id in near | far} == near | far
    bucket.script = lambda method, key, query: None
    controller = store.controller("internet")
    await eventually(lambda: controller.status is dstorage.ControllerStatus.OK, "it may write again, unnoticed")
    await store.commit()


async def test_who_waits_is_told_when_the_bucket_is_back(two, bucket):
    store, _, far = two
    bucket.script = lambda method, key, query: (500, b"")
    waiting = asyncio.ensure_future(store.resolve_all(list(far), wait=30))
    controller = store.controller("internet")
    await eventually(lambda: controller.status is not dstorage.ControllerStatus.OK, "it is not noticed")
    assert not waiting.done()
    bucket.script = lambda method, key, query: None
    handles = await asyncio.wait_for(waiting, 60)
    for handle, data in zip(handles, far.values(), strict=True):
        assert bytes(handle.data) == data
        handle.release()


async def test_a_commit_that_needs_the_bucket_fails_whole_and_works_later(two, bucket):
    store, near, far = two
    bucket.script = lambda method, key, query: (500, b"")
    for chunks, controller in ((near, "disk"), (far, "internet")):
        with await store.create(b"new", controller=controller) as handle:
            chunks[handle.id] = b"new"
    with pytest.raises(dstorage.TemporarilyUnavailable):
        await store.commit()
    bucket.script = lambda method, key, query: None
    controller = store.controller("internet")
    await eventually(lambda: controller.status is dstorage.ControllerStatus.OK, "it is back, unnoticed")
    await store.commit()
    forget(store)
    assert {id: await content(store, id) for id in near | far} == near | far


KILLED = """
import asyncio, os, signal, sys
import dstorage
from dstorage_controllers.internet.bucket import Bucket

left = int(sys.argv[2])

def deadly(real):
    async def call(self, *args, **options):
        global left
        left -= 1
        last = left == 0
        if last and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await real(self, *args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

async def main():
    async with dstorage.open(sys.argv[1], budget=2**20, commit_interval=None, pressure=None) as store:
        Bucket.put, Bucket.delete = deadly(Bucket.put), deadly(Bucket.delete)
        await store.compact()

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "behind"])
async def test_a_compaction_that_is_killed_at_any_request_loses_and_leaves_nothing(tmp_path, key, when):
    data = {}
    controller = internet(tmp_path, pack_bytes=2**16, compress=False)
    async with dstorage.open(tmp_path / "store", controllers=[controller], **OPTIONS) as store:
        for seed in range(60):
            with await store.create(payload(seed, 10_000), wait=30) as handle:
                data[handle.id] = payload(seed, 10_000)
        await store.commit()
        for id in list(data)[::2]:
            with store.handle(id) as handle:
                handle.delete()
            del data[id]
        await store.commit()
    for request in (1, 2, 3, 5, 8, 100):
        child = [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(request), when]
        ended = await asyncio.to_thread(subprocess.run, child, timeout=60)
        async with dstorage.open(tmp_path / "store", **OPTIONS) as store:
            assert {id: await content(store, id) for id in store.ids()} == data
            parts = store.controller("internet")._open.parts
            await parts.cleaning.wait(10)
            names = {path.relative_to(tmp_path / "bucket").as_posix() for path in packs(tmp_path)}
            # obstore writes to another name first, and hides what a crash leaves of it: a matter of directories alone.
            assert {parts.layout.parse(name) for name in names if "#" not in name} == set(parts.books)
        assert (ended.returncode == 0) == (request == 100)


PROGRAM = """
import asyncio, sys
from pathlib import Path
from uuid import uuid4
from dstorage.controller import OpenContext, WriteRequest
from dstorage_controllers.internet import InternetController

async def main():
    controller = InternetController(url=f"file://{sys.argv[1]}/bucket")
    await controller.open(OpenContext(uuid4(), 1, Path(sys.argv[1])))
    await controller.write([WriteRequest(1, b"x")])

asyncio.run(main())
"""


def test_a_program_that_ends_at_once_ends_well(tmp_path):
    """obstore's threads must not be in the way of the interpreter's end, also when nobody closed anything."""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=60)
