"""The internet controller passes the suite on obstore's own stores; encryption, packs, orphans, outages."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from pathlib import Path
from typing import ClassVar

import obstore
import pytest
from dstorage_controllers.encryption import Encryption
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.bucket import Bucket
from dstorage_controllers.internet.layout import PIECES, Layout
from obstore.store import MemoryStore

from dstorage import (
    ControllerError,
    ControllerFull,
    ControllerStatus,
    CorruptData,
    Locator,
    Lost,
    OpenContext,
)
from dstorage.controller import WriteRequest
from dstorage.testing import ControllerTests, payload
from dstorage.testing.suite import STORE, Bench, eventually

KEY = "aa" * 32
OTHER = "bb" * 32


async def _warm():
    await obstore.put_async(MemoryStore(), "x", b"")


# obstore's threads and their descriptors stay for the life of the process.
asyncio.run(_warm())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Directories that no test looks into are made there."""
    monkeypatch.chdir(tmp_path)


def layout(url: str = "", index: int = 3) -> Layout:
    return Layout(STORE, index, "internet", url)


class OnFiles(ControllerTests):
    """On a directory: objects can be damaged behind the controller's back."""

    options: ClassVar[dict[str, object]] = {}

    def make(self, directory):
        return InternetController(url=f"file://{directory}/bucket", **self.options)

    def make_small(self, directory, capacity):
        return InternetController(url=f"file://{directory}/bucket", capacity=capacity, **self.options)

    def path(self, directory: Path, id: int, locator: Locator) -> tuple[Path, int]:
        where = layout()
        place = where.unpack(id, locator)
        key = where.piece_key(place.number, 0) if place.flags & PIECES else where.key(place.number)
        return directory / "bucket" / key, place.offset

    def damage(self, directory, id, locator):
        path, offset = self.path(directory, id, locator)
        raw = bytearray(path.read_bytes())
        raw[offset + 20] ^= 1
        path.write_bytes(raw)
        return True

    def lose(self, directory, id, locator):
        self.path(directory, id, locator)[0].unlink()
        return True


class TestPlain(OnFiles):
    options: ClassVar = {"compress": False}


class TestCompressed(OnFiles):
    pass


class TestEncrypted(OnFiles):
    options: ClassVar = {"key_env": "INTERNET_TEST_KEY"}

    @pytest.fixture(autouse=True)
    def key(self, monkeypatch):
        monkeypatch.setenv("INTERNET_TEST_KEY", KEY)


class TestPieces(TestEncrypted):
    """Packs so small that most chunks are cut."""

    options: ClassVar = {"key_env": "INTERNET_TEST_KEY", "pack_bytes": 64 * 2**10}


class TestInMemory(ControllerTests):
    def setup_method(self):
        self.stores: dict[Path, MemoryStore] = {}

    def make(self, directory):
        return InternetController(url="s3://any/some/prefix", store=self.stores.setdefault(directory, MemoryStore()))


@contextlib.asynccontextmanager
async def opened(store, *, state=None, directory="unused", read_only=False, index=3, **options):
    """A controller on an obstore store, and what a store would do with it."""
    bench = Bench(InternetController(url="s3://bucket/p", store=store, **options), Path(directory), state)
    changed = []
    context = OpenContext(
        STORE,
        index,
        bench.directory,
        dict(bench.state),
        read_only=read_only,
        status_changed=lambda: changed.append(bench.controller.status),
    )
    await bench.controller.open(context)
    try:
        yield bench
    finally:
        await bench.controller.close()


def objects(store) -> dict[str, bytes]:
    """Packs and pieces in a bucket."""
    found = {}
    for meta in obstore.list(store).collect():
        # One may be deleted just now.
        with contextlib.suppress(FileNotFoundError):
            found[meta["path"]] = bytes(obstore.get(store, meta["path"]).bytes())
    return {name: raw for name, raw in found.items() if not name.endswith("/writer")}


# -- packs and pieces ----------------------------------------------------------------------------------------------------


async def test_small_chunks_share_an_object_and_are_read_by_few_requests():
    store = MemoryStore()
    async with opened(store) as bench:
        chunks = {id: payload(2 * id + 1, 4000) for id in range(1, 101)}
        places = await bench.put(chunks)
        assert len(objects(store)) == 1
        bucket = bench.controller._open.parts.bucket
        before = bucket.requests
        assert await bench.get(places) == chunks
        assert bucket.requests - before == 1
        before = bucket.requests
        some = {id: places[id] for id in (7, 8, 9, 60)}
        assert await bench.get(some) == {id: chunks[id] for id in some}
        assert bucket.requests - before == 1


