"""The mapping against a model, zict's buffer and distributed's spill buffer on it, and a worker that spills."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("distributed")
import numpy as np
import zict
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import dstorage
from dstorage.integrations.dask import SpillBuffer
from dstorage.integrations.spill import SpillMapping

BUDGET = 2**20
PIECE = BUDGET // 8


@pytest.fixture
def mapping(tmp_path):
    with SpillMapping(str(tmp_path), budget=BUDGET, pressure=False) as mapping:
        yield mapping
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5, 3 * BUDGET])
def test_a_value_comes_back_as_a_copy_of_ones_own(mapping, size):
    data = os.urandom(size)
    mapping["a"] = data
    back = mapping["a"]
    assert isinstance(back, bytearray)
    assert back == data
    back[:] = b"x" * size
    assert mapping["a"] == data


def test_parts_are_joined_whatever_their_type_and_shape(mapping):
    array = np.arange(60_000, dtype="u4").reshape(200, 300)
    mapping["a"] = [b"head", bytearray(b""), array, memoryview(b"tail")]
    assert mapping["a"] == b"head" + array.tobytes() + b"tail"
    with pytest.raises(dstorage.InvalidArgumentError, match="contiguous"):
        mapping["a"] = [b"other", array[:, ::2]]
    assert len(mapping["a"]) == array.nbytes + 8


@pytest.mark.parametrize("size", [100, PIECE + 1, BUDGET // 2])
def test_a_value_that_is_lent_is_there_until_it_is_deleted(mapping, size):
    data = os.urandom(size)
    for key in ("a", "b"):
        mapping[key] = data
    lent = mapping.lend("a")
    assert lent == mapping.lend("a") == mapping["a"] == data
    del mapping["a"]
    lent[:] = b"x" * size
    assert "a" not in mapping
    assert mapping["b"] == data
    mapping.lend("b")
    mapping["b"] = b"new"
    assert mapping["b"] == b"new"
    assert mapping._store.call(_memory_used, mapping._store.inner) == 0


async def _memory_used(store):
    store.room.reserve_nowait(1, 0)
    store.contents.drop_reserved(1)
    return store.stats().used - store.stats().stray


def test_a_value_that_is_lent_while_it_is_looked_for_is_found(mapping):
    class Lent:
        """Another thread lends it between the looks at `held` and at `ids`."""

        size = 3
        ids = ()
        looks = 0

        @property
        def held(self):
            self.looks += 1
            return None if self.looks == 1 else bytearray(b"abc")

    mapping._places["a"] = Lent()
    assert mapping["a"] == b"abc"


@pytest.mark.parametrize("size", [2 * PIECE, 3 * BUDGET])
@pytest.mark.parametrize("removed", [False, True])
def test_a_value_that_is_replaced_or_removed_while_it_is_looked_for_is_no_lost_one(mapping, size, removed):
    mapping["a"] = b"old" * (size // 3)
    place = mapping._places["a"]

    class Outdated:
        """Another thread changes the key after the first look at `ids`, and the old pieces are deleted before they are read."""

        size, held, looks = place.size, None, 0

        @property
        def ids(self):
            self.looks += 1
            if self.looks == 1:
                del mapping["a"]
                mapping["b"] = bytes(2 * PIECE)
                if not removed:
                    mapping["a"] = b"new"
            return place.ids

    mapping._places["a"] = Outdated()
    if removed:
        with pytest.raises(KeyError):
            mapping["a"]
    else:
        assert mapping["a"] == b"new"


def test_keys_are_whatever_is_hashable(mapping):
    for key in ("a", ("a", 1), 7, b"x", frozenset()):
        mapping[key] = str(key).encode()
    assert {key: bytes(mapping[key]) for key in mapping} == {
        key: str(key).encode() for key in ("a", ("a", 1), 7, b"x", frozenset())
    }
    for act in (mapping.__getitem__, mapping.__delitem__):
        with pytest.raises(KeyError):
            act("none")


def test_it_is_the_mapping_a_dict_is(tmp_path):
    keys = st.integers(0, 5)

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.mapping = SpillMapping(str(tmp_path), budget=64 * 1024, pressure=False)
            self.model = {}

        @rule(key=keys, size=st.sampled_from([0, 1, 100, 8192, 8193, 30_000, 100_000]), byte=st.integers(0, 255))
        def put(self, key, size, byte):
            self.mapping[key] = self.model[key] = bytes([byte]) * size

        @rule(key=keys)
        def get(self, key):
            assert self.mapping.get(key) == self.model.get(key)

        @rule(key=keys)
        def remove(self, key):
            self.mapping.discard(key)
            self.model.pop(key, None)

        @invariant()
        def same_keys(self):
            assert list(self.mapping) == list(self.model) or set(self.mapping) == set(self.model)
            assert len(self.mapping) == len(self.model)

        def teardown(self):
            self.mapping.close()

    run_state_machine_as_test(Machine, settings=settings(max_examples=20, stateful_step_count=30, deadline=None))


@pytest.mark.parametrize(
    "check", ["mapping", "same_key_threadsafe", "different_keys_threadsafe", "bad_value_types", "closing"]
)
def test_it_passes_zicts_own_tests(mapping, check):
    own = pytest.importorskip("zict.tests.utils_test")
    getattr(own, f"check_{check}")(mapping)


def test_what_is_deleted_frees_its_place(mapping):
    for number in range(40):
        mapping[number] = os.urandom(PIECE)
    for number in range(40):
        del mapping[number]
    store = mapping._store
    # What the disk's thread is writing goes when it is through; what it wrote last it may hold until it is told of more.
    deadline = time.monotonic() + 30
    while store.stats().used > 2 * PIECE or store.controllers()[0].space.used >= 10 * PIECE:
        assert time.monotonic() < deadline, store


@pytest.fixture
def trips(mapping, monkeypatch):
    """What makes its way to the store's loop."""
    made = []
    for name in ("call", "post"):
        way = getattr(mapping._store.loop, name)
        monkeypatch.setattr(mapping._store.loop, name, lambda *args, way=way: made.append(way) or way(*args))
    return made


