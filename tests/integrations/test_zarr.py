"""zarr's own test suites, and zarr, xarray and dask arrays through a store."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("zarr")
import numpy as np
import zarr
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

import dstorage
import dstorage.blocking
from dstorage.integrations.tree import Tree
from dstorage.integrations.zarr import ZarrStore

BUDGET = 8 * 2**20


class TestZarrStore(StoreTests[ZarrStore, cpu.Buffer]):
    store_cls = ZarrStore
    buffer_cls = cpu.Buffer

    async def set(self, store, key, value):
        await store._mount.run(Tree.write, key, value.to_bytes())

    async def get(self, store, key):
        return cpu.Buffer.from_bytes(bytes(await store._mount.run(Tree.read, key)))

    @pytest.fixture
    def store_kwargs(self, tmp_path):
        # Held open, so that the stores which the suite never closes leave nothing behind.
        with dstorage.blocking.open(tmp_path / "s", budget=BUDGET, pressure=False) as store:
            yield {"store": store}

    @pytest.fixture
    def store(self, store_kwargs):
        return zarr.core.sync.sync(ZarrStore.open(**store_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs):
        return ZarrStore(**store_kwargs)

    async def test_serializable_store(self, tmp_path):
        store = await ZarrStore.open(tmp_path / "t", path="a/b", budget=BUDGET, pressure=False)
        try:
            await super().test_serializable_store(store)
        finally:
            store.close()
            copy = pickle.loads(pickle.dumps(store))
            assert copy.get_sync("foo").to_bytes() == b"\1\2\3\4"
            copy.close()

    def test_store_repr(self, store, tmp_path):
        assert repr(store) == f"ZarrStore('dstorage://{tmp_path}/s')"

    def test_store_supports_writes(self, store):
        assert store.supports_writes

    def test_store_supports_listing(self, store):
        assert store.supports_listing


@pytest.fixture
def store(tmp_path):
    opened = ZarrStore(tmp_path / "s", budget=BUDGET, pressure=False)
    yield opened
    opened.close()


# Of zarr's own types, which the machine draws among others.
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_zarrs_state_machines(store, machine):
    run_state_machine_as_test(
        lambda: machine(store),
        settings=settings(
            max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_an_array_larger_than_the_budget_is_there_after_reopening(tmp_path):
    with ZarrStore(tmp_path / "s", budget="1M", pressure=False) as store:
        array = zarr.create_array(
            store, name="big", shape=(8, 512, 512), chunks=(1, 256, 256), dtype="f4", compressors=None
        )
        for number in range(8):
            array[number] = number
        assert array.nbytes == 8 * 2**20
    with ZarrStore(tmp_path / "s", budget="1M", pressure=False, read_only=True) as store:
        array = zarr.open_array(store, path="big", mode="r")
        assert [float(array[number].sum()) for number in range(8)] == [512 * 512 * number for number in range(8)]


def test_values_larger_than_a_piece_are_split_and_read_in_part(tmp_path):
    data = np.random.default_rng(1).integers(0, 255, 2**20, dtype="u1")
    with ZarrStore(tmp_path / "s", budget="1M", pressure=False) as store:
        store.set_sync("a/c/0", cpu.Buffer.from_array_like(data))
        got = store.get_sync("a/c/0")
        assert got.to_bytes() == data.tobytes()
        part = store.get_sync("a/c/0", byte_range=RangeByteRequest(131_000, 400_000))
        assert part.to_bytes() == data[131_000:400_000].tobytes()
        assert store.get_sync("a/c/0", byte_range=SuffixByteRequest(7)).to_bytes() == data[-7:].tobytes()
        assert asyncio.run(store.getsize("a/c/0")) == 2**20


def test_shards_are_read_by_parts(store):
    array = zarr.create_array(store, name="s", shape=(100, 100), chunks=(10, 10), shards=(50, 50), dtype="i4")
    array[:] = np.arange(10_000).reshape(100, 100)
    assert (array[13:15, 20:90] == np.arange(10_000).reshape(100, 100)[13:15, 20:90]).all()


@pytest.mark.parametrize("wide", [100, 1024])
def test_shards_larger_than_the_budget_are_read_by_parts(tmp_path, wide):
    with ZarrStore(tmp_path / "s", budget="1M", pressure=False) as store:
        array = zarr.create_array(
            store, name="s", shape=(1024, 1024), chunks=(64, 64), shards=(1024, 1024), dtype="i4", compressors=None
        )
        array[:] = values = np.arange(2**20, dtype="i4").reshape(1024, 1024)
        assert (array[10:, :wide] == values[10:, :wide]).all()


def test_who_keeps_more_than_the_budget_keeps_copies(tmp_path):
    with ZarrStore(tmp_path / "s", budget="1M", pressure=False) as store:
        for number in range(40):
            store.set_sync(f"c/{number}", cpu.Buffer.from_bytes(bytes([number]) * 100_000))
        kept = [store.get_sync(f"c/{number}") for number in range(40)]
        assert all(buffer.to_bytes() == bytes([number]) * 100_000 for number, buffer in enumerate(kept))
        one = store.get_sync("c/7").as_numpy_array()
        assert not np.shares_memory(one, store.get_sync("c/7").as_numpy_array())
        kept.clear()
        one = store.get_sync("c/7").as_numpy_array()
        assert np.shares_memory(one, store.get_sync("c/7").as_numpy_array()[5:])


def test_xarray_and_dask_page_through_a_store(tmp_path):
    xarray = pytest.importorskip("xarray")
    dask = pytest.importorskip("dask")
    pytest.importorskip("dask.array")
    values = np.random.default_rng(2).random((512, 512))
    with (
        # Else dask keeps threads for the life of the process.
        ThreadPoolExecutor(3) as pool,
        dask.config.set(pool=pool),
        ZarrStore(tmp_path / "s", budget="1M", pressure=False) as store,
    ):
        frame = xarray.Dataset({"t": (("x", "y"), values)}, {"x": np.arange(512)})
        frame.chunk(x=64, y=256).to_zarr(store, group="data", consolidated=False)
        with xarray.open_zarr(store, group="data", consolidated=False) as back:
            assert back.t.chunks is not None
            np.testing.assert_allclose(back.t.mean("x").compute(), values.mean(0))
            (back.t.data @ back.t.data.T).to_zarr(store, component="product")
        np.testing.assert_allclose(zarr.open_array(store, path="product")[:], values @ values.T)


def test_two_places_in_one_store(tmp_path):
    left = ZarrStore(tmp_path / "s", path="left", budget="2M", pressure=False)
    right = ZarrStore(tmp_path / "s", path="right/deep")
    zarr.create_array(left, name="a", data=np.arange(3))
    zarr.create_array(right, name="a", data=np.arange(4))
    assert zarr.open_array(left, path="a").shape == (3,)
    left.close()
    # The last one who closes it closes the store.
    assert zarr.open_array(right, path="a").shape == (4,)
    right.close()
    with dstorage.blocking.open(tmp_path / "s", pressure=False) as store:
        tree = store.loop.run(Tree.open, store.inner)
        top = store.loop.call_sync(tree.entries, "")
        assert [(entry.name, entry.is_directory) for entry in top] == [("left", True), ("right", True)]


def test_what_zarr_opened_for_reading_is_closed_with_the_store(tmp_path):
    with ZarrStore(tmp_path / "s", pressure=False) as store:
        zarr.create_array(store, name="a", data=np.arange(3))
        array = zarr.open_array(store, path="a", mode="r")
        assert array[:].tolist() == [0, 1, 2]
        with store.with_read_only(True) as other:
            assert other.read_only
        assert array[:].tolist() == [0, 1, 2]
    # No one else has it open.
    with dstorage.blocking.open(tmp_path / "s", pressure=False):
        pass


READER = """
import pickle, sys
from dstorage.integrations.zarr import ZarrStore
for store in (pickle.loads(bytes.fromhex(sys.argv[2])), ZarrStore(sys.argv[1], read_only=True)):
    print(store.get_sync("a").to_bytes())
