"""Power failures: whatever part of the unsynced writes reached the disk, the last commit is whole.

Writes, discards, commits and compactions go through a recording device; then power is cut at random moments, and each
state the disk may be in is opened with the private state and the records of the last commit before that moment.
"""

from __future__ import annotations

import random
import uuid

import pytest
from devices import write_directly
from dstorage_controllers.disk import Device, DiskController

from dstorage import OpenContext
from dstorage.controller import ReadRequest
from dstorage.testing import Bench, RecordingDevice, payload, power_failures
from dstorage.testing.power import Renamed
from dstorage.testing.suite import STORE

STEPS = 60
MOMENTS = 25
STATES = 8


class Life:
    """A store's life over one controller, and what each commit promised."""

    def __init__(self, bench, device, seed):
        self.bench = bench
        self.device = device
        self.random = random.Random(seed)
        self.contents = {}
        self.records = {}
        self.committed = {}
        self.new = {}
        self.dead = {}
        self.promises = [(0, {}, {}, {})]
        self.versions = 0

    async def write(self):
        ids = self.random.sample(range(1, 40), self.random.randint(1, 6))
        chunks = {}
        for id in ids:
            self.versions += 1
            chunks[id] = payload(self.versions, self.random.choice([1, 300, 4096, 9000, 30_000]))
        for id, place in (await self.bench.put(chunks)).items():
            await self._replace(id, place)
            self.contents[id] = chunks[id]

    async def _replace(self, id, place):
        old = self.new.pop(id, None)
        if old is not None:
            await self.bench.controller.discard([(id, old)])
        elif id in self.committed:
            self.dead[id] = self.committed[id]
        self.new[id] = place
        self.records[id] = place

    async def commit(self):
        await self.bench.controller.sync()
        dead = dict(self.dead)
        self.bench.save(self.bench.controller.checkpoint(list(self.new.items()), list(dead.items())))
        # The catalog's own switch is durable at this moment.
        self.promises.append((self.device.position, dict(self.bench.state), dict(self.records), dict(self.contents)))
        self.bench.controller.committed()
        self.committed, self.new, self.dead = dict(self.records), {}, {}
        await self.bench.controller.discard(list(dead.items()))

    async def compact(self):
        for number in (await self.bench.controller.sparse_segments(0.6))[:2]:
            found = await self.bench.controller.extents(number)
            moving = {id: place for id, place in found if self.records.get(id) == place}
            chunks = await self.bench.get(moving)
            assert chunks == {id: self.contents[id] for id in moving}
            for id, place in (await self.bench.put(chunks)).items():
                await self._replace(id, place)

    async def live(self):
        for _ in range(STEPS):
            await self.random.choices([self.write, self.commit, self.compact], [6, 2, 1])[0]()
        await self.commit()


@pytest.mark.parametrize(("punch", "direct"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_last_commit_is_whole_after_any_power_failure(tmp_path, seed, punch, direct, monkeypatch):
    write_directly(monkeypatch, 4096)
    device = RecordingDevice(Device(punch=punch))
    bench = Bench(DiskController(segment_bytes=2**16, direct=direct, device=device), tmp_path / "own")
    await bench.open()
    life = Life(bench, device, seed)
    await life.live()
    await bench.controller.close()
    assert direct == any(isinstance(event, Renamed) for event in device.events), "files of dead segments are used again"
    source = random.Random(seed)
    moments = sorted({source.randint(0, device.position) for _ in range(MOMENTS)} | {p[0] for p in life.promises[-3:]})
    number = 0
    for at in moments:
        _, state, records, contents = next(p for p in reversed(life.promises) if p[0] <= at)
        for failure in power_failures(device, at=at, seed=seed, count=STATES):
            number += 1
            directory = tmp_path / f"after-{number}"
            failure.write_to(tmp_path / "own", directory / "own")
            await holds(directory, state, records, contents, failure.how)


async def holds(directory, state, records, contents, how):
    after = DiskController(segment_bytes=2**16)
    await after.open(OpenContext(STORE, 3, directory / "own", state))
    try:
        answers = await after.read([ReadRequest(id, place) for id, place in records.items()])
        for id, answer in zip(records, answers, strict=True):
            assert not isinstance(answer, Exception), f"{answer!r} after {how}"
            assert bytes(answer) == contents[id], how
        live = sum(place.c >> 32 for place in records.values())
        assert after.space().used == live, f"space leaks after {how}"
        named = {n for n in state if n}
        files = {int(path.stem) for path in (directory / "own").glob("*.seg")}
        assert files == named, f"files left over after {how}"
        # And it goes on from there.
        bench = Bench(after, directory, state)
        chunks = {id: payload(id, 5000) for id in range(1000, 1010)}
        places = await bench.put(chunks)
        await bench.commit(places)
        assert await bench.get(places) == chunks
        assert await bench.get(records) == contents
    finally:
        await after.close()


async def test_without_syncs_the_test_would_notice(tmp_path):
    """The states are hard enough: a controller that forgets to sync does not survive them."""

    class Forgetful(Device):
        def sync(self, fd):
            return None

    class Deaf(RecordingDevice):
        def sync(self, fd):
            return None

    device = Deaf(Forgetful())
    bench = Bench(DiskController(segment_bytes=2**16, device=device), tmp_path / "own")
    await bench.open()
    chunks = {id: payload(id, 5000) for id in range(1, 10)}
    places = await bench.put(chunks)
    await bench.commit(places)
    await bench.controller.close()
    broken = 0
    for number, failure in enumerate(power_failures(device, at=device.position, seed=1, count=10)):
        directory = tmp_path / f"after-{number}"
        failure.write_to(tmp_path / "own", directory / "own")
        try:
            await holds(directory, bench.state, places, chunks, failure.how)
        except (AssertionError, OSError):
            broken += 1
    assert broken >= 5


def test_the_same_seed_gives_the_same_states(tmp_path):
    device = RecordingDevice(Device())
    path = tmp_path / f"{uuid.UUID(int=7)}"
    fd = device.open(path, create=True)
    device.pwritev(fd, [b"a" * 2000], 0)
    device.sync(fd)
    device.sync_directory(tmp_path)
    device.pwritev(fd, [b"b" * 3000], 1000)
    device.close(fd)
    one, two = ([f.files for f in power_failures(device, at=device.position, seed=4, count=20)] for _ in range(2))
    assert one == two
    assert one[0][path] == b"a" * 2000
    assert one[1][path] == b"a" * 1000 + b"b" * 3000
    assert all(state[path].startswith(b"a" * 1000) for state in one), "what was synced is there"
    assert len({state[path] for state in one}) > 4
