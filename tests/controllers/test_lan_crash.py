"""SIGKILL of the client and of the server at random moments: a commit that straddles disk and LAN is all or nothing."""

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
from dstorage_controllers.lan import LanController
from servers.redis_server import RedisServer
from test_crash import read_journal

import dstorage
from dstorage.check import check

CHILD = Path(__file__).parent.parent / "crash_lan_child.py"
KILLS = int(os.environ.get("DSTORAGE_TEST_KILLS", "20")) // 5
"""Per test; CI runs more."""


async def look(path, url):
    """Digest of each chunk of the last commit, all of them sound; where they are."""
    controllers = [DiskController("disk"), LanController(url=url)]
    async with dstorage.open(path, budget=2**20, commit_interval=None, pressure=None, controllers=controllers) as store:
        report = await check(store)
        assert report.problems == []
        found, homes = {}, set()
        for id in store.ids():
            homes.add(store.record(id).controller)
            async with store.handle(id) as data:
                found[str(id)] = hashlib.sha256(data).hexdigest()
        return found, homes


@pytest.mark.parametrize("victim", ["client", "server", "both"])
def test_what_is_on_two_machines_is_committed_whole_or_not_at_all(tmp_path, victim):
    seed = {"client": 1, "server": 2, "both": 3}[victim]
    rnd = random.Random(seed)
    print(f"seed {seed}, {KILLS} kills")
    server = RedisServer(tmp_path / "redis")
    server.start()
    store, journal, state = tmp_path / "store", tmp_path / "journal", tmp_path / "state"
    state.write_text("{}")
    commits, seen = 0, set()
    for kill in range(KILLS):
        journal.unlink(missing_ok=True)
        arguments = [str(store), str(journal), str(seed * 1000 + kill), server.url, str(state)]
        child = subprocess.Popen([sys.executable, str(CHILD), *arguments])
        try:
            # The moment is counted from when the child has begun to work, so that a slow start hides nothing.
            deadline = time.monotonic() + 60
            while not (journal.exists() and journal.stat().st_size):
                assert child.poll() is None, "the child ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rnd.random() ** 2 * 0.5)
            if victim != "client":
                server.kill()
            if victim == "server":
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
        if not server.alive:
            server.start()
        acknowledged, later = read_journal(journal)
        commits += len(later) + bool(acknowledged)
        found, homes = asyncio.run(look(store, server.url))
        seen |= homes
        assert found in [acknowledged, *later], f"kill {kill}: neither the last acknowledged commit nor a later one"
        state.write_text(json.dumps(found))
    server.kill()
    assert commits
    assert len(seen) == 2, "both controllers took part"