async def test_a_large_chunk_is_cut_and_read_side_by_side():
    store = MemoryStore()
    async with opened(store, pack_bytes=2**20, compress=False) as bench:
        data = payload(1, 5 * 2**20 + 17)
        places = await bench.put({1: data})
        assert len(objects(store)) == 6
        assert await bench.get(places) == {1: data}
        await bench.controller.discard(list(places.items()))
        await eventually(lambda: not objects(store), "pieces are left")
        assert bench.controller.space().used == 0


async def test_pieces_that_are_exchanged_are_found_out():
    store = MemoryStore()
    async with opened(store, pack_bytes=2**16, compress=False) as bench:
        places = await bench.put({1: payload(1, 3 * 2**16)})
        names = sorted(objects(store))
        first, second = (bytes(obstore.get(store, name).bytes()) for name in names[:2])
        obstore.put(store, names[0], second)
        obstore.put(store, names[1], first)
        (answer,) = (await bench.get(places)).values()
        assert isinstance(answer, CorruptData)


async def test_a_large_chunk_that_does_not_fit_is_refused_alone():
    store = MemoryStore()
    async with opened(store, pack_bytes=2**16, compress=False, capacity=300_000) as bench:
        large, small = await bench.controller.write([WriteRequest(1, payload(1, 400_000)), WriteRequest(2, b"x")])
        assert isinstance(large, ControllerFull)
        assert isinstance(small, Locator)
        assert bench.controller.status is ControllerStatus.FULL


@pytest.mark.parametrize("lost", [0, 2])
async def test_a_chunk_with_a_missing_piece_is_lost(lost):
    store = MemoryStore()
    async with opened(store, pack_bytes=2**16) as bench:
        places = await bench.put({1: payload(1, 3 * 2**16), 2: b"other"})
        pieces = [name for name in sorted(objects(store)) if "." in name]
        obstore.delete(store, pieces[lost])
        answers = await bench.get(places)
        assert isinstance(answers[1], Lost)
        assert answers[2] == b"other"


async def test_a_cut_object_is_damage_and_its_whole_chunks_are_read():
    store = MemoryStore()
    async with opened(store, compress=False) as bench:
        chunks = {id: payload(2 * id + 1, 30_000) for id in range(1, 5)}
        places = await bench.put(chunks)
        ((name, raw),) = objects(store).items()
        obstore.put(store, name, raw[:70_000])
        answers = await bench.get(places)
        assert {id: answer for id, answer in answers.items() if id < 3} == {1: chunks[1], 2: chunks[2]}
        assert all(isinstance(answers[id], CorruptData) for id in (3, 4))
        # Alone, it begins behind the end.
        assert isinstance((await bench.get({4: places[4]}))[4], CorruptData)


async def test_compaction_names_what_is_left_in_sparse_packs():
    store = MemoryStore()
    async with opened(store, compress=False) as bench:
        chunks = {id: payload(2 * id + 1, 100_000) for id in range(1, 41)}
        places = await bench.put(chunks)
        await bench.commit(places)
        assert await bench.controller.sparse_places(0.5) == []
        kept = {id: places[id] for id in (3, 17)}
        dead = {id: place for id, place in places.items() if id not in kept}
        await bench.commit({}, dead)
        found = dict(await bench.controller.sparse_places(0.5))
        assert found == places
        moved = await bench.put({id: chunks[id] for id in kept})
        await bench.commit(moved, kept)
        await eventually(lambda: len(objects(store)) == 1, "the sparse pack is left")
        assert await bench.get(moved) == {id: chunks[id] for id in kept}


async def test_many_small_packs_are_worth_joining():
    store = MemoryStore()
    async with opened(store) as bench:
        places = {}
        for id in range(1, 11):
            new = await bench.put({id: payload(id, 1000)})
            await bench.commit(new)
            places |= new
            if id < 8:
                assert await bench.controller.sparse_places(0.5) == []
        assert dict(await bench.controller.sparse_places(0.5)) == places
        moved = await bench.put({id: payload(id, 1000) for id in places})
        await bench.commit(moved, places)
        assert await bench.controller.sparse_places(0.5) == []
        await eventually(lambda: len(objects(store)) == 1, "small packs are left")


