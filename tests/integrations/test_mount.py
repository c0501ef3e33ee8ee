"""Stores open for all in a process who name them: threads, forks, interrupts, closing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import dstorage
import dstorage.blocking
from dstorage.integrations.mount import Mount
from dstorage.integrations.tree import Tree

OPTIONS = {"budget": 2**20, "pressure": False}


@pytest.fixture
def mount(tmp_path):
    mount = Mount(tmp_path / "s", OPTIONS)
    yield mount
    mount.close()


async def forever(tree, begun):
    begun.set()
    await asyncio.Event().wait()


def test_many_threads_open_it_once(mount):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: mount.call(Tree.write, f"a/{number}", b"%d" % number), range(50)))
        read = list(pool.map(lambda number: bytes(mount.call(Tree.read, f"a/{number}")), range(50)))
    assert read == [b"%d" % number for number in range(50)]


def test_calls_under_way_are_told_when_it_is_closed(mount):
    begun = threading.Event()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(mount.call, forever, begun)
        begun.wait()
        mount.close()
        with pytest.raises(dstorage.ClosedError):
            waiting.result()


async def test_awaits_under_way_are_told_when_it_is_closed(mount):
    begun = threading.Event()
    waiting = asyncio.create_task(mount.run(forever, begun))
    await asyncio.to_thread(begun.wait)
    await asyncio.to_thread(mount.close)
    with pytest.raises(dstorage.ClosedError, match="closed while"):
        await waiting


async def test_calls_for_a_store_on_a_loop_that_ends_are_told(tmp_path):
    begun = threading.Event()
    async with dstorage.open(tmp_path / "s", **OPTIONS) as store:
        mount = Mount(store, {})
        waiting = asyncio.create_task(asyncio.to_thread(mount.call, forever, begun))
        await asyncio.to_thread(begun.wait)
        for task in asyncio.all_tasks():
            if "forever" in repr(task.get_coro()) or "_with_tree" in repr(task.get_coro()):
                task.cancel()
        with pytest.raises(dstorage.ClosedError, match="closed while"):
            await waiting


async def ask(tree):
    return 7


async def test_who_asks_a_loop_that_waits_for_the_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("dstorage.integrations.mount.HEARD_S", 0.2)
    async with dstorage.open(tmp_path / "s", **OPTIONS) as store:
        mount = Mount(store, {})
        with ThreadPoolExecutor() as pool:
            for asked in (lambda: mount.call(ask), lambda: asyncio.run(mount.run(ask))):
                with pytest.raises(dstorage.UsageError, match="in another thread"):
                    pool.submit(asked).result()
                assert await asyncio.get_running_loop().run_in_executor(pool, asked) == 7


def test_who_asks_a_loop_that_has_ended_is_told(tmp_path):
    code = (
        "import asyncio, sys, dstorage\n"
        "from dstorage.integrations.mount import Mount\n"
        "from dstorage.integrations.tree import Tree\n"
        "async def opened():\n"
        "    return await dstorage.open(sys.argv[1], pressure=False)\n"
        "store = asyncio.run(opened())\n"
        "try:\n"
        "    Mount(store, {}).call(Tree.read, 'a')\n"
        "except dstorage.ClosedError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "has ended" in done.stdout, done.stderr


async def test_cancelling_who_awaits_cancels_the_work(mount):
    begun, ended = threading.Event(), threading.Event()

    async def work(tree):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(mount.run(work))
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(ended.wait, 10)


def test_it_opens_again_after_closing(mount):
    mount.call(Tree.write, "a", b"1")
    mount.close()
    mount.close()
    assert bytes(mount.call(Tree.read, "a")) == b"1"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_store_is_open_once_however_it_is_named(mount, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    mount.call(Tree.write, "a", b"1")
    for name in ("d/../s", "link/s"):
        other = Mount(tmp_path / name, {})
        assert bytes(other.call(Tree.read, "a")) == b"1"
        other.close()


def test_a_store_that_takes_its_time_to_close_keeps_nobody_from_another(mount, tmp_path, monkeypatch):
    closing, go_on = threading.Event(), threading.Event()
    close = dstorage.blocking.Store.close

    def slow(store):
        if store.path.name == "s":
            closing.set()
            go_on.wait(30)
        close(store)

    monkeypatch.setattr(dstorage.blocking.Store, "close", slow)
    mount.call(Tree.write, "a", b"1")
    again = Mount(tmp_path / "s", {"budget": 2**21, "pressure": False})
    other = Mount(tmp_path / "t", OPTIONS)
    with ThreadPoolExecutor() as pool:
        closed = pool.submit(mount.close)
        closing.wait()
        waiting = pool.submit(again.call, Tree.read, "a")
        assert pool.submit(other.call, ask).result(20) == 7
        other.close()
        assert not waiting.done()
        go_on.set()
        closed.result(20)
        assert bytes(waiting.result(20)) == b"1"
    again.close()


def test_a_store_that_cannot_be_opened_can_be_later(mount, tmp_path):
    with dstorage.blocking.open(tmp_path / "s", pressure=False):
        for _ in range(2):
            with pytest.raises(dstorage.StoreLocked):
                mount.call(ask)
    assert mount.call(ask) == 7


def test_a_tree_that_was_made_while_it_was_closed_is_not_used(mount):
    """What was asked before the closing may come to an end after it."""
    mount.call(Tree.write, "a", b"1")
    stale = mount._tree
    mount.close()
    mount._tree = stale
    assert bytes(mount.call(Tree.read, "a")) == b"1"


FORK = """
import os, sys, threading, dstorage, dstorage.blocking
from dstorage.integrations.mount import Mount
from dstorage.integrations.tree import Tree

mount = Mount(sys.argv[1] + "/s", {"pressure": False})
mount.call(Tree.write, "a", b"1")
given = Mount(dstorage.blocking.open(sys.argv[1] + "/t", pressure=False), {})
given.call(Tree.write, "a", b"1")
child = os.fork()
if not child:
    told = []
    for each in (mount, given):
        try:
            each.call(Tree.read, "a")
        except dstorage.DStorageError as error:
            told.append(type(error).__name__)
    os.write(1, " ".join(told).encode())
    os._exit(0)
os.waitpid(child, 0)
assert bytes(mount.call(Tree.read, "a")) == bytes(given.call(Tree.read, "a")) == b"1"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_is_told_and_the_parent_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORK, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "StoreLocked ClosedError"), done.stderr
