"""fsspec's own test classes, and pandas and pyarrow through ``dstorage://``."""

from __future__ import annotations

import asyncio
import pickle
import posixpath
from contextlib import suppress

import pytest

pytest.importorskip("fsspec")
import fsspec
from fsspec.tests import abstract

import dstorage
import dstorage.blocking
from dstorage.integrations.fsspec import DStorageFileSystem
from dstorage.integrations.tree import Tree

BUDGET = 8 * 2**20


@pytest.fixture(autouse=True, scope="module")
def _registered():
    """As the entry point does, whether or not this is installed."""
    fsspec.register_implementation("dstorage", DStorageFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _no_instances_kept():
    yield
    for fs in DStorageFileSystem._cache.values():
        fs.close()
    DStorageFileSystem.clear_instance_cache()


@pytest.fixture
def fs(tmp_path):
    return DStorageFileSystem(tmp_path / "s", budget=BUDGET, pressure=False)


class StoreFixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, tmp_path):
        return DStorageFileSystem(tmp_path / "store", budget=BUDGET, pressure=False)

    @pytest.fixture
    def fs_join(self):
        return posixpath.join

    @pytest.fixture
    def fs_path(self):
        return "some/directory"


class TestCopy(abstract.AbstractCopyTests, StoreFixtures):
    pass


class TestGet(abstract.AbstractGetTests, StoreFixtures):
    pass


class TestPut(abstract.AbstractPutTests, StoreFixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, StoreFixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, StoreFixtures):
    pass


# -- URLs -------------------------------------------------------------------------------------------------------------


def test_the_entry_point_names_the_class():
    from importlib.metadata import EntryPoint
    from pathlib import Path
    from tomllib import loads

    project = loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["fsspec.specs"]["dstorage"]
    assert EntryPoint("dstorage", value, "fsspec.specs").load() is DStorageFileSystem


def test_urls_name_the_store_behind_or_in_the_options(tmp_path):
    with fsspec.open(f"dstorage://a/b.txt::{tmp_path}/s", "w", dstorage={"pressure": False}) as file:
        file.write("hello\n")
    with fsspec.open("dstorage://a/b.txt", "rt", store=f"{tmp_path}/s") as file:
        assert file.read() == "hello\n"
    fs, path = fsspec.url_to_fs(f"dstorage:///a/b.txt/::file://{tmp_path}/s")
    assert (path, fs.cat(path)) == ("a/b.txt", b"hello\n")


def test_a_url_without_a_store_says_how_to_give_one():
    with pytest.raises(dstorage.InvalidArgumentError, match=r'storage_options=\{"store": directory\}'):
        fsspec.open("dstorage://a")
    with pytest.raises(dstorage.InvalidArgumentError, match="local directory"):
        fsspec.open("dstorage://a::memory://b")