async def test_a_damaged_index_leaves_the_pack_out():
    store = MemoryStore()
    async with opened(store) as bench:
        places = await bench.put({id: payload(id, 10_000) for id in range(1, 9)})
        await bench.commit(places)
        await bench.commit({}, {id: place for id, place in places.items() if id > 1})
        assert await bench.controller.advice() == []
        ((name, raw),) = objects(store).items()
        obstore.put(store, name, raw[:-40] + bytes(40))
        assert await bench.controller.sparse_places(0.5) == []
        # Nothing else would show it: the chunks are sound.
        (advice,) = await bench.controller.advice()
        assert "indexes of 1 packs are damaged" in advice


# -- encryption ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(monkeypatch):
    def give(*values):
        monkeypatch.setenv("INTERNET_TEST_KEY", " ".join(values))
        return {"key_env": "INTERNET_TEST_KEY"}

    return give


async def test_nothing_readable_is_in_the_bucket(keys):
    store = MemoryStore()
    async with opened(store, **keys(KEY), compress=False) as bench:
        await bench.put({1: b"very secret " * 1000})
        assert objects(store)
        assert all(b"secret" not in raw for raw in objects(store).values())


@pytest.mark.parametrize("encrypted", [False, True])
async def test_objects_that_are_exchanged_are_found_out(keys, encrypted):
    store = MemoryStore()
    async with opened(store, **(keys(KEY) if encrypted else {}), compress=False) as bench:
        places = await bench.put({1: payload(1, 5000)}) | await bench.put({2: payload(3, 5000)})
        (first, raw), (second, other) = objects(store).items()
        obstore.put(store, first, other)
        obstore.put(store, second, raw)
        assert all(isinstance(answer, CorruptData) for answer in (await bench.get(places)).values())


@pytest.mark.parametrize("encrypted", [False, True])
async def test_an_older_version_of_a_chunk_given_back_is_found_out(keys, encrypted):
    store = MemoryStore()
    async with opened(store, **(keys(KEY) if encrypted else {}), compress=False) as bench:
        await bench.put({1: payload(1, 5000)})
        ((_, old),) = objects(store).items()
        places = await bench.put({1: payload(3, 5000)})
        for name in objects(store):
            obstore.put(store, name, old)
        assert isinstance((await bench.get(places))[1], CorruptData)


@pytest.mark.parametrize("encrypted", [False, True])
async def test_objects_of_another_controller_are_found_out(keys, encrypted):
    """Also when everything else about the chunk and the object is the same."""
    store, options = MemoryStore(), keys(KEY) if encrypted else {}
    async with opened(store, **options) as bench, opened(store, index=4, **options) as other:
        other.controller._open.parts.session._next = bench.controller._open.parts.session._next
        places = await bench.put({1: payload(1, 5000)})
        await other.put({1: payload(3, 5000)})
        mine, others = sorted(objects(store), key=lambda name: "/4/" in name)
        obstore.put(store, mine, obstore.get(store, others).bytes())
        assert isinstance((await bench.get(places))[1], CorruptData)


async def test_keys_can_be_changed(keys):
    store = MemoryStore()
    async with opened(store, **keys(KEY)) as bench:
        old = await bench.put({1: payload(1, 5000), 2: payload(2, 300_000)})
        await bench.commit(old)
    async with opened(store, state=bench.state, **keys(OTHER, KEY)) as bench:
        new = await bench.put({3: payload(3, 5000)})
        assert await bench.get(old | new) == {1: payload(1, 5000), 2: payload(2, 300_000), 3: payload(3, 5000)}
        moved = await bench.put({1: payload(1, 5000), 2: payload(2, 300_000)})
        await bench.commit(moved | new, old)
    async with opened(store, state=bench.state, **keys(OTHER)) as bench:
        assert await bench.get({1: moved[1], 3: new[3]}) == {1: payload(1, 5000), 3: payload(3, 5000)}


async def test_compaction_writes_anew_what_has_an_old_key(keys):
    store = MemoryStore()
    chunks = {1: payload(1, 5000), 2: payload(3, 300_000), 3: payload(5, 6000)}
    async with opened(store, **keys(KEY), pack_bytes=2**16) as bench:
        old = await bench.put(chunks)
        await bench.commit(old)
        assert await bench.controller.sparse_places(0.5) == []
    async with opened(store, state=bench.state, **keys(OTHER, KEY), pack_bytes=2**17) as bench:
        assert dict(await bench.controller.sparse_places(0.5)) == old
        moved = await bench.put(chunks)
        await bench.commit(moved, old)
        assert await bench.controller.sparse_places(0.5) == []
    async with opened(store, state=bench.state, **keys(OTHER)) as bench:
        assert await bench.get(moved) == chunks


