"""The array for plain code: numpy's numbers after any history, from any thread, with memory for a part of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from memory_controller import MemoryController

import dstorage
import dstorage.blocking
from dstorage.array.paged import PagedArray


def opened(path, budget=2**14, **options):
    return dstorage.blocking.open(path, budget=budget, commit_interval=None, pressure=None, **options)


@pytest.fixture
def store(tmp_path):
    with opened(tmp_path / "store") as store:
        yield store


@settings(max_examples=50)
@given(data=st.data())
def test_slices_are_read_and_written_as_numpy_does(tmp_path_factory, data):
    with opened(tmp_path_factory.mktemp("example") / "store") as store:
        random_slices(store, data)


def random_slices(store, data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    tile = tuple(data.draw(st.integers(1, 5)) for _ in shape)
    array = PagedArray.create(store, "a", shape, "i4", tile=tile, fill=-1)
    model = np.full(shape, -1, "i4")
    for value in range(data.draw(st.integers(1, 4))):
        key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
        values = np.arange(value, value + model[key].size).reshape(model[key].shape)
        array[key] = values
        model[key] = values
        key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
        np.testing.assert_array_equal(array[key], model[key])
        np.testing.assert_array_equal(array.view(key), model[key])
    np.testing.assert_array_equal(np.asarray(array), model)


class Histories(RuleBasedStateMachine):
    """An array and what numpy makes of the same calls; the store holds about a tenth of it in memory."""

    SHAPE, TILE = (40, 33), (7, 10)

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = opened(self.folder.name + "/store", budget=2**12)
        self.array = PagedArray.create(self.store, "a", self.SHAPE, "i2", tile=self.TILE, fill=3)
        self.model = np.full(self.SHAPE, 3, "i2")
        self.store.commit()
        self.committed = self.model.copy()

    @rule(key=hnp.basic_indices(SHAPE), value=st.integers(-99, 99))
    def assign(self, key, value):
        self.array[key] = value
        self.model[key] = value

    @rule(key=hnp.basic_indices(SHAPE), discard=st.booleans(), fails=st.booleans())
    def edit(self, key, discard, fails):
        try:
            with self.array.edit(key, discard=discard) as part:
                part[...] = part + 1
                if fails:
                    raise KeyError
        except KeyError:
            return
        self.model[key] = 1 if discard else self.model[key] + 1

    @rule(key=hnp.basic_indices(SHAPE))
    def read(self, key):
        np.testing.assert_array_equal(self.array[key], self.model[key])

    @rule(halo=st.integers(0, 2))
    def sweep(self, halo):
        padded = np.pad(self.model, halo, mode="wrap")
        for block in self.array.tiles(halo=halo, boundary="periodic"):
            around = tuple(slice(part.start, part.stop + 2 * halo) for part in block.slices)
            np.testing.assert_array_equal(block.data, padded[around])

    @rule()
    def reduce(self):
        assert self.array.sum() == self.model.sum()
        np.testing.assert_array_equal(self.array.max(axis=0), self.model.max(axis=0))

    @rule()
    def commit(self):
        self.store.commit()
        self.committed = self.model.copy()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = opened(self.folder.name + "/store", budget=2**12)
        self.array = PagedArray.open(self.store, "a")
        assert (self.array.shape, self.array.dtype, self.array.tile, self.array.fill) == (
            self.SHAPE,
            np.int16,
            self.TILE,
            3,
        )

    @invariant()
    def memory_is_kept(self):
        if hasattr(self, "store"):
            assert self.store.memory_used <= 2**12

    def teardown(self):
        if hasattr(self, "store"):
            np.testing.assert_array_equal(self.array[...], self.model)
            self.store.close()
            self.folder.cleanup()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=15, stateful_step_count=25)


def test_a_crash_leaves_the_last_commit(tmp_path):
    """Read by another process (here: read-only) what the last commit left."""
    with opened(tmp_path / "store") as store:
        array = PagedArray.create(store, "a", (64, 64), tile=(8, 64))
        array[:32] = 1
        store.commit()
        array[:] = 2
        with opened(tmp_path / "store", read_only=True) as other:
            seen = PagedArray.open(other, "a")
            assert seen.sum() == 32 * 64
            with pytest.raises(dstorage.ReadOnlyError):
                seen[0] = 1
            for key in (np.s_[0:8], np.s_[0:9]):
                # Before the program has worked in vain.
                with pytest.raises(dstorage.ReadOnlyError):
                    seen.edit(key).__enter__()
        assert array.sum() == 2 * 64 * 64


def test_views_of_one_tile_share_memory_with_the_store_and_never_change(store):
    array = PagedArray.create(store, "a", (8, 8), tile=(4, 8))
    array[...] = 1
    view = array.view(np.s_[0:4])
    assert np.shares_memory(view, array.view(np.s_[1]))
    assert not view.flags.writeable
    array[0:4] = 2
    assert (view == 1).all()
    assert (array[0:4] == 2).all()
    copy = array[0:4]
    copy += 1
    assert (array[0:4] == 2).all()


def test_a_whole_tile_is_published_without_a_copy(store):
    array = PagedArray.create(store, "a", (8, 8), tile=(4, 8))
    with array.edit(np.s_[0:4], discard=True) as part:
        assert (part == 0).all()
        part[...] = 5
        address = part.__array_interface__["data"][0]
    assert array.view(np.s_[0:4]).__array_interface__["data"][0] == address
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 6


def test_what_does_not_come_to_its_end_leaves_no_trace(store):
    array = PagedArray.create(store, "a", (8, 8), tile=(4, 8))
    used = store.stats()
    for discard in (False, True):
        with contextlib.suppress(KeyError), array.edit(np.s_[0:4], discard=discard) as part:
            part[...] = 5
            raise KeyError
    with pytest.raises(ValueError, match="broadcast"):
        array[0:4] = [1, 2, 3]
    with pytest.raises(OverflowError):
        PagedArray.create(store, "b", 4, "i1")[0] = 300
    assert (array[...] == 0).all()
    assert store.stats().dirty - used.dirty < 1024


def test_an_error_in_an_edit_is_told_though_the_store_was_closed_meanwhile(tmp_path):
    store = opened(tmp_path / "store")
    array = PagedArray.create(store, "a", (8, 8), tile=(4, 8))

    def fail():
        with array.edit(np.s_[0:4]):
            store.close()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(dstorage.ClosedError):
        array.edit(np.s_[0:4]).__enter__()


def test_closing_the_store_ends_a_call_that_waits_in_another_thread(tmp_path):
    controller = MemoryController()
    store = opened(tmp_path / "store", controllers=[controller])
    array = PagedArray.create(store, "a", (64, 512), "u1", tile=(1, 512))
    array[...] = 1
    store.commit()
    store.loop.call_sync(controller.set_unavailable, True)
    errors = []

    def work():
        try:
            array.edit(0).__enter__()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not store.stats().unavailable:
        thread.join(0.001)
    # Nor does it warn of handles that the program has never had.
    store.close()
    thread.join()
    assert [type(error) for error in errors] == [dstorage.ClosedError]


def test_threads_that_write_to_one_tile_lose_nothing_of_each_other(store):
    array = PagedArray.create(store, "a", (16, 64), "i2", tile=(16, 64))
    together = threading.Barrier(4)
    failures = []

    def work(row):
        together.wait()
        try:
            for column in range(64):
                array[row::4, column] = row + column
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    np.testing.assert_array_equal(array[...], np.arange(16)[:, None] % 4 + np.arange(64))


def test_threads_that_write_other_tiles_first_lose_no_entry_of_the_tree(store):
    store.set_budget(2**18)
    array = PagedArray.create(store, "a", (2**22,), "u1", tile=(1,))
    together = threading.Barrier(4)

    def work(start):
        together.wait()
        for at in range(start, 2**22, 2**18 + 4):
            array[at] = start + 1

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in range(4):
        assert [int(array[at]) for at in range(start, 2**22, 2**18 + 4)] == [start + 1] * len(
            range(start, 2**22, 2**18 + 4)
        )


def test_one_paged_array_is_copied_into_another_tile_by_tile(store):
    model = np.random.default_rng(3).random((60, 50))
    one = PagedArray.create(store, "one", model.shape, tile=(7, 50))
    two = PagedArray.create(store, "two", (70, 50), "f4", tile=(16, 16))
    one[...] = model
    two[5:65] = one
    np.testing.assert_array_equal(two[5:65], model.astype("f4"))
    with pytest.raises(dstorage.InvalidArgumentError, match=r"shape \(60, 50\) where \(60,\)"):
        two[5:65, 0] = one
    with pytest.raises(dstorage.InvalidArgumentError, match="reversed"):
        two[64:4:-1] = one
    with pytest.raises(dstorage.InvalidArgumentError, match="to itself"):
        one[...] = PagedArray.open(store, "one")


def test_numpy_functions_take_it_for_an_array(store):
    model = np.arange(12.0).reshape(3, 4)
    array = PagedArray.create(store, "a", model.shape, tile=(2, 2))
    array[...] = model
    assert np.sum(array) == 66
    assert np.argmax(array) == 11
    np.testing.assert_array_equal(np.mean(array, axis=0), model.mean(axis=0))
    np.testing.assert_array_equal(np.std(array, axis=1), model.std(axis=1))
    np.testing.assert_array_equal(np.asarray(array, "f4"), model)
    out = np.empty(4)
    assert np.max(array, axis=0, out=out) is out
    assert len(array) == 3
    rows = list(array)
    np.testing.assert_array_equal(rows, list(model))
    rows[0][0] = 99
    assert array[0, 0] == 0
    with pytest.raises(ValueError, match="copy"):
        np.asarray(array, copy=False)


def test_structures_bytes_and_dates_are_elements(store):
    agents = PagedArray.create(store, "agents", 100, [("place", "f4", (2,)), ("age", "i2"), ("name", "S3")])
    agents[3] = ((1, 2), 5, b"abc")
    assert agents[3]["age"] == 5
    assert agents[2:5]["name"].tolist() == [b"", b"abc", b""]
    days = PagedArray.create(store, "days", 10, "M8[D]", fill="2000-01-01")
    assert days.max() == np.datetime64("2000-01-01")


def test_names_are_listed_and_one_name_stands_for_one_array(store):
    PagedArray.create(store, "b/ü", 4)
    array = PagedArray.create(store, "a", 4)
    assert PagedArray.names(store) == ["a", "b/ü"]
    with pytest.raises(dstorage.UsageError, match="open it, or delete it"):
        PagedArray.create(store, "a", 4)
    with pytest.raises(dstorage.InvalidArgumentError, match=r"no array 'c'.*'a', 'b/ü'"):
        PagedArray.open(store, "c")
    for name in ["", "x" * 506, "\ud800", b"a", 5, None]:
        with pytest.raises(dstorage.InvalidArgumentError, match="array name"):
            PagedArray.create(store, name, 4)
    PagedArray.delete(store, "a")
    with pytest.raises(dstorage.Deleted):
        array[0] = 1
    with pytest.raises(dstorage.InvalidArgumentError):
        PagedArray.delete(store, "a")
    assert PagedArray.create(store, "a", 5).shape == (5,)


def test_deleting_gives_back_all_space(store):
    store.set_budget(2**18)
    store.commit()
    before = store.stats().chunks
    array = PagedArray.create(store, "a", (2000, 2), "u1", tile=(1, 2))
    array[::3] = 1
    store.commit()
    assert store.stats().chunks > before + 600
    PagedArray.delete(store, "a")
    store.commit()
    assert store.stats().chunks == before


def test_the_two_faces_tell_their_stores_apart(store):
    from dstorage.array.core import AsyncPagedArray

    with pytest.raises(dstorage.InvalidArgumentError, match="AsyncPagedArray"):
        PagedArray.open(store.inner, "a")
    array = PagedArray.create(store, "a", 4)
    other = store.call(AsyncPagedArray.create, store.inner, "b", 4)
    with pytest.raises(dstorage.InvalidArgumentError, match="'b' is an AsyncPagedArray"):
        array[...] = other
    with pytest.raises(dstorage.InvalidArgumentError, match="PagedArray"):
        AsyncPagedArray.names(store)


def test_a_tile_too_large_for_the_budget_is_refused(store):
    with pytest.raises(dstorage.InvalidArgumentError, match=r"budget of 16384.*4096"):
        PagedArray.create(store, "a", (1024, 1024), tile=(1024, 1024))
    assert PagedArray.create(store, "a", (1024, 1024)).tile == (1, 64)
    store.set_budget(2**25)
    assert PagedArray.create(store, "b", (1024, 1024), tile=(1024, 1024)).tile == (1024, 1024)
    assert PagedArray.create(store, "c", (1024, 1024)).tile == (128, 1024)


def test_without_numpy_the_rest_works_and_arrays_say_what_to_install():
    program = """
import sys
sys.modules["numpy"] = None
import dstorage
try:
    dstorage.PagedArray
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "dstorage.PagedArray needs numpy: pip install 'dstorage[array]'", done.stderr
