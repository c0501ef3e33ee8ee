"""The wrappers do nothing unasked (they pass the suite), and what they are asked for."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from dstorage_controllers.disk import DiskController
from dstorage_controllers.ram import RamController

from dstorage import ControllerFull, ControllerStatus, ControllerUnavailable, InvalidArgumentError, Lost, OpenContext
from dstorage.controller import ReadRequest, WriteRequest
from dstorage.testing import (
    Bench,
    Call,
    ControllerTests,
    FakeClock,
    FaultyController,
    FullController,
    LoggingController,
    SlowController,
    WrappedController,
)


class Wrapped(ControllerTests):
    """A wrapper belongs to its test: the catalog does not build it again."""

    def test_settings_are_json_and_build_it_again(self):
        wrapper = self.make(Path("unused"))
        with pytest.raises(InvalidArgumentError, match="register the wrapper itself"):
            type(wrapper).from_settings(wrapper.name, wrapper.settings)


class TestNothingButWrapped(Wrapped):
    def make(self, directory):
        return WrappedController(RamController())

    def make_small(self, directory, capacity):
        return WrappedController(RamController(capacity=capacity))


class TestFaultless(Wrapped):
    def make(self, directory):
        return FaultyController(DiskController(segment_bytes=2**17))


class TestNotSlow(Wrapped):
    def make(self, directory):
        return SlowController(DiskController(segment_bytes=2**17))


class TestNotFull(Wrapped):
    def make(self, directory):
        return FullController(RamController(), room=10**6)


class TestLogged(Wrapped):
    def make(self, directory):
        return LoggingController(DiskController(segment_bytes=2**17))


@pytest.fixture
async def ram(tmp_path):
    controller = RamController()
    await controller.open(OpenContext(uuid.uuid4(), 0, tmp_path))
    yield controller
    await controller.close()


def test_a_wrapper_shows_what_it_wraps():
    wrapper = FaultyController(DiskController("ssd", rank=7))
    assert (wrapper.kind, wrapper.name, wrapper.rank, wrapper.volatile) == ("disk", "ssd", 7, False)
    assert FaultyController.__dict__.get("kind") is None


async def test_planned_failures_come_in_their_order_and_end(ram):
    faulty = FaultyController(ram)
    faulty.fail("sync", ControllerUnavailable("first"))
    faulty.fail("sync", ControllerUnavailable("second"), times=2)
    told = []
    for _ in range(4):
        try:
            await faulty.sync()
        except ControllerUnavailable as error:
            told.append(str(error))
    assert told == ["first", "second", "second"]


async def test_single_requests_fail_in_their_places(ram):
    faulty = FaultyController(ram)
    faulty.fail_id("write", 2, ControllerFull("no"))
    one, two, three = await faulty.write([WriteRequest(id, bytes([id])) for id in (1, 2, 3)])
    assert isinstance(two, ControllerFull)
    faulty.fail_id("read", 3, Lost("gone", id=3))
    assert faulty.read_nowait(3, three) is None, "a planned failure of read is not slipped past"
    first, third = await faulty.read([ReadRequest(1, one), ReadRequest(3, three)])
    assert (bytes(first), type(third)) == (b"\x01", Lost)
    assert bytes((await faulty.read([ReadRequest(3, three)]))[0]) == b"\x03"
    faulty.fail("read", ControllerUnavailable("never met"), times=9)
    faulty.heal()
    assert bytes(faulty.read_nowait(3, three)) == b"\x03"


async def test_a_held_controller_answers_when_released(ram):
    slow = SlowController(ram)
    slow.hold()
    task = asyncio.create_task(slow.write([WriteRequest(1, b"x")]))
    await asyncio.sleep(0)
    assert (slow.waiting, task.done()) == (1, False)
    slow.release()
    assert (await task)[0].size == 1
    assert slow.waiting == 0


async def test_a_delay_passes_with_the_fake_clock(ram):
    clock = FakeClock()
    slow = SlowController(ram, 5.0, sleep=clock.sleep)
    task = asyncio.create_task(slow.sync())
    while not clock.sleeping:
        await asyncio.sleep(0)
    clock.advance(4.9)
    await asyncio.sleep(0)
    assert not task.done()
    clock.advance(0.1)
    await task


async def test_a_full_controller_takes_what_it_has_room_for(ram, tmp_path):
    full = FullController(ram, room=2)
    bench = Bench(full, tmp_path)
    await bench.open()
    answers = await full.write([WriteRequest(id, b"x") for id in (1, 2, 3)])
    assert [isinstance(answer, ControllerFull) for answer in answers] == [False, False, True]
    assert full.status is ControllerStatus.FULL
    full.room = 1
    assert full.status is ControllerStatus.OK
    assert bench.changes == 2


async def test_the_log_has_the_calls_and_their_errors(ram):
    log = LoggingController(ram)
    one, two = await log.write([WriteRequest(1, b"x"), WriteRequest(2, b"y")])
    await log.discard([(2, two)])
    await log.read([ReadRequest(1, one), ReadRequest(2, two)])
    log.read_nowait(1, one)
    with pytest.raises(Lost):
        log.read_nowait(2, two)
    assert log.calls == [
        Call("write", (1, 2)),
        Call("discard", (2,)),
        Call("read", (1, 2), 1),
        Call("read_nowait", (1,)),
    ]
    assert log.named("discard") == [Call("discard", (2,))]


async def test_sleepers_wake_in_the_order_of_their_times():
    clock = FakeClock(10.0)
    woken = []

    async def sleep(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock()))

    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2, 0)]
    while clock.sleeping < 3:
        await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    clock.advance(2)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert woken == [(0, 10.0), (1, 12.0), (2, 12.0)]
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
