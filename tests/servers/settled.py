"""The check for leaks, for tests of obstore: it closes its connections in its own threads, some moments behind its stores."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest


async def _warm() -> None:
    await obstore.put_async(obstore.store.MemoryStore(), "x", b"")


# obstore's threads and their descriptors stay for the life of the process.
asyncio.run(_warm())


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """No connection is left thirty seconds behind a test. To be bound to the name `_no_leaks` in a module."""
    before = _sockets()
    yield
    deadline = time.monotonic() + 30
    _collect()
    while left := _sockets() - before:
        assert time.monotonic() < deadline, f"connections left: {left}"
        time.sleep(0.02)
        _collect()


def _collect() -> None:
    # What obstore's threads let go of is given up with its next call: a future with an error, whose traceback knows the store.
    obstore.store.MemoryStore()
    gc.collect()


def _sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}
