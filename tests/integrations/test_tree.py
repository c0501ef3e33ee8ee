"""The tree of files that the zarr and the fsspec face share."""

from __future__ import annotations

import asyncio
import os
import posixpath
import random

import pytest

import dstorage
from dstorage.integrations.pieces import Index, PieceWriter
from dstorage.integrations.tree import MAX_COMPONENT_BYTES, Tree

PIECE = 1000


@pytest.fixture
async def tree(store):
    return await Tree.open(store, piece_bytes=PIECE)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7])
async def test_a_file_gives_back_what_was_written(tree, size):
    data = os.urandom(size)
    await tree.write("a/b/c", data)
    assert bytes(await tree.read("a/b/c")) == data
    assert await tree.size("a/b/c") == size
    for start, stop in [(0, 5), (5, None), (-5, None), (PIECE - 3, PIECE + 3), (7, 2), (0, 10**9), (size, size + 1)]:
        assert bytes(await tree.read("a/b/c", start, stop)) == data[start:stop]
    assert b"".join([bytes(piece) async for piece in tree.pieces("a/b/c")]) == data


async def test_arrays_are_files_of_their_bytes(tree):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1200, dtype="f8").reshape(30, 40)
    await tree.write("array", array)
    assert bytes(await tree.read("array")) == array.tobytes()
    with pytest.raises(dstorage.InvalidArgumentError, match="contiguous"):
        await tree.write("array", array[:, ::2])
    assert await tree.size("array") == array.nbytes


async def test_small_files_are_read_without_a_copy(tree):
    await tree.write("a", b"x" * PIECE)
    first, second = await tree.read("a"), await tree.read("a")
    assert first is second
    part = await tree.read("a", 10, 20)
    assert part.obj is first


