"""The RAM controller passes the suite, plain and compressed."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from dstorage_controllers.ram import RamController
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dstorage import ControllerFull, ControllerStatus, InvalidArgumentError, Locator, Lost, OpenContext
from dstorage.controller import ReadRequest, WriteRequest
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


class RamMachine(RuleBasedStateMachine):
    """Any order of writes and discards, against a dict."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.contents = {}
        self.places = {}
        self.version = 0

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @initialize(compress=st.sampled_from([False, 1]))
    def open(self, compress):
        self.ram = RamController(capacity=100_000, compress=compress)
        self.do(self.ram.open(OpenContext(uuid.uuid4(), 0, Path("unused"))))

    @rule(ids=st.lists(st.integers(1, 8), min_size=1, max_size=4), size=st.integers(0, 60_000))
    def write(self, ids, size):
        for id in ids:
            self.version += 1
            data = payload(self.version, size)
            (answer,) = self.do(self.ram.write([WriteRequest(id, data)]))
            if isinstance(answer, Locator):
                if id in self.places:
                    self.do(self.ram.discard([(id, self.places[id])]))
                self.places[id], self.contents[id] = answer, data
            else:
                assert isinstance(answer, ControllerFull)
                assert self.ram.status is ControllerStatus.FULL

    @rule(id=st.integers(1, 8))
    def discard(self, id):
        if id in self.places:
            self.do(self.ram.discard([(id, self.places.pop(id))]))
            del self.contents[id]

    @invariant()
    def reads_as_written(self):
        assert 0 <= self.ram.space().used <= 100_000
        for id, place in self.places.items():
            (answer,) = self.do(self.ram.read([ReadRequest(id, place)]))
            assert bytes(answer) == self.contents[id]
            assert bytes(self.ram.read_nowait(id, place) or self.contents[id]) == self.contents[id]
        if not self.places:
            assert self.ram.space().used == 0

    def teardown(self):
        self.do(self.ram.close())
        self.loop.close()


class TestModel(RamMachine.TestCase):
    settings = settings(max_examples=20, stateful_step_count=20)


async def test_a_locator_of_an_earlier_process_is_lost(tmp_path):
    first, second = RamController(), RamController()
    context = OpenContext(uuid.uuid4(), 0, tmp_path)
    await first.open(context)
    (old,) = await first.write([WriteRequest(1, b"old")])
    await first.close()
    await second.open(context)
    await second.write([WriteRequest(1, b"new")])
    (answer,) = await second.read([ReadRequest(1, old)])
    assert isinstance(answer, Lost)
    await second.close()


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
