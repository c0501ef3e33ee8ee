"""Copies: a chunk on more than one controller, read from whichever answers, healed, and moved off a controller that is drained."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import asynccontextmanager

import pytest
from memory_controller import Medium, MemoryController
from turns import settle

import dstorage
from dstorage import InvalidArgumentError, Lost, Status, StoreFull, TemporarilyUnavailable, TierRule, UsageError, drain
from dstorage.check import check
from dstorage.testing import eventually

DATA = bytes(range(256)) * 16
WITH_COMMIT = TierRule(copy_to=("far",))
LATER = TierRule(copy_to=("far",), copy_later=True)
STEPS = ["create", "replace", "replace", "delete", "read", "read", "commit", "move", "copy", "fail"]


class Pair:
    """Two controllers whose media outlive the stores on them."""

    def __init__(self, path):
        self.path = path
        self.media = {"near": Medium(), "far": Medium()}
        self.near = self.far = None

    @asynccontextmanager
    async def store(self, rule=WITH_COMMIT, **options):
        self.near = MemoryController("near", rank=60, medium=self.media["near"])
        self.far = MemoryController("far", rank=20, medium=self.media["far"])
        async with dstorage.open(
            self.path,
            budget=2**20,
            controllers=[self.near, self.far],
            commit_interval=None,
            pressure=None,
            tiering=False,
            tiers={"near": rule} if rule else None,
            **options,
        ) as store:
            yield store


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path / "store")


async def stored(store, data=DATA):
    """A committed chunk that is not in memory."""
    with await store.create(data) as handle:
        id = handle.id
    await store.commit()
    evict(store)
    return id


def evict(store):
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


async def read(store, id):
    async with store.handle(id) as data:
        return bytes(data)


async def test_a_commit_is_there_when_its_copies_are(pair):
    async with pair.store() as store:
        id = await stored(store)
        assert store.info(id).controller == "near"
        assert store.info(id).copies == ("far",)
        assert len(pair.media["far"].cells) == 1
        assert pair.far.syncs == 1
    async with pair.store() as store:
        assert store.info(id).copies == ("far",)
        assert (await check(store)).sound


async def test_without_a_place_for_its_copies_a_commit_fails_and_stays_to_be_made(pair):
    async with pair.store() as store:
        pair.far.set_unavailable(True)
        with await store.create(DATA) as handle:
            with pytest.raises(TemporarilyUnavailable, match="far"):
                await store.commit()
            assert bytes(handle.data) == DATA
            pair.far.set_unavailable(False)
            await store.commit()
            assert store.info(handle.id).copies == ("far",)
    async with pair.store(rule=None) as store:
        assert (await check(store)).sound


async def test_later_copies_let_the_commit_go_ahead_and_come_behind_it(pair):
    async with pair.store(LATER) as store:
        pair.far.set_unavailable(True)
        id = await stored(store)
        assert store.info(id).copies == ()
        with pytest.raises(TemporarilyUnavailable):
            await store.make_copies()
        pair.far.set_unavailable(False)
        with store.events() as events:
            assert await store.make_copies() == 1
            assert (await anext(events)) == dstorage.Event("copied", id, "far")
        assert await store.make_copies() == 0
        await store.commit()
    async with pair.store(LATER) as store:
        assert store.info(id).copies == ("far",)


async def test_copies_come_by_themselves_and_for_chunks_older_than_the_rule(pair):
    async with pair.store(rule=None) as store:
        ids = [await stored(store) for _ in range(5)]
        assert await store.make_copies() == 0
    async with pair.store(LATER) as store:
        with store.events() as events:
            copied = set()
            async with asyncio.timeout(60):
                while len(copied) < 5:
                    event = await anext(events)
                    if event.kind == "copied":
                        copied.add(event.id)
        assert copied == set(ids)


async def test_what_is_away_or_damaged_in_one_place_is_read_from_the_other(pair):
    async with pair.store() as store:
        id = await stored(store)
        pair.near.set_unavailable(True)
        assert await read(store, id) == DATA
        evict(store)
        pair.near.set_unavailable(False)
        pair.near.read_error = dstorage.ControllerUnavailable("cable out")
        assert await read(store, id) == DATA
        evict(store)
        pair.near.read_error = None
        await store.unload("near")
        assert await read(store, id) == DATA


async def test_a_reader_heals_what_it_finds_damaged(pair):
    async with pair.store() as store:
        id = await stored(store)
        pair.near.read_error = dstorage.CorruptData("rust")
        with store.events() as events:
            assert await read(store, id) == DATA
            pair.near.read_error = None
            async with asyncio.timeout(60):
                while (event := await anext(events)).kind != "healed":
                    assert event.kind != "lost"
            assert event == dstorage.Event("healed", id, "near")
        evict(store)
        pair.far.set_unavailable(True)
        assert await read(store, id) == DATA
        pair.far.set_unavailable(False)
        await store.commit()
        report = await check(store)
        assert report.sound
        assert len(pair.media["near"].cells) == 1


async def test_gone_in_one_place_and_away_in_the_other_is_not_lost(pair):
    async with pair.store() as store:
        id = await stored(store)
        pair.near.read_error = Lost("evicted")
        pair.far.set_unavailable(True)
        with store.handle(id) as handle:
            with pytest.raises(TemporarilyUnavailable, match="far"):
                await handle
            waiting = asyncio.create_task(handle.get(wait=60))
            await settle()
            pair.far.set_unavailable(False)
            assert bytes(await asyncio.wait_for(waiting, 60)) == DATA
        evict(store)
        pair.far.read_error = Lost("evicted as well")
        with store.handle(id) as handle, pytest.raises(Lost):
            await handle
        assert handle.status is Status.LOST


async def test_check_tells_a_damaged_copy_from_a_loss_and_repairs_it(pair):
    async with pair.store() as store:
        id = await stored(store)
        (cell,) = pair.media["near"].cells
        whole = pair.near._get
        pair.near._get = lambda request: dstorage.CorruptData("rust") if request.locator.b == cell else whole(request)
        report = await check(store)
        assert [(problem.kind, problem.id, problem.controller) for problem in report.problems] == [("copy", id, "near")]
        assert not report.sound
        report = await check(store, repair=True)
        assert report.healed == [id]
        assert report.repaired == []
        assert report.sound
        assert (await check(store)).problems == []
        assert await read(store, id) == DATA


async def test_new_contents_get_new_copies_and_old_ones_are_freed(pair):
    async with pair.store() as store:
        id = await stored(store)
        for number in range(5):
            with store.handle(id) as handle:
                await handle.replace(bytes([number]) * 1000)
                await handle.flush()
                await handle.replace(bytes([number]) * 2000)
            await store.commit()
            await settle()
            for medium in pair.media.values():
                assert list(medium.cells.values()) == [bytes([number]) * 2000]
        with store.handle(id) as handle:
            handle.delete()
        await store.commit()
        await settle()
        assert not pair.media["near"].cells
        assert not pair.media["far"].cells


async def test_a_chunk_moves_to_where_it_has_a_copy_without_being_carried(pair):
    async with pair.store() as store:
        id = await stored(store)
        written = len(pair.far.writes)
        assert await store.migrate([id], to="far") == 1
        assert (store.info(id).controller, store.info(id).copies) == ("far", ())
        assert len(pair.far.writes) == written
        await store.commit()
        await settle()
        assert not pair.media["near"].cells
        assert await read(store, id) == DATA
        assert await store.migrate([id], to="near") == 1
        assert (store.info(id).controller, store.info(id).copies) == ("near", ("far",))
        await store.commit()
        assert (await check(store)).sound


async def test_draining_empties_a_controller_and_keeps_ids_valid(pair):
    async with pair.store(rule=None) as store:
        contents = {await stored(store, os.urandom(1000)): None for _ in range(50)}
        contents = {id: await read(store, id) for id in contents}
        looked = 0

        def advance(count):
            nonlocal looked
            looked += count

        assert await store.drain("near", advance=advance) == 50
        assert looked == 50
        assert not pair.media["near"].cells
        evict(store)
        assert {id: await read(store, id) for id in contents} == contents
        assert (await check(store)).sound
        # New chunks go elsewhere, though it would be the fastest.
        assert store.info(await stored(store)).controller == "far"
        await store.declare_removed("near")
        evict(store)
        assert {id: await read(store, id) for id in contents} == contents


async def test_a_drain_that_was_interrupted_goes_on_after_reopening(pair):
    async with pair.store(rule=None) as store:
        ids = [await stored(store) for _ in range(5)]
        pair.far.capacity = len(DATA) * 2
        with pytest.raises(StoreFull):
            await store.drain("near")
        assert [info.draining for info in store.controllers()] == [True, False]
        pair.far.capacity = None
    async with pair.store(rule=None) as store:
        assert [info.draining for info in store.controllers()] == [True, False]
        assert store.info(await stored(store)).controller == "far"
        await store.drain("near")
        assert {store.info(id).controller for id in ids} == {"far"}
        await store.cancel_drain("near")
        assert store.info(await stored(store)).controller == "near"


async def test_draining_drops_copies_and_what_is_pinned_goes_elsewhere(pair):
    async with pair.store() as store:
        id = await stored(store)
        assert await store.drain("far") == 1
        assert store.info(id).copies == ()
        await store.cancel_drain("far")
        assert await store.make_copies() == 1
        with await store.create(DATA, controller="near") as pinned:
            await store.drain("near")
            assert store.info(pinned.id).controller == "far"
        assert store.info(id).controller == "far"
        assert not pair.media["near"].cells


@asynccontextmanager
async def of_three(path, **rules):
    """A store of three controllers, and they."""
    ranks = {"near": 60, "mid": 40, "far": 20}
    controllers = {name: MemoryController(name, rank=rank) for name, rank in ranks.items()}
    async with dstorage.open(
        path / "store",
        budget=2**20,
        controllers=list(controllers.values()),
        commit_interval=None,
        pressure=None,
        tiering=False,
        tiers=rules,
    ) as store:
        yield store, *controllers.values()


async def test_the_fastest_that_answers_is_read_wherever_the_chunk_lives(tmp_path):
    async with of_three(tmp_path, far=TierRule(copy_to=("mid", "near"))) as (store, *controllers):
        with await store.create(DATA, controller="far") as handle:
            await store.commit()
        asked = []
        for controller in controllers:
            evict(store)
            for other in controllers:
                other.reads.clear()
            assert await read(store, handle.id) == DATA
            asked.append([other.name for other in controllers if other.reads])
            controller.set_unavailable(True)
        assert asked == [["near"], ["mid"], ["far"]]
        for controller in controllers:
            controller.set_unavailable(False)


async def test_draining_takes_from_a_copy_what_is_damaged(tmp_path):
    async with of_three(tmp_path, near=TierRule(copy_to=("far",))) as (store, near, _, _):
        ids = [await stored(store, bytes([number]) * 1000) for number in range(5)]
        near.read_error = dstorage.CorruptData("rust")
        assert await store.drain("near") == 5
        assert not near.medium.cells
        assert [await read(store, id) for id in ids] == [bytes([number]) * 1000 for number in range(5)]
        assert {store.info(id).controller for id in ids} == {"mid"}


async def test_draining_what_holds_the_only_copies_that_can_be_read_moves_them(tmp_path):
    async with of_three(tmp_path, near=TierRule(copy_to=("far",))) as (store, near, _, far):
        ids = [await stored(store, bytes([number]) * 1000) for number in range(5)]
        near.set_unavailable(True)
        assert await store.drain("far") == 5
        assert not far.medium.cells
        assert [await read(store, id) for id in ids] == [bytes([number]) * 1000 for number in range(5)]
        assert {store.info(id).controller for id in ids} == {"mid"}
        assert await store.drain("far") == 0
        near.set_unavailable(False)
        # What is not loaded counts as little.
        await store.migrate(ids, to="near")
        await store.cancel_drain("far")
        await store.make_copies()
        await store.unload("near")
        assert await store.drain("far") == 5
        await store.declare_removed("far")
        assert {store.info(id).controller for id in ids} == {"mid"}


async def test_draining_saves_what_can_be_read_and_then_names_what_cannot(tmp_path):
    async with of_three(tmp_path) as (store, near, _, _):
        ids = [await stored(store, bytes([number]) * 100) for number in range(200)]
        bad = {ids[3], ids[4], ids[150]}
        whole = near._get
        near._get = lambda request: (
            (dstorage.CorruptData("rust") if request.id % 2 else Lost("gone")) if request.id in bad else whole(request)
        )
        with pytest.raises(Lost, match="3 chunks stay behind") as caught:
            await store.drain("near")
        assert caught.value.id in bad
        assert {id for id in ids if store.info(id).controller == "near"} == bad
        assert len(near.medium.cells) == 3, "the others are committed"
        await check(store, repair=True)
        assert await store.drain("near") == 0
        assert set(store.ids()) == set(ids) - bad


async def test_draining_goes_on_while_chunks_are_deleted(tmp_path):
    async with of_three(tmp_path) as (store, near, _, _):
        ids = [await stored(store, bytes(100)) for _ in range(200)]
        near.gate = asyncio.Event()
        draining = asyncio.create_task(store.drain("near"))
        await eventually(lambda: store.controllers()[0].draining, "it has begun")
        await settle()
        for id in ids[::3]:
            with store.handle(id) as handle:
                handle.delete()
        near.gate.set()
        await asyncio.wait_for(draining, 60)
        assert not near.medium.cells
        assert {store.info(id).controller for id in store.ids()} == {"mid"}


async def test_what_one_controller_took_before_it_was_full_stays_there(tmp_path):
    async with of_three(tmp_path) as (store, near, mid, far):
        for _ in range(20):
            await stored(store, bytes(1000))
        mid.capacity = 12_000
        assert await store.drain("near") == 20
        assert (len(mid.medium.cells), len(far.medium.cells)) == (12, 8)
        assert not near.medium.cells
        assert len(far.writes) == 8


async def test_a_drain_that_is_called_off_ends(tmp_path):
    async with of_three(tmp_path) as (store, near, mid, _):
        ids = [await stored(store, bytes(100)) for _ in range(200)]
        mid.write_gate = asyncio.Event()
        draining = asyncio.create_task(store.drain("near"))
        await eventually(lambda: near.reads, "not begun")
        await store.cancel_drain("near")
        mid.write_gate.set()
        with pytest.raises(UsageError, match="'near' was called off"):
            await draining
        assert {store.info(id).controller for id in ids} == {"near", "mid"}
        assert store.info(await stored(store)).controller == "near"


async def test_draining_to_nowhere_is_refused_before_anything_is_declared(tmp_path):
    async with of_three(tmp_path) as (store, *_):
        await stored(store)
        for name in ("mid", "far"):
            await store.drain(name)
        with pytest.raises(StoreFull, match="add another"):
            await store.drain("near")
        assert [info.draining for info in store.controllers()] == [False, True, True]
        await store.declare_removed("far")
        with pytest.raises(InvalidArgumentError, match="for ever"):
            await store.cancel_drain("far")


async def test_a_long_drain_commits_now_and_then_and_tells_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(drain, "COMMIT_S", 0.0)
    async with of_three(tmp_path) as (store, near, *_):
        for _ in range(200):
            await stored(store, bytes(100))
        seen = []
        assert await store.drain("near", advance=lambda count: seen.append((count, len(near.medium.cells)))) == 200
        assert sum(count for count, _ in seen) == 200
        assert max(count for count, _ in seen) <= 64
        assert seen[-1][1] < 200, "what was committed is free already"


async def test_what_is_asked_for_on_a_controller_that_drains_goes_elsewhere_and_a_removed_one_is_refused(tmp_path):
    async with of_three(tmp_path) as (store, *_):
        await store.drain("near")
        with await store.create(DATA, controller="near") as handle:
            await store.commit()
            assert store.info(handle.id).controller == "mid"
        await store.declare_removed("near")
        with pytest.raises(InvalidArgumentError, match="declared removed"):
            await store.create(DATA, controller="near")


@pytest.mark.parametrize(
    ("name", "told"), [("fra", "no controller 'fra'"), ("near", "itself"), ("ram", "'ram' takes no copies: it is vol")]
)
async def test_a_rule_that_gives_no_copies_is_told(tmp_path, name, told):
    controllers = [MemoryController("near", rank=60), MemoryController("ram", rank=90, volatile=True)]
    rules = {"near": TierRule(copy_to=(name,))}
    with pytest.warns(RuntimeWarning, match=told):
        async with dstorage.open(tmp_path / "store", budget=2**20, controllers=controllers, tiers=rules):
            pass


@pytest.mark.parametrize("bad", ["far", ("far", "far"), tuple("abcdefghi")])
def test_rules_that_cannot_work_are_refused(bad):
    with pytest.raises(InvalidArgumentError, match="copy_to"):
        TierRule(copy_to=bad)


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_with_failing_controllers_equals_a_dict(pair, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = {}
    for _ in range(3):
        async with pair.store(rng.choice([WITH_COMMIT, LATER])) as store:
            for _ in range(150):
                match rng.choice(STEPS):
                    case "create":
                        data = rng.randbytes(rng.randrange(5000))
                        with await store.create(data, wait=5) as handle:
                            model[handle.id] = data
                    case "replace" if model:
                        id = rng.choice(list(model))
                        model[id] = rng.randbytes(rng.randrange(5000))
                        with store.handle(id) as handle:
                            await handle.replace(model[id], wait=5)
                    case "delete" if model:
                        id = rng.choice(list(model))
                        del model[id]
                        with store.handle(id) as handle:
                            handle.delete()
                    case "read" if model:
                        id = rng.choice(list(model))
                        try:
                            assert await read(store, id) == model[id]
                        except TemporarilyUnavailable:
                            assert store.info(id).copies == () or pair.far.unavailable
                    case "commit" | "move" | "copy" as what:
                        try:
                            if what == "commit":
                                await store.commit()
                            elif what == "copy":
                                await store.make_copies()
                            else:
                                ids = [id for id in rng.sample(list(model), min(5, len(model))) if store.record(id)]
                                await store.migrate(ids, to=rng.choice(["near", "far"]))
                        except TemporarilyUnavailable:
                            assert pair.near.unavailable or pair.far.unavailable
                    case "fail":
                        pair.near.set_unavailable(False)
                        pair.far.set_unavailable(False)
                        if rng.random() < 0.5:
                            rng.choice([pair.near, pair.far]).set_unavailable(True)
                if rng.random() < 0.1:
                    evict(store)
            pair.near.set_unavailable(False)
            pair.far.set_unavailable(False)
            await store.make_copies()
        async with pair.store(None) as store:
            assert {id: await read(store, id) for id in store.ids()} == model
            assert (await check(store)).problems == []
            cells = sorted(len(cell) for medium in pair.media.values() for cell in medium.cells.values())
            places = sorted(place.locator.size for id in store.ids() for place in store.places(id))
            assert cells == places


async def test_a_place_copied_during_the_commit_that_supersedes_it_is_freed_once(pair):
    async with pair.store(LATER) as store:
        freed = []
        for controller in (pair.near, pair.far):
            real = controller.discard

            async def discard(locators, real=real, name=controller.name):
                locators = list(locators)
                freed.extend((name, locator.b) for _, locator in locators)
                await real(locators)

            controller.discard = discard
        id = await stored(store)
        pair.far.write_gate = asyncio.Event()
        copying = asyncio.create_task(store.make_copies())
        await settle()
        handle = store.handle(id)
        await handle
        await handle.replace(b"first" * 100)
        pair.near.write_gate = asyncio.Event()
        commit = asyncio.create_task(store.commit())
        await settle()
        pair.far.write_gate.set()
        assert await copying == 1
        await handle.replace(b"second" * 100)
        pair.near.write_gate.set()
        await commit
        handle.release()
        await store.commit()
        await settle()
        assert sorted(freed) == sorted(set(freed))