"""


def test_who_only_reads_does_so_beside_the_process_that_writes(store, tmp_path):
    store.set_sync("a", cpu.Buffer.from_bytes(b"1"))
    store.commit()
    store.set_sync("a", cpu.Buffer.from_bytes(b"2"))
    other = pickle.dumps(store.with_read_only(True)).hex()
    done = subprocess.run(
        [sys.executable, "-c", READER, tmp_path / "s", other], capture_output=True, text=True, check=False
    )
    assert done.stdout == "b'1'\n" * 2, done.stderr
    # In the same process there is nothing to wait for.
    with ZarrStore(tmp_path / "s", read_only=True) as reader:
        assert reader.get_sync("a").to_bytes() == b"2"
        with pytest.raises(ValueError, match="read-only"):
            reader.set_sync("a", cpu.Buffer.from_bytes(b"3"))


FORKED = """
import multiprocessing, sys
import zarr
from dstorage.integrations.zarr import ZarrStore

array = zarr.open_array(ZarrStore(sys.argv[1], read_only=True), path="a", mode="r")
print(array[:].sum(), flush=True)
for _ in range(2):
    process = multiprocessing.get_context("fork").Process(target=lambda: print(array[:].sum(), flush=True))
    process.start()
    process.join()
print(array[:].sum())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_children_read_on(tmp_path):
    with ZarrStore(tmp_path / "s", pressure=False) as store:
        zarr.create_array(store, name="a", data=np.arange(100), chunks=10)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, tmp_path / "s"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["4950"] * 4, done.stderr


