"""The internet controller passes the suite on obstore's own stores; encryption, packs, orphans, outages."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import obstore
import pytest
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.layout import PIECES, Layout
from obstore.store import MemoryStore

from dstorage import Locator
from dstorage.testing import ControllerTests
from dstorage.testing.suite import STORE

KEY = "aa" * 32


async def _warm():
    await obstore.put_async(MemoryStore(), "x", b"")


# obstore's threads and their descriptors stay for the life of the process.
asyncio.run(_warm())


def layout(url: str = "", index: int = 3) -> Layout:
    return Layout(STORE, index, "internet", url)


class OnFiles(ControllerTests):
    """On a directory: objects can be damaged behind the controller's back."""

    options: ClassVar[dict[str, object]] = {}

    def make(self, directory):
        return InternetController(url=f"file://{directory}/bucket", **self.options)

    def make_small(self, directory, capacity):
        return InternetController(url=f"file://{directory}/bucket", capacity=capacity, **self.options)

    def path(self, directory: Path, id: int, locator: Locator) -> tuple[Path, int]:
        where = layout()
        place = where.unpack(id, locator)
        key = where.piece_key(place.number, 0) if place.flags & PIECES else where.key(place.number)
        return directory / "bucket" / key, place.offset

    def damage(self, directory, id, locator):
        path, offset = self.path(directory, id, locator)
        raw = bytearray(path.read_bytes())
        raw[offset + 20] ^= 1
        path.write_bytes(raw)
        return True

    def lose(self, directory, id, locator):
        self.path(directory, id, locator)[0].unlink()
        return True


class TestPlain(OnFiles):
    options: ClassVar = {"compress": False}


class TestCompressed(OnFiles):
    pass


class TestEncrypted(OnFiles):
    options: ClassVar = {"key_env": "INTERNET_TEST_KEY"}

    @pytest.fixture(autouse=True)
    def key(self, monkeypatch):
        monkeypatch.setenv("INTERNET_TEST_KEY", KEY)


class TestPieces(TestEncrypted):
    """Packs so small that most chunks are cut."""

    options: ClassVar = {"key_env": "INTERNET_TEST_KEY", "pack_bytes": 64 * 2**10}


class TestInMemory(ControllerTests):
    def setup_method(self):
        self.stores: dict[Path, MemoryStore] = {}

    def make(self, directory):
        return InternetController(url="s3://any/some/prefix", store=self.stores.setdefault(directory, MemoryStore()))