async def test_a_missing_key_is_told_at_open(keys):
    store = MemoryStore()
    async with opened(store, **keys(KEY)) as bench:
        await bench.commit(await bench.put({1: payload(1, 5000)}))
    with pytest.raises(ControllerError, match="does not have all their keys"):
        async with opened(store, state=bench.state, **keys(OTHER)):
            pass
    with pytest.raises(ControllerError, match="no key was given"):
        async with opened(store, state=bench.state):
            pass


async def test_what_has_chunks_without_a_key_takes_none(keys):
    store = MemoryStore()
    async with opened(store) as bench:
        plain = await bench.put({1: payload(1, 5000)})
        await bench.commit(plain)
    with pytest.raises(ControllerError, match=r"without a key.*register another.*drain 'internet'"):
        async with opened(store, state=bench.state, **keys(KEY)):
            pass
    async with opened(store, state=bench.state) as bench:
        assert await bench.get(plain) == {1: payload(1, 5000)}


@pytest.mark.parametrize("size", [5000, 200_000])
async def test_with_a_key_no_plain_bytes_are_taken_for_a_chunk(keys, size):
    """Written as a controller of the same store without a key would."""
    store, forger = MemoryStore(), MemoryStore()
    options = {"pack_bytes": 2**16, "compress": False}
    async with opened(store, **options, **keys(KEY)) as bench, opened(forger, **options) as forging:
        whole = await bench.put({1: payload(1, size)})
        forged = await forging.put({1: payload(3, size)})
        for name, raw in objects(forger).items():
            obstore.put(store, name, raw)
        answers = await bench.get(forged)
        assert isinstance(answers[1], CorruptData)
        assert "chunk 1 is not encrypted" in str(answers[1])
        assert await bench.get(whole) == {1: payload(1, size)}


async def test_two_keys_with_one_tag_are_told_apart(keys):
    def tag(key):
        return Encryption(STORE, bytes.fromhex(key)).key_check[0]

    twin = next(key for key in (f"{number:064x}" for number in range(10_000)) if tag(key) == tag(KEY))
    store = MemoryStore()
    async with opened(store, **keys(KEY)) as bench:
        first = await bench.put({1: payload(1, 5000)})
        await bench.commit(first)
    async with opened(store, state=bench.state, **keys(twin, KEY)) as bench:
        second = await bench.put({2: payload(2, 5000)})
        assert await bench.get(first | second) == {1: payload(1, 5000), 2: payload(2, 5000)}
        for name, raw in objects(store).items():
            obstore.put(store, name, raw[:30] + bytes(100) + raw[130:])
        assert all(isinstance(answer, CorruptData) for answer in (await bench.get(first | second)).values())


async def test_a_chunk_whose_key_is_not_known_is_no_wrong_bytes(keys):
    store = MemoryStore()
    async with opened(store, **keys(KEY)) as bench:
        places = await bench.put({1: payload(1, 5000)})
        # Nothing of it is committed, so nothing is known of its key at the next open; and no sweep.
        obstore.put(store, f"p/dstorage/{STORE.hex}/3/writer", b"spoilt")
    async with contextlib.AsyncExitStack() as stack:
        with pytest.warns(RuntimeWarning, match="a copy of this store"):
            bench = await stack.enter_async_context(opened(store, **keys(OTHER)))
        answer = (await bench.get(places))[1]
        assert isinstance(answer, CorruptData)
        assert "was not given" in str(answer)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("compress", [False, True])
async def test_no_change_of_any_object_gives_wrong_bytes(keys, encrypted, compress):
    store, rnd = MemoryStore(), random.Random(7)
    options = keys(KEY) if encrypted else {}
    async with opened(store, pack_bytes=2**16, compress=compress, **options) as bench:
        chunks = {id: payload(id, size) for id, size in enumerate((1, 50, 700, 20_000, 65_536, 65_537, 200_000), 1)}
        places = await bench.put(chunks)
        for name, raw in objects(store).items():
            for _ in range(25):
                spoilt = bytearray(raw)
                match rnd.randrange(4):
                    case 0:
                        spoilt[rnd.randrange(len(raw))] ^= 1 << rnd.randrange(8)
                    case 1:
                        del spoilt[rnd.randrange(len(raw)) :]
                    case 2:
                        spoilt += rnd.randbytes(rnd.randrange(1, 200))
                    case 3:
                        at = rnd.randrange(len(raw))
                        spoilt[at : at + 40] = rnd.randbytes(len(spoilt[at : at + 40]))
                obstore.put(store, name, bytes(spoilt))
                for id, answer in (await bench.get(places)).items():
                    assert answer == chunks[id] or isinstance(answer, CorruptData), f"{name} {id}: {answer!r:.100}"
            obstore.put(store, name, raw)
        assert await bench.get(places) == chunks
        assert bench.controller.status is ControllerStatus.OK


