"""Disks that are full, fail, lie or do not answer; and what is left of the chunks then."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import subprocess
import sys
import threading
import warnings
from contextlib import suppress

import pytest
from devices import FaultyDevice, write_directly
from dstorage_controllers.disk import Device, DiskController, layout
from dstorage_controllers.disk import controller as controller_module
from dstorage_controllers.disk import device as device_module
from dstorage_controllers.disk.codec import checksum
from dstorage_controllers.disk.files import Segment, SegmentFiles

import dstorage
from dstorage import ControllerFull, ControllerStatus, ControllerUnavailable, CorruptData, Locator, Lost
from dstorage.buffers import fresh_bytes_at
from dstorage.catalog import Catalog, Changes
from dstorage.check import check
from dstorage.controller import ReadRequest, WriteRequest
from dstorage.errors import ControllerError
from dstorage.testing import Bench, eventually, payload

SMALL = 2**17


@pytest.fixture
def device():
    return FaultyDevice()


@pytest.fixture(params=["cached", "direct"])
def direct(request, monkeypatch):
    """Whether chunks of a page and more go past the page cache."""
    write_directly(monkeypatch, 4096)
    return request.param == "direct"


directly = pytest.mark.parametrize("direct", ["direct"], indirect=True)


@pytest.fixture
async def bench(tmp_path, device, direct):
    bench = Bench(DiskController(segment_bytes=SMALL, device=device, timeout=20, direct=direct), tmp_path / "own")
    await bench.open()
    yield bench
    device.gate.set()
    await bench.controller.close()


def chunks(first, count, size):
    return {id: payload(2 * id + 1, size) for id in range(first, first + count)}


async def offer(bench, wanted):
    answers = await bench.controller.write([WriteRequest(id, data) for id, data in wanted.items()])
    taken = {id: a for id, a in zip(wanted, answers, strict=True) if isinstance(a, Locator)}
    return taken, [answer for answer in answers if not isinstance(answer, Locator)]


# -- full ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 4095, 30_000, 40_000, 75_000, 130_000, 199_000])
async def test_a_full_disk_refuses_what_did_not_fit_and_keeps_the_rest(bench, device, room, tmp_path):
    kept = await bench.put(chunks(1, 3, 5000))
    await bench.commit(kept)
    device.room = room
    wanted = chunks(10, 6, 33_333)
    taken, refused = await offer(bench, wanted)
    # Some room goes to the slots that name the chunks, and to the table of a second segment.
    assert len(taken) == max(0, room - 256) // 33_333
    assert len(refused) == 6 - len(taken)
    assert all(isinstance(error, ControllerFull) for error in refused)
    assert bench.controller.status is ControllerStatus.FULL
    assert bench.changes == 1
    assert bench.controller.space().used == 15_000 + 33_333 * len(taken)
    assert await bench.get(taken) == {id: wanted[id] for id in taken}
    device.room = None
    again = await bench.put({id: data for id, data in wanted.items() if id not in taken})
    await bench.commit({**taken, **again})
    await bench.controller.close()
    after = Bench(DiskController(segment_bytes=SMALL), tmp_path / "own", bench.state)
    await after.open()
    assert await after.get({**kept, **taken, **again}) == {**chunks(1, 3, 5000), **wanted}
    await after.controller.close()


async def test_a_full_disk_is_asked_again_until_others_freed_space(bench, device, monkeypatch):
    monkeypatch.setattr(controller_module, "RECHECK_S", 0.001)
    device.room = 0
    await offer(bench, chunks(1, 1, 5000))
    assert bench.controller.status is ControllerStatus.FULL
    device.room = 10**9
    await eventually(lambda: bench.controller.status is ControllerStatus.OK, "still full")
    assert bench.changes == 2


async def test_a_full_disk_takes_no_new_segment(bench, device):
    device.fail("create", errno.ENOSPC)
    taken, refused = await offer(bench, chunks(1, 2, 5000))
    assert isinstance(refused[0], ControllerFull)
    assert await bench.get(taken) == {id: chunks(1, 2, 5000)[id] for id in taken}


async def test_a_quota_counts_as_full(bench, device):
    device.fail("pwritev", errno.EDQUOT)
    assert isinstance((await offer(bench, chunks(1, 1, 5000)))[1][0], ControllerFull)


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to mount")
async def test_a_really_full_file_system_comes_back(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        bench = Bench(DiskController(path=mount, segment_bytes=SMALL), tmp_path / "unused")
        await bench.open()
        wanted = chunks(1, 40, 50_001)
        taken, refused = await offer(bench, wanted)
        assert taken
        assert refused
        assert all(isinstance(error, ControllerFull) for error in refused)
        assert bench.controller.status is ControllerStatus.FULL
        assert await bench.get(taken) == {id: wanted[id] for id in taken}
        await bench.commit(taken)
        await bench.commit({}, taken)
        assert bench.controller.space().used == 0
        await eventually(lambda: bench.controller.status is ControllerStatus.OK, "still full")
        taken, _ = await offer(bench, wanted)
        assert taken
        assert await bench.get(taken) == {id: wanted[id] for id in taken}
        await bench.controller.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# -- errors that may pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EROFS])
async def test_a_failed_write_may_be_asked_again(bench, device, code):
    wanted = chunks(1, 5, 20_000)
    device.fail("pwritev", code)
    taken, refused = await offer(bench, wanted)
    assert all(isinstance(error, ControllerUnavailable) for error in refused)
    assert bench.controller.status is ControllerStatus.OK
    rest = await bench.put({id: data for id, data in wanted.items() if id not in taken})
    assert await bench.get({**taken, **rest}) == wanted
    assert bench.controller.space().used == 100_000


@pytest.mark.parametrize("code", [errno.EIO, errno.EAGAIN, errno.ETIMEDOUT])
async def test_a_failed_read_is_unavailable_and_works_the_next_time(bench, device, direct, code):
    places = await bench.put(chunks(1, 3, 5000))
    # The kernel is asked once more at once, for each of the three.
    device.fail("preadv_nowait", code, times=4)
    # And past the page cache in vain, it is asked for each of them.
    device.fail("preadv", code, times=4 if direct else 1)
    assert bench.controller.read_nowait(1, places[1]) is None
    assert all(isinstance(answer, ControllerUnavailable) for answer in (await bench.get(places)).values())
    assert await bench.get(places) == chunks(1, 3, 5000)


async def test_slots_that_cannot_be_written_take_their_chunks_with_them(bench, device):
    await bench.put(chunks(1, 1, 5000))
    device.faults["pwritev"] = [None, OSError(errno.EIO, "table")]
    taken, refused = await offer(bench, chunks(2, 2, 5000))
    assert not taken
    assert len(refused) == 2
    assert bench.controller.space().used == 5000
    assert await bench.get(await bench.put(chunks(2, 2, 5000))) == chunks(2, 2, 5000)


@pytest.mark.parametrize("what", ["sync", "sync_directory"])
async def test_a_failed_sync_fails_and_the_next_one_makes_good(bench, device, what):
    places = await bench.put(chunks(1, 3, 5000))
    device.fail(what, errno.EIO)
    with pytest.raises(ControllerUnavailable):
        await bench.controller.sync()
    before = device.calls["pwritev"], device.calls[what]
    await bench.controller.sync()
    assert device.calls[what] > before[1]
    if what == "sync":
        # The kernel may have dropped the pages: they have to be written once more.
        assert device.calls["pwritev"] >= before[0] + 3
    await bench.put(chunks(10, 2, 5000))
    assert await bench.get(places) == chunks(1, 3, 5000)


async def test_what_a_failed_sync_lost_is_told(bench, device, tmp_path):
    places = await bench.put(chunks(1, 3, 5000))
    device.fail("sync", errno.EIO)
    with pytest.raises(ControllerUnavailable):
        await bench.controller.sync()
    place = layout.unpack(2, places[2])
    with (tmp_path / "own" / layout.file_name(place.segment)).open("r+b") as file:
        file.seek(place.first)
        file.write(bytes(100))
    with pytest.warns(RuntimeWarning, match=r"lost chunks \[2\]"):
        await bench.controller.sync()
    answers = await bench.get(places)
    assert isinstance(answers.pop(2), CorruptData)
    assert answers == {id: data for id, data in chunks(1, 3, 5000).items() if id != 2}


async def test_space_that_cannot_be_given_back_is_no_error(bench, device):
    places = await bench.put(chunks(1, 30, 20_000))
    device.fail("unlink", errno.EIO, times=9)
    device.fail("punch", errno.EIO, times=9)
    await bench.controller.discard(list(places.items()))
    assert bench.controller.space().used == 0


async def test_damage_in_the_cache_alone_is_healed_by_reading_again(bench, device, monkeypatch):
    places = await bench.put(chunks(1, 1, 5000))
    real, first = Device.preadv, [True]

    def flipping(self, fd, buffers, offset, *, nowait=False):
        done = real(self, fd, buffers, offset, nowait=nowait)
        if not nowait and first:
            first.clear()
            buffers[0][7] ^= 1
        return done

    monkeypatch.setattr(Device, "preadv", flipping)
    assert await bench.get(places) == chunks(1, 1, 5000)


async def test_short_reads_and_writes_are_completed(tmp_path):
    class Stingy(Device):
        def preadv(self, fd, buffers, offset, *, nowait=False):
            return super().preadv(fd, [memoryview(buffers[0])[:777]], offset, nowait=nowait)

        def pwritev(self, fd, buffers, offset):
            return super().pwritev(fd, [memoryview(buffers[0])[:555]], offset)

    bench = Bench(DiskController(segment_bytes=SMALL, device=Stingy()), tmp_path / "own")
    await bench.open()
    wanted = {id: payload(id, 700 * id) for id in range(1, 12)}
    places = await bench.put(wanted)
    assert all(bench.controller.read_nowait(id, place) in (None, wanted[id]) for id, place in places.items())
    assert await bench.get(places) == wanted
    await bench.controller.close()


# -- no answer ------------------------------------------------------------------------------------------------------------


async def test_a_disk_that_hangs_is_unavailable_after_the_time_out(tmp_path, device):
    bench = Bench(DiskController(segment_bytes=SMALL, device=device, timeout=0.05), tmp_path / "own")
    await bench.open()
    places = await bench.put(chunks(1, 2, 5000))
    device.cold = True
    device.held = {"preadv", "pwritev"}
    (late,) = await bench.controller.write([WriteRequest(9, b"x" * 1000)])
    assert isinstance(late, ControllerUnavailable)
    assert all(isinstance(answer, ControllerUnavailable) for answer in (await bench.get(places)).values())
    device.held = set()
    device.gate.set()
    await eventually(lambda: bench.controller.space().used == 10_000, "a late write still counts")
    assert await bench.get(places) == chunks(1, 2, 5000)
    await bench.controller.close()


async def test_closing_waits_for_what_is_under_way(bench, device):
    places = await bench.put(chunks(1, 2, 5000))
    device.cold = True
    device.held = {"preadv", "pwritev"}
    reading = asyncio.create_task(bench.get(places))
    writing = asyncio.create_task(bench.put({3: b"three"}))
    await eventually(lambda: device.calls["preadv"] > 0 and device.calls["pwritev"] > 2, "not begun")
    closing = asyncio.create_task(bench.controller.close())
    await asyncio.sleep(0)
    assert not closing.done()
    device.gate.set()
    await closing
    assert await reading == chunks(1, 2, 5000)
    assert (await writing)[3].size == 5


async def test_concurrent_syncs_share_a_round(bench, device):
    await bench.put(chunks(1, 2, 5000))
    device.held = {"sync"}
    first = asyncio.create_task(bench.controller.sync())
    await eventually(lambda: device.calls["sync"] == 1, "not begun")
    await bench.put(chunks(3, 2, 5000))
    others = [asyncio.create_task(bench.controller.sync()) for _ in range(10)]
    device.gate.set()
    await asyncio.gather(first, *others)
    assert device.calls["sync"] == 2


async def test_a_sync_waits_for_a_round_that_took_its_writes(bench, device):
    await bench.put(chunks(1, 2, 5000))
    device.held = {"sync"}
    first = asyncio.create_task(bench.controller.sync())
    await eventually(lambda: device.calls["sync"] == 1, "not begun")
    second = asyncio.create_task(bench.controller.sync())
    done, _ = await asyncio.wait({second}, timeout=0.05)
    assert not done, "the bytes were not durable yet"
    device.gate.set()
    await asyncio.gather(first, second)


@pytest.mark.parametrize("direct", ["cached"], indirect=True)
async def test_a_read_the_cache_answers_in_part_goes_on_from_there(bench, device, monkeypatch):
    (place,) = (await bench.put({1: payload(1, 400_000)})).values()
    asked = []

    def half(self, fd, buffers, offset, *, nowait=False):
        asked.append(sum(len(buffer) for buffer in buffers))
        if nowait:
            buffers = [memoryview(buffers[0])[:360_000]]
        return Device.preadv(self, fd, buffers, offset)

    monkeypatch.setattr(FaultyDevice, "preadv", half)
    assert bench.controller.read_nowait(1, place) is None
    assert await bench.get({1: place}) == {1: payload(1, 400_000)}
    assert asked == [400_000, 40_000]


async def test_reading_in_sequence_is_told_to_the_kernel(tmp_path):
    class Attentive(FaultyDevice):
        def expect(self, fd, *, in_sequence):
            expected.append(in_sequence)
            super().expect(fd, in_sequence=in_sequence)

    expected = []
    bench = Bench(DiskController(device=Attentive(nowait=False)), tmp_path / "own")
    await bench.open()
    places = await bench.put(chunks(1, 8, 8192))
    for id in (1, 2, 3, 7, 5, 4):
        assert bench.controller.read_nowait(id, places[id]) is None
        await bench.get({id: places[id]})
    assert expected == [False, True, False]
    await bench.controller.close()


# -- files that are not what they were --------------------------------------------------------------------------------------


async def reopened(bench, tmp_path, **options):
    again = Bench(DiskController(segment_bytes=SMALL, **options), tmp_path / "own", bench.state)
    await again.open()
    return again


async def test_missing_segments_are_told_and_their_chunks_lost(bench, tmp_path):
    wanted = chunks(1, 20, 20_000)
    places = await bench.put(wanted)
    await bench.commit(places)
    await bench.controller.close()
    number = layout.unpack(1, places[1]).segment
    (tmp_path / "own" / layout.file_name(number)).unlink()
    with pytest.warns(RuntimeWarning, match="1 segment files are missing"):
        again = await reopened(bench, tmp_path)
    for id, answer in (await again.get(places)).items():
        if layout.unpack(id, places[id]).segment == number:
            assert isinstance(answer, Lost)
            assert answer.id == id
        else:
            assert answer == wanted[id]
    # They can be given up like any others.
    await again.commit({}, places)
    assert again.controller.space().used == 0
    await again.controller.close()


async def test_an_unmounted_disk_is_unavailable_not_lost(bench, tmp_path):
    await bench.commit(await bench.put(chunks(1, 3, 5000)))
    await bench.controller.close()
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    away = Bench(DiskController(), tmp_path / "own", bench.state)
    with pytest.raises(ControllerUnavailable, match="mounted"):
        await away.open()
    await away.controller.close()
    assert not (tmp_path / "own").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "own")
    await (await reopened(bench, tmp_path)).controller.close()


async def test_what_no_commit_knows_is_removed_at_open(bench, tmp_path):
    places = await bench.put(chunks(1, 3, 5000))
    await bench.commit(places)
    await bench.put(chunks(10, 60, 5000))
    await bench.controller.close()
    own = tmp_path / "own"
    (own / "keep.txt").write_text("not ours")
    assert len(list(own.glob("*.seg"))) > 1
    again = await reopened(bench, tmp_path)
    (only,) = own.glob("*.seg")
    assert only.stat().st_size == layout.unpack_state(1, bench.state[1]).tail
    assert (own / "keep.txt").exists()
    assert await again.get(places) == chunks(1, 3, 5000)
    await again.controller.close()


async def test_a_damaged_state_is_refused(bench, tmp_path):
    await bench.commit(await bench.put(chunks(1, 3, 5000)))
    await bench.controller.close()
    for spoilt in ({1: b"xx"}, {1: bytes(24)}, {1: b"\xff" * 24}, {0: b"short"}):
        damaged = Bench(DiskController(), tmp_path / "own", {**bench.state, **spoilt})
        with pytest.raises(ControllerError):
            await damaged.open()
        await damaged.controller.close()
    assert (tmp_path / "own" / layout.file_name(1)).exists()


# -- layout on disk ---------------------------------------------------------------------------------------------------------


async def test_the_directory_is_made_durably(bench, device):
    assert device.calls["sync_directory"] >= 1


async def test_files_are_for_their_owner_alone(bench, tmp_path):
    await bench.put(chunks(1, 1, 10))
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "own" / layout.file_name(1)).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("direct", ["cached"], indirect=True)
async def test_page_sized_chunks_are_punched_out_whole_when_nothing_more_dies(bench, tmp_path, device, monkeypatch):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    places = await bench.put(chunks(1, 16, 4096))
    await bench.controller.sync()
    path = tmp_path / "own" / layout.file_name(1)
    before = path.stat().st_blocks
    monkeypatch.setattr("dstorage_controllers.disk.controller.TIDY_S", 0.01)
    await bench.controller.discard(list(places.items())[:12])
    await eventually(lambda: path.stat().st_blocks <= before - 12 * 8, "the space is given back")
    assert device.calls["punch"] == 1, "neighbours go together"
    assert await bench.get(dict(list(places.items())[12:])) == chunks(13, 4, 4096)


async def test_of_very_many_holes_the_largest_are_punched_first_and_the_others_in_their_turn(
    bench, device, monkeypatch
):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    monkeypatch.setattr("dstorage_controllers.disk.log.MOST_HOLES", 2)
    places = await bench.put(chunks(1, 12, 4096))
    await bench.commit(places)
    monkeypatch.setattr("dstorage_controllers.disk.controller.TIDY_S", 0.01)
    dead = [1, 3, 5, 6, 8, 9, 10]
    await bench.controller.discard([(id, places[id]) for id in dead])
    await eventually(lambda: sum(device.punched) == len(dead) * 4096, "all space is given back")
    assert device.punched == [2 * 4096, 3 * 4096, 4096, 4096]
    assert await bench.get({id: place for id, place in places.items() if id not in dead}) == {
        id: data for id, data in chunks(1, 12, 4096).items() if id not in dead
    }


async def test_holes_that_were_left_for_later_have_their_turn_though_punching_the_others_took_long(
    bench, device, monkeypatch
):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    monkeypatch.setattr("dstorage_controllers.disk.log.MOST_HOLES", 1)
    monkeypatch.setattr("dstorage_controllers.disk.controller.TIDY_S", 0.01)
    places = await bench.put(chunks(1, 12, 4096))
    await bench.commit(places)
    device.held.add("punch")
    await bench.controller.discard([(id, places[id]) for id in (1, 3, 5)])
    await eventually(lambda: device.calls["punch"] == 1, "a thread is at it")
    # Long enough to look again, and to find nothing: the thread has it all.
    await asyncio.sleep(0.1)
    device.held.clear()
    device.gate.set()
    await eventually(lambda: sum(device.punched) == 3 * 4096, "all space is given back")


async def test_a_close_gives_back_no_more_than_it_has_time_for(bench, device, monkeypatch):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    monkeypatch.setattr("dstorage_controllers.disk.log.MOST_HOLES", 3)
    places = await bench.put(chunks(1, 100, 4096))
    await bench.commit(places)
    assert len({layout.unpack(id, place).segment for id, place in places.items()}) > 3
    await bench.controller.discard([(id, place) for id, place in places.items() if id % 8 == 1])
    assert not device.punched, "it waits"
    await bench.controller.close()
    assert len(device.punched) == 3


async def test_nothing_is_given_back_any_more_after_a_close_that_was_cancelled(bench, device):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    places = await bench.put(chunks(1, 12, 4096))
    await bench.commit(places)
    device.held.add("punch")
    await bench.controller.discard([(id, places[id]) for id in range(1, 12, 2)])
    before = os.listdir("/proc/self/fd")
    closing = asyncio.create_task(bench.controller.close())
    await eventually(lambda: device.calls["punch"] == 1, "a thread is at it")
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    device.gate.set()
    await eventually(lambda: not threads_of(bench.controller), "the threads end")
    assert device.calls["punch"] == 1, "others may have opened the files, and written behind the last commit's end"
    assert len(os.listdir("/proc/self/fd")) < len(before), "the files are closed"


def threads_of(controller):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"dstorage-{controller.name}")]


async def test_a_full_disk_gets_the_space_of_what_is_dead_before_anybody_is_refused(bench, device):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    places = await bench.put(chunks(1, 12, 8192))
    await bench.commit(places)
    await bench.controller.discard([(id, places[id]) for id in range(1, 9)])
    assert not device.punched, "it waits"
    device.room = 4096
    taken, refused = await offer(bench, chunks(101, 6, 8192))
    assert not refused
    assert bench.controller.status is ControllerStatus.OK
    assert await bench.get(taken) == chunks(101, 6, 8192)
    assert await bench.get({id: places[id] for id in range(9, 13)}) == chunks(9, 4, 8192)
    taken, refused = await offer(bench, chunks(201, 6, 8192))
    assert refused, "now it is full indeed"
    assert bench.controller.status is ControllerStatus.FULL


@pytest.mark.parametrize("direct", ["cached"], indirect=True)
async def test_dead_segments_are_deleted(bench, tmp_path):
    places = await bench.put(chunks(1, 40, 20_000))
    await bench.commit(places)
    await bench.commit({}, places)
    assert len(list((tmp_path / "own").glob("*.seg"))) == 1, "the one being appended to"
    assert set(bench.state) == {0}


@pytest.mark.parametrize("punch", [True, False])
async def test_sparse_segments_can_be_compacted(tmp_path, punch):
    bench = Bench(DiskController(segment_bytes=SMALL, punch=punch), tmp_path / "own")
    await bench.open()
    wanted = chunks(1, 60, 8192)
    records = await bench.put(wanted)
    await bench.commit(records)
    dead = {id: place for id, place in records.items() if id % 5}
    await bench.commit({}, dead)
    records = {id: place for id, place in records.items() if id not in dead}
    sparse = await bench.controller.sparse_segments(0.5)
    assert bool(sparse) is not punch, "where holes are punched there is nothing to gain"
    for number in await bench.controller.sparse_segments(1.0):
        found = await bench.controller.extents(number)
        moving = {id: place for id, place in found if records.get(id) == place}
        moved = await bench.put(await bench.get(moving))
        await bench.commit(moved, moving)
        records.update(moved)
        assert not (tmp_path / "own" / layout.file_name(number)).exists()
    assert await bench.get(records) == {id: wanted[id] for id in records}
    await bench.controller.close()


def test_a_segment_may_be_begun_while_others_files_are_closed(tmp_path, device, monkeypatch):
    monkeypatch.setattr("dstorage_controllers.disk.files.OPEN_FILES", 0)
    files = SegmentFiles(device, tmp_path, read_only=False)
    segments = {}

    class Sibling(Segment):
        """While it is looked at, the writer thread begins another."""

        @property
        def direct_fd(self):
            segments[self.number + 1] = Segment(self.number + 1, 0)
            return -1

        @direct_fd.setter
        def direct_fd(self, fd):
            pass

    segments[1] = Sibling(1, 0)
    segments[5] = Segment(5, 0)
    files.create(segments[5])
    files.close_surplus(segments.values())
    assert segments[5].fd == -1
    assert sorted(segments) == [1, 2, 5]


@pytest.mark.parametrize("direct", ["cached"], indirect=True)
async def test_a_thread_that_reads_a_segment_while_it_is_deleted_reads_to_its_end_and_then_the_file_is_closed(
    bench, device, monkeypatch
):
    wanted = chunks(1, 40, 20_000)
    places = await bench.put(wanted)
    first = {id: place for id, place in places.items() if layout.unpack(id, place).segment == 1}
    closed = []
    close = device.close
    monkeypatch.setattr(device, "close", lambda fd: (closed.append(fd), close(fd)))
    device.held.add("preadv_nowait")
    readers = [asyncio.create_task(asyncio.to_thread(bench.controller.read_in_thread, 1, places[1])) for _ in range(3)]
    await eventually(lambda: device.calls["preadv_nowait"] == 3, "the threads read")
    await bench.controller.discard(list(first.items()))
    assert device.calls["unlink"] == 1
    assert not closed
    device.gate.set()
    assert await asyncio.gather(*readers) == [wanted[1]] * 3
    await eventually(lambda: len(closed) == 1, "it is closed, once")
    assert await asyncio.to_thread(bench.controller.read_in_thread, 1, places[1]) is None


async def test_more_files_than_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr("dstorage_controllers.disk.files.OPEN_FILES", 3)
    bench = Bench(DiskController(segment_bytes=2**14), tmp_path / "own")
    await bench.open()
    wanted = chunks(1, 40, 15_000)
    places = await bench.put(wanted)
    for _ in range(3):
        assert await bench.get(places) == wanted
        open_now = (
            [fd for fd in os.listdir("/proc/self/fd") if _links_to(fd, tmp_path)] if sys.platform == "linux" else []
        )
        assert len(open_now) <= 3
    await bench.controller.close()


async def test_a_descriptor_in_use_is_not_closed(bench, device, monkeypatch):
    monkeypatch.setattr("dstorage_controllers.disk.files.OPEN_FILES", 1)
    wanted = chunks(1, 30, 15_000)
    places = await bench.put(wanted)
    device.cold = True
    device.held = {"preadv"}
    held = asyncio.create_task(bench.get({1: places[1]}))
    await eventually(lambda: device.calls["preadv"] == 1, "not begun")
    device.held = set()
    assert await bench.get({id: place for id, place in places.items() if id > 20}) == {
        i: wanted[i] for i in range(21, 31)
    }
    device.gate.set()
    assert await held == {1: wanted[1]}


def _links_to(fd, directory):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(directory))
    except OSError:
        return False


async def test_a_chunk_larger_than_a_segment_has_one_of_its_own(bench):
    wanted = {1: payload(1, 1000), 2: payload(3, 5 * SMALL), 3: payload(5, 1000)}
    places = await bench.put(wanted)
    assert len({layout.unpack(id, place).segment for id, place in places.items()}) == 3
    assert await bench.get(places) == wanted


async def test_a_segment_deleted_under_a_reader_does_no_harm(bench, device):
    places = await bench.put(chunks(1, 40, 20_000))
    device.cold = True
    device.held = {"preadv"}
    reading = asyncio.create_task(bench.get(places))
    await eventually(lambda: device.calls["preadv"] > 0, "not begun")
    await bench.controller.discard(list(places.items()))
    device.gate.set()
    for id, answer in (await reading).items():
        assert isinstance(answer, Lost | CorruptData) or answer == chunks(id, 1, 20_000)[id]


# -- keys -----------------------------------------------------------------------------------------------------------------


async def test_the_wrong_key_is_told_at_open(tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(bytes(range(32)))
    bench = Bench(DiskController(key_file=key), tmp_path / "own")
    await bench.open()
    places = await bench.put({1: b"secret words" * 100})
    await bench.commit(places)
    await bench.controller.close()
    assert b"secret words" not in (tmp_path / "own" / layout.file_name(1)).read_bytes()
    assert "0001020304" not in repr(bench.controller.settings)
    for wrong in (DiskController(), DiskController(key_env="DSTORAGE_OTHER_KEY")):
        monkeypatch.setenv("DSTORAGE_OTHER_KEY", "77" * 32)
        other = Bench(wrong, tmp_path / "own", bench.state)
        with pytest.raises(ControllerError, match="key"):
            await other.open()
        await wrong.close()
    key.write_text(bytes(range(32)).hex() + "\n")
    again = Bench(DiskController.from_settings("disk", bench.controller.settings), tmp_path / "own", bench.state)
    await again.open()
    assert await again.get(places) == {1: b"secret words" * 100}
    await again.controller.close()


@pytest.mark.parametrize("content", [b"", b"short", b"z" * 64, b"ab" * 33])
async def test_what_is_no_key_is_refused(tmp_path, content):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(content)
    bench = Bench(DiskController(key_file=key), tmp_path / "own")
    with pytest.raises(ControllerError, match="must hold 32 bytes"):
        await bench.open()
    await bench.controller.close()


@pytest.mark.parametrize("content", [b"0123456789abcdef" * 2, b"0123456789ABCDEF" * 2, b"a" * 31 + b"\n"])
async def test_half_a_key_in_hexadecimal_digits_is_no_key_in_bytes(tmp_path, content):
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(content)
    controller = DiskController(key_file=key)
    with pytest.raises(
        ControllerError, match=r"3\d hexadecimal digits, and a key has 64; make a key with .*token_hex\(32\)"
    ):
        await Bench(controller, tmp_path / "own").open()
    await controller.close()


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing there")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o600, 0o400])
async def test_a_key_file_that_others_may_use_is_warned_of(tmp_path, mode):
    key = tmp_path / "my key"
    key.write_bytes(bytes(range(32)))
    key.chmod(mode)
    controller = DiskController("vault", key_file=key)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        await Bench(controller, tmp_path / "own").open()
    await controller.close()
    if mode & 0o077:
        (warning,) = told
        assert warning.category is RuntimeWarning
        assert f"'vault': others than you may use its key_file {key} (mode {mode:o})" in str(warning.message)
        assert str(warning.message).endswith(f"chmod 600 '{key}'")
    else:
        assert not told


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing there")
async def test_a_key_file_of_somebody_else_is_taken_as_it_is(tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o640)
    monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1)
    controller = DiskController(key_file=key)
    await Bench(controller, tmp_path / "own").open()
    await controller.close()


def forge(directory, id, locator, data):
    """Put plain bytes in the place of a chunk, as who has no key can; returns what the catalog is to say."""
    place = layout.unpack(id, locator)
    data = data[: place.stored].ljust(place.stored, b"!")
    with (directory / layout.file_name(place.segment)).open("r+b") as file:
        file.seek(place.first)
        file.write(data)
    return layout.pack(place._replace(size=place.stored, flags=0, checksum=checksum(id, 0, data)))


def forge_nothing(id):
    return layout.pack(layout.NOWHERE._replace(checksum=checksum(id, 0, b"")))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("size", [300, 100_000])
async def test_with_a_key_no_plain_bytes_are_taken_for_a_chunk(tmp_path, monkeypatch, direct, size):
    write_directly(monkeypatch, 4096)
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "11" * 32)
    bench = Bench(DiskController(key_env="DSTORAGE_TEST_KEY", direct=direct), tmp_path / "own")
    await bench.open()
    controller = bench.controller
    places = await bench.put({1: b"a" * size, 2: b"b" * size, 3: b""})
    assert await bench.get(places) == {1: b"a" * size, 2: b"b" * size, 3: b""}
    for id, forged in {1: forge(tmp_path / "own", 1, places[1], b"c" * size), 2: forge_nothing(2)}.items():
        (answer,) = await controller.read([ReadRequest(id, forged)])
        assert isinstance(answer, CorruptData)
        assert f"chunk {id}" in str(answer)
        assert await asyncio.to_thread(controller.read_in_thread, id, forged) is None
        with suppress(CorruptData):
            assert controller.read_nowait(id, forged) is None
    assert await bench.get({2: places[2]}) == {2: b"b" * size}
    await controller.close()


async def test_a_forged_chunk_of_an_encrypted_store_is_lost_and_found_by_a_check(tmp_path, monkeypatch):
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "11" * 32)
    options = {"budget": 2**20, "pressure": None}
    disk = DiskController("disk", key_env="DSTORAGE_TEST_KEY")
    async with dstorage.open(tmp_path / "s", controllers=[disk], **options) as store:
        with await store.create(b"pay 1 to Alice " * 20) as handle, await store.create(b"other") as other:
            id, emptied = handle.id, other.id
    catalog = Catalog(tmp_path / "s" / "catalog")
    records = {number: catalog.get(number) for number in (id, emptied)}
    locators = {
        id: forge(tmp_path / "s" / "disk", id, records[id].locator, b"pay 9 to Mallory " * 20),
        emptied: forge_nothing(emptied),
    }
    catalog.apply(Changes({n: record._replace(locator=locators[n]) for n, record in records.items()}))
    catalog.close()
    async with dstorage.open(tmp_path / "s", **options) as store:
        with pytest.raises(Lost, match="not encrypted"):
            async with store.handle(id):
                pass
        with pytest.raises(Lost, match="empty chunk"):
            async with store.handle(emptied):
                pass
        assert {problem.id for problem in (await check(store)).problems if problem.kind == "lost"} == {id, emptied}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("chunk", [b"in the clear" * 100, b""])
async def test_a_controller_that_wrote_without_a_key_takes_none(tmp_path, monkeypatch, chunk, read_only):
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "11" * 32)
    bench = Bench(DiskController(), tmp_path / "own")
    await bench.open()
    places = await bench.put({1: chunk})
    await bench.commit(places)
    await bench.controller.close()
    with_key = Bench(DiskController(key_env="DSTORAGE_TEST_KEY"), tmp_path / "own", bench.state)
    with pytest.raises(ControllerError, match=r"without a key.*register another.*drain 'disk'"):
        await with_key.open(read_only=read_only)
    await with_key.controller.close()
    again = Bench(DiskController(), tmp_path / "own", bench.state)
    await again.open()
    assert await again.get(places) == {1: chunk}
    await again.controller.close()


@pytest.mark.parametrize("head", [None, layout.pack_head(layout.NO_KEY)])
async def test_a_head_that_is_taken_away_or_set_back_opens_nothing_with_the_key(tmp_path, monkeypatch, head):
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "11" * 32)
    bench = Bench(DiskController(key_env="DSTORAGE_TEST_KEY"), tmp_path / "own")
    await bench.open()
    places = await bench.put({1: b"secret" * 100})
    await bench.commit(places)
    await bench.controller.close()
    state = {key: value for key, value in bench.state.items() if key} | ({} if head is None else {0: head})
    forged = Bench(DiskController(key_env="DSTORAGE_TEST_KEY"), tmp_path / "own", state)
    with pytest.raises(ControllerError, match="without a key"):
        await forged.open()
    await forged.controller.close()
    again = Bench(DiskController(key_env="DSTORAGE_TEST_KEY"), tmp_path / "own", bench.state)
    await again.open()
    assert await again.get(places) == {1: b"secret" * 100}
    await again.controller.close()


async def test_ciphertext_moved_to_another_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "11" * 32)
    bench = Bench(DiskController(key_env="DSTORAGE_TEST_KEY"), tmp_path / "own")
    await bench.open()
    first = (await bench.put({1: b"a" * 5000}))[1]
    second = (await bench.put({1: b"b" * 5000}))[1]
    one, two = layout.unpack(1, first), layout.unpack(1, second)
    with (tmp_path / "own" / layout.file_name(1)).open("r+b") as file:
        file.seek(one.first)
        old = file.read(one.stored)
        file.seek(two.first)
        file.write(old)
    forged = layout.pack(two._replace(checksum=one.checksum))
    (answer,) = await bench.controller.read([ReadRequest(1, forged)])
    assert isinstance(answer, CorruptData)
    await bench.controller.close()


# -- the device itself ------------------------------------------------------------------------------------------------------


async def test_a_network_file_system_is_warned_of(tmp_path):
    class Remote(Device):
        def network(self, path):
            return "a network file system (nfs4)"

    bench = Bench(DiskController(device=Remote()), tmp_path / "own")
    with pytest.warns(RuntimeWarning, match="network file system"):
        await bench.open()
    await bench.controller.close()


async def test_open_costs_one_look_at_each_segment(bench, tmp_path):
    await bench.commit(await bench.put(chunks(1, 200, 4096)))
    await bench.controller.close()

    class Counting(FaultyDevice):
        def size(self, path):
            self.calls["size"] += 1
            return super().size(path)

    device = Counting()
    again = await reopened(bench, tmp_path, device=device)
    assert device.calls["size"] == len(bench.state) - 1
    assert not device.calls["preadv"]
    assert not device.calls["open"]
    await again.controller.close()


# -- past the page cache ------------------------------------------------------------------------------------------------


@directly
async def test_files_of_dead_segments_are_used_again_and_two_are_kept_at_most(bench, device, tmp_path):
    folder = tmp_path / "own"
    places = await bench.put(chunks(1, 40, 20_000))
    await bench.commit(places)
    await bench.commit({}, places)
    kept = {path.stat().st_ino for path in folder.glob("*.seg")}
    assert len(kept) == 3, "two and the one being appended to"
    wanted = chunks(101, 20, 20_000)
    again = await bench.put(wanted)
    await bench.commit(again)
    assert len(kept & {path.stat().st_ino for path in folder.glob("*.seg")}) == 3
    assert device.calls["rename"] == 2
    assert await bench.get(again) == wanted
    await bench.controller.close()
    named = {layout.file_name(number) for number in bench.state if number}
    assert {path.name for path in folder.glob("*.seg")} == named, "nothing is kept beyond the close"
    bench = await reopened(bench, tmp_path, direct=True)
    assert await bench.get(again) == wanted
    await bench.controller.close()


@directly
async def test_a_file_that_is_being_read_is_not_used_again(bench, device):
    places = await bench.put(chunks(1, 14, 20_000))
    first = {id: place for id, place in places.items() if layout.unpack(id, place).segment == 1}
    assert len(first) < len(places), "it is sealed"
    device.held.add("preadv")
    reading = asyncio.create_task(bench.get(first))
    await eventually(lambda: device.calls["preadv"], "a thread reads")
    await bench.controller.discard(list(first.items()))
    await bench.put(chunks(101, 14, 20_000))
    device.gate.set()
    await reading
    assert device.calls["rename"] == 0
    assert device.calls["unlink"] >= 1


async def test_dead_bytes_wait_for_their_segment_but_not_for_ever(bench, device, tmp_path, monkeypatch):
    if not device.can_punch:
        pytest.skip("this file system cannot punch holes")
    # Else 16 MiB may wait, which is more than there is here.
    monkeypatch.setattr("dstorage_controllers.disk.log.WAITING_BYTES", 0)
    places = await bench.put(chunks(1, 60, 16_384))
    survivors = {id: place for id, place in places.items() if id % 7 == 0}
    await bench.commit(places)
    await bench.controller.sync()
    taken = used_by(tmp_path / "own")
    dead = {id: place for id, place in places.items() if id not in survivors}
    await bench.controller.discard(list(dead.items()))
    assert taken - used_by(tmp_path / "own") >= len(dead) * 16_384 - 3 * SMALL
    await bench.controller.close()
    assert used_by(tmp_path / "own") <= len(survivors) * 16_384 + SMALL


def used_by(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*.seg"))


@directly
async def test_what_is_kept_for_new_segments_is_given_up_when_the_disk_is_full(bench, device, tmp_path):
    places = await bench.put(chunks(1, 40, 20_000))
    await bench.controller.discard(list(places.items()))
    assert len(list((tmp_path / "own").glob("*.seg"))) == 3
    device.room = 0
    taken, refused = await offer(bench, chunks(101, 1, 20_000))
    assert not refused, "there is room in what was dead"
    assert len(list((tmp_path / "own").glob("*.seg"))) == 1
    assert await bench.get(taken) == chunks(101, 1, 20_000)


async def test_where_the_file_system_refuses_direct_access_a_warning_says_so_and_the_cache_is_used(
    tmp_path, monkeypatch
):
    write_directly(monkeypatch, 4096)

    class Refusing(FaultyDevice):
        def open_direct(self, path, *, write=True):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))

    bench = Bench(DiskController(segment_bytes=SMALL, device=Refusing(), direct=True), tmp_path / "own")
    with pytest.warns(RuntimeWarning, match="direct=True has no effect"):
        await bench.open()
    wanted = chunks(1, 10, 20_000)
    places = await bench.put(wanted)
    await bench.commit(places)
    assert await bench.get(places) == wanted
    await bench.controller.close()
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["00000001.seg", "00000002.seg"]


async def test_what_one_way_wrote_the_other_way_reads(tmp_path, monkeypatch):
    write_directly(monkeypatch, 4096)
    wanted, places, state = {}, {}, {}
    for turn, direct in enumerate([False, True, False, True]):
        bench = Bench(DiskController(segment_bytes=2**20, direct=direct), tmp_path / "own", state)
        await bench.open()
        fresh = {id: payload(id, size) for id, size in enumerate([100, 5000, 8192, 4096, 70, 12_000], 10 * turn + 1)}
        new = await bench.put(fresh)
        wanted |= fresh
        places |= new
        assert await bench.get(places) == wanted
        await bench.commit(new)
        assert await bench.get(places) == wanted
        await bench.controller.close()
        state = bench.state


def test_a_file_system_that_cannot_read_without_waiting_is_not_asked_again(monkeypatch):
    if not Device().can_read_held:
        pytest.skip("no RWF_NOWAIT here")
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(device_module, "_preadv2", refuse)
    device = Device()
    _, address = fresh_bytes_at(4)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            device.read_held(0, address, 4, 0)
    assert len(calls) == 1
    assert not device.can_read_nowait
    assert not device.can_read_held