def test_a_store_that_only_looks_leaves_writing_to_others(tmp_path):
    with pytest.raises(dstorage.NotAStoreError):
        ZarrStore(tmp_path / "s", read_only=True).get_sync("a")
    with ZarrStore(tmp_path / "s", pressure=False) as store:
        store.set_sync("a", cpu.Buffer.from_bytes(b"1"))
    with (
        ZarrStore(tmp_path / "s", read_only=True, pressure=False) as reader,
        pickle.loads(pickle.dumps(reader)) as copy,
    ):
        assert reader == copy
        assert reader.get_sync("a").to_bytes() == copy.get_sync("a").to_bytes() == b"1"
        with pytest.raises(dstorage.UsageError, match="close that first"):
            reader.with_read_only(False).set_sync("a", cpu.Buffer.from_bytes(b"2"))
    with reader.with_read_only(False) as writer:
        writer.set_sync("a", cpu.Buffer.from_bytes(b"2"))


def test_a_store_is_open_with_one_set_of_options(store, tmp_path):
    assert store.get_sync("a") is None
    with pytest.raises(dstorage.InvalidArgumentError, match=r"open in this process with \{'budget': 8388608"):
        ZarrStore(tmp_path / "s", budget="1G").get_sync("a")


def test_a_store_given_open_stays_open_and_takes_no_options(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", pressure=False) as inner:
        with pytest.raises(dstorage.InvalidArgumentError, match="budget: for stores given by path"):
            ZarrStore(inner, budget="1G")
        with ZarrStore(inner) as store:
            store.set_sync("a", cpu.Buffer.from_bytes(b"1"))
            with pytest.raises(TypeError, match="only one given a path"):
                pickle.dumps(store)
        assert ZarrStore(inner).get_sync("a").to_bytes() == b"1"
    with pytest.raises(dstorage.ClosedError):
        ZarrStore(inner).get_sync("a")


async def test_a_store_may_live_on_the_callers_loop(tmp_path):
    async with dstorage.open(tmp_path / "s", pressure=False) as inner:
        store = await ZarrStore.open(inner)
        await store.set("a/b", cpu.Buffer.from_bytes(b"1"))
        assert (await store.get("a/b")).to_bytes() == b"1"
        assert [key async for key in store.list()] == ["a/b"]
        with pytest.raises(dstorage.UsageError, match="would wait for itself"):
            store.get_sync("a/b")
        assert await asyncio.to_thread(lambda: store.get_sync("a/b").to_bytes()) == b"1"


def test_a_chunk_that_is_gone_is_not_taken_for_the_fill_value(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", budget="8M", pressure=False) as inner:
        store = ZarrStore(inner)
        array = zarr.create_array(store, name="a", shape=4, chunks=2, dtype="i4", compressors=None)
        array[:] = 7
        tree = inner.loop.run(Tree.open, inner.inner)
        inner.handle(inner.loop.call_sync(tree.file, "a/c/1").number).delete()
        assert (array[:2] == 7).all()
        with pytest.raises(dstorage.Deleted):
            array[2:]


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/../b", "a/" + "x" * 600])
def test_bad_keys_are_refused_when_set_and_absent_when_asked_for(store, key):
    with pytest.raises(dstorage.InvalidArgumentError):
        store.set_sync(key, cpu.Buffer.from_bytes(b"1"))
    assert store.get_sync(key) is None
    assert not asyncio.run(store.exists(key))
    store.delete_sync(key)


def test_a_directory_in_itself_is_not_listed_for_ever(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", pressure=False) as inner:
        store = ZarrStore(inner)
        store.set_sync("a/b", cpu.Buffer.from_bytes(b"1"))
        number = inner.loop.run(Tree.open, inner.inner).find("a").number
        inner.set_name(b"tree\0" + number.to_bytes(8, "big") + b"again/", number)

        async def listed():
            return [key async for key in store.list()]

        with pytest.raises(dstorage.CorruptData, match="in itself"):
            asyncio.run(listed())


def test_what_is_committed_survives_a_kill(tmp_path):
    code = (
        "import os, sys; from zarr.core.buffer import cpu; from dstorage.integrations.zarr import ZarrStore\n"
        "store = ZarrStore(sys.argv[1], commit_interval=None)\n"
        "store.set_sync('a', cpu.Buffer.from_bytes(b'1')); store.commit(); store.set_sync('b', cpu.Buffer.from_bytes(b'2'))\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "s"], check=True)
    with ZarrStore(tmp_path / "s") as store:
        assert store.get_sync("a").to_bytes() == b"1"
        assert store.get_sync("b") is None