# -- crashes and copies --------------------------------------------------------------------------------------------------


async def test_what_a_crash_left_behind_is_deleted_by_the_next_open():
    store = MemoryStore()
    async with opened(store) as bench:
        kept = await bench.put({1: payload(1, 5000)})
        await bench.commit(kept)
        state = dict(bench.state)
        await bench.put({id: payload(id, 9_000_000) for id in (2, 3)})
        assert len(objects(store)) > 2
    async with opened(store, state=state) as bench:
        new = await bench.put({4: payload(4, 5000)})
        await eventually(lambda: len(objects(store)) == 2, "orphans are left")
        assert await bench.get(kept | new) == {1: payload(1, 5000), 4: payload(4, 5000)}


async def test_objects_of_others_are_left_alone():
    store = MemoryStore()
    obstore.put(store, "p/holiday.jpg", b"x")
    obstore.put(store, f"p/dstorage/{STORE.hex}/3/notes", b"x")
    async with opened(store, index=4) as other:
        await other.put({1: payload(1, 5000)})
    async with opened(store) as bench:
        await bench.controller._open.parts.cleaning.wait(5)
    assert len(objects(store)) == 3


async def test_a_reader_deletes_and_writes_nothing():
    store = MemoryStore()
    async with opened(store) as bench:
        await bench.put({1: payload(1, 5000)})
    before = objects(store), [meta["path"] for meta in obstore.list(store).collect()]
    async with opened(store, read_only=True):
        await asyncio.sleep(0.1)
    assert (objects(store), [meta["path"] for meta in obstore.list(store).collect()]) == before


async def test_a_copy_of_a_store_does_not_clean_up_the_original(tmp_path):
    store = MemoryStore()
    here, there = tmp_path / "here", tmp_path / "there"
    async with opened(store, directory=here) as bench:
        first = await bench.put({1: payload(1, 5000)})
        await bench.commit(first)
    copied = dict(bench.state)
    async with opened(store, directory=here, state=bench.state) as bench:
        second = await bench.put({2: payload(2, 5000)})
        await bench.commit(second)
    async with contextlib.AsyncExitStack() as stack:
        with pytest.warns(RuntimeWarning, match="a copy of this store"):
            copy = await stack.enter_async_context(opened(store, directory=there, state=copied))
        await copy.commit(await copy.put({3: payload(3, 5000)}))
    # Neither does the original delete what the copy has written, from then on.
    async with contextlib.AsyncExitStack() as stack:
        with pytest.warns(RuntimeWarning, match="a copy of this store"):
            bench = await stack.enter_async_context(opened(store, directory=here, state=bench.state))
        (advice,) = await bench.controller.advice()
        assert "may delete chunks" in advice
        await bench.controller._open.parts.cleaning.wait(5)
        assert await bench.get(first | second) == {1: payload(1, 5000), 2: payload(2, 5000)}
        assert len(objects(store)) == 3
    async with contextlib.AsyncExitStack() as stack:
        with pytest.warns(RuntimeWarning, match="a copy of this store"):
            await stack.enter_async_context(opened(store, directory=here, state=bench.state))
    mark = f"p/dstorage/{STORE.hex}/3/writer"
    obstore.delete(store, mark)
    async with opened(store, directory=here, state=bench.state) as bench:
        await eventually(lambda: len(objects(store)) == 2, "after the mark was deleted, nobody cleans up")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("size", [5000, 9_000_000], ids=["pack", "pieces"])
async def test_another_bucket_is_no_reason_to_call_chunks_lost(tmp_path, read_only, size):
    store = MemoryStore()
    async with opened(store) as bench:
        places = await bench.put({1: payload(1, size)})
        await bench.commit(places)
    with pytest.raises(ControllerError, match="nothing of this store"):
        async with opened(MemoryStore(), state=bench.state, read_only=read_only):
            pass
    # The mark may be deleted, as the warning about copies says.
    obstore.delete(store, f"p/dstorage/{STORE.hex}/3/writer")
    async with opened(store, state=bench.state, read_only=read_only) as again:
        assert await again.get(places) == {1: payload(1, size)}