def on_disk(mapping, **values):
    """Store values, and have them written and out of the store's memory."""
    for key, value in values.items():
        mapping[key] = value
    store = mapping._store
    for id in list(store.inner.table.handles):
        store.handle(id).flush()
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


def test_what_the_page_cache_has_is_read_and_lent_without_a_trip(mapping, trips):
    values = {key: os.urandom(PIECE + 1) for key in "abcdefgh"}
    on_disk(mapping, **values)
    trips.clear()
    for _ in range(3):
        assert {key: mapping[key] for key in values} == values
        assert {key: mapping.lend(key) for key in values} == values
    assert trips == []
    assert mapping._store.memory_used == 0, "the caller has it, the store need not"


def test_what_is_deleted_is_brought_to_the_loop_together(mapping, trips):
    values = {key: os.urandom(PIECE + 1) for key in "abcdef"}
    on_disk(mapping, **values)
    trips.clear()
    for key in values:
        del mapping[key]
    assert len(trips) == 3, "each time that a quarter of the budget is full"
    mapping["g"] = bytes(PIECE + 1)
    assert mapping._store.stats().handles == 1
    assert [id for id in range(1, 7) if mapping._store.inner._index.get(id) is not None] == []


def test_what_was_deleted_last_is_not_written_at_the_end(tmp_path, monkeypatch):
    mapping = SpillMapping(str(tmp_path), budget=BUDGET, pressure=False)
    mapping["a"] = bytes(PIECE + 1)
    del mapping["a"]
    writeback = mapping._store.inner._writeback
    mapping.close()
    assert writeback.chunks_written == 0
    assert list(tmp_path.iterdir()) == []


def test_deleted_pieces_are_remembered_when_a_trip_fails(mapping, monkeypatch):
    on_disk(mapping, a=bytes(PIECE + 1))
    del mapping["a"]
    with monkeypatch.context() as patched:
        patched.setattr(mapping._store.loop, "run", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mapping["b"] = bytes(PIECE + 1)
    mapping["b"] = bytes(PIECE + 1)
    assert mapping._store.inner._index.get(1) is None


def test_many_threads_at_once(mapping):
    def work(seed):
        rng = random.Random(seed)
        for step in range(60):
            key, size = (seed, rng.randrange(4)), rng.choice([10, 5000, 2 * PIECE])
            mapping[key] = bytes([seed]) * size
            assert mapping[key] == bytes([seed]) * size
            if step % 3 == 0:
                del mapping[key]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_nothing_is_left_when_it_is_forgotten_even_on_the_stores_own_loop(tmp_path):
    mapping = SpillMapping(str(tmp_path), budget=BUDGET, pressure=False)
    mapping["a"] = b"x" * 1000
    loop = mapping._store.loop
    holder = [mapping]
    del mapping
    loop.call_sync(holder.clear)
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("remove "):
            thread.join(30)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_the_program(tmp_path):
    code = (
        "import sys; from dstorage.integrations.dask import SpillMapping\n"
        "mapping = SpillMapping(sys.argv[1], budget='4M', pressure=False); mapping['a'] = b'x' * 10**7"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], check=True)
    assert list(tmp_path.iterdir()) == []


