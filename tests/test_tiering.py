"""Sleep-time tiering: hot chunks up, cold ones down, at a rate, and nobody notices."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from memory_controller import MemoryController
from turns import settle

import dstorage
from dstorage import ControllerUnavailable, TemporarilyUnavailable, TieringRules, TierRule, tiering
from dstorage.tier import Throttle


def opening(path, *controllers, **options):
    return dstorage.open(
        path,
        **{
            "budget": 50_000,
            "controllers": controllers,
            "commit_interval": None,
            "pressure": None,
            "tiering": TieringRules(interval=3600),
        }
        | options,
    )


async def fill(store, count, controller=None):
    ids = []
    for number in range(count):
        with await store.create(bytes([number % 256]) * 1000, controller=controller) as handle:
            ids.append(handle.id)
    await store.commit()
    store._writeback.pinned.clear()
    return ids


async def page_in(store, ids, times):
    for _ in range(times):
        store.set_budget(1)
        store.set_budget(50_000)
        for id in ids:
            async with store.handle(id):
                pass


def kept_on(store, ids):
    return [store.info(id).controller for id in ids]


async def test_what_is_read_again_moves_up_and_what_is_read_once_does_not(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=100_000), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=False) as store:
        ids = await fill(store, 20, "slow")
        await page_in(store, ids[:5], 2)
        await page_in(store, ids[5:10], 1)
        assert await store.tiering.step() == 5
        assert kept_on(store, ids) == ["fast"] * 5 + ["slow"] * 15


async def test_a_full_controller_gives_its_coldest_down_to_the_low_mark(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=20_500), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiers={"fast": TierRule(high=0.9, low=0.5)}) as store:
        ids = await fill(store, 20)
        assert kept_on(store, ids) == ["fast"] * 20
        await page_in(store, ids[10:], 1)
        assert await store.tiering.step() == 10
        assert await store.tiering.step() == 0, "what has left is free only after the commit, and not to be made up for"
        await store.commit()
        assert await store.tiering.step() == 0
        assert kept_on(store, ids) == ["slow"] * 10 + ["fast"] * 10
        assert fast.used == 10_000
        for number, id in enumerate(ids):
            async with store.handle(id) as data:
                assert data == bytes([number]) * 1000


async def test_what_cannot_move_up_keeps_nothing_from_moving_down(tmp_path):
    fast, middle = MemoryController("fast", rank=90), MemoryController("middle", rank=50, capacity=10_500)
    async with opening(tmp_path, fast, middle, MemoryController("slow", rank=10)) as store:
        cold, hot = await fill(store, 10, "middle"), await fill(store, 1, "slow")
        await page_in(store, hot, 5)
        fast.write_error = dstorage.ControllerFull("in pieces too small")
        await store.tiering.step()
        assert "slow" in kept_on(store, cold)


async def test_each_controller_is_looked_through_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tiering, "SAMPLE", 10)
    fast, middle = (
        MemoryController("fast", rank=90, capacity=5_500),
        MemoryController("middle", rank=50, capacity=10_500),
    )
    async with opening(tmp_path, fast, middle, MemoryController("slow", rank=10)) as store:
        ids = await fill(store, 10, "middle") + await fill(store, 5, "fast")
        for _ in range(3):
            await store.tiering.step()
            await store.commit()
        assert "slow" in kept_on(store, ids[:10])
        assert "middle" in kept_on(store, ids[10:])


async def test_the_rate_bounds_a_step(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600, rate=1)) as store:
        ids = await fill(store, 10, "slow")
        await page_in(store, ids, 2)
        assert await store.tiering.step() == 4


async def test_it_works_by_itself_only_while_the_store_is_idle_and_not_paused(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=0.01)) as store:
        store.tiering.paused = True
        ids = await fill(store, 5, "slow")
        await page_in(store, ids, 2)
        with store.events() as events:
            store.tiering.paused = False
            async with asyncio.timeout(60):
                moved = [await anext(aiter(events)) for _ in range(5)]
        assert [event.kind for event in moved] == ["moved"] * 5
        assert kept_on(store, ids) == ["fast"] * 5


async def test_ids_stay_valid_while_they_are_read_and_written(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=30_000), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600)) as store:
        ids = await fill(store, 60)
        model = {id: bytes([number]) * 1000 for number, id in enumerate(ids)}

        async def use():
            for round_ in range(6):
                for id in ids:
                    if (id + round_) % 7 == 0:
                        model[id] = bytes([round_]) * 900
                        with store.handle(id) as handle:
                            await handle.replace(model[id])
                    async with store.handle(id) as data:
                        assert data == model[id]
                    await asyncio.sleep(0)

        async def tier():
            for _ in range(30):
                await store.tiering.step()
                await store.commit()
                await asyncio.sleep(0)

        await asyncio.gather(use(), tier())
        await store.commit()
    async with opening(
        tmp_path, MemoryController("fast", medium=fast.medium), MemoryController("slow", medium=slow.medium)
    ) as store:
        for id in ids:
            async with store.handle(id) as data:
                assert data == model[id]


async def test_a_controller_admits_only_what_was_read_as_often_as_its_rule_says(tmp_path):
    fast, middle, slow = (MemoryController(name, rank=rank) for name, rank in (("fast", 90), ("ssd", 50), ("slow", 10)))
    tiers = {"fast": TierRule(admit_reads=4), "ssd": TierRule(admit_reads=2)}
    async with opening(tmp_path, fast, middle, slow, tiers=tiers) as store:
        ids = await fill(store, 4, "slow")
        for number, id in enumerate(ids, 1):
            await page_in(store, [id], number)
        assert await store.tiering.step() == 3
        assert kept_on(store, ids) == ["slow", "ssd", "ssd", "fast"]
        assert middle.used == 2000


async def test_reads_count_across_looks(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiers={"fast": TierRule(admit_reads=3)}) as store:
        ids = await fill(store, 1, "slow")
        for moved in (0, 0, 1):
            await page_in(store, ids, 1)
            assert await store.tiering.step() == moved
        assert await store.tiering.step() == 0


async def test_what_is_young_does_not_move_down(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=20_500), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiers={"fast": TierRule(min_age=3600, low=0.5)}) as store:
        await fill(store, 20)
        assert await store.tiering.step() == 0
        assert fast.used == 20_000


async def test_a_rule_may_keep_part_of_a_controller_free_for_new_chunks(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=100_000), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiers={"fast": TierRule(capacity=10_000, high=1, low=0.5)}) as store:
        above = await fill(store, 12)
        assert await store.tiering.step() == 7
        below = await fill(store, 10, "slow")
        await page_in(store, below, 2)
        assert await store.tiering.step() == 5
        assert kept_on(store, below).count("fast") == 5
        assert kept_on(store, above).count("fast") == 5


async def test_a_chunk_larger_than_one_looks_share_moves_and_is_paid_for_by_the_looks_after_it(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=3600, rate=1)) as store:
        with await store.create(bytes(9000), controller="slow") as handle:
            large = handle.id
        ids = [large, *await fill(store, 2, "slow")]
        await page_in(store, [large], 3)
        await page_in(store, ids[1:], 2)
        assert [await store.tiering.step() for _ in range(4)] == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"admit_reads": 0},
        {"min_age": -1.0},
        {"min_age": float("nan")},
        {"high": 1.1},
        {"low": 0.0},
        {"low": 0.9, "high": 0.8},
        {"capacity": 0},
        {"capacity": math.nan},
        {"capacity": math.inf},
        {"capacity": "1G"},
        {"write_rate": 0},
        {"write_rate": math.nan},
        {"write_rate": math.inf},
        {"write_rate": True},
        {"admit_reads": math.nan},
        {"admit_reads": "2"},
        {"min_age": "1"},
        {"min_age": 10**400},
        {"high": math.nan},
        {"high": None},
        {"low": math.nan},
        {"copy_to": 5},
        {"copy_to": (5,)},
        {"copy_to": "slow"},
    ],
)
def test_rules_out_of_range_are_refused(wrong):
    (name,) = list(wrong)[:1]
    with pytest.raises(dstorage.InvalidArgumentError, match=rf"^{name}=.+: give "):
        TierRule(**wrong)


@pytest.mark.parametrize("name", ["interval", "rate"])
@pytest.mark.parametrize("value", [0, -1, math.nan, "1", None, True])
def test_limits_out_of_range_are_refused(name, value):
    with pytest.raises(dstorage.InvalidArgumentError, match=rf"^{name}=.+: give "):
        TieringRules(**{name: value})


async def test_what_is_to_stay_for_ever_does_and_the_others_move_without_a_limit_of_the_rate(tmp_path):
    fast, middle = (
        MemoryController("fast", rank=90, capacity=20_500),
        MemoryController("middle", rank=50, capacity=20_500),
    )
    tiers = {"fast": TierRule(min_age=math.inf, admit_reads=math.inf), "middle": TierRule(low=0.5)}
    rules = TieringRules(interval=3600, rate=math.inf)
    async with opening(tmp_path, fast, middle, MemoryController("slow", rank=10), tiers=tiers, tiering=rules) as store:
        stay, move = await fill(store, 20, "fast"), await fill(store, 20, "middle")
        await page_in(store, move[10:], 9)
        assert await store.tiering.step() == 10
        assert kept_on(store, stay) == ["fast"] * 20
        assert kept_on(store, move) == ["slow"] * 10 + ["middle"] * 10


async def test_a_look_that_fails_is_told_and_the_next_one_tries_again(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with opening(tmp_path, fast, slow, tiering=TieringRules(interval=0.01)) as store:
        store.tiering.paused = True
        ids = await fill(store, 5, "slow")
        await page_in(store, ids, 2)
        space, asked = fast.space, 0

        def broken_once():
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ZeroDivisionError
            return space()

        fast.space = broken_once
        with store.events() as events:
            store.tiering.paused = False
            async with asyncio.timeout(60):
                assert [(await anext(events)).kind for _ in range(5)] == ["moved"] * 5
    (context,) = told
    assert isinstance(context["exception"], ZeroDivisionError)
    assert "a look of tiering failed; the next one tries again" in context["message"]


async def test_a_rule_for_an_unknown_controller_is_told(tmp_path):
    with pytest.warns(RuntimeWarning, match="no controller 'sdd' in this store yet"):
        async with opening(tmp_path, MemoryController("ssd", rank=50), tiers={"sdd": TierRule()}):
            pass


async def test_a_write_rate_holds_for_write_backs_and_moves_and_stops_no_other_controller(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, tiers={"slow": TierRule(write_rate=50_000)}) as store:
        begun = time.monotonic()
        for _ in range(6):
            with await store.create(bytes(1000), controller="slow") as handle:
                await handle.flush()
        # Six pieces, the first of them at once.
        assert time.monotonic() - begun >= 5 * 1000 / 50_000
        ids = await fill(store, 10)
        begun = time.monotonic()
        with await store.create(bytes(20_000), controller="slow") as first, await store.create(b"x" * 500) as other:
            moves = asyncio.create_task(store.migrate(ids, to="slow"))
            waits = asyncio.create_task(first.flush())
            await other.flush()
            assert not waits.done()
            await waits
        assert await moves == 10
        assert time.monotonic() - begun >= 10_000 / 50_000


async def test_what_is_deleted_or_replaced_while_it_waits_for_a_write_rate_is_not_written_and_takes_no_memory(tmp_path):
    fast = MemoryController("fast", rank=90)
    async with opening(tmp_path, fast, tiers={"fast": TierRule(write_rate=20_000)}) as store:
        with await store.create(bytes(20_000)) as first:
            await first.flush()
        # A second is to be paid for now.
        before = store.memory_used
        handles = [await store.create(bytes(1000)) for _ in range(20)]
        flushes = [asyncio.create_task(handle.flush()) for handle in handles]
        await settle()
        for handle in handles[:10]:
            handle.delete()
        for handle in handles[10:]:
            await handle.replace(b"new")
        assert store.memory_used == before + 10 * len(b"new")
        assert store.stats().stray == 0
        await asyncio.wait_for(asyncio.gather(*flushes), 60)
        assert fast.writes == [first.id] + [handle.id for handle in handles[10:]]
        assert fast.used == 20_000 + 10 * len(b"new")
        for handle in handles:
            handle.release()


async def test_a_commit_writes_what_it_began_with_though_it_is_deleted_while_a_write_rate_holds_it_up(tmp_path):
    fast = MemoryController("fast", rank=90)
    async with opening(tmp_path, fast, tiers={"fast": TierRule(write_rate=20_000)}) as store:
        with await store.create(bytes(4000)) as first:
            await first.flush()
        with await store.create(b"as of the commit") as kept, await store.create(b"old") as changed:
            committing = asyncio.create_task(store.commit())
            await settle()
            kept.delete()
            await changed.replace(b"newer")
            await asyncio.wait_for(committing, 60)
            assert {b"as of the commit", b"old"} <= set(fast.medium.cells.values())
            assert changed.data == b"newer"
        await store.commit()
        assert b"newer" in fast.medium.cells.values()


async def test_a_write_rate_charges_nothing_for_what_was_not_written(tmp_path):
    fast, slow = MemoryController("fast", rank=90), MemoryController("slow", rank=10)
    async with opening(tmp_path, fast, slow, budget=2**20, tiers={"fast": TierRule(write_rate=1000)}) as store:
        with await store.create(bytes(500_000), controller="slow") as handle:
            large = handle.id
        await store.commit()
        store.set_budget(1)
        store.set_budget(2**20)
        slow.set_unavailable(True)
        with pytest.raises(TemporarilyUnavailable):
            await store.migrate([large], to="fast")
        slow.set_unavailable(False)
        fast.write_error = ControllerUnavailable("not now")
        with pytest.raises(TemporarilyUnavailable):
            await store.migrate([large], to="fast")
        fast.write_error = None
        with await store.create(b"x" * 10, controller="fast") as handle:
            # After any of these it took more than eight minutes.
            await asyncio.wait_for(handle.flush(), 60)


async def test_who_gives_up_waiting_for_a_write_rate_pays_nothing():
    throttle = Throttle(1000)
    await throttle.take(200)
    given_up = [asyncio.create_task(throttle.take(500_000)) for _ in range(3)]
    await settle()
    for waiting in given_up:
        waiting.cancel()
    await asyncio.wait(given_up)
    begun = asyncio.get_running_loop().time()
    await asyncio.wait_for(throttle.take(1), 60)
    assert asyncio.get_running_loop().time() - begun < 60
    await throttle.take(500_000)
    waiting = asyncio.create_task(throttle.take(1))
    await settle()
    assert not waiting.done()
    throttle.give_back(500_000)
    await asyncio.wait_for(waiting, 60)


async def test_a_flush_of_what_changes_all_the_time_ends_under_a_write_rate(tmp_path):
    fast = MemoryController("fast", rank=90)
    async with opening(tmp_path, fast, tiers={"fast": TierRule(write_rate=50_000)}) as store:
        with await store.create(b"hot") as hot, await store.create(bytes(5000)) as first:
            await first.flush()

            async def change():
                number = 0
                while True:
                    number += 1
                    await hot.replace(b"%d" % number)
                    await asyncio.sleep(0)

            changing = asyncio.create_task(change())
            await asyncio.wait_for(hot.flush(), 30)
            changing.cancel()
        assert hot.id in fast.writes


async def test_a_write_that_is_refused_after_its_chunk_changed_is_not_charged(tmp_path):
    fast = MemoryController("fast", rank=90)
    async with opening(tmp_path, fast, budget=2**20, tiers={"fast": TierRule(write_rate=1000)}) as store:
        fast.write_gate, fast.write_error = asyncio.Event(), ControllerUnavailable("not now")
        with await store.create(bytes(500_000)) as handle:
            flush = asyncio.create_task(handle.flush())
            await settle()
            await handle.replace(b"small")
            fast.write_gate.set()
            with pytest.raises(TemporarilyUnavailable):
                await flush
            fast.write_error = None
            await asyncio.wait_for(store.commit(), 60)
        assert store.stats().bytes_written == len(b"small")