async def test_a_directory_is_no_bucket(tmp_path):
    controller = InternetController(url=tmp_path.as_uri())
    await controller.open(OpenContext(STORE, 3, tmp_path / "own"))
    (advice,) = await controller.advice()
    assert "power failure" in advice
    await controller.close()


async def test_a_store_that_moved_is_no_copy(tmp_path):
    store = MemoryStore()
    async with opened(store, directory=tmp_path / "here") as bench:
        await bench.commit(await bench.put({1: payload(1, 5000)}))
    # Sessions without a commit, on a machine with a new name each time, as in containers.
    for name in ("first", "second", "third"):
        (tmp_path / "here").rename(tmp_path / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("socket.gethostname", lambda name=name: name)
            async with opened(store, directory=tmp_path / name, state=bench.state) as again:
                assert await again.controller.advice() == []
        (tmp_path / name).rename(tmp_path / "here")


async def test_a_session_that_never_reached_the_bucket_makes_no_copy_of_the_next():
    store = MemoryStore()
    async with opened(store):
        pass

    class Deaf(Bucket):
        async def put(self, *args, **options):
            raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dstorage_controllers.internet.controller.Bucket", Deaf)
        with pytest.warns(RuntimeWarning, match="starts without its bucket"):
            async with opened(store):
                pass
    async with opened(store) as bench:
        assert await bench.controller.advice() == []


async def test_a_copy_is_one_before_its_first_commit(tmp_path):
    """A copy of the directory, while the original writes: nothing that the original has not committed yet is deleted."""
    store = MemoryStore()
    async with opened(store, directory=tmp_path / "here") as bench:
        places = await bench.put({1: payload(1, 5000)})
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        async with contextlib.AsyncExitStack() as stack:
            with pytest.warns(RuntimeWarning, match="a copy of this store"):
                await stack.enter_async_context(opened(store, directory=tmp_path / "there"))
        assert await bench.get(places) == {1: payload(1, 5000)}


async def test_a_damaged_record_can_be_got_rid_of():
    async with opened(MemoryStore()) as bench:
        places = await bench.put({1: payload(1, 5000)})
        changes = bench.controller.checkpoint(list(places.items()), [(2, Locator(1, 2, 3))])
        assert changes == bench.controller.checkpoint(list(places.items()), [])
        await bench.controller.discard([(2, Locator(1, 2, 3))])
        assert await bench.get(places) == {1: payload(1, 5000)}


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-1], lambda raw: bytes(len(raw)), lambda raw: b"\xff" * len(raw)])
async def test_hostile_state_is_refused(spoil):
    store = MemoryStore()
    async with opened(store) as bench:
        await bench.commit(await bench.put({1: payload(1, 5000)}))
    for key, raw in bench.state.items():
        with pytest.raises(ControllerError):
            async with opened(store, state={**bench.state, key: spoil(raw)}):
                pass


async def test_conditional_writes_are_used_where_the_server_honours_them(monkeypatch):
    async with opened(MemoryStore()) as bench:
        assert bench.controller._open.writer.create is True
    put = Bucket.put

    async def careless(self, key, parts, *, create, patience=None):
        await put(self, key, parts, create=False, patience=patience)

    monkeypatch.setattr(Bucket, "put", careless)
    store = MemoryStore()
    async with opened(store) as bench:
        assert bench.controller._open.writer.create is False
        assert await bench.get(await bench.put({1: payload(1, 5000)})) == {1: payload(1, 5000)}
        assert len(objects(store)) == 1


@pytest.mark.parametrize("size", [5000, 9_000_000], ids=["pack", "pieces"])
async def test_a_name_that_is_taken_is_not_written_over(size):
    store = MemoryStore()
    async with opened(store) as bench:
        parts = bench.controller._open.parts
        number = parts.session.first
        taken = [parts.layout.key(number), parts.layout.piece_key(number, 1)]
        for key in taken:
            obstore.put(store, key, b"somebody's")
        assert await bench.get(await bench.put({1: payload(1, size)})) == {1: payload(1, size)}
        assert bench.controller.status is ControllerStatus.OK
        assert all(bytes(obstore.get(store, key).bytes()) == b"somebody's" for key in taken)