FORK = """
import gc, multiprocessing, os, sys
from dstorage.integrations.spill import SpillMapping

def child(end):
    global mapping
    if end == "forget":
        mapping = None
        gc.collect()
    elif end == "close":
        mapping.close()
    elif end == "exit":
        sys.exit(0)

mapping = SpillMapping(sys.argv[1], budget="1M", pressure=False)
mapping["a"] = bytes(2**18)
for end in ("return", "forget", "close", "exit"):
    process = multiprocessing.get_context("fork").Process(target=child, args=(end,))
    process.start()
    process.join()
    print(process.exitcode, len(os.listdir(sys.argv[1])))
for number in range(8):
    mapping[number] = bytes(2**18)
assert all(mapping[number] == bytes(2**18) for number in mapping)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_leaves_the_parents_directory_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORK, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0 1\n" * 4), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("work", ["", "del mapping['a']", "mapping.clear()", "mapping['c'] = bytes(2**17)"])
def test_the_end_of_a_program_is_quiet_even_if_the_directory_is_gone(tmp_path, gone, work):
    code = (
        "import os, shutil, sys\n"
        "from dstorage.integrations.spill import SpillMapping\n"
        "mapping = SpillMapping(sys.argv[1], budget='1M', pressure=False)\n"
        "mapping['a'], mapping['b'] = bytes(2**18), bytes(2**18)\n"
        f"{work}\n"
        f"if {gone}:\n"
        "    shutil.rmtree(os.path.join(sys.argv[1], os.listdir(sys.argv[1])[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_it_is_the_slow_side_of_zicts_buffer(mapping):
    slow = zict.Func(pickle.dumps, pickle.loads, mapping)
    data = zict.Buffer({}, slow, n=10, weight=lambda _key, _value: 1)
    for number in range(200):
        data[number] = {"number": number, "text": "x" * number * 100}
    assert (len(data.fast), len(data.slow)) == (10, 190)
    for number in range(200):
        assert data[number]["text"] == "x" * number * 100
    del data[3]
    assert 3 not in data


# -- distributed's spill buffer ---------------------------------------------------------------------------------------


@pytest.fixture
def buffer(tmp_path):
    with SpillBuffer("8M", worker_local_directory=str(tmp_path)) as buffer:
        yield buffer
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back_writable(buffer):
    arrays = {f"x-{number}": np.full(2**17, number, "f8") for number in range(32)}
    for key, array in arrays.items():
        buffer[key] = array
    assert sum(array.nbytes for array in buffer.memory.values()) <= 6 * 2**20
    assert len(buffer.memory) + len(buffer.disk) == 32
    total = buffer.spilled_total
    assert total.memory == pytest.approx(len(buffer.disk) * 2**20, rel=0.01)
    del arrays, array
    for number in range(32):
        array = buffer[f"x-{number}"]
        assert (array == number).all()
        array += 1


def test_what_is_on_the_disk_is_not_written_again(buffer):
    store = buffer.slow.data.d._store
    for number in range(32):
        buffer[number] = np.full(2**17, number, "f8")
    for number in range(32):
        assert buffer[number][0] == number
    for id in list(store.ids()):
        store.handle(id).flush()
    before = store.stats().bytes_written
    for _ in range(3):
        for number in range(32):
            assert buffer[number][0] == number
    # A few were never on the disk when that was counted.
    assert store.stats().bytes_written - before < 12 * 2**20
    assert len(buffer) == 32
    assert sorted(buffer) == list(range(32))


def test_a_new_value_is_not_taken_for_the_one_that_was_spilled(buffer):
    for round_ in range(3):
        for number in range(32):
            buffer[number] = np.full(2**17, 100 * round_ + number, "f8")
        buffer[3] = np.full(2**20, 100 * round_ + 3, "f8")
        for number in range(32):
            assert buffer[number][0] == 100 * round_ + number
        for number in range(0, 32, 2):
            del buffer[number]
        assert sorted(buffer) == list(range(1, 32, 2))
    for key in list(buffer):
        del buffer[key]
    assert len(buffer) == len(buffer.slow.data.d) == 0
    assert buffer.spilled_total == (0, 0)


def test_values_changed_in_place_are_written_again_where_that_is_asked_for(tmp_path):
    with SpillBuffer("8M", rewrite=True, worker_local_directory=str(tmp_path)) as buffer:
        for _ in range(2):
            for number in range(32):
                if number not in buffer:
                    buffer[number] = np.zeros(2**17)
                buffer[number] += 1
        assert [int(buffer[number][0]) for number in range(32)] == [2] * 32


def test_one_larger_than_the_target_goes_straight_to_the_disk(buffer):
    buffer["a"] = np.arange(3 * 2**20, dtype="u8")
    assert list(buffer.memory) == []
    assert int(buffer["a"][-1]) == 3 * 2**20 - 1


class Sparse:
    """Large in memory, small on the disk."""

    def __init__(self, data):
        self.data = data

    def __sizeof__(self):
        return 7 * 2**20


@pytest.mark.parametrize("size", [1000, 2**19])
def test_what_is_too_large_to_come_to_memory_takes_none_beside_the_budget(buffer, size):
    for number in range(20):
        buffer[number] = Sparse(bytes([number]) * size)
        assert buffer[number].data == bytes([number]) * size
    mapping = buffer.slow.data.d
    assert list(buffer.memory) == []
    held = sum(len(place.held) for place in mapping._places.values() if place.held is not None)
    assert held == mapping._gathered_bytes
    assert all(buffer[number].data == bytes([number]) * size for number in range(20))


def test_what_cannot_be_serialized_stays_in_memory(buffer, caplog):
    class Stubborn:
        def __sizeof__(self):
            return 5 * 2**20

        def __reduce__(self):
            raise TypeError("no")

    buffer["a"] = stubborn = Stubborn()
    buffer["b"] = np.zeros(2**19)
    assert buffer["a"] is stubborn
    assert "Failed to pickle 'a'" in caplog.text
    assert buffer.evict() != 0


def test_a_limit_of_what_is_spilled_is_kept(tmp_path, caplog):
    with SpillBuffer("4M", max_spill=2**21, worker_local_directory=str(tmp_path)) as buffer:
        for number in range(10):
            buffer[number] = np.full(2**17, number, "f8")
        assert "reached capacity" in caplog.text
        assert buffer.spilled_total.disk <= 2**21
        assert {key: int(value[0]) for key, value in buffer.memory.items()} == {n: n for n in range(1, 10)}
        assert list(buffer.disk) == [0]


def test_a_disk_that_takes_nothing_keeps_the_data_in_memory(tmp_path, caplog, monkeypatch):
    with SpillBuffer("4M", worker_local_directory=str(tmp_path)) as buffer:
        store = buffer.slow.data.d._store
        controller = store.inner.entry_named("disk").controller

        async def write(requests):
            raise dstorage.ControllerFull("full")

        monkeypatch.setattr(controller, "write", write)
        for number in range(6):
            buffer[number] = np.full(2**17, number, "f8")
        assert "Spill to disk failed; keeping data in memory" in caplog.text
        assert [int(buffer[number][0]) for number in range(6)] == list(range(6))


@pytest.mark.parametrize("budget", ["4M", "5M"])
def test_the_stores_budget_is_part_of_the_target(tmp_path, budget):
    with pytest.raises(dstorage.InvalidArgumentError, match="less than the target"):
        SpillBuffer("4M", budget=budget, worker_local_directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_worker_holds_several_times_its_memory_limit(tmp_path):
    """In a process of its own: a cluster leaves threads behind."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("dask_child.py"), tmp_path],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["sums_are_right"]
    assert told["restarts"] == 0
    assert told["held"] > 3 * told["limit"]
    assert told["peak_rss"] < told["limit"]
    assert told["spilled"] > 2 * told["limit"]
    assert told["left"] == []
