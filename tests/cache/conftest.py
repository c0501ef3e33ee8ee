"""A cache over memory, with a clock that moves when told to."""

from __future__ import annotations

import pytest

from dstorage.cache.asynchronous import AsyncCache
from dstorage.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
async def cache(store, clock):
    """A cache in a store of 1 MiB budget over memory, committing only when told."""
    async with AsyncCache(store, clock=clock, serializer="json") as opened:
        yield opened
