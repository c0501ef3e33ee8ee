"""Power failures of a whole store: two drives and the catalog, cut off together at any moment, are the last commit.

Every write and sync of both disk controllers is recorded. LMDB's own transactions are taken as what they promise to be (durable and
whole when they return): its file is copied at each of them, together with how far the drives' records were. Then power is cut at random
moments: the catalog is as at its last transaction, each drive in a state that its unsynced writes allow.
"""

from __future__ import annotations

import contextlib
import random

import pytest
from dstorage_controllers.disk import Device, DiskController

import dstorage
from dstorage.catalog import Catalog
from dstorage.check import check
from dstorage.testing import RecordingDevice, power_failures

STEPS = 70
MOMENTS = 25
STATES = 5
KIB = 1024


class Life:
    """A program's life with a store on two drives.

    Attributes:
        switches: (positions of both devices, the catalog's bytes, contents by id, names) after each durable transaction.
    """

    def __init__(self, path, seed, copies):
        self.path = path
        self.tiers = {"fast": dstorage.TierRule(copy_to=("slow",), copy_later=copies == "later")} if copies else None
        self.random = random.Random(seed)
        self.devices = {name: RecordingDevice(Device()) for name in ("fast", "slow")}
        self.contents = {}
        self.names = {}
        self.cut = ({}, {})
        self.switches = []

    def controllers(self, devices):
        return [
            DiskController("fast", rank=60, capacity=400 * KIB, segment_bytes=32 * KIB, device=devices.get("fast")),
            DiskController("slow", rank=20, segment_bytes=64 * KIB, device=devices.get("slow")),
        ]

    def open(self, path, devices):
        # Little memory: most of what is written is written between commits, by eviction.
        return dstorage.open(
            path,
            budget=96 * KIB,
            controllers=self.controllers(devices),
            commit_interval=None,
            pressure=None,
            tiering=False,
            tiers=self.tiers,
        )

    def note(self):
        positions = {name: device.position for name, device in self.devices.items()}
        self.switches.append((positions, (self.path / "catalog" / "data.mdb").read_bytes(), *self.cut))

    async def live(self):
        async with self.open(self.path, self.devices) as self.store:
            self.note()
            steps = [self.create, self.replace, self.delete, self.migrate, self.copy, self.compact, self.commit]
            for _ in range(STEPS):
                await self.random.choices(steps, [8, 6, 2, 2, 1, 1, 3])[0]()
            self.cut = (dict(self.contents), dict(self.names))

    def bytes(self):
        return self.random.randbytes(self.random.choice([1, 300, 4096, 9000, 20_000]))

    def some(self, most):
        return self.random.sample(sorted(self.contents), min(len(self.contents), self.random.randint(1, most)))

    async def create(self):
        for _ in range(self.random.randint(1, 5)):
            data = self.bytes()
            with await self.store.create(data, wait=10) as handle:
                self.contents[handle.id] = data
                if self.random.random() < 0.3:
                    name = b"name %d" % self.random.randrange(5)
                    self.store.set_name(name, handle.id)
                    self.names[name] = handle.id

    async def replace(self):
        for id in self.some(4):
            data = self.bytes()
            with self.store.handle(id) as handle:
                await handle.replace(data, wait=10)
            self.contents[id] = data

    async def delete(self):
        for id in self.some(2):
            with self.store.handle(id) as handle:
                handle.delete()
            del self.contents[id]

    async def migrate(self):
        # What does not fit on the fast drive stays where it is.
        with contextlib.suppress(dstorage.StoreFull):
            await self.store.migrate(self.some(4), to=self.random.choice(["slow", "slow", "fast"]))

    async def copy(self):
        await self.store.make_copies()

    async def compact(self):
        self.cut = (dict(self.contents), dict(self.names))
        with contextlib.suppress(dstorage.StoreFull):
            await self.store.compact(max_live_share=0.7)

    async def commit(self):
        self.cut = (dict(self.contents), dict(self.names))
        await self.store.commit()


@pytest.fixture
def life(tmp_path, monkeypatch, request):
    seed, copies = request.param
    life = Life(tmp_path / "store", seed, copies)
    print(f"seed {seed}")
    for name in ("apply", "reserve_ids", "put_controller"):
        original = getattr(Catalog, name)

        def durable(self, *args, original=original, **kwargs):
            original(self, *args, **kwargs)
            if self.path.parent == life.path:
                life.note()

        monkeypatch.setattr(Catalog, name, durable)
    return life


def moments(life, source):
    """Positions of both devices at which power is cut: somewhere between two switches, and right behind some of them."""
    for _ in range(MOMENTS):
        number = source.randrange(len(life.switches))
        begun = life.switches[number][0]
        following = life.switches[number + 1][0] if number + 1 < len(life.switches) else begun
        # Both drives stop at the same moment: as far along the way to the next switch, roughly.
        share = source.choice([0.0, source.random(), 1.0])
        yield number, {name: round(begun[name] + share * (following[name] - begun[name])) for name in begun}


@pytest.mark.parametrize(
    "life", [(1, None), (2, None), (3, "with the commit"), (4, "with the commit"), (5, "later")], indirect=True, ids=str
)
async def test_the_store_is_its_last_commit_after_any_power_failure(life, tmp_path):
    await survives(life, tmp_path)


async def survives(life, tmp_path):
    await life.live()
    assert len(life.switches) > 10
    source = random.Random(7)
    for moment, (number, positions) in enumerate(moments(life, source)):
        _, catalog, contents, names = life.switches[number]
        states = {
            name: list(power_failures(device, at=positions[name], seed=moment, count=STATES))
            for name, device in life.devices.items()
        }
        for state in range(STATES):
            # Not the same kind of loss on both drives.
            left = [states["fast"][state], states["slow"][(state + moment) % STATES]]
            after = tmp_path / f"after-{moment}-{state}"
            (after / "catalog").mkdir(parents=True)
            (after / "catalog" / "data.mdb").write_bytes(catalog)
            for failure in left:
                failure.write_to(life.path, after)
            await holds(life, after, contents, names, f"switch {number}: " + "; ".join(failure.how for failure in left))


async def holds(life, path, contents, names, how):
    async with life.open(path, {}) as store:
        report = await check(store)
        assert report.problems == [], how
        assert list(store.ids()) == sorted(contents), how
        assert dict(store.names()) == names, how
        for id, expected in contents.items():
            async with store.handle(id) as data:
                assert data == expected, how
        # And it goes on from there.
        with await store.create(b"afterwards") as handle:
            assert handle.id not in contents, how
            new = handle.id
    async with life.open(path, {}) as store:
        async with store.handle(new) as data:
            assert data == b"afterwards", how
        assert (await check(store)).problems == [], how


@pytest.mark.parametrize("life", [(1, None)], indirect=True)
async def test_without_syncs_the_test_would_notice(life, tmp_path, monkeypatch):
    async def forget(self, controllers):
        return None

    monkeypatch.setattr("dstorage.commit.Committer._sync", forget)
    with pytest.raises((AssertionError, dstorage.ControllerUnavailable)):
        await survives(life, tmp_path)
