"""The disk controller against a dict: any order of writes, reads, discards, commits, failures, crashes and reopenings."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from devices import FaultyDevice, write_directly
from dstorage_controllers.disk import DiskController, layout
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dstorage import ControllerUnavailable, Locator
from dstorage.controller import WriteRequest
from dstorage.testing import Bench, payload

IDS = st.integers(1, 12)
SIZES = st.sampled_from([0, 1, 100, 4096, 5000, 12_288, 40_000])
FAULTS = [
    ("pwritev", errno.ENOSPC),
    ("pwritev", errno.EIO),
    ("create", errno.ENOSPC),
    ("rename", errno.EIO),
    ("open", errno.EMFILE),
]


class DiskMachine(RuleBasedStateMachine):
    options: dict = {}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="dstorage-test-"))
        self.device = FaultyDevice()
        self.bench = None
        self.state = {}
        self.contents = {}
        self.records = {}
        self.fresh = {}
        self.dead = {}
        self.committed = ({}, {})
        self.version = 0

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def open(self):
        self.device.faults.clear()
        controller = DiskController(segment_bytes=2**15, device=self.device, **self.options)
        self.bench = Bench(controller, self.directory / "own", self.state)
        self.do(self.bench.open())

    @rule(ids=st.lists(IDS, min_size=1, max_size=5, unique=True), size=SIZES, fault=st.sampled_from([None, *FAULTS]))
    def write(self, ids, size, fault):
        chunks = {}
        for id in ids:
            self.version += 1
            chunks[id] = payload(self.version, size + id % 3)
        if fault is not None:
            self.device.fail(*fault)
        requests = [WriteRequest(id, data) for id, data in chunks.items()]
        answers = self.do(self.bench.controller.write(requests))
        self.device.faults.clear()
        for (id, data), answer in zip(chunks.items(), answers, strict=True):
            if isinstance(answer, Locator):
                self._replace(id, answer)
                self.contents[id] = data
            else:
                assert fault is not None

    def _replace(self, id, place):
        if id in self.fresh:
            self.do(self.bench.controller.discard([(id, self.fresh.pop(id))]))
        elif id in self.committed[0]:
            self.dead[id] = self.committed[0][id]
        self.records.pop(id, None)
        if place is not None:
            self.fresh[id] = self.records[id] = place

    @rule(id=IDS)
    def delete(self, id):
        if id in self.records:
            self._replace(id, None)
            del self.contents[id]

    @rule(fails=st.booleans())
    def commit(self, fails):
        if fails:
            self.device.fail("sync", errno.EIO)
            try:
                self.do(self.bench.controller.sync())
            except ControllerUnavailable:
                return
            finally:
                self.device.faults.clear()
        self.do(self.bench.controller.sync())
        dead = dict(self.dead)
        self.bench.save(self.bench.controller.checkpoint(list(self.fresh.items()), list(dead.items())))
        self.bench.controller.committed()
        self.state = dict(self.bench.state)
        self.committed = (dict(self.records), dict(self.contents))
        self.fresh, self.dead = {}, {}
        self.do(self.bench.controller.discard(list(dead.items())))

    @rule()
    def commit_that_fails_at_the_switch(self):
        self.do(self.bench.controller.sync())
        self.bench.controller.checkpoint(list(self.fresh.items()), list(self.dead.items()))

    @rule(share=st.sampled_from([0.3, 0.9]))
    def compact(self, share):
        for number in self.do(self.bench.controller.sparse_segments(share))[:2]:
            found = self.do(self.bench.controller.extents(number))
            moving = {id: place for id, place in found if self.records.get(id) == place}
            for id, place in self.do(self.bench.put(self.do(self.bench.get(moving)))).items():
                self._replace(id, place)

    @rule()
    def crash(self):
        self.do(self.bench.controller.close())
        self.records, self.contents = (dict(part) for part in self.committed)
        self.fresh, self.dead = {}, {}
        self.open()
        assert self.bench.controller.space().used == sum(place.c >> 32 for place in self.records.values())

    @invariant()
    def everything_reads_as_written(self):
        if self.bench is None:
            return
        assert self.do(self.bench.get(self.records)) == self.contents
        for id, place in self.records.items():
            assert self.bench.controller.read_nowait(id, place) in (None, self.contents[id])
        alive = [*self.records.items(), *self.dead.items()]
        assert self.bench.controller.space().used == sum(place.c >> 32 for _, place in alive)

    @precondition(lambda self: self.bench is not None)
    @rule()
    def every_live_chunk_is_found_by_a_scan(self):
        found = set()
        for number in {layout.unpack(id, place).segment for id, place in self.records.items() if place.size}:
            found |= set(self.do(self.bench.controller.extents(number)))
        assert {pair for pair in self.records.items() if pair[1].size} <= found

    def teardown(self):
        if self.bench is not None:
            self.do(self.bench.controller.close())
        self.loop.close()
        shutil.rmtree(self.directory)


class CompressedMachine(DiskMachine):
    options = {"compress": True}  # noqa: RUF012


class EncryptedMachine(DiskMachine):
    options = {"compress": 1, "key_env": "DSTORAGE_TEST_KEY"}  # noqa: RUF012


class FewDescriptorsMachine(DiskMachine):
    options = {"threads": 2, "punch": False}  # noqa: RUF012


class DirectMachine(DiskMachine):
    options = {"direct": True}  # noqa: RUF012


class TestPlain(DiskMachine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=25)


class TestCompressed(CompressedMachine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25)


class TestEncrypted(EncryptedMachine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25)

    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch):
        monkeypatch.setenv("DSTORAGE_TEST_KEY", "5a" * 32)


class TestDirect(DirectMachine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=25)

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        write_directly(monkeypatch, 4096)


class TestFewDescriptors(FewDescriptorsMachine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25)

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr("dstorage_controllers.disk.files.OPEN_FILES", 2)
