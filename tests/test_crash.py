"""SIGKILL at random moments: after each reopen the store is one whole commit, the last acknowledged one or a later one."""

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

import dstorage
from dstorage.check import check

CHILD = Path(__file__).with_name("crash_child.py")
KILLS = int(os.environ.get("DSTORAGE_TEST_KILLS", "25"))
"""Per seed; CI runs more."""


def read_journal(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The state at the last acknowledged commit, and the states of commits asked for after it."""
    acknowledged: dict[str, str] = {}
    later: list[dict[str, str]] = []
    asked: dict[int, dict[str, str]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The kill may have cut the last line.
        if entry["kind"] == "opened":
            acknowledged, later, asked = entry["state"], [], {}
        elif entry["kind"] == "asked":
            asked[entry["number"]] = entry["state"]
            later.append(entry["state"])
        else:
            acknowledged, later = asked[entry["number"]], []
    return acknowledged, later


async def look(path: Path) -> dict[str, str]:
    async with dstorage.open(path, budget=2**20, commit_interval=None, pressure=None) as store:
        report = await check(store)
        assert report.problems == []
        found = {}
        for id in store.ids():
            async with store.handle(id) as data:
                found[str(id)] = hashlib.sha256(data).hexdigest()
        return found


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_one_whole_commit(tmp_path, seed):
    rnd = random.Random(seed)
    print(f"seed {seed}, {KILLS} kills")
    store, journal = tmp_path / "store", tmp_path / "journal"
    seen_commits = 0
    for kill in range(KILLS):
        journal.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, str(CHILD), str(store), str(journal), str(seed * 1000 + kill)])
        try:
            # The moment is counted from when the child has begun to work, so that a slow start hides nothing.
            deadline = time.monotonic() + 60
            while not (journal.exists() and journal.stat().st_size):
                assert child.poll() is None, "the child ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rnd.random() ** 2 * 0.3)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        acknowledged, later = read_journal(journal)
        seen_commits += len(later) + bool(acknowledged)
        found = asyncio.run(look(store))
        assert found in [acknowledged, *later], f"kill {kill}: neither the last acknowledged commit nor a later one"
    assert seen_commits
