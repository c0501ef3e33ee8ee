"""Memory pressure: what is measured, what it means, and what a store does about it."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys

import psutil
import pytest

import dstorage
from dstorage import InvalidArgumentError, MemoryUnavailable, PressureMonitor
from dstorage.paging.pressure import Level, PressureSample, SystemPressure
from dstorage.testing import FakeMachine, eventually

GIB = 2**30
KIB = 1024


# -- what a sample means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "level", "allowed"),
    [
        (8.0, Level.NORMAL, 4.0),
        (1.61, Level.NORMAL, 4.0),
        (1.1, Level.LOW, 3.5),
        (0.6, Level.LOW, 3.0),
        (0.4, Level.CRITICAL, 2.8),
        (0.0, Level.CRITICAL, 2.4),
    ],
)
def test_below_the_low_mark_the_store_gives_back_what_is_missing(available, level, allowed):
    sample = PressureSample(total=16 * GIB, available=int(available * GIB), rss=0)
    pressure = PressureMonitor(FakeMachine()).evaluate(sample, used=4 * GIB, budget=4 * GIB)
    assert pressure.level is level
    assert pressure.allowed_bytes / GIB == pytest.approx(allowed, abs=0.01)


def test_tasks_stalled_on_memory_are_critical_however_much_is_available():
    for stalled, level in ((None, Level.NORMAL), (19.9, Level.NORMAL), (20.0, Level.CRITICAL)):
        sample = PressureSample(total=16 * GIB, available=10 * GIB, rss=0, stalled=stalled)
        assert PressureMonitor(FakeMachine()).evaluate(sample, used=GIB, budget=GIB).level is level


def test_a_limit_on_the_process_counts_as_memory_of_its_own():
    monitor = PressureMonitor(FakeMachine(), rss_limit=10 * GIB)
    for rss, level in ((8, Level.NORMAL), (9.5, Level.LOW), (9.8, Level.CRITICAL), (12, Level.CRITICAL)):
        sample = PressureSample(total=64 * GIB, available=60 * GIB, rss=int(rss * GIB))
        assert monitor.evaluate(sample, used=4 * GIB, budget=4 * GIB).level is level


def test_after_a_shortage_the_limit_grows_back_step_by_step_and_no_further_than_there_is_room():
    monitor = PressureMonitor(FakeMachine())
    machine = FakeMachine(16 * GIB)
    machine.available = 0
    used = monitor.evaluate(machine.sample(), used=8 * GIB, budget=8 * GIB).allowed_bytes
    assert used == 8 * GIB - int(1.6 * GIB)
    machine.available = 16 * GIB
    steps = [monitor.evaluate(machine.sample(), used=used, budget=8 * GIB).allowed_bytes for _ in range(3)]
    assert steps == [used + GIB, 8 * GIB, 8 * GIB]
    machine.available = int(1.7 * GIB)
    steps = [monitor.evaluate(machine.sample(), used=6 * GIB, budget=8 * GIB).allowed_bytes for _ in range(3)]
    assert all(allowed / GIB == pytest.approx(6.1, abs=0.01) for allowed in steps)


@pytest.mark.parametrize(
    "wrong",
    [{"low_share": 1.0}, {"low_share": 0.01}, {"critical_share": -0.1}, {"interval": 0}, {"rss_limit": 0}],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        PressureMonitor(FakeMachine(), **wrong)


# -- what is measured -------------------------------------------------------------------------------------------------


def proc(tmp_path, cgroup, psi=None):
    root = tmp_path / "proc"
    (root / "self").mkdir(parents=True)
    (root / "self" / "cgroup").write_text(cgroup)
    (root / "self" / "statm").write_text("5000 1234 300 1 0 900 0\n")
    if psi is not None:
        (root / "pressure").mkdir()
        (root / "pressure" / "memory").write_text(psi)
    return root


def group(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)


def measure(tmp_path, proc):
    return SystemPressure(cgroup2=tmp_path / "v2", cgroup1=tmp_path / "v1", proc=proc).sample()


def test_without_control_groups_it_is_the_machine(tmp_path):
    sample = measure(tmp_path, proc(tmp_path, ""))
    assert sample.total == psutil.virtual_memory().total
    assert 0 < sample.available <= sample.total
    assert sample.rss == 1234 * resource.getpagesize()
    assert sample.stalled is None


def test_version_2_the_tightest_group_on_the_way_up_counts_and_pages_of_files_do_not(tmp_path):
    root = proc(tmp_path, "0::/outer/inner\n")
    group(tmp_path / "v2/outer/inner", memory__max="max\n", memory__current="1000\n", memory__stat="inactive_file 0\n")
    group(
        tmp_path / "v2/outer",
        memory__max="1000000\n",
        memory__current="700000\n",
        memory__stat="anon 100\ninactive_file 200000\nactive_file 7\n",
    )
    sample = measure(tmp_path, root)
    assert (sample.total, sample.available) == (1_000_000, 500_007)


def test_version_1_is_read_where_it_is_mounted(tmp_path):
    root = proc(tmp_path, "7:cpu,cpuacct:/x\n4:memory:/box\n")
    group(
        tmp_path / "v1/box",
        memory__limit_in_bytes="500000\n",
        memory__usage_in_bytes="450000\n",
        memory__stat="inactive_file 1\nactive_file 1\ntotal_inactive_file 50000\ntotal_active_file 20000\n",
    )
    sample = measure(tmp_path, root)
    assert (sample.total, sample.available) == (500_000, 120_000)


def test_a_group_over_its_limit_has_nothing_available(tmp_path):
    root = proc(tmp_path, "0::/g\n")
    group(tmp_path / "v2/g", memory__max="1000\n", memory__current="5000\n", memory__stat="")
    assert measure(tmp_path, root).available == 0


def test_stalls_come_from_psi(tmp_path):
    psi = "some avg10=50.00 avg60=1.00 avg300=0.00 total=1\nfull avg10=12.50 avg60=1.00 avg300=0.00 total=1\n"
    assert measure(tmp_path, proc(tmp_path, "", psi)).stalled == 12.5


PSI = "some avg10=90.00 avg60=0.00 avg300=0.00 total=1\nfull avg10={:.2f} avg60=0.00 avg300=0.00 total=1\n"


def test_inside_a_group_its_own_stalls_count_and_not_its_neighbours(tmp_path):
    root = proc(tmp_path, "0::/outer/inner\n", PSI.format(99))
    group(tmp_path / "v2", memory__pressure=PSI.format(98))
    group(tmp_path / "v2/outer", memory__max="max\n", memory__pressure=PSI.format(60))
    group(tmp_path / "v2/outer/inner", memory__pressure=PSI.format(1.5))
    assert measure(tmp_path, root).stalled == 1.5
    # Switched off for the group (the file is gone, or cannot be read): the next one outwards.
    (tmp_path / "v2/outer/inner/memory.pressure").write_text("")
    assert measure(tmp_path, root).stalled == 60
    (tmp_path / "v2/outer/inner/memory.pressure").unlink()
    assert measure(tmp_path, root).stalled == 60


@pytest.mark.parametrize("name", ["/", "/g"])
def test_a_group_without_psi_of_its_own_has_that_of_the_machine(tmp_path, name):
    root = proc(tmp_path, f"0::{name}\n", PSI.format(12.5))
    group(tmp_path / "v2/g", memory__max="max\n")
    assert measure(tmp_path, root).stalled == 12.5


def test_in_a_container_the_group_is_at_the_root_of_what_it_sees(tmp_path):
    root = proc(tmp_path, "0::/\n", PSI.format(50))
    group(tmp_path / "v2", memory__max="1000000\n", memory__current="0\n", memory__pressure=PSI.format(2))
    sample = measure(tmp_path, root)
    assert (sample.total, sample.stalled) == (1_000_000, 2)


@pytest.mark.parametrize("psi", ["", "full avg10=\n", "full\n", "some avg10=1\n"])
def test_nonsense_in_psi_is_no_measurement(tmp_path, psi):
    assert measure(tmp_path, proc(tmp_path, "", psi)).stalled is None


def test_nonsense_in_a_control_group_is_no_limit(tmp_path):
    root = proc(tmp_path, "0::/g\n")
    group(tmp_path / "v2/g", memory__max="lots\n", memory__current="5000\n", memory__stat="")
    assert measure(tmp_path, root).total == psutil.virtual_memory().total


# -- what a store does ------------------------------------------------------------------------------------------------


@pytest.fixture
def machine():
    return FakeMachine(total=1000 * KIB)


@pytest.fixture
async def store(tmp_path, machine):
    monitor = PressureMonitor(machine, interval=0.001)
    async with dstorage.open(tmp_path, budget=400 * KIB, pressure=monitor, commit_interval=None) as store:
        yield store


async def fill(store, count):
    ids = []
    for number in range(count):
        with await store.create(bytes([number]) * KIB) as handle:
            ids.append(handle.id)
    await store.commit()
    return ids


async def test_low_memory_shrinks_the_store_and_it_grows_back(store, machine):
    ids = await fill(store, 200)
    assert store.memory_used == 200 * KIB
    machine.available = 50 * KIB
    await eventually(lambda: store.memory_used <= 150 * KIB, "eviction")
    machine.available = 1000 * KIB
    await eventually(lambda: store.stats().limit == 400 * KIB, "the whole budget")
    for number, id in enumerate(ids):
        async with store.handle(id) as data:
            assert data[0] == number


async def test_critical_memory_frees_all_but_what_is_referenced_and_dirty_chunks_are_written_first(store, machine):
    ids = await fill(store, 50)
    with store.handle(ids[0]) as held:
        await held
        with store.handle(ids[1]) as changed:
            await changed.replace(b"new" * 300)
        machine.available = 0
        await eventually(lambda: store.memory_used <= KIB, "eviction")
        assert store.stats().limit == 25 * KIB
        assert store.info(ids[0]).resident
        assert held.data[0] == 0
        with store.handle(ids[2]) as another:
            await another.replace(b"and" * 300)
            await another.flush()
    # Critical: they leave at their last release. (The writer's thread may hold the bytes it wrote for an instant longer.)
    await eventually(lambda: store.memory_used == 0, "the last eviction")
    machine.available = 1000 * KIB
    await eventually(lambda: store.stats().limit == 400 * KIB, "the whole budget")
    async with store.handle(ids[1]) as data:
        assert data == b"new" * 300


async def test_the_programs_own_memory_pushes_the_store_back(tmp_path, machine):
    monitor = PressureMonitor(machine, interval=0.001, rss_limit=500 * KIB)
    async with dstorage.open(tmp_path, budget=400 * KIB, pressure=monitor, commit_interval=None) as store:
        await fill(store, 200)
        machine.rss = 480 * KIB
        await eventually(lambda: store.memory_used <= 170 * KIB, "eviction")


async def test_a_smaller_budget_evicts_down_to_what_references_hold(store):
    ids = await fill(store, 100)
    handles = await store.resolve_all(ids[:30])
    store.set_budget(10 * KIB)
    assert store.memory_used == 30 * KIB
    with pytest.raises(MemoryUnavailable):
        store.create_nowait(b"x")
    for handle in handles:
        handle.release()
    assert store.memory_used <= 10 * KIB


@pytest.mark.parametrize("budget", [100 * KIB, 400 * KIB, 800 * KIB])
async def test_another_budget_lifts_no_limit_that_a_shortage_has_set(store, machine, budget):
    await fill(store, 200)
    machine.available = 50 * KIB
    await eventually(lambda: store.stats().limit == 150 * KIB, "a shortage")
    store.set_budget(budget)
    assert store.stats().limit == min(budget, 150 * KIB)
    # Also not by way of a smaller one, which the monitor has seen meanwhile.
    store.set_budget(10 * KIB)
    assert store.stats().limit == 10 * KIB
    seen = machine.samples
    await eventually(lambda: machine.samples > seen + 2, "more samples")
    store.set_budget(budget)
    assert store.stats().limit <= 150 * KIB
    machine.available = 1000 * KIB
    await eventually(lambda: store.stats().limit == budget, "the whole budget")
    store.set_budget(2 * budget)
    assert store.stats().limit == 2 * budget


async def test_what_nobody_looks_at_any_more_is_not_counted(tmp_path):
    async with dstorage.open(tmp_path, budget=400 * KIB, pressure=None, commit_interval=None) as store:
        with await store.create(bytes(KIB)) as handle:
            view = handle.data
            await handle.replace(bytes(2 * KIB))
            assert store.memory_used == 3 * KIB
            del view
            assert store.memory_used == 2 * KIB
            assert store.stats().stray == 0


async def test_a_large_chunk_waits_for_the_end_of_a_shortage(store, machine):
    machine.available = 0
    await eventually(lambda: store.stats().limit == 25 * KIB, "a shortage")
    with pytest.raises(MemoryUnavailable, match="short of memory"):
        await store.create(bytes(100 * KIB))
    made = asyncio.ensure_future(store.create(bytes(100 * KIB), wait=60))
    await asyncio.sleep(0)
    machine.available = 1000 * KIB
    with await made as handle:
        assert handle.size == 100 * KIB


async def test_a_smaller_budget_lets_dirty_chunks_leave_once_they_are_written(store):
    for number in range(100):
        with await store.create(bytes([number]) * KIB):
            pass
    store.set_budget(10 * KIB)
    await eventually(lambda: store.memory_used <= 10 * KIB, "write-back and eviction")


@pytest.mark.skipif(sys.platform != "linux", reason="whether an allocator gives memory back is its own business")
async def test_what_a_smaller_budget_frees_goes_back_to_the_machine(tmp_path):
    rss = psutil.Process().memory_info
    async with dstorage.open(tmp_path, budget="64M", pressure=None, commit_interval=None) as store:
        for number in range(64 * 2**20 // 8192):
            with await store.create(number.to_bytes(8, "big") * 1024):
                pass
        await store.commit()
        gc.collect()
        before = rss().rss
        store.set_budget(1)
        assert store.memory_used == 0
        await eventually(lambda: rss().rss < before - 48 * 2**20, "less resident")
