"""The disk controller passes the suite in each of its forms."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import xxhash
from devices import write_directly
from dstorage_controllers.disk import Device, DiskController, layout
from dstorage_controllers.disk.codec import checksum

from dstorage.testing import ControllerTests

SMALL = 2**17
"""Segment size: small enough for every test to fill several."""


def file_of(directory: Path, id, locator) -> tuple[Path, layout.Place]:
    place = layout.unpack(id, locator)
    return directory / "own" / layout.file_name(place.segment), place


class DiskTests(ControllerTests):
    options: ClassVar[dict] = {}

    def device(self):
        return Device()

    def make(self, directory):
        return DiskController(segment_bytes=SMALL, device=self.device(), **self.options)

    def make_small(self, directory, capacity):
        return DiskController(segment_bytes=SMALL, capacity=capacity, device=self.device(), **self.options)

    def damage(self, directory, id, locator):
        path, place = file_of(directory, id, locator)
        with path.open("r+b") as file:
            file.seek(place.first + place.stored // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        return True

    def lose(self, directory, id, locator):
        path, place = file_of(directory, id, locator)
        with path.open("r+b") as file:
            file.truncate(place.first)
        return True


class TestPlain(DiskTests):
    pass


class TestLargeSegments(DiskTests):
    def make(self, directory):
        return DiskController(device=self.device())


class TestCompressed(DiskTests):
    options: ClassVar[dict] = {"compress": True}


class TestEncrypted(DiskTests):
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch):
        monkeypatch.setenv("DSTORAGE_TEST_KEY", "5a" * 32)

    options: ClassVar[dict] = {"key_env": "DSTORAGE_TEST_KEY", "compress": 1}


class TestNoPunching(DiskTests):
    def device(self):
        return Device(punch=False)


class TestNoReadingWithoutWaiting(DiskTests):
    def device(self):
        return Device(nowait=False)


class TestNoVectors(DiskTests):
    """As on Windows: no preadv, no RWF_NOWAIT, no holes."""

    def device(self):
        return Device(vectored=False, nowait=False, punch=False)


class TestDirect(DiskTests):
    """Past the page cache."""

    options: ClassVar[dict] = {"direct": True}

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        write_directly(monkeypatch, 3000)


class TestDirectEncrypted(TestDirect):
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch):
        monkeypatch.setenv("DSTORAGE_TEST_KEY", "5a" * 32)

    options: ClassVar[dict] = {"direct": True, "key_env": "DSTORAGE_TEST_KEY", "compress": 1}


class TestOneThread(DiskTests):
    options: ClassVar[dict] = {"threads": 1}


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1, 2**16 + 300, 2**18, 2**18 + 1, 2**20])
def test_the_checksum_is_the_formats_however_many_pieces_it_is_made_in(size):
    data = bytes(range(251)) * (size // 251 + 1)
    for view in (data[:size], bytearray(data[:size]), memoryview(data)[:size]):
        assert checksum(7, 2, view) == xxhash.xxh3_64_intdigest(data[:size], seed=7 ^ 2 << 62) & 0xFFFFFFFF


@pytest.mark.parametrize("size", [2**16 + 300, 2**18])
def test_to_check_a_chunk_of_medium_size_gives_no_other_thread_the_interpreter(size):
    data, go, steps = bytes(size), threading.Event(), []

    def compute():
        go.wait()
        for _ in range(1000):
            steps.append(1)

    thread = threading.Thread(target=compute)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread.start()
        go.set()
        for _ in range(2000):
            checksum(1, 0, data)
        assert not steps, "who waits for the interpreter does not get it"
    finally:
        sys.setswitchinterval(interval)
        thread.join()