async def test_paths_may_be_longer_than_names(tree):
    path = "/".join(["d" * MAX_COMPONENT_BYTES] * 5 + ["ü" * (MAX_COMPONENT_BYTES // 2)])
    await tree.write(path, b"deep")
    assert bytes(await tree.read(path)) == b"deep"
    assert [name for name, _ in tree.files()] == [path]
    with pytest.raises(dstorage.InvalidArgumentError, match="497 bytes"):
        await tree.write("x" * (MAX_COMPONENT_BYTES + 1), b"")


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", ".", "a/..", "../a", "a/\ud800"])
async def test_paths_that_are_not_plain_are_refused(tree, path):
    with pytest.raises(dstorage.InvalidArgumentError, match="component"):
        await tree.write(path, b"")
    with pytest.raises(dstorage.InvalidArgumentError, match="component"):
        tree.find(path)


async def test_files_and_directories_do_not_take_each_others_place(tree):
    await tree.write("a/b", b"1")
    with pytest.raises(IsADirectoryError):
        await tree.write("a", b"2")
    with pytest.raises(NotADirectoryError):
        await tree.write("a/b/c", b"2")
    with pytest.raises(NotADirectoryError):
        tree.make_directory("a/b")
    with pytest.raises(IsADirectoryError):
        await tree.read("a")
    with pytest.raises(NotADirectoryError):
        tree.entries("a/b")
    with pytest.raises(FileNotFoundError):
        await tree.read("a/c")
    with pytest.raises(FileExistsError):
        await tree.write("a/b", b"2", exclusive=True)
    with pytest.raises(OSError, match="not empty"):
        tree.remove_directory("a")
    with pytest.raises(IsADirectoryError):
        await tree.write("", b"2")
    assert bytes(await tree.read("a/b")) == b"1"


async def test_keys_may_be_prefixes_of_keys_where_that_is_asked_for(store):
    tree = await Tree.open(store, overlap=True)
    await tree.write("a/b", b"1")
    await tree.write("a", b"2")
    await tree.write("a/b/c", b"3")
    assert [name for name, _ in tree.files()] == ["a", "a/b", "a/b/c"]
    assert [bytes(await tree.read(name)) for name, _ in tree.files()] == [b"2", b"1", b"3"]
    await tree.remove("a/b", prune=True)
    assert [name for name, _ in tree.files("a")] == ["a", "a/b/c"]
    await tree.remove_all("a")
    assert list(store.names(b"tree\0\0")) == []


async def test_what_is_replaced_or_removed_leaves_no_chunk(tree, store, memory):
    for size in (10, 5 * PIECE, 20, 3 * PIECE):
        await tree.write("a/b", os.urandom(size))
        await tree.copy("a/b", "a/c")
        await tree.move("a/c", "a/d")
    await tree.remove("a/b", prune=True)
    assert [entry.name for entry in tree.entries("a")] == ["d"]
    await tree.remove("a/d", prune=True)
    assert tree.find("a") is None
    await store.commit()
    assert list(store.ids()) == []


async def test_a_directory_moves_with_all_that_is_below(tree):
    await tree.write("a/b/c", b"1")
    await tree.write("a/d", b"2" * 3 * PIECE)
    await tree.move("a", "x/y")
    assert [name for name, _ in tree.files()] == ["x/y/b/c", "x/y/d"]
    assert bytes(await tree.read("x/y/b/c")) == b"1"
    with pytest.raises(dstorage.InvalidArgumentError, match="into itself"):
        await tree.move("x", "x/y/z")
    with pytest.raises(FileExistsError):
        await tree.move("x/y/d", "x/y/b")
    with pytest.raises(FileNotFoundError):
        await tree.move("a", "b")


async def test_a_reader_gets_the_old_or_the_new_contents_whole(tree, store):
    versions = [bytes([n]) * 4 * PIECE for n in range(20)]
    await tree.write("a", versions[0])
    done = asyncio.Event()
    seen = set()

    async def read():
        while not done.is_set():
            data = bytes(await tree.read("a"))
            assert data in versions
            seen.add(data[0])
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for version in versions:
        await tree.write("a", version)
        await store.commit()
    done.set()
    await asyncio.gather(*readers)
    assert len(seen) > 1


async def test_who_asks_for_a_version_is_told_when_it_is_gone(tree):
    version = await tree.write("a", b"old")
    assert bytes(await tree.read("a", version=version)) == b"old"
    await tree.write("a", b"new")
    with pytest.raises(dstorage.Deleted, match="replaced"):
        await tree.read("a", version=version)


async def test_a_writer_that_fails_changes_nothing(tree, store):
    await tree.write("a", b"old")
    contents = tree.writer("a")
    await contents.append(os.urandom(5 * PIECE + 1))
    assert await tree.collect() == 0, "what is being written is no garbage"
    contents.abort()
    assert bytes(await tree.read("a")) == b"old"
    await store.commit()
    assert len(list(store.ids())) == 1


async def test_what_a_crash_cut_off_is_collected(tmp_path):
    async with dstorage.open(tmp_path / "s", budget=2**20, pressure=None) as store:
        tree = await Tree.open(store, piece_bytes=PIECE)
        await tree.write("a/large", b"x" * 3 * PIECE)
        await tree.writer("b").append(b"y" * 5 * PIECE)
    async with dstorage.open(tmp_path / "s", budget=2**20, pressure=None) as store:
        tree = await Tree.open(store)
        assert await tree.collect() == 5
        assert await tree.collect() == 0
        assert bytes(await tree.read("a/large")) == b"x" * 3 * PIECE


async def test_collecting_goes_on_beside_other_work_and_frees_what_no_file_has(tree, store, monkeypatch):
    monkeypatch.setattr("dstorage.integrations.tree.AT_A_TIME", 1)
    files = {f"{n % 3}/{n}": bytes([n]) * (PIECE * (n % 4) + 1) for n in range(24)}
    for path, data in files.items():
        await tree.write(path, data)
    cut_off = tree.writer("b")
    await cut_off.append(b"y" * 5 * PIECE)
    tree._pieces.unfinished.clear()
    await store.commit()
    turns = 0

    async def work():
        nonlocal turns
        for turns in range(1000):
            path = list(files)[turns % 7]
            if turns % 2:
                target = f"{turns % 5}/m{turns}"
                await tree.move(path, target)
                files[target] = files.pop(path)
            else:
                files[path] += b"more"
                await tree.write(path, files[path])
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    assert await tree.collect() == 5
    working.cancel()
    await asyncio.wait([working])
    assert turns > 20
    assert {path: bytes(await tree.read(path)) for path, _ in tree.files()} == files
    await store.commit()
    assert await tree.collect() == 0


async def test_removing_much_leaves_turns_to_others(tree, monkeypatch):
    monkeypatch.setattr("dstorage.integrations.tree.AT_A_TIME", 10)
    for number in range(100):
        await tree.write(f"a/{number}", b"")
    turns = []

    async def work():
        while tree.find("a") is not None:
            turns.append(len(tree.entries("a")))
            await asyncio.sleep(0)

    await asyncio.gather(tree.remove_all("a"), work())
    assert len(turns) >= 9


async def test_files_larger_than_memory_are_streamed(tmp_path):
    async with dstorage.open(tmp_path / "s", budget=2**20, pressure=None) as store:
        tree = await Tree.open(store)
        contents = tree.writer("large")
        blocks = [bytes([n]) * 300_000 for n in range(20)]
        for block in blocks:
            await contents.append(block)
            assert store.memory_used <= 2**20
        await contents.seal()
        await tree.publish("large", contents)
        assert await tree.size("large") == 6_000_000
        assert bytes(await tree.read("large")) == b"".join(blocks)
        await tree.copy("large", "copy")
        assert bytes(await tree.read("copy", 299_999, 600_001)) == b"".join(blocks)[299_999:600_001]
        assert store.memory_used <= 2**20


async def test_what_is_copied_and_replaced_meanwhile_is_copied_as_it_is_then(tree, monkeypatch):
    await tree.write("a", b"1" * 5 * PIECE)
    append = PieceWriter.append
    appended = []

    async def replacing(contents, piece):
        appended.append(piece)
        if len(appended) == 2:
            await tree.write("a", b"2" * 3 * PIECE)
        await append(contents, piece)

    monkeypatch.setattr(PieceWriter, "append", replacing)
    await tree.copy("a", "b")
    assert bytes(await tree.read("b")) == b"2" * 3 * PIECE
    assert await tree.collect() == 0
    reading = tree.pieces("a")
    await anext(reading)
    await tree.remove("a")
    with pytest.raises(dstorage.Deleted, match="'a' was replaced"):
        async for _ in reading:
            pass
    with pytest.raises(FileNotFoundError):
        await tree.copy("a", "b")


async def test_a_read_only_store_shows_its_tree(tmp_path):
    async with dstorage.open(tmp_path / "s", budget=2**20, pressure=None) as store:
        await (await Tree.open(store, piece_bytes=PIECE)).write("a", b"x" * 2 * PIECE)
    async with dstorage.open(tmp_path / "s", budget=2**20, pressure=None, read_only=True) as store:
        tree = await Tree.open(store)
        assert bytes(await tree.read("a")) == b"x" * 2 * PIECE
        with pytest.raises(dstorage.ReadOnlyError):
            await tree.write("a", b"")
        with pytest.raises(dstorage.ReadOnlyError):
            tree.make_directory("b")


@pytest.mark.parametrize(
    "data", [b"", b"x" * 24, b"dstree\0\1" + bytes(16), b"dstree\0\1" + b"\2" + bytes(7) + b"\1" + bytes(15)]
)
def test_an_index_that_is_none_is_damaged(data):
    with pytest.raises(dstorage.CorruptData, match="no index"):
        Index.unpack(data, 7)


async def test_a_piece_of_another_length_is_damage(tree, store):
    await tree.write("a", b"x" * 3 * PIECE)
    entry = tree.find("a")
    async with store.handle(entry.number) as data:
        ids = Index.unpack(data, entry.number).ids
    with store.handle(ids[1]) as piece:
        await piece.replace(b"short")
    for start, stop in [(0, None), (PIECE, PIECE + 1)]:
        with pytest.raises(dstorage.CorruptData, match="piece 1 of a file"):
            await tree.read("a", start, stop)


async def test_an_index_that_names_a_piece_twice_is_damage(tree, store):
    await tree.write("a", b"x" * 3 * PIECE)
    number = tree.find("a").number
    async with store.handle(number) as data:
        index = Index.unpack(data, number)
    one, _, three = index.ids
    with store.handle(number) as handle:
        await handle.replace(Index(index.size, index.piece, (one, one, three)).pack())
    for stop in (None, 2 * PIECE):
        with pytest.raises(dstorage.CorruptData, match="twice"):
            await tree.read("a", 0, stop)


async def test_directories_that_are_in_themselves_are_damage(tree, store):
    await tree.write("a/b/c", b"1")
    store.set_name(b"tree\0" + tree.find("a/b").number.to_bytes(8, "big") + b"again/", tree.find("a").number)
    with pytest.raises(dstorage.CorruptData, match="in itself"):
        list(tree.files())
    with pytest.raises(dstorage.CorruptData, match="in itself"):
        await tree.remove_all("a")


async def test_many_steps_beside_a_dict(tree, store):
    """Random writes, moves, removals; every file and directory compared with a dict after each step."""
    rng = random.Random(20)
    paths = [posixpath.join(*rng.choices("abc", k=rng.randint(1, 3))) for _ in range(12)]
    model: dict[str, bytes] = {}
    for _ in range(400):
        path, other = rng.choice(paths), rng.choice(paths)
        data = rng.randbytes(rng.choice([0, 10, PIECE, 2 * PIECE + 5]))
        try:
            match rng.randrange(4):
                case 0 | 1:
                    await tree.write(path, data)
                    model[path] = data
                case 2:
                    await tree.remove(path, prune=True)
                    del model[path]
                case 3:
                    await tree.move(path, other)
                    moved = {p: d for p, d in model.items() if p == path or p.startswith(f"{path}/")}
                    for name in moved:
                        del model[name]
                    model |= {other + name[len(path) :]: data for name, data in moved.items()}
        except IsADirectoryError:
            assert any(name.startswith(f"{path}/") for name in model) or tree.find(path).is_directory
        except (FileNotFoundError, NotADirectoryError, FileExistsError, dstorage.InvalidArgumentError):
            pass
        assert {name: bytes(await tree.read(name)) for name, _ in tree.files()} == model
    assert await tree.collect() == 0
    for name in list(model):
        await tree.remove_all(name.split("/")[0])
    await tree.remove_all("")
    assert tree.entries("") == []
    await store.commit()
    assert list(store.ids()) == []
