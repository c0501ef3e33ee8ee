"""Fixtures for all tests; every test fails that leaks a task, a thread or a file descriptor."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from memory_controller import MemoryController

import dstorage

# Deterministic everywhere: the same examples on every machine; `--hypothesis-seed` explores others.
settings.register_profile("dstorage", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dstorage")


@pytest.fixture(autouse=True)
def _no_leaks():
    threads = set(threading.enumerate())
    fds = _open_files()
    yield
    left = [t for t in threading.enumerate() if t not in threads and t.is_alive() and not t.daemon]
    for thread in left:
        thread.join(5)
    assert not [t.name for t in left if t.is_alive() and not t.name.startswith("asyncio_")], "threads left"
    leaked = _open_files() - fds
    assert not {name for name in leaked if "dstorage" in name or "store" in name}, "descriptors left"


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


async def settle(rounds: int = 20) -> None:
    """Let everything that is ready to run on the loop run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