def test_a_relative_path_is_of_the_directory_it_was_given_in(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        fs = DStorageFileSystem("s", pressure=False)
        assert not fs.exists("a")
        fs.pipe("a", name.encode())
        assert DStorageFileSystem("s", pressure=False) is DStorageFileSystem(store="s", pressure=False) is fs
    assert (tmp_path / "one" / "s").is_dir()


def test_an_open_store_is_not_taken_for_one_that_was_closed(tmp_path):
    for _ in range(2):
        with dstorage.blocking.open(tmp_path / "s", pressure=False) as store:
            fs = DStorageFileSystem(store)
            fs.touch("a")
            with pytest.raises(TypeError, match="only one given a path can be pickled"):
                pickle.dumps(fs)
    assert DStorageFileSystem._cache == {}


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_large_file_is_written_and_read_by_steps(fs):
    data = bytes(range(256)) * 20_000
    with fs.open("big", "wb") as file:
        for at in range(0, len(data), 100_001):
            file.write(data[at : at + 100_001])
    assert fs.info("big")["size"] == len(data)
    with fs.open("big", "rb") as file:
        assert file.read() == data
        file.seek(-1000, 2)
        assert file.read(10) == data[-1000:-990]
        file.seek(3_000_000)
        assert file.read(50) == data[3_000_000:3_000_050]
    assert fs.cat_file("big", 1_048_570, 1_048_590) == data[1_048_570:1_048_590]
    assert fs.cat_ranges(["big", "big"], [0, -5], [3, None]) == [data[:3], data[-5:]]


def test_a_file_is_as_it_was_until_the_new_one_is_closed(fs):
    fs.pipe("a", b"old")
    file = fs.open("a", "wb", block_size=10)
    file.write(b"x" * 1000)
    assert fs.cat("a") == b"old"
    file.close()
    assert fs.cat("a") == b"x" * 1000


def test_an_exception_leaves_the_file_as_it_was_and_no_chunk_behind(fs):
    fs.pipe("a", b"old")
    with suppress(ZeroDivisionError), fs.open("a", "wb", block_size=10) as file:
        file.write(b"x" * 5_000_000)
        1 / 0  # noqa: B018
    assert fs.cat("a") == b"old"
    assert fs._mount.call(Tree.collect) == 0
    with pytest.raises(ValueError, match="not in write mode"):
        file.write(b"y")


def test_a_file_that_lost_what_was_written_is_given_up(fs, monkeypatch):
    from dstorage.integrations.pieces import PieceWriter

    fs.pipe("a", b"old")
    add, calls = PieceWriter.add, []

    async def failing(writer, piece):
        calls.append(piece)
        if len(calls) == 2:
            raise dstorage.MemoryUnavailable("no room")
        await add(writer, piece)

    monkeypatch.setattr(PieceWriter, "add", failing)
    with fs.open("a", "wb") as file:
        with pytest.raises(dstorage.MemoryUnavailable):
            file.write(b"1" * 3 * 2**20)
        with pytest.raises(ValueError, match=r"closed|write mode"):
            file.write(b"2" * 3 * 2**20)
    assert fs.cat("a") == b"old"
    assert fs.collect() == 0


def test_appending_writes_the_file_anew(fs):
    with fs.open("a", "ab") as file:
        file.write(b"1")
    with fs.open("a", "ab") as file:
        assert file.tell() == 1
        file.write(b"2" * 3_000_000)
    assert fs.cat("a") == b"1" + b"2" * 3_000_000


def test_a_reader_gets_one_version_or_an_error(fs):
    fs.pipe("a", b"1" * 1000)
    with fs.open("a", "rb", block_size=10) as file:
        assert file.read(5) == b"11111"
        fs.pipe("a", b"2" * 1000)
        with pytest.raises(dstorage.Deleted, match="replaced while it was read"):
            file.read(500)


def test_transactions_show_files_at_their_end_or_none(fs):
    fs.pipe("a", b"old")
    with fs.transaction:
        with fs.open("a", "wb") as file:
            file.write(b"new")
        with fs.open("b", "wb") as file:
            file.write(b"b")
        assert (fs.cat("a"), fs.exists("b")) == (b"old", False)
    assert (fs.cat("a"), fs.cat("b")) == (b"new", b"b")
    with suppress(ZeroDivisionError), fs.transaction:
        with fs.open("c", "wb") as file:
            file.write(b"c" * 3_000_000)
        1 / 0  # noqa: B018
    assert not fs.exists("c")
    assert fs._mount.call(Tree.collect) == 0


@pytest.mark.parametrize("mode", ["r+b", "w+b"])
def test_modes_that_change_in_place_are_refused(fs, mode):
    fs.pipe("a", b"1")
    with pytest.raises(NotImplementedError, match="give one of rb"):
        fs.open("a", mode)
    assert fs.cat("a") == b"1"


def test_what_cannot_be_opened_raises_what_files_raise(fs):
    fs.makedirs("d")
    with pytest.raises(FileNotFoundError):
        fs.open("none")
    for mode in ("wb", "ab"):
        with pytest.raises(IsADirectoryError):
            fs.open("d", mode)
    fs.touch("f")
    with pytest.raises(NotADirectoryError):
        fs.open("f/g", "wb")
    assert not fs.exists("a/../b")
    assert not fs.isdir("a//b")
    with pytest.raises(dstorage.InvalidArgumentError, match="component"):
        fs.pipe("a/../b", b"")


# -- directories ------------------------------------------------------------------------------------------------------


def test_directories_are_made_and_removed(fs):
    fs.mkdir("a/b")
    with pytest.raises(FileExistsError):
        fs.mkdir("a/b")
    with pytest.raises(FileExistsError):
        fs.makedirs("a/b")
    fs.makedirs("a/b", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        fs.mkdir("x/y", create_parents=False)
    fs.touch("a/b/f")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("a/b")
    with pytest.raises(IsADirectoryError, match="recursive"):
        fs.rm("a")
    fs.rm("a/b/f")
    fs.rmdir("a/b")
    assert fs.ls("", detail=False) == ["a"]


def test_removing_by_pattern_depth_and_as_a_whole(fs):
    fs.pipe({"a/1": b"", "a/2": b"", "b/c/3": b"", "b/4": b"", "k": b""})
    fs.rm("a/*")
    assert fs.find("", withdirs=True) == ["a", "b", "b/4", "b/c", "b/c/3", "k"]
    fs.rm(["k", "b"], recursive=True)
    assert fs.find("", withdirs=True) == ["a"]
    with pytest.raises(FileNotFoundError):
        fs.rm("k")


def test_listing_globbing_and_sizes(fs):
    fs.pipe({"a/1.csv": b"1", "a/2.csv": b"22", "a/b/3.csv": b"333", "a/b/4.txt": b"4444"})
    assert fs.ls("a", detail=False) == ["a/1.csv", "a/2.csv", "a/b"]
    assert fs.glob("a/**/*.csv") == ["a/1.csv", "a/2.csv", "a/b/3.csv"]
    assert fs.du("a") == 10
    assert [(info["name"], info["type"], info["size"]) for info in fs.ls("a/b")] == [
        ("a/b/3.csv", "file", 3),
        ("a/b/4.txt", "file", 4),
    ]


def test_a_damaged_file_is_listed_and_removed(fs):
    fs.pipe({"a/1": bytes(5 * 2**20), "a/2": b"22"})

    async def lose(tree):
        with tree.store.handle(tree.file("a/1").number) as handle:
            handle.delete()

    fs._mount.call(lose)
    assert [(info["name"], info["size"]) for info in fs.ls("a")] == [("a/1", None), ("a/2", 2)]
    assert fs.exists("a/1")
    with pytest.raises(dstorage.Deleted):
        fs.open("a/1")
    fs.rm("a/1")
    assert fs.find("a") == ["a/2"]
    # Its pieces were known to the index alone.
    fs.commit()
    assert fs.collect() == 5


def test_moving_renames_at_once(fs):
    fs.pipe({"a/1": b"1", "a/b/2": b"2", "c/3": b"3"})
    number = fs.info("a/1")["version"]
    fs.mv("a/1", "a/one")
    assert fs.info("a/one")["version"] == number
    with pytest.raises(IsADirectoryError):
        fs.mv("a", "d")
    fs.mv("a", "d", recursive=True)
    assert fs.find("d") == ["d/b/2", "d/one"]
    fs.mv("d/one", "c")
    fs.mv("c/*", "e/")
    assert fs.find("") == ["d/b/2", "e/3", "e/one"]
    with pytest.raises(FileNotFoundError):
        fs.mv("none", "f")


def test_touch_and_ukey(fs):
    fs.pipe("a", b"1")
    key = fs.ukey("a")
    fs.touch("a", truncate=False)
    assert (fs.cat("a"), fs.ukey("a")) == (b"1", key)
    fs.touch("a")
    assert fs.cat("a") == b""
    assert fs.ukey("a") != key


# -- local files ------------------------------------------------------------------------------------------------------


def test_what_is_fetched_and_fails_leaves_the_local_file_as_it_was(fs, tmp_path, monkeypatch):
    fs.pipe("a", b"new" * 3_000_000)
    target = tmp_path / "local" / "a"
    fs.get("a", str(target))
    assert target.read_bytes() == b"new" * 3_000_000
    target.write_bytes(b"old")
    monkeypatch.setattr("dstorage.integrations.fsspec.COPY_BYTES", 1000)
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == 3:
            raise dstorage.TemporarilyUnavailable("away")
        return type(fs._mount).call(fs._mount, *args)

    monkeypatch.setattr(fs._mount, "call", call)
    with pytest.raises(dstorage.TemporarilyUnavailable):
        fs.get("a", str(target))
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("a", b"old")]


def test_putting_tells_how_far_it_is(fs, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 9_000_000)
    callback = fsspec.callbacks.Callback()
    fs.put_file(str(tmp_path / "a"), "a", callback=callback)
    assert (callback.size, callback.value) == (9_000_000, 9_000_000)
    assert fs.cat("a") == b"x" * 9_000_000


def test_collecting_leaves_what_others_are_writing_to_the_same_store(fs, tmp_path):
    other = DStorageFileSystem(tmp_path / "s")
    data = bytes(range(256)) * 20_000
    with fs.open("a", "wb") as file:
        file.write(data)
        fs.commit()
        assert other.collect() == 0
    assert fs.cat("a") == data


# -- life -------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_there_after_closing(fs, tmp_path):
    fs.pipe("a", b"1")
    fs.close()
    with dstorage.blocking.open(tmp_path / "s", pressure=False) as store:
        assert DStorageFileSystem(store).cat("a") == b"1"
    # It opens again by itself, and so does its copy.
    assert pickle.loads(pickle.dumps(fs)).cat("a") == b"1"


def test_a_file_that_outlives_its_store_is_as_it_was(tmp_path):
    with dstorage.blocking.open(tmp_path / "s", budget=BUDGET, pressure=False) as store:
        fs = DStorageFileSystem(store, skip_instance_cache=True)
        fs.pipe("a", b"old")
        file = fs.open("a", "wb")
        file.write(bytes(3 * 2**20))
    with pytest.raises(dstorage.ClosedError):
        file.close()
    file.discard()
    with dstorage.blocking.open(tmp_path / "s", budget=BUDGET, pressure=False) as store:
        fs = DStorageFileSystem(store, skip_instance_cache=True)
        assert fs.collect() > 0
        assert fs.cat("a") == b"old"
        fs.commit()
        assert sum(store.info(id).size for id in store.ids()) < 2**20


def test_open_files_can_be_pickled_for_reading(fs):
    fs.pipe("a", b"0123456789")
    with fs.open("a") as file:
        file.seek(4)
        with pickle.loads(pickle.dumps(file)) as other:
            assert other.read() == b"456789"


async def test_it_may_be_awaited_on_any_loop(tmp_path):
    fs = DStorageFileSystem(tmp_path / "s", asynchronous=True, skip_instance_cache=True, pressure=False)
    await fs._pipe({f"a/{number}": b"%d" % number for number in range(20)})
    assert await fs._cat([f"a/{number}" for number in range(20)]) == {f"a/{n}": b"%d" % n for n in range(20)}
    await asyncio.to_thread(fs.close)
    async with dstorage.open(tmp_path / "s", pressure=False) as store:
        own = DStorageFileSystem(store, asynchronous=True, skip_instance_cache=True)
        assert await own._cat_file("a/7") == b"7"
        await own._get_file("a/7", tmp_path / "7")
        assert (tmp_path / "7").read_bytes() == b"7"


async def test_a_blocking_call_on_the_stores_loop_is_refused(tmp_path):
    async with dstorage.open(tmp_path / "s", pressure=False) as store:
        fs = DStorageFileSystem(store)
        for call in (fs.ls, fs.cat, fs.find, fs.touch):
            with pytest.raises(dstorage.UsageError, match="would wait for itself"):
                call("")
        assert await asyncio.to_thread(fs.ls, "") == []


def test_one_that_only_looks_sees_what_was_committed(fs, tmp_path):
    reader = DStorageFileSystem(tmp_path / "s", read_only=True)
    fs.pipe("a", b"1")
    fs.commit()
    assert reader.cat("a") == b"1"
    with pytest.raises(dstorage.ReadOnlyError):
        reader.pipe("a", b"2")


# -- those who use it -------------------------------------------------------------------------------------------------


def test_pandas_reads_and_writes(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(50_000), "b": [f"text {number}" for number in range(50_000)]})
    options = {"store": str(tmp_path / "s"), "budget": BUDGET, "pressure": False}
    frame.to_csv("dstorage://frames/x.csv.gz", index=False, storage_options=options)
    pandas.testing.assert_frame_equal(pandas.read_csv("dstorage://frames/x.csv.gz", storage_options=options), frame)
    pytest.importorskip("pyarrow")
    frame.to_parquet("dstorage://frames/x.parquet", storage_options=options)
    back = pandas.read_parquet("dstorage://frames/x.parquet", columns=["a"], storage_options=options)
    pandas.testing.assert_frame_equal(back, frame[["a"]])


