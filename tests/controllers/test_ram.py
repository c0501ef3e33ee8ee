"""The RAM controller passes the suite, plain and compressed."""

from __future__ import annotations

import uuid

import pytest
from dstorage_controllers.ram import RamController

from dstorage import InvalidArgumentError, OpenContext
from dstorage.controller import WriteRequest
from dstorage.testing import ControllerTests, payload


class TestPlain(ControllerTests):
    def make(self, directory):
        return RamController()

    def make_small(self, directory, capacity):
        return RamController(capacity=capacity)


class TestCompressed(ControllerTests):
    def make(self, directory):
        return RamController("zswap", compress=True)

    def make_small(self, directory, capacity):
        return RamController("zswap", capacity, compress=3)


@pytest.mark.parametrize("wrong", [{"capacity": -1}, {"capacity": True}, {"compress": 23}, {"compress": "9"}])
def test_nonsense_is_refused_at_once(wrong):
    with pytest.raises(InvalidArgumentError):
        RamController(**wrong)


async def test_compression_counts_what_is_kept(tmp_path):
    ram = RamController(compress=True)
    await ram.open(OpenContext(uuid.uuid4(), 0, tmp_path))
    await ram.write([WriteRequest(1, bytes(100_000))])
    assert ram.space().used < 1000
    await ram.write([WriteRequest(2, payload(1, 100_000))])
    assert 100_000 <= ram.space().used < 101_000
    await ram.close()
