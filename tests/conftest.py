"""Fixtures for all tests; every test fails that leaks a task, a thread or a file descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from memory_controller import MemoryController
from turns import settle

import dstorage

with contextlib.suppress(ImportError):
    import uvloop

    # Its library makes a pipe with the first loop and keeps it for the life of the process: no leak of a test's.
    uvloop.new_event_loop().close()

# By default the same examples everywhere; `--hypothesis-profile=explore` tries others, with a seed that is printed.
settings.register_profile(
    "dstorage", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("dstorage"), derandomize=False, max_examples=1000)
settings.load_profile("dstorage")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Choose the seed here, before hypothesis looks for one, so that the report can name it."""
    if config.getoption("hypothesis_profile") == "explore" and config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = secrets.randbits(32)


def pytest_report_header(config):
    seed = config.getoption("hypothesis_seed")
    return f"hypothesis seed: {'by test name' if seed is None else f'--hypothesis-seed={seed}'}"


def pytest_collection_modifyitems(items):
    """The task check is a coroutine, so only tests that have a loop get it: first, so that it is torn down last."""
    for item in items:
        if inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.fixturenames.insert(0, "_no_leaked_tasks")


@pytest.fixture
async def _no_leaked_tasks():
    before = asyncio.all_tasks()
    yield
    # Tasks that were cancelled on the way out get the turns they need to end.
    await settle()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"


@pytest.fixture(autouse=True)
def _no_leaks():
    threads = set(threading.enumerate())
    fds = _open_files()
    yield
    # The default executor ("asyncio_0") is the loop's, and ends with it after this.
    left = [t for t in threading.enumerate() if t not in threads and not t.daemon and not t.name.startswith("asyncio_")]
    for thread in left:
        thread.join(5)
    assert not [t.name for t in left if t.is_alive()], "threads left"
    leaked = sorted(_open_files() - fds)
    assert not leaked, f"descriptors left: {leaked}"


def _open_files() -> set[str]:
    if not Path("/proc/self/fd").exists():
        return set()
    names = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.add(f"{fd}:{os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return names


@pytest.fixture
def memory():
    """A durable in-process controller with fault switches."""
    return MemoryController()


@pytest.fixture
async def store(tmp_path, memory):
    """A store of 1 MiB budget over `memory`, committing only when told."""
    async with dstorage.open(
        tmp_path / "store", budget=2**20, controllers=[memory], commit_interval=None, pressure=None
    ) as opened:
        yield opened