def test_pyarrow_reads_and_writes(fs):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.dataset
    import pyarrow.parquet

    table = pyarrow.table({"year": [1, 1, 2, 3] * 1000, "value": list(range(4000))})
    pyarrow.parquet.write_table(table, "one.parquet", filesystem=fs)
    assert pyarrow.parquet.read_table("one.parquet", filesystem=fs).equals(table)
    pyarrow.dataset.write_dataset(table, "many", format="parquet", partitioning=["year"], filesystem=fs)
    dataset = pyarrow.dataset.dataset("many", partitioning=["year"], filesystem=fs)
    found = dataset.to_table(filter=pyarrow.dataset.field("year") == 3, columns=["value"])
    assert found["value"].to_pylist() == [value for value in range(4000) if value % 4 == 3]


def test_zarr_and_this_show_the_same_files(tmp_path):
    zarr = pytest.importorskip("zarr")
    from dstorage.integrations.zarr import ZarrStore

    with ZarrStore(tmp_path / "s", path="arrays", pressure=False) as store:
        zarr.create_array(store, name="a", shape=3, dtype="i4", compressors=None)[:] = 5
        fs = DStorageFileSystem(tmp_path / "s")
        assert fs.glob("**/a/**") == ["arrays/a", "arrays/a/c", "arrays/a/c/0", "arrays/a/zarr.json"]
        assert fs.cat("arrays/a/c/0") == b"\5\0\0\0" * 3
