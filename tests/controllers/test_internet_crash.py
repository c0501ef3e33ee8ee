"""SIGKILL of the client and of the servers at random moments: a commit that straddles disk, LAN and internet is all or nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dstorage_controllers.disk import DiskController
from dstorage_controllers.internet import InternetController
from dstorage_controllers.lan import LanController
from servers.redis_server import RedisServer
from servers.settled import settled
from servers.swift import SwiftServer
from test_crash import read_journal

import dstorage
from dstorage.check import check

_no_leaks = settled
CHILD = Path(__file__).parent.parent / "crash_three_child.py"
KILLS = int(os.environ.get("DSTORAGE_TEST_KILLS", "20")) // 10
"""Per victim; CI runs more."""


@pytest.fixture(scope="module")
def swift(tmp_path_factory):
    server = SwiftServer(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.kill()


async def look(path, url, settings):
    """Digest of each chunk of the last commit, all of them sound; where they are; objects that nobody refers to."""
    bucket = InternetController(**settings)
    controllers = [DiskController("disk"), LanController(url=url), bucket]
    async with dstorage.open(path, budget=2**20, commit_interval=None, pressure=None, controllers=controllers) as store:
        report = await check(store)
        assert report.problems == []
        found, homes = {}, set()
        for id in store.ids():
            homes.add(store.record(id).controller)
            async with store.handle(id) as data:
                found[str(id)] = hashlib.sha256(data).hexdigest()
        parts = bucket._open.parts
        await parts.cleaning.wait(30)
        kept = {parts.layout.parse(key) async for key in parts.bucket.names(parts.layout.folder)}
        return found, homes, kept - {None} - set(parts.books)


@pytest.mark.parametrize("victim", ["client", "redis", "swift"])
def test_what_is_on_three_machines_is_committed_whole_or_not_at_all(tmp_path, swift, monkeypatch, victim):
    for name, value in {**swift.environment, "INTERNET_TEST_KEY": "ab" * 32}.items():
        monkeypatch.setenv(name, value)
    seed = {"client": 1, "redis": 2, "swift": 3}[victim]
    rnd = random.Random(seed)
    # All of Swift takes some seconds to start again.
    kills = min(KILLS, 3) if victim == "swift" else KILLS
    print(f"seed {seed}, {kills} kills")
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    settings = {"timeout": 2.0, "key_env": "INTERNET_TEST_KEY", "pack_bytes": 2**16, **swift.settings}
    settings["url"] = f"{settings['url']}/{victim}"
    store, journal, state = tmp_path / "store", tmp_path / "journal", tmp_path / "state"
    state.write_text("{}")
    commits, seen = 0, set()
    try:
        for kill in range(kills):
            journal.unlink(missing_ok=True)
            arguments = [str(store), str(journal), str(seed * 1000 + kill), str(state), redis.url, json.dumps(settings)]
            child = subprocess.Popen([sys.executable, str(CHILD), *arguments])
            try:
                # The moment is counted from when the child has begun to work, so that a slow start hides nothing.
                deadline = time.monotonic() + 90
                while not (journal.exists() and journal.stat().st_size):
                    assert child.poll() is None, "the child ended by itself"
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
                time.sleep(rnd.random() ** 2)
                if victim != "client":
                    server = redis if victim == "redis" else swift
                    server.kill()
                    time.sleep(rnd.random() * 0.2)
                    server.start()
                    # It must go on by itself: the next commit is acknowledged.
                    acknowledged = journal.read_text().count('"acknowledged"')
                    while journal.read_text().count('"acknowledged"') < acknowledged + 2:
                        assert child.poll() is None, "the child ended by itself"
                        assert time.monotonic() < deadline
                        time.sleep(0.002)
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
            acknowledged, later = read_journal(journal)
            commits += len(later) + bool(acknowledged)
            for _ in range(3):
                # What was on its way when the client died, and what the listing did not show yet, is found by a later open.
                found, homes, orphans = asyncio.run(look(store, redis.url, settings))
                if not orphans:
                    break
            seen |= homes
            assert found in [acknowledged, *later], f"kill {kill}: neither the last acknowledged commit nor a later one"
            assert not orphans
            state.write_text(json.dumps(found))
    finally:
        redis.kill()
    assert commits
    assert len(seen) == 3, "all controllers took part"
